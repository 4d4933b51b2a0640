"""A page of a video site to its audio, through yt-dlp as a library: only the section wanted, where that can be.

yt-dlp finds the file behind the page. Where the file is one that can be read piecewise (HTTP Range, MP4 or WebM),
its header and the section's packets travel and are copied, not re-encoded; anything else is fetched whole by
yt-dlp's own downloaders. Every connection is made under the guard. No other program takes part, neither ffmpeg nor a
JavaScript runtime (deno, node), which costs those formats of YouTube whose addresses only its player's script can
tell; a video that has no others is "unavailable-video" or "not-audio".
"""

import errno
import io
import logging
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory
from threading import Thread
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

from pipelines.clip import Rejected
from pipelines.disk import BuildError
from pipelines.guard import Forbidden, guarded
from pipelines.text import clean

if TYPE_CHECKING:
    import av
    from yt_dlp import YoutubeDL
    from yt_dlp.cookies import YoutubeDLCookieJar
    from yt_dlp.networking import Response

VIDEO_HOSTS = ("youtube.com", "youtu.be", "youtube-nocookie.com", "vimeo.com", "dailymotion.com", "soundcloud.com")
NATIVE = {"http", "https", "m3u8", "m3u8_native", "http_dash_segments", "ism", "f4m"}  # what yt-dlp fetches by itself
PLAIN = "[protocol~='^https?$']"  # a file that can be read piecewise
FORMAT = f"bestaudio{PLAIN}/bestaudio/best{PLAIN}/best"
BLOCK = 2**17  # bytes in one Range request
HELD = 32  # blocks kept in memory
PAGES = 2**26  # bytes of pages and scripts, until the audio's address is known
LEAD = 0.25  # s copied around a section, so that a decoder is settled when it begins
MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)  # what this machine lacks, not the site
MEANT = (  # what yt-dlp says, and the reason that it stands for; all else is "unavailable-video"
    (r"not a bot|rate.?limit|too many requests|captcha", "rate-limited"),
    (r"Requested format is not available", "not-audio"),
    (r"Did not get any data blocks|The downloaded file is empty", "empty"),
)


@dataclass(frozen=True)
class Bounds:
    """What a video may take: bytes of its audio, seconds in all and without a byte, addresses; a login's cookies."""

    scratch: Path  # a folder of the build, for what is fetched
    max_bytes: int = 2**30
    timeout: float = 300.0
    read_timeout: float = 60.0
    private: bool = False
    cookies: str = ""  # a Netscape cookie file, which stays as it is
    sleep: float = 0.0  # seconds before each request to a site's pages, and before its audio


@dataclass(frozen=True)
class Section:
    """Where the wanted section lies in the bytes written, in s of decoded sound; no end is the recording's."""

    start: float
    end: float | None


