"""The evaluations of LAION-CLAP's paper (arXiv:2211.06687, tables 3 and 4) on every corpus that is at hand.

A corpus is a dataset that build-dataset made, ROOT/<name>/dataset. Splits are the official ones, classes those of all
its splits; corpora of folds are scored on all their clips, and by fold. Long clips are cut the same way every time,
unless `truncation` is "random", the paper's way. OUT gets paper.json, paper.md, paper.png, and embeddings/, by which
another run, or another prompt, costs nothing.
"""

import io
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from clap import bootstrap, metrics
from clap.checkpoint import write_bytes, write_text
from clap.config import PROMPT, TRUNCATIONS, ConfigError
from clap.data import DataError, Dataset, open_split
from clap.encoded import version
from clap.evaluate import answers, captions, embed, embed_labels
from clap.shards import find, read
from clap.systems import System, dataset_rate, digest
from clap.tables import plot, tables

SONG = "This audio is a {} song."  # of LAION-CLAP's README, by which its GTZAN figures were made
SOUNDS = (PROMPT, "This is the sound of {}.", "The sound of {}.", "A recording of {}.", "{} can be heard.", "{}")
SONGS = (SONG, "This is a {} song.", "The sound of {} music.", "A recording of {} music.", "{} music", "{}")
ALL = "--min-sample-rate 0 --min-duration 0 --silent-below=-200 --dedup none"  # every clip of a corpus is scored
SCORES = ("R@1", "R@5", "R@10", "map10")  # of retrieval that get an interval


@dataclass(frozen=True)
class Corpus:
    """One evaluation: what is measured on which split, and how much of it was published (0: not known here)."""

    title: str
    score: str  # retrieval, accuracy or map
    split: str
    clips: int = 0
    classes: int = 0
    folds: int = 0
    songs: bool = False


CORPORA = {
    "audiocaps": Corpus("AudioCaps", "retrieval", "test", 975),
    "clotho": Corpus("Clotho", "retrieval", "test", 1045),  # its "evaluation" part
    "esc50": Corpus("ESC-50", "accuracy", "train", 2000, 50, folds=5),
    "urbansound8k": Corpus("UrbanSound8K", "accuracy", "train", 8732, 10, folds=10),
    "gtzan": Corpus("GTZAN", "accuracy", "all", 1000, 10, songs=True),  # has no official splits
    "vggsound": Corpus("VGGSound", "accuracy", "test", 0, 309),
    "fsd50k": Corpus("FSD50K", "map", "test", 10231, 200),  # its "eval" part
    "audioset": Corpus("AudioSet", "map", "test", 0, 527),  # its "eval" part
}


