"""The one shape that flows through a build: a Clip, one row from source to shard, and its files.

A stage fills fields that nobody before it filled. A rejected clip keeps its place and says where and why.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pipelines.disk import BuildError, atomic
from pipelines.reasons import explain
from pipelines.text import clean

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE_RATE = 48_000  # Hz, of every published clip


@dataclass(frozen=True)
class Clip:
    """One clip. Times in seconds, levels in dB relative to full scale, shares as fractions of one."""

    # what the source says
    id: str  # <source>/<native id>, unique
    source: str
    location: str = ""  # where the bytes are: file:// or http(s)://
    size: int | None = None  # bytes there, where known before opening
    captions: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    license: str = ""
    author: str = ""
    title: str = ""
    url: str = ""  # page or file to give credit to
    fold: int = 0  # official cross-validation fold, 0 without
    split: str = ""
    original: str = ""  # JSON of the metadata as published

    # what download and resample measure, all of the source audio
    sha256: str = ""
    duration: float | None = None
    sample_rate: int | None = None
    channels: int | None = None
    peak_dbfs: float | None = None
    rms_dbfs: float | None = None
    silence: float | None = None
    clipping: float | None = None
    bandwidth_hz: float | None = None
    fingerprint: bytes = b""
    audio_offset: int = 0  # where the FLAC lies in the part's pack
    audio_bytes: int = 0

    # what caption writes
    generated: tuple[str, ...] = ()
    generated_scores: tuple[dict[str, float], ...] = ()
    generated_by: str = ""
    language: str = ""

    # its fate
    stage: str = ""
    reason: str = ""
    detail: str = ""
    attempts: int = 0

    def reject(self, stage: str, reason: str, detail: str = "") -> Self:
        """The same clip, rejected; `reason` must be in the vocabulary, or KeyError is raised."""
        explain(reason)
        return replace(self, stage=stage, reason=reason, detail=clean(detail)[:500])


class Rejected(Exception):
    """Raised inside a stage to leave a clip; the stage turns it into the clip's reason."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@cache
def schema() -> "pa.Schema":
    """Arrow schema of a working part: one column per field of Clip, in the same order."""
    import pyarrow as pa

    texts = pa.list_(pa.string())
    scores = pa.list_(pa.struct({name: pa.float32() for name in ("coverage", "invention", "logprob")}))
    other = {
        "size": pa.int64(), "captions": texts, "tags": texts, "labels": texts, "fold": pa.int32(),
        "duration": pa.float64(), "sample_rate": pa.int32(), "channels": pa.int32(), "peak_dbfs": pa.float32(),
        "rms_dbfs": pa.float32(), "silence": pa.float32(), "clipping": pa.float32(),
        "bandwidth_hz": pa.float32(), "fingerprint": pa.binary(), "audio_offset": pa.int64(),
        "audio_bytes": pa.int64(), "generated": texts, "generated_scores": scores, "attempts": pa.int32(),
    }  # fmt: skip
    return pa.schema([(field.name, other.get(field.name, pa.string())) for field in fields(Clip)])


def read_clips(path: Path) -> list[Clip]:
    """The clips of a part, in order."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, schema=schema())
    columns = [
        [tuple(value) for value in column.to_pylist()] if "list" in str(column.type) else column.to_pylist()
        for column in table.columns
    ]
    return [Clip(*row) for row in zip(*columns, strict=True)]


def write_clips(path: Path, clips: Iterable[Clip]) -> None:
    """Write a part atomically and read its length back before it gets its name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(clips)
    columns = {name: [getattr(clip, name) for clip in rows] for name in schema().names}
    with atomic(path) as temporary:
        pq.write_table(pa.table(columns, schema=schema()), temporary, compression="zstd")
        if pq.read_metadata(temporary).num_rows != len(rows):
            raise BuildError(f"{path} did not read back as written: check the disk, then run again")


def to_json(row: dict[str, Any]) -> str:
    """Metadata as published, as one line of JSON with sorted keys."""
    return json.dumps(row, ensure_ascii=False, sort_keys=True, default=str).encode("utf-8", "replace").decode()