def is_video(url: str, hosts: tuple[str, ...] = VIDEO_HOSTS) -> bool:
    """Whether an address belongs to one of the video sites."""
    try:
        host = (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return False
    return any(host == each or host.endswith("." + each) for each in hosts)


def fetch_video(url: str, start: float | None, end: float | None, into: BinaryIO, bounds: Bounds) -> Section:
    """Write a video's audio to `into`, or as little as holds the section of `start` to `end` seconds.

    The section is exact to the sample for AAC in MP4, within 2 ms in WebM, whose clock ticks in ms. Raises Rejected.
    The work happens in a thread that is left behind if a server drips bytes past the deadline.
    """
    wanted = Section(start or 0.0, end)
    done: Future[tuple[Path, Section]] = Future()
    with TemporaryDirectory(".tmp", ".video.", bounds.scratch, ignore_cleanup_errors=True) as folder:
        work = partial(find_and_fetch, url, wanted, Path(folder), bounds)
        Thread(target=settle, args=(done, work), daemon=True).start()
        wait([done], bounds.timeout)
        if not done.done():
            raise Rejected("timeout", f"not finished after {bounds.timeout:g} s")
        path, section = done.result()
        with path.open("rb") as fetched:
            copyfileobj(fetched, into)
    return section


def settle(done: Future[Any], work: Callable[[], Any]) -> None:
    """Do the work and hand its result, or what it raised, to who waits for it."""
    try:
        done.set_result(work())
    except BaseException as error:
        done.set_exception(error)


# ---- within the thread


def find_and_fetch(url: str, wanted: Section, folder: Path, bounds: Bounds) -> tuple[Path, Section]:
    """The fetched file in `folder` and where the section lies in it; raises Rejected."""
    budget = Budget(PAGES, time.monotonic() + bounds.timeout)
    with guarded(bounds.private), opened(folder, bounds, budget) as ydl:
        with explained(budget, fetching=False):
            info = find(ydl, url)
        duration = info.get("duration")
        if duration and wanted.start >= duration:
            raise Rejected("empty", f"the section begins at {wanted.start:g} s, the video ends at {duration:g} s")
        budget.hang_up()
        budget.limit, budget.spent, budget.trouble = bounds.max_bytes, 0, None
        with explained(budget, fetching=True):
            return fetch(ydl, info, wanted, folder, bounds)


def find(ydl: "YoutubeDL", url: str) -> dict[str, Any]:
    """What yt-dlp knows of the one recording behind an address, with the format to fetch; raises Rejected."""
    with stumbles():
        info = ydl.extract_info(url, download=False)
    if not info or info.get("_type", "video") != "video":
        raise Rejected("unavailable-video", "not one recording but a list of them")
    if info.get("is_live"):
        raise Rejected("unavailable-video", "a live stream")
    if info["protocol"] not in NATIVE:
        raise Rejected("unavailable-video", f"only sent by {info['protocol']}")
    return info


def fetch(
    ydl: "YoutubeDL", info: dict[str, Any], wanted: Section, folder: Path, bounds: Bounds
) -> tuple[Path, Section]:
    """Fetch the section alone where the server and the file allow it, else the whole."""
    if wanted != Section(0.0, None) and info["protocol"] in ("http", "https") and not info.get("fragments"):
        time.sleep(max(bounds.sleep, (info.get("available_at") or 0) - time.time()))
        try:
            return folder / "section", copy_section(Remote(ydl, info), wanted, folder / "section")
        except NotPiecewise:
            pass  # the whole, then
    with stumbles():
        done, _ = ydl.dl(str(folder / "whole"), info)
    if not done:  # what else goes wrong there is raised
        raise Rejected("too-large", f"more than {bounds.max_bytes} bytes, as the server declares")
    return folder / "whole", wanted


# ---- yt-dlp, quiet and bounded


@dataclass
class Budget:
    """Bytes and time to spend, why it is over once it is, the network's last trouble, and its open answers."""

    limit: int
    deadline: float
    spent: int = 0
    over: Rejected | None = None
    trouble: Exception | None = None
    answers: "list[Response]" = field(default_factory=list)

    def spend(self, size: int) -> None:
        """Count bytes; raises Rejected, and for ever after, once they are too many or it is too late."""
        self.spent += size
        if self.spent > self.limit:
            self.over = self.over or Rejected("too-large", f"more than {self.limit} bytes")
        if time.monotonic() > self.deadline:
            self.over = self.over or Rejected("timeout", "not finished in time")
        if self.over:
            raise self.over

    def note(self, trouble: Exception) -> None:
        """Remember the trouble of a request, which yt-dlp's errors do not always carry; Forbidden ends it all."""
        self.trouble = trouble
        cause: BaseException | None = trouble
        while cause and not isinstance(cause, Forbidden):
            cause = cause.__cause__ or cause.__context__
        if cause:
            self.over = Rejected("forbidden-address", str(cause))
            raise self.over from trouble

    def hang_up(self) -> None:
        """Close what was not read to its end, which a server may still be sending."""
        while self.answers:
            self.answers.pop().close()


@contextmanager
def opened(folder: Path, bounds: Bounds, budget: Budget) -> "Iterator[YoutubeDL]":
    """yt-dlp with one way to the network: Python's sockets, under the budget. It finds no ffmpeg."""
    from yt_dlp import YoutubeDL
    from yt_dlp.networking._requests import RequestsRH
    from yt_dlp.postprocessor.ffmpeg import FFmpegPostProcessor

    parameters = quiet(folder, bounds)
    FFmpegPostProcessor._ffmpeg_location.set(parameters["ffmpeg_location"])  # of this thread; asked without parameters
    jar = cookies(bounds.cookies) if bounds.cookies else None
    with YoutubeDL(parameters) as ydl:
        ydl.cookiejar = jar or ydl.cookiejar
        ydl._request_director = ydl.build_request_director([RequestsRH])
        ydl.urlopen = partial(urlopen, ydl.urlopen, budget)
        try:
            yield ydl
        finally:
            budget.hang_up()


def quiet(folder: Path, bounds: Bounds) -> dict[str, Any]:
    """Parameters of yt-dlp: says nothing, writes nothing but the audio, starts no program, tries once."""
    return {
        "format": FORMAT, "noplaylist": True, "extract_flat": "in_playlist", "playlist_items": "0",
        "quiet": True, "no_warnings": True, "noprogress": True, "logger": logging.Logger("yt-dlp", 100),
        "color": {"stderr": "never", "stdout": "never"}, "cachedir": False, "nopart": True, "updatetime": False,
        "ffmpeg_location": str(folder / "nowhere"), "external_downloader": "native", "hls_prefer_native": True,
        "proxy": "", "socket_timeout": bounds.read_timeout, "max_filesize": bounds.max_bytes, "retries": 0,
        "extractor_retries": 0, "fragment_retries": 2, "skip_unavailable_fragments": False,
        "sleep_interval": bounds.sleep, "sleep_interval_requests": bounds.sleep, "js_runtimes": {},
    }  # fmt: skip


def cookies(path: str) -> "YoutubeDLCookieJar":
    """The cookies of a Netscape cookie file, in memory: yt-dlp would write the file anew."""
    from yt_dlp.cookies import YoutubeDLCookieJar

    try:
        jar = YoutubeDLCookieJar(io.StringIO(Path(path).read_text(encoding="utf-8")))
        jar.load()
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"cannot take the cookies in {path} ({error}): export a Netscape cookie file") from error
    return jar


