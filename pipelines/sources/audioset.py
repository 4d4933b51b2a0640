"""`audioset`: AudioSet, two million sections of YouTube videos with labels of an ontology of 527 classes.

Published are lists only: one of sections for each set, and the names of the labels. Other corpora of sections of
YouTube videos (audiocaps, vggsound) make their clips here as well.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.clip import Clip, to_json
from pipelines.disk import BuildError
from pipelines.sources.corpus import Sounds, find, missing, read_rows, youtube
from pipelines.sources.table import section, to_section

if TYPE_CHECKING:
    from pipelines.sources import Reading

TABLES = {
    "balanced_train_segments.csv": "train",
    "unbalanced_train_segments.csv": "train",
    "eval_segments.csv": "test",
}
COLUMNS = ("YTID", "start_seconds", "end_seconds", "positive_labels")
LABELS = "class_labels_indices.csv"
AUDIO = ("audio", "audio/*/", "audio/*.tar", "audio/*.zip", "data/*.tar")
SECONDS = 10.0  # of a section whose end is not published
VIDEO = re.compile(r"[A-Za-z0-9_-]+")


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Clips of the lists that the folder holds, the training sets first; of one list if `path` is that.

    A single list without the table of label names beside it gives clips without labels.
    """
    tables = [path] if path.is_file() else [path / name for name in TABLES if (path / name).exists()]
    if not tables:
        raise missing(path, "audioset", " or ".join(TABLES))
    names = {} if path.is_file() and not (path.parent / LABELS).exists() else read_names(path)
    sounds = Sounds(path, *AUDIO)
    for table in tables:
        split = TABLES.get(table.name) or ("test" if "eval" in table.name else "train")
        for row in read_rows(table, header=None, names=COLUMNS, comment="#", skipinitialspace=True):
            labels = named(row["positive_labels"], names, table) if names else ()
            place = row["YTID"], row["start_seconds"], row["end_seconds"]
            yield segment(
                "audioset", sounds, *place, tags=labels, labels=labels, split=split, original=to_json(row)
            )  # fmt: skip


def read_names(path: Path) -> dict[str, str]:
    """{mid: name} of all labels."""
    table = find(path if path.is_dir() else path.parent, "audioset", LABELS)
    return {row["mid"]: row["display_name"] for row in read_rows(table, usecols=["index", "mid", "display_name"])}


def named(mids: str, names: dict[str, str], table: Path) -> tuple[str, ...]:
    """The names of labels given as "mid1,mid2"; BuildError for a label without a name."""
    try:
        return tuple(names[mid] for mid in mids.split(",") if mid)
    except KeyError as error:
        raise BuildError(
            f"{table} has the label {error.args[0]}, which {LABELS} lacks: obtain both from the same release"
        ) from error


def segment(source: str, sounds: Sounds, video: str, start: str, end: str = "", **known: Any) -> Clip:
    """The clip that is a section of a YouTube video, of 10 s without an `end`; `known` are other fields of it.

    What names no video or no section is rejected. An id becomes part of the names of files, so it is checked.
    """
    part = to_section(start, end)
    broken = Clip(f"{source}/{video}#{start}-{end}", source, **known)
    if not VIDEO.fullmatch(video):
        return broken.reject("manifest", "missing-file", f"{video!r} is not the id of a video")
    if part.trouble or part.start is None:
        return broken.reject("manifest", "bad-section", part.trouble or "no start")
    stop = part.start + SECONDS if part.end is None else part.end
    cut = youtube(sounds, video, part.start, stop)
    return Clip(f"{source}/{video}{section(part.start, stop)}", source, duration=stop - part.start, **cut, **known)
