"""Parts through stages: the engine. A part is one Parquet file of clips; it exists when it is complete.

    with engine(workers=2) as run:
        for part in run(partial(run_part, build, stages), parts): ...

With no workers it is a plain loop in this process. Otherwise Ray runs one task a part; rows and bytes stay on
disk, only the number of the part travels. A task that dies (a decoder's crash, the kernel's memory killer) is
tried again; see Journal for how the one clip at fault is found.
"""

import faulthandler
import logging
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol, TypeVar

from pipelines.clip import Clip, read_clips, write_clips
from pipelines.disk import BuildError, atomic

DEATHS = 3  # of a worker with the same clip in hand, until that clip is held to be the cause
Item = TypeVar("Item")
Result = TypeVar("Result")


class Stage(Protocol):
    """A frozen dataclass whose fields are its settings; it yields the clips it takes, changed or rejected.

    It sees only clips that nobody before it rejected. A stage with `packs = True` also takes the open file
    into which it writes bytes.
    """

    packs: ClassVar[bool]
    __dataclass_fields__: ClassVar[dict[str, Any]]
    __call__: Callable[..., Iterator[Clip]]


def name_of(stage: object) -> str:
    """A stage's folder: the name of its class in lower case."""
    return type(stage).__name__.lower()


def part_path(build: Path, stage: str, part: int) -> Path:
    """BUILD/<stage>/part-00012.parquet"""
    return build / stage / f"part-{part:05d}.parquet"


def run_part(build: Path, stages: list[Stage], part: int) -> int:
    """Take one part through every stage that it has not passed yet; returns its number."""
    before, clips = part_path(build, "manifest", part), None
    for stage in stages:
        path = part_path(build, name_of(stage), part)
        if path.exists():
            clips = None
        else:
            clips = run_stage(stage, read_clips(before) if clips is None else clips, path)
        before = path
    return part


def run_stage(stage: Stage, clips: list[Clip], path: Path) -> list[Clip]:
    """Run one stage over one part and commit the result under `path`, bytes first."""
    if stage.packs:
        with Journal(path.with_suffix(".journal")) as journal, atomic(path.with_suffix(".pack")) as pack:
            with pack.open("wb") as handle:
                clips = apply(stage, journal.watch(clips, name_of(stage)), handle)
        journal.path.unlink()  # before the rows: a journal beside a finished part would stay for ever
    else:
        clips = apply(stage, clips)
    write_clips(path, clips)
    return clips


def apply(stage: Stage, clips: Iterable[Clip], *pack: BinaryIO) -> list[Clip]:
    """The clips after `stage`, row for row; rejected ones pass by. Raises BuildError if one got lost."""
    rows: list[Clip] = []

    def live() -> Iterator[Clip]:
        for clip in clips:
            rows.append(clip)
            if not clip.reason:
                yield clip

    changed = list(stage(live(), *pack))
    if [clip.id for clip in changed] != [clip.id for clip in rows if not clip.reason]:
        raise BuildError(f"stage {name_of(stage)} lost or swapped clips: this is a bug, please report it")
    after = iter(changed)
    return [clip if clip.reason else next(after) for clip in rows]