def urlopen(send: "Callable[[Any], Response]", budget: Budget, request: Any) -> "Response":
    """Send a request of yt-dlp's; the answer, good or bad, is read within the budget."""
    from yt_dlp.networking.exceptions import HTTPError

    budget.spend(0)
    try:
        return paid(send(request), budget)
    except Exception as error:
        budget.note(error)
        if isinstance(error, HTTPError):
            paid(error.response, budget)
        raise


def paid(response: "Response", budget: Budget) -> "Response":
    """The same answer, whose bytes are paid from the budget."""
    response.read = partial(read, response.read, budget)  # type: ignore[method-assign]
    budget.answers = [*(answer for answer in budget.answers if not answer.closed), response]
    return response


def read(some: Callable[[int], bytes], budget: Budget, amount: int | None = None) -> bytes:
    """Up to `amount` bytes of an answer, or all, paid from the budget block by block."""
    pieces, left = [], amount
    while left is None or left > 0:
        try:
            piece = some(BLOCK if left is None else min(BLOCK, left))
        except Exception as error:
            budget.note(error)
            raise
        if not piece:
            break
        budget.spend(len(piece))
        pieces.append(piece)
        left = None if left is None else left - len(piece)
    return b"".join(pieces)


# ---- what went wrong


@contextmanager
def explained(budget: Budget, fetching: bool) -> Iterator[None]:
    """Within, errors of yt-dlp become Rejected. While it looks for the audio, trouble on the way may mean nothing."""
    from yt_dlp.utils import YoutubeDLError

    try:
        yield
    except YoutubeDLError as error:
        raise budget.over or reject(error, budget.trouble if fetching else None) from error


