"""The nearest of many vectors by inner product: every one looked at, or those in the cells nearest to the query.

The cells are an inverted file (IVF, Jegou et al. 2011, "Product quantization for nearest neighbor search", section
4) whose vectors are kept in 8 bits a number (faiss's SQ8); what it finds is ranked again by the vectors themselves.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clap.config import ClapError

EXACT = 100_000  # rows up to which every one is looked at: about 20 ms a query at 512 numbers each
FEW = 10_000  # rows that a filter lets pass, up to which every one is looked at though there is an inverted file
BLOCK = 16_384  # rows compared at once
RECALL = 0.96  # of the ten nearest, what the number of cells looked into must find at least
QUESTIONS = 256  # queries of a kind by which that number is chosen (every other one) and measured (the rest)
AGAIN = 4  # times k: how many of an inverted file's finds are ranked again
TRAINING = 64  # vectors a cell from which the cells are learned
WAYS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)  # cells looked into, tried in turn


def top(
    vectors: np.ndarray, queries: np.ndarray, k: int, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and row numbers (q, at most k) of the nearest, best first and among equals the lower row.

    vectors: (n, dim) as `wide` takes them, of which only `rows` count if given; queries: (q, dim) float32.
    """
    n = len(vectors) if rows is None else len(rows)
    scores, found = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, n, BLOCK):
        numbers = np.arange(start, min(start + BLOCK, n)) if rows is None else rows[start : start + BLOCK]
        block = vectors[start : start + BLOCK] if rows is None else vectors[numbers]
        these = queries @ wide(block).T
        these, numbers = best(these, np.broadcast_to(numbers, these.shape), k)
        scores, found = best(np.hstack([scores, these]), np.hstack([found, numbers]), k)
    return scores, found


def wide(vectors: np.ndarray) -> np.ndarray:
    """(n, dim) as float32: those kept as float16 at length 1 again, from which rounding moves them by some 1e-4."""
    if vectors.dtype == np.float32:
        return np.asarray(vectors)
    found = np.asarray(vectors, np.float32)
    found /= np.sqrt(np.einsum("ij,ij->i", found, found))[:, None]
    return found


def best(scores: np.ndarray, numbers: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k highest scores of each row with their numbers, in order."""
    if scores.shape[1] > k:
        places = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        scores, numbers = np.take_along_axis(scores, places, 1), np.take_along_axis(numbers, places, 1)
    order = np.lexsort((numbers, -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)


def library() -> Any:
    """faiss, an optional package."""
    try:
        import faiss
    except ImportError as error:
        raise ClapError('an index this large needs faiss: pip install "clapboard[search]"') from error
    return faiss


def build_ivf(vectors: np.ndarray, path: Path, queries: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, Any]:
    """Write the inverted file of (n, dim) vectors to `path`; returns how it is to be searched, and its recall.

    `queries` are texts, name > (q, dim) float32: they lie elsewhere than sounds do, so more cells must be looked into.
    """
    faiss = library()
    n, dim = vectors.shape
    n_cells = max(1, 2 ** round(np.log2(2 * np.sqrt(n))))
    ivf = faiss.index_factory(dim, f"IVF{n_cells},SQ8", faiss.METRIC_INNER_PRODUCT)
    ivf.cp.seed, ivf.cp.min_points_per_centroid = seed, 1
    rng = np.random.default_rng(seed)
    ivf.train(wide(vectors[np.sort(rng.choice(n, min(n, TRAINING * n_cells), replace=False))]))
    for start in range(0, n, BLOCK):
        ivf.add(wide(vectors[start : start + BLOCK]))
    faiss.write_index(ivf, str(path))
    return tune(ivf, vectors, queries, rng.choice(n, min(n, QUESTIONS), replace=False))


def tune(ivf: Any, vectors: np.ndarray, queries: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, Any]:
    """How many cells to look into (`nprobe`), and which share of the ten nearest that finds (`recall`).

    Asked are the `queries` and, as "clips", these rows, which do not count among their own nearest. `nprobe` is the
    first number with which half of every kind finds RECALL; `recall` is what the other halves find.
    """
    asked = {name: (each, np.full(len(each), -1)) for name, each in queries.items()}
    asked["clips"] = (wide(vectors[rows]), rows)
    truth = {name: ten(top(vectors, each, 11)[1], own) for name, (each, own) in asked.items()}

    def recall(nprobe: int, first: int) -> dict[str, float]:
        half = slice(first, None, 2)
        found = {name: search_ivf(ivf, vectors, each[half], 11, nprobe)[1] for name, (each, _) in asked.items()}
        return {name: recalled(ten(found[name], asked[name][1][half]), truth[name][half]) for name in asked}

    enough = (way for way in WAYS if way >= ivf.nlist or min(recall(way, 0).values()) >= RECALL)
    nprobe = min(next(enough, ivf.nlist), ivf.nlist)
    return {"cells": ivf.nlist, "nprobe": nprobe, "recall": recall(nprobe, 1)}


def ten(found: np.ndarray, own: np.ndarray) -> list[np.ndarray]:
    """The first ten of each query's rows (q, 11) that are not the query's `own` (q,), -1 being none."""
    return [rows[rows != row][:10] for rows, row in zip(found, own, strict=True)]


def recalled(found: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> float:
    """The share of the rows in `truth`, an array of each query, that `found` holds too."""
    return float(np.mean([np.isin(there, here).mean() for here, there in zip(found, truth, strict=True)]))


def open_ivf(path: Path) -> Any:
    """An inverted file whose cells stay on disk until they are looked into."""
    faiss = library()
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)


def search_ivf(
    ivf: Any, vectors: np.ndarray, queries: np.ndarray, k: int, nprobe: int, keep: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """As `top`, from the `nprobe` nearest cells; where they hold too few, -inf and -1 stand at the end.

    Of a filter (`keep`, a mask over the rows) that lets a share pass, as many more cells are looked into.
    """
    faiss = library()
    settings = {}
    if keep is not None:
        settings["sel"] = faiss.IDSelectorBitmap(np.packbits(keep, bitorder="little"))
        nprobe = min(ivf.nlist, round(nprobe / max(keep.mean(), 1e-9)))
    parameters = faiss.SearchParametersIVF(nprobe=nprobe, **settings)
    _, found = ivf.search(np.ascontiguousarray(queries, np.float32), AGAIN * k, params=parameters)
    scores = np.full(found.shape, -np.inf, np.float32)
    for query, rows, row_scores in zip(queries, found, scores, strict=True):
        there = rows >= 0
        row_scores[there] = wide(vectors[rows[there]]) @ query
    return best(scores, found, k)
