"""Bytes to 48 kHz mono 16-bit FLAC and measured facts: the only stage that opens audio.

A recording streams through in blocks of one second, so that a two-hour file takes no more memory than a short one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfileobj
from tempfile import NamedTemporaryFile
from typing import BinaryIO, ClassVar

import numpy as np

from pipelines.clip import SAMPLE_RATE, Clip, Rejected
from pipelines.decode import Stream, open_audio
from pipelines.disk import BuildError
from pipelines.download import local_path, readable
from pipelines.facts import PRINT_RATE, PRINT_SECONDS, Meter, fingerprint

COMPLETE = 0.95  # share of the declared frames that must decode
LONGEST = 24 * 3600  # s; a small file can hold years of silence
LOUDEST = 1e4  # times full scale
CANCELLED = 1e-3  # mono peak over source peak, under which the channels cancel out


@dataclass(frozen=True)
class Resample:
    """Decode, measure, mix to mono, resample with soxr and encode; the FLACs of a part lie in one file."""

    packs: ClassVar[bool] = True

    def __call__(self, clips: Iterable[Clip], pack: BinaryIO) -> Iterator[Clip]:
        for clip in clips:
            try:
                yield resample(clip, pack)
            except Rejected as why:
                yield clip.reject("resample", why.reason, why.detail)


def resample(clip: Clip, pack: BinaryIO) -> Clip:
    """Append the clip's FLAC to `pack` and return the clip with its facts; raises Rejected."""
    folder = Path(pack.name).parent
    with (
        open_audio(local_path(clip.location)) as stream,
        NamedTemporaryFile(dir=folder, prefix=".", suffix=".tmp") as flac,
    ):
        meter = Meter(stream.sample_rate)
        head: list[np.ndarray] = []
        encode(to_48k(measured(stream, meter), stream.sample_rate), Path(flac.name), head)
        offset = pack.tell()
        copyfileobj(flac, pack)
        return replace(
            clip,
            sample_rate=stream.sample_rate,
            channels=stream.channels,
            fingerprint=fingerprint(np.concatenate(head)),
            audio_offset=offset,
            audio_bytes=pack.tell() - offset,
            **meter.facts(),
        )


def measured(stream: Stream, meter: Meter) -> Iterator[np.ndarray]:
    """The stream mixed to mono, float32 (frames,); raises Rejected once it proves bad."""
    trouble = None
    blocks = iter(stream.blocks)
    while True:
        try:
            with readable():
                block = next(blocks, None)
        except Rejected as why:
            trouble, block = why, None
        if block is None:
            break
        if not np.abs(block).max() < LOUDEST:  # true of NaN too
            raise Rejected("undecodable", "samples that are not numbers, or far beyond full scale")
        mono = block[:, 0] if block.shape[1] == 1 else mix(block)
        meter.add(block, mono)
        if meter.frames > LONGEST * stream.sample_rate:
            raise Rejected("too-long", f"over {LONGEST // 3600} hours")
        yield mono
    judge(stream, meter, trouble)


def mix(block: np.ndarray) -> np.ndarray:
    """The mean of the channels; for stereo the sum of halves, which is twice as fast."""
    return (block[:, 0] + block[:, 1]) * np.float32(0.5) if block.shape[1] == 2 else block.mean(1)


def judge(stream: Stream, meter: Meter, trouble: Rejected | None) -> None:
    """Raise Rejected if what was decoded is not the whole recording or is nothing."""
    if stream.declared and meter.frames < COMPLETE * stream.declared:
        raise Rejected("truncated", f"{meter.frames} of {stream.declared} frames")
    if trouble and not stream.declared:
        raise trouble
    if meter.frames == 0:
        raise trouble or Rejected("empty", "no frames")
    if meter.mono_peak < CANCELLED * meter.peak:
        raise Rejected("silent", "the channels cancel out when mixed to mono")


def to_48k(blocks: Iterator[np.ndarray], sample_rate: int) -> Iterator[np.ndarray]:
    """Blocks at 48 kHz: soxr's high quality, or the blocks themselves."""
    import soxr

    if sample_rate == SAMPLE_RATE:
        yield from blocks
        return
    stream = soxr.ResampleStream(sample_rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block))
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def encode(blocks: Iterator[np.ndarray], path: Path, head: list[np.ndarray]) -> None:
    """Write float32 blocks at 48 kHz as 16-bit FLAC; `head` collects the start at 6 kHz for the fingerprint.

    A write that fails is never the clip's fault: libsndfile's error becomes OSError or BuildError and ends the run.
    """
    import soundfile

    step, frames, rest = SAMPLE_RATE // PRINT_RATE, 0, np.zeros(0, np.float32)
    try:
        with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "PCM_16", format="FLAC") as flac:
            for block in blocks:
                flac.write(np.clip(np.rint(block * 32768), -32768, 32767).astype(np.int16))
                frames += len(block)
                if sum(map(len, head)) < PRINT_SECONDS * PRINT_RATE:
                    rest = np.concatenate([rest, block])
                    whole = len(rest) // step * step
                    head.append(rest[:whole].reshape(-1, step).mean(1))
                    rest = rest[whole:]
        if frames == 0:
            raise Rejected("empty", "no frames at 48 kHz")
        complete = soundfile.info(path).frames == frames
    except soundfile.LibsndfileError as error:
        raise BuildError(f"cannot write audio beside {path.parent}: {error}: is the disk full?") from error
    if not complete:
        raise BuildError(f"audio written beside {path.parent} did not read back: is the disk full?")
