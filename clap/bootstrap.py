"""95 % confidence intervals by the bootstrap (Efron 1979), percentile method, over clips.

A resample draws as many clips as there are, with replacement: how often each was drawn is all that a score needs, so
every resample is a column of weights and all are computed at once. Of retrieval it is the queries that are drawn, a
clip with all its captions; the ranks stay those among all targets.
"""

import numpy as np

RESAMPLES = 1000
TAIL = (2.5, 97.5)  # percentiles


def draws(n: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each of n clips is in each resample: (n, resamples) float32, columns sum to n."""
    rng = np.random.default_rng(seed)
    counts = [np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(resamples)]
    return np.ascontiguousarray(np.array(counts, np.float32).T)


def of_mean(values: np.ndarray, clip: np.ndarray, counts: np.ndarray) -> list[float]:
    """Interval of the mean of `values` (m,), each of which belongs to a `clip` (m,), under `draws`."""
    totals = np.bincount(clip, values, len(counts)).astype(np.float32)
    sizes = np.bincount(clip, minlength=len(counts)).astype(np.float32)
    return interval(totals @ counts / (sizes @ counts))


def of_map(scores: np.ndarray, relevant: np.ndarray, counts: np.ndarray) -> list[float]:
    """Interval of mean average precision, scores and relevant (clips, classes), under `draws`.

    A class whose clips a resample left out is left out of its mean.
    """
    present = np.flatnonzero(relevant.any(axis=0))
    each = np.stack([precisions(scores[:, c], relevant[:, c], counts) for c in present])
    return interval(np.nanmean(each, axis=0))


def precisions(scores: np.ndarray, relevant: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """metrics.average_precision of every resample, (resamples,); not-a-number where nothing relevant was drawn.

    scores (clips,), relevant (clips,) boolean, of which one is true; counts (clips, resamples).
    """
    down = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[down], append=-np.inf))  # of each run of equal scores
    hits = np.flatnonzero(relevant[down])
    run = np.searchsorted(last, hits)  # the run that each relevant clip is in
    runs, size = np.unique(run, return_counts=True)
    drawn = np.cumsum(sums(down, last[runs] + 1, counts), axis=0)  # (runs, resamples) clips so far
    gain = sums(down[hits], np.cumsum(size), counts)  # relevant clips in each run
    found = np.cumsum(gain, axis=0)
    with np.errstate(invalid="ignore"):
        return np.where(gain > 0, gain * found / drawn, 0).sum(axis=0) / found[-1]


def sums(clips: np.ndarray, ends: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Counts of `clips`, in their order, summed from one of the `ends` (exclusive) to the next: (ends, resamples).

    A sparse product reads them where they are; a copy in that order, for every class, took most of the time.
    """
    from scipy.sparse import csr_array

    some = clips[: ends[-1]]
    ones = np.ones(len(some), counts.dtype)
    return csr_array((ones, some, np.concatenate([[0], ends])), shape=(len(ends), len(counts))) @ counts


def interval(samples: np.ndarray) -> list[float]:
    """[low, high] of the scores of all resamples."""
    return [float(bound) for bound in np.percentile(samples, TAIL)]
