"""From a location to bytes on this machine, hashed. Local files are read where they are, never copied.

Everything else lands in the part's pack, in the order of the rows, whoever was first: http(s) through `web`, videos
through `video` (yt-dlp), archive members through `archive`, object storage and the Hub through `remote` (fsspec).
"""

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from shutil import copyfileobj
from tempfile import SpooledTemporaryFile
from threading import Lock
from typing import BinaryIO, ClassVar, cast

from pipelines.clip import Clip, Rejected
from pipelines.local import digest, local_path, member_of, readable, to_location  # noqa: F401
from pipelines.setting import setting
from pipelines.video import VIDEO_HOSTS
from pipelines.web import Limits

SPOOL = 128 * 2**10  # bytes of a file kept in memory until its turn; more waits in a nameless file
BLOCK = 2**18  # bytes
VIDEOS, REMOTE = 4, 32  # at once in a process
RATE_LIMITED = 600.0  # s that a site is left alone which says that it was asked too much


@dataclass(frozen=True)
class Download(Limits):
    """Fetch and hash what each clip's location names."""

    packs: ClassVar[bool] = True
    network: ClassVar[bool] = True

    cookies: str = setting("", "cookies.txt of a browser, for videos", metavar="FILE", manner=True)
    video_sleep: float = setting(
        1.0, "seconds before each request to a video's pages, and before its audio", manner=True
    )
    video_hosts: tuple[str, ...] = setting(VIDEO_HOSTS, "hosts whose pages yt-dlp opens, separated by commas")

    def __call__(self, clips: Iterable[Clip], pack: BinaryIO, raw: Path) -> Iterator[Clip]:
        with ExitStack() as stack:
            begun = [(clip, self.begin(clip, Path(pack.name).parent, stack)) for clip in clips]
            for clip, land in begun:
                try:
                    yield land(pack)
                except Rejected as why:
                    yield clip.reject("download", why.reason, why.detail, clip.attempts + why.attempts)

    def begin(self, clip: Clip, folder: Path, stack: ExitStack) -> Callable[[BinaryIO], Clip]:
        """Start to fetch a clip; returns what waits for it, writes its bytes to the pack and returns the clip."""
        kind = self.kind(clip.location)
        if kind in ("file", "member", "unknown"):
            return partial({"file": read_file, "member": self.read_member, "unknown": refuse}[kind], clip)
        from pipelines.web import web

        spool = cast(BinaryIO, stack.enter_context(SpooledTemporaryFile(SPOOL, dir=str(folder))))  # noqa: SIM115
        raise_open_files()
        fetch = {"http": self.fetch, "video": self.fetch_video, "remote": self.fetch_remote}[kind]
        future = web(self).start(fetch(clip, spool, folder))
        stack.callback(future.cancel)
        return partial(land, spool, future)

    def kind(self, location: str) -> str:
        """How a location is fetched: file, member, http, video, remote or unknown."""
        scheme = location.partition("://")[0].lower()
        if scheme == "file":
            return "member" if "#" in location else "file"
        if scheme in ("http", "https"):
            from pipelines.video import is_video

            return "video" if is_video(location, self.video_hosts) else "http"
        from pipelines.remote import PROTOCOLS

        return "remote" if scheme in PROTOCOLS else "unknown"

    def read_member(self, clip: Clip, pack: BinaryIO) -> Clip:
        """The clip after its archive member, or its row of a Parquet file, was copied to the pack."""
        from pipelines.archive import open_member
        from pipelines.parquet import is_row, open_row

        place = clip.location
        opened = open_row(place) if is_row(place) else open_member(local_path(place), member_of(place))
        with opened as member:
            offset = pack.tell()
            try:
                sha256, size = copy(member, pack, self.max_download_bytes)
            except Rejected:
                pack.seek(pack.truncate(offset))
                raise
            return replace(clip, sha256=sha256, size=size, raw_offset=offset, raw_bytes=size)

    async def fetch(self, clip: Clip, spool: BinaryIO, folder: Path) -> Clip:
        """Over http(s)."""
        from pipelines.web import web

        got = await web(self).fetch(clip.location, spool, clip.validator)
        if got.size < 0:  # not changed since
            return replace(clip, attempts=got.attempts)
        return replace(clip, sha256=got.sha256, size=got.size, attempts=got.attempts, validator=got.validator)

    async def fetch_video(self, clip: Clip, spool: BinaryIO, folder: Path) -> Clip:
        """The section of a video that is the clip, with yt-dlp in a thread; a site that it asked too much rests."""
        from pipelines.video import Bounds, fetch_video
        from pipelines.web import web

        bounds = Bounds(folder, self.max_download_bytes, self.download_timeout, self.read_timeout,
                        self.allow_private_addresses, self.cookies, self.video_sleep)  # fmt: skip

        attempts = 0

        async def attempt() -> Clip:
            nonlocal attempts
            async with web(self).turn(clip.location):
                attempts += 1
                spool.seek(0)
                spool.truncate()
                try:
                    section = await web(self).aside("video", VIDEOS, fetch_video, clip.location, clip.start, clip.end,
                                                    spool, bounds)  # fmt: skip
                except Rejected as why:
                    if why.reason == "rate-limited":
                        web(self).give_up(clip.location, RATE_LIMITED, why.detail)
                    raise
            wanted = clip.start is not None or clip.end is not None
            return replace(clip, start=section.start, end=section.end) if wanted else clip

        try:
            found = await web(self).insist(attempt)
        except Rejected as why:
            raise Rejected(why.reason, why.detail, attempts) from why
        spool.seek(0)
        sha256 = hashlib.file_digest(spool, "sha256").hexdigest()  # type: ignore[arg-type]
        return replace(found, sha256=sha256, size=spool.tell(), attempts=attempts)

    async def fetch_remote(self, clip: Clip, spool: BinaryIO, folder: Path) -> Clip:
        """From object storage or the Hub, through fsspec in a thread, which is left behind at the deadline."""
        from pipelines.web import web

        attempts = 0

        async def attempt() -> Clip:
            nonlocal attempts
            attempts += 1
            remote = RemoteFile(clip.location, spool, str(folder), self.max_download_bytes)
            try:
                async with asyncio.timeout(self.download_timeout):
                    sha256, size = await web(self).aside("remote", REMOTE, remote.read)
            except TimeoutError as error:
                raise Rejected("timeout", "not finished within the time allowed") from error
            finally:
                remote.leave()
            return replace(clip, sha256=sha256, size=size, attempts=attempts)

        try:
            return await web(self).insist(attempt)
        except Rejected as why:
            raise Rejected(why.reason, why.detail, attempts) from why


