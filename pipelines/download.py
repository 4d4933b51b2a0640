"""From a location to bytes on this machine, hashed. Local files are read where they are, never copied."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pipelines.clip import Clip, Rejected

# What can be wrong with one file; any other error (too many open files, no memory) is the machine's.
UNREADABLE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG,
              errno.EIO, errno.ESTALE, errno.ENXIO, errno.EINVAL}  # fmt: skip


@dataclass(frozen=True)
class Download:
    """Find and hash what each clip's location names."""

    packs: ClassVar[bool] = False

    def __call__(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        for clip in clips:
            try:
                sha256, size = digest(local_path(clip.location))
                yield replace(clip, sha256=sha256, size=size)
            except Rejected as why:
                yield clip.reject("download", why.reason, why.detail)


def to_location(path: Path) -> str:
    """file:// URL of an absolute path, whatever bytes its name holds."""
    return "file://" + quote_from_bytes(os.fsencode(path), safe="/ ")


def local_path(location: str) -> Path:
    """The file behind a file:// location; raises Rejected for any other kind."""
    if not location.startswith("file:///"):
        scheme = location.partition("://")[0] if location else "an empty address"
        raise Rejected("unsupported-url", f"cannot read {scheme}: only local files yet")
    name = unquote_to_bytes(location.removeprefix("file://"))
    if b"\0" in name:
        raise Rejected("missing-file", "a NUL in the name")
    return Path(os.fsdecode(name))


def digest(path: Path) -> tuple[str, int]:
    """SHA-256 in hex and length of a regular file's bytes; raises Rejected if it is missing, empty or not a file."""
    with readable():
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # opening a pipe would wait for ever
            raise Rejected("not-audio", "a folder" if stat.S_ISDIR(facts.st_mode) else "not a regular file")
        if facts.st_size == 0:
            raise Rejected("empty", "0 bytes")
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest(), facts.st_size


@contextmanager
def readable() -> Iterator[None]:
    """Within, an error of reading one file becomes Rejected "missing-file"; the machine's own stay errors."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        raise Rejected("missing-file", error.strerror or "") from error
