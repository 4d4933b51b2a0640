"""A dataset on disk as rows: small columns in memory, audio read in place, only the window that is wanted."""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clap.config import ClapError
from clap.fill import fill
from clap.text import HUB_ID

if TYPE_CHECKING:
    import pyarrow as pa

SHARD = re.compile(r"(?P<split>.+)-(?P<index>\d{5})-of-(?P<total>\d{5})\.parquet")


class DataError(ClapError):
    """A dataset that cannot be trained or evaluated on; the message says what, where and what to do."""


@dataclass(frozen=True)
class Dataset:
    """Rows of a split: their small columns in memory, their audio left in the shards."""

    name: str
    rows: Any  # pyarrow table of id, captions, generated, labels, fold
    groups: tuple[tuple[Path, int], ...]  # (shard, row group): the unit that is read
    group: np.ndarray  # (n,) index into groups, never falling
    offset: np.ndarray  # (n,) row within its row group
    sample_rate: int

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
        return f"{shard}, row {self.offset[row]} of row group {group} ({self.rows['id'][row]})"

    def fingerprint(self) -> str:
        """Hash of ids, captions and their layout in row groups, which orders batches; not of the audio."""
        hashed = sha256(self.group.tobytes() + self.offset.tobytes())
        for batch in self.rows.select(["id", "captions", "generated"]).to_batches(max_chunksize=10_000):
            hashed.update(repr(batch.to_pylist()).encode())
        return hashed.hexdigest()[:16]


def open_split(names: str | Sequence[str], split: str, folds: Sequence[int], sample_rate: int) -> Dataset:
    """The rows of `split` ("all": every one) and `folds` (empty: all) of one dataset or several, in order.

    A name is a folder that holds data/*.parquet or a Hub id. Raises DataError for what training would trip
    over later: no such split, a missing shard or column, a clip without caption, another sample rate.
    """
    import pyarrow as pa

    names = [names] if isinstance(names, str) else list(names)
    tables: list[pa.Table] = []
    groups: list[tuple[Path, int]] = []
    group: list[np.ndarray] = []
    offset: list[np.ndarray] = []
    for shard in chain.from_iterable(_shards(_folder(name), split) for name in names):
        table, sizes = _read_rows(shard, sample_rate)
        keep = np.isin(table["fold"].to_numpy(), folds) if folds else np.ones(len(table), bool)
        tables.append(table.filter(pa.array(keep)))
        group.append(np.repeat(np.arange(len(sizes)) + len(groups), sizes)[keep])
        offset.append(np.concatenate([np.arange(size) for size in sizes] or [np.empty(0, int)])[keep])
        groups += [(shard, index) for index in range(len(sizes))]
    found = Dataset(
        ", ".join(names),
        pa.concat_tables(tables).combine_chunks(),
        tuple(groups),
        np.concatenate(group),
        np.concatenate(offset),
        sample_rate,
    )
    if not len(found):
        raise DataError(f"no clip of split {split!r} in {found.name} is of folds {list(folds)}: check --folds")
    shards = [groups[index][0] for index in found.group]
    for row in range(len(found)):
        if row == 0 or shards[row] != shards[row - 1]:  # the first clip of every shard
            decode(read_group(*groups[found.group[row]])[found.offset[row]], sample_rate, 1, found.where(row))
    return found


def splits(name: str) -> set[str]:
    """Names of the splits of a dataset."""
    return {match["split"] for match in map(SHARD.fullmatch, _parquets(_folder(name))) if match}


def _folder(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    if not HUB_ID.fullmatch(name):
        raise DataError(f"no dataset at {name}: give the folder that build-dataset made (OUT/dataset) or a Hub id")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=["data/*.parquet", "README.md"]))
    except (OSError, ValueError) as error:
        raise DataError(f"{name} is no folder here, and the Hugging Face Hub did not give it: {error}") from error


def _parquets(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "data").glob("*.parquet"))


