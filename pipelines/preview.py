"""A clip to look at and listen to in a page: a short MP3, which every browser plays, and its spectrogram."""

import io
import struct
import zlib

import numpy as np

from pipelines.clip import SAMPLE_RATE
from pipelines.disk import BuildError

SECONDS = 10.0  # from the beginning
WINDOW = 2048  # frames of a spectrum
COLUMNS, BANDS = 400, 96  # pixels
LOW, HIGH = 40.0, 20_000.0  # Hz
FLOOR = 80.0  # dB below the loudest point that are black
COLOURS = ((0, 0, 0), (40, 17, 89), (114, 31, 129), (183, 55, 121), (241, 96, 93), (254, 176, 120), (252, 253, 191))


def preview(flac: bytes, id: str) -> tuple[bytes, bytes, float]:
    """MP3, PNG and seconds of a clip's first ten seconds; raises BuildError if its FLAC does not decode."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(flac)) as file:
            wave = file.read(round(SECONDS * SAMPLE_RATE), dtype="float32", always_2d=True)[:, 0]
    except soundfile.LibsndfileError as error:
        raise BuildError(
            f"the published audio of {id} does not decode ({error}): delete dataset and run again"
        ) from error
    return mp3(wave), png(spectrogram(wave)), len(wave) / SAMPLE_RATE


def mp3(wave: np.ndarray) -> bytes:
    """A wave (frames,) at 48 kHz as an MP3 of about 40 kbit/s."""
    import soundfile

    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", SAMPLE_RATE, 1, "MPEG_LAYER_III", format="MP3", compression_level=0.8,
                             bitrate_mode="VARIABLE") as file:  # fmt: skip
        for start in range(0, len(wave), SAMPLE_RATE):
            file.write(wave[start : start + SAMPLE_RATE])
    return buffer.getvalue()


def spectrogram(wave: np.ndarray) -> np.ndarray:
    """Log-mel spectrogram as grey levels (bands, columns), uint8, the highest band first."""
    starts = np.linspace(0, max(len(wave) - 1, 0), COLUMNS).astype(int)
    padded = np.pad(wave, WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[starts]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW))) ** 2  # (columns, bins)
    mels = np.linspace(2595 * np.log10(1 + LOW / 700), 2595 * np.log10(1 + HIGH / 700), BANDS + 1)
    bins = (700 * (10 ** (mels / 2595) - 1) * WINDOW / SAMPLE_RATE).astype(int)
    bands = np.add.reduceat(power, bins, axis=1)[:, :-1] / np.maximum(np.diff(bins), 1)
    level = 10 * np.log10(np.maximum(bands, 1e-10))
    return (255 * np.clip(1 + (level - max(level.max(), 0)) / FLOOR, 0, 1)).astype(np.uint8).T[::-1]


def png(grey: np.ndarray) -> bytes:
    """Grey levels (rows, columns), uint8, as a PNG that shows them in colours."""
    height, width = grey.shape
    steps = np.linspace(0, 255, len(COLOURS))
    palette = np.stack([np.interp(np.arange(256), steps, channel) for channel in zip(*COLOURS, strict=True)], axis=1)
    lines = np.pad(grey, ((0, 0), (1, 0)))  # each line begins with its filter: none
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", palette.round().astype(np.uint8).tobytes()),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG: length, kind, content, checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
