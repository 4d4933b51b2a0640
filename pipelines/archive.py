"""Archives as inputs: zip, split too (NAME.z01, NAME.z02, ..., NAME.zip), tar and tar.gz.

A member's location is its archive's, "#" and its name percent-encoded: file:///data/FSD50K.zip#dev/64760.wav
Members stream out one at a time; nothing is ever unpacked to a path that an archive names.

An archive is listed once a process. What cannot be read of one member is that member's trouble. What cannot be
listed is not known to be there at all, so the listing ends with an error: see `members`.
"""

import io
import os
import re
import stat
import struct
import tarfile
import threading
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast
from urllib.parse import quote
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipExtFile, ZipInfo

from pipelines.clip import Rejected
from pipelines.disk import BuildError
from pipelines.local import readable, to_location

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MOST_MEMBERS = 5_000_000
LONGEST_HEADER = 2**20  # bytes of one tar header with its extensions
EXPANSION = 20, 2**30  # a tar.gz unpacks to at most 20 times its size, or 1 GiB if that is more
DOUBT = 2**22  # bytes before the place where damage shows in a tar.gz that may be wrong already
SEEK_POINTS = 2_048  # of a tar.gz, about, with 32 KiB of memory each
BLOCK = 2**18  # bytes read at once from a file
PIECE = 2**20  # and of a member

# Records of a zip, little-endian: the end, its zip64 locator and form, and a member in the directory
END = struct.Struct("<4s4H2LH")
LOCATOR = struct.Struct("<4sLQL")
END64 = struct.Struct("<4sQ2H2L4Q")
ENTRY = struct.Struct("<4s6H3L5H2L")
LOCAL_HEADER = 30  # bytes of the header before a member, without its name
ENCRYPTED, UTF8 = 0x1, 0x800  # flags of a zip's member
UNIX = 3  # the system whose file modes stand in a zip
DAMAGE = (BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError, ValueError, IndexError, OverflowError,
          RecursionError, OSError)  # fmt: skip


class Member(NamedTuple):
    """A file in an archive; one with `trouble` cannot be read, and that says why; `copies` have its name too."""

    name: str
    size: int
    trouble: str = ""
    copies: int = 0


class Entry(NamedTuple):
    """Where a member lies in the archive's bytes: its data in a tar (unpacked), its header in a zip."""

    offset: int
    size: int
    trouble: str = ""
    packed: int = 0
    crc: int = 0
    method: int = ZIP_STORED


@dataclass
class Index:
    """An archive's members by name in its own order, and what cut the listing short.

    `reader` gives the function that reads n bytes of a member from a position; positions only ever grow.
    """

    archive: Path
    reader: Callable[[Entry], Callable[[int, int], bytes]]
    entries: dict[str, Entry] = field(default_factory=dict)
    copies: Counter[str] = field(default_factory=Counter)
    broken: str = ""

    def add(self, name: str, entry: Entry) -> None:
        """Enter a member. A second "a.wav" becomes "a#2.wav", so that each name keeps its own bytes."""
        key = name = normal(name)
        while key in self.entries:
            self.copies[name] += 1
            head, dot, tail = name.rpartition(".")
            key = f"{head if dot else name}#{self.copies[name] + 1}{dot}{tail if dot else ''}"
        if len(self.entries) == MOST_MEMBERS:
            raise BuildError(
                f"{self.archive} has over {MOST_MEMBERS:,} members, the most that are read: unpack it first"
            )
        self.entries[key] = entry._replace(trouble=entry.trouble or unsafe(name))


def is_archive(path: Path) -> bool:
    """Whether a file is named like an archive that can be read; a broken one is told of when it is listed."""
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def member_location(archive: Path, name: str) -> str:
    """file:// URL of an archive's member."""
    return f"{to_location(archive.absolute())}#{quote(name, safe='/ ', errors='surrogateescape')}"


