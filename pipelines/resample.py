"""Bytes to 48 kHz mono 16-bit FLAC and measured facts: the only stage that opens audio.

A recording streams through in blocks of one second, so that a two-hour file takes no more memory than a short one.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, ClassVar

import numpy as np

from pipelines.clip import SAMPLE_RATE, Clip, Rejected
from pipelines.decode import Stream, Window, crop, open_audio, straight
from pipelines.disk import BuildError
from pipelines.facts import LOUDEST, Meter
from pipelines.fingerprint import PRINT_RATE, PRINT_SECONDS, fingerprint
from pipelines.local import local_path
from pipelines.setting import setting

COMPLETE = 0.95  # share of the declared frames that must decode
LONGEST = 24 * 3600  # s; a small file can hold years of silence
CANCELLED = 1e-3  # mono peak over source peak, under which the channels cancel out
SPOOL = 32 * 2**20  # bytes of FLAC kept in memory, 12 minutes; more waits in a nameless file
BLOCK = 2**20  # bytes
KEPT = 30 * 2**20  # bytes; above 32 MB glibc would not heed it


@dataclass(frozen=True)
class Resample:
    """Decode, measure, mix to mono, resample with soxr and encode; the FLACs of a part lie in one file."""

    packs: ClassVar[bool] = True

    clip_timeout: float = setting(
        600.0, "seconds a decoder may take over one clip until it is held to hang", manner=True
    )

    def __call__(self, clips: Iterable[Clip], pack: BinaryIO, raw: Path) -> Iterator[Clip]:
        np.empty(KEPT, np.uint8)  # freed at once: from then on glibc keeps what blocks free, and each comes cheaper
        for clip in clips:
            try:
                yield resample(clip, pack, raw)
            except Rejected as why:
                yield clip.reject("resample", why.reason, why.detail)
            except MemoryError:
                yield clip.reject("resample", "decoder-crashed", "it took more memory than a worker may")


def resample(clip: Clip, pack: BinaryIO, raw: Path) -> Clip:
    """Append the clip's FLAC to `pack` and return the clip with its facts; raises Rejected.

    Only its section is measured and encoded, where it has one. Bytes that were fetched lie in the pack `raw`.
    """
    folder = str(Path(pack.name).parent)
    with open_audio(source(clip, raw), clip.start, clip.end) as stream, Spool(SPOOL, dir=folder) as flac:
        meter = Meter(stream.sample_rate)
        with closing(encoded(converted(measured(stream, meter), stream.sample_rate, SAMPLE_RATE), flac)) as blocks:
            heard = fingerprint(voice(blocks))
            for _ in blocks:  # what the fingerprint does not need
                pass
        offset = pack.tell()
        flac.seek(0)
        copyfileobj(flac, pack, BLOCK)
        return clip.changed(
            sample_rate=stream.sample_rate,
            channels=stream.channels,
            fingerprint=heard,
            pcm_md5=stated(flac)[1],
            audio_offset=offset,
            audio_bytes=pack.tell() - offset,
            **meter.facts(),
        )


def source(clip: Clip, raw: Path) -> Window:
    """The clip's bytes: in the pack of download, or a local file where it is."""
    return Window(raw, clip.raw_offset, clip.raw_bytes) if clip.raw_bytes else Window(local_path(clip.location))


def measured(stream: Stream, meter: Meter) -> Iterator[np.ndarray]:
    """The stream mixed to mono, float32 (frames,); raises Rejected once it proves bad."""
    trouble = None
    blocks = iter(stream.blocks)
    while True:
        try:
            block = next(blocks, None)
        except Rejected as why:
            trouble, block = why, None
        if block is None:
            break
        mono = block[:, 0] if block.shape[1] == 1 else mix(block)
        if not meter.add(block, mono) < LOUDEST:
            raise Rejected("undecodable", "samples that are not numbers, or far beyond full scale")
        if meter.frames > LONGEST * stream.sample_rate:
            raise Rejected("too-long", f"over {LONGEST // 3600} hours")
        yield mono
    judge(stream, meter, trouble)


def mix(block: np.ndarray) -> np.ndarray:
    """The mean of the channels; for stereo the sum of halves, which is twice as fast."""
    return (block[:, 0] + block[:, 1]) * np.float32(0.5) if block.shape[1] == 2 else block.mean(1)


def judge(stream: Stream, meter: Meter, trouble: Rejected | None) -> None:
    """Raise Rejected if what was decoded is not the whole recording (or section) or is nothing."""
    if trouble and trouble.reason == "missing-file":  # the disk's fault: it says nothing about the recording
        raise trouble
    if stream.declared and meter.frames < COMPLETE * stream.declared:
        raise Rejected("truncated", f"{meter.frames} of {stream.declared} frames")
    if trouble and not stream.declared:
        raise trouble
    if meter.frames == 0:
        raise trouble or Rejected("empty", "no frames")
    if meter.mono_peak < CANCELLED * meter.peak:
        raise Rejected("silent", "the channels cancel out when mixed to mono")


def converted(blocks: Iterator[np.ndarray], rate: int, to: int, quality: str = "HQ") -> Iterator[np.ndarray]:
    """Blocks at another rate, through soxr; the samples are those of converting all at once.

    The last block is announced as such: an empty one after it would cost as much as a second of sound.
    """
    import soxr

    if rate == to:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, to, 1, dtype="float32", quality=quality)
    held = next(blocks, None)
    for block in blocks:
        yield stream.resample_chunk(held)
        held = block
    if held is not None:
        yield stream.resample_chunk(held, last=True)


class Spool(SpooledTemporaryFile[bytes]):
    """A temporary file that keeps an error of writing for `check`, as an encoder can take no exception."""

    trouble: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.trouble = error
            return 0


def to_int16(block: np.ndarray) -> np.ndarray:
    """Full scale 1.0 to 16 bits, rounded and limited."""
    scaled = block * np.float32(32768)
    np.rint(scaled, out=scaled)
    np.clip(scaled, -32768, 32767, out=scaled)
    return scaled.astype(np.int16)


def encoded(blocks: Iterable[np.ndarray], flac: Spool) -> Generator[np.ndarray]:
    """The same float32 blocks at 48 kHz, each once it is written as 16-bit FLAC; the file is whole after the last.

    A write that fails is never the clip's fault: it ends the run.
    """
    import soundfile

    frames = 0
    try:
        with straight(flac, "w", SAMPLE_RATE, 1, "PCM_16", format="FLAC") as sound:
            for block in blocks:
                sound.write(to_int16(block))
                frames += len(block)
                yield block
    except soundfile.LibsndfileError as error:
        raise BuildError(f"cannot encode audio: {error}: this is a bug, please report it") from error
    finally:
        if flac.trouble:
            raise flac.trouble
    if frames == 0:
        raise Rejected("empty", "no frames at 48 kHz")
    if stated(flac)[0] != frames:
        raise BuildError("audio did not read back as encoded: this is a bug, please report it")


def stated(flac: Spool) -> tuple[int, str]:
    """The number of samples and their MD5, in hex, by FLAC's first block (36 and 128 bits)."""
    flac.seek(0)
    head = flac.read(42)
    return int.from_bytes(head[18:26], "big") % 2**36, head[26:].hex()


def voice(blocks: Iterator[np.ndarray]) -> np.ndarray:
    """The start of a recording at the rate of the fingerprint, (samples,); no more of the blocks is taken."""
    start = crop(blocks, 0, PRINT_SECONDS * SAMPLE_RATE)
    return np.concatenate(list(converted(start, SAMPLE_RATE, PRINT_RATE, "MQ")))
