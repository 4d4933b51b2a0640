"""`freesound`: sounds of freesound.org by a dump of their metadata, with the audio beside it, or by a search.

The dump is LAION's (id, title, "tags:", description, username, download_url) or any like it, as Parquet or CSV;
licences may stand in a table of their own (id, username, licence). Caption 1 is the title, caption 2 the first
sentence of the description.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pipelines.clip import Clip, to_json
from pipelines.disk import BuildError, tree
from pipelines.english import from_title, lines, listing, plain, sentence, sentences
from pipelines.local import to_location
from pipelines.sources import folder
from pipelines.sources.corpus import Sounds, missing, read_rows
from pipelines.sources.rows import read_table
from pipelines.sources.table import NUMBER, text

if TYPE_CHECKING:
    from pipelines.sources import Reading

AUDIO = ("audio", "audio.zip", "audio.tar", "audio.tar.gz", "audio*.tar")
KINDS = "|".join(sorted(kind[1:] for kind in folder.AUDIO))
FILE = re.compile(rf"(\d+)(?:__.*)?\.(?:{KINDS})", re.DOTALL | re.IGNORECASE)  # <id>.<ext>, <id>__<user>__<title>.<ext>
TITLE, LICENSE = ("title", "name"), ("license", "licence", "license_url")
PREVIEWS = ("preview-hq-ogg", "preview-hq-mp3")  # best first; originals need OAuth2


def clips(path: Path | str, reading: "Reading") -> Iterator[Clip]:
    """Clips in the order of the dump, or of the search if `path` is "https://freesound.org/apiv2/search/?query=..."."""
    if isinstance(path, str) and path.startswith(("http://", "https://")):
        from pipelines.sources.freesound_api import search

        yield from (to_clip(row, {}, None, "") for row in search(path))
        return
    path = Path(path)
    dumps, licenses = tables(path)
    sounds = Sounds(path, *AUDIO)
    audio, known = audio_by_id(sounds), licenses_by_id(licenses)
    for dump in dumps:
        for number, row in enumerate(rows_of(dump), start=1):
            id = native_id(row)
            clip = to_clip(row, audio, sounds, known.get(id, ""))
            yield clip if id else clip.reject("manifest", "missing-file", f"row {number} of {dump.name} has no id")


def tables(path: Path) -> tuple[list[Path], list[Path]]:
    """The dump (several files of one kind are one) and the tables of licences beside it, told by their columns."""
    beside = path.parent if path.is_file() else path
    found = [each for each in sorted(beside.glob("*")) if each.suffix.lower() in (".parquet", ".csv", ".tsv")]
    found = [each for each in found if path.is_dir() or "licen" in each.name.lower()]  # the rest may be anything
    columns = {each: set(map(tidy, read_table(each).columns)) for each in {*found, *([path] if path.is_file() else [])}}
    titled = [path] if path.is_file() else [each for each in found if columns[each].intersection(TITLE)]
    dumps = [each for each in titled if not only_licenses(columns[each])] or titled
    if len({each.suffix.lower() for each in dumps}) > 1:  # likely the same one twice
        raise BuildError(f"{path} holds dumps of several kinds, {listing([each.name for each in dumps])}: "
                         "give one of them with --input")  # fmt: skip
    if not dumps:
        raise missing(path, "freesound", "a table (Parquet or CSV) with the columns id and title")
    for each in dumps:
        if "id" not in columns[each] or not columns[each].intersection(TITLE):
            raise BuildError(f"{each} has no column id or no column title: is it a dump of Freesound's metadata?")
    named = {"id"}, set(LICENSE)
    return dumps, [each for each in found if each not in dumps and all(map(columns[each].intersection, named))]


def only_licenses(columns: set[str]) -> bool:
    """Whether a table with these columns is one of licences, which may have titles too."""
    return bool(columns.intersection(LICENSE)) and not columns & {"description", "tags"}


def tidy(column: object) -> str:
    """A column's name as we look for it: LAION's dump has "tags:"."""
    return str(column).strip().rstrip(":").lower()


def rows_of(table: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table, cells as published; one piece of it is in memory at a time."""
    if table.suffix.lower() == ".parquet":
        content = read_table(table)
        for cells in content.pieces():
            yield from (dict(zip(content.columns, row, strict=True)) for row in zip(*cells, strict=True))
    else:
        yield from read_rows(table, "\t" if table.suffix.lower() == ".tsv" else ",", encoding_errors="replace")


