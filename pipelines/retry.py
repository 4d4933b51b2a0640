"""Fetch again: clips whose rejection may pass by itself, or whose bytes may have changed at their server.

The parts concerned are set aside under another name and made anew, with every row of the old part that still holds
and only the others fetched; so a kill at any moment leaves a build that continues.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.clip import Clip, read_clips, write_clips
from pipelines.disk import BuildError
from pipelines.reasons import explain, retryable
from pipelines.recipe import clear
from pipelines.run import AGAIN, Stage, name_of, old_path, part_path


@dataclass(frozen=True)
class Retry:
    """Which clips to fetch again: those rejected for `reasons` (all that may pass by themselves if there are none).

    With `refresh` it is every clip from the web instead, unless its server says that it has not changed.
    """

    reasons: tuple[str, ...] = ()
    refresh: bool = False

    def picks(self, clip: Clip) -> bool:
        """Whether this row of the download stage is fetched again."""
        if self.refresh:
            return not clip.reason and clip.location.startswith("http")
        if clip.stage != "download":
            return False
        return clip.reason in self.reasons if self.reasons else retryable(clip.reason)


def try_again(out: Path, stages: Sequence[Stage], parts: int, retry: Retry) -> int:
    """Set aside the parts with clips to fetch again; returns how many clips. What follows them is redone."""
    for reason in retry.reasons:
        try:
            explain(reason)
        except KeyError:
            raise BuildError(f"--retry-rejected {reason}: no such reason; see pipelines/reasons.py") from None
    build, names, found = out / "build", [name_of(stage) for stage in stages], 0
    if "download" not in names:
        raise BuildError("--retry-rejected needs a build with downloads: this one has metadata only")
    for part in range(parts):
        path = part_path(build, "download", part)
        rows = read_clips(path) if path.exists() else []
        picked = [retry.picks(row) for row in rows]
        if not any(picked):
            continue
        if not found:
            clear(out, names[names.index("resample") + 1 :])
        found += sum(picked)
        kept = part_path(build, "resample", part)
        if kept.exists():
            if not kept.with_suffix(".pack").exists():
                raise BuildError(f"{kept.parent} holds no audio any more (--keep none): build in a new folder instead")
            set_aside(kept, read_clips(kept))
        marked = [replace(row, stage=AGAIN) if picks else row for row, picks in zip(rows, picked, strict=True)]
        set_aside(path, [row for row in marked if row.stage != AGAIN or row.validator])
    return found


def set_aside(path: Path, rows: list[Clip]) -> None:
    """Make a part an old one, whose `rows` lend themselves to the new one."""
    write_clips(old_path(path), rows)
    if path.with_suffix(".pack").exists():
        path.with_suffix(".pack").replace(old_path(path).with_suffix(".pack"))
    path.unlink()
