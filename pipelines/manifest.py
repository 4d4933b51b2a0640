"""The first stage: a source's clips, made alike and cut into parts."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from pipelines.clip import Clip, Rejected, write_clips
from pipelines.disk import BuildError, write_text
from pipelines.english import meaningful
from pipelines.licenses import normalise
from pipelines.local import local_path, member_of
from pipelines.recording import recording_of
from pipelines.run import part_path
from pipelines.text import clean, printable, public

PART_BYTES = 512 * 2**20


def manifest(build: Path, clips: Iterable[Clip], part_rows: int, limit: int | None, audio: bool = True) -> int:
    """Cut a source's clips into parts; returns how many. The count is written last: with it, all are there.

    Without `audio` the sizes of the sources do not matter to a part, as their bytes are left alone.
    """
    rows = parts = 0
    for part, group in enumerate(cut(islice(prepare(clips), limit), part_rows, PART_BYTES if audio else None)):
        write_clips(part_path(build, "manifest", part), group)  # anew: a search may answer otherwise than before
        rows, parts = rows + len(group), part + 1
    write_text(build / "manifest.json", json.dumps({"parts": parts, "rows": rows}) + "\n")
    return parts


def planned(build: Path) -> int | None:
    """How many parts the manifest has; None while it is not complete."""
    path = build / "manifest.json"
    return int(json.loads(path.read_text())["parts"]) if path.exists() else None


def begun(clips: Iterable[Clip]) -> Iterator[Clip]:
    """The same clips, the first one fetched already; raises what is wrong with the input, or that it is empty."""
    rest = iter(clips)
    first = next(rest, None)
    if first is None:
        raise BuildError("the input holds no clips: is it the right folder or table?")

    def again() -> Iterator[Clip]:
        yield first
        yield from rest

    return again()


def prepare(clips: Iterable[Clip]) -> Iterator[Clip]:
    """What holds for every source: clean text and captions that mean something, unique ids, licences by one name,
    a split for each clip, sizes of local files."""
    numbers: dict[str, int] = {}  # of each id given: the last one that was put behind it
    for clip in clips:
        name = id = printable(clip.id)
        while name in numbers:
            numbers[id] += 1
            name = f"{id}#{numbers[id]}"
        numbers[name] = 1
        cleaned = {
            "id": name,
            "location": clip.location if clip.location.startswith("file://") else printable(clip.location),
            "captions": tuple(text for text in map(clean, clip.captions) if meaningful(text)),
            "tags": distinct(clip.tags),
            "labels": distinct(clip.labels),
            "license": normalise(printable(clip.license)),
            "author": printable(clip.author),
            "title": printable(clip.title),
            "url": public(printable(clip.url)),
            "split": clip.split or split_of(name, clip.fold),
            "size": clip.size or size_of(clip.location),
            "recording": clip.recording or recording_of(clip),
        }
        yield clip.changed(**cleaned)


def distinct(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Clean texts, none twice, none empty, in order."""
    return tuple(dict.fromkeys(text for each in texts if (text := clean(each))))


def split_of(id: str, fold: int) -> str:
    """ "train" for a clip with a fold; else 90 % train, 5 % validation, 5 % test by a stable hash of the id."""
    if fold:
        return "train"
    share = int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.9 else "validation" if share < 0.95 else "test"


def size_of(location: str) -> int | None:
    """Bytes of a local file; None for anything else or one that is not there (download says why)."""
    if not location.startswith("file:") or member_of(location):
        return None
    try:
        return local_path(location).stat().st_size
    except (Rejected, OSError):
        return None


def cut(clips: Iterable[Clip], part_rows: int, part_bytes: int | None) -> Iterator[list[Clip]]:
    """Lists of at most `part_rows` clips and, where sizes are known, at most `part_bytes` of sources."""
    group: list[Clip] = []
    weight = 0
    for clip in clips:
        size = (clip.size or 0) if part_bytes else 0
        if group and (len(group) == part_rows or (part_bytes and weight + size > part_bytes)):
            yield group
            group, weight = [], 0
        group.append(clip)
        weight += size
    if group:
        yield group
