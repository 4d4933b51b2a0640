"""Parts through stages. A part is one Parquet file of clips; it exists when it is complete.

A stage that packs writes bytes too, into one file beside the part. An older version of a part (old-00012.*)
lends its rows to the new one, so that clips are tried again without touching those that are done.
"""

import faulthandler
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import copyfile
from typing import Any, ClassVar, Protocol

from pipelines.clip import Clip, read_clips, write_clips
from pipelines.disk import BuildError, atomic
from pipelines.engine import DEATHS
from pipelines.reasons import retryable

CLIP_TIMEOUT = 600.0  # s over one clip, after which its decoder is held to hang
TICKS = 20  # of the watchdog over one clip
GRACE = 60.0  # s on top, in which a worker should have ended itself
AGAIN = "again"  # in the stage column of an old row: fetch it again if it has changed


class Stage(Protocol):
    """A frozen dataclass whose fields are its settings; it yields the clips it takes, changed or rejected.

    It sees only clips that nobody before it rejected. A stage with `packs = True` also takes the open file
    into which it writes bytes, and the path of the pack that the stage before it wrote; it may name the seconds
    after which a clip in hand is held to hang (`clip_timeout`). One with `network = True` waits rather than
    computes. One with `gather` needs every part before it begins.
    """

    packs: ClassVar[bool]
    __dataclass_fields__: ClassVar[dict[str, Any]]
    __call__: Callable[..., Iterator[Clip]]


@dataclass
class Count:
    """What came of the rows that a stage took in."""

    rows: int = 0
    kept: int = 0
    seconds: float = 0.0  # of the kept clips
    reasons: Counter[str] = field(default_factory=Counter)


class Tally(dict[str, Count]):
    """{stage: count} of the rows seen so far."""

    def add(self, stage: str, clip: Clip) -> None:
        """Count a clip that a stage is done with."""
        count = self.setdefault(stage, Count())
        count.rows += 1
        if clip.reason:
            count.reasons[clip.reason] += 1
        else:
            count.kept += 1
            count.seconds += clip.duration or 0

    def merge(self, other: "Tally") -> None:
        """Add another process's counts."""
        for stage, theirs in other.items():
            ours = self.setdefault(stage, Count())
            ours.rows, ours.kept = ours.rows + theirs.rows, ours.kept + theirs.kept
            ours.seconds += theirs.seconds
            ours.reasons += theirs.reasons


def name_of(stage: object) -> str:
    """A stage's folder: the name of its class in lower case."""
    return type(stage).__name__.lower()


def part_path(build: Path, stage: str, part: int) -> Path:
    """BUILD/<stage>/part-00012.parquet"""
    return build / stage / f"part-{part:05d}.parquet"


def old_path(path: Path) -> Path:
    """BUILD/<stage>/old-00012.parquet of a part."""
    return path.with_name(path.name.replace("part-", "old-"))


def run_part(
    build: Path, before: str, stages: list[Stage], part: int, *, keep_raw: bool = False, tally: Tally | None = None
) -> Tally:
    """Take one part through every stage that it has not passed yet, from where stage `before` left it.

    Each row is counted in `tally` as it is done with. Bytes that a stage took from the pack of an earlier one are
    removed, unless `keep_raw`.
    """
    tally = Tally() if tally is None else tally
    last, clips = part_path(build, before, part), None
    raw = last.with_suffix(".pack")
    for stage in stages:
        path = part_path(build, name_of(stage), part)
        if path.exists():
            clips = None
        else:
            clips = run_stage(stage, read_clips(last) if clips is None else clips, path, raw, tally)
        if stage.packs:
            if not keep_raw and raw.exists() and raw.stat().st_size:
                raw.unlink()
            raw = path.with_suffix(".pack")
        last = path
    return tally


def run_stage(stage: Stage, clips: list[Clip], path: Path, raw: Path, tally: Tally) -> list[Clip]:
    """Run one stage over one part and commit the result under `path`, bytes first."""
    old = old_path(path)
    before = {clip.id: clip for clip in read_clips(old)} if old.exists() else {}
    if not stage.packs:
        clips = apply(stage, clips, tally, before)
    else:
        with atomic(path.with_suffix(".pack")) as pack:
            if before and path.with_suffix(".pack").exists():
                copyfile(path.with_suffix(".pack"), pack)  # what old rows point to stays where it was
            with pack.open("ab") as handle:
                clips = watched(stage, clips, path, tally, before, handle, raw)
    write_clips(path, clips)
    old.unlink(missing_ok=True)
    return clips


def watched(stage: Stage, clips: list[Clip], path: Path, *given: Any) -> list[Clip]:
    """The clips after a stage that packs: where it opens audio, the clip in hand is journalled."""
    if getattr(stage, "network", False):
        return apply(stage, clips, *given)
    with Journal(path.with_suffix(".journal"), clip_timeout(stage)) as journal:
        clips = apply(stage, journal.watch(clips, name_of(stage)), *given)
    journal.path.unlink()  # before the rows: a journal beside a finished part would stay for ever
    return clips


