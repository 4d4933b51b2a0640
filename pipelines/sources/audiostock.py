"""`audiostock`: sound effects of audiostock.net, by LAION's metadata: a CSV with an address, a title and tags a row.

The caption is the title without the number in front of it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.clip import Clip, to_json
from pipelines.sources.corpus import Sounds, find
from pipelines.sources.published import rows_with
from pipelines.text import public

if TYPE_CHECKING:
    from pipelines.sources import Reading

COLUMNS = ("title", "tags", "audio_url")  # of those published, the ones that a clip needs
NUMBER = re.compile(r"No\.?\s*\d+\s+", re.IGNORECASE)  # LAION took the first word away, whatever it was
PLAY = re.compile(r"/audio/(\d+)")
KINDS = (".mp3", ".wav", ".flac", ".ogg")


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Clips in the order of the table; the id is the one in the address, since every file there is called "play"."""
    table = find(path, "audiostock", "audiostock*.csv", "*.csv")
    sounds = Sounds(path, "audio", "AUDIO", "audio.zip", "audio.tar")
    for number, row in enumerate(rows_with(COLUMNS, table), start=1):
        url, title = row["audio_url"].strip(), row["title"].strip()
        url = url if url.startswith(("http://", "https://")) else ""  # no file of this machine
        known = PLAY.search(url)
        id = known[1] if known else f"row-{number}"
        names = [id + kind for kind in KINDS]
        yield Clip(
            id=f"audiostock/{id}",
            source="audiostock",
            location=sounds.find(*names) or url or sounds.locate(*names),
            captions=(NUMBER.sub("", title, count=1) if NUMBER.match(title) else title,),
            tags=tuple(tag.strip() for tag in row["tags"].split(",")),
            author="Audiostock",
            title=title,
            url=public(url),
            original=to_json(row),
        )
