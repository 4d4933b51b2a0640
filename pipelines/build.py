"""Build a dataset: the list of stages in order. This is the file to open first.

    source > manifest > exclude > download > resample > filter > caption > shard > report > card
    (rows)   (parts)    (ids)     (bytes)    (FLAC+facts) (columns)        (Parquet) (counts) (README)

OUT/build/<stage>/part-00012.parquet holds the rows of a stage, the same rows in the same order in every stage.
What exists is complete: run again to continue, delete a folder to redo from there.
"""

import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.caption import Caption
from pipelines.card import write_attribution, write_card
from pipelines.clip import Clip, Rejected, write_clips
from pipelines.disk import BuildError, lock, write_text
from pipelines.download import Download, local_path
from pipelines.exclude import Exclude
from pipelines.filter import Filter
from pipelines.report import summarise, write_report
from pipelines.resample import Resample
from pipelines.run import Stage, blame_part, engine, name_of, part_path, run_part
from pipelines.shard import plan_shards, write_shard
from pipelines.sources import Reading, Source
from pipelines.text import clean

STAGES: tuple[Any, ...] = (Exclude(), Download(), Resample(), Filter(), Caption())
PART_ROWS = 256
PART_BYTES = 512 * 2**20
SMALL = 8  # parts, up to which Ray is not worth its start
PACKAGES = ("clapboard", "numpy", "soundfile", "soxr", "av", "pyarrow", "pandas", "ray")


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
    check(input, out)
    out, stages = out.absolute(), list(stages)  # Ray's workers start in another folder
    build = out / "build"
    with lock(build):
        begin(out, recipe(source, input, reading, stages, part_rows, limit))
        parts = manifest(build, source.clips(input, reading), part_rows, limit)
        todo = [part for part in range(parts) if not part_path(build, name_of(stages[-1]), part).exists()]
        if workers is None:
            workers = 0 if len(todo) <= SMALL or ray_address else cores()
        with engine(workers, ray_address) as run:
            died = partial(blame_part, build, stages)
            follow(run(partial(run_part, build, stages), todo, died), len(todo), "parts")
            shards = plan_shards(build, out / "dataset", name_of(stages[-1]), parts)
            follow(run(partial(write_shard, build, out / "dataset"), shards), len(shards), "shards")
        write_attribution(out, build, name_of(stages[-1]), parts)
        report = write_report(out)
        write_card(out, source, report)
    return summarise(out)


def plan(source: Source, input: Path, *, reading: Reading, limit: int | None = None) -> dict[str, Any]:
    """What a build would take on: clips after grouping, hours and bytes, None where they are not known."""
    check(input)
    clips = list(islice(prepare(source.clips(input, reading)), limit))
    durations, sizes = [clip.duration for clip in clips], [clip.size for clip in clips]
    return {
        "rows": len(clips),
        "hours": None if None in durations or not clips else sum(durations) / 3600,  # type: ignore[arg-type]
        "bytes": None if None in sizes or not clips else sum(sizes),  # type: ignore[arg-type]
    }


def check(input: Path, out: Path | None = None) -> None:
    """Raise BuildError for an input that is not there or that would take in the build's own output."""
    if not input.exists():
        raise BuildError(f"input {input} does not exist")
    if out and out.resolve().is_relative_to(input.resolve()):
        raise BuildError(f"--out {out} lies inside the input {input}: choose a folder outside it")


def manifest(build: Path, clips: Iterable[Clip], part_rows: int, limit: int | None) -> int:
    """Cut a source's clips into parts; returns how many. The count is written last: with it, all are there."""
    done = build / "manifest.json"
    if done.exists():
        return int(json.loads(done.read_text())["parts"])
    rows = parts = 0
    for part, group in enumerate(cut(islice(prepare(clips), limit), part_rows)):
        path = part_path(build, "manifest", part)
        if not path.exists():
            write_clips(path, group)
        rows, parts = rows + len(group), part + 1
    if rows == 0:
        raise BuildError("the input holds no clips: is it the right folder or table?")
    write_text(done, json.dumps({"parts": parts, "rows": rows}) + "\n")
    return parts


