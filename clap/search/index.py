"""An index of sounds: what is known of each clip, its embedding, and the nearest clips to a text or a sound.

INDEX/index.json            model, source, parts, kind of vectors; written last, so that it tells of what is whole
INDEX/rows/part-*.parquet   what is told of the clips, and their embeddings (parts.py)
INDEX/vectors-0001.npy      the embeddings in one piece, mapped into memory; number 2 after the next change
INDEX/vectors-0001.faiss    of many clips, their inverted file (vectors.py)
INDEX/skipped.csv           clips that do not decode, and why
"""

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clap import checkpoint
from clap.config import ConfigError
from clap.data import DataError
from clap.search import parts, vectors
from clap.search.rows import Clips, bar, chunks, embed_some, read_sound, scan, some
from clap.systems import System, dataset_rate, digest

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 128  # clips handed to the model at once
QUESTIONS = 256  # clips, and captions, by which an inverted file is tried


@dataclass(frozen=True)
class Hit:
    """A clip that was found: the cosine of its embedding and the query's, and its row in the index's table."""

    id: str
    score: float
    row: int


class Index:
    """An index opened to read: `table` (rows.schema) in memory, embeddings on disk in the same order."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        folder, number = path / "rows", config["number"]
        self.path, self.config = path, config
        self.table: pa.Table = parts.read_rows([folder / name for name in config["parts"]])
        self.vectors: np.ndarray = np.load(path / f"vectors-{number:04d}.npy", mmap_mode="r")  # (n, dim) float16
        exact = config["vectors"] == "exact"
        self.ivf = None if exact else vectors.open_ivf(path / f"vectors-{number:04d}.faiss")

    @classmethod
    def open(cls, path: str | Path) -> "Index":
        """The index that build_index wrote; DataError if there is none, or it is not whole."""
        config = read_config(Path(path))
        if config is None:
            raise DataError(f"no whole index in {path}: make one with `index SOURCE --model M --out {path}`")
        return cls(Path(path), config)

    def __len__(self) -> int:
        return len(self.table)

    def search(self, query: np.ndarray, k: int = 10, keep: np.ndarray | None = None) -> list[list[Hit]]:
        """The k nearest clips to each of (q, dim) queries, best first, among the rows that the mask `keep` lets pass.

        Without an inverted file, or if `keep` lets at most vectors.FEW rows pass, every row is looked at and these are
        the true ones. Else they are the best of the cells nearest to the query: config["ivf"] tells what share of the
        true ten that finds. If these cells hold fewer than k, every row is looked at after all.
        """
        queries = np.atleast_2d(np.asarray(query, np.float32))
        if queries.shape[1] != self.config["dim"] or k < 1:
            raise DataError(f"{k} clips for queries {queries.shape}: give (q, {self.config['dim']}), and 1 or more")
        rows = None if keep is None else np.flatnonzero(keep)
        if self.ivf is None or (rows is not None and len(rows) <= vectors.FEW):
            found = vectors.top(self._ready, queries, k, rows)
        else:
            found = vectors.search_ivf(self.ivf, self.vectors, queries, k, self.config["ivf"]["nprobe"], keep)
            if (found[1][:, -1] < 0).any():
                found = vectors.top(self.vectors, queries, k, rows)
        return [[self._hit(*pair) for pair in zip(*each, strict=True)] for each in zip(*found, strict=True)]

    def _hit(self, score: float, row: int) -> Hit:
        return Hit(self.table["id"][int(row)].as_py(), float(score), int(row))

    @cached_property
    def _ready(self) -> np.ndarray:
        """The embeddings as they are compared: of few rows, widened once for all searches."""
        return np.asarray(self.vectors, np.float32) if len(self) <= vectors.EXACT else self.vectors

    def mask(self, sources: Sequence[str] = (), licenses: Sequence[str] = ()) -> np.ndarray | None:
        """Rows of these sources and under these licences ("CC-BY" is all its versions); None where all may pass."""
        if not sources and not licenses:
            return None
        wanted = re.compile("|".join(rf"{re.escape(name)}(-\d[\d.]*)?" for name in licenses) or ".*", re.IGNORECASE)
        passes = {name: bool(wanted.fullmatch(name)) for name in self.table["license"].unique().to_pylist()}
        keep = np.array([passes[name] for name in self.table["license"].to_pylist()], bool)
        if sources:
            keep &= np.isin(self.table["source"].to_pylist(), list(sources))
        return keep

    def audio(self, row: int) -> tuple[bytes, str]:
        """The encoded bytes of a clip, from where its source has it, and their media type."""
        if not 0 <= row < len(self):
            raise DataError(f"no row {row}: the index has {len(self)}, from 0 on")
        return read_sound(self.config["kind"], self.config["root"], self.table["place"][row].as_py())

    def embeddings(self, rows: Any) -> np.ndarray:
        """(n, dim) float32 of these rows."""
        return np.asarray(self.vectors[rows], np.float32)

    def check(self, model: System) -> None:
        """Raise ConfigError if the index was made by another model, whose embeddings mean nothing to this one."""
        if digest(model) != self.config["digest"]:
            raise ConfigError(f"{self.path} is an index of the model {self.config['model']}: search it with that one")


def find(
    index: Index, model: System, text: str = "", like: str | Path = "", k: int = 10, keep: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """The k nearest clips to a text, or to the sound in the file `like`: each row of the table with its `score`."""
    index.check(model)
    if bool(text.strip()) == bool(like):
        raise DataError("a search wants a text or the path of a sound, one of them")
    query = model.embed_audio([like], truncation=index.config["truncation"]) if like else model.embed_text([text])
    hits = index.search(query, k, keep)[0]
    rows = index.table.take([hit.row for hit in hits]).to_pylist()
    return [{"score": hit.score, "row": hit.row, **row} for hit, row in zip(hits, rows, strict=True)]


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
    inverted file is made. Raises ConfigError for an index of another model or truncation.
    """
    out = Path(out)
    with checkpoint.lock(out) as mine:
        if not mine:
            raise DataError(f"another process is at work in {out}: wait for it, or stop it first")
        dim = len(model.embed_text(["a sound"])[0])
        made = {"digest": named(model), "dim": dim, "truncation": truncation}
        old = same(out, made)
        clips = scan(source, split, dataset_rate(model))
        plan = parts.plan(out / "rows", clips.rows)
        new, broken = embed_rest(model, clips, plan, out / "rows", made)
        whole = [*plan.intact, *new]
        if not whole:
            raise DataError(f"not one clip of {source} decodes: {next(iter(broken.values()))}")
        write_skipped(out / "skipped.csv", clips, broken)
        about: dict[str, Any] = made | {"model": resolved(name), "kind": clips.kind, "root": clips.root, "split": split}
        names = [path.name for path in whole]
        if old and old["parts"] == names:
            about = old | about
        else:
            number = 1 + (old["number"] if old else 0)
            kind = gather(model, clips, whole, out / f"vectors-{number:04d}.npy", exact)
            about |= {"number": number, "parts": names, **kind}
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
    if before != made:
        odd = ", ".join(key for key in made if made[key] != before.get(key))
        raise ConfigError(
            f"{out} was begun with another model or truncation ({odd}): choose another --out or remove it"
        )
    checkpoint.write_text(path, json.dumps(made, indent=1) + "\n")
    return read_config(out)