def members(archive: Path) -> Iterator[Member]:
    """The files of an archive in its order, unsafe and unreadable ones too.

    Raises BuildError, after all that could be listed, if the archive breaks off: how many members are lost then
    is not known, so no row could stand for them.
    """
    index = index_of(archive)
    for name, entry in index.entries.items():
        yield Member(name, entry.size, entry.trouble, index.copies[name])
    if index.broken:
        raise BuildError(
            f"{archive} can be read for {len(index.entries)} members only: {index.broken}: "
            "fetch it again, or unpack what is there and take that folder as input"
        )


@contextmanager
def open_member(archive: Path, name: str) -> Iterator[BinaryIO]:
    """A member's bytes, forwards only and unbounded: take no more than you want.

    Raises Rejected, also while it is read, for a member that is missing, unsafe, encrypted or corrupt, and for an
    archive that is not there; BuildError for a split one that lacks a part.
    """
    with readable():
        index = index_of(archive)
    entry = index.entries.get(normal(name))
    if entry is None or entry.trouble:
        why = entry.trouble if entry else index.broken or "there is no such member"
        raise Rejected("bad-archive-member", why)
    with corrupt():
        read = index.reader(entry)
    with io.BufferedReader(Checked(read, entry.size), PIECE) as handle:
        yield cast(BinaryIO, handle)


class Checked(io.RawIOBase):
    """A member's bytes as they are read; raises Rejected where they end too early or are corrupt."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self.fetch, self.size, self.done = read, size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        target = memoryview(buffer).cast("B")
        wanted = max(0, min(len(target), self.size - self.done))
        with corrupt():
            data = self.fetch(wanted, self.done)
        if wanted and not data:
            raise Rejected("bad-archive-member", f"it ends after {self.done} of {self.size} bytes")
        target[: len(data)] = data
        self.done += len(data)
        return len(data)


@contextmanager
def corrupt() -> Iterator[None]:
    """Within, what the readers of archives raise for damaged bytes becomes Rejected, and what the disk says too."""
    try:
        with readable():
            yield
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the machine's own; indexed_gzip's have no number
        raise Rejected("bad-archive-member", str(error) or type(error).__name__) from error


def normal(name: str) -> str:
    """A name without empty and "." folders."""
    return str(PurePosixPath(name)) if "./" in name or "//" in name else name


def unsafe(name: str) -> str:
    """Why a member's name is not that of a file below the archive; "" if it is."""
    if not name or "\0" in name:
        return "its name is empty or holds a NUL"
    if name.startswith("/") or "\\" in name or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
        return "its name leads out of the archive"
    return ""


# ---- one listing a process

listing = threading.Lock()


def index_of(archive: Path) -> Index:
    """The archive's index, made by the first who asks, anew if the file has changed."""
    facts = archive.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise Rejected("missing-file", "the archive is not a file")
    with listing:
        return scan(archive.absolute(), facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=4)
def scan(archive: Path, size: int, changed: int) -> Index:
    """List an archive of any kind; `changed` is its time, so that another file of that name is another call."""
    with archive.open("rb", buffering=4096) as handle:
        head = handle.read(4)
        handle.seek(0)
        if head.startswith(b"\x1f\x8b"):
            return scan_gzip(archive, size)
        if head.startswith(b"PK") or archive.suffix.lower() == ".zip":
            return scan_zip(archive)
        index = Index(archive, partial(tar_reader, archive))
        scan_tar(handle, index)
        return index


