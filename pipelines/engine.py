"""The engine: items through steps, in this process or on Ray.

    with engine(workers=2) as run:
        for result in run([Step(fetch, network=True), Step(measure)], parts): ...

Without workers it is a plain loop in this process. Otherwise Ray runs the steps that compute as one task an item on
a core each, and those that wait for a network in threads of one actor, so that what is known of a host (its slots,
its rests, its failures) holds for the whole build. Steps with a model run in a pool of actors, one a GPU or else one a
core, each of which loads it once. Only the item travels; rows and bytes stay on disk. A worker that dies loses its item
to another one, and so does one that hangs; but an actor with a model is waited for, however long it takes.
"""

import logging
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pipelines.disk import BuildError

DEATHS = 3  # of workers on the same item, until that item is held to be the cause
FETCHED = 4  # items at once in the network actor
TICK = 5.0  # s between looks at what hangs
ANSWER = 60.0  # s in which the network actor must answer
MEMORY = 2 * 2**30  # bytes that a step may take on top of what its worker has at start


@dataclass(frozen=True)
class Step:
    """One leg of an item's way.

    A `network` step runs in the network actor, a `pooled` one in the actors that keep the model which its task loads.
    `died(item, times)` is called when a worker died on an item, before it is tried again; it may raise.
    `stalled(item, since)` tells whether a worker began with the item after that time (of time.time()) and has made
    no progress for too long; it is then killed. A pooled step has none.
    """

    task: Callable[[Any], Any]
    network: bool = False
    pooled: bool = False
    died: Callable[[Any, int], None] | None = None
    stalled: Callable[[Any, float], bool] | None = None


