"""How files come to be: written beside, flushed, renamed. A file under its final name is complete."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BuildError(Exception):
    """A build cannot go on; the message says what, where and what to do."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; if the body ends well, flush it and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically (UTF-8)."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a build folder for this process and sweep what killed ones left; BuildError if it is held."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BuildError(f"another build is at work in {folder}: wait for it, or stop it first") from None
        sweep(folder)
        yield
        sweep(folder)


def remove(folder: Path) -> None:
    """Remove a folder so that a kill leaves all of it or nothing under its name."""
    if folder.exists():
        hidden = folder.with_name(f".{folder.name}.tmp")
        folder.rename(hidden)
        shutil.rmtree(hidden)


def sweep(build: Path) -> None:
    """Remove what killed processes left: in the build folder, beside it, and in the dataset beside it."""
    out = build.parent
    ours = [each for name in ("dataset", "report", "rejected") for each in out.glob(f".{name}.*tmp")]
    for leftover in [*build.rglob(".*.tmp"), *ours, *(out / "dataset").rglob(".*.tmp")]:
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def tree(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """(folder, its folders, its files) below `root` in the order of names, linked folders too, each once.

    Raises BuildError for a folder that cannot be listed: it would hide its files.
    """

    def refuse(error: OSError) -> None:
        raise BuildError(f"cannot list {error.filename}: {error.strerror}") from error

    seen: set[tuple[int, int]] = set()
    for name, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        facts = Path(name).stat()
        if (facts.st_dev, facts.st_ino) in seen:  # a link to a folder above it, or to one that was here before
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        folders.sort()
        yield Path(name), folders, sorted(files)
