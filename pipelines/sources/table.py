"""`csv`: a table (CSV, TSV, JSON, JSONL or Parquet) of paths or URLs with captions and what else is known.

Columns are recognised by their usual names, else given with `--column FIELD=NAME`. Rows that name the same clip
are one clip with all their captions; `start` and `end` (s) make a section of a recording a clip of its own. A place
is a path (relative ones start at the table's own folder), a URL of any kind, or `archive.zip#member`.
Only `location` holds passwords and signatures of addresses: ids, `url` and `original` are published without them.
"""

import ast
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.clip import Clip, to_json
from pipelines.disk import BuildError
from pipelines.local import to_location
from pipelines.sources.rows import Table, read_table
from pipelines.text import public

if TYPE_CHECKING:
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
    "start": ("start", "start_time", "start_seconds", "onset"),
    "end": ("end", "end_time", "end_seconds"),
    "duration": ("duration",),
    "sample_rate": ("sample_rate", "samplerate", "sampling_rate"),
    "channels": ("channels", "num_channels"),
    "size": ("size", "bytes", "file_size"),
    "sha256": ("sha256",),
}  # fmt: skip
NUMBERED = re.compile(r"(caption|text|sentence)[._]?\d+")  # caption_1, caption2, ...
NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]*)?")
CLOCK = re.compile(r"(?:([0-9]{1,6}):(?=[0-5]?[0-9]:))?([0-9]{1,6}):([0-5]?[0-9](?:\.[0-9]*)?)")  # h:mm:ss, m:ss
QUOTED = r"""('[^'\\]*'|"[^"\\]*")"""
LISTED = re.compile(rf"\[\s*{QUOTED}(\s*,\s*{QUOTED})*\s*\]")  # as Python prints a list of texts
MISSING = frozenset(("nan", "NaN", "NaT", "<NA>", "None", "null"))  # as programs write that there is nothing
SHA256 = re.compile(r"[0-9a-f]{64}")
ARCHIVE = re.compile(r"(.+?\.(?:zip|tar|tar\.gz|tgz))#(.+)", re.IGNORECASE | re.DOTALL)
SPLITS = {
    "train": "train", "training": "train", "dev": "train", "development": "train",
    "val": "validation", "valid": "validation", "validation": "validation",
    "all": "all_",  # the name by which all splits are read together
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
# In names of files, where "all" is no split, and "dev" what `datasets` takes it for
IN_NAMES = {name: split for name, split in SPLITS.items() if name != "all"} | {"dev": "validation"}


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Clips of a table, in the order of their first rows; raises BuildError if it cannot be read."""
    if not path.is_file():
        raise BuildError(f"{path} is not a file: source csv takes a .csv, .tsv, .json, .jsonl or .parquet table")
    table = read_table(path)
    root = path.parent.resolve() if ".." in path.parts else path.parent.absolute()
    yield from gathered(table, plan_layout(table, recognise(table, reading.columns(), path), root, "csv"))


def recognise(table: Table, given: dict[str, str], path: Path) -> dict[str, list[str]]:
    """{field of Clip: its columns}; raises BuildError if a given column or the location is missing."""
    lower = {str(name).strip().lower(): name for name in reversed(table.columns)}
    columns: dict[str, list[str]] = {}
    for field, names in NAMES.items():
        if field in given:
            if given[field] not in table.columns:
                raise BuildError(f"{path} has no column {given[field]!r}: give --column {field}=NAME, with one of "
                                 + ", ".join(map(str, table.columns)))  # fmt: skip
            columns[field] = [given[field]]
        elif known := [lower[name] for name in names if name in lower]:
            columns[field] = known[:1]
    if "captions" not in given:
        numbered = [name for key, name in sorted(lower.items(), key=natural) if NUMBERED.fullmatch(key)]
        columns["captions"] = columns.get("captions", []) + numbered
    if columns.get("url") == columns.get("location") and "url" not in given:
        columns.pop("url", None)  # a column "url" is where the bytes are, unless another one is
    if "location" not in columns:
        wanted, there = ", ".join(NAMES["location"]), ", ".join(map(str, table.columns))
        raise BuildError(f"{path} has no column of paths or URLs ({wanted}) among: {there}. Name it with --column "
                         "location=NAME; a .csv is split at commas, a .tsv at tabs")  # fmt: skip
    return columns


def natural(item: tuple[str, str]) -> tuple[str, int]:
    """Sort key under which caption_10 follows caption_9."""
    return re.sub(r"\d+", "", item[0]), int(re.search(r"\d+", item[0] + "0")[0])  # type: ignore[index]


class Layout(NamedTuple):
    """How to read a table's rows: its column names, which of them hold each field, where relative paths start.

    `archives` is whether a place may lie in an archive of this machine; `shared` are the ids of several sections.
    """

    names: list[str]
    places: dict[str, list[int]]
    root: Path
    source: str
    archives: bool
    shared: frozenset[str] = frozenset()


class Section(NamedTuple):
    """The part of a recording that is a clip, in seconds, what it adds to a name, and what is wrong with it."""

    start: float | None = None
    end: float | None = None
    name: str = ""
    trouble: str = ""


class Piece(NamedTuple):
    """Some rows of a table: their numbers from 1 and their cells, column by column."""

    numbers: Sequence[int]
    cells: list[list[Any]]
    layout: Layout

    def only(self, rows: list[int]) -> "Piece":
        """Only these rows, counted from 0 within the piece."""
        cells = [[column[row] for row in rows] for column in self.cells]
        return Piece([self.numbers[row] for row in rows], cells, self.layout)

    def texts(self, field: str) -> list[str]:
        """A field's first cells as texts, "" where there is none."""
        if field not in self.layout.places:
            return [""] * len(self.numbers)
        return ["" if (said := text(cell)) in MISSING else said for cell in self.cells[self.layout.places[field][0]]]

    def where(self) -> list[str]:
        """The place that each row names, "" where there is none."""
        return [plainly(place) if "./" in place or "//" in place else place for place in self.texts("location")]

    def sections(self) -> list[Section]:
        """The section of a recording that each row names."""
        if "start" not in self.layout.places and "end" not in self.layout.places:
            return [Section()] * len(self.numbers)
        return list(map(to_section, self.texts("start"), self.texts("end")))

    def floats(self, field: str) -> list[float | None]:
        """A field's first cells as numbers from 0, None where there is none."""
        return [float(said) if said and NUMBER.fullmatch(said) else None for said in self.texts(field)]

    def integers(self, field: str, below: int = 2**31) -> list[int | None]:
        """A field's first cells as integers from 0, None where there is none."""
        return [int(x) if x is not None and x < below and x.is_integer() else None for x in self.floats(field)]

    def lists(self, field: str, separators: str = "") -> list[tuple[str, ...]]:
        """The texts in all cells of a field; a cell is split at the first of `separators` that it holds."""
        columns = [self.cells[place] for place in self.layout.places.get(field, ())]
        rows = zip(*columns, strict=True) if columns else [()] * len(self.numbers)
        return [tuple(item for cell in row for item in several(cell, separators)) for row in rows]


def plan_layout(table: Table, columns: dict[str, list[str]], root: Path, source: str, archives: bool = True) -> Layout:
    """The layout of a table, which is read once for it if it has both ids of its own and sections."""
    places = {field: [table.columns.index(name) for name in names] for field, names in columns.items() if names}
    layout = Layout([str(name) for name in table.columns], places, root, source, archives)
    if "id" in places and ("start" in places or "end" in places):
        return layout._replace(shared=ids_of_sections(table, layout))
    return layout


def ids_of_sections(table: Table, layout: Layout) -> frozenset[str]:
    """The ids that a table gives to more than one section."""
    first: dict[str, str] = {}
    pieces = read_pieces(table, layout)
    rows = (row for piece in pieces for row in zip(piece.texts("id"), piece.sections(), strict=True))
    return frozenset(id for id, section in rows if first.setdefault(id, section.name) != section.name)


def read_pieces(table: Table, layout: Layout) -> Iterator[Piece]:
    """The pieces of a table, in which fields can be looked up."""
    begin = 1
    for cells in table.pieces():
        yield Piece(range(begin, begin + len(cells[0])), cells, layout)
        begin += len(cells[0])


def rows_to_clips(table: Table, layout: Layout) -> Iterator[Clip]:
    """One clip per row, not yet grouped."""
    for piece in read_pieces(table, layout):
        yield from piece_to_clips(piece)


def gathered(table: Table, layout: Layout) -> Iterator[Clip]:
    """Rows of the same clip as one, in the order of their first rows.

    The table is read twice, so that only the second and later rows of a clip are held, wherever they stand.
    """
    seen: set[bytes] = set()
    later: dict[bytes, list[Clip]] = {}
    for piece in read_pieces(table, layout):
        keys = identities(piece)
        rows = [row for row, new in enumerate(newcomers(keys, seen)) if not new]
        for row, clip in zip(rows, piece_to_clips(piece.only(rows)), strict=True):
            later.setdefault(keys[row], []).append(clip)
    seen.clear()
    for piece in read_pieces(table, layout):
        keys = identities(piece)
        rows = [row for row, new in enumerate(newcomers(keys, seen)) if new]
        for row, clip in zip(rows, piece_to_clips(piece.only(rows)), strict=True):
            yield merge([clip, *later.pop(keys[row], [])])


def newcomers(keys: list[bytes], seen: set[bytes]) -> list[bool]:
    """Whether each key was not seen before; all are from now on."""
    fresh = []
    for key in keys:
        fresh.append(key not in seen)
        seen.add(key)
    return fresh


def identities(piece: Piece) -> list[bytes]:
    """128 bits for each row, equal where rows name the same clip."""
    names = zip(ids(piece), locations(piece), (section.name for section in piece.sections()), strict=True)
    return [blake2b(repr(name).encode(), digest_size=16).digest() for name in names]


def ids(piece: Piece) -> list[str]:
    """What each row calls its clip: by an id of its own, else by its place and section, else by its number."""
    source, shared = piece.layout.source, piece.layout.shared
    rows = zip(piece.texts("id"), piece.where(), piece.sections(), piece.numbers, strict=True)
    return [
        f"{source}/{public((id or place) + ('' if id and id not in shared else part.name))}"
        if id or place
        else f"{source}/row-{number}"
        for id, place, part, number in rows
    ]


def to_section(start: str, end: str) -> Section:
    """The section between two cells, "" for an open end."""
    try:
        begin, stop = (seconds(said) if said else None for said in (start, end))
    except ValueError as error:
        return Section(name=f"#{start}-{end}", trouble=str(error))
    if stop is not None and stop <= (begin or 0):
        return Section(name=f"#{start}-{end}", trouble=f"it ends at {end!r} and begins at {start!r}")
    return Section(begin, stop, section(begin, stop))


def seconds(said: str) -> float:
    """A time from 0, given in seconds, as m:ss or as h:mm:ss; raises ValueError for anything else."""
    with suppress(ValueError):  # told below
        clock = CLOCK.fullmatch(said)
        parts = zip(clock.groups("0"), (3600, 60, 1), strict=True) if clock else [(said, 1)]
        value = sum(float(part) * unit for part, unit in parts)
        if 0 <= value < 1e15:  # beyond it no frame could be counted
            return abs(value)  # -0 too
    raise ValueError(f"{said!r} is not a number of seconds")


def section(start: float | None, end: float | None) -> str:
    """What a section of a recording adds to its name, in seconds: "#30-40", "#30-", "#-40"; "" for all of it."""
    if start is None and end is None:
        return ""
    return "#" + "-".join("" if edge is None else repr(edge).removesuffix(".0") for edge in (start, end))


def locations(piece: Piece) -> list[str]:
    """Where the bytes of each row's clip are, "" where it names no place."""
    root, archives = piece.layout.root, piece.layout.archives
    return [locate(root, place, archives) if place else "" for place in piece.where()]


def locate(root: Path, place: str, archives: bool = True) -> str:
    """The location of a path, a URL or `archive#member`; a "#" after anything else belongs to the file's name."""
    if "://" in place:
        return place
    parts = ARCHIVE.fullmatch(place) if archives and "#" in place else None
    if parts and is_file(archive := below(root, parts[1])):
        from pipelines.archive import member_location

        return member_location(archive, parts[2])
    return to_location(below(root, place))


def below(root: Path, path: str) -> Path:
    """The absolute path that `path` is from `root`, without ".."."""
    whole = (root / path).absolute()
    return Path(os.path.normpath(whole)) if ".." in path else whole


def plainly(place: str) -> str:
    """A path without the ".." that lead back into it, so that a file has one name; a URL or a member as it is."""
    if "://" in place:
        return place
    parts = ARCHIVE.fullmatch(place)
    return f"{os.path.normpath(parts[1])}#{parts[2]}" if parts else os.path.normpath(place)


@lru_cache(maxsize=1024)
def is_file(path: Path) -> bool:
    """Whether there is such a file; asked once for an archive of many rows."""
    return path.is_file()


def piece_to_clips(piece: Piece) -> Iterator[Clip]:
    """A clip from each row; one that names no place is rejected as "missing-file", no true section as "bad-section"."""
    places, names, sections = piece.where(), piece.layout.names, piece.sections()
    known: dict[str, list[Any]] = {
        "id": ids(piece),
        "source": [piece.layout.source] * len(places),
        "location": locations(piece),
        "start": [section.start for section in sections],
        "end": [section.end for section in sections],
        "size": piece.integers("size", below=2**53),
        "captions": piece.lists("captions"),
        "tags": piece.lists("tags", ";,"),
        "labels": piece.lists("labels", ";"),
        "fold": [fold or 0 for fold in piece.integers("fold")],
        "split": [split_named(name) for name in piece.texts("split")],
        "license": piece.texts("license"),
        "author": piece.texts("author"),
        "title": piece.texts("title"),
        "url": [
            public(url or (place if "://" in place else ""))
            for url, place in zip(piece.texts("url"), places, strict=True)
        ],
        "sha256": [said if SHA256.fullmatch(said) else "" for said in map(str.lower, piece.texts("sha256"))],
        "duration": piece.floats("duration"),
        "sample_rate": piece.integers("sample_rate"),
        "channels": piece.integers("channels"),
        "original": [to_json(dict(zip(names, row, strict=True))) for row in zip(*piece.cells, strict=True)],
    }
    rows, blank = zip(*known.values(), strict=True), Clip("", "")
    for number, place, section, values in zip(piece.numbers, places, sections, rows, strict=True):
        clip = blank.changed(**dict(zip(known, values, strict=True)))
        if not place:
            clip = clip.reject("manifest", "missing-file", f"row {number} names no file")
        elif section.trouble:
            clip = clip.reject("manifest", "bad-section", f"row {number}: {section.trouble}")
        yield clip


def text(cell: Any) -> str:
    """A cell as text, "" for a missing one; an Audio column's is its path."""
    if isinstance(cell, str):
        return cell.strip()
    cell = cell.get("path") if isinstance(cell, dict) else cell
    return "" if cell is None else str(cell).strip()


def splits_in(name: str) -> list[str]:
    """The splits that the words of a file's name tell."""
    return [IN_NAMES[word] for word in re.split(r"[^a-z]+", name.lower()) if word in IN_NAMES]


def split_named(name: str) -> str:
    """The split that a table calls `name`, in letters that every file system takes."""
    name = re.sub(r"\W+", "_", name.lower())[:60]
    return SPLITS.get(name, name)


def several(cell: Any, separators: str = "") -> list[str]:
    """The texts of a cell: a list, one as JSON or Python write it, or a string split at its first separator."""
    if isinstance(cell, str) and cell.startswith("["):
        with suppress(ValueError, SyntaxError, RecursionError):  # a caption may begin with a bracket
            cell = ast.literal_eval(cell) if LISTED.fullmatch(cell) else json.loads(cell)
    if isinstance(cell, list):
        items = [str(item) for item in cell if item is not None]
    else:
        said = "" if cell is None else str(cell)
        separator = next((mark for mark in separators if mark in said), None)
        items = said.split(separator) if separator else [said]
    return [item for each in items if (item := each.strip()) and item not in MISSING]


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
