"""A few published clips to look at and listen to: the same ones each time, spread over the sources."""

import hashlib
from heapq import nsmallest
from itertools import groupby, zip_longest
from operator import itemgetter
from pathlib import Path
from typing import Any

LONGEST = 500  # characters of a text
MOST = 20  # texts of a list, such as tags

Place = tuple[bytes, Path, int, int]  # hash of the id, shard, row group, row in it


def examples(dataset: Path, count: int, columns: list[str]) -> list[dict[str, Any]]:
    """Columns of `count` published clips (fewer where there are not so many), by the hashes of their ids.

    Each source gives as many as the others, as long as it has some. A column that is not there is left out, and
    cells are cut: one of them could fill a page.
    """
    import pyarrow.parquet as pq

    places, found = choose(dataset, count), {}
    for path, here in groupby(sorted(places, key=itemgetter(1, 2)), key=itemgetter(1)):
        file = pq.ParquetFile(path)
        wanted = [name for name in columns if name in file.schema_arrow.names]
        for place in here:
            row = file.read_row_group(place[2], wanted).slice(place[3], 1).to_pylist()[0]
            found[place] = {name: brief(cell) for name, cell in row.items()}
    return [found[place] for place in places]


def brief(cell: Any) -> Any:
    """A text of at most 500 characters, the first 20 items of a list; what is neither stays as it is."""
    if isinstance(cell, list):
        return [brief(item) for item in cell[:MOST]]
    return f"{cell[: LONGEST - 1]}…" if isinstance(cell, str) and len(cell) > LONGEST else cell


def choose(dataset: Path, count: int) -> list[Place]:
    """Where the examples lie: the first of each source, the second of each, and so on."""
    best: dict[str, list[Place]] = {}
    for path in sorted((dataset / "data").glob("*.parquet")):
        for source, places in places_of(path, count).items():
            best[source] = nsmallest(count, [*best.get(source, []), *places])
    turns = zip_longest(*(best[source] for source in sorted(best)))
    return [place for turn in turns for place in turn if place][:count]


def places_of(path: Path, count: int) -> dict[str, list[Place]]:
    """The `count` places of each source in a shard whose hashes come first; never more than a row group in memory."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    found: dict[str, list[Place]] = {}
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, ["id", "source"], use_threads=False)
        here: dict[str, list[Place]] = {}
        rows = zip(table["id"].to_pylist(), table["source"].to_pylist(), strict=True)
        for row, (id, source) in enumerate(rows):
            here.setdefault(source, []).append((hashlib.sha256(id.encode()).digest(), path, group, row))
        for source, places in here.items():
            found[source] = nsmallest(count, [*found.get(source, ()), *places])
    return found