def measure(
    model: System,
    root: str | Path,
    out: str | Path,
    name: str = "this model",
    prompts: str = "paper",
    truncation: str = "auto",
    seed: int = 0,
    obtain: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Evaluate on what lies in `root`, write paper.json, paper.md and paper.png into `out`, and return the former.

    `prompts` is paper, ensemble or a file with a prompt a line; `seed` that of random crops and of the bootstrap;
    `obtain` says where each corpus comes from. A corpus that cannot be scored is under "skipped", with the reason.
    """
    if truncation not in TRUNCATIONS:
        raise ConfigError(f"truncation is {truncation!r}: use {' or '.join(TRUNCATIONS)}")
    root, out = Path(root), Path(out)
    asked = {corpus: sentences(prompts, corpus) for corpus in CORPORA}
    folders = {corpus: folder for corpus in CORPORA if (folder := locate(root, corpus))}
    if not folders:
        raise DataError(
            f"{root} holds none of the corpora as <name>/dataset: build one, such as {command(root, 'esc50')}"
        )
    keep = Store(out / "embeddings", digest(model), truncation, seed)
    found: dict[str, Any] = {
        "model": name,
        "settings": {"prompts": prompts, "truncation": truncation, "seed": seed, "resamples": bootstrap.RESAMPLES},
        "corpora": {},
        "skipped": {},
        "missing": {
            corpus: {"build": command(root, corpus), "obtain": (obtain or {}).get(corpus, "")}
            for corpus in CORPORA
            if corpus not in folders
        },
    }
    for corpus, folder in progress(folders):
        try:
            found["corpora"][corpus] = score(model, corpus, folder, asked[corpus], keep)
        except DataError as error:
            found["skipped"][corpus] = str(error)
    write(found, out)
    return found


def progress(folders: dict[str, Path]) -> Any:
    """The corpora, one after the other, under a bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(folders.items(), "Corpora", console=console, transient=True, disable=not console.is_terminal)


def locate(root: Path, corpus: str) -> Path | None:
    """The dataset of a corpus below `root`, if it is there."""
    places = (root / corpus / "dataset", root / corpus)
    return next((place for place in places if any(place.glob("data/*.parquet"))), None)


def command(root: Path, corpus: str) -> str:
    """The command that builds a corpus where `locate` finds it."""
    return (
        f"python cli.py build-dataset {corpus} --input {corpus.upper()} --out {shlex.quote(str(root / corpus))} {ALL}"
    )


def sentences(prompts: str, corpus: str) -> tuple[str, ...]:
    """The prompts of a corpus; ConfigError for a file that is not there or holds none."""
    songs = CORPORA[corpus].songs
    if prompts == "paper":
        return (SONG if songs else PROMPT,)
    if prompts == "ensemble":
        return SONGS if songs else SOUNDS
    if not Path(prompts).is_file():
        raise ConfigError(f"prompts are {prompts!r}: use paper, ensemble, or a file with a prompt a line")
    lines = [line.strip() for line in Path(prompts).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines or not all("{}" in line for line in lines):
        raise ConfigError(f"{prompts}: every line is a prompt and needs {{}} where the label goes")
    return tuple(lines)


@dataclass(frozen=True)
class Store:
    """Embeddings kept in a folder under a name of all that they follow from; without a `digest` nothing is kept."""

    folder: Path
    digest: str | None
    truncation: str
    seed: int

    def audio(self, model: System, rows: Dataset, corpus: str) -> np.ndarray:
        """(clips, dim) of the clips of a dataset; random crops are the same whatever other corpora are there."""
        drawn = self.seed if self.truncation == "random" else None
        rng = None if drawn is None else np.random.default_rng(drawn)
        key = f"{version(rows)} {self.truncation} {drawn}"
        return self._kept(f"{corpus}-audio", key, lambda: embed(model, rows, self.truncation, rng))

    def text(self, model: System, texts: Sequence[str], corpus: str) -> np.ndarray:
        """(texts, dim)."""
        return self._kept(f"{corpus}-text", json.dumps(list(texts)), lambda: model.embed_text(texts))

    def _kept(self, name: str, key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        if self.digest is None:
            return make()
        path = self.folder / f"{name}-{sha256(f'{self.digest} {key}'.encode()).hexdigest()[:16]}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            array = io.BytesIO()
            np.save(array, make())
            write_bytes(path, array.getvalue())
        return np.load(path)


def score(model: System, name: str, folder: Path, prompts: tuple[str, ...], keep: Store) -> dict[str, Any]:
    """All figures of one corpus; DataError if its split or folds are not the official ones."""
    corpus = CORPORA[name]
    rows = open_split(str(folder), corpus.split, (), dataset_rate(model))
    folds = rows.rows["fold"].to_numpy()
    if corpus.folds and not set(folds.tolist()) <= set(range(1, corpus.folds + 1)):
        raise DataError(f"{folder} has folds {sorted(set(folds.tolist()))}, the official ones are 1 to {corpus.folds}")
    counts = bootstrap.draws(len(rows), seed=keep.seed)
    head = {"title": corpus.title, "score": corpus.score, "split": corpus.split, "clips": len(rows)}
    if corpus.score == "retrieval":
        return {**head, **retrieve(model, rows, name, keep, counts), "notes": notes(corpus, len(rows), 0, folds)}
    names, relevant = answers(rows, classes(folder))
    if corpus.score == "accuracy" and (relevant.sum(axis=1) > 1).any():
        raise DataError(f"{folder} has clips with several labels, {corpus.title} has one each: build it again")
    similar = keep.audio(model, rows, name) @ embed_labels(model, names, prompts).T
    told = notes(corpus, len(rows), len(names), folds)
    return {**head, "prompts": prompts, **classify(corpus, similar, relevant, names, folds, counts), "notes": told}


def classes(folder: Path) -> list[str]:
    """The labels of all splits of a dataset, sorted: a right answer is one among all of them."""
    import pyarrow.compute as pc

    tables = (read(shard, lambda file: file.read(columns=["labels"])) for shard in find(str(folder), "all"))
    columns = [table["labels"] for table in tables if table.column_names]
    return sorted(set().union(*(pc.unique(pc.list_flatten(each)).to_pylist() for each in columns)))


def retrieve(model: System, rows: Dataset, name: str, keep: Store, counts: np.ndarray) -> dict[str, Any]:
    """Scores of both directions and their intervals."""
    texts, place, owner = captions(rows)
    audio, text = keep.audio(model, rows, name), keep.text(model, texts, name)
    found = metrics.queries(audio, text[place], owner)
    return {
        "captions": len(owner),
        "scores": {way: metrics.means(each) for way, each in found.items()},
        "intervals": {
            way: {key: bootstrap.of_mean(each[key], each["clip"], counts) for key in SCORES}
            for way, each in found.items()
        },
    }


def classify(
    corpus: Corpus, scores: np.ndarray, relevant: np.ndarray, names: list[str], folds: np.ndarray, counts: np.ndarray
) -> dict[str, Any]:
    """Accuracy or mAP with its interval, and accuracy by fold where there are some."""
    whole = metrics.classification(scores, relevant, names, several=corpus.score == "map")
    if corpus.score == "map":
        return {"scores": whole, "intervals": {"map": bootstrap.of_map(scores, relevant, counts)}}
    right = metrics.correct(scores, relevant)
    found = {"scores": whole, "intervals": {"accuracy": bootstrap.of_mean(right, np.arange(len(right)), counts)}}
    if not corpus.folds:
        return found
    by_fold = {int(fold): float(right[folds == fold].mean()) for fold in np.unique(folds)}
    return {**found, "folds": by_fold, "mean_of_folds": float(np.mean(list(by_fold.values())))}


def notes(corpus: Corpus, clips: int, classes: int, folds: np.ndarray) -> list[str]:
    """What is less than was published, so that its figure is not the corpus's."""
    lacking = sorted(set(range(1, corpus.folds + 1)) - set(folds.tolist()))
    found = [f"{clips} of {corpus.clips} clips"] if clips < corpus.clips else []
    found += [f"{classes} of {corpus.classes} classes: an easier task"] if classes < corpus.classes else []
    return found + ([f"without folds {lacking}"] if lacking else [])


def write(found: dict[str, Any], out: Path) -> None:
    """paper.json, paper.md and, if anything was scored, paper.png, each whole."""
    out.mkdir(parents=True, exist_ok=True)
    if found["corpora"]:
        plot(found, out / "paper.png")
    write_text(out / "paper.md", tables(found))
    write_text(out / "paper.json", json.dumps(found, indent=1) + "\n")
