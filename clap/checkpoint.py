"""Checkpoints of a run: written beside, flushed, renamed. A folder under its final name is complete.

RUN/checkpoints/step-00001000/ holds the model (see CLAP.save_pretrained) and trainer.pt; RUN/last and
RUN/best are relative links to two of them.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clap.config import ClapError

WEIGHTS = "model.safetensors"


def write(run: Path, step: int, fill: Callable[[Path], None]) -> None:
    """Make the checkpoint of `step` by `fill(folder)`; one that is there already is left alone."""
    final = run / name(step)
    if not final.exists():
        place(final, fill)


def place(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder beside it and rename. Into one that is there the files are moved, model.safetensors last."""
    final = folder.resolve()
    if (final / "checkpoints").is_dir() or (final / "trainer.pt").exists():
        raise ClapError(f"{folder} holds a run, or a checkpoint that it goes on from: give another folder")
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    fill(temporary)
    for path in [*temporary.rglob("*"), temporary]:
        sync(path)
    if final.exists():
        move(temporary, final)
    else:
        temporary.rename(final)
    sync(final.parent)


def move(source: Path, target: Path) -> None:
    """Move files over those of the same names; old weights go first, so that no half of a move can be loaded."""
    (target / WEIGHTS).unlink(missing_ok=True)
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == WEIGHTS):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).replace(target / path)
    shutil.rmtree(source)
    sync(target)


def name(step: int) -> Path:
    """Where the checkpoint of `step` lies in its run."""
    return Path("checkpoints") / f"step-{step:08d}"


def newest(run: Path) -> Path | None:
    """The last complete checkpoint, if there is one."""
    return max((run / "checkpoints").glob("step-*"), default=None)


def link(run: Path, label: str, step: int) -> None:
    """Point RUN/label to the checkpoint of `step`, atomically."""
    temporary = run / f".{label}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name(step))
    temporary.replace(run / label)


def top(bests: Sequence[tuple[float, int]], score: float, step: int, k: int) -> list[tuple[float, int]]:
    """The `k` best of (score, step), with a new one: highest first, of equal scores the earlier step."""
    others = [(old, at) for old, at in bests if at != step]  # a run that was killed may come by a step twice
    return sorted([*others, (score, step)], key=lambda each: (-each[0], each[1]))[:k]


def prune(run: Path, keep: int, best: Sequence[int] = ()) -> None:
    """Delete all but the newest `keep` checkpoints and those of the steps in `best`, and half-written ones.

    What RUN/last and RUN/best point to stays as well: a kill may have come before they were set anew.
    """
    folder = run / "checkpoints"
    kept = {(run / label).resolve().name for label in ("last", "best")} | {name(step).name for step in best}
    for old in sorted(folder.glob("step-*"))[:-keep]:
        if old.name not in kept:
            old.rename(folder / f".{old.name}.tmp")  # a half-deleted checkpoint must not look complete
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover)


@contextmanager
def lock(run: Path) -> Iterator[bool]:
    """Hold the run folder for this process; yields False if another process trains in it."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically (UTF-8)."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; if the body ends well, flush it and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
