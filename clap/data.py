"""A dataset as rows: small columns in memory, audio left in the shards, only the window decoded that is wanted."""

import io
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clap.shards import SHARD, DataError, find, first_clips, read, read_group, splits, weighted

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["SHARD", "DataError", "Dataset", "Undecodable", "decode", "fits", "open_split", "read_group", "splits"]

OPENING = 8  # shards that are looked at at once: of remote ones it is the waiting that takes time
SPARE = 10  # clips that may fail to decode, however few there are
FAILING = 0.01  # share of clips that may fail to decode
BLOCK = 2**22  # samples that are decoded at once: 87 s at 48 kHz
LOOKS = 5  # clips of a shard one of which must decode before it is trained on

logger = logging.getLogger(__name__)


class Undecodable(DataError):
    """One clip whose audio does not decode, or is not all there."""


@dataclass
class Tally:
    """Clips that do not decode: each is told once, and too many are an error.

    Too many are more than SPARE and more than 1 % of the clips of a pass, an epoch or the making of a cache; a clip
    counts once, however often it comes. So neither the order in which clips come decides, nor how often they do. A run
    that resumes counts anew. A process that has a share of every epoch may find new ones in each: then it is 1 % of
    all its passes so far.
    """

    clips: int  # of a pass
    looked: int = 0
    told: dict[str, None] = field(default_factory=dict)  # in order

    def add(self, looked: int, failed: Sequence[str]) -> None:
        """Count so many more clips and those among them that failed, each by its message; may raise DataError."""
        for message in failed:
            if message not in self.told:
                self.told[message] = None
                logger.warning("%s. Until then it is left out", message)
        self.looked += looked
        passes = -(-self.looked // self.clips)  # the one that has begun counts whole
        if len(self.told) > max(SPARE, FAILING * passes * self.clips):
            raise DataError(
                f"{len(self.told)} clips do not decode, more than {FAILING:.0%} of {passes * self.clips}; the last: "
                f"{[*self.told][-1]}"
            )


@dataclass(frozen=True)
class Dataset:
    """Rows of a split of one dataset or several: their small columns in memory, their audio left in the shards."""

    name: str
    rows: Any  # pyarrow table of id, captions, generated, labels, fold
    groups: tuple[tuple[Path | str, int], ...]  # (path or URL of a shard, row group): the unit that is read
    group: np.ndarray  # (n,) index into groups, never falling
    offset: np.ndarray  # (n,) row within its row group
    sample_rate: int
    weights: tuple[tuple[int, Fraction], ...]  # of every dataset in turn: its rows, how often each comes in an epoch

    def __len__(self) -> int:
        return len(self.group)

    def captions(self, row: int, texts: str = "captions") -> list[str]:
        """Sentences of a row: `captions`, `generated` (captions where there are none) or `both`.

        As LAION-CLAP's none, augment_only and all.
        """
        own, made = self.rows["captions"][row].as_py(), self.rows["generated"][row].as_py() or []
        return own + made if texts == "both" else made or own if texts == "generated" else own

    def all_captions(self, texts: str = "captions") -> Iterator[str]:
        """Every sentence, row after row."""
        return chain.from_iterable(self.captions(row, texts) for row in range(len(self)))

    def members(self) -> list[np.ndarray]:
        """The rows of every row group that has any, in order."""
        return np.split(np.arange(len(self)), np.flatnonzero(np.diff(self.group)) + 1)

    def where(self, row: int) -> str:
        """Shard, row and id, for messages."""
        shard, group = self.groups[self.group[row]]
        return place(shard, group, self.offset[row], self.rows["id"][row])

    def fingerprint(self) -> str:
        """Hash of ids, captions, weights and the layout in row groups, which order batches; not of the audio."""
        hashed = sha256(self.group.tobytes() + self.offset.tobytes() + repr(self.weights).encode())
        for batch in self.rows.select(["id", "captions", "generated"]).to_batches(max_chunksize=10_000):
            hashed.update(repr(batch.to_pylist()).encode())
        return hashed.hexdigest()[:16]


def open_split(
    names: str | Sequence[str], split: str, folds: Sequence[int], sample_rate: int, every: bool = True
) -> Dataset:
    """The rows of `split` ("all": every one) and `folds` (empty: all) of one dataset or several, in order.

    A name is a folder that holds data/*.parquet, a Hub id or a URL of storage, whose rows come once in an epoch of
    training, or with :NUMBER behind it that often. Raises DataError for what training would trip over later: no such
    split, a missing shard or column, a clip without caption, an empty one, another sample rate; and if a dataset (if
    not `every`: all of them) would have no clip.
    """
    import pyarrow as pa

    named = [weighted(name) for name in ([names] if isinstance(names, str) else names)]
    shards = [find(name, split) for name, _ in named]
    with ThreadPoolExecutor(OPENING) as threads:
        looked = threads.map(lambda shard: _look(shard, folds, sample_rate), chain.from_iterable(shards))
        parts = [[next(looked) for _ in each] for each in shards]
    sizes = [sum(len(part.table) for part in each) for each in parts]
    if not (all if every else any)(sizes):
        without = ", ".join(name for (name, _), size in zip(named, sizes, strict=True) if not size)
        why = f" is of folds {list(folds)}: check the folds" if folds else ": choose another split"
        raise DataError(f"no clip in split {split!r} of {without}{why}, or leave it out")
    groups: list[tuple[Path | str, int]] = []
    group: list[np.ndarray] = []
    for part in chain.from_iterable(parts):
        group.append(part.group + len(groups))
        groups += [(part.shard, index) for index in range(part.groups)]
    return Dataset(
        ", ".join(name for name, _ in named),
        pa.concat_tables([part.table for part in chain.from_iterable(parts)]).combine_chunks(),
        tuple(groups),
        np.concatenate(group),
        np.concatenate([part.offset for part in chain.from_iterable(parts)]),
        sample_rate,
        tuple((size, weight) for size, (_, weight) in zip(sizes, named, strict=True)),
    )


@dataclass(frozen=True)
class Part:
    """The wanted rows of one shard."""

    shard: Path | str
    groups: int  # row groups of the shard
    table: Any  # small columns
    group: np.ndarray  # (n,) row group
    offset: np.ndarray  # (n,) row within it


def _look(shard: Path | str, folds: Sequence[int], sample_rate: int) -> Part:
    """The rows of a shard that are of `folds`, checked, one of the first clips by decoding it."""
    import pyarrow as pa

    table, sizes = _read_rows(shard)
    keep = np.isin(table["fold"].to_numpy(), folds) if folds else np.ones(len(table), bool)
    group = np.repeat(np.arange(len(sizes)), sizes)[keep]
    offset = np.concatenate([np.arange(size) for size in sizes] or [np.empty(0, int)])[keep]
    part = Part(shard, len(sizes), table.filter(pa.array(keep)), group, offset)
    trouble: Undecodable | None = None
    for at in range(np.count_nonzero(group[:LOOKS] == group[:1])):
        flac = first_clips(shard, group[at], offset[at] + 1)[-1]
        try:
            decode(flac, sample_rate, 1, place(shard, group[at], offset[at], part.table["id"][at]))
            return part
        except Undecodable as error:
            trouble = trouble or error
    if trouble:
        raise trouble
    return part


def place(shard: Path | str, group: int, offset: int, id: object) -> str:
    """Where a clip is, for messages."""
    return printable(f"{shard}, row {offset} of row group {group} ({id})")


def printable(text: str) -> str:
    """The text with control characters escaped: a name from outside must not steer the terminal it is shown on."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _read_rows(shard: Path | str) -> tuple["pa.Table", list[int]]:
    """The small columns of a shard and the sizes of its row groups, checked."""
    import pyarrow as pa

    def work(file: "pq.ParquetFile") -> tuple["pa.Table", list[int]]:
        check_schema(shard, file.schema_arrow)
        sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
        return file.read(columns=[name for name in _small() if name in file.schema_arrow.names]), sizes

    table, sizes = read(shard, work)
    for name, kind in _small().items():
        if name not in table.column_names:
            empty: Any = 0 if kind == pa.int32() else []
            table = table.append_column(name, pa.array([empty] * len(table), kind))
    table = table.select(list(_small())).cast(pa.schema(_small()))
    check_texts(shard, table)
    return table, sizes


def check_texts(shard: Path | str, table: "pa.Table") -> None:
    """Raise DataError for a row without caption, or with one, or a generated one, that is null or blank."""
    import pyarrow.compute as pc

    bare = pc.index(pc.equal(pc.fill_null(pc.list_value_length(table["captions"]), 0), 0), True).as_py()
    if bare >= 0:
        clip = printable(f"{shard}, row {bare} ({table['id'][bare]})")
        raise DataError(f"{clip} has no caption: leave such clips out of the dataset")
    for name in ("captions", "generated"):
        column = table[name].combine_chunks()
        blank = pc.equal(pc.fill_null(pc.utf8_trim_whitespace(pc.list_flatten(column)), ""), "")
        if (first := pc.index(blank, True).as_py()) >= 0:
            row = pc.list_parent_indices(column)[first].as_py()
            clip = printable(f"{shard}, row {row} ({table['id'][row]})")
            raise DataError(f"{clip} has an empty text in {name}: leave it out of the dataset")


def check_schema(shard: Path | str, schema: "pa.Schema") -> None:
    """Raise DataError unless a shard has the columns of a published dataset that are read here."""
    import pyarrow as pa

    audio = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    missing = {"id", "audio", "captions"} - set(schema.names)
    wrong = [name for name, kind in {**_small(), "audio": audio}.items() if not fits(schema, name, kind)]
    if missing or wrong:
        lacks = ", ".join(sorted(missing)) or f"{', '.join(wrong)} of the published type"
        raise DataError(f"{shard} lacks {lacks}: build it with build-dataset")


def fits(schema: "pa.Schema", name: str, kind: "pa.DataType") -> bool:
    """Whether a column is absent or as it is published (integers, texts and lists of text by any width)."""
    import pyarrow as pa

    if name not in schema.names:
        return True
    here = schema.field(name).type
    if pa.types.is_large_list(kind):
        return pa.types.is_list(here) or pa.types.is_large_list(here)
    if pa.types.is_large_string(kind):
        return here in (pa.string(), pa.string_view(), kind)
    return pa.types.is_integer(here) if kind == pa.int32() else here == kind


def _small() -> dict[str, "pa.DataType"]:
    """The columns kept in memory; offsets of 32 bits would end at 2 GiB of text, the captions of some 44 M rows."""
    import pyarrow as pa

    text = pa.large_list(pa.large_string())
    return {"id": pa.large_string(), "captions": text, "generated": text, "labels": text, "fold": pa.int32()}


def decode(
    flac: Any, sample_rate: int, n_samples: int, where: str, rng: np.random.Generator | None = None
) -> np.ndarray:
    """At most n_samples (0: all) of a mono clip, int16: a window at random with `rng`, else from its centre.

    Only the window is decoded: seeking in a FLAC without a seek table costs less than 1 ms, 1 s of audio 0.5 ms. A
    shorter clip comes as long as it is. Raises Undecodable, and DataError for another rate.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(flac or b"")) as file:
            if (file.samplerate, file.channels) != (sample_rate, 1):
                raise DataError(
                    f"{where}: {file.samplerate} Hz, {file.channels} channels, the model expects "
                    f"{sample_rate} Hz mono: "
                    + (f"train with --sample-rate {file.samplerate}, or " if file.channels == 1 else "")
                    + "build the dataset again"
                )
            wanted = min(n_samples or file.frames, file.frames)
            spare = file.frames - wanted
            file.seek(int(rng.integers(spare + 1)) if rng else spare // 2)
            waveform = _read_samples(file, wanted)
    except soundfile.LibsndfileError as error:
        why = error.error_string  # the whole message has the address of the buffer, and so is never the same twice
        raise Undecodable(f"{where}: audio does not decode ({why}): build the dataset again") from error
    if not len(waveform) or len(waveform) < wanted:
        raise Undecodable(f"{where}: audio ends early or is empty: build the dataset again")
    return waveform


def _read_samples(file: Any, n: int) -> np.ndarray:
    """The next n samples, int16, fewer where the audio ends; in blocks, for a header may claim more than there is."""
    blocks = [file.read(min(n, BLOCK), dtype="int16")]
    while len(blocks[-1]) == BLOCK and (rest := n - BLOCK * len(blocks)):
        blocks.append(file.read(min(rest, BLOCK), dtype="int16"))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
