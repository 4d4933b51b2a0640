"""A small dataset in the published layout: tones and their captions, for the tests of clap."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from clap.config import ModelConfig, TrainConfig

TONES = {"low_tone": 200, "high_tone": 6000, "buzz": 0}

TEXT = pa.list_(pa.string())
SCHEMA = {
    "id": pa.string(),
    "audio": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    "captions": TEXT,
    "generated": TEXT,
    "labels": TEXT,
    "fold": pa.int32(),
}

SMALL = TrainConfig(
    model=ModelConfig(
        clip_seconds=0.25,
        n_mels=32,
        audio="pann",
        pann_widths=(8, 8, 16, 16),
        pann_dropout=0.0,
        pann_head_dropout=0.1,
        time_mask=8,
        freq_mask=4,
        text="scratch",
        text_pooling="mean",
        text_width=32,
        text_layers=1,
        text_heads=2,
        dim=16,
    ),
    epochs=2,
    batch_size=4,
    lr=1e-3,
    warmup=4,
    log_every=3,
    workers=2,
    device="cpu",
)


def flac(waveform: np.ndarray, sample_rate: int = 48000) -> bytes:
    """Encode float (samples,) or (samples, channels) as 16-bit FLAC."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def sound(label: str, seed: int, seconds: float) -> np.ndarray:
    """A tone of the label's frequency, or noise, (samples,) float."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * 48000)) / 48000
    if not TONES[label]:
        return 0.2 * rng.standard_normal(len(t)).clip(-3, 3)
    return 0.5 * np.sin(2 * np.pi * TONES[label] * rng.uniform(0.9, 1.1) * t)


def tones(n: int) -> list[dict[str, Any]]:
    """n rows, labels and folds in turn, 0.2 to 0.5 s long."""
    rows = []
    for i in range(n):
        label = list(TONES)[i % len(TONES)]
        waveform = sound(label, i, 0.2 + 0.3 * (i % 7) / 6)
        caption = f"The sound of a {label.replace('_', ' ')}."
        rows.append(row(f"test/{i}", flac(waveform), [caption], labels=[label], fold=1 + i % 4))
    return rows


def row(id: str, audio: bytes | None, captions: Sequence[str], **others: Any) -> dict[str, Any]:
    """A row of the published layout."""
    audio_struct = {"bytes": audio, "path": f"{id.split('/')[-1]}.flac"}
    defaults = {"generated": [], "labels": [], "fold": 0}
    return {"id": id, "audio": audio_struct, "captions": list(captions), **defaults, **others}


def write(folder: Path, rows: Iterable[dict[str, Any]], split: str = "train", shards: int = 1, group: int = 5) -> str:
    """Write rows as shards of a split under folder/data; returns the folder as a name of a dataset."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows), pa.schema(SCHEMA))
    size = -(-len(table) // shards)
    for i in range(shards):
        path = folder / "data" / f"{split}-{i:05d}-of-{shards:05d}.parquet"
        pq.write_table(table.slice(i * size, size), path, row_group_size=group, compression="none")
    return str(folder)
