"""Parquet shards with audio in a column, here or remote, as archives whose members are rows.

The audio of a row is located as <shard>#<column>/<row>: file:///data/train-00000-of-00004.parquet#audio/12, with rows
counted from 0 in the shard. A shard is read by whole row groups, of which the last two stay in memory: neighbours are
asked for one after the other. Where and with which credentials a remote shard is, `remote` decides.
"""

import io
import re
import threading
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote, unquote

from pipelines.clip import Rejected
from pipelines.local import local_path, readable
from pipelines.remote import Told, filesystem, is_remote, told

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROW = re.compile(r"(?P<shard>.+\.parquet)#(?P<column>[^#/]+)/(?P<row>\d+)", re.IGNORECASE | re.DOTALL)
LARGEST_GROUP = 2**31  # bytes of audio in one row group

reading = threading.Lock()


def row_location(shard: str, column: str, row: int) -> str:
    """The location of a row's audio; `shard` is a file:// or remote URL."""
    return f"{shard}#{quote(column, safe=' ')}/{row}"


def is_row(location: str) -> bool:
    """Whether a location names a row of a shard."""
    return ROW.fullmatch(location) is not None


@contextmanager
def open_row(location: str) -> Iterator[BinaryIO]:
    """The audio of a row; raises Rejected if there is none, or if the shard is not there or damaged."""
    named = ROW.fullmatch(location)
    if named is None:
        raise Rejected("unsupported-url", "want <shard>.parquet#<column>/<row>")
    shard, column, row = named["shard"], unquote(named["column"]), int(named["row"])
    with damaged():
        written = changed(shard)
        ends = list(accumulate(group_sizes(shard, written)))
        group = bisect_right(ends, row)
        if group == len(ends):
            raise Rejected("bad-archive-member", f"the shard has {ends[-1] if ends else 0} rows")
        first = ends[group - 1] if group else 0
        with reading:  # else each who waits would read the same group
            cell = read_group(shard, written, leaf_of(shard, written, column), group)[row - first].as_py()
    while isinstance(cell, dict):
        cell = cell["bytes"]
    if cell is None:
        raise Rejected("missing-file", f"row {row} holds no audio")
    yield io.BytesIO(cell)


@contextmanager
def open_shard(shard: str) -> Iterator["pq.ParquetFile"]:
    """A shard, local or remote, as it can be read at any place; raises Rejected for one that is not there."""
    import pyarrow.parquet as pq

    if is_remote(shard):
        with told():
            files, path = filesystem(shard)
            handle = files.open(path, "rb")
        # Arrow's own threads, which read ahead, can abort a process that ends while they let go of a Python file.
        with handle, Placed(handle) as reader, pq.ParquetFile(reader, pre_buffer=False) as file:
            yield file
        return
    with readable(), local_path(shard).open("rb") as handle, pq.ParquetFile(handle, pre_buffer=False) as file:
        yield file


class Placed(Told):
    """A remote file that can be read at any place; errors of its storage are Rejected."""

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self.handle.seek(offset, whence)

    def tell(self) -> int:
        return self.handle.tell()


@contextmanager
def damaged() -> Iterator[None]:
    """Within, what pyarrow raises for damaged bytes becomes Rejected."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the machine's own; pyarrow's have no number
        raise Rejected("bad-archive-member", f"the shard is damaged: {error}") from error


def changed(shard: str) -> int:
    """When a local shard was written, so that another file of its name is not taken for it; 0 for a remote one."""
    if is_remote(shard):
        return 0
    with readable():
        return local_path(shard).stat().st_mtime_ns


def audio_leaf(schema: Any, column: str) -> str:
    """The path of the bytes below an audio column of a Parquet schema, "" without any."""
    leaves = {schema.column(i).path: schema.column(i).physical_type for i in range(len(schema))}
    wanted = (f"{column}.bytes", column)
    return next((leaf for leaf in wanted if leaves.get(leaf) == "BYTE_ARRAY"), "")


@lru_cache(maxsize=256)
def group_sizes(shard: str, changed: int) -> tuple[int, ...]:
    """The rows in each row group; `changed` makes a file that was replaced another call."""
    with open_shard(shard) as file:
        return tuple(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))


@lru_cache(maxsize=256)
def leaf_of(shard: str, changed: int, column: str) -> str:
    """The path of the bytes below a column; raises Rejected if it holds none."""
    with open_shard(shard) as file:
        leaf = audio_leaf(file.schema, column)
    if not leaf:
        raise Rejected("bad-archive-member", f"the shard has no audio in a column {column}")
    return leaf


@lru_cache(maxsize=2)
def read_group(shard: str, changed: int, leaf: str, group: int) -> "pa.ChunkedArray":
    """The cells of a row group's audio; raises Rejected for a group that is too large to be held."""
    with open_shard(shard) as file:
        facts = file.metadata.row_group(group)
        size = sum(facts.column(i).total_uncompressed_size for i in range(facts.num_columns)
                   if facts.column(i).path_in_schema == leaf)  # fmt: skip
        if size > LARGEST_GROUP:
            raise Rejected(
                "too-large", f"row group {group} of the shard holds {size} bytes: write it with smaller ones"
            )
        return file.read_row_group(group, columns=[leaf], use_threads=False).column(0)
