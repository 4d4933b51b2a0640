"""What a model can do with a dataset: retrieval, zero-shot classification, and labels for files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clap import metrics
from clap.data import DataError, Dataset, centred, open_split
from clap.model import CLAP

PROMPT = "This is a sound of {}."


def retrieval(
    model: CLAP, data: str | Sequence[str], split: str = "test", folds: Sequence[int] = ()
) -> dict[str, dict[str, float]]:
    """Text to audio and audio to text over all captions of a split: see metrics.retrieval."""
    return score_retrieval(model, open_split(data, split, folds, model.config.sample_rate))


def score_retrieval(model: CLAP, data: Dataset) -> dict[str, dict[str, float]]:
    """`retrieval` of rows already open. Equal captions are embedded once, so they tie exactly."""
    captions = [data.captions(row) for row in range(len(data))]
    owner = np.repeat(np.arange(len(data)), [len(own) for own in captions])
    unique, index = np.unique([text for own in captions for text in own], return_inverse=True)
    text = model.embed_text(unique.tolist())[index]
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
    scores = model.similarity(embed(model, rows), model.embed_text(prompts(names, prompt)))
    return metrics.classification(scores, relevant, names)


def classify(
    model: CLAP, files: Sequence[str | Path], labels: Sequence[str], prompt: str = PROMPT
) -> list[dict[str, float]]:
    """For each file, label > probability (softmax of the scaled similarities), the likeliest first."""
    scores = model.similarity(model.embed_audio(list(files)), model.embed_text(prompts(labels, prompt)))
    logits = scores * model.log_scale_a.exp().item()
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return [{labels[i]: float(row[i]) for i in np.argsort(-row, kind="stable")} for row in shares]


def prompts(labels: Sequence[str], prompt: str) -> list[str]:
    """A sentence per label."""
    if "{}" not in prompt:
        raise DataError(f"the prompt {prompt!r} has no {{}} where the label goes")
    return [prompt.replace("{}", label.replace("_", " ")) for label in labels]


def embed(model: CLAP, data: Dataset) -> np.ndarray:
    """(clips, dim) embeddings of the centre window of every clip, in order."""
    return model.embed_windows(centred(data, model.config.n_samples))