@contextmanager
def stumbles() -> Iterator[None]:
    """Within, whatever yt-dlp trips over in a page, playlist or file that it does not expect becomes Rejected.

    It reads what strangers send and may raise anything; trouble of this machine is raised as it is.
    """
    from yt_dlp.utils import YoutubeDLError

    try:
        yield
    except (Rejected, BuildError, MemoryError, NotPiecewise, YoutubeDLError):  # the last is for `explained`
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in MACHINE:
            raise
        raise Rejected("unavailable-video", f"yt-dlp does not understand the site: {error!r}") from error


def reject(error: Exception, trouble: Exception | None) -> Rejected:
    """The reason for an error of yt-dlp, in its own words; `trouble` is the network's that came before, if any."""
    words = said(error)
    if re.search(r"unable to (write data|open for writing)", words):
        raise BuildError(f"yt-dlp cannot write what it fetched ({words}): make room, then run again") from error
    for pattern, reason in MEANT:
        if re.search(pattern, words, re.IGNORECASE):
            return Rejected(reason, words)
    reasons = (network_reason(cause) for cause in [*causes(error), *causes(trouble)])
    return Rejected(next(filter(None, reasons), "unavailable-video"), words)


def said(error: Exception) -> str:
    """yt-dlp's message without colours, its prefix, its plea to report a bug, and the cause as Python shows it."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error)).removeprefix("ERROR:")
    text = re.split(r";?\s*please report this issue on", text, maxsplit=1, flags=re.IGNORECASE)[0]
    return clean(re.split(r" \(caused by ", text, maxsplit=1)[0])


def causes(error: Any) -> Iterator[Exception]:
    """An error and what yt-dlp names as its cause, down to the socket's."""
    from yt_dlp.utils import DownloadError

    while isinstance(error, Exception):
        yield error
        beneath = error.__context__ if isinstance(error, DownloadError) else error.__cause__
        error = getattr(error, "cause", None) or beneath


def network_reason(error: Exception) -> str | None:
    """The reason for an error of yt-dlp's network layer; None for other errors."""
    from yt_dlp.networking.exceptions import HTTPError, IncompleteRead, TransportError

    if isinstance(error, HTTPError):
        status = "rate-limited" if error.status == 429 else f"http-{error.status}"
        return "bad-redirect" if error.status < 400 else status
    if isinstance(error, IncompleteRead):
        return "incomplete-body"
    if isinstance(error, TransportError):
        late = any("timeout" in type(cause).__name__.lower() for cause in causes(error))
        return "timeout" if late else "connection"
    return None


# ---- a section of a file over HTTP


class NotPiecewise(Exception):
    """The server sends no ranges, or the file is of another kind than MP4 and WebM."""


