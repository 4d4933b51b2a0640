"""Scores of retrieval and classification, exactly as the field reports them.

Ties are broken by index, as a stable sort would: a model that gives every pair the same similarity
scores what chance scores, in both directions. Not-a-number never wins: it raises.
"""

from typing import Any

import numpy as np

from clap.config import ClapError

CHUNK = 1024  # queries ranked at once: memory is CHUNK x number of targets floats


class MetricError(ClapError):
    """Scores that cannot be computed: embeddings that are not finite, or nothing to score."""


def ranks(query: np.ndarray, target: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Rank, from 0, of the right target of every query among all targets, by dot product.

    query (n, d), target (m, d), truth (n,) index of the right target; returns (n,) int64.
    """
    if not (np.isfinite(query).all() and np.isfinite(target).all()):
        raise MetricError("embeddings hold NaN or infinity: the model has diverged, train it again from earlier")
    index = np.arange(len(target))
    distinct, place = np.unique(target, axis=0, return_inverse=True)  # equal ones tie, which a product may not see
    found = []
    for start in range(0, len(query), CHUNK):
        right = truth[start : start + CHUNK, None]
        scores = (query[start : start + CHUNK] @ distinct.T)[:, place]  # (chunk, m)
        own = np.take_along_axis(scores, right, axis=1)
        found.append((scores > own).sum(1) + ((scores == own) & (index < right)).sum(1))
    return np.concatenate(found) if found else np.empty(0, np.int64)


def retrieval(audio: np.ndarray, text: np.ndarray, owner: np.ndarray) -> dict[str, dict[str, float]]:
    """Retrieval in both directions for any number of captions per clip: the means of `queries`, and median ranks.

    audio (clips, d) and text (captions, d), L2-normalised; owner (captions,): the clip of each caption. Text to
    audio has one query per caption; audio to text one per clip that has captions, its rank being that of its best
    caption. `map10` divides by the number of right answers that fit into ten; `map10_laion` repeats LAION-CLAP's
    5-caption figure, whose ranks are not sorted (it can pass 1).
    """
    return {way: means(found) for way, found in queries(audio, text, owner).items()}


def means(found: dict[str, np.ndarray]) -> dict[str, float]:
    """What `retrieval` reports of the queries of one direction."""
    rank = found["rank"]
    scores = {name: float(values.mean()) for name, values in found.items() if name not in ("rank", "clip")}
    return {**scores, "median_rank": float(np.floor(np.median(rank)) + 1), "n": len(rank)}


def queries(audio: np.ndarray, text: np.ndarray, owner: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Every query of both directions, arguments as for `retrieval`.

    For each: `clip` (the clip that asks or is asked for), `rank` from 0, and what its ranks are worth, `R@1`, `R@5`,
    `R@10`, `map10`, `map10_laion`, each (queries,); text to audio in the order of the captions.
    """
    if not len(owner):
        raise MetricError("retrieval needs at least one caption: this split has none")
    by_text = ranks(text, audio, owner)
    by_audio = ranks(audio[owner], text, np.arange(len(text)))  # one per caption, grouped by clip below
    in_order = np.argsort(owner, kind="stable")
    sorted_ranks = np.lexsort((by_audio, owner))
    first = np.flatnonzero(np.diff(owner[in_order], prepend=-1))  # where each clip's captions start
    single = precision10(by_text, np.arange(len(text)))
    averaged = {
        "map10": precision10(by_audio[sorted_ranks], first),
        "map10_laion": precision10(by_audio[in_order], first, capped=False),
    }
    return {
        "text_to_audio": _query(owner, by_text, {"map10": single, "map10_laion": single}),
        "audio_to_text": _query(owner[in_order][first], by_audio[sorted_ranks][first], averaged),
    }


def _query(clip: np.ndarray, rank: np.ndarray, averaged: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"clip": clip, "rank": rank, **{f"R@{k}": rank < k for k in (1, 5, 10)}, **averaged}


def mean_recall(scores: dict[str, dict[str, float]]) -> float:
    """Mean of R@1, R@5 and R@10 over both directions: the number that chooses the best checkpoint."""
    found = [way[key] for way in scores.values() for key in ("R@1", "R@5", "R@10")]
    return round(float(np.mean(found)), 9)  # equal means are equal, in whatever order their terms were added


def precision10(rank: np.ndarray, first: np.ndarray, capped: bool = True) -> np.ndarray:
    """Of every group sum_j j / (rank_j + 1) over the ranks within ten, over the group's size: (groups,).

    Groups start at `first`; with their ranks sorted, this is average precision at 10. A group of more
    than ten right answers could not reach 1 without the cap at ten.
    """
    size = np.diff(first, append=len(rank))
    hit = rank < 10
    before: np.ndarray = np.cumsum(hit) - hit
    nth: np.ndarray = before - np.repeat(before[first], size) + 1  # 1, 2, ... counting hits in the group
    total: np.ndarray = np.add.reduceat(np.where(hit, nth / (rank + 1), 0.0), first)
    return total / (np.minimum(size, 10) if capped else size)


def classification(
    scores: np.ndarray, relevant: np.ndarray, names: list[str], several: bool | None = None
) -> dict[str, Any]:
    """Accuracy of single labels, or mean average precision when a clip has several.

    scores and relevant (clips, classes), relevant boolean; `several` says which of both it is, None looks at the
    clips. Returns accuracy or map, n, chance, per_class. Chance is one over the number of classes for accuracy, the
    mean share of positives for map. Classes without a clip are left out of per_class and of the mean.
    """
    if not relevant.any(axis=1).all():
        raise MetricError("a clip has no label among the classes: give all labels, or leave such clips out")
    if not np.isfinite(scores).all():
        raise MetricError("scores hold NaN or infinity: the model has diverged, train it again from earlier")
    present = np.flatnonzero(relevant.any(axis=0))
    if (relevant.sum(axis=1) > 1).any() if several is None else several:
        each = {names[c]: average_precision(scores[:, c], relevant[:, c]) for c in present}
        head = {"map": float(np.mean(list(each.values()))), "chance": float(relevant[:, present].mean())}
    else:
        right = correct(scores, relevant)
        each = {names[c]: float(right[relevant[:, c]].mean()) for c in present}
        head = {"accuracy": float(right.mean()), "chance": 1 / len(names)}
    return {**head, "n": len(scores), "per_class": each}


def correct(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """(clips,) whether the class with the highest score, the first of equals, is right."""
    return np.take_along_axis(relevant, scores.argmax(1)[:, None], axis=1)[:, 0]


def average_precision(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Area under the precision-recall steps, equal scores taken together: scikit-learn's definition.

    scores (n,) and relevant (n,) boolean; 0 when nothing is relevant.
    """
    if not relevant.any():
        return 0.0
    down = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[down], append=-np.inf))  # the last clip of each run of equal scores
    hits = np.cumsum(relevant[down])[last]
    return float((np.diff(hits, prepend=0) * hits / (last + 1)).sum() / hits[-1])


def mean_average_precision(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Mean of average_precision over the classes that have a clip; scores and relevant (clips, classes)."""
    present = np.flatnonzero(relevant.any(axis=0))
    return float(np.mean([average_precision(scores[:, c], relevant[:, c]) for c in present]))


def mean_auc(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Mean over classes of the area under the ROC curve; scores and relevant (clips, classes), relevant boolean.

    By Mann and Whitney's U: of all pairs of a clip with the label and one without, the share whose order is right,
    half a pair where they are equal. Classes that every clip has, or none, are left out; without another, it is 0.5.
    """
    from scipy.stats import rankdata

    split = relevant.any(axis=0) & ~relevant.all(axis=0)
    if not split.any():
        return 0.5
    have = relevant[:, split]
    n = have.sum(axis=0)
    above = (rankdata(scores[:, split], axis=0) * have).sum(axis=0) - n * (n + 1) / 2
    return float((above / (n * (len(have) - n))).mean())