class Joined(io.RawIOBase):
    """Files end to end as one. It holds none of them open between reads, so that it need not be closed."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths, self.position = paths, 0
        self.starts = list(accumulate((path.stat().st_size for path in paths), initial=0))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self.position = offset + (0, self.position, self.starts[-1])[whence]
        return self.position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        part = bisect_right(self.starts, self.position) - 1
        if part == len(self.paths):
            return 0
        with self.paths[part].open("rb", buffering=0) as handle:
            handle.seek(self.position - self.starts[part])
            got = handle.readinto(buffer) or 0
        self.position += got
        return got


# ---- tar


class Headers:
    """A tar as tarfile reads it while listing: headers only, none of absurd length."""

    def __init__(self, handle: BinaryIO) -> None:
        self.handle, self.seek, self.tell, self.left = handle, handle.seek, handle.tell, LONGEST_HEADER

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f"a header of over {LONGEST_HEADER} bytes")
        self.left -= size
        return self.handle.read(size)


def scan_tar(handle: BinaryIO, index: Index, most: int | None = None) -> None:
    """List a tar into `index`; `most` is the byte beyond which no member may lie."""
    try:
        with corrupt():
            list_tar(handle, index, most)
    except Rejected as why:
        index.broken = why.detail


def list_tar(handle: BinaryIO, index: Index, most: int | None) -> None:
    """Enter each header; raises an error of tarfile's where they break off.

    tarfile takes a damaged header for the end, so the block of zeros that ends a tar must be there.
    """
    headers, before = Headers(handle), -1
    tar = tarfile.TarFile(fileobj=cast(BinaryIO, headers), encoding="utf-8", errors="surrogateescape")
    while (info := tar.next()) is not None:
        headers.left, tar.members = LONGEST_HEADER, []  # type: ignore[attr-defined]  # it would keep them all
        if tar.offset <= before:
            raise tarfile.ReadError("a header that leads backwards")
        before = tar.offset
        if info.size < 0:
            raise tarfile.ReadError(f"a size below 0 for {info.name!r}")
        if not info.isdir():
            index.add(info.name, Entry(info.offset_data, info.size, tar_trouble(info)))
        if most is not None and before > most:  # before the next header is sought, behind what it unpacks to
            raise tarfile.ReadError(f"it unpacks to over {most} bytes")
    handle.seek(tar.offset)
    if handle.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("a damaged header, or no mark of the end")
    if handle.read(PIECE).strip(b"\0"):
        raise tarfile.ReadError("more follows after its end, as if several were joined")


def tar_trouble(info: tarfile.TarInfo) -> str:
    """Why a member of a tar is no plain file; "" if it is."""
    if info.islnk() or info.issym():
        return "a link"
    return "" if info.isreg() and not info.issparse() else "a device, pipe or sparse file"


def tar_reader(archive: Path, entry: Entry) -> Callable[[int, int], bytes]:
    """Reads a member where it lies."""
    handle = io.BufferedReader(Joined([archive]), BLOCK)
    handle.seek(entry.offset)
    return lambda size, _: handle.read(size)


def scan_gzip(archive: Path, size: int) -> Index:
    """List a tar.gz; from then on each member is reached without those before it.

    It is unpacked three times: to see that it ends, to note where one can begin, and for the headers.
    Damaged bytes unpack to wrong ones for a while before that shows. So where the listing breaks off the last members
    are not given, and where only the checksum of the whole is wrong, none is.
    """
    from indexed_gzip import IndexedGzipFile, ZranError

    most = max(EXPANSION[0] * size, EXPANSION[1])
    length = unpacked(archive, most)
    spacing = max(2**20, length // SEEK_POINTS)  # more points take memory, fewer take time to reach a member
    # not by its name: one that is not UTF-8 takes the process down
    gzip = IndexedGzipFile(fileobj=archive.open("rb"), spacing=spacing, buffer_size=2**13)
    index = Index(archive, lambda entry: lambda size, at: gzip.pread(size, entry.offset + at))
    damage = f"it unpacks to over {most} bytes" if length > most else ""
    try:
        if not damage:  # else only what is read is unpacked
            gzip.build_full_index()
    except ZranError as error:
        damage = f"its gzip data are damaged: {error}"
    scan_tar(gzip, index, most)
    if damage or index.broken:
        end = max((entry.offset + entry.size for entry in index.entries.values()), default=0)
        sure = 0 if not index.broken else end - DOUBT if damage else end - 1
        index.broken = damage or index.broken
        doubt(index, sure)
    return index


def unpacked(archive: Path, most: int) -> int:
    """The bytes that a gzip unpacks to, counted until they are over `most` or the gzip is damaged."""
    total, stream = 0, zlib.decompressobj(31)
    with archive.open("rb") as handle, suppress(zlib.error):  # the index tells of damage
        while total <= most and (data := stream.unconsumed_tail or stream.unused_data or handle.read(2**14)):
            stream = zlib.decompressobj(31) if stream.eof else stream
            total += len(stream.decompress(data, PIECE))
    return total


def doubt(index: Index, sure: int) -> None:
    """Give the members that reach beyond byte `sure` of an archive the trouble that broke it."""
    for name, entry in index.entries.items():
        if entry.offset + entry.size > sure:
            index.entries[name] = entry._replace(trouble=entry.trouble or index.broken)


# ---- zip


class End(NamedTuple):
    """What the end of a zip says of its directory; offsets count from the start of a part."""

    part: int
    total: int
    size: int
    offset: int


def scan_zip(archive: Path) -> Index:
    """List a zip from its directory. Raises BuildError if a part of a split one is missing."""
    index = Index(archive, partial(zip_reader, [archive]))
    with archive.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2**16 - END.size - LOCATOR.size))
        tail = file.read()
    try:
        with corrupt():
            found = tail.rfind(b"PK\5\6")
            if found < 0:
                raise BadZipFile("no end record, as if cut short")
            _, parts, part, _, total, size, offset, _ = END.unpack_from(tail, found)
            locator = LOCATOR.unpack_from(tail, found - LOCATOR.size) if found >= LOCATOR.size else (b"",)
            large = locator[0] == b"PK\6\7"
            joined = Joined(volumes(archive, locator[3] - 1 if large else parts))
            index.reader = partial(zip_reader, joined.paths)
            handle = io.BufferedReader(joined, BLOCK)
            end, at = End(part, total, size, offset), joined.starts[-1] - len(tail) + found
            if large:
                end, at = large_end(handle, joined.starts, locator, at)
            list_zip(handle, end, at, joined.starts, index)
    except Rejected as why:
        index.broken = f"its directory is missing or damaged ({why.detail})"
    refuse_overlaps(index.entries)
    return index


def volumes(archive: Path, before: int) -> list[Path]:
    """A split zip's files in order, the last of which is named; raises BuildError if one is not there."""
    paths = []
    for number in range(1, before + 1):
        path = archive.with_suffix(f"{archive.suffix[:2]}{number:02d}")  # .z01, ..., .z99, .z100
        if not path.is_file():
            raise BuildError(f"{archive} is the last part of a split zip and {path.name} is missing: put it beside it")
        paths.append(path)
    return [*paths, archive]


