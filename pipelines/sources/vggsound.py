"""`vggsound`: VGGSound, 10 s sections of YouTube videos with one label each, of a sound whose source is in sight."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.clip import Clip, to_json
from pipelines.sources.audioset import segment
from pipelines.sources.corpus import Sounds, find, read_rows
from pipelines.sources.table import split_named

if TYPE_CHECKING:
    from pipelines.sources import Reading

COLUMNS = ("youtube_id", "start_seconds", "label", "split")  # the list has no header
AUDIO = ("audio", "audio/*/", "video", "vggsound_*.tar.gz")


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Clips in the order of vggsound.csv."""
    sounds = Sounds(path, *AUDIO)
    for row in read_rows(find(path, "vggsound", "vggsound.csv"), header=None, names=COLUMNS):
        labels, split = (row["label"],), split_named(row["split"])
        place = row["youtube_id"], row["start_seconds"]
        yield segment("vggsound", sounds, *place, tags=labels, labels=labels, split=split, original=to_json(row))
