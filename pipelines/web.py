"""http(s) to bytes: bounded, polite, retried, hashed. One event loop a process, hundreds of files in flight.

    future = web(limits).start(web(limits).fetch(url, into))  # from any thread; cancel it to cancel the fetch
    future.result()                                           # Fetched, or raises Rejected

Each attempt follows redirects by itself, and every hop is checked anew: its scheme, its address, its host's turn. What
arrived before a transfer broke off is kept, where the server can vouch that the rest belongs to it.
"""

import asyncio
import atexit
import errno
import random
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from pipelines.address import Resolver, first, onward
from pipelines.clip import Rejected
from pipelines.disk import BuildError
from pipelines.guard import guarded
from pipelines.hosts import Host, Hosts
from pipelines.reasons import retryable
from pipelines.setting import setting
from pipelines.transfer import CONDITIONS, HEAD, PAGE, Transfer, begin, coding, describe, inflated, refused

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
MOST_ROBOTS = 1_000  # hosts whose robots.txt is remembered: those asked last


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
    respect_robots: bool = setting(False, "ask each host's robots.txt first (yt-dlp does not)")

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
            with suppress(InvalidStateError):  # nobody waits any more
                try:
                    future.set_result(read(*arguments))
                except InvalidStateError:
                    raise
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
        if status == 304 and any(each in response.request_info.headers for each in CONDITIONS):
            transfer.restart()  # part of it may have come in an earlier attempt
            transfer.unchanged = True
            return None
        if status in (304, 416) and transfer.size:
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
        asked_once = self.robots.pop(origin, None) or asyncio.create_task(self.read_robots(origin))
        self.robots[origin] = asked_once  # as the latest
        if len(self.robots) > MOST_ROBOTS:
            del self.robots[next(iter(self.robots))]
        try:
            rules = await asyncio.shield(asked_once)
        except Rejected as why:
            if self.robots.get(origin) is asked_once:
                del self.robots[origin]  # the next one asks again
            raise Rejected(why.reason, f"robots.txt: {why.detail}") from why
        if not rules.can_fetch(NAME, f"http://host{url.raw_path_qs}"):  # urllib cannot read every user and host
            raise Rejected("robots", "robots.txt asks not to fetch it")

    async def read_robots(self, origin: "URL") -> "RobotFileParser":
        """A host's rules. Without a robots.txt all is allowed; if it cannot be had now, Rejected says why."""
        from urllib.robotparser import RobotFileParser

        rules, text = RobotFileParser(), BytesIO()
        try:
            await self.attempt(origin / "robots.txt", Transfer(text, ROBOTS_BYTES, cut=True), robots=False)
        except Rejected as why:
            if retryable(why.reason) or why.reason == "forbidden-address":
                raise
            text.truncate(text.getvalue().rfind(b"\n") + 1)  # the line at which a file too large was cut
        lines = text.getvalue().decode("utf-8-sig", "replace").splitlines()
        rules.parse(line if readable(line) else "Crawl-delay:" for line in lines)  # which says nothing, in its group
        host, delay = self.host(origin), int(rules.crawl_delay(NAME) or 0)
        host.interval = max(host.interval, min(LONGEST_CRAWL_DELAY, delay))
        return rules


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


def readable(line: str) -> bool:
    """Whether urllib can read a line of a robots.txt; it raises ValueError for some that are junk."""
    from urllib.robotparser import RobotFileParser

    try:
        RobotFileParser().parse(["User-agent: *", line])
    except ValueError:
        return False
    return True


def asked(after: str) -> float:
    """Seconds to wait by Retry-After: a number or a date; 0 if it says neither."""
    if re.fullmatch(r"\d{1,9}", after):
        return float(after)
    with suppress(ValueError, OverflowError):
        date = parsedate_to_datetime(after)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
    return 0.0
