"""The one shape that flows through a build: a Clip, one row from source to shard, and its files.

A stage fills fields that nobody before it filled. A rejected clip keeps its place and says where and why.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pipelines.disk import BuildError, atomic
from pipelines.reasons import explain
from pipelines.text import clean, public, published

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE_RATE = 48_000  # Hz, of every published clip
JSON = json.JSONEncoder(ensure_ascii=False, sort_keys=True, default=str)


@dataclass(frozen=True)
class Clip:
    """One clip. Times in seconds, levels in dB relative to full scale, shares as fractions of one."""

    # what the source says
    id: str  # <source>/<native id>, unique
    source: str
    location: str = ""  # where the bytes are: file:// or http(s)://
    start: float | None = None  # s, of the section that is the clip; None for the whole recording
    end: float | None = None
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
    recording: str = ""  # what it was cut from: "freesound:<id>", "youtube:<id>#<start>-<end>" in seconds

    # what download fetches
    sha256: str = ""  # of the source's bytes
    validator: str = ""  # ETag or date by which the server can tell whether they changed
    raw_offset: int = 0  # where the bytes lie in download's pack; a local file is read in place
    raw_bytes: int = 0

    # what resample measures, all of the source audio
    duration: float | None = None
    sample_rate: int | None = None
    channels: int | None = None
    peak_dbfs: float | None = None
    rms_dbfs: float | None = None
    silence: float | None = None
    clipping: float | None = None
    bandwidth_hz: float | None = None
    fingerprint: bytes = b""
    pcm_md5: str = ""  # of the FLAC's samples, as the encoder notes it
    audio_offset: int = 0  # where the FLAC lies in the part's pack
    audio_bytes: int = 0

    # what caption writes
    generated: tuple[str, ...] = ()
    generated_scores: tuple[dict[str, float], ...] = ()
    generated_by: str = ""
    debiased: int = 0  # words that were replaced in them
    language: str = ""

    # its fate
    stage: str = ""
    reason: str = ""
    detail: str = ""
    attempts: int = 0

    def changed(self, **values: Any) -> Self:
        """The same clip with other values, as `replace` makes it in five times as long: for what every row passes."""
        return made(vars(self) | values)

    def reject(self, stage: str, reason: str, detail: str = "", attempts: int | None = None) -> Self:
        """The same clip, rejected; `reason` must be in the vocabulary, or KeyError is raised.

        An address in the detail loses what is secret.
        """
        explain(reason)
        attempts = self.attempts if attempts is None else attempts
        detail = re.sub(r"https?://[^\s'\"<>]+", lambda url: public(url[0]), clean(detail))[:500]
        return self.changed(stage=stage, reason=reason, detail=detail, attempts=attempts)


def made(values: dict[str, Any]) -> Any:
    """A clip of the values of all its fields in order; a frozen dataclass of itself would set them one by one."""
    clip = object.__new__(Clip)
    vars(clip).update(values)
    return clip


class Rejected(Exception):
    """Raised inside a stage to leave a clip; the stage turns it into the clip's reason."""

    def __init__(self, reason: str, detail: str = "", attempts: int = 1) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.attempts = reason, detail, attempts


@cache
def schema() -> "pa.Schema":
    """Arrow schema of a working part: one column per field of Clip, in the same order."""
    import pyarrow as pa

    texts = pa.list_(pa.string())
    scores = pa.list_(pa.struct({name: pa.float32() for name in ("coverage", "invention", "logprob")}))
    other = {
        "start": pa.float64(), "end": pa.float64(), "size": pa.int64(), "raw_offset": pa.int64(),
        "raw_bytes": pa.int64(), "captions": texts, "tags": texts, "labels": texts, "fold": pa.int32(),
        "duration": pa.float64(), "sample_rate": pa.int32(), "channels": pa.int32(), "peak_dbfs": pa.float32(),
        "rms_dbfs": pa.float32(), "silence": pa.float32(), "clipping": pa.float32(),
        "bandwidth_hz": pa.float32(), "fingerprint": pa.binary(), "audio_offset": pa.int64(),
        "audio_bytes": pa.int64(), "generated": texts, "generated_scores": scores, "debiased": pa.int32(),
        "attempts": pa.int32(),
    }  # fmt: skip
    return pa.schema([(field.name, other.get(field.name, pa.string())) for field in fields(Clip)])


def read_clips(path: Path) -> list[Clip]:
    """The clips of a part, in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read(use_threads=False)  # read_table would cost more than reading a small part does
    if table.schema.names != schema().names:
        raise BuildError(f"{path} was written by another version: delete {path.parents[1]} and run again")
    columns = [
        map(tuple, column.to_pylist()) if pa.types.is_list(column.type) else column.to_pylist()
        for column in table.columns
    ]
    names = table.schema.names
    return [made(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def write_clips(path: Path, clips: Iterable[Clip]) -> None:
    """Write a part atomically and read its length back before it gets its name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [vars(clip).values() for clip in clips]  # in the order of the fields
    columns = zip(*rows, strict=True) if rows else ((),) * len(schema())
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema(), strict=True)]
    plain = {"use_dictionary": False, "write_statistics": False}  # zstd does it as well, in less time
    with atomic(path) as temporary:
        pq.write_table(pa.table(arrays, schema=schema()), temporary, compression="zstd", **plain)
        if pq.read_metadata(temporary).num_rows != len(rows):
            raise BuildError(f"{path} did not read back as written: check the disk, then run again")


def to_json(row: dict[str, Any]) -> str:
    """Metadata as published, as one line of JSON with sorted keys; an address in it loses what is secret."""
    text = JSON.encode(row)
    if "@" in text or "?" in text:  # else no address in it can hold a secret
        text = JSON.encode(published(row))
    return text.encode("utf-8", "replace").decode()