def prepare(clips: Iterable[Clip]) -> Iterator[Clip]:
    """What holds for every source: clean text, ids that are unique, a split for each clip, sizes of local files."""
    seen: dict[str, int] = {}
    for clip in clips:
        clean_id = clean(clip.id)
        seen[clean_id] = seen.get(clean_id, 0) + 1
        yield replace(
            clip,
            id=clean_id if seen[clean_id] == 1 else f"{clean_id}#{seen[clean_id]}",
            captions=tuple(dict.fromkeys(text for caption in clip.captions if (text := clean(caption)))),
            tags=tuple(dict.fromkeys(text for tag in clip.tags if (text := clean(tag)))),
            labels=tuple(dict.fromkeys(text for label in clip.labels if (text := clean(label)))),
            license=clean(clip.license),
            author=clean(clip.author),
            title=clean(clip.title),
            url=clean(clip.url),
            split=clip.split or split_of(clip),
            size=clip.size or size_of(clip.location),
        )


def split_of(clip: Clip) -> str:
    """ "train" for a clip with a fold; else 90 % train, 5 % validation, 5 % test by a stable hash of the id."""
    if clip.fold:
        return "train"
    share = int.from_bytes(hashlib.sha256(clip.id.encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.9 else "validation" if share < 0.95 else "test"


def size_of(location: str) -> int | None:
    """Bytes of a local file; None for anything else or one that is not there (download says why)."""
    try:
        return local_path(location).stat().st_size
    except (Rejected, OSError):
        return None


def cut(clips: Iterable[Clip], part_rows: int) -> Iterator[list[Clip]]:
    """Lists of at most `part_rows` clips and, where sizes are known, at most 512 MB of sources."""
    group: list[Clip] = []
    weight = 0
    for clip in clips:
        size = clip.size or 0
        if group and (len(group) == part_rows or weight + size > PART_BYTES):
            yield group
            group, weight = [], 0
        group.append(clip)
        weight += size
    if group:
        yield group


def recipe(
    source: Source, input: Path, reading: Reading, stages: Sequence[Stage], part_rows: int, limit: int | None
) -> dict[str, Any]:
    """Everything that the dataset depends on, stage by stage in order."""
    start = {
        "source": source.name, "input": fingerprint(input), **asdict(reading), "part_rows": part_rows, "limit": limit,
    }  # fmt: skip
    return {
        "stages": {"manifest": start} | {name_of(stage): asdict(stage) for stage in stages},
        "versions": {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES},
    }


def fingerprint(input: Path) -> str:
    """SHA-256 over a table's bytes, or over the names, sizes and times of a folder's files."""
    if input.is_file():
        with input.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    digest = hashlib.sha256()
    for path in sorted(input.rglob("*")):
        facts = path.lstat()
        digest.update(repr((bytes(path.relative_to(input)), facts.st_size, facts.st_mtime_ns)).encode())
    return digest.hexdigest()


def installed(package: str) -> str:
    """The version of an installed package, "" for a checkout that is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def begin(out: Path, new: dict[str, Any]) -> None:
    """Compare with the recipe of this folder; where it differs, clear that stage and all after it, and say so."""
    path, new = out / "build" / "recipe.json", json.loads(json.dumps(new))
    old = json.loads(path.read_text()) if path.exists() else {"stages": {}, "versions": new["versions"]}
    names = list(new["stages"])
    stale = next((i for i, name in enumerate(names) if old["stages"].get(name) != new["stages"][name]), len(names))
    stale = min(stale, next((i for i, name in enumerate(old["stages"]) if name not in names), stale))
    if old["stages"] and stale < len(names):
        print(f"{names[stale]} changed: redoing {', '.join(names[stale:])} and the shards", file=sys.stderr)
        clear(out, names[stale:])
    elif old["versions"] != new["versions"]:
        differ = [
            f"{k} {old['versions'].get(k)} > {v}" for k, v in new["versions"].items() if old["versions"].get(k) != v
        ]
        print(f"continuing a build of other versions ({', '.join(differ)})", file=sys.stderr)
    if old != new:
        write_text(path, json.dumps(new, indent=1) + "\n")


def clear(out: Path, names: list[str]) -> None:
    """Remove the dataset and the working parts of stages, last first, so that a kill leaves no gap."""
    files = [out / "report.json", out / "rejected.parquet"]
    files += [out / "build" / "manifest.json"] if "manifest" in names else []
    for file in files:
        file.unlink(missing_ok=True)
    for folder in [out / "dataset", *(out / "build" / name for name in reversed(names))]:
        if folder.exists():
            shutil.rmtree(folder)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def follow(results: Iterable[Any], total: int, what: str) -> None:
    """Wait for results under a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import track

    for _ in track(results, what, total, console=Console(stderr=True), disable=total == 0):
        pass
