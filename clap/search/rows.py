"""The clips that an index or a score is made of, rows of a dataset or sounds of a folder, and where each lies.

A clip's place is "data/train-00000-of-00004.parquet#3:17" (row group, row in it) in a dataset, its path in a folder.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import numpy as np

from clap import shards
from clap.data import DataError, Dataset, open_split
from clap.embed import find

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MEDIA = {"fLaC": "flac", "RIFF": "wav", "OggS": "ogg", "FORM": "aiff", "ID3": "mpeg", "\xff[\xe0-\xff]": "mpeg"}


@dataclass(frozen=True)
class Clips:
    """What can be embedded and, row for row, what is told of it (`schema`)."""

    kind: str  # "dataset" or "folder"
    root: str  # the folder or URL that places are under
    rows: "pa.Table"
    sounds: Dataset | list[Path]


def schema() -> "pa.Schema":
    """Columns of a row: `stamp` changes when its sound does; what a source does not know is empty, or null (s)."""
    import pyarrow as pa

    others = dict.fromkeys(("captions", "labels", "tags"), pa.list_(pa.string())) | {"duration": pa.float64()}
    names = "id stamp source captions labels tags license author title url duration place"
    return pa.schema([(name, others.get(name, pa.string())) for name in names.split()])


def scan(source: str | Path, split: str, sample_rate: int) -> Clips:
    """The rows of a dataset (a folder with data/*.parquet, or a Hub id), or the sounds in a folder and below it."""
    folder = Path(source)
    if folder.is_dir() and not any((folder / "data").glob("*.parquet")):
        return of_folder(folder.resolve())
    return of_dataset(str(source), split, sample_rate)


def of_folder(root: Path) -> Clips:
    """Sounds with the ids that `build-dataset folder` gives them, known by size and time."""
    import pyarrow as pa

    paths = find([root])
    places = [escape(path.relative_to(root)) for path in paths]
    columns = {
        "id": [f"folder/{place}" for place in places],
        "stamp": [stamp(path) for path in paths],
        "source": ["folder"] * len(paths),
        "title": [escape(Path(path.stem)) for path in paths],
        "place": places,
    }
    return Clips("folder", str(root), complete(pa.table(columns)), paths)


def of_dataset(name: str, split: str, sample_rate: int) -> Clips:
    """Rows known by the SHA-256 of what they were made from or, without one, by what their shard tells of itself."""
    import pyarrow as pa

    data = open_split(name, split, (), sample_rate)
    names = [str(shard) for shard, _ in data.groups]
    rows = pa.concat_tables([shards.read(shard, read_shard) for shard in dict.fromkeys(names)]).combine_chunks()
    prefixes = [
        f"data/{shard.rpartition('/')[2]}#{group}" for shard, (_, group) in zip(names, data.groups, strict=True)
    ]
    places = [f"{prefixes[group]}:{row}" for group, row in zip(data.group.tolist(), data.offset.tolist(), strict=True)]
    rows = rows.set_column(rows.column_names.index("place"), "place", pa.array(places))
    root = names[0].rpartition("/data/")[0]
    return Clips("dataset", root if "://" in root else str(Path(root).resolve()), rows, data)


def read_shard(file: "pq.ParquetFile") -> "pa.Table":
    """What a shard tells of its rows, audio apart; `place` is left empty."""
    import pyarrow as pa
    import pyarrow.compute as pc

    known = {*schema().names, "sha256"} - {"stamp", "place"}
    table = file.read(columns=[name for name in file.schema_arrow.names if name in known])
    footer = sha256(repr(file.metadata.to_dict()).encode()).hexdigest()[:16]
    stamp = pa.array([f"{footer}:{row}" for row in range(len(table))])
    if "sha256" in table.column_names:
        hashed = pc.if_else(pc.equal(table["sha256"], ""), None, table["sha256"])
        seconds = table["duration"].cast(pa.string()) if "duration" in table.column_names else pa.scalar("")
        stamp = pc.coalesce(pc.binary_join_element_wise(hashed, seconds, ":"), stamp)
    return complete(table.append_column("stamp", stamp))


def complete(table: "pa.Table") -> "pa.Table":
    """The table with every column of the schema: "" or [] where there is none, null for a duration."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = []
    for field in schema():
        there = field.name in table.column_names
        column = table[field.name].cast(field.type) if there else pa.nulls(len(table), field.type)
        empty: Any = [] if pa.types.is_list(field.type) else ""
        columns.append(column if field.name == "duration" else pc.coalesce(column, pa.scalar(empty, field.type)))
    return pa.table(columns, schema=schema())


def escape(path: Path) -> str:
    """A path as readable text: bytes that are not UTF-8, control characters and "%" become %XX."""
    return "".join(
        char if char.isprintable() and char != "%" else "".join(f"%{byte:02X}" for byte in os.fsencode(char))
        for char in str(path)
    )


def stamp(path: Path) -> str:
    """What a sound of a folder is known by."""
    facts = path.stat()
    return f"{facts.st_size}:{facts.st_mtime_ns}"


def media(sound: bytes) -> str:
    """The media type of encoded bytes, by the first few of them."""
    kinds = (kind for magic, kind in MEDIA.items() if re.match(magic.encode("latin-1"), sound))
    return f"audio/{next(kinds, 'basic')}"


def locate(root: str, clip: dict[str, Any]) -> tuple[Path, str]:
    """The file of a folder's clip (a row) and its media type; DataError if it is gone, or another by its stamp."""
    path = Path(root) / os.fsdecode(unquote_to_bytes(clip["place"]))
    try:
        now = stamp(path)
        with path.open("rb") as file:
            kind = media(file.read(16))
    except OSError as error:
        raise DataError(f"{root}/{clip['place']} cannot be read: if it was moved, run index again") from error
    if now != clip["stamp"]:
        raise DataError(f"{root}/{clip['place']} has changed since it was indexed: run index again")
    return path, kind


def from_shard(root: str, clip: dict[str, Any]) -> bytes:
    """The audio of a dataset's clip (a row); DataError if another clip lies there now, as after another build."""
    shard, _, at = clip["place"].rpartition("#")
    group, row = map(int, at.split(":"))

    def work(file: "pq.ParquetFile") -> list[dict[str, Any]]:
        if group >= file.num_row_groups:
            return []
        return file.read_row_group(group, columns=["id", "audio.bytes"]).slice(row, 1).to_pylist()

    there = shards.read(f"{root}/{shard}", work)
    if not there or there[0]["id"] != clip["id"]:
        raise DataError(f"{root}/{clip['place']} is not {clip['id']}: the dataset was built anew, run index again")
    return there[0]["audio"]["bytes"] or b""


def chunks(rows: Sequence[Any] | np.ndarray, size: int) -> Iterator[Any]:
    """Slices of at most `size` rows."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that counts on, shown on standard error where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task(what, total=total)
        yield lambda more: shown.advance(task, more)