def _shards(folder: Path, split: str) -> list[Path]:
    """Shards of a split in order; all of them must be there, for their names say how many there are."""
    matches = [match for match in map(SHARD.fullmatch, _parquets(folder)) if match]
    wanted = [match for match in matches if split in ("all", match["split"])]
    if not wanted:
        known = ", ".join(sorted({match["split"] for match in matches}))
        raise DataError(
            f"{folder} has no split {split!r}: "
            + (f"it has {known}" if known else "it has no shards in data/; give the folder build-dataset made")
        )
    there = {match.string for match in wanted}
    totals = {(match["split"], match["total"]) for match in wanted}
    expected = {f"{split}-{i:05d}-of-{total}.parquet" for split, total in totals for i in range(int(total))}
    if there != expected or len(totals) != len(dict(totals)):
        odd = ", ".join(sorted(expected - there)) or "shards of two builds"
        raise DataError(f"{folder}/data is not whole or not of one build ({odd}): build or copy it again")
    return [folder / "data" / match.string for match in wanted]


def _read_rows(shard: Path, sample_rate: int) -> tuple["pa.Table", list[int]]:
    """The small columns of a shard and the sizes of its row groups, checked."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(shard, memory_map=True)
    except pa.ArrowInvalid as error:
        raise DataError(f"{shard} is no whole Parquet file: build or copy it again") from error
    schema = file.schema_arrow
    audio = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    missing = {"id", "audio", "captions"} - set(schema.names)
    wrong = [name for name, kind in {**_small(), "audio": audio}.items() if not fits(schema, name, kind)]
    if missing or wrong:
        lacks = ", ".join(sorted(missing)) or f"{', '.join(wrong)} of the published type"
        raise DataError(f"{shard} lacks {lacks}: build it with build-dataset")
    table = file.read(columns=[name for name in _small() if name in schema.names])
    for name, kind in _small().items():
        if name not in table.column_names:
            empty: Any = 0 if kind == pa.int32() else []
            table = table.append_column(name, pa.array([empty] * len(table), kind))
    bare = pc.index(pc.equal(pc.fill_null(pc.list_value_length(table["captions"]), 0), 0), True).as_py()
    if bare >= 0:
        clip = table["id"][bare]
        raise DataError(f"{shard}, row {bare} ({clip}) has no caption: leave such clips out of the dataset")
    sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    return table.select(list(_small())).cast(pa.schema(_small())), sizes


def fits(schema: "pa.Schema", name: str, kind: "pa.DataType") -> bool:
    """Whether a column is absent or as it is published (integers and lists of text by any width)."""
    import pyarrow as pa

    if name not in schema.names:
        return True
    here = schema.field(name).type
    if pa.types.is_list(kind):
        return pa.types.is_list(here) or pa.types.is_large_list(here)
    return pa.types.is_integer(here) if kind == pa.int32() else here == kind or pa.types.is_large_string(here)


def _small() -> dict[str, "pa.DataType"]:
    import pyarrow as pa

    text = pa.list_(pa.string())
    return {"id": pa.string(), "captions": text, "generated": text, "labels": text, "fold": pa.int32()}


def read_group(shard: Path, group: int) -> list["pa.Buffer | None"]:
    """Compressed audio of one row group, as views into it."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(shard, memory_map=True) as file:
        audio = file.read_row_group(group, columns=["audio.bytes"]).column("audio").combine_chunks()
    return [value.as_buffer() for value in audio.field("bytes")]


def decode(
    flac: Any,
    sample_rate: int,
    n_samples: int,
    where: str,
    rng: np.random.Generator | None = None,
    filling: str = "repeatpad",
) -> np.ndarray:
    """A window of (n_samples,) int16 of a mono clip: at random with `rng`, else from its centre.

    Only the window is decoded. A shorter clip is filled (fill.py).
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(flac)) as file:
            if (file.samplerate, file.channels) != (sample_rate, 1):
                raise DataError(
                    f"{where}: {file.samplerate} Hz, {file.channels} channels, the model expects "
                    f"{sample_rate} Hz mono: rebuild the dataset with --sample-rate {sample_rate}"
                )
            spare = max(0, file.frames - n_samples)
            file.seek(int(rng.integers(spare + 1)) if rng else spare // 2)
            waveform = file.read(min(n_samples, file.frames), dtype="int16")
            if not len(waveform) or len(waveform) < min(n_samples, file.frames):
                raise DataError(f"{where}: audio ends early or is empty: build the dataset again")
    except soundfile.LibsndfileError as error:
        raise DataError(f"{where}: audio does not decode ({error}): build the dataset again") from error
    return fill(waveform, n_samples, filling)