def apply(stage: Stage, clips: Iterable[Clip], tally: Tally, old: dict[str, Clip], *packs: Any) -> list[Clip]:
    """The clips after `stage`, row for row; rejected ones pass by, and those of `old` that still hold are taken over.

    Raises BuildError if one got lost.
    """
    rows: list[Clip | None] = []  # None where the stage has its say
    asked: list[str] = []

    def live() -> Iterator[Clip]:
        for clip in clips:
            done = clip if clip.reason else taken_over(clip, old.get(clip.id), name_of(stage))
            rows.append(done)
            if done is not None:
                tally.add(name_of(stage), done)
                continue
            asked.append(clip.id)
            yield again(clip, old.get(clip.id))

    changed = []
    for clip in stage(live(), *packs):
        before = old.get(clip.id)
        if before is not None and before.stage == AGAIN and retryable(clip.reason):
            clip = replace(before, stage="")  # what we have is better than a server's bad day
        tally.add(name_of(stage), clip)
        changed.append(clip)
    if [clip.id for clip in changed] != asked:
        raise BuildError(f"stage {name_of(stage)} lost or swapped clips: this is a bug, please report it")
    after = iter(changed)
    return [next(after) if row is None else row for row in rows]


def taken_over(clip: Clip, old: Clip | None, stage: str) -> Clip | None:
    """The old row of a clip if it still holds: of this stage, not to be tried again, and of the same bytes."""
    if old is None or old.stage not in ("", stage) or (clip.sha256 and clip.sha256 != old.sha256):
        return None
    return old


def again(clip: Clip, old: Clip | None) -> Clip:
    """A clip to fetch, with what is known of its bytes from last time."""
    if old is None or old.stage != AGAIN:
        return clip
    return replace(clip, sha256=old.sha256, size=old.size, validator=old.validator,
                   raw_offset=old.raw_offset, raw_bytes=old.raw_bytes)  # fmt: skip


class Journal:
    """Names the clip in hand, so that a decoder that takes the process down, or hangs, costs that clip only.

    On a fatal signal faulthandler adds its own line to the same file, and a watchdog one when a clip takes too long,
    before it ends the process; a SIGKILL from outside adds nothing. So the next run can tell the clip at fault from
    one that was merely in hand when the build was killed, and rejects only the former.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self.ticks, self.closed = 0, threading.Event()

    def __enter__(self) -> "Journal":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.handle = self.path.open("ab", buffering=0)
        self.faults_were_on = faulthandler.is_enabled()
        faulthandler.enable(self.handle, all_threads=False)
        threading.Thread(target=self.watchdog, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        faulthandler.disable()
        if self.faults_were_on:
            faulthandler.enable()
        self.handle.close()

    def watchdog(self) -> None:
        """End the process when a clip has been in hand for too long; time in which it was stopped does not count."""
        while not self.closed.wait(self.seconds / TICKS):
            self.ticks += 1
            if self.ticks > TICKS:
                self.handle.write(b"Timeout: over %d s\n" % self.seconds)
                print(f"Error: a decoder hangs, see {self.path}: run the same command again to go on without its clip",
                      file=sys.stderr, flush=True)  # fmt: skip
                os._exit(1)

    def watch(self, clips: Iterable[Clip], stage: str) -> Iterator[Clip]:
        """Note each clip as it is handed out; those that crashed an earlier run come out rejected."""
        noted = self.path.read_bytes()
        faults = dict(re.findall(rb"row (\d+)\n+(?:Fatal (?=[^\n])|(?=Timeout))([^\n]*)", noted))
        for row, clip in enumerate(clips):
            if fault := faults.get(b"%d" % row):
                yield clip.reject(stage, "decoder-crashed", fault.decode("utf-8", "replace"))
            else:
                self.handle.write(b"row %d\n" % row)
                self.ticks = 0
                yield clip


def stalled(build: Path, stages: list[Stage], part: int, since: float) -> bool:
    """Whether a worker that began with this part after `since` has had a clip in hand for too long.

    It should have ended itself by then, and must have been stopped.
    """
    latest = time.time() - max(map(clip_timeout, stages)) - GRACE
    noted = [path.stat().st_mtime for path in journals(build, stages, part) if path.exists()]
    return any(since < moment < latest for moment in noted)


def clip_timeout(stage: object) -> float:
    """Seconds that a stage may take over one clip."""
    return float(getattr(stage, "clip_timeout", CLIP_TIMEOUT))


def blame_part(build: Path, stages: list[Stage], part: int, deaths: int) -> None:
    """After a worker died on a part: let it be tried again, holding a clip to be the cause where need be.

    A crash has left its own line in the journal; a worker that was killed has not. A clip that was in hand at
    three such deaths is blamed for them. Raises BuildError if workers die with no clip in hand.
    """
    noted = {path: path.read_bytes() for path in journals(build, stages, part) if path.exists()}
    explained = False
    for path, lines in noted.items():
        if last := re.search(rb"row \d+\n\Z", lines):
            lost = lines.count(last[0] + b"lost\n") + 1
            with path.open("ab") as handle:
                handle.write(b"lost\n" if lost < DEATHS else b"Fatal to %d workers\n" % lost)
        explained |= bool(lines) and not lines.endswith(b"lost\n")
    if not explained and deaths >= DEATHS:
        raise BuildError(f"a worker died {deaths} times on part {part} of {build}: is the memory exhausted?")


def journals(build: Path, stages: list[Stage], part: int) -> list[Path]:
    """Where the stages that open audio note the clip in hand."""
    return [part_path(build, name_of(stage), part).with_suffix(".journal") for stage in stages if stage.packs]
