"""What a recording measures: levels, silence, clipping, bandwidth.

Everything is taken in one pass over blocks of one second, in bounded memory.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from math import log10
from typing import Any

import numpy as np

FLOOR_DBFS = -120.0  # of digital silence
FULL_SCALE = 1 - 2**-15  # amplitude from which a sample counts as clipped
SILENCE = 10 ** (-60 / 20)  # RMS amplitude under which 20 ms count as silent
LOUDEST = 1e4  # times full scale, from which samples cannot be meant
SPECTRUM = 4096  # frames of a spectrum, taken once a second where it is loudest
BANDWIDTH_DB = 70.0  # below the strongest bin, at which a band counts as empty


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

    def add(self, block: np.ndarray, mono: np.ndarray) -> float:
        """Take in a block (frames, channels) and its mixture to mono (frames,); returns the block's peak.

        A peak that is no number or far beyond full scale means that these are no samples: nothing is measured then.
        """
        high, low = int(mono.argmax()), int(mono.argmin())
        mono_peak = max(float(mono[high]), -float(mono[low]))
        peak = mono_peak if block.shape[1] == 1 else peak_of(block)
        if not peak < LOUDEST:  # true of NaN too
            return peak
        flat = block.ravel(order="K")  # whichever way it lies: a view
        self.frames += len(block)
        self.samples += block.size
        self.peak = max(self.peak, peak)
        self.mono_peak = max(self.mono_peak, mono_peak)
        self.energy += float(np.dot(flat, flat))
        if peak >= FULL_SCALE:
            self.clipped += int(np.count_nonzero(np.abs(flat) >= FULL_SCALE))
        width = min(max(1, self.sample_rate // 50), len(mono))
        pieces = mono[: len(mono) // width * width].reshape(-1, width)
        self.windows += len(pieces)
        self.silent += int(np.count_nonzero(np.einsum("ij,ij->i", pieces, pieces) < SILENCE**2 * width))
        if self.frames == len(block) or len(mono) >= SPECTRUM:  # a short tail says less than what came before
            self.power += spectrum(mono, high if mono[high] >= -mono[low] else low)
        return peak

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


def peak_of(block: np.ndarray) -> float:
    """The largest magnitude, without an array of them; NaN if there is one."""
    return max(float(block.max()), -float(block.min()))


def spectrum(mono: np.ndarray, loudest: int) -> np.ndarray:
    """Power by frequency of SPECTRUM frames from the loudest one on."""
    start = max(0, min(loudest, len(mono) - SPECTRUM))
    piece = mono[start : start + SPECTRUM]
    bins = np.fft.rfft(piece * hann(len(piece)), SPECTRUM)
    return bins.real**2 + bins.imag**2


@lru_cache(maxsize=4)
def hann(length: int) -> np.ndarray:
    """A Hann window, float32."""
    return np.hanning(length).astype(np.float32)


def decibel(amplitude: float) -> float:
    """Amplitude relative to full scale in dB, not under the floor."""
    return max(FLOOR_DBFS, 20 * log10(amplitude)) if amplitude > 0 else FLOOR_DBFS
