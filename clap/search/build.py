"""Make an index (index.py), or bring one up to what its source holds now, embedding only what is new."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from clap import checkpoint
from clap.config import TRUNCATIONS, ConfigError
from clap.data import DataError
from clap.embed import embed_some, some
from clap.search import parts, vectors
from clap.search.index import read_config
from clap.search.rows import Clips, bar, chunks, scan
from clap.search.trial import texts
from clap.systems import System, dataset_rate, digest

BATCH = 128  # clips handed to the model at once
OURS = {  # what sweep may remove, in INDEX and in INDEX/rows
    "": re.compile(r"vectors-\d{4,}\.(npy|faiss)|\.vectors-\d{4,}\.(npy|faiss)\.tmp"),
    "rows": re.compile(r"part-\d{5,}\.parquet|\.part-\d{5,}\.parquet\.tmp"),
}


def build_index(
    model: System,
    source: str | Path,
    out: str | Path,
    *,
    truncation: str = "auto",
    split: str = "all",
    name: str = "",
    exact: int = vectors.EXACT,
) -> dict[str, Any]:
    """Index a dataset (a folder or Hub id) or a folder of sounds into `out`; returns what was done.

    Run again, only what is new or changed is embedded and what is gone is dropped; a killed run loses at most one
    part. Clips that do not decode are left out (skipped.csv). `name` is what --model was; above `exact` rows an
    inverted file is made. Raises ConfigError for an index of another model, source, split or truncation.
    """
    out = Path(out)
    if truncation not in TRUNCATIONS or truncation == "random":  # what is made anew would not be as it was
        known = ", ".join(each for each in TRUNCATIONS if each != "random")
        raise ConfigError(f"truncation is {truncation!r}: an index takes {known}")
    with checkpoint.lock(out) as mine:
        if not mine:
            raise DataError(f"another process is at work in {out}: wait for it, or stop it first")
        dim = len(model.embed_text(["a sound"])[0])
        clips = scan(source, split, dataset_rate(model))
        made = {"digest": named(model), "dim": dim, "truncation": truncation, "kind": clips.kind,
                "source": source_name(clips.root), "split": split}  # fmt: skip
        old = same(out, made)
        plan = parts.plan(out / "rows", clips.rows)
        new, broken = embed_rest(model, clips, plan, out / "rows", made)
        whole = [*plan.intact, *new]
        if not whole:
            raise DataError(f"not one clip of {source} decodes: {next(iter(broken.values()))}")
        write_skipped(out / "skipped.csv", clips, broken)
        about: dict[str, Any] = made | {"model": resolved(name), "root": clips.root}
        if old and holds(out, old, whole):
            about = old | about
        else:
            number = 1 + (old["number"] if old else 0)
            kind = gather(model, clips, whole, out / f"vectors-{number:04d}.npy", exact)
            about |= {"number": number, "parts": [path.name for path in whole], **kind}
        checkpoint.write_text(out / "index.json", json.dumps(about, indent=1) + "\n")
        sweep(out, about)
    embedded = len(plan.todo) - len(plan.known) - len(broken)
    return {"rows": about["n"], "embedded": embedded, "skipped": len(broken), "vectors": about["vectors"],
            **about.get("ivf", {})}  # fmt: skip


def same(out: Path, made: dict[str, Any]) -> dict[str, Any] | None:
    """What is known of the index in `out`, if there is one; ConfigError if it was begun in another way.

    INDEX/made.json says how from the first part on.
    """
    path = out / "made.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else made
    if odd := [key for key in made if made[key] != before.get(key)]:
        was = ", ".join(f"{key} {before.get(key)!s:.40}, now {made[key]!s:.40}" for key in odd)
        raise ConfigError(
            f"{out} was begun with another model, source, split or truncation ({was}): choose another --out, or remove "
            f"it. A source that only has another name now may have it in {path}"
        )
    return read_config(out)


def source_name(root: str) -> str:
    """What a source is known by wherever it is moved: of OUT/dataset it is OUT's name."""
    return next((name for name in reversed(root.split("/")) if name not in ("", "dataset")), root)


