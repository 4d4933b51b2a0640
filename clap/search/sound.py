"""Sounds that a page sends or shows, decoded within bounds: by libsndfile alone, and nothing that is too long."""

import functools
import io

import numpy as np

from clap.data import DataError

MOST_SECONDS = 600  # of a sound that is decoded
MOST_AMPLITUDES = MOST_SECONDS * 48_000 * 2  # of all its channels: 10 minutes in stereo at 48 kHz
MOST_BYTES = 4 * MOST_AMPLITUDES  # of a file that is decoded: so many at 32 bits
RATES = range(1_000, 384_001)  # Hz
PLAYED = {"audio/flac", "audio/wav", "audio/x-wav", "audio/mpeg", "audio/ogg", "audio/opus"}  # by every browser
WINDOW = 2048  # amplitudes of a spectrum
COLUMNS, BANDS = 400, 96  # of a picture
LOW, HIGH = 40.0, 20_000.0  # Hz
FLOOR = 80.0  # dB below the loudest point, or below 0 if that is less, that are black


class SoundError(DataError):
    """A sound that cannot be used; the message says why and what to give."""


def decode(content: bytes) -> tuple[np.ndarray, int]:
    """Mono (samples,) float32 and its rate in Hz; SoundError if it is no sound, empty, not finite or too long."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            refuse(file.frames, file.channels, file.samplerate)
            wave = file.read(file.frames, dtype="float32", always_2d=True).mean(axis=1)  # GSM in WAV wants a number
            rate = file.samplerate
    except soundfile.LibsndfileError as error:
        raise SoundError("this is no sound that can be read: give wav, flac, ogg or mp3") from error
    if not len(wave) or not np.isfinite(wave).all():
        raise SoundError(f"the sound {'holds NaN or infinity' if len(wave) else 'is empty'}: give another one")
    return wave, rate


def refuse(frames: int, channels: int, rate: int) -> None:
    """Raise SoundError for a sound, as its header tells it, that would take too much memory."""
    if rate not in RATES:
        raise SoundError(f"the sound is at {rate} Hz: give one between {RATES[0]} and {RATES[-1]} Hz")
    if frames > MOST_SECONDS * rate or frames * channels > MOST_AMPLITUDES:
        raise SoundError(
            f"the sound is too long ({frames / rate / 60:,.1f} minutes, {channels} channels at {rate} Hz): "
            f"cut it to {MOST_SECONDS // 60} minutes in stereo at 48 kHz, or less"
        )


def playable(content: bytes, kind: str) -> tuple[bytes, str]:
    """A sound and its media type as they are if every browser plays them, else as mono FLAC."""
    if kind in PLAYED:
        return content, kind
    import soundfile

    wave, rate = decode(content)
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue(), "audio/flac"


def spectrogram(wave: np.ndarray, rate: int) -> np.ndarray:
    """Log-mel spectrogram of a whole wave (samples,) as grey levels (BANDS, COLUMNS), uint8, high bands first."""
    starts = np.linspace(0, len(wave) - 1, COLUMNS).astype(int)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, WINDOW // 2), WINDOW)[starts]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW).astype(np.float32))) ** 2  # (columns, bins)
    level = 10 * np.log10(np.maximum(power @ mel(rate).T, 1e-10))
    return (255 * np.clip(1 + (level - max(level.max(), 0)) / FLOOR, 0, 1)).astype(np.uint8).T[::-1]


@functools.lru_cache(maxsize=8)
def mel(rate: int) -> np.ndarray:
    """(BANDS, bins) means over mel bands, for display; a low band, narrower than a bin, is the bin it lies in."""
    from librosa import mel_frequencies

    edges = mel_frequencies(BANDS + 1, fmin=LOW, fmax=min(HIGH, rate / 2)) * WINDOW / rate  # in bins
    bins = np.arange(WINDOW // 2 + 1)
    low, high = np.floor(edges[:-1])[:, None], np.maximum(np.ceil(edges[1:]), np.floor(edges[:-1]) + 1)[:, None]
    bank = ((bins >= low) & (bins < high)).astype(np.float32)
    return bank / bank.sum(axis=1, keepdims=True)