class RemoteFile:
    """A remote file on its way to a spool, which it touches only when it is whole and still wanted."""

    def __init__(self, location: str, spool: BinaryIO, folder: str, most: int) -> None:
        self.location, self.spool, self.folder, self.most = location, spool, folder, most
        self.wanted, self.lock = True, Lock()

    def read(self) -> tuple[str, int]:
        """SHA-256 and number of its bytes, in the spool; raises Rejected."""
        from pipelines.parquet import is_row, open_row
        from pipelines.remote import open_remote

        opened = open_row(self.location) if is_row(self.location) else open_remote(self.location)
        with opened as source, SpooledTemporaryFile(SPOOL, dir=self.folder) as own:
            facts = copy(source, cast(BinaryIO, own), self.most)
            own.seek(0)
            with self.lock:
                if self.wanted:
                    copyfileobj(own, self.spool, BLOCK)
        return facts

    def leave(self) -> None:
        """From now on, leave the spool alone."""
        with self.lock:
            self.wanted = False


@cache
def raise_open_files() -> None:
    """Let this process hold as many files open as the system admits: each fetched file may be one until its turn."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 65_536 if hard == resource.RLIM_INFINITY else hard
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def land(spool: BinaryIO, future: "Future[Clip]", pack: BinaryIO) -> Clip:
    """The clip once it was fetched, its bytes copied to the pack; there are none if they have not changed."""
    with spool:
        clip = future.result()
        offset, size = pack.tell(), spool.seek(0, os.SEEK_END)
        if not size:
            return clip
        spool.seek(0)
        copyfileobj(spool, pack, BLOCK)
    return replace(clip, raw_offset=offset, raw_bytes=size)


def read_file(clip: Clip, pack: BinaryIO) -> Clip:
    """The clip with its local file hashed; nothing is copied."""
    sha256, size = digest(local_path(clip.location))
    return replace(clip, sha256=sha256, size=size)


def refuse(clip: Clip, pack: BinaryIO) -> Clip:
    """Raise Rejected for a kind of address that nothing here reads."""
    scheme = clip.location.partition("://")[0] if clip.location else "an empty address"
    raise Rejected("unsupported-url", f"cannot read {scheme}")


def copy(source: BinaryIO, target: BinaryIO, most: int) -> tuple[str, int]:
    """SHA-256 and number of the bytes copied; raises Rejected for none or more than `most`."""
    hashed, size = hashlib.sha256(), 0
    while block := source.read(BLOCK):
        size += len(block)
        if size > most:
            raise Rejected("too-large", f"over {most} bytes")
        hashed.update(block)
        target.write(block)
    if size == 0:
        raise Rejected("empty", "0 bytes")
    return hashed.hexdigest(), size