def licenses_by_id(found: list[Path]) -> dict[str, str]:
    """{id: licence} of the tables of licences; of a few licences each is held once."""
    rows = ({tidy(name): text(cell) for name, cell in row.items()} for table in found for row in rows_of(table))
    return {native_id(row): sys.intern(next((row[name] for name in LICENSE if row.get(name)), "")) for row in rows}


def audio_by_id(sounds: Sounds) -> dict[str, str]:
    """{id: location} of the audio files that are here, in folders of any depth and in archives."""
    found: dict[str, str] = {}
    for root in sounds.folders:
        for place, _, names in tree(root):
            found |= {match[1]: to_location(place / name) for name in names if (match := FILE.fullmatch(name))}
    packed = ((FILE.fullmatch(name), location) for name, location in sounds.packed.items())
    return found | {match[1]: location for match, location in packed if match}


def native_id(row: dict[str, Any]) -> str:
    """The Freesound id of a row, "" without; a column of numbers with gaps comes as 123.0."""
    id = re.sub(r"\.0*$", "", text(next((cell for name, cell in row.items() if tidy(name) == "id"), "")))
    return id if re.fullmatch(r"[0-9]{1,12}", id) else ""


def to_clip(row: dict[str, Any], audio: dict[str, str], sounds: Sounds | None, license: str) -> Clip:
    """The clip of a row of a dump or of the API; `license` is what another table says."""
    cells = {tidy(name): cell for name, cell in row.items()}
    said = {name: text(cell) for name, cell in cells.items()}
    id, title, author = native_id(row), first(said, *TITLE), first(said, "username", "author")
    given = cells.get("previews")
    previews = {name: text(each) for name, each in given.items()} if isinstance(given, dict) else said
    rate = number(first(said, "samplerate", "sample_rate"))
    remote = first(previews, *PREVIEWS) or ("" if audio else said.get("download_url", ""))
    remote = remote if remote.startswith(("http://", "https://")) else ""  # no file of this machine
    person = f"people/{quote(author, safe='')}/sounds/{id}/" if author else f"s/{id}/"
    return Clip(
        id=f"freesound/{id or 'unknown'}",
        source="freesound",
        location=audio.get(id) or remote or (sounds.locate(f"{id}.wav") if sounds else ""),
        captions=tuple(dict.fromkeys((from_title(title), described(said.get("description", ""))))),
        tags=tags(cells.get("tags")),
        license=first(said, *LICENSE) or license,
        author=author,
        title=title,
        url=f"https://freesound.org/{person}" if id else "",
        duration=number(said.get("duration", "")),
        sample_rate=round(rate) if rate and rate < 2**31 else None,
        original=to_json(row),
        recording=f"freesound:{id}" if id else "",
    )


def first(cells: dict[str, str], *names: str) -> str:
    """The first of some cells that is not empty."""
    return next((cells[name] for name in names if cells.get(name)), "")


def number(said: str) -> float | None:
    """A cell as a number from 0, None for anything else."""
    return float(said) if NUMBER.fullmatch(said) else None


def tags(cell: Any) -> tuple[str, ...]:
    """Tags, given as a list or in a cell with commas between them."""
    found = map(text, cell) if isinstance(cell, list) else text(cell).split(",")
    return tuple(tag for each in found if (tag := each.strip()))


def described(description: str) -> str:
    """The first sentence that is no boilerplate, "" without one; LAION leaves it out where it holds "<" or ">"."""
    for each in sentences(lines(description)):
        if said := plain(each):
            return "" if {"<", ">"}.intersection(each + said) else sentence(said)
    return ""
