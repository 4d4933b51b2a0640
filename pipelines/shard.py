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
from typing import TYPE_CHECKING, Any, BinaryIO

from pipelines.clip import SAMPLE_RATE
from pipelines.clip import schema as part_schema
from pipelines.disk import BuildError, atomic
from pipelines.run import part_path

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_BYTES = 500 * 2**20
GROUP_BYTES = 32 * 2**20  # a writer holds several copies
GROUP_ROWS = 100
METADATA_ROWS = 10_000
COLUMNS = (
    "id", "source", "audio", "captions", "generated", "generated_scores", "generated_by", "language", "tags",
    "labels", "duration", "sample_rate", "channels", "peak_dbfs", "rms_dbfs", "silence", "clipping", "bandwidth_hz",
    "license", "author", "title", "url", "fold", "sha256", "fingerprint", "original",
)  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """One published file: its name, whether it holds audio, and its rows, as (part, row) in order."""

    name: str
    stage: str
    audio: bool
    rows: list[tuple[int, int]] = field(repr=False)


def plan_shards(build: Path, dataset: Path, stage: str, parts: int, audio: bool = True) -> list[Shard]:
    """Cut each split's kept clips, in the order of the manifest, into shards of about 500 MB.

    Returns those that are not there yet.
    """
    splits: dict[str, list[list[tuple[int, int]]]] = {}
    weights: dict[str, int] = {}
    for part in range(parts):
        for row, (split, reason, size) in enumerate(weigh(part_path(build, stage, part), audio)):
            if reason:
                continue
            if split not in splits or weights[split] + size > SHARD_BYTES:
                splits.setdefault(split, []).append([])
                weights[split] = 0
            splits[split][-1].append((part, row))
            weights[split] += size
    shards = [
        Shard(f"{split}-{number:05d}-of-{len(files):05d}.parquet", stage, audio, rows)
        for split, files in sorted(splits.items())
        for number, rows in enumerate(files)
    ]
    return [shard for shard in shards if not (dataset / "data" / shard.name).exists()]


def weigh(part: Path, audio: bool) -> Iterator[tuple[str, str, int]]:
    """Split, reason and bytes of each row: those of its audio, or its share of the file that holds the metadata."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(part).read(["split", "reason", "audio_bytes"], use_threads=False)
    share = part.stat().st_size // max(table.num_rows, 1)
    sizes = table["audio_bytes"].to_pylist() if audio else [share] * table.num_rows
    return zip(table["split"].to_pylist(), table["reason"].to_pylist(), sizes, strict=True)


def write_shard(build: Path, dataset: Path, shard: Shard) -> None:
    """Write one shard under DATASET/data and read its length back before it gets its name."""
    import pyarrow.parquet as pq

    path, schema = dataset / "data" / shard.name, published(shard.audio)
    plain = {name: "NONE" if name.startswith("audio") else "zstd" for name in leaves(shard.audio)}
    coded = [name for name in plain if not name.startswith(("audio", "fingerprint", "sha256", "id"))]
    with atomic(path) as temporary:
        with pq.ParquetWriter(
            temporary, schema, compression=plain, use_dictionary=coded, write_page_index=True,
            write_statistics=[name for name in plain if name != "audio.bytes"], use_content_defined_chunking=True,
        ) as writer:  # fmt: skip
            for group in row_groups(build, shard):
                writer.write_table(group.select(schema.names).cast(schema))
        if pq.read_metadata(temporary).num_rows != len(shard.rows):
            raise BuildError(f"{path} did not read back as written: check the disk, then run again")


def row_groups(build: Path, shard: Shard) -> "Iterator[pa.Table]":
    """Tables of at most 100 rows and about 32 MB with audio, of at most 10,000 rows without."""
    import pyarrow as pa

    most = GROUP_ROWS if shard.audio else METADATA_ROWS
    group: list[pa.Table] = []
    count = weight = 0
    for part, places in groupby(shard.rows, key=lambda place: place[0]):
        table, begin = read_rows(build, shard, part, [row for _, row in places]), 0
        for row, size in enumerate(table["audio_bytes"].to_pylist()):
            if count == most or (count and weight + size > GROUP_BYTES):
                yield pa.concat_tables([*group, with_audio(build, shard, part, table[begin:row])])
                group, begin, count, weight = [], row, 0, 0
            count, weight = count + 1, weight + size
        group.append(with_audio(build, shard, part, table[begin:]))
    if count:
        yield pa.concat_tables(group)


def read_rows(build: Path, shard: Shard, part: int, rows: list[int]) -> "pa.Table":
    """Rows of a part, without those columns that no shard needs."""
    import pyarrow.parquet as pq

    columns = [*published(shard.audio).names, "audio_offset", "audio_bytes"]
    return pq.ParquetFile(part_path(build, shard.stage, part)).read(columns, use_threads=False).take(rows)


def with_audio(build: Path, shard: Shard, part: int, table: "pa.Table") -> "pa.Table":
    """The same rows with their FLACs, if the shard has audio."""
    import pyarrow as pa

    if not shard.audio:
        return table
    places = zip(*(table[name].to_pylist() for name in ("id", "audio_offset", "audio_bytes")), strict=True)
    with part_path(build, "resample", part).with_suffix(".pack").open("rb") as pack:
        cells = [{"bytes": read_audio(pack, *place), "path": place[0].replace("/", "_") + ".flac"} for place in places]
    return table.append_column("audio", pa.array(cells, published().field("audio").type))


def read_audio(pack: BinaryIO, id: str, offset: int, length: int) -> bytes:
    """A clip's FLAC from its part's pack; raises BuildError if the pack is not what the rows say."""
    pack.seek(offset)
    audio = pack.read(length)
    if len(audio) != length or not audio.startswith(b"fLaC"):
        raise BuildError(f"{pack.name} does not hold the audio of {id}: delete its folder and run again")
    return audio


@cache
def published(audio: bool = True) -> "pa.Schema":
    """Arrow schema of the published row, with the metadata by which `datasets` knows the Audio column."""
    import pyarrow as pa

    flac = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    types = {field.name: field.type for field in part_schema()} | {"audio": flac}
    fields = [(name, types[name]) for name in COLUMNS if audio or name != "audio"]
    features = {name: feature(type_) for name, type_ in fields}
    if audio:
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
def leaves(audio: bool) -> list[str]:
    """Paths of the Parquet columns that hold the values ("captions.list.element")."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(published(audio).empty_table(), sink)
    schema = pq.ParquetFile(sink.getvalue()).schema
    return [schema.column(i).path for i in range(len(schema))]