class Journal:
    """Names the clip in hand, so that a decoder that takes the process down costs that clip only.

    On a fatal signal faulthandler adds its own line to the same file; a SIGKILL from outside adds nothing.
    So the next run can tell the clip that crashed the decoder from one that was merely in hand when the build
    was killed, and rejects only the former.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> "Journal":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.handle = self.path.open("ab", buffering=0)
        self.faults_were_on = faulthandler.is_enabled()
        faulthandler.enable(self.handle, all_threads=False)
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.disable()
        if self.faults_were_on:
            faulthandler.enable()
        self.handle.close()

    def watch(self, clips: Iterable[Clip], stage: str) -> Iterator[Clip]:
        """Note each clip as it is handed out; those that crashed an earlier run come out rejected."""
        crashes = dict(re.findall(rb"row (\d+)\n+Fatal ([^\n]*)", self.path.read_bytes()))
        for row, clip in enumerate(clips):
            if fault := crashes.get(b"%d" % row):
                yield clip.reject(stage, "decoder-crashed", fault.decode("utf-8", "replace"))
            else:
                self.handle.write(b"row %d\n" % row)
                yield clip


def blame_part(build: Path, stages: list[Stage], part: int, deaths: int) -> None:
    """After a worker died on a part: let it be tried again, holding a clip to be the cause where need be.

    A crash has left its own line in the journal; a worker that was killed has not. A clip that was in hand at
    three such deaths is blamed for them. Raises BuildError if workers die with no clip in hand.
    """
    journals = [part_path(build, name_of(stage), part).with_suffix(".journal") for stage in stages if stage.packs]
    noted = {path: path.read_bytes() for path in journals if path.exists()}
    explained = False
    for path, lines in noted.items():
        if last := re.search(rb"row \d+\n\Z", lines):
            lost = lines.count(last[0] + b"lost\n") + 1
            with path.open("ab") as handle:
                handle.write(b"lost\n" if lost < DEATHS else b"Fatal to %d workers\n" % lost)
        explained |= bool(lines) and not lines.endswith(b"lost\n")
    if not explained and deaths >= DEATHS:
        raise BuildError(f"a worker died {deaths} times on part {part} of {build}: is the memory exhausted?")


@contextmanager
def engine(workers: int = 0, address: str | None = None) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yield `run(task, items, died)`, which yields `task(item)` for every item as it finishes.

    Without workers or an address that is a plain loop in this process; else Ray, started when there is first
    something to do and gone when the engine is left. `died(item, times)` is called when a worker died on an item,
    before it is tried again; it may raise. An exception of the task ends the run.
    """
    if not workers and not address:
        yield lambda task, items, died=None: map(task, items)
        return
    ours = not ("ray" in sys.modules and sys.modules["ray"].is_initialized())
    try:
        yield partial(run_on_ray, workers=workers, address=address)
    finally:
        if ours and "ray" in sys.modules:
            sys.modules["ray"].shutdown()


def run_on_ray(
    task: Callable[[Item], Result],
    items: Iterable[Item],
    died: Callable[[Item, int], None] | None = None,
    *,
    workers: int,
    address: str | None,
) -> Iterator[Result]:
    """Ray core: one task an item, at most two a core in flight, nothing in the object store but numbers."""
    waiting = iter(items)
    flying: dict[Any, Item] = {}
    deaths: Counter[Item] = Counter()
    item = next(waiting, None)
    if item is None:
        return
    ray = start_ray(workers, address)
    remote = ray.remote(num_cpus=1, max_retries=0)(lambda item: task(item))  # Ray takes no partial
    slots = 2 * (workers or int(ray.cluster_resources()["CPU"]))
    while flying or item is not None:
        while len(flying) < slots and item is not None:
            flying[remote.remote(item)] = item
            item = next(waiting, None)
        (done,), _ = ray.wait(list(flying), num_returns=1)
        ended = flying.pop(done)
        try:
            yield ray.get(done)
        except (
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.OutOfMemoryError,
            ray.exceptions.NodeDiedError,
        ) as error:
            deaths[ended] += 1
            if died is not None:
                died(ended, deaths[ended])
            elif deaths[ended] >= DEATHS:
                raise BuildError(f"Ray workers died {DEATHS} times on {ended}: is the memory exhausted?") from error
            flying[remote.remote(ended)] = ended
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise BuildError(f"Ray failed: {error}: run the same command again to continue") from error


def start_ray(workers: int, address: str | None) -> Any:
    """Join the cluster at `address` or start a small one here; returns the module."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if not ray.is_initialized():
        local: dict[str, Any] = {"num_cpus": workers, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        stop = signal.getsignal(signal.SIGTERM)
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else local))
        signal.signal(signal.SIGTERM, stop)  # Ray puts its own handler there, which exits without a word
    return ray
