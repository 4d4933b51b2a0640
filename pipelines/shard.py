"""The kept clips as split Parquet with a Hugging Face Audio column: what is published.

A shard is planned from the rows and written on its own, so shards are written side by side and a killed build
goes on with the next one.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.clip import SAMPLE_RATE, Clip, read_clips
from pipelines.clip import schema as part_schema
from pipelines.disk import BuildError, atomic
from pipelines.run import part_path

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_BYTES = 500 * 2**20
GROUP_BYTES = 100 * 2**20
GROUP_ROWS = 100
COLUMNS = (
    "id", "source", "audio", "captions", "generated", "generated_scores", "generated_by", "language", "tags",
    "labels", "duration", "sample_rate", "channels", "peak_dbfs", "rms_dbfs", "silence", "clipping", "bandwidth_hz",
    "license", "author", "title", "url", "fold", "sha256", "fingerprint", "original",
)  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """One published file: its name and the rows it holds, as (part, row) in order."""

    name: str
    stage: str
    rows: tuple[tuple[int, int], ...] = field(repr=False)


def plan_shards(build: Path, dataset: Path, stage: str, parts: int) -> list[Shard]:
    """Cut each split's kept clips, in the order of the manifest, into shards of about 500 MB.

    Returns those that are not there yet.
    """
    import pyarrow.parquet as pq

    splits: dict[str, list[list[tuple[int, int]]]] = {}
    weights: dict[str, int] = {}
    for part in range(parts):
        table = pq.read_table(part_path(build, stage, part), columns=["split", "reason", "audio_bytes"])
        for row, (split, reason, size) in enumerate(zip(*(column.to_pylist() for column in table), strict=True)):
            if reason:
                continue
            if split not in splits or weights[split] + size > SHARD_BYTES:
                splits.setdefault(split, []).append([])
                weights[split] = 0
            splits[split][-1].append((part, row))
            weights[split] += size
    shards = [
        Shard(f"{split}-{number:05d}-of-{len(files):05d}.parquet", stage, tuple(rows))
        for split, files in sorted(splits.items())
        for number, rows in enumerate(files)
    ]
    return [shard for shard in shards if not (dataset / "data" / shard.name).exists()]


def write_shard(build: Path, dataset: Path, shard: Shard) -> None:
    """Write one shard under DATASET/data and read its length back before it gets its name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = dataset / "data" / shard.name
    plain = {name: "NONE" if name.startswith("audio") else "zstd" for name in leaves()}
    coded = [name for name in leaves() if not name.startswith(("audio", "fingerprint", "sha256", "id"))]
    with atomic(path) as temporary:
        with pq.ParquetWriter(
            temporary, published(), compression=plain, use_dictionary=coded, write_page_index=True,
            use_content_defined_chunking=True,
        ) as writer:  # fmt: skip
            for group in row_groups(build, shard):
                writer.write_table(pa.table(group, schema=published()))
        if pq.read_metadata(temporary).num_rows != len(shard.rows):
            raise BuildError(f"{path} did not read back as written: check the disk, then run again")


def row_groups(build: Path, shard: Shard) -> Iterator[dict[str, list[Any]]]:
    """Columns of at most 100 rows and about 100 MB."""
    group: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    weight = 0
    for part, places in groupby(shard.rows, key=lambda place: place[0]):
        clips = read_clips(part_path(build, shard.stage, part))
        with part_path(build, "resample", part).with_suffix(".pack").open("rb") as pack:
            for _, row in places:
                audio = read_audio(pack, clips[row])
                if group["id"] and (len(group["id"]) == GROUP_ROWS or weight + len(audio) > GROUP_BYTES):
                    yield group
                    group, weight = {name: [] for name in COLUMNS}, 0
                for name in COLUMNS:
                    group[name].append(cell(clips[row], name, audio))
                weight += len(audio)
    if group["id"]:
        yield group


def read_audio(pack: Any, clip: Clip) -> bytes:
    """The clip's FLAC from its part's pack; raises BuildError if the pack is not what the rows say."""
    pack.seek(clip.audio_offset)
    audio = pack.read(clip.audio_bytes)
    if len(audio) != clip.audio_bytes or not audio.startswith(b"fLaC"):
        raise BuildError(f"{pack.name} does not hold the audio of {clip.id}: delete its folder and run again")
    return audio


def cell(clip: Clip, name: str, audio: bytes) -> Any:
    """A clip's value of a published column."""
    if name == "audio":
        return {"bytes": audio, "path": clip.id.replace("/", "_") + ".flac"}
    return getattr(clip, name)


@cache
def published() -> "pa.Schema":
    """Arrow schema of the published row, with the metadata by which `datasets` knows the Audio column."""
    import pyarrow as pa

    audio = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    types = {field.name: field.type for field in part_schema()} | {"audio": audio}
    fields = [(name, types[name]) for name in COLUMNS]
    features = {name: feature(type_) for name, type_ in fields}
    features["audio"] = {"sampling_rate": SAMPLE_RATE, "num_channels": 1, "_type": "Audio"}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def feature(type_: "pa.DataType") -> Any:
    """The `datasets` feature of an Arrow type, in the form that Parquet metadata holds."""
    import pyarrow as pa

    if pa.types.is_list(type_):
        return {"feature": feature(type_.value_type), "_type": "List"}
    if pa.types.is_struct(type_):
        return {type_.field(i).name: feature(type_.field(i).type) for i in range(type_.num_fields)}
    return {"dtype": {"float": "float32", "double": "float64"}.get(str(type_), str(type_)), "_type": "Value"}


@cache
def leaves() -> list[str]:
    """Paths of the Parquet columns that hold the values ("captions.list.element")."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(published().empty_table(), sink)
    schema = pq.ParquetFile(sink.getvalue()).schema
    return [schema.column(i).path for i in range(len(schema))]
