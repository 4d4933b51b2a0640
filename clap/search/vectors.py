"""The nearest of many vectors by inner product: every one looked at, or those in the cells nearest to the query.

The cells are an inverted file (IVF, Jegou et al. 2011, "Product quantization for nearest neighbor search", section
4) whose vectors are kept in 8 bits a number (faiss's SQ8); what it finds is ranked again by the vectors themselves.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clap.config import ClapError

EXACT = 100_000  # rows up to which every one is looked at: about 20 ms a query at 512 numbers each
FEW = 10_000  # rows that a filter lets pass, up to which every one is looked at though there is an inverted file
BLOCK = 16_384  # rows compared at once
RECALL = 0.96  # of the ten nearest, what the number of cells looked into must find at least
AGAIN = 4  # times k: how many of an inverted file's finds are ranked again
TRAINING = 64  # vectors a cell from which the cells are learned
WAYS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)  # cells looked into, tried in turn


def top(
    vectors: np.ndarray, queries: np.ndarray, k: int, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and row numbers (q, at most k) of the nearest, best first and among equals the lower row.

    vectors: (n, dim), of which only `rows` count if given; queries: (q, dim) float32.
    """
    n = len(vectors) if rows is None else len(rows)
    scores, found = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, n, BLOCK):
        numbers = np.arange(start, min(start + BLOCK, n)) if rows is None else rows[start : start + BLOCK]
        block = vectors[start : start + BLOCK] if rows is None else vectors[numbers]
        these = queries @ block.astype(np.float32, copy=False).T
        these, numbers = best(these, np.broadcast_to(numbers, these.shape), k)
        scores, found = best(np.hstack([scores, these]), np.hstack([found, numbers]), k)
    return scores, found


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
    """Write the inverted file of (n, dim) vectors to `path`; returns how it is to be searched.

    `nprobe`, the cells to look into, is the first number with which every kind of `queries` (name > (q, dim)
    float32) finds RECALL of its ten nearest; `recall` is what each kind found.
    """
    faiss = library()
    n, dim = vectors.shape
    n_cells = max(1, 2 ** round(np.log2(2 * np.sqrt(n))))
    ivf = faiss.index_factory(dim, f"IVF{n_cells},SQ8", faiss.METRIC_INNER_PRODUCT)
    ivf.cp.seed, ivf.cp.min_points_per_centroid = seed, 1
    chosen = np.random.default_rng(seed).choice(n, min(n, TRAINING * n_cells), replace=False)
    ivf.train(vectors[np.sort(chosen)].astype(np.float32))
    for start in range(0, n, BLOCK):
        ivf.add(vectors[start : start + BLOCK].astype(np.float32))
    faiss.write_index(ivf, str(path))
    truth = {name: top(vectors, each, 10)[1] for name, each in queries.items()}
    for nprobe in (*(way for way in WAYS if way < n_cells), n_cells):
        recall = {name: recalled(search_ivf(ivf, vectors, each, 10, nprobe)[1], truth[name])
                  for name, each in queries.items()}  # fmt: skip
        if all(share >= RECALL for share in recall.values()):
            break
    return {"cells": n_cells, "nprobe": nprobe, "recall": recall}


def recalled(found: np.ndarray, truth: np.ndarray) -> float:
    """The share of the rows in `truth` (q, k) that `found` holds too."""
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
        row_scores[there] = vectors[rows[there]].astype(np.float32) @ query
    return best(scores, found, k)
