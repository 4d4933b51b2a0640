"""Politeness: how many requests a host gets at once and how often, and when it is left alone.

A host is a scheme, a name and a port. It rests when it asks to. One that only fails is left alone for a while, then
asked by a single request; one that goes on failing is given up, and whoever wants something of it hears so at once.
All of this runs in one event loop, so nothing here needs a lock.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from math import inf

from pipelines.clip import Rejected
from pipelines.reasons import retryable

FAILURES = 10  # files in a row that failed, until a host is left alone
COOL_OFF = 10.0  # s that it is left alone; doubles each time
OPENINGS = 3  # times in a row that it is left alone, until it is given up
PROBE_EVERY = 60.0  # s between two requests to a host that was given up
LONGEST_REST = 120.0  # s that a host may ask to be left alone, and the rest of the work waits


class Host:
    """One host's state. Times are those of time.monotonic."""

    def __init__(self, at_once: int, interval: float) -> None:
        self.slots = asyncio.Semaphore(at_once)
        self.interval = interval  # s between two requests
        self.next = 0.0  # when the next request may go, by the interval
        self.resting = 0.0  # until when the host asked for rest
        self.failing: set[str] = set()  # what failed since the last success
        self.openings = 0  # of the circuit breaker in a row; above 0 only a probe may go
        self.until = 0.0  # when the probe may go
        self.probing = False
        self.given_up = False
        self.why = ""
        self.changed: asyncio.Event | None = None  # what those that wait, wait for

    def delay(self) -> float:
        """Seconds until a request may go; raises Rejected "circuit-open" if that is not worth waiting for."""
        now = time.monotonic()
        if self.given_up and (self.probing or now < self.until):
            raise Rejected("circuit-open", self.why, attempts=0)
        if self.probing:
            return inf
        return max(0.0, max(self.until, self.resting, self.next) - now)

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until the state of the host changes."""
        self.changed = self.changed or asyncio.Event()
        with suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == inf else seconds):
                await self.changed.wait()

    def notify(self) -> None:
        """Wake all that wait."""
        if self.changed:
            self.changed.set()
            self.changed = None

    @contextmanager
    def request(self, what: str) -> Iterator[None]:
        """Within, a request for a file is under way; its outcome is the host's."""
        self.next = max(time.monotonic(), self.next) + self.interval
        probe = self.probing = self.openings > 0
        try:
            yield
            self.succeeded(probe)
        except Rejected as why:
            if is_hosts_fault(why.reason):
                self.failed(what, probe, f"{why.reason}: {why.detail}")
            else:
                self.succeeded(probe)
            raise
        finally:
            if probe:
                self.probing = False
                self.notify()

    def succeeded(self, probe: bool) -> None:
        """Note that the host answered; what set out before it was given up does not bring it back."""
        self.failing.clear()
        if self.openings and (probe or not self.given_up):
            self.openings, self.until, self.given_up = 0, 0.0, False
            self.notify()

    def failed(self, what: str, probe: bool, why: str) -> None:
        """Note a failure of the host; those of requests that set out before the breaker opened say nothing new.

        A file that fails each time it is tried counts once: a host may serve all others well.
        """
        self.failing.add(what)
        if not probe and (self.openings or len(self.failing) < FAILURES):
            return
        self.openings += 1
        if self.openings > OPENINGS:
            self.give_up(PROBE_EVERY, f"the host went on failing: {why}")
        else:
            self.until = time.monotonic() + COOL_OFF * 2 ** (self.openings - 1)

    def rest(self, seconds: float) -> None:
        """Let no request go for so long, as the host asked; if that is too long, give it up."""
        if seconds > LONGEST_REST:
            self.give_up(seconds, f"the server asked to wait {seconds:.0f} s")
        self.resting = max(self.resting, time.monotonic() + seconds)

    def give_up(self, seconds: float, why: str) -> None:
        """Refuse every request for so long, then let one probe go each minute until one succeeds."""
        self.given_up, self.why = True, why
        self.openings = max(self.openings, OPENINGS)
        self.until = max(self.until, time.monotonic() + seconds)
        self.notify()


def is_hosts_fault(reason: str) -> bool:
    """Whether a request failed for a reason that concerns all of its host."""
    return retryable(reason) and reason not in ("slow", "incomplete-body", "circuit-open")


class Hosts:
    """All hosts of this process, and the slots that they share."""

    def __init__(self, in_flight: int, per_host: int, rate: float) -> None:
        self.flying = asyncio.Semaphore(in_flight)
        self.per_host, self.interval = per_host, 1 / rate if rate else 0.0
        self.known: dict[tuple[str, str, int | None], Host] = {}

    def of(self, scheme: str, name: str, port: int | None) -> Host:
        """The state of one host."""
        key = (scheme, name.lower().rstrip("."), port)
        if key not in self.known:
            self.known[key] = Host(self.per_host, self.interval)
        return self.known[key]

    @asynccontextmanager
    async def turn(self, host: Host, what: str) -> AsyncIterator[None]:
        """Wait until a request to `host` for a file may go; within, it is under way. Raises Rejected "circuit-open".

        What waits for its host holds none of the slots that all hosts share.
        """
        async with host.slots:
            while True:
                while (seconds := host.delay()) > 0:
                    await host.pause(seconds)
                async with self.flying:
                    if host.delay() > 0:  # it began to rest while this request waited for others to end
                        continue
                    with host.request(what):
                        yield
                    return
