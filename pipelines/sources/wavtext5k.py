"""`wavtext5k`: WavText5K, 4,525 sounds of BigSoundBank and SoundBible with the descriptions of those sites."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.clip import Clip, to_json
from pipelines.english import from_title
from pipelines.sources.corpus import Sounds, find, read_rows
from pipelines.sources.wavcaps import listed
from pipelines.text import public

if TYPE_CHECKING:
    from pipelines.sources import Reading

COLUMNS = ("view_link", "download_link", "title", "description", "fname", "tags")
AUDIO = ("audio", "WavText5K/download", "download", "audio.zip")  # where its process.py puts them


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Clips in the order of WavText5K.csv; the title is the caption of a sound without a description."""
    sounds = Sounds(path, *AUDIO)
    for row in read_rows(find(path, "wavtext5k", "WavText5K.csv"), usecols=COLUMNS, encoding_errors="replace"):
        name, link = Path(row["fname"]).name, row["download_link"]  # a name that holds a path is not followed
        yield Clip(
            id=f"wavtext5k/{name or public(link)}",
            source="wavtext5k",
            location=(name and sounds.find(name)) or (link if link.startswith("http") else sounds.locate(name)),
            captions=(row["description"].strip() or from_title(row["title"]),),
            tags=listed(row["tags"]),
            title=row["title"],
            url=row["view_link"],
            original=to_json(row),
        )
