"""Files of this machine: their locations, and reading them where they are."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote, unquote_to_bytes

from pipelines.clip import Rejected

# What can be wrong with one file; any other error (too many open files, no memory) is the machine's.
UNREADABLE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG,
              errno.EIO, errno.ESTALE, errno.ENXIO, errno.EINVAL}  # fmt: skip


def to_location(path: Path) -> str:
    """file:// URL of an absolute path, whatever bytes its name holds."""
    return "file://" + quote_from_bytes(os.fsencode(path), safe="/ ")


def local_path(location: str) -> Path:
    """The file behind a file:// location, without the archive member that it may name; Rejected for other kinds."""
    if not location.startswith("file:///"):
        scheme = location.partition("://")[0] if location else "an empty address"
        raise Rejected("unsupported-url", f"cannot read {scheme}")
    name = unquote_to_bytes(location.removeprefix("file://").partition("#")[0])
    if b"\0" in name:
        raise Rejected("missing-file", "a NUL in the name")
    return Path(os.fsdecode(name))


def member_of(location: str) -> str:
    """The archive member that a location names, "" for a file by itself."""
    return unquote(location.partition("#")[2], errors="surrogateescape")


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
