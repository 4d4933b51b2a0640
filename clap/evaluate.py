"""What a model can do with a dataset: retrieval, zero-shot classification, and labels for files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clap import metrics
from clap.config import PROMPT
from clap.data import DataError, Dataset, open_split
from clap.model import CLAP
from clap.text import tokenize


def retrieval(
    model: CLAP, data: str | Sequence[str], split: str = "test", folds: Sequence[int] = ()
) -> dict[str, dict[str, float]]:
    """Text to audio and audio to text over all captions of a split: see metrics.retrieval."""
    return score_retrieval(model, open_split(data, split, folds, model.config.sample_rate))


def score_retrieval(model: CLAP, data: Dataset) -> dict[str, dict[str, float]]:
    """`retrieval` of rows already open; equal captions are embedded once."""
    captions = [data.captions(row) for row in range(len(data))]
    owner = np.repeat(np.arange(len(data)), [len(own) for own in captions])
    place = {caption: i for i, caption in enumerate(dict.fromkeys(text for own in captions for text in own))}
    text = model.embed_text(list(place))[[place[caption] for own in captions for caption in own]]
    return metrics.retrieval(embed(model, data), text, owner)


def zero_shot(
    model: CLAP,
    data: str | Sequence[str],
    labels: Sequence[str] | None = None,
    prompt: str = PROMPT,
    split: str = "test",
    folds: Sequence[int] = (),
) -> dict:
    """Classify every clip by the label whose prompt is nearest: see metrics.classification.

    `labels` defaults to those of the dataset's `labels` column, sorted; "_" in a label is read as a space.
    """
    rows = open_split(data, split, folds, model.config.sample_rate)
    own = rows.rows["labels"].to_pylist()
    names = list(labels or sorted({label for each in own for label in each or []}))
    unknown = {label for each in own for label in each or []} - set(names)
    if unknown or not all(own):
        what = f"labels {sorted(unknown)} that are not among those given" if unknown else "clips without labels"
        raise DataError(f"{rows.name}, split {split}, has {what}: zero-shot needs labels for every clip")
    relevant = np.array([[name in each for name in names] for each in own])
    scores = model.similarity(embed(model, rows), embed_labels(model, names, prompt))
    return metrics.classification(scores, relevant, names)


def classify(
    model: CLAP, files: Sequence[str | Path], labels: Sequence[str], prompt: str = PROMPT
) -> list[dict[str, float]]:
    """For each file, label > probability (softmax of the scaled similarities), the likeliest first."""
    scores = model.similarity(model.embed_audio(list(files)), embed_labels(model, labels, prompt))
    logits = scores * model.log_scale_a.exp().item()
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return [{labels[i]: float(row[i]) for i in np.argsort(-row, kind="stable")} for row in shares]


def embed_labels(model: CLAP, labels: Sequence[str], prompt: str) -> np.ndarray:
    """(labels, dim) of the prompt with each label; raises DataError where two of them are the same to the model."""
    if "{}" not in prompt:
        raise DataError(f"the prompt {prompt!r} has no {{}} where the label goes")
    if not labels or len(set(labels)) < len(labels):
        raise DataError(f"labels {list(labels)}: give one or more, each once")
    texts = [prompt.replace("{}", label.replace("_", " ")) for label in labels]
    seen: dict[tuple[int, ...], str] = {}
    for label, ids in zip(labels, tokenize(model.tokenizer, texts, model.config.text_context)[0].tolist(), strict=True):
        known = tuple(i for i in ids if i != model.tokenizer.pad_token_id)
        if known in seen:
            raise DataError(f"{label!r} and {seen[known]!r} are the same to this model, which knows too few words")
        seen[known] = label
    return model.embed_text(texts)


def embed(model: CLAP, data: Dataset) -> np.ndarray:
    """(clips, dim) embeddings of every clip, in order: of its centre or, by a fused model, of the whole of it."""
    return model.embed_audio(data)