@contextmanager
def engine(workers: int = 0, address: str | None = None) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yield `run(steps, items)`, which yields what each step returns for each item, as it finishes.

    Without workers or an address that is a plain loop in this process; else Ray, started when there is first
    something to do and gone when the engine is left. An exception of a task ends the run.
    """
    if not workers and not address:
        yield lambda steps, items: (step.task(item) for item in items for step in steps)
        return
    ours = not ("ray" in sys.modules and sys.modules["ray"].is_initialized())
    try:
        yield lambda steps, items: run_on_ray(steps, items, workers, address)
    finally:
        if ours and "ray" in sys.modules:
            sys.modules["ray"].shutdown()


def run_on_ray(steps: list[Step], items: Iterable[Any], workers: int, address: str | None) -> Iterator[Any]:
    """Items through steps on Ray, a bounded number of them on their way."""
    waiting = iter(items)
    item = next(waiting, None)
    if item is None:
        return
    ray = start_ray(workers, address)
    flights = Flights(ray, steps)
    at_once = FETCHED + 2 * (workers or int(ray.cluster_resources()["CPU"]))
    flights.send(item, 0)
    while flights.flying:
        for item in islice(waiting, max(0, at_once - len(flights.flying) - len(flights.queue) - len(flights.queued))):
            flights.send(item, 0)
        landed, _ = ray.wait(list(flights.flying), timeout=TICK)
        for ref in landed:
            yield from flights.land(ref)
        flights.kill_what_hangs()


class Flights:
    """Items on their way: which step of which item each reference of Ray stands for."""

    def __init__(self, ray: Any, steps: list[Step]) -> None:
        self.ray, self.steps = ray, steps
        self.flying: dict[Any, tuple[Any, int, float, Any]] = {}  # item, step, since when, the actor that has it
        self.queue: deque[tuple[Any, int]] = deque()  # for the network actor
        self.queued: deque[tuple[Any, int]] = deque()  # for the pool
        self.pool: list[Any] = []
        self.deaths: Counter[str] = Counter()
        self.compute = ray.remote(num_cpus=1, max_retries=0)(compute)
        self.fetcher: Any = None
        self.asked: tuple[Any, float] | None = None
        self.answered = False

    def send(self, item: Any, step: int) -> None:
        """Start a step of an item, or queue it for the network actor."""
        if self.steps[step].network:
            self.queue.append((item, step))
            self.fetch()
        elif self.steps[step].pooled:
            self.queued.append((item, step))
            self.serve()
        else:
            ref = self.compute.remote(self.steps[step].task, item)
            self.flying[ref] = item, step, time.time(), None

    def fetch(self) -> None:
        """Give the network actor what waits for it, as far as it has threads."""
        while self.queue and sum(self.steps[step].network for _, step, *_ in self.flying.values()) < FETCHED:
            if self.fetcher is None:
                threads = FETCHED + 1  # one more, to answer
                self.fetcher = self.ray.remote(num_cpus=0, max_concurrency=threads, max_restarts=0)(Actor).remote()
                self.asked, self.answered = None, False
            item, step = self.queue.popleft()
            ref = self.fetcher.run.remote(self.steps[step].task, item)
            self.flying[ref] = item, step, time.time(), self.fetcher

    def serve(self) -> None:
        """Give each actor of the pool that is free what waits for it; the pool grows up to its size.

        An actor holds no core: it would keep it from the steps before its own for as long as it lives.
        """
        has = self.ray.cluster_resources()
        gpus = int(has.get("GPU", 0))
        while self.queued:
            busy = [actor for *_, actor in self.flying.values()]
            free = next((actor for actor in self.pool if all(actor is not each for each in busy)), None)
            if free is None and len(self.pool) == (gpus or int(has["CPU"])):
                return
            if free is None:
                wanted = {"num_cpus": 0, "num_gpus": min(gpus, 1), "scheduling_strategy": "SPREAD"}
                free = self.ray.remote(max_restarts=0, **wanted)(Actor).remote()
                self.pool.append(free)
            item, step = self.queued.popleft()
            self.flying[free.run.remote(self.steps[step].task, item)] = item, step, time.time(), free

    def land(self, ref: Any) -> Iterator[Any]:
        """The result of a step, after which the item's next one starts; nothing if it must be tried again."""
        item, step, _, actor = self.flying.pop(ref)
        lost = self.ray.exceptions
        try:
            result = self.ray.get(ref)
        except (lost.ActorDiedError, lost.ActorUnavailableError) as error:
            self.dismiss(actor)
            self.again(item, step, error)
        except (lost.WorkerCrashedError, lost.OutOfMemoryError, lost.NodeDiedError, lost.TaskCancelledError) as error:
            self.again(item, step, error)
        except lost.RayTaskError as error:
            raise error.cause from error
        except lost.RayError as error:
            raise BuildError(f"Ray failed: {error}: run the same command again to continue") from error
        else:
            if step + 1 < len(self.steps):
                self.send(item, step + 1)
            yield result
        self.fetch()
        self.serve()

    def dismiss(self, actor: Any) -> None:
        """Let go of an actor that died, or may be out of reach only; another one takes its place when needed."""
        if self.fetcher is actor:
            self.ray.kill(actor)
            self.fetcher = None
        elif any(each is actor for each in self.pool):
            self.ray.kill(actor)
            self.pool = [each for each in self.pool if each is not actor]

    def again(self, item: Any, step: int, error: Exception) -> None:
        """Try a step again after its worker died on the item."""
        self.deaths[repr(item)] += 1
        if died := self.steps[step].died:
            died(item, self.deaths[repr(item)])
        elif self.deaths[repr(item)] >= DEATHS:
            raise BuildError(f"Ray workers died {DEATHS} times on {item}: is the memory exhausted?") from error
        self.send(item, step)

    def kill_what_hangs(self) -> None:
        """End the workers that make no progress; their items land as those of dead workers do."""
        for ref, (item, step, since, actor) in self.flying.items():
            if actor is None and (stalled := self.steps[step].stalled) and stalled(item, since):
                self.ray.cancel(ref, force=True)
        if self.fetcher is None:
            return
        if self.asked is None:
            self.asked = self.fetcher.alive.remote(), time.monotonic()
        elif self.ray.wait([self.asked[0]], timeout=0)[0]:
            self.asked, self.answered = None, True
        elif self.answered and time.monotonic() - self.asked[1] > ANSWER:  # not one that only starts
            self.ray.kill(self.fetcher)


class Actor:
    """A process that stays from one item to the next, and with it what a task keeps in memory."""

    def run(self, task: Callable[[Any], Any], item: Any) -> Any:
        """What the task returns for the item."""
        return task(item)

    def alive(self) -> None:
        """Answer, which a process that hangs does not."""


def compute(task: Callable[[Any], Any], item: Any) -> Any:
    """What the task returns for the item, within the memory that a worker may take."""
    limit_memory(MEMORY)
    return task(item)


def limit_memory(more: int) -> None:
    """From now on this process may take `more` bytes on top of what it has; set once, where the system can."""
    import resource

    if sys.platform != "linux" or resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY:
        return
    with open("/proc/self/status") as status:  # noqa: PTH123 - no path of ours
        taken = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (taken + more, resource.RLIM_INFINITY))


def start_ray(workers: int, address: str | None) -> Any:
    """Join the cluster at `address` or start a small one here; returns the module."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if not ray.is_initialized():
        local: dict[str, Any] = {"num_cpus": workers, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        stop = signal.getsignal(signal.SIGTERM)
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else local))
        with suppress(ValueError):  # only the main thread has handlers
            signal.signal(signal.SIGTERM, stop)  # Ray puts its own handler there, which exits without a word
    return ray
