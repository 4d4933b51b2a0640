"""What a recording measures: levels, silence, clipping, bandwidth, and an acoustic fingerprint.

Everything is taken in one pass over blocks of one second, in bounded memory.
"""

from dataclasses import dataclass, field
from math import log10
from typing import Any

import numpy as np

FLOOR_DBFS = -120.0  # of digital silence
FULL_SCALE = 1 - 2**-15  # amplitude from which a sample counts as clipped
SILENCE = 10 ** (-60 / 20)  # RMS amplitude under which 20 ms count as silent
SPECTRUM = 4096  # frames of a spectrum, taken once a second where it is loudest
BANDWIDTH_DB = 70.0  # below the strongest bin, at which a band counts as empty

PRINT_RATE = 6_000  # Hz, 48 kHz averaged by eights
PRINT_SECONDS = 120  # at most, from the start
PRINT_WINDOW, PRINT_HOP = 2048, 512  # 341 ms, 85 ms
PRINT_BANDS = np.geomspace(300, 2_000, 34)  # Hz: 33 bands give 32 bits


@dataclass
class Meter:
    """Levels and spectrum of a source, fed block by block."""

    sample_rate: int
    frames: int = 0
    samples: int = 0
    peak: float = 0.0
    mono_peak: float = 0.0
    energy: float = 0.0
    clipped: int = 0
    windows: int = 0
    silent: int = 0
    power: np.ndarray = field(default_factory=lambda: np.zeros(SPECTRUM // 2 + 1))

    def add(self, block: np.ndarray, mono: np.ndarray) -> None:
        """Take in a block (frames, channels) and its mixture to mono (frames,)."""
        loud = np.abs(block)
        self.frames += len(block)
        self.samples += block.size
        self.peak = max(self.peak, float(loud.max()))
        self.mono_peak = max(self.mono_peak, float(mono.max()), -float(mono.min()))
        self.energy += float(np.dot(block.ravel(), block.ravel()))
        self.clipped += int(np.count_nonzero(loud >= FULL_SCALE))
        width = min(max(1, self.sample_rate // 50), len(mono))
        pieces = mono[: len(mono) // width * width].reshape(-1, width)
        self.windows += len(pieces)
        self.silent += int(np.count_nonzero(np.square(pieces).mean(1) < SILENCE**2))
        if self.frames == len(block) or len(mono) >= SPECTRUM:  # a short tail says less than what came before
            start = max(0, min(int(np.abs(mono).argmax()), len(mono) - SPECTRUM))
            piece = mono[start : start + SPECTRUM]
            self.power += np.square(np.abs(np.fft.rfft(piece * np.hanning(len(piece)), SPECTRUM)))

    def facts(self) -> dict[str, Any]:
        """Fields of Clip by name."""
        return {
            "duration": self.frames / self.sample_rate,
            "peak_dbfs": decibel(self.peak),
            "rms_dbfs": decibel((self.energy / max(self.samples, 1)) ** 0.5),
            "silence": self.silent / max(self.windows, 1),
            "clipping": self.clipped / max(self.samples, 1),
            "bandwidth_hz": self.bandwidth(),
        }

    def bandwidth(self) -> float:
        """The highest frequency (Hz) whose mean power is within 70 dB of the strongest bin's."""
        heard = np.flatnonzero(self.power > self.power.max() * 10 ** (-BANDWIDTH_DB / 10))
        return float(heard[-1] * self.sample_rate / SPECTRUM) if len(heard) else 0.0


def decibel(amplitude: float) -> float:
    """Amplitude relative to full scale in dB, not under the floor."""
    return max(FLOOR_DBFS, 20 * log10(amplitude)) if amplitude > 0 else FLOOR_DBFS


def fingerprint(waveform: np.ndarray) -> bytes:
    """32 bits per 85 ms of a waveform at PRINT_RATE: signs of band energy differences in time and frequency.

    After Haitsma and Kalker, "A Highly Robust Audio Fingerprinting System", ISMIR 2002; copies that were
    re-encoded or made louder differ in few bits, different sounds in about half of them.
    """
    waveform = np.pad(waveform, (0, max(0, PRINT_WINDOW + PRINT_HOP - len(waveform))))
    frames = np.lib.stride_tricks.sliding_window_view(waveform, PRINT_WINDOW)[::PRINT_HOP]
    edges = np.round(PRINT_BANDS * PRINT_WINDOW / PRINT_RATE).astype(int)
    window = np.hanning(PRINT_WINDOW).astype(np.float32)
    energy = np.concatenate(
        [
            np.add.reduceat(np.square(np.abs(np.fft.rfft(frames[i : i + 64] * window))), edges, axis=1)[:, :-1]
            for i in range(0, len(frames), 64)  # 64 frames at a time: the memory of one block
        ]
    )
    bits = np.diff(energy[:, :-1] - energy[:, 1:], axis=0) > 0  # (frames - 1, 32)
    return np.packbits(bits, axis=1).tobytes()
