"""`audiocaps`: AudioCaps (v1 and 2.0), captions that people wrote for sections of 10 s of AudioSet.

The lists have a row per caption, and clips of the validation and test sets have five: rows of the same section are one
clip. LAION's script made five clips of them, with the same caption each.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.clip import Clip, to_json
from pipelines.disk import BuildError
from pipelines.sources.audioset import segment
from pipelines.sources.corpus import Sounds, missing, read_rows
from pipelines.sources.table import splits_in

if TYPE_CHECKING:
    from pipelines.sources import Reading

TABLES = ("train.csv", "val.csv", "test.csv")
COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
AUDIO = ("audio", "audio/*/", "audio_*/*/", "audio/*.zip", "audio/*.tar")
LICENSE = "academic use only"


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Clips of the lists that the folder holds, each with all its captions; of one list if `path` is that."""
    tables = [path] if path.is_file() else [path / name for name in TABLES if (path / name).exists()]
    if not tables:
        raise missing(path, "audiocaps", " or ".join(TABLES))
    sounds = Sounds(path, *AUDIO)
    for table in tables:
        split = split_of(table)
        for (video, start), rows in sections(table).items():
            captions = [row["caption"] for row in rows]
            ids = [row["audiocap_id"] for row in rows]
            original = {"youtube_id": video, "start_time": start, "audiocap_id": ids, "caption": captions}
            yield segment("audiocaps", sounds, video, start, captions=tuple(captions), split=split, license=LICENSE,
                          original=to_json(original))  # fmt: skip


def split_of(table: Path) -> str:
    """The split that a list's name tells; BuildError if it tells none."""
    if known := splits_in(table.stem):
        return known[0]
    raise BuildError(f"{table} does not say in its name which split it is: call it {', '.join(TABLES)}")


def sections(table: Path) -> dict[tuple[str, str], list[dict[str, str]]]:
    """{(video, start): its rows}, in the order of the first rows."""
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in read_rows(table, usecols=COLUMNS, encoding_errors="replace"):
        found.setdefault((row["youtube_id"], row["start_time"]), []).append(row)
    return found
