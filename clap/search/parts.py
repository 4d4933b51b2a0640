"""The rows of an index on disk: INDEX/rows/part-00012.parquet, small columns and embeddings of some 1,000 clips.

A part is written once. What changes makes new parts, so that whoever reads the old ones still can; INDEX/index.json
says which of them count.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clap.checkpoint import atomic
from clap.data import DataError
from clap.search.rows import schema

if TYPE_CHECKING:
    import pyarrow as pa

PART = 1024  # clips: what a killed run may have to embed again
MANY = 16  # parts that are not half full, beyond which they are written together


@dataclass(frozen=True)
class Plan:
    """What parts on disk are worth for the rows of a source."""

    intact: list[Path]  # parts of which every row is as the source has it
    todo: np.ndarray  # rows of the source that are in none of them
    known: dict[int, tuple[Path, int]]  # of these, where some have their embedding: (part, row)


def write_part(path: Path, rows: "pa.Table", embeddings: np.ndarray) -> None:
    """Write rows (`schema`) with their embeddings (n, dim), as float16: a score moves by some 1e-5."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = pa.array(embeddings.astype(np.float16).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
    with atomic(path) as temporary:
        pq.write_table(rows.append_column("embedding", column), temporary, compression="zstd")


def read_rows(parts: Sequence[Path]) -> "pa.Table":
    """The small columns of parts, in order and in one piece, of which rows are taken quickly."""
    import pyarrow.dataset as ds

    if not parts:
        return schema().empty_table()
    table = ds.dataset([str(part) for part in parts], format="parquet").to_table(schema().names)
    return table.cast(schema()).combine_chunks()


def read_embeddings(part: Path) -> np.ndarray:
    """(n, dim) float16 of a part."""
    import pyarrow.parquet as pq

    column = pq.read_table(part, columns=["embedding"])["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def plan(folder: Path, rows: "pa.Table") -> Plan:
    """Which parts in `folder` hold for the rows of a source, and what is left to do; an id counts once.

    Of many small parts, as runs leave that find little new, the rows are left to do, their embeddings known.
    """
    row_of = {id: row for row, id in enumerate(rows["id"].to_pylist())}
    if len(row_of) < len(rows):
        raise DataError(f"{len(rows) - len(row_of)} of {len(rows)} ids come again: an index needs each once")
    free = np.ones(len(rows), bool)
    intact: dict[Path, list[int]] = {}
    known: dict[int, tuple[Path, int]] = {}
    for path in sorted(folder.glob("part-*.parquet")):
        there = read_rows([path])
        at = [row_of.get(id, -1) for id in there["id"].to_pylist()]
        if min(at) >= 0 and free[at].all() and rows.take(at).equals(there):
            intact[path] = at
            free[at] = False
            continue
        stamps, now = there["stamp"].to_pylist(), rows["stamp"]
        known |= {row: (path, i) for i, row in enumerate(at) if row >= 0 and now[row].as_py() == stamps[i]}
    small = [path for path, at in intact.items() if len(at) < PART / 2]
    for path in small if len(small) > MANY else ():
        at = intact.pop(path)
        free[at] = True
        known |= {row: (path, i) for i, row in enumerate(at)}
    return Plan([*intact], np.flatnonzero(free), {row: place for row, place in known.items() if free[row]})


def next_part(folder: Path) -> Iterator[Path]:
    """Paths of parts, numbered on from those that are there."""
    last = max((int(path.stem.removeprefix("part-")) for path in folder.glob("part-*.parquet")), default=-1)
    while True:
        last += 1
        yield folder / f"part-{last:05d}.parquet"


def count(parts: Sequence[Path]) -> int:
    """The rows of parts, by their footers."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(part).num_rows for part in parts)


def gather(parts: Sequence[Path], path: Path) -> np.ndarray:
    """Write the embeddings of parts as one .npy (n, dim) float16, and open it memory-mapped."""
    dim = read_embeddings(parts[0]).shape[1]
    with atomic(path) as temporary:
        whole = np.lib.format.open_memmap(temporary, "w+", np.float16, (count(parts), dim))
        end = 0
        for part in parts:
            found = read_embeddings(part)
            whole[end : end + len(found)], end = found, end + len(found)
        whole.flush()
    return np.load(path, mmap_mode="r")
