"""`epidemic_sound`: sound effects of epidemicsound.com, by LAION's metadata: one Parquet file per class.

Caption 1 is the title without the number at its end; caption 2 names the tags.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pipelines.clip import Clip, to_json
from pipelines.disk import BuildError
from pipelines.english import sound_of
from pipelines.sources.corpus import Sounds, missing
from pipelines.sources.rows import read_table
from pipelines.sources.table import NUMBER, several, text
from pipelines.text import public

if TYPE_CHECKING:
    from pipelines.sources import Reading

COLUMNS = ("title", "id", "genres", "url", "metadataTags")  # of those published, the ones that a clip needs
AUDIO = ("audio", "raw", "audio.zip", "audio.tar")


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Clips class by class; the name of a class is that of its file."""
    tables = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not tables:
        raise missing(path, "epidemic_sound", "a Parquet file per class")
    sounds = Sounds(path, *AUDIO)
    for table in tables:
        content = read_table(table)
        if absent := [name for name in COLUMNS if name not in content.columns]:
            raise BuildError(f"{table} has no column {', '.join(absent)}: is it of Epidemic Sound's metadata?")
        rows = (row for cells in content.pieces() for row in zip(*cells, strict=True))
        for number, row in enumerate(rows, start=1):
            yield to_clip(dict(zip(content.columns, row, strict=True)), unquote(table.stem), number, sounds)


def to_clip(row: dict[str, Any], name: str, number: int, sounds: Sounds) -> Clip:
    """The clip of a row of the class `name`. Audio here is called by its id, or as in its address."""
    title, url, length = text(row["title"]), text(row["url"]), text(row.get("length"))
    id = re.sub(r"\.0*$", "", text(row["id"])) or f"{name}-{number}"
    tags = several(row["metadataTags"], ",")
    url = url if url.startswith(("http://", "https://")) else ""  # no file of this machine
    file = PurePosixPath(unquote(urlsplit(url).path)).name
    names = [id.replace("/", "_") + kind for kind in (".mp3", ".wav", ".flac")] + [file] * bool(file)
    return Clip(
        id=f"epidemic_sound/{id}",
        source="epidemic_sound",
        location=sounds.find(*names) or url or sounds.locate(*names),
        captions=(re.sub(r"[\s_]*\d+$", "", title), sound_of(tags)),
        tags=(name, *several(row["genres"], ","), *tags),
        author="Epidemic Sound",
        title=title,
        url=public(url),
        duration=float(length) if NUMBER.fullmatch(length) else None,
        original=to_json(row | {"Class_name": name}),
    )
