"""Caption a finished build anew: only the rows, the shards and what is told of them are made again, never audio.

Killed at any moment, the same call continues; the dataset is the one that a build with these settings gives.
"""

import platform
from copy import deepcopy
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.build import SMALL, finished, tell, write_shards
from pipelines.caption import Caption
from pipelines.disk import BuildError, lock
from pipelines.engine import Step, engine
from pipelines.manifest import planned
from pipelines.progress import Progress
from pipelines.recipe import PACKAGES, begin, cores, installed, read_recipe, stale, unpublish
from pipelines.run import blame_part, name_of, part_path, run_part
from pipelines.setting import settings
from pipelines.sources import SOURCES, source


def recaption(out: Path, stage: Any, workers: int | None = None, ray_address: str | None = None) -> dict[str, Any]:
    """Take every clip of the build in `out` through `stage` (a Caption) and publish them again; returns the report.

    Raises BuildError where there is no such build, or where it lacks what the earlier stages wrote.
    """
    out, name = out.absolute(), name_of(stage)
    build = out / "build"
    old = recipe_of(out)
    told = card_of(old)
    with lock(build):
        stage = stage.pinned(old["stages"][name])
        recipe = renewed(old, stage)
        redo = stale(build, recipe)
        parts, before = planned(build), list(recipe["stages"])[-2]
        if parts is None or not set(redo) <= {name} or not passed(build, before, parts):
            raise BuildError(f"{out} lacks parts or audio of earlier stages (unfinished, or --keep none): run "
                             "build-dataset with the captioner's flags instead")  # fmt: skip
        if redo:  # what is finished goes only when the model is there
            stage.ready(whole=True)
        begin(out, recipe, redo)
        if report := finished(out, name, parts):
            return report
        return complete(out, recipe, told, before, stage, parts, workers, ray_address)


def settled(out: Path) -> Caption:
    """The stage as a build has it, of which the settings asked for are changed; its captioner is pinned anew."""
    held = recipe_of(out)["stages"]["caption"]
    known = {each.name for each in fields(Caption)} - {"captioner_revision"}
    return Caption(**{name: value for name, value in held.items() if name in known})


def recipe_of(out: Path) -> dict[str, Any]:
    """The recipe of the build in `out`; raises BuildError where there is none whose last stage captions."""
    recipe = read_recipe(out / "build")
    if recipe is None or list(recipe["stages"])[-1] != "caption":
        raise BuildError(f"no build in {out}: is it the folder given as --out?")
    return recipe


def card_of(recipe: dict[str, Any]) -> dict[str, Any]:
    """The datacard of a build's source, as the build remembers it; raises BuildError where nobody knows it."""
    name = recipe["stages"]["manifest"]["source"]
    if "card" not in recipe and name not in SOURCES:
        raise BuildError(f"the build's recipe has no card of its source {name!r}: run it again with build-dataset")
    return dict(recipe["card"] if "card" in recipe else source(name).card)


def renewed(old: dict[str, Any], stage: Any) -> dict[str, Any]:
    """The recipe of a build with this stage's settings, and with the versions that run now."""
    new = deepcopy(old)
    new["stages"][name_of(stage)] = settings(stage)
    new["versions"] = {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES}
    return new


def passed(build: Path, stage: str, parts: int) -> bool:
    """Whether all parts have passed a stage."""
    return all(part_path(build, stage, part).exists() for part in range(parts))


def complete(
    out: Path, recipe: dict[str, Any], told: dict[str, Any], before: str, stage: Any, parts: int, workers: int | None,
    address: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Do what is left to do: parts, shards, and what is told of them, the card last."""
    build, name, audio = out / "build", name_of(stage), "resample" in recipe["stages"]
    todo = [part for part in range(parts) if not part_path(build, name, part).exists()]
    unpublish(out, whole=bool(todo))
    if workers is None:
        workers = 0 if len(todo) <= SMALL or address else cores()
    task = partial(run_part, build, before, [stage])
    with engine(workers, address) as run, Progress(build) as progress:
        step = Step(task, pooled=stage.pooled, died=partial(blame_part, build, [stage]))
        progress.follow({name: len(todo) / parts}, run([step], todo))
        write_shards(build, out / "dataset", name, parts, audio, run, progress)
    return tell(out, name, parts, recipe["stages"]["manifest"]["source"], told, audio)
