"""Build a dataset: the list of stages in order. This is the file to open first.

    source > manifest > exclude > download > resample > filter > dedup > caption > shard > report > card
    (rows)   (parts)    (ids)     (bytes)    (FLAC+facts) (columns)         (text)    (Parquet) (counts) (README)

OUT/build/<stage>/part-00012.parquet holds the rows of a stage, the same rows in the same order in every stage.
What exists is complete: run again to continue, delete a folder to redo from there. Parts flow through the stages
independently of each other; only dedup and shard wait for all.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from pipelines.caption import Caption
from pipelines.card import write_attribution, write_card
from pipelines.dedup import Dedup
from pipelines.disk import BuildError, lock
from pipelines.download import Download
from pipelines.engine import Step, engine
from pipelines.evaluation import bind
from pipelines.exclude import Exclude
from pipelines.filter import Filter
from pipelines.manifest import begun, manifest, planned, prepare
from pipelines.page import write_page
from pipelines.progress import Progress
from pipelines.recipe import KEPT, begin, check, cores, describe, read_recipe, refuse_moved, stale, tidy, unpublish
from pipelines.report import write_report
from pipelines.resample import Resample
from pipelines.retry import Retry, try_again
from pipelines.run import Count, Stage, Tally, blame_part, name_of, part_path, run_part, stalled
from pipelines.shard import Shard, plan_shards, write_shard
from pipelines.sources import Reading, Source

STAGES: tuple[Any, ...] = (Exclude(), Download(), Resample(), Filter(), Dedup(), Caption())
PART_ROWS = 256
METADATA_ROWS = 4096  # of a part without audio
SMALL = 8  # parts, up to which Ray is not worth its start
CPU_PER_HOUR = 10.0  # CPU s to decode, resample, measure and encode an hour of audio; benchmarks/RESULTS.md
FLAC_PER_HOUR = 164 * 10**6  # bytes


def build_dataset(
    source: Source,
    input: Path | str,
    out: Path,
    *,
    reading: Reading = Reading(),  # noqa: B008 - frozen
    stages: Sequence[Stage] = STAGES,
    workers: int | None = None,
    ray_address: str | None = None,
    part_rows: int = PART_ROWS,
    limit: int | None = None,
    keep: str = "audio",
    retry: Retry | None = None,
) -> dict[str, Any]:
    """Take every clip of `input` (a path, or a URL as text) through `stages` into OUT/dataset; returns the report.

    Run again, it continues; another setting redoes that stage and those after it. `keep` says which working files
    stay: "all", "audio" (raw downloads go once they are resampled) or "none"; `retry` which clips to fetch again.
    Raises BuildError when the build cannot go on. A clip's own trouble is its reason in OUT/rejected.parquet,
    never an exception.
    """
    check(input, out, reading)
    if keep not in KEPT:
        raise BuildError(f"--keep {keep}: want one of {', '.join(KEPT)}")
    source = replace(source, card=source.card | source.told(input, reading))
    out = out.absolute()  # Ray's workers start in another folder
    build, last, audio = out / "build", name_of(stages[-1]), any(stage.packs for stage in stages)
    with lock(build):
        stages = pinned(stages, read_recipe(build))
        stages, lists = bind(stages, source.corpora(input, reading), build, source.card.get("exclude_evaluation", ()))
        recipe = describe(source, input, reading, stages, part_rows, limit)
        redo = stale(build, recipe, retry is not None)
        parts = None if "manifest" in redo else planned(build)
        refuse(out, recipe, redo, retry, parts, audio)
        clips = begun(source.clips(input, reading)) if parts is None else None  # before anything is cleared
        if redo or parts is None or not finished(out, last, parts):
            for stage in (each for each in stages if hasattr(each, "ready")):
                stage.ready()
        begin(out, recipe, redo)
        lists.write()
        if clips is not None:
            parts = manifest(build, clips, part_rows, limit, audio)
        assert parts is not None
        if retry:
            try_again(out, stages, parts, retry)
        if report := finished(out, last, parts):
            tidy(build, keep)
            return report
        unpublish(out, whole=not all(part_path(build, last, part).exists() for part in range(parts)))
        if workers is None:
            todo = sum(not part_path(build, last, part).exists() for part in range(parts))
            workers = 0 if todo <= SMALL or ray_address or not audio else cores()
        with engine(workers, ray_address) as run, Progress(build) as progress:
            through(build, stages, parts, run, progress, keep_raw=keep == "all", here=not workers and not ray_address)
            write_shards(build, out / "dataset", last, parts, audio, run, progress)
        report = tell(out, last, parts, source.name, source.card, audio)
        tidy(build, keep)
    return report


def refuse(
    out: Path, recipe: dict[str, Any], redo: list[str], retry: Retry | None, parts: int | None, audio: bool
) -> None:
    """Raise BuildError, before anything is cleared, where a retry would fetch all again or the files have moved.

    Only what is still to be resampled reads files of the input.
    """
    if retry and retry.reasons is not None and "download" in redo:
        raise BuildError(
            f"{redo[0]} is not as {out} was built, so everything would be fetched again: give the settings and "
            "the input of that build, or leave out --retry-rejected"
        )
    heard = parts is not None and all(part_path(out / "build", "resample", part).exists() for part in range(parts))
    if "manifest" not in redo and audio and (retry or "resample" in redo or not heard):
        refuse_moved(out, recipe)


def pinned(stages: Sequence[Any], old: dict[str, Any] | None) -> list[Any]:
    """The stages, those with a model as their revisions name it for good; `old` is the recipe that is continued."""
    held = (old or {"stages": {}})["stages"]
    return [stage.pinned(held.get(name_of(stage))) if hasattr(stage, "pinned") else stage for stage in stages]


def through(
    build: Path, stages: list[Any], parts: int, run: Callable[..., Any], progress: Progress, keep_raw: bool, here: bool
) -> None:
    """Take every part through the stages; one that gathers waits until all parts have passed those before it."""
    before = "manifest"
    for leg in legs(stages):
        if hasattr(leg[0], "gather"):
            paths = [part_path(build, before, part) for part in range(parts)]
            verdicts = build / name_of(leg[0]) / "verdicts.parquet"
            if not any(verdicts.parent.glob("part-*.parquet")):
                verdicts.unlink(missing_ok=True)  # of parts that may have been made anew
            leg[0] = leg[0].gather(paths, verdicts)
        last = name_of(leg[-1])
        todo = [part for part in range(parts) if not part_path(build, last, part).exists()]
        tally = progress.tally if here else None  # in this process row by row, else as parts are done
        steps = [
            Step(
                partial(run_part, build, start, group, keep_raw=keep_raw, tally=tally),
                network=getattr(group[-1], "network", False),
                pooled=getattr(group[-1], "pooled", False),
                died=partial(blame_part, build, group),
                stalled=partial(stalled, build, group),
            )
            for start, group in grouped(before, leg)
        ]
        progress.follow({name_of(stage): len(todo) / parts for stage in leg}, run(steps, todo))
        before = last


def write_shards(
    build: Path, dataset: Path, last: str, parts: int, audio: bool, run: Callable[..., Any], progress: Progress
) -> None:
    """Write those shards that are not there yet."""
    shards = plan_shards(build, dataset, last, parts, audio)
    share = sum(len(shard.rows) for shard in shards) / progress.rows
    progress.follow({"shard": share}, run([Step(partial(publish, build, dataset))], shards))


def publish(build: Path, dataset: Path, shard: Shard) -> Tally:
    """Write a shard and count its rows."""
    write_shard(build, dataset, shard)
    return Tally(shard=Count(len(shard.rows), len(shard.rows)))


def tell(out: Path, last: str, parts: int, source: str, card: dict[str, Any], audio: bool) -> dict[str, Any]:
    """Write what is told of a dataset whose shards are there, its card last; returns the report."""
    licenses = write_attribution(out, out / "build", last, parts)
    report = write_report(out)
    write_page(out, report, card["title"])
    write_card(out, source, card, report, licenses, audio)
    return report


def legs(stages: list[Any]) -> list[list[Any]]:
    """The stages cut before each one that gathers."""
    cuts = [i for i, stage in enumerate(stages) if hasattr(stage, "gather")]
    return [stages[start:end] for start, end in pairwise([0, *cuts, len(stages)]) if start < end]


def grouped(before: str, leg: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    """(the stage before, the stages) of each step of a leg: a step ends with a stage that waits for the network.

    One with a model begins a step of its own.
    """
    group: list[Any] = []
    for stage in leg:
        if group and getattr(stage, "pooled", False):
            yield before, group
            before, group = name_of(group[-1]), []
        group.append(stage)
        if getattr(stage, "network", False) or stage is leg[-1]:
            yield before, group
            before, group = name_of(stage), []


def finished(out: Path, last: str, parts: int) -> dict[str, Any] | None:
    """The report of a build that has nothing left to do; None for any other."""
    written = [
        out / "dataset/README.md",
        out / "dataset/ATTRIBUTION.csv",
        out / "rejected.parquet",
        out / "report.json",
        out / "report.html",
    ]
    if not all(path.exists() for path in written):
        return None
    if len(list((out / "build" / last).glob("part-*.parquet"))) != parts:
        return None
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report if shards_complete(out / "dataset", report["splits"]) else None


def shards_complete(dataset: Path, splits: dict[str, int]) -> bool:
    """Whether every shard is there that the names of the others promise."""
    names = [path.name for path in (dataset / "data").glob("*.parquet")]
    first = {name.rpartition("-")[0].removesuffix("-of").rpartition("-")[0]: name for name in names}
    promised = sum(int(name.removesuffix(".parquet").rpartition("-")[2]) for name in first.values())
    return set(first) == set(splits) and promised == len(names)


def without_audio(stages: Sequence[Any]) -> list[Any]:
    """The stages of a build that fetches and opens no audio."""
    return [stage for stage in stages if not stage.packs]


def plan(
    source: Source,
    input: Path | str,
    out: Path,
    *,
    reading: Reading,
    limit: int | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """What a build would take on; None where it is not known before.

    `rows` (clips after grouping), `hours` and `bytes` of the sources, about the `disk_bytes` of working parts and
    shards, raw downloads apart, and about the `seconds` that this machine takes to decode and encode.
    """
    check(input, out, reading)
    rows, seconds, size = 0, 0.0, 0
    lengths = sizes = True
    for clip in islice(prepare(source.clips(input, reading)), limit):
        rows += 1
        lengths, sizes = lengths and clip.duration is not None, sizes and clip.size is not None
        seconds, size = seconds + (clip.duration or 0), size + (clip.size or 0)
    hours = seconds / 3600 if rows and lengths else None
    return {
        "rows": rows,
        "hours": hours,
        "bytes": size if rows and sizes else None,
        "disk_bytes": None if hours is None else round(2 * hours * FLAC_PER_HOUR),  # working parts and shards
        "seconds": None if hours is None else round(hours * CPU_PER_HOUR / max(workers or cores(), 1), 1),
    }
