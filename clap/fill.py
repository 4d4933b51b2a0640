"""Clips of any length > windows of the model's: short ones filled, long ones cut at random or at fixed places."""

from collections.abc import Sequence

import numpy as np

from clap.config import FILLINGS, TRUNCATIONS, ClapError, ConfigError


def fill(waveform: np.ndarray, n_samples: int, filling: str = "repeatpad") -> np.ndarray:
    """Lengthen a clip (samples,) to n_samples; a clip that is long enough comes back as it is.

    "repeatpad" repeats it as often as it fits and pads with zeros, "repeat" repeats it and cuts the last turn,
    "pad" only pads (LAION-CLAP's three ways).
    """
    if filling not in FILLINGS:
        raise ConfigError(f"filling is {filling!r}: use {' or '.join(FILLINGS)}")
    if not len(waveform):
        raise ClapError("an empty clip cannot be filled: leave it out")
    turns, rest = divmod(n_samples, len(waveform))
    if filling != "pad" and turns:
        waveform = np.tile(waveform, turns + (filling == "repeat" and rest > 0))[:n_samples]
    return np.pad(waveform, (0, max(0, n_samples - len(waveform))))


def windows(
    waveform: np.ndarray,
    n_samples: int,
    mode: str = "centre",
    filling: str = "repeatpad",
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Windows (n, n_samples) of a clip (samples,); a clip that is not longer is filled, whatever the mode.

    "centre" and "random" give one window, drawn uniformly by `rng` if random; "chunks" the fewest that cover the
    clip, evenly spaced and overlapping a little, so that none of them needs filling.
    """
    waveform = fill(waveform, n_samples, filling)
    spare = len(waveform) - n_samples
    if mode == "centre":
        starts = [spare // 2]
    elif mode == "random":
        starts = [int((rng or np.random.default_rng()).integers(spare + 1))]
    elif mode == "chunks":
        starts = [round(start) for start in np.linspace(0, spare, n_chunks(len(waveform), n_samples))]
    else:
        raise ConfigError(f"truncation is {mode!r}: use {' or '.join(TRUNCATIONS)}")
    return np.stack([waveform[start : start + n_samples] for start in starts])


def n_chunks(length: int, n_samples: int) -> int:
    """How many windows "chunks" makes of a clip of `length` samples."""
    return max(1, -(-length // n_samples))


def thirds(n_frames: int, chunk: int, rng: np.random.Generator | None = None) -> Sequence[int]:
    """Where the front, middle and back crops of `chunk` frames start in a longer mel of n_frames.

    The places where a crop may start are cut in three, as LAION-CLAP does (its paper, section 3.2); a crop
    starts in the middle of its third, or anywhere in it with `rng`. Where there are fewer than three places the
    crops that have none start at 0.
    """
    places = np.array_split(np.arange(n_frames - chunk + 1), 3)
    parts = [part if len(part) else np.zeros(1, int) for part in places]
    return [int(part[rng.integers(len(part)) if rng else len(part) // 2]) for part in parts]
