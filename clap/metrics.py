"""Scores of retrieval and classification, exactly as the field reports them.

Ties are broken by index, as a stable sort would: a model that gives every pair the same similarity
scores what chance scores, in both directions. Not-a-number never wins: it raises.
"""

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
    found = []
    for start in range(0, len(query), CHUNK):
        right = truth[start : start + CHUNK, None]
        scores = query[start : start + CHUNK] @ target.T  # (chunk, m)
        own = np.take_along_axis(scores, right, axis=1)
        found.append((scores > own).sum(1) + ((scores == own) & (index < right)).sum(1))
    return np.concatenate(found) if found else np.empty(0, np.int64)


def retrieval(audio: np.ndarray, text: np.ndarray, owner: np.ndarray) -> dict[str, dict[str, float]]:
    """Retrieval in both directions for any number of captions per clip.

    audio (clips, d) and text (captions, d), L2-normalised; owner (captions,): the clip of each caption.
    Text to audio has one query per caption; audio to text one per clip that has captions, its rank being
    that of its best caption. `map10` divides by the number of right answers that fit into ten;
    `map10_laion` repeats LAION-CLAP's 5-caption figure, whose ranks are not sorted (it can pass 1).
    """
    if not len(owner):
        raise MetricError("retrieval needs at least one caption: this split has none")
    by_text = ranks(text, audio, owner)
    by_audio = ranks(audio[owner], text, np.arange(len(text)))  # one per caption, grouped by clip below
    in_order = np.argsort(owner, kind="stable")
    sorted_ranks = np.lexsort((by_audio, owner))
    first = np.flatnonzero(np.diff(owner[in_order], prepend=-1))  # where each clip's captions start
    best = by_audio[sorted_ranks][first]
    one = np.arange(len(text))
    return {
        "text_to_audio": {
            **_recalls(by_text),
            "map10": _map10(by_text, one),
            "map10_laion": _map10(by_text, one),
        },
        "audio_to_text": {
            **_recalls(best),
            "map10": _map10(by_audio[sorted_ranks], first),
            "map10_laion": _map10(by_audio[in_order], first, capped=False),
        },
    }


def mean_recall(scores: dict[str, dict[str, float]]) -> float:
    """Mean of R@1, R@5 and R@10 over both directions: the number that chooses the best checkpoint."""
    return float(np.mean([way[key] for way in scores.values() for key in ("R@1", "R@5", "R@10")]))


def _recalls(rank: np.ndarray) -> dict[str, float]:
    at = {f"R@{k}": float((rank < k).mean()) for k in (1, 5, 10)}
    return at | {"median_rank": float(np.floor(np.median(rank)) + 1), "n": len(rank)}


def _map10(rank: np.ndarray, first: np.ndarray, capped: bool = True) -> float:
    """Mean over groups of sum_j j / (rank_j + 1) over the ranks within ten, over the group's size.

    Groups start at `first`; with their ranks sorted, this is average precision at 10. A group of more
    than ten right answers could not reach 1 without the cap at ten.
    """
    size = np.diff(first, append=len(rank))
    hit = rank < 10
    before: np.ndarray = np.cumsum(hit) - hit
    nth: np.ndarray = before - np.repeat(before[first], size) + 1  # 1, 2, ... counting hits in the group
    total = np.add.reduceat(np.where(hit, nth / (rank + 1), 0.0), first)
    return float((total / (np.minimum(size, 10) if capped else size)).mean())


def classification(scores: np.ndarray, relevant: np.ndarray, names: list[str]) -> dict:
    """Accuracy of single labels, or mean average precision when a clip has several.

    scores and relevant (clips, classes), relevant boolean. Returns accuracy or map, n, chance, per_class.
    Chance is one over the number of classes for accuracy, the mean share of positives for map.
    Classes without a clip are left out of per_class and of the mean.
    """
    if not relevant.any(axis=1).all():
        raise MetricError("a clip has no label among the classes: give all labels, or leave such clips out")
    if not np.isfinite(scores).all():
        raise MetricError("scores hold NaN or infinity: the model has diverged, train it again from earlier")
    present = np.flatnonzero(relevant.any(axis=0))
    if (relevant.sum(axis=1) > 1).any():
        each = {names[c]: average_precision(scores[:, c], relevant[:, c]) for c in present}
        head = {"map": float(np.mean(list(each.values()))), "chance": float(relevant[:, present].mean())}
    else:
        right = np.take_along_axis(relevant, scores.argmax(1)[:, None], axis=1)[:, 0]
        each = {names[c]: float(right[relevant[:, c]].mean()) for c in present}
        head = {"accuracy": float(right.mean()), "chance": 1 / len(names)}
    return {**head, "n": len(scores), "per_class": each}


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
