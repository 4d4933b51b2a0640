"""What a build depends on, remembered beside it. Where it differs, that stage and those after it are redone."""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from glob import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipelines.clip import read_clips
from pipelines.disk import BuildError, remove, tree, write_text
from pipelines.remote import list_remote
from pipelines.run import Stage, name_of
from pipelines.setting import settings
from pipelines.sources import Reading, Source

PACKAGES = ("clapboard", "numpy", "soundfile", "soxr", "av", "pyarrow", "pandas", "ray", "aiohttp",
            "yt-dlp", "indexed-gzip", "py3langid", "simplemma", "tokenizers", "torch", "transformers")  # fmt: skip

# --keep: the working bytes that go once a build is finished
KEPT = {"all": (), "audio": ("download/part-*.pack",), "none": ("*/part-*.pack",)}


def check(input: Path | str, out: Path, reading: Reading) -> None:
    """Raise BuildError for an input that is not there or is mixed up with the output, or an output not ours."""
    reading.columns()
    if isinstance(input, Path):
        check_path(input, out)
    for folder in (out / "build", out / "dataset"):
        if not (out / "build" / "recipe.json").exists() and folder.exists() and any(folder.glob("[!.]*")):
            raise BuildError(f"{folder} is not of a build that can be continued: remove it, or choose another --out")


def check_path(input: Path, out: Path) -> None:
    """Raise BuildError for an input that is not there or that lies inside the output or around it."""
    if not input.exists():
        raise BuildError(f"input {input} does not exist")
    if not (input.is_file() or input.is_dir()):
        raise BuildError(f"input {input} is neither a file nor a folder")
    if out.resolve().is_relative_to(input.resolve()):
        raise BuildError(f"--out {out} lies inside the input {input}: choose a folder outside it")
    for folder in (out / "build", out / "dataset"):
        if input.resolve().is_relative_to(folder.resolve()):
            raise BuildError(f"the input {input} lies in {folder}, which a build writes: choose another --out")


def describe(
    source: Source, input: Path | str, reading: Reading, stages: Sequence[Stage], part_rows: int, limit: int | None
) -> dict[str, Any]:
    """Everything that the dataset depends on, stage by stage in order."""
    inputs = source.inputs(input, reading)
    start = {
        "source": source.name, "input": " ".join(map(fingerprint, inputs)),
        **settings(reading), "part_rows": part_rows, "limit": limit,
    }  # fmt: skip
    recipe = {
        "stages": {"manifest": start} | {name_of(stage): settings(stage) for stage in stages},
        "versions": {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES},
        "earlier_versions": [],
        "card": source.card,
        "places": [str(each.absolute()) for each in inputs if isinstance(each, Path)],
    }
    return json.loads(json.dumps(recipe))


def fingerprint(input: Path | str) -> str:
    """SHA-256 over a file's bytes, or over the names, sizes and times of what else the input is made of.

    What a server answers under an address is known only when it has answered: there it is that of the address.
    """
    if isinstance(input, Path) and input.is_file() and not volumes(input):
        with input.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    digest = hashlib.sha256()
    for each in contents(input):
        digest.update(repr(each).encode())
    return digest.hexdigest()


def contents(input: Path | str) -> Iterator[tuple[object, ...]]:
    """Name, size and where possible time of each file of a folder, a split archive or a URL."""
    if isinstance(input, str):
        yield from [(input,)] if input.startswith("http") else list_remote(input)
        return
    if input.is_file():
        paths = [*volumes(input), input]
    else:
        paths = [folder / name for folder, folders, files in tree(input) for name in folders + files]
    root = input if input.is_dir() else input.parent
    for path in paths:
        facts = path.stat() if path.exists() else path.lstat()  # a link is what it leads to
        yield bytes(path.relative_to(root)), facts.st_size, facts.st_mtime_ns


def volumes(path: Path) -> list[Path]:
    """The parts of a split archive before its last one."""
    return sorted(path.parent.glob(escape(path.stem) + ".z[0-9][0-9]*")) if path.suffix == ".zip" else []