class Remote:
    """A seekable file over HTTP Range requests, for libav. Its callbacks can raise nothing: they keep the trouble."""

    def __init__(self, ydl: "YoutubeDL", info: dict[str, Any]) -> None:
        self.fetch = lru_cache(HELD)(partial(fetch_block, ydl, info))
        self.size = self.fetch(0)[1]
        self.position = 0
        self.trouble: Exception | None = None

    def read(self, size: int) -> bytes:
        """At most `size` bytes, perhaps fewer; none at the end and after any trouble."""
        if self.trouble or self.position >= self.size:
            return b""
        try:
            block = self.fetch(self.position // BLOCK)[0]
        except Exception as error:
            self.trouble = error
            return b""
        piece = block[self.position % BLOCK :][:size]
        self.position += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a byte; a negative answer says that there is none."""
        place = offset + (0, self.position, self.size)[whence]
        if place < 0:
            return -errno.EINVAL
        self.position = place
        return place

    def tell(self) -> int:
        """The byte that is read next."""
        return self.position


def fetch_block(ydl: "YoutubeDL", info: dict[str, Any], number: int) -> tuple[bytes, int]:
    """A block of a file and the size of the whole; raises NotPiecewise for a server that does not send it."""
    from yt_dlp.networking import Request

    first = number * BLOCK
    wanted = {"Accept-Encoding": "identity", "Range": f"bytes={first}-{first + BLOCK - 1}"}
    headers = {**(info.get("http_headers") or {}), **wanted}
    with stumbles(), ydl.urlopen(Request(info["url"], headers=headers)) as response:
        told = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", response.get_header("Content-Range") or "")
        if response.status != 206 or not told or int(told[1]) != first:
            raise NotPiecewise
        size = int(told[3])
        block = response.read(BLOCK)
    if len(block) != min(BLOCK, size - first):
        raise Rejected("incomplete-body", f"{len(block)} bytes for a range of {min(BLOCK, size - first)}")
    return block, size


def copy_section(remote: Remote, wanted: Section, path: Path) -> Section:
    """Copy the packets around a section to a Matroska file; returns where the section lies in it.

    Decoders drop a codec's delay where a file begins, in the copy as in the whole: the first frames tell when that is.
    """
    import av

    safe = {"format_whitelist": "matroska,webm,mov", "protocol_whitelist": ""}
    try:
        with av.open(remote, "r", options=safe) as source:
            origin = begins(source)
        remote.seek(0)
        with av.open(remote, "r", options=safe) as source:
            lead = copy_packets(source, wanted, origin, path)
        with av.open(str(path)) as copy:
            lead += begins(copy)
    except (av.FFmpegError, ValueError) as error:
        raise NotPiecewise from error
    finally:
        if remote.trouble:  # what libav took for the end of the file
            raise remote.trouble
    return Section(max(wanted.start - lead, 0.0), None if wanted.end is None else wanted.end - lead)


def begins(source: "av.container.InputContainer") -> float:
    """The time stamp of the first sample that decodes, in s; raises Rejected if there is no sound."""
    if not source.streams.audio:
        raise Rejected("not-audio", f"a {source.format.name} file without an audio stream")
    frame = next(source.decode(audio=0), None)
    if frame is None or frame.time is None:
        raise Rejected("empty", "the file has no frames")
    return frame.time


def copy_packets(source: "av.container.InputContainer", wanted: Section, origin: float, path: Path) -> float:
    """Copy the audio packets around a section; returns the first one's s after `origin`. Raises Rejected for none."""
    import av

    track = source.streams.audio[0]
    tick = float(track.time_base or 0)
    if wanted.start > LEAD:
        source.seek(int((origin + wanted.start - LEAD) / tick), stream=track)
    first, last = None, 0.0
    with av.open(str(path), "w", format="matroska", options={"fflags": "+bitexact"}) as target:
        copied = target.add_stream_from_template(track)
        for packet in around(source.demux(track), wanted, tick, origin):
            first = packet.pts if first is None else first
            last = (packet.pts + packet.duration) * tick - origin
            packet.pts = packet.dts = packet.pts - first
            packet.stream = copied
            target.mux(packet)
    if first is None or last <= wanted.start:
        raise Rejected("empty", f"the section begins at {wanted.start:g} s, where the recording has ended")
    return first * tick - origin


def around(packets: Iterator[Any], wanted: Section, tick: float, origin: float) -> Iterator[Any]:
    """The packets of a section and of LEAD seconds before and after it."""
    for packet in packets:
        if packet.pts is None:  # the flush at the end
            continue
        begin = packet.pts * tick - origin
        if wanted.end is not None and begin > wanted.end + LEAD:
            return
        if begin + packet.duration * tick > wanted.start - LEAD:
            yield packet
