"""Fetch again: clips whose rejection may pass by itself, or whose bytes may have changed at their server.

The parts concerned are set aside under another name and made anew, with every row of the old part that still holds
and only the others fetched; so a kill at any moment leaves a build that continues.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.clip import Clip, read_clips, write_clips
from pipelines.disk import BuildError
from pipelines.reasons import explain, retryable
from pipelines.recipe import clear
from pipelines.run import AGAIN, Stage, name_of, old_path, part_path

GONE = 2**62  # where no pack has bytes


@dataclass(frozen=True)
class Retry:
    """Which clips to fetch again: those rejected for `reasons` by download or resample.

    With none named it is all that download rejected and that may pass by itself; None asks for no such clip. With
    `refresh` it is also every clip from the web, unless its server says that it has not changed, and every local file.
    """

    reasons: tuple[str, ...] | None = ()
    refresh: bool = False

    def __post_init__(self) -> None:
        for reason in self.reasons or ():
            try:
                explain(reason)
            except KeyError:
                raise BuildError(f"--retry-rejected {reason}: no such reason; see pipelines/reasons.py") from None

    def failed(self, clip: Clip) -> bool:
        """Whether this row was rejected for a reason asked for."""
        if self.reasons is None or clip.stage not in ("download", "resample"):
            return False
        return clip.reason in self.reasons if self.reasons else retryable(clip.reason)

    def refreshes(self, clip: Clip) -> bool:
        """Whether to look if this row's bytes have changed, at its server or on this machine."""
        return self.refresh and not clip.reason and clip.location.startswith(("http", "file:"))


def try_again(out: Path, stages: Sequence[Stage], parts: int, retry: Retry) -> int:
    """Set aside the parts with clips to fetch again; returns how many clips. What follows them is redone."""
    build, names = out / "build", [name_of(stage) for stage in stages]
    if "download" not in names:
        raise BuildError("there is nothing to fetch again in a build of metadata only")
    found = {part: count for part in range(parts) if (count := count_picked(build, part, retry))}
    print(f"{sum(found.values())} clips to fetch again", file=sys.stderr)
    for part in found:
        path = part_path(build, "resample", part)
        if path.exists() and not path.with_suffix(".pack").exists():
            raise BuildError(f"{path.parent} holds no audio any more (--keep none): build in a new folder instead")
    if found:
        clear(out, names[names.index("resample") + 1 :])
    for part in found:
        set_aside(build, part, retry)
    return sum(found.values())


def latest(build: Path, part: int) -> list[Clip]:
    """The rows of a part as resample left them, or download."""
    paths = [part_path(build, stage, part) for stage in ("resample", "download")]
    return next((read_clips(path) for path in paths if path.exists()), [])


def count_picked(build: Path, part: int, retry: Retry) -> int:
    """How many clips of a part are to be fetched again."""
    return sum(retry.failed(row) or retry.refreshes(row) for row in latest(build, part))


def set_aside(build: Path, part: int, retry: Retry) -> None:
    """Make a part's files old ones, whose rows lend themselves to the new ones; the packs stay where they are."""
    failed = {row.id for row in latest(build, part) if retry.failed(row)}
    for stage in ("resample", "download"):  # in this order: what a kill leaves between them is a whole build
        path = part_path(build, stage, part)
        if not path.exists():
            continue
        rows = [row for row in read_clips(path) if row.id not in failed]
        if stage == "download":
            rows = [replace(row, stage=AGAIN) if retry.refreshes(row) else row for row in rows]
            rows = [row for row in rows if row.stage != AGAIN or row.validator]
            if not path.with_suffix(".pack").exists():  # removed once resample had it
                rows = [replace(row, raw_offset=GONE) if row.raw_bytes else row for row in rows]
        write_clips(old_path(path), rows)
        path.unlink()