def installed(package: str) -> str:
    """The version of an installed package, "" for a checkout that is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def read_recipe(build: Path) -> dict[str, Any] | None:
    """The recipe of a build folder, None for a new one."""
    path = build / "recipe.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def stale(build: Path, new: dict[str, Any], retrying: bool = False) -> list[str]:
    """The stages to redo: the first whose settings differ or which lacks parts that a later one has, and on.

    When `retrying`, other limits of download hold for what is fetched again.
    """
    old, names = read_recipe(build), list(new["stages"])
    if old is None:
        return []
    asked = [i for i, name in enumerate(names) if not (retrying and name == "download")]
    differ = [i for i in asked if lasting(old["stages"].get(names[i])) != lasting(new["stages"][names[i]])]
    gone = [i for i, name in enumerate(old["stages"]) if name not in names]
    parts = [{path.name for path in (build / name).glob("part-*.parquet")} for name in names]
    holes = [i for i in range(len(names)) if set().union(*parts[i + 1 :]) - parts[i]]
    first = min([*differ, *gone, *holes, len(names)])
    complete = (build.parent / "dataset" / "README.md").exists()
    for name in ("resample", "download"):  # whose bytes may be gone: what needs them redoes them
        if name in names and (first < len(names) or not complete) and first > names.index(name):
            needed = name == "resample" or first == names.index("resample")
            first = names.index(name) if needed and lacks_bytes(build / name) else first
    return names[first:]


def lasting(settings: dict[str, Any] | None) -> dict[str, Any] | None:
    """Settings as they are compared: a captioner's folder by its name, for its revision says what it holds."""
    model = (settings or {}).get("captioner", "")
    return settings | {"captioner": Path(model).name} if settings and Path(model).is_absolute() else settings


def lacks_bytes(stage: Path) -> bool:
    """Whether a finished part of a stage that packs has lost bytes that its rows point to."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    kind = "raw" if stage.name == "download" else "audio"
    for path in stage.glob("part-*.parquet"):
        pack = path.with_suffix(".pack")
        table = pq.read_table(path, columns=[f"{kind}_offset", f"{kind}_bytes"])
        table = table.filter(pc.greater(table[1], 0))
        end = pc.max(pc.add(table[0], table[1])).as_py() or 0
        if end > (pack.stat().st_size if pack.exists() else 0):
            return True
    return False


def refuse_moved(out: Path, new: dict[str, Any]) -> None:
    """Raise BuildError if the input lies elsewhere than when its rows were located, and one of those names a file."""
    build = out / "build"
    known = zip((read_recipe(build) or {}).get("places", ()), new["places"], strict=False)
    moved = [(was, now) for was, now in known if Path(was).resolve() != Path(now).resolve()]
    parts = sorted((build / "manifest").glob("part-*.parquet")) if moved else []
    if any(clip.location.startswith("file:") for part in parts for clip in read_clips(part)):
        was, now = moved[0]
        raise BuildError(
            f"{out} was built from {was}, not from {now}, and its rows name files there: put the input back "
            "(a link will do), or choose another --out"
        )


def begin(out: Path, new: dict[str, Any], redo: list[str]) -> None:
    """Clear the stages to redo and remember the recipe; says what is redone, or that versions differ."""
    build = out / "build"
    old = read_recipe(build)
    if redo:
        print(f"{redo[0]} changed: redoing {', '.join(redo)} and the shards", file=sys.stderr)
        clear(out, redo)
    if old and "download" not in redo and old["stages"].get("download") != new["stages"].get("download"):
        print("other limits of download hold from now on: repeat them, or all is fetched again", file=sys.stderr)
    if old and redo != list(new["stages"]):  # some parts stay as they were made
        new["earlier_versions"] = old["earlier_versions"]
        new["places"] = old.get("places", [])  # where the rows say that files are; of older builds nobody knows
        if old["versions"] != new["versions"]:
            print("continuing a build that other versions began: see build/recipe.json", file=sys.stderr)
            new["earlier_versions"] = [*old["earlier_versions"], old["versions"]]
    if old != new:
        write_text(build / "recipe.json", json.dumps(new, indent=1) + "\n")


def clear(out: Path, names: list[str]) -> None:
    """Remove the dataset and the working parts of stages, last first, so that a kill leaves no gap."""
    remove(out / "dataset")
    files = [out / "report.json", out / "report.html", out / "rejected.parquet"]
    files += [out / "build" / "manifest.json"] if "manifest" in names else []
    for file in files:
        file.unlink(missing_ok=True)
    for name in reversed(names):
        remove(out / "build" / name)


def unpublish(out: Path, whole: bool) -> None:
    """Take back that a dataset is complete; the `whole` of it where parts are made anew that its shards came from."""
    (out / "dataset" / "README.md").unlink(missing_ok=True)
    if whole:
        clear(out, [])


def tidy(build: Path, keep: str) -> None:
    """Remove the working bytes that need not stay once the shards hold what was kept."""
    for pattern in KEPT[keep]:
        for pack in build.glob(pattern):
            pack.unlink()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
