"""Build a dataset: the list of stages in order. This is the file to open first.

    source > manifest > exclude > download > resample > filter > caption > shard > report > card
    (rows)   (parts)    (ids)     (bytes)    (FLAC+facts) (columns)        (Parquet) (counts) (README)

OUT/build/<stage>/part-00012.parquet holds the rows of a stage, the same rows in the same order in every stage.
What exists is complete: run again to continue, delete a folder to redo from there.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.caption import Caption
from pipelines.card import write_attribution, write_card
from pipelines.disk import lock
from pipelines.download import Download
from pipelines.exclude import Exclude
from pipelines.filter import Filter
from pipelines.manifest import begun, manifest, planned, prepare
from pipelines.recipe import begin, check, cores, describe, stale
from pipelines.report import write_report
from pipelines.resample import Resample
from pipelines.run import Stage, blame_part, engine, name_of, part_path, run_part
from pipelines.shard import plan_shards, write_shard
from pipelines.sources import Reading, Source

STAGES: tuple[Any, ...] = (Exclude(), Download(), Resample(), Filter(), Caption())
PART_ROWS = 256
SMALL = 8  # parts, up to which Ray is not worth its start


def build_dataset(
    source: Source,
    input: Path,
    out: Path,
    *,
    reading: Reading = Reading(),  # noqa: B008 - frozen
    stages: Sequence[Stage] = STAGES,
    workers: int | None = None,
    ray_address: str | None = None,
    part_rows: int = PART_ROWS,
    limit: int | None = None,
) -> dict[str, Any]:
    """Take every clip of `input` through `stages` into OUT/dataset; returns the report.

    Run again, it continues; another setting redoes that stage and those after it. Raises BuildError when the
    build cannot go on. A clip's own trouble is its reason in OUT/rejected.parquet, never an exception.
    """
    check(input, out, reading)
    out, stages = out.absolute(), list(stages)  # Ray's workers start in another folder
    build, last = out / "build", name_of(stages[-1])
    with lock(build):
        recipe = describe(source, input, reading, stages, part_rows, limit)
        redo = stale(build, recipe)
        parts = None if "manifest" in redo else planned(build)
        clips = begun(source.clips(input, reading)) if parts is None else None  # before anything is cleared
        begin(out, recipe, redo)
        if clips is not None:
            parts = manifest(build, clips, part_rows, limit)
        assert parts is not None
        todo = [part for part in range(parts) if not part_path(build, last, part).exists()]
        if workers is None:
            workers = 0 if len(todo) <= SMALL or ray_address else cores()
        with engine(workers, ray_address) as run:
            died = partial(blame_part, build, stages)
            follow(run(partial(run_part, build, stages), todo, died), len(todo), "parts")
            shards = plan_shards(build, out / "dataset", last, parts)
            follow(run(partial(write_shard, build, out / "dataset"), shards), len(shards), "shards")
        licenses = write_attribution(out, build, last, parts)
        report = write_report(out)
        write_card(out, source, report, licenses)
    return report


def plan(source: Source, input: Path, out: Path, *, reading: Reading, limit: int | None = None) -> dict[str, Any]:
    """What a build would take on: clips after grouping, hours and bytes, None where they are not known."""
    check(input, out, reading)
    clips = list(islice(prepare(source.clips(input, reading)), limit))
    durations, sizes = [clip.duration for clip in clips], [clip.size for clip in clips]
    return {
        "rows": len(clips),
        "hours": None if None in durations or not clips else sum(durations) / 3600,  # type: ignore[arg-type]
        "bytes": None if None in sizes or not clips else sum(sizes),  # type: ignore[arg-type]
    }


def follow(results: Iterable[Any], total: int, what: str) -> None:
    """Wait for results under a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import track

    for _ in track(results, what, total, console=Console(stderr=True), disable=total == 0):
        pass
