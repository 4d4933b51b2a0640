"""`csv`: a table (CSV, TSV, JSON, JSONL or Parquet) of paths or URLs with captions and what else is known.

Columns are recognised by their usual names, else given with `--column FIELD=NAME`. Rows that name the same clip
are one clip with all their captions. Relative paths start at the table's own folder.
"""

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.clip import Clip, to_json
from pipelines.disk import BuildError
from pipelines.download import to_location

if TYPE_CHECKING:
    import pandas as pd

    from pipelines.sources import Reading

# field of Clip: names under which tables publish it, best first
NAMES = {
    "location": ("file_name", "path", "audio", "file", "filename", "filepath", "audio_path", "audio_url",
                 "download_url", "download_link", "url"),
    "id": ("id", "clip_id", "uid"),
    "captions": ("caption", "captions", "text", "texts", "sentence", "description"),
    "tags": ("tags", "tag", "keywords"),
    "labels": ("labels", "label", "category", "class"),
    "fold": ("fold",),
    "split": ("split", "subset"),
    "license": ("license", "licence"),
    "author": ("author", "username", "uploader", "artist", "creator"),
    "title": ("title",),
    "url": ("source_url", "page_url", "webpage", "href", "link", "url"),
    "duration": ("duration",),
}  # fmt: skip
NUMBERED = re.compile(r"(caption|text|sentence)[._]?\d+")  # caption_1, caption2, ...
SPLITS = {
    "train": "train", "training": "train", "dev": "train", "development": "train",
    "val": "validation", "valid": "validation", "validation": "validation",
    "all": "all_",  # the name by which all splits are read together
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Clips of a table, in the order of their first rows; raises BuildError if it cannot be read."""
    if not path.is_file():
        raise BuildError(f"{path} is not a file: source csv takes a .csv, .tsv, .json, .jsonl or .parquet table")
    frame = read_table(path)
    yield from grouped(rows_to_clips(frame, recognise(frame, reading.columns(), path), path.parent, "csv"))


def read_table(path: Path) -> "pd.DataFrame":
    """A table with every cell as published: strings from text formats, values from JSON and Parquet."""
    import pandas as pd

    text: Any = {
        "dtype": object, "keep_default_na": False, "index_col": False,
        "encoding": "utf-8-sig", "encoding_errors": "surrogateescape",
    }  # fmt: skip
    readers = {
        ".csv": lambda: pd.read_csv(path, **text),
        ".tsv": lambda: pd.read_csv(path, sep="\t", **text),
        ".json": lambda: pd.DataFrame(json.loads(path.read_text(encoding="utf-8-sig")), dtype=object),
        ".jsonl": lambda: pd.DataFrame([json.loads(line) for line in lines(path)], dtype=object),
        ".parquet": lambda: pd.read_parquet(path),
    }
    if path.suffix.lower() not in readers:
        raise BuildError(f"cannot read {path}: want one of {', '.join(readers)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a row with more cells than the header
            frame = readers[path.suffix.lower()]().astype(object)
    except (ValueError, OSError, RecursionError, pd.errors.ParserWarning) as error:  # pyarrow's are ValueErrors
        raise BuildError(f"cannot read {path}: {error}") from error
    if path.suffix.lower() in (".csv", ".tsv"):
        refuse_open_quote(frame, path)
    return frame


def refuse_open_quote(frame: "pd.DataFrame", path: Path) -> None:
    """Raise BuildError for a cell that holds whole rows, because a quote before them was not closed."""
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    for number, row in enumerate(frame.itertuples(index=False, name=None), start=1):
        for cell in row:
            if isinstance(cell, str) and "\n" in cell:
                inside = max(line.count(separator) for line in cell.splitlines())
                if len(row) > 1 and inside >= len(row) - 1:
                    raise BuildError(f"{path}, row {number}: a quote is not closed and swallows other rows")


def lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    return [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]


def recognise(frame: "pd.DataFrame", given: dict[str, str], path: Path) -> dict[str, list[str]]:
    """{field of Clip: its columns}; raises BuildError if a given column or the location is missing."""
    lower = {str(name).strip().lower(): name for name in reversed(frame.columns)}
    columns: dict[str, list[str]] = {}
    for field, names in NAMES.items():
        if field in given:
            if given[field] not in frame.columns:
                raise BuildError(f"{path} has no column {given[field]!r}; it has {', '.join(map(str, frame))}")
            columns[field] = [given[field]]
        elif known := [lower[name] for name in names if name in lower]:
            columns[field] = known[:1]
    if "captions" not in given:
        numbered = [name for key, name in sorted(lower.items(), key=natural) if NUMBERED.fullmatch(key)]
        columns["captions"] = columns.get("captions", []) + numbered
    if columns.get("url") == columns.get("location") and "url" not in given:
        columns.pop("url", None)  # a column "url" is where the bytes are, unless another one is
    if "location" not in columns:
        wanted = ", ".join(NAMES["location"])
        raise BuildError(f"{path} has no column of paths or URLs ({wanted}): give it with --column location=NAME")
    return columns


def natural(item: tuple[str, str]) -> tuple[str, int]:
    """Sort key under which caption_10 follows caption_9."""
    return re.sub(r"\d+", "", item[0]), int(re.search(r"\d+", item[0] + "0")[0])  # type: ignore[index]


def rows_to_clips(frame: "pd.DataFrame", columns: dict[str, list[str]], root: Path, source: str) -> Iterator[Clip]:
    """One clip per row, not yet grouped."""
    names = [str(name) for name in frame.columns]
    for number, values in enumerate(frame.itertuples(index=False, name=None), start=1):
        row = dict(zip(frame.columns, values, strict=True))
        cells = {field: [row[name] for name in columns[field]] for field in columns}
        original = to_json(dict(zip(names, map(plain, values), strict=True)))
        yield row_to_clip(cells, root, source, number, original)


def row_to_clip(cells: dict[str, list[Any]], root: Path, source: str, number: int, original: str) -> Clip:
    """A clip from the cells of a row; a row without a path is rejected as "missing-file"."""

    def one(field: str) -> str:
        return first(cells.get(field, []))

    place = one("location")
    location = place if "://" in place else to_location((root / place).absolute()) if place else ""
    clip = Clip(
        id=f"{source}/{one('id') or place or f'row-{number}'}",
        source=source,
        location=location,
        captions=tuple(text for cell in cells.get("captions", []) for text in several(cell)),
        tags=tuple(
            text for cell in cells.get("tags", []) for text in several(cell, ";" if ";" in one("tags") else ",")
        ),
        labels=tuple(text for cell in cells.get("labels", []) for text in several(cell, ";")),
        fold=int(float(one("fold"))) if re.fullmatch(r"\d{1,9}(\.0*)?", one("fold")) else 0,
        split=SPLITS.get(split := re.sub(r"\W+", "_", one("split").lower())[:60], split),
        license=one("license"),
        author=one("author"),
        title=one("title"),
        url=one("url") or (location if "://" in place else ""),
        duration=float(one("duration")) if re.fullmatch(r"\d{1,9}(\.\d*)?", one("duration")) else None,
        original=original,
    )
    return clip if place else clip.reject("manifest", "missing-file", f"row {number} names no file")


def first(cells: list[Any]) -> str:
    """The first cell as text, "" if there is none or it is empty."""
    value = plain(cells[0]) if cells else None
    value = value.get("path") if isinstance(value, dict) else value  # an Audio column
    return "" if value is None else str(value).strip()


def several(cell: Any, separator: str | None = None) -> list[str]:
    """The texts of a cell: a list, a JSON list in a string, or a string split at `separator`."""
    value = plain(cell)
    if isinstance(value, str) and value.startswith("["):
        with suppress(ValueError, RecursionError):  # a caption may begin with a bracket
            value = json.loads(value)
    if not isinstance(value, list):
        value = [] if value is None else str(value).split(separator) if separator else [str(value)]
    return [text for item in value if item is not None and (text := str(item).strip())]


def plain(value: Any) -> Any:
    """A cell without pandas' and numpy's wrappings; missing values become None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        value = {name: item for name, item in value.items() if not isinstance(item, bytes)}
    return None if value is None or value != value or str(value) in ("NaT", "<NA>") else value


def grouped(rows: Iterable[Clip], key: Callable[[Clip], Any] = lambda clip: (clip.id, clip.location)) -> list[Clip]:
    """Rows of the same clip as one, in the order of their first rows."""
    groups: dict[Any, list[Clip]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return [merge(group) for group in groups.values()]


def merge(rows: list[Clip]) -> Clip:
    """One clip with all captions, tags and labels of its rows in order; `original` is a JSON list of several."""
    if len(rows) == 1:
        return rows[0]
    originals = [json.loads(row.original) for row in rows]
    flat = [item for each in originals for item in (each if isinstance(each, list) else [each])]
    return replace(
        rows[0],
        captions=tuple(dict.fromkeys(text for row in rows for text in row.captions)),
        tags=tuple(dict.fromkeys(tag for row in rows for tag in row.tags)),
        labels=tuple(dict.fromkeys(label for row in rows for label in row.labels)),
        original=json.dumps(flat, ensure_ascii=False, sort_keys=True),
    )
