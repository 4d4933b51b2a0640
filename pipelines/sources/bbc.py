"""`bbc`: BBC Sound Effects, as files called `<description>??<id>.wav`, by the archive's own list, or both.

The caption is the description without the names of its classes; the separator is any two characters.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pipelines.archive import is_archive
from pipelines.clip import Clip, to_json
from pipelines.english import meaningful
from pipelines.sources import folder
from pipelines.sources.corpus import missing
from pipelines.sources.published import rows_with
from pipelines.sources.table import NUMBER, text

if TYPE_CHECKING:
    from pipelines.sources import Reading

COLUMNS = ("location", "description", "secs", "category", "CDName")  # of those published, the ones that a clip needs
NAME = re.compile(r"(?:(.+?)[\W_]{1,2})?([A-Z]{0,4}\d{4,}[A-Za-z]?)", re.DOTALL)  # description, id
MARKS = ("-", ":", ".", ",", ";", "(")  # between a class and what is said
LICENSE = "RemArc"
MEDIA = "https://sound-effects-media.bbcrewind.co.uk/mp3/"  # what the site plays: <id>.mp3
PAGE = "https://sound-effects.bbcrewind.co.uk/search?q="


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Clips in the order of the list, then of the files that it does not name; a sound not here is fetched."""
    tables = [path] if path.is_file() and not is_archive(path) else sorted(path.glob("*.csv"))
    files = [] if path in tables else list(from_files(path, reading))
    if not tables and not files:
        raise missing(path, "bbc", "BBCSoundEffects.csv or audio files")
    here = {clip.id: clip for clip in reversed(files)}
    named = set()
    for table in tables:
        for row in rows_with(COLUMNS, table):
            clip = from_row(row)
            if file := here.get(clip.id):
                named.add(clip.id)
                clip = replace(clip, location=file.location, size=file.size)
            yield clip
    yield from (clip for clip in files if clip.id not in named or clip is not here[clip.id])


def from_row(row: dict[str, str]) -> Clip:
    """The clip of a row of the archive's list."""
    id, secs = PurePosixPath(row["location"].strip()).stem, row["secs"].strip()
    clip = Clip(
        id=f"bbc/{id or 'unknown'}",
        source="bbc",
        location=f"{MEDIA}{id}.mp3",
        captions=(without(row["description"], row["category"], row["CDName"]),),
        tags=(*row["category"].split(":"), row["CDName"]),
        license=LICENSE,
        author="BBC",
        title=row["description"],
        url=PAGE + id,
        duration=float(secs) if NUMBER.fullmatch(secs) else None,
        original=to_json(row),
    )
    return clip if id else clip.reject("manifest", "missing-file", "the row names no file")


def from_files(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Clips of the audio files of a folder, of archives in it, or of an archive; a folder's name is their class."""
    archives = [each for each in sorted(path.glob("*")) if is_archive(each)] if path.is_dir() else []
    for place in [path, *archives]:
        for clip in folder.clips(place, reading):
            row = json.loads(clip.original)
            row = row[0] if isinstance(row, list) else row  # a table may list a file twice
            file = PurePosixPath(text(row.get("file_name")) or clip.id)
            match = NAME.fullmatch(file.stem)
            said, id = (match[1] or "", match[2]) if match else (file.stem, str(file))
            about = without(said.replace("_", " "), file.parent.name)
            yield replace(
                clip,
                id=f"bbc/{id}",
                source="bbc",
                captions=(about,) if about else (),
                tags=(file.parent.name,),
                license=LICENSE,
                author="BBC",
                title=about,
                url=PAGE + id if match else "",
            )


def without(description: str, *classes: str) -> str:
    """A description without names of classes at its ends: "French-Traffic - Busy street" is a busy street.

    Only whole names that a mark sets apart, and never all that is said: "Traffic in a busy street" stays.
    """
    said = description.strip()
    for name in filter(None, map(str.strip, classes)):
        if said[: len(name)].lower() == name.lower():
            rest = said[len(name) :].lstrip()
            said = rest.lstrip("".join(MARKS) + " ") if rest.startswith(MARKS) and meaningful(rest) else said
        bare = said.rstrip(" .)")
        if bare[-len(name) :].lower() == name.lower():
            rest = bare[: -len(name)].rstrip()
            said = rest.rstrip("".join(MARKS) + " ") if rest.endswith(MARKS) and meaningful(rest) else said
    return said
