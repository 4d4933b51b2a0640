"""Fingerprints of the evaluation corpora's audio, made once a build, by the stages that every clip goes through."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.clip import Clip, write_clips
from pipelines.download import Download
from pipelines.evaluation import prints_path
from pipelines.resample import Resample


def write_prints(lists: Path) -> Path:
    """OUT/build/evaluation-prints.parquet: the measured clips of the lists' audio; rejected ones could not be read.

    In this process, one after another: an hour of audio takes about 10 s. Made again from the start if interrupted.
    """
    path = prints_path(lists)
    if not path.exists():
        clips = list(audio_of(lists))
        if clips:
            print(f"fingerprinting {len(clips):,} clips of evaluation corpora, once", file=sys.stderr)
        with TemporaryDirectory(dir=lists.parent, prefix=".prints.", suffix=".tmp") as folder:
            write_clips(path, [measured(clip, Path(folder)) for clip in clips])
    return path


def audio_of(lists: Path) -> Iterator[Clip]:
    """The evaluation clips whose audio is on this machine."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(lists)
    for row in table.filter(pc.equal(table["kind"], "audio")).to_pylist():
        yield Clip(row["clip"], row["evaluation"], row["value"], row["start"], row["end"])


def measured(clip: Clip, folder: Path) -> Clip:
    """The clip with its hash, samples and fingerprint, without the bytes that took."""
    with (folder / "raw").open("wb") as raw, (folder / "pack").open("wb") as pack:
        (clip,) = Download()([clip], raw, folder / "raw")
        raw.flush()
        if not clip.reason:
            (clip,) = Resample()([clip], pack, folder / "raw")
    return replace(clip, raw_bytes=0, audio_bytes=0)
