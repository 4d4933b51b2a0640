"""An index of sounds: what is known of each clip, its embedding, and the nearest clips to a text or a sound.

INDEX/index.json            model, source, parts, kind of vectors; written last, so that it tells of what is whole
INDEX/rows/part-*.parquet   what is told of the clips, and their embeddings (parts.py)
INDEX/vectors-0001.npy      the embeddings in one piece, mapped into memory; number 2 after the next change
INDEX/vectors-0001.faiss    of many clips, their inverted file (vectors.py)
INDEX/skipped.csv           clips that do not decode, and why
INDEX/made.json             what it was begun with, so that nothing else is put into it (build.py makes all of these)
"""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clap.config import ConfigError
from clap.data import DataError
from clap.search import parts, vectors
from clap.search.rows import from_shard, locate, media
from clap.systems import THIRD_PARTY, System, digest

if TYPE_CHECKING:
    import pyarrow as pa


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
        self._coded = {name: coded(self.table, name) for name in ("source", "license")}

    @classmethod
    def open(cls, path: str | Path) -> "Index":
        """The index that build_index wrote; DataError if there is none, or it is not whole."""
        config = read_config(Path(path))
        if config is None:
            raise DataError(f"no whole index in {path}: make one with `index SOURCE --model M --out {path}`")
        try:
            return cls(Path(path), config)
        except (OSError, ValueError, RuntimeError) as error:  # of numpy, pyarrow and faiss
            raise DataError(f"the index {path} has lost a part ({error}): run index again") from error

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
        return self.embeddings(slice(None)) if len(self) <= vectors.EXACT else self.vectors

    def mask(self, sources: Sequence[str] = (), licenses: Sequence[str] = ()) -> np.ndarray | None:
        """Rows of these sources and under these licences ("CC-BY" is all its versions); None where all may pass."""
        if not sources and not licenses:
            return None
        wanted = re.compile("|".join(rf"{re.escape(name)}(-\d[\d.]*)?" for name in licenses) or ".*", re.IGNORECASE)
        keep = self.among("license", [name for name in self._coded["license"][1] if wanted.fullmatch(name)])
        return keep & self.among("source", sources) if sources else keep

    def among(self, column: str, names: Collection[str]) -> np.ndarray:
        """(n,) bool: the rows whose `column`, source or license, is one of these."""
        codes, known = self._coded[column]
        return np.array([name in names for name in known], bool)[codes]

    def audio(self, row: int) -> tuple[bytes, str]:
        """The encoded bytes of a clip, from where its source has it, and their media type.

        DataError if they are not there, or not those that were indexed, whose licence is shown here.
        """
        if file := self.file(row):
            return file[0].read_bytes(), file[1]
        sound = from_shard(self.config["root"], self._told(row))
        return sound, media(sound)

    def file(self, row: int) -> tuple[Path, str] | None:
        """A clip's file and its media type where the source is a folder; DataError as of `audio`."""
        told = self._told(row)
        return locate(self.config["root"], told) if self.config["kind"] == "folder" else None

    def _told(self, row: int) -> dict[str, Any]:
        """What is told of a clip."""
        if not 0 <= row < len(self):
            raise DataError(f"no row {row}: the index has {len(self)}, from 0 on")
        told: dict[str, Any] = self.table.slice(row, 1).to_pylist()[0]
        return told

    def embeddings(self, rows: Any) -> np.ndarray:
        """(n, dim) float32 of these rows, of length 1."""
        return vectors.wide(self.vectors[rows])

    def model_name(self, given: str = "") -> str:
        """The model to open: the one `given`, else the one that index.json names.

        ConfigError if that is a function to run: an index may come from somebody else.
        """
        name: str = self.config["model"]
        if not given and THIRD_PARTY.fullmatch(name) and name.partition(":")[0] not in ("msclap", "wav2clip"):
            raise ConfigError(f"{self.path} would run {name}: if that is your model's function, give it by --model")
        return given or name

    def check(self, model: System) -> None:
        """Raise ConfigError if the index was made by another model, whose embeddings mean nothing to this one."""
        if digest(model) != self.config["digest"]:
            raise ConfigError(
                f"{self.path} is an index of the model {self.config['model']} as it was then, and this one has other "
                "weights or settings: give that one by --model; if it was trained on since, index into another --out"
            )


def coded(table: "pa.Table", column: str) -> tuple[np.ndarray, list[str]]:
    """A column as (n,) numbers of names, and the names."""
    whole = table[column].combine_chunks().dictionary_encode()
    return whole.indices.to_numpy(), whole.dictionary.to_pylist()


def find(
    index: Index, model: System, text: str = "", like: str | Path = "", k: int = 10, keep: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """The k nearest clips to a text, or to the sound in the file `like`: each row of the table with its `score`."""
    index.check(model)
    if bool(text.strip()) == bool(like):
        raise DataError("a search wants a text or the path of a sound, one of them")
    query = model.embed_audio([like], truncation=index.config["truncation"]) if like else model.embed_text([text])
    hits = index.search(query, k, keep)[0]
    rows = index.table.take(np.array([hit.row for hit in hits], np.int64)).to_pylist()
    return [{"score": hit.score, "row": hit.row, **row} for hit, row in zip(hits, rows, strict=True)]


def read_config(out: Path) -> dict[str, Any] | None:
    """INDEX/index.json, None where there is none."""
    path = out / "index.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
