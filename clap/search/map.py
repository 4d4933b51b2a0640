"""An index seen from above: its embeddings on their two principal axes, computed once and kept in INDEX/map.npz."""

import json
import os
from collections import Counter
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from clap.checkpoint import atomic

if TYPE_CHECKING:
    from clap.search.index import Index

MOST = 20_000  # points; of a larger index, that many rows at even distances
GROUPS = 12  # colours that can be told apart


def read_map(index: "Index") -> tuple[np.ndarray, np.ndarray]:
    """Rows (n,) and their points (n, 2) float32 in [0, 1]; drawn anew when the index has changed since."""
    path, state = index.path / "map.npz", sha256(json.dumps(index.config).encode()).hexdigest()
    if path.exists():
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["index"]) == state:
                return kept["rows"], kept["points"]
    rows = np.unique(np.linspace(0, len(index) - 1, min(MOST, len(index))).astype(int))
    points = principal(index.embeddings(rows))
    if os.access(index.path, os.W_OK):  # an index that others keep is read all the same
        with atomic(path) as temporary, temporary.open("wb") as handle:
            np.savez(handle, index=np.array(state), rows=rows, points=points)
    return rows, points


def principal(embeddings: np.ndarray) -> np.ndarray:
    """(n, dim) > (n, 2) float32 in [0, 1]: the two axes of most variance (PCA), each stretched to its range."""
    centred = np.asarray(embeddings, np.float64) - np.mean(embeddings, axis=0, dtype=np.float64)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, :-3:-1]  # (dim, 2), most variance first
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])  # a sign is arbitrary: the same one every time
    points = centred @ axes
    low, high = points.min(axis=0), points.max(axis=0)
    return ((points - low) / np.maximum(high - low, 1e-12)).astype(np.float32)


def colours(table: Any, rows: np.ndarray) -> tuple[list[str], list[int]]:
    """Names of groups, and for each row the number of its own: its first label where clips have some, else its source.

    The largest groups have a name of their own, and the rest are "other".
    """
    some = table.select(["labels", "source"]).take(rows).to_pylist()
    labelled = any(row["labels"] for row in some)
    own = [(row["labels"] or ["no label"])[0] if labelled else row["source"] or "no source" for row in some]
    count = Counter(own)
    names = sorted(count, key=lambda name: (-count[name], name))
    kept = names if len(names) <= GROUPS else [*names[: GROUPS - 1], "other"]
    number = {name: min(i, len(kept) - 1) for i, name in enumerate(names)}
    return kept, [number[name] for name in own]
