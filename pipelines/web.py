"""http(s) to bytes: bounded, polite, retried, hashed. One event loop a process, hundreds of files in flight.

    future = web(limits).start(web(limits).fetch(url, into))  # from any thread; cancel it to cancel the fetch
    future.result()                                           # Fetched, or raises Rejected

Each attempt follows redirects by itself, and every hop is checked anew: its scheme, its address, its host's turn. What
arrived before a transfer broke off is kept, where the server can vouch that the rest belongs to it.
"""

import asyncio
import atexit
import errno
import hashlib
import random
import re
import socket
import threading
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cache
from html import unescape
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from pipelines.clip import Rejected
from pipelines.disk import BuildError
from pipelines.guard import guarded, refuse
from pipelines.hosts import Host, Hosts
from pipelines.reasons import retryable
from pipelines.setting import setting

if TYPE_CHECKING:
    from urllib.robotparser import RobotFileParser

    import aiohttp
    from yarl import URL

Result = TypeVar("Result")

NAME = "clapboard"  # in the User-Agent, and for robots.txt
MOST_REDIRECTS = 10
LONGEST_BACKOFF = 60.0  # s
SPEED_WINDOW = 10.0  # s over which the speed is taken
LONGEST_CRAWL_DELAY = 60.0  # s
ROBOTS_BYTES = 500 * 2**10  # of a robots.txt, as RFC 9309 has it
HEAD = 1024  # bytes looked at to tell a page from a file
PAGE = re.compile(rb"[\xef\xbb\xbf\s]*<(?:!doctype|!--|\?xml|[a-z]{1,20}[\s>])", re.IGNORECASE)
TITLE = re.compile(rb"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
TITLE_BYTES = 64 * 2**10  # of a page, read for its title
PIECE = 2**18  # bytes that are inflated at a time
PLAIN = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+")  # an address that needs no quoting


@dataclass(frozen=True)
class Limits:
    """How bytes are fetched."""

    download_timeout: float = setting(300.0, "seconds for one attempt, in all", manner=True)
    connect_timeout: float = setting(15.0, "seconds until a connection is made", manner=True)
    read_timeout: float = setting(60.0, "seconds without a byte", manner=True)
    min_speed: int = setting(1_000, "bytes a second under which a transfer is given up", manner=True)
    attempts: int = setting(4, "times that a file is tried", manner=True)
    backoff: float = setting(1.0, "seconds before the second attempt; doubles with each, with jitter", manner=True)
    in_flight: int = setting(256, "files fetched at once, in all", manner=True)
    per_host: int = setting(16, "files fetched at once from one host", manner=True)
    host_rate: float = setting(0.0, "requests a second to one host; 0 for no limit", manner=True)
    contact: str = setting("", "address or page for the User-Agent, so that a site can reach you", manner=True)
    max_download_bytes: int = setting(2**30, "largest file in bytes")
    allow_private_addresses: bool = setting(False, "admit loopback and private networks (never cloud metadata)")
    respect_robots: bool = setting(False, "ask each host's robots.txt first")

    def __post_init__(self) -> None:
        if min(self.attempts, self.in_flight, self.per_host) < 1:
            raise BuildError("--attempts, --in-flight and --per-host must be at least 1: nothing would be fetched")


@dataclass(frozen=True)
class Fetched:
    """What a server sent: SHA-256 in hex, bytes, attempts made, and its validator (ETag or date).

    A size of -1 says that nothing has changed since the validator that was sent, and that nothing was written.
    """

    sha256: str
    size: int
    attempts: int
    validator: str


@dataclass
class Transfer:
    """One file on its way: what has arrived over all its attempts, and what can be asked for next."""

    into: BinaryIO
    limit: int  # bytes
    known: str = ""  # validator of what the caller has already
    attempts: int = 0
    host: Host | None = None  # the last one asked
    digest: Any = field(default_factory=hashlib.sha256)
    size: int = 0
    head: bytes = b""
    mark: str = ""  # strong ETag or date, by which the rest can be asked for; "" if it cannot
    total: int | None = None  # bytes of the whole, where the server said so
    validator: str = ""
    unchanged: bool = False

    def restart(self) -> None:
        """Forget what has arrived."""
        if self.size:
            self.into.seek(0)
            self.into.truncate()
            self.digest, self.size = hashlib.sha256(), 0
        self.head, self.mark, self.total = b"", "", None

    def add(self, piece: bytes) -> None:
        """Write and hash what arrived; raises Rejected beyond the limit."""
        self.size += len(piece)
        if self.size > self.limit:
            raise Rejected("too-large", f"over {self.limit} bytes")
        if self.into.closed:  # by whoever asked for the file and then cancelled it
            raise asyncio.CancelledError
        self.digest.update(piece)
        self.into.write(piece)

    def ask(self) -> dict[str, str]:
        """The headers that ask for what is missing, or only for what has changed."""
        if self.size and self.mark:
            return {"Range": f"bytes={self.size}-", "If-Range": self.mark}
        if self.known:
            by_tag = self.known.startswith(('"', "W/"))
            return {"If-None-Match" if by_tag else "If-Modified-Since": self.known}
        return {}


class Web:
    """The connections of this process, shared by all its threads: an event loop in a guarded thread of its own."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.hosts = Hosts(limits.in_flight, limits.per_host, limits.host_rate)
        self.slots: dict[str, asyncio.Semaphore] = {}
        self.robots: dict[URL, asyncio.Task[RobotFileParser]] = {}
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.run, name="web", daemon=True)
        self.thread.start()
        self.session = self.start(self.open()).result()
        atexit.register(self.close)

    def run(self) -> None:
        """The thread's work."""
        with guarded(self.limits.allow_private_addresses):
            self.loop.run_forever()

    async def open(self) -> "aiohttp.ClientSession":
        """A session that sends nothing of its own accord: no cookies, no proxy, no credentials of this machine."""
        import aiohttp

        self.loop.set_default_executor(ThreadPoolExecutor(64, "resolve"))  # slow names must not hold up others
        resolver: Any = Resolver(self.limits.allow_private_addresses)
        limits = self.limits
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, resolver=resolver),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity", "User-Agent": agent(limits.contact)},
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=limits.connect_timeout, sock_read=limits.read_timeout
            ),
            auto_decompress=False,
        )
        session._retry_connection = False  # it would ask a second time by itself, and nobody would count that
        return session

    def start(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Run a coroutine in the event loop, from any thread; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def close(self) -> None:
        """Cancel all that is under way and close the connections."""
        atexit.unregister(self.close)
        if self.thread.is_alive():
            self.start(self.shut()).result()
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
            self.loop.close()

    async def shut(self) -> None:
        """Cancel every other task, wait for their ends, close the session."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.session.close()

    def host(self, url: "URL") -> Host:
        """The state of an address's host."""
        return self.hosts.of(url.scheme, url.host or "", url.port)

    def turn(self, address: str) -> AbstractAsyncContextManager[None]:
        """The turn of a request that another library makes (see Hosts.turn)."""
        return self.hosts.turn(self.host(first(address)), address)

    def give_up(self, address: str, seconds: float, why: str) -> None:
        """Close an address's host to all for so long, from any thread: it said that it was asked too much."""
        self.loop.call_soon_threadsafe(self.host(first(address)).give_up, seconds, why)

    async def fetch(self, url: str, into: BinaryIO, validator: str = "") -> Fetched:
        """Write a URL's bytes to `into` (seekable, empty); raises Rejected with its reason and attempts.

        With a `validator` that an earlier fetch returned, only if they have changed since.
        """
        target = first(url)
        transfer = Transfer(into, self.limits.max_download_bytes, validator)
        try:
            await self.insist(lambda: self.attempt(target, transfer, self.limits.respect_robots))
        except Rejected as why:
            raise Rejected(why.reason, why.detail, transfer.attempts) from why
        if transfer.unchanged:
            return Fetched("", -1, transfer.attempts, validator)
        return Fetched(transfer.digest.hexdigest(), transfer.size, transfer.attempts, transfer.validator)

    async def insist(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        """What an attempt returns, made again after a pause as often as the limits allow and as may help.

        Raises the Rejected of the last attempt that was made: that its host was then given up says less.
        """
        last = None
        for again in range(self.limits.attempts):
            if again:
                await asyncio.sleep(
                    min(LONGEST_BACKOFF, self.limits.backoff * 2 ** (again - 1) * random.uniform(1, 1.5))
                )
            try:
                return await attempt()
            except Rejected as why:
                closed = why.reason == "circuit-open"
                last = last if closed and last else why
                if closed or not retryable(why.reason):
                    break
        assert last is not None
        raise last

    async def aside(self, kind: str, at_once: int, read: Callable[..., Result], *arguments: Any) -> Result:
        """What `read` returns, run in a thread that does not keep the process alive; so many of a kind at once."""
        future: Future[Result] = Future()

        def work() -> None:
            try:
                future.set_result(read(*arguments))
            except BaseException as error:  # whatever it is, it is raised where the result is awaited
                future.set_exception(error)

        async with self.slots.setdefault(kind, asyncio.Semaphore(at_once)):
            threading.Thread(target=work, daemon=True).start()
            return await asyncio.wrap_future(future)

    async def attempt(self, url: "URL", transfer: Transfer, robots: bool) -> None:
        """One attempt, from the first address through all redirects to the last byte."""
        seconds, trail, following = self.limits.download_timeout, {url}, False
        while True:
            if robots:
                await self.permit(url)
            host = transfer.host = self.host(url)
            async with self.hosts.turn(host, str(url)):
                transfer.attempts += not following
                began = time.monotonic()
                place = await self.exchange(url, transfer, host, seconds)
                seconds -= time.monotonic() - began  # the wait for a turn is not the server's
            if place is None:
                return
            url, following = onward(url, place), True
            if url in trail:
                raise Rejected("bad-redirect", "in a circle")
            if len(trail) > MOST_REDIRECTS:
                raise Rejected("bad-redirect", f"more than {MOST_REDIRECTS} in a row")
            trail.add(url)

    async def exchange(self, url: "URL", transfer: Transfer, host: Host, seconds: float) -> str | None:
        """One request and its answer: None once the file is here, or where the server says that it is."""
        import aiohttp

        try:
            async with (
                asyncio.timeout(seconds),
                self.session.get(url, headers=transfer.ask(), allow_redirects=False) as response,
            ):
                return await self.take(response, transfer, host)
        except (aiohttp.ClientError, TimeoutError, UnicodeError) as error:
            raise meaning(error) from error

    async def take(self, response: "aiohttp.ClientResponse", transfer: Transfer, host: Host) -> str | None:
        """Act on an answer's status; its body, if it is the file's, goes to the transfer."""
        status = response.status
        if status in (301, 302, 303, 307, 308) and "Location" in response.headers:
            return response.headers["Location"]
        if status == 304 and transfer.known:
            transfer.unchanged = True
            return None
        if status == 416 and transfer.size:
            transfer.restart()
            raise Rejected("incomplete-body", "the server would not send the rest")
        if status in (429, 503) and (wait := asked(response.headers.get("Retry-After", ""))) > 0:
            host.rest(wait)
            raise Rejected(f"http-{status}", f"the server asked to wait {wait:.0f} s")
        if status not in (200, 203, 206):
            raise refused(status, response.reason or "")
        begin(response, transfer)
        await self.pour(response, transfer)
        if transfer.size == 0:
            raise Rejected("empty", "0 bytes")
        if transfer.total not in (None, transfer.size):
            raise Rejected("incomplete-body", f"{transfer.size} of {transfer.total} bytes")
        return None

    async def pour(self, response: "aiohttp.ClientResponse", transfer: Transfer) -> None:
        """Read the body into the transfer, unless it proves to be a page."""
        pieces, encoding = self.chunks(response), coding(response)
        if encoding:
            pieces = inflated(pieces, encoding)
        async for piece in pieces:
            if len(transfer.head) < HEAD:
                transfer.head += piece[:HEAD]
                if PAGE.match(transfer.head):
                    raise Rejected("not-audio", await describe(max(transfer.head, piece, key=len), pieces))
            transfer.add(piece)

    async def chunks(self, response: "aiohttp.ClientResponse") -> AsyncIterator[bytes]:
        """The body as it arrives; raises Rejected "slow" when too little does."""
        window = min(SPEED_WINDOW, self.limits.download_timeout / 3)
        since, received = time.monotonic(), 0
        while chunk := await response.content.readany():
            received += len(chunk)
            seconds = time.monotonic() - since
            if seconds > window:
                if received < seconds * self.limits.min_speed:
                    raise Rejected("slow", f"{received / seconds:.0f} bytes a second")
                since, received = time.monotonic(), 0
            yield chunk

    async def permit(self, url: "URL") -> None:
        """Raise Rejected "robots" if the host's robots.txt asks not to fetch an address; it is fetched once."""
        origin = url.origin()
        if origin not in self.robots:
            self.robots[origin] = asyncio.create_task(self.read_robots(origin))
        asked_once = self.robots[origin]
        try:
            rules = await asyncio.shield(asked_once)
        except Rejected as why:
            if self.robots.get(origin) is asked_once:
                del self.robots[origin]  # the next one asks again
            raise Rejected(why.reason, f"robots.txt: {why.detail}") from why
        if not rules.can_fetch(NAME, str(url)):
            raise Rejected("robots", "robots.txt asks not to fetch it")

    async def read_robots(self, origin: "URL") -> "RobotFileParser":
        """A host's rules. Without a robots.txt all is allowed; if it cannot be had now, Rejected says why."""
        from urllib.robotparser import RobotFileParser

        rules, text = RobotFileParser(), BytesIO()
        try:
            await self.attempt(origin / "robots.txt", Transfer(text, ROBOTS_BYTES), robots=False)
        except Rejected as why:
            if retryable(why.reason) or why.reason == "forbidden-address":
                raise
        rules.parse(text.getvalue().decode("utf-8-sig", "replace").splitlines())
        host = self.host(origin)
        host.interval = max(host.interval, min(LONGEST_CRAWL_DELAY, float(rules.crawl_delay(NAME) or 0)))
        return rules


class Resolver:
    """aiohttp's own resolver, which refuses a name with any forbidden address."""

    def __init__(self, private: bool) -> None:
        from aiohttp import ThreadedResolver

        self.names, self.private = ThreadedResolver(), private

    async def resolve(self, name: str, port: int = 0, family: Any = socket.AF_INET) -> list[Any]:
        """The addresses of a name; raises Forbidden, or OSError if it has none."""
        if f".{name.lower().rstrip('.')}".endswith(".localhost"):
            name = "localhost"
        try:
            found = await self.names.resolve(name, port, family)
        except UnicodeError as error:
            raise OSError(errno.EINVAL, "no host can have such a name") from error
        for each in found:
            refuse(each["host"], self.private)
        return list(found)

    async def close(self) -> None:
        """Nothing to close."""


opening = threading.Lock()


def web(limits: Limits) -> Web:
    """The one Web of this process for these limits."""
    with opening:
        return shared(limits)


@cache
def shared(limits: Limits) -> Web:
    return Web(limits)


def agent(contact: str) -> str:
    """The User-Agent: who we are, and how to reach whoever runs this."""
    from importlib.metadata import PackageNotFoundError, version

    number = ""
    with suppress(PackageNotFoundError):
        number = "/" + version("clapboard")
    return f"{NAME}{number} ({'; '.join(filter(None, ('audio-text dataset builder', ' '.join(contact.split()))))})"


def parse(text: str) -> "URL":
    """An address, quoted only where it must be, since some servers sign the very letters; ValueError if it is none."""
    from yarl import URL

    return URL(text, encoded=PLAIN.fullmatch(text) is not None)


def first(text: str) -> "URL":
    """The address to begin with; raises Rejected if it is not one of http(s)."""
    try:
        return fit(parse(text.strip()))
    except ValueError as error:
        raise Rejected("unsupported-url", "not an address of http(s)", attempts=0) from error


def onward(url: "URL", place: str) -> "URL":
    """The address that a redirect leads to; raises Rejected. A password goes along only on the same host."""
    try:
        target = fit(url.join(parse(place)))
    except ValueError as error:
        raise Rejected("bad-redirect", "to what is not an address of http(s)") from error
    if target.user is None and url.user is not None and target.origin() == url.origin():
        target = target.with_user(url.user).with_password(url.password)
    return target


def fit(url: "URL") -> "URL":
    """The address without fragment, its IPv4 address in the usual form; ValueError if it is not one of http(s)."""
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("not http(s)")
    with suppress(OSError):
        url = url.with_host(socket.inet_ntoa(socket.inet_aton(url.host.rstrip("."))))
    return url.with_fragment(None)


def meaning(error: Exception) -> Rejected:
    """What an error of the connection means for the file; raises BuildError if it is this machine's."""
    import aiohttp

    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        raise BuildError("too many open files: raise `ulimit -n`, or lower --in-flight") from error
    if isinstance(error, OSError) and error.errno == errno.EACCES:  # guard.Forbidden, in whatever it was wrapped
        return Rejected("forbidden-address", error.strerror or "")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Rejected("connection", "no connection within the time allowed")
    if isinstance(error, aiohttp.ServerTimeoutError):
        return Rejected("timeout", "no byte within the time allowed")
    if isinstance(error, TimeoutError):
        return Rejected("timeout", "not finished within the time allowed")
    if isinstance(error, aiohttp.ClientPayloadError):
        return Rejected("incomplete-body", "the transfer broke off")
    if isinstance(error, aiohttp.InvalidURL | UnicodeError):
        return Rejected("unsupported-url", "not an address of http(s)")
    if isinstance(error, aiohttp.ClientResponseError):
        return Rejected("connection", "the answer is not HTTP, or not all of it")
    return Rejected("connection", (isinstance(error, OSError) and error.strerror) or "the server hung up")


def refused(status: int, phrase: str) -> Rejected:
    """What a status without a file means."""
    if 400 <= status < 600:
        return Rejected(f"http-{status}", phrase[:100])
    if 300 <= status < 400:
        return Rejected("bad-redirect", f"status {status} and no place to go")
    if status in (204, 205):
        return Rejected("empty", f"status {status}")
    return Rejected("not-audio", f"status {status} in place of the file")


def asked(after: str) -> float:
    """Seconds to wait by Retry-After: a number or a date; 0 if it says neither."""
    if re.fullmatch(r"\d{1,9}", after):
        return float(after)
    with suppress(ValueError, OverflowError):
        date = parsedate_to_datetime(after)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
    return 0.0


def begin(response: "aiohttp.ClientResponse", transfer: Transfer) -> None:
    """Ready the transfer for the body of an answer: a whole file or the rest of one; raises Rejected."""
    headers = response.headers
    tag, date = printable(headers.get("ETag", "")), printable(headers.get("Last-Modified", ""))
    mark = "" if coding(response) or headers.get("Accept-Ranges") == "none" else tag if tag[:1] == '"' else date
    if response.status == 206:
        span = "" if coding(response) else headers.get("Content-Range", "")
        total = rest_of(span, transfer, mark)
    else:
        transfer.restart()
        total = response.content_length
    if total is not None and total > transfer.limit:
        raise Rejected("too-large", f"{total} bytes")
    transfer.total = None if coding(response) else total
    transfer.mark = mark or transfer.mark
    transfer.validator = tag or date or transfer.validator


def rest_of(span: str, transfer: Transfer, mark: str) -> int | None:
    """Length of the whole by Content-Range; raises Rejected, to begin anew, if it is not the rest of our file."""
    match = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", span)
    total = int(match[2]) if match and match[2] != "*" else None
    fits = match and int(match[1]) == transfer.size and mark in ("", transfer.mark or mark)
    if not fits or (total and transfer.total and total != transfer.total):
        transfer.restart()
        raise Rejected("incomplete-body", "the server sent another part than the one asked for")
    return total or transfer.total


def printable(text: str) -> str:
    """A header's value, if it is plain and short enough to be kept and sent back; else nothing."""
    return text if len(text) <= 256 and text.isascii() and text.isprintable() else ""


def coding(response: "aiohttp.ClientResponse") -> str:
    """How the body is encoded, though we asked for no encoding; "" for not at all."""
    name = response.headers.get("Content-Encoding", "").strip().lower()
    return "" if name == "identity" else name


async def inflated(chunks: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    """The body behind gzip or deflate, in bounded pieces; raises Rejected for what does not inflate."""
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Rejected("not-audio", f"encoded as {encoding}")
    engine = None
    async for chunk in chunks:
        piece = b""
        while chunk or len(piece) == PIECE:  # a full piece may have left some behind, in the engine
            if engine is None or (engine.eof and chunk):
                zlib_or_gzip = encoding != "deflate" or chunk[0] & 15 == 8
                engine = zlib.decompressobj(47 if zlib_or_gzip else -15)
            try:
                piece = engine.decompress(chunk, PIECE)
            except zlib.error as error:
                raise Rejected("not-audio", f"not {encoding}, as its header says") from error
            chunk = engine.unused_data if engine.eof else engine.unconsumed_tail
            if piece:
                yield piece
            await asyncio.sleep(0)  # others have their turn, however much comes out
    if engine is None or not engine.eof:
        raise Rejected("incomplete-body", f"the {encoding} stream broke off")


async def describe(start: bytes, pieces: AsyncIterator[bytes]) -> str:
    """What kind of page begins with `start`, and its title."""
    text = start
    while len(text) < TITLE_BYTES and not TITLE.search(text) and (piece := await anext(pieces, b"")):
        text += piece
    title = TITLE.search(text[:TITLE_BYTES])
    kind = "an XML document" if b"<?xml" in start[:16].lower() else "an HTML page"
    return f"{kind}: {unescape(title[1].decode('utf-8', 'replace')).strip()[:100]}" if title else kind