def large_end(handle: BinaryIO, starts: list[int], locator: tuple[bytes, int, int, int], at: int) -> tuple[End, int]:
    """The zip64 end record and where it lies: where the locator says or, with bytes before the zip, just before it."""
    for place in (starts[locator[1]] + locator[2], at - LOCATOR.size - END64.size):
        handle.seek(place)
        magic, _, _, _, _, part, _, total, size, offset = END64.unpack(handle.read(END64.size))
        if magic == b"PK\6\6":
            return End(part, total, size, offset), place
    raise BadZipFile("no zip64 end record")


def list_zip(handle: BinaryIO, end: End, at: int, starts: list[int], index: Index) -> None:
    """Enter what the directory before byte `at` lists; raises BadZipFile or struct.error where it breaks off."""
    first = at - end.size
    shift = first - starts[end.part] - end.offset  # bytes before the zip, as in a program that unpacks itself
    handle.seek(first)
    count = 0
    while handle.tell() < at:
        fields = ENTRY.unpack(handle.read(ENTRY.size))
        if fields[0] != b"PK\1\2":
            raise BadZipFile(f"no header for member {count + 1} of {end.total}")
        name, extra = handle.read(fields[10]), handle.read(fields[11])
        handle.seek(fields[12], os.SEEK_CUR)
        count += 1
        if not name.endswith(b"/"):
            index.add(*zip_entry(fields, name, extra, starts, shift))
    if count % 2**16 != end.total % 2**16:  # some programs count in 16 bits
        raise BadZipFile(f"{count} members where {end.total} are announced")