def read_config(out: Path) -> dict[str, Any] | None:
    """INDEX/index.json, None where there is none."""
    path = out / "index.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


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
            for at in chunks(np.flatnonzero(~known), BATCH):
                embeddings, faults = embed_some(model, some(clips.sounds, rows[at]), made["truncation"])
                if len(embeddings):
                    found[np.delete(at, list(faults))] = embeddings
                broken |= {int(rows[at[clip]]): why for clip, why in faults.items()}
                count(len(at))
            whole = np.isfinite(found).all(axis=1)
            if whole.any():
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
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(len(found), min(QUESTIONS, len(found)), replace=False))
    queries = {"clips": found[rows].astype(np.float32)}
    some_rows = rng.permutation(len(clips.rows))[: 4 * QUESTIONS]
    if texts := [texts[0] for texts in clips.rows["captions"].take(some_rows).to_pylist() if texts]:
        queries["captions"] = model.embed_text(texts[:QUESTIONS])
    with parts.atomic(path.with_suffix(".faiss")) as temporary:
        ivf = vectors.build_ivf(found, temporary, queries)
    return {"n": len(found), "vectors": "ivf", "ivf": ivf}


def sweep(out: Path, about: dict[str, Any]) -> None:
    """Remove parts and vectors of an earlier state, and what a killed run left half-written."""
    vectors_now = {f"vectors-{about['number']:04d}{suffix}" for suffix in (".npy", ".faiss")}
    for path in [*out.glob("vectors-*"), *out.glob("rows/part-*"), *out.rglob(".*.tmp")]:
        if path.name not in vectors_now and path.name not in about["parts"]:
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
