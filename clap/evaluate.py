"""What a model can do with a dataset: retrieval, zero-shot classification, and labels for files.

`model` is any System (clap/systems.py): ours, or another's under the same evaluation.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clap import metrics
from clap.config import PROMPT
from clap.data import DataError, Dataset, open_split
from clap.systems import System, dataset_rate, normalise, scale

SAME = 1e-6  # labels whose embeddings differ less in cosine similarity are one label to the model


def retrieval(
    model: System, data: str | Sequence[str], split: str = "test", folds: Sequence[int] = ()
) -> dict[str, dict[str, float]]:
    """Text to audio and audio to text over all captions of a split: see metrics.retrieval."""
    return score_retrieval(model, open_split(data, split, folds, dataset_rate(model)))


def score_retrieval(model: System, data: Dataset) -> dict[str, dict[str, float]]:
    """`retrieval` of rows already open."""
    texts, place, owner = captions(data)
    return metrics.retrieval(embed(model, data), model.embed_text(texts)[place], owner)


def captions(data: Dataset) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The different captions, which of them each caption is, (captions,), and the row it belongs to, (captions,)."""
    own = [data.captions(row) for row in range(len(data))]
    index = {text: i for i, text in enumerate(dict.fromkeys(text for each in own for text in each))}
    place = np.array([index[text] for each in own for text in each], int)
    return list(index), place, np.repeat(np.arange(len(own)), [len(each) for each in own])


def validate(model: System, data: Dataset) -> dict[str, float]:
    """Scores of a validation split as one table, "text_to_audio/R@1": ...; `mean_recall` chooses checkpoints.

    Zero-shot scores stand beside retrieval's where every clip has labels that the model can tell apart.
    """
    audio, (texts, place, owner) = embed(model, data), captions(data)
    scores = metrics.retrieval(audio, model.embed_text(texts)[place], owner)
    flat = {f"{way}/{key}": value for way, each in scores.items() for key, value in each.items()}
    return {"mean_recall": metrics.mean_recall(scores), **flat, **guesses(model, data, audio)}


def guesses(model: System, data: Dataset, audio: np.ndarray) -> dict[str, float]:
    """Zero-shot scores of clips whose embeddings (clips, dim) are known; none where that would be a coin toss."""
    if not all(data.rows["labels"].to_pylist()):
        return {}
    names, relevant = answers(data)
    labels = mean_prompts(model, names, [PROMPT])
    if twins(labels):
        return {}
    found = metrics.classification(audio @ labels.T, relevant, names)
    return {f"zero_shot/{key}": found[key] for key in ("accuracy", "map", "chance") if key in found}


def zero_shot(
    model: System,
    data: str | Sequence[str],
    labels: Sequence[str] | None = None,
    prompt: str | Sequence[str] = PROMPT,
    split: str = "test",
    folds: Sequence[int] = (),
) -> dict[str, Any]:
    """Classify every clip by the label whose prompt (or mean of prompts) is nearest: see metrics.classification.

    `labels` defaults to those of the dataset's `labels` column, sorted; "_" in a label is read as a space.
    """
    rows = open_split(data, split, folds, dataset_rate(model))
    names, relevant = answers(rows, labels)
    return metrics.classification(embed(model, rows) @ embed_labels(model, names, prompt).T, relevant, names)


def answers(rows: Dataset, labels: Sequence[str] | None = None) -> tuple[list[str], np.ndarray]:
    """The classes, and (clips, classes) boolean which of them a clip is; DataError for a clip that is none."""
    own = [set(each or []) for each in rows.rows["labels"].to_pylist()]
    known = sorted(set().union(*own))
    names = list(labels or known)
    unknown = [label for label in known if label not in names]
    if unknown or not all(own):
        what = f"labels {unknown} that are not among those given" if unknown else "clips without labels"
        raise DataError(f"{rows.name} has {what}: zero-shot needs labels for every clip")
    return names, np.array([[name in each for name in names] for each in own])


def classify(
    model: System, files: Sequence[str | Path], labels: Sequence[str], prompt: str | Sequence[str] = PROMPT
) -> list[dict[str, float]]:
    """For each file, label > probability (softmax of the scaled similarities), the likeliest first."""
    logits = model.embed_audio(list(files)) @ embed_labels(model, labels, prompt).T * scale(model)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return [{labels[i]: float(row[i]) for i in np.argsort(-row, kind="stable")} for row in shares]


def embed_labels(model: System, labels: Sequence[str], prompt: str | Sequence[str] = PROMPT) -> np.ndarray:
    """(labels, dim) of the prompt with each label; of several prompts the normalised mean of their embeddings.

    Raises DataError where two labels are the same to the model.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    for each in prompts:
        if "{}" not in each:
            raise DataError(f"the prompt {each!r} has no {{}} where the label goes")
    if not prompts or not labels or len(set(labels)) < len(labels):
        raise DataError(f"prompts {prompts}, labels {list(labels)}: give one or more, each label once")
    found = mean_prompts(model, labels, prompts)
    if alike := twins(found):
        first, second = (labels[i] for i in alike)
        raise DataError(f"{first!r} and {second!r} are the same to this model, which knows too few words")
    return found


def mean_prompts(model: System, labels: Sequence[str], prompts: Sequence[str]) -> np.ndarray:
    """(labels, dim): of each label the normalised mean over the prompts."""
    texts = [each.replace("{}", label.replace("_", " ")) for each in prompts for label in labels]
    return normalise(model.embed_text(texts).reshape(len(prompts), len(labels), -1).mean(axis=0))


def twins(embeddings: np.ndarray) -> list[int]:
    """The first two rows of (n, dim), normalised, that are one label to the model; empty if all differ."""
    alike: list[list[int]] = np.argwhere(np.triu(embeddings @ embeddings.T > 1 - SAME, 1)).tolist()
    return alike[0] if alike else []


def embed(model: System, data: Dataset, truncation: str = "auto", rng: np.random.Generator | None = None) -> np.ndarray:
    """(clips, dim) embeddings of every clip, in order: of its centre or, by a fused model, of the whole of it."""
    return model.embed_audio(data, truncation=truncation, rng=rng)