def zip_entry(fields: tuple, raw: bytes, extra: bytes, starts: list[int], shift: int) -> tuple[str, Entry]:
    """A member's name and place from its fields in the directory."""
    _, made_by, _, flags, method, _, _, crc, packed, size, _, _, _, part, _, mode, offset = fields
    name = decoded(raw, flags)
    for tag, data in extras(extra):
        if tag == 0x0001:  # zip64: the values that did not fit, in this order
            size, packed, offset, part = widened((size, packed, offset), part, data)
        elif tag == 0x7075 and len(data) > 5 and data[1:5] == zlib.crc32(raw).to_bytes(4, "little"):
            name = decoded(data[5:], UTF8)
    kind = stat.S_IFMT(mode >> 16) if made_by >> 8 == UNIX else 0
    trouble = ""
    if flags & ENCRYPTED:
        trouble = "it is encrypted"
    elif method not in (ZIP_STORED, ZIP_DEFLATED):
        trouble = f"compression method {method} is not supported"
    elif kind not in (0, stat.S_IFREG):
        trouble = "a link or device"
    elif crc and not size:
        trouble = "its size of 0 is not true"
    elif part >= len(starts) - 1:
        trouble = f"it lies in part {part + 1} of {len(starts) - 1}"
    place = starts[min(part, len(starts) - 1)] + offset + shift
    return name, Entry(place, size, trouble, packed, crc, method)


def decoded(name: bytes, flags: int) -> str:
    """A name of a zip's member: UTF-8 if it says so or can be, else the DOS code page."""
    if flags & UTF8:
        return name.decode("utf-8", "surrogateescape")
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("cp437")


def extras(extra: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, data) of the extra fields of a zip's member."""
    while len(extra) >= 4:
        tag, size = struct.unpack_from("<HH", extra)
        yield tag, extra[4 : 4 + size]
        extra = extra[4 + size :]


def widened(values: tuple[int, int, int], part: int, data: bytes) -> tuple[int, int, int, int]:
    """Size, packed size and offset, and the part, each taken from zip64 `data` where its own field is full."""
    wide = []
    for value in values:
        if value == 0xFFFFFFFF:
            (value,), data = struct.unpack_from("<Q", data), data[8:]
        wide.append(value)
    return wide[0], wide[1], wide[2], struct.unpack_from("<L", data)[0] if part == 0xFFFF else part


def refuse_overlaps(entries: dict[str, Entry]) -> None:
    """Give members of a zip that share bytes their trouble: only a bomb has such."""
    for name, following in pairwise(sorted(entries, key=lambda name: entries[name].offset)):
        entry = entries[name]
        if entry.offset + LOCAL_HEADER + entry.packed > entries[following].offset:
            entries[name] = entry._replace(trouble=entry.trouble or "it overlaps another member")


def zip_reader(paths: list[Path], entry: Entry) -> Callable[[int, int], bytes]:
    """Reads a member behind its own header, unpacked; zipfile checks the CRC with the last byte."""
    handle = io.BufferedReader(Joined(paths), BLOCK)
    handle.seek(entry.offset)
    header = handle.read(LOCAL_HEADER)
    if header[:4] != b"PK\3\4":
        raise BadZipFile("there is no member where the directory says")
    handle.seek(sum(struct.unpack_from("<HH", header, 26)), os.SEEK_CUR)
    info = ZipInfo()
    info.compress_type, info.CRC = entry.method, entry.crc
    info.compress_size, info.file_size = entry.packed, entry.size
    member = ZipExtFile(handle, "r", info)
    return lambda size, _: member.read(size)