def holds(out: Path, old: dict[str, Any], whole: list[Path]) -> bool:
    """Whether the vectors of an earlier state are there, and those of just these parts."""
    files = [out / f"vectors-{old['number']:04d}{suffix}" for suffix in (".npy", ".faiss")[: 1 + ("ivf" in old)]]
    same_parts = old["parts"] == [path.name for path in whole] and old["n"] == parts.count(whole)
    return same_parts and all(file.exists() for file in files)


def named(model: System) -> str:
    """What a model's weights are known by; ConfigError for a foreign one that does not say."""
    if not (known := digest(model)):
        raise ConfigError(f"{model!r} has no digest, by which an index knows it: see clap/systems.py")
    return known


def resolved(name: str) -> str:
    """A model's name that holds from any folder: a path that is there as an absolute one."""
    return str(Path(name).resolve()) if name and Path(name).exists() else name


def embed_rest(
    model: System, clips: Clips, plan: parts.Plan, folder: Path, made: dict[str, Any]
) -> tuple[list[Path], dict[int, str]]:
    """Write parts of the rows that are left to do, embedding those not known; returns the paths, and {row: why}."""
    written: list[Path] = []
    broken: dict[int, str] = {}
    paths = parts.next_part(folder)
    with bar("clips embedded", len(plan.todo)) as count:
        for rows in chunks(plan.todo, parts.PART):
            found = np.full((len(rows), made["dim"]), np.nan, np.float32)
            known = np.array([row in plan.known for row in rows.tolist()])
            found[known] = recall(plan, rows[known], made["dim"])
            count(int(known.sum()))
            for at in chunks(np.flatnonzero(~known), BATCH):
                embeddings, faults = embed_some(model, some(clips.sounds, rows[at]), made["truncation"])
                if len(embeddings):
                    found[np.delete(at, list(faults))] = embeddings
                broken |= {int(rows[at[clip]]): why for clip, why in faults.items()}
                count(len(at))
            whole = np.isfinite(found).all(axis=1)
            if whole.any():
                if not written:
                    checkpoint.write_text(folder.parent / "made.json", json.dumps(made, indent=1) + "\n")
                written.append(next(paths))
                parts.write_part(written[-1], clips.rows.take(rows[whole]), found[whole])
    return written, broken


def recall(plan: parts.Plan, rows: np.ndarray, dim: int) -> np.ndarray:
    """(n, dim) of rows whose embeddings older parts hold."""
    found = np.empty((len(rows), dim), np.float32)
    places = [plan.known[row] for row in rows.tolist()]
    for part in dict.fromkeys(part for part, _ in places):
        at = [i for i, (path, _) in enumerate(places) if path == part]
        found[at] = parts.read_embeddings(part)[[places[i][1] for i in at]]
    return found


def gather(model: System, clips: Clips, whole: list[Path], path: Path, exact: int) -> dict[str, Any]:
    """Write the vectors of these parts, with an inverted file if they are many; returns what there is to know."""
    found = parts.gather(whole, path)
    if len(found) <= exact:
        return {"n": len(found), "vectors": "exact"}
    queries = {"texts": np.asarray(model.embed_text(texts(clips.rows, np.random.default_rng(0))), np.float32)}
    with checkpoint.atomic(path.with_suffix(".faiss")) as temporary:
        ivf = vectors.build_ivf(found, temporary, queries)
    return {"n": len(found), "vectors": "ivf", "ivf": ivf}


def sweep(out: Path, about: dict[str, Any]) -> None:
    """Remove parts and vectors of an earlier state, and what a killed run left half-written."""
    kept = {f"vectors-{about['number']:04d}{suffix}" for suffix in (".npy", ".faiss")} | {*about["parts"]}
    for folder, ours in OURS.items():
        for path in (out / folder).iterdir():
            if ours.fullmatch(path.name) and path.name not in kept:
                path.unlink()


def write_skipped(path: Path, clips: Clips, broken: dict[int, str]) -> None:
    """The clips that do not decode, and why."""
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(["id", "why"])
    writer.writerows(
        [clips.rows["id"][row].as_py(), why.encode("utf-8", "replace").decode()] for row, why in broken.items()
    )
    checkpoint.write_text(path, lines.getvalue())
