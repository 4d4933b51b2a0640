"""Clips whose embeddings are nearly the same, in groups of which one clip stays (as SemDeDup, arXiv:2303.09540).

A group is what is connected by pairs at or above the threshold, so its farthest clips may be less alike than that.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clap.checkpoint import atomic, write_text
from clap.data import DataError
from clap.search import vectors
from clap.search.index import Index
from clap.search.rows import bar

ROWS = 1024  # compared at once with COLUMNS others
COLUMNS = 8192
NEIGHBOURS = 64  # of each clip that are looked at where not every pair is
ROUNDING = 1e-6  # of a cosine in float32: that of a clip and its copy may be this much under 1


def dedup(index: Index, out: str | Path, threshold: float = 0.95) -> dict[str, Any]:
    """Write OUT/groups.parquet (id, group, keep, score) of all clips that are in a group; returns the counts.

    One of a group stays: that with most captions, then the smallest id; `score` is the cosine to it. OUT/drop.txt
    names the others by their published ids, as build-dataset's --exclude-ids takes them.
    """
    if not 0 < threshold <= 1:
        raise DataError(f"the threshold is {threshold}: give a cosine above 0, at most 1")
    groups = group(index, threshold)
    order = np.argsort(groups, kind="stable")
    members = [each for each in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1) if len(each) > 1]
    rows = [row for number, each in enumerate(members) for row in judge(index, each, number)]
    write(Path(out), rows, index)
    return {"clips": len(index), "groups": len(members), "dropped": len(rows) - len(members)}


def group(index: Index, threshold: float) -> np.ndarray:
    """(n,) number of the group of each clip.

    Every pair is looked at where every row is in a search; else the NEIGHBOURS nearest of each clip that a search
    finds, which connects larger groups too, but may miss a pair that the search misses.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    groups = np.arange(len(index))
    with bar("clips compared", len(index)) as count:
        for done, pairs in (exact if index.ivf is None else probed)(index, threshold):
            ends = groups[pairs]
            ends = ends[:, ends[0] != ends[1]]  # the others are of one group already
            if ends.size:
                links = coo_matrix((np.ones(ends.shape[1], bool), tuple(ends)), shape=(len(index),) * 2)
                groups = connected_components(links, directed=False)[1][groups]
            count(done)
    return groups


def exact(index: Index, threshold: float) -> Iterator[tuple[int, np.ndarray]]:
    """(clips done, (2, pairs) rows whose cosine reaches the threshold), a block of all pairs at a time."""
    for start in range(0, len(index), ROWS):
        these = index.embeddings(slice(start, start + ROWS))
        for column in range(start, len(index), COLUMNS):
            row, place = np.nonzero(these @ index.embeddings(slice(column, column + COLUMNS)).T >= threshold - ROUNDING)
            yield (len(these) if column + COLUMNS >= len(index) else 0), np.array([row + start, place + column])


def probed(index: Index, threshold: float) -> Iterator[tuple[int, np.ndarray]]:
    """As `exact`, with the nearest neighbours of each clip that the inverted file finds."""
    nprobe = index.config["ivf"]["nprobe"]
    for start in range(0, len(index), ROWS):
        these = index.embeddings(slice(start, start + ROWS))
        scores, rows = vectors.search_ivf(index.ivf, index.vectors, these, NEIGHBOURS, nprobe)
        query, place = np.nonzero(scores >= threshold - ROUNDING)
        yield len(these), np.array([query + start, rows[query, place]])


def judge(index: Index, rows: np.ndarray, number: int) -> list[tuple[int, int, bool, float]]:
    """(row, group, whether it stays, cosine to the one that stays) of a group, that one first."""
    told = index.table.select(["id", "captions"]).take(rows).to_pylist()
    best = min(range(len(rows)), key=lambda i: (-len(told[i]["captions"]), told[i]["id"]))
    embeddings = index.embeddings(rows)
    scores = embeddings @ embeddings[best]
    order = sorted(range(len(rows)), key=lambda i: (i != best, told[i]["id"]))
    return [(int(rows[i]), number, i == best, float(scores[i])) for i in order]


def write(out: Path, rows: list[tuple[int, int, bool, float]], index: Index) -> None:
    """Write both files, the list last."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    at, number, keep, score = zip(*rows, strict=True) if rows else ((),) * 4
    ids = index.table["id"].take(pa.array(at, pa.int64()))
    kinds = (pa.int32(), pa.bool_(), pa.float32())
    columns = [ids, *map(pa.array, (number, keep, score), kinds)]
    with atomic(out / "groups.parquet") as temporary:
        pq.write_table(pa.table(columns, ["id", "group", "keep", "score"]), temporary)
    dropped = ids.filter(pc.invert(columns[2])).to_pylist()
    write_text(out / "drop.txt", "".join(f"{id}\n" for id in dropped))
