"""The rows of a table (CSV, TSV, JSON, JSONL or Parquet) with every cell as published, piece by piece.

Except for JSON, only one piece is in memory at a time, however long the table is.
"""

import json
import re
import warnings
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.disk import BuildError

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.parsers import TextFileReader

PIECE = 4096  # rows
THOUSANDS = re.compile(r"\d,\d{3}\b")  # a comma of prose, in a number


class Table(NamedTuple):
    """The names of a table's columns, and a function that reads it from the start: lists of cells, one a column."""

    columns: list[str]
    pieces: Callable[[], Iterator[list[list[Any]]]]


def read_table(path: Path) -> Table:
    """The table in a file; raises BuildError if it cannot be read, also while its pieces are read."""
    readers: dict[str, Callable[[Path], Table]] = {
        ".csv": partial(from_text, separator=","),
        ".tsv": partial(from_text, separator="\t"),
        ".json": from_json,
        ".jsonl": from_lines,
        ".parquet": from_parquet,
    }
    if path.suffix.lower() not in readers:
        raise BuildError(f"cannot read {path}: want one of {', '.join(readers)}")
    with telling(path):
        table = readers[path.suffix.lower()](path)

    def pieces() -> Iterator[list[list[Any]]]:
        with telling(path):
            for piece in table.pieces():
                yield [list(map(plain, column)) for column in piece]

    return Table(table.columns, pieces)


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Within, what is wrong with the content of `path` becomes BuildError."""
    try:
        yield
    except (ValueError, OSError, RecursionError) as error:  # pandas' and pyarrow's are ValueErrors
        raise BuildError(f"cannot read {path}: {error}") from error


def plain(value: Any) -> Any:
    """A cell without pandas' and numpy's wrappings; missing values become None."""
    if isinstance(value, str):
        return value
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        value = {name: item for name, item in value.items() if not isinstance(item, bytes)}
    return None if value is None or str(value) in ("nan", "NaN", "NaT", "<NA>") else value


def from_text(path: Path, separator: str) -> Table:
    """CSV or TSV: every cell a string, or missing where a row is short."""
    import pandas as pd

    options: dict[str, Any] = {
        "sep": separator, "dtype": object, "keep_default_na": False, "index_col": False,
        "encoding": encoding(path), "encoding_errors": "surrogateescape",
    }  # fmt: skip
    columns = list(pd.read_csv(path, nrows=0, **options).columns)

    def pieces() -> Iterator[list[list[Any]]]:
        with pd.read_csv(path, chunksize=PIECE, **options) as reader:
            while (frame := advance(reader)) is not None:
                piece = cells(frame)
                refuse_open_quote(piece, separator)
                yield piece

    return Table(columns, pieces)


def encoding(path: Path) -> str:
    """UTF-8, or UTF-16 where the file begins as spreadsheets begin it."""
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig"


def advance(reader: "TextFileReader") -> "pd.DataFrame | None":
    """The next rows, None at the end; a row with more cells than the header is a ValueError."""
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            return next(reader, None)
        except pd.errors.ParserWarning as error:
            raise ValueError(str(error)) from error


def cells(frame: "pd.DataFrame") -> list[list[Any]]:
    """The cells of a frame, column by column."""
    return [frame.iloc[:, i].tolist() for i in range(frame.shape[1])]


def refuse_open_quote(piece: list[list[Any]], separator: str) -> None:
    """Raise ValueError for a cell that holds whole rows, because a quote before them was not closed."""
    if len(piece) > 1:
        for cell in chain.from_iterable(piece):
            if isinstance(cell, str) and "\n" in cell and holds_rows(cell, separator, len(piece) - 1):
                raise ValueError(f"a quote is not closed and swallows other rows: {cell[:60]!r}")


def holds_rows(cell: str, separator: str, wanted: int) -> bool:
    """Whether the lines after a cell's first are rows, with the separators `wanted` in each, the last one cut short.

    At least two, or one and a quote too many, since a line of prose may have as many commas; those with a space
    behind them are prose.
    """
    lines = [line.replace(separator + " ", "") for line in cell.split("\n")[1:]]
    *whole, last = [line.count(separator) for line in lines]
    alone = cell.count('"') % 2 == 1 and separator in THOUSANDS.sub("", lines[-1])
    return set(whole) <= {wanted} and 0 < last <= wanted and (bool(whole) or alone)


def from_json(path: Path) -> Table:
    """A JSON array of objects, or an object of columns."""
    import pandas as pd

    frame = pd.DataFrame(json.loads(path.read_text(encoding=encoding(path))), dtype=object)
    return Table(list(frame.columns), lambda: iter([cells(frame)]))


def from_lines(path: Path) -> Table:
    """A JSON object a line; the columns are those of all lines."""
    columns = list(dict.fromkeys(name for row in objects(path) for name in row))

    def pieces() -> Iterator[list[list[Any]]]:
        lines = objects(path)
        while rows := list(islice(lines, PIECE)):
            yield [[row.get(name) for row in rows] for name in columns]

    return Table(columns, pieces)


def objects(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; empty lines do not count."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape"))
                except ValueError as error:
                    raise ValueError(f"line {number} is not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is not a JSON object")
                yield row


def from_parquet(path: Path) -> Table:
    """Parquet, without the bytes of an Audio column and the index that pandas may have written."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        leaves = [file.schema.column(i).path for i in range(len(file.schema))]
        wanted = [leaf for leaf in leaves if not re.search(r"\.bytes$|^__index_level_\d+__$", leaf)]
        columns = [
            name for name in file.schema_arrow.names if any((leaf + ".").startswith(name + ".") for leaf in wanted)
        ]

    def pieces() -> Iterator[list[list[Any]]]:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(PIECE, columns=wanted):
                yield [column.to_pylist() for column in batch.columns]

    return Table(columns, pieces)
