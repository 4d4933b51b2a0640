"""Front end: waveforms of any length > log-mels, on any device, and the masks that training lays over them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clap.config import ClapError, ConfigError, ModelConfig
from clap.fill import fill, thirds, windows

LOUDEST = 32767  # the largest int16
ROWS = 64  # chunks of long clips seen at once: a file of ten minutes has 60
FRAMES = 8192  # of a spectrum made at once: 80 s of LAION's front end
CPU_FRAMES = 256  # the same on a CPU, of one clip after the other: what fits its cache takes half the time


class SizeError(ClapError):
    """Sizes of a clip, a front end or a tower that do not fit together."""


def quantise(waveform: Tensor) -> Tensor:
    """Pass a float waveform through int16 as LAION's loader does, truncating towards zero.

    Lowers every non-zero sample of decoded 16-bit audio by one step; LAION's checkpoints were trained so.
    """
    return waveform.clamp(-1, 1).mul_(LOUDEST).trunc_().div_(LOUDEST)


class Mels(NamedTuple):
    """What a tower hears: a mel of every clip, and three crops more of those that are longer than its window."""

    whole: Tensor  # (batch, 1, frames, mels) dB; of longer clips, the whole clip shrunk to as many frames
    parts: Tensor  # (longer clips, 3, frames, mels) crops from their front, middle and back
    longer: Tensor  # (batch,) bool, which clips the parts are of


class LogMel(nn.Module):
    """Waveform (batch, samples) > log-mel (batch, 1, frames, mels) in dB, frames = samples // hop + 1 (n_fft even).

    Takes float32 in [-1, 1], or int16, which is scaled by 1/32768; `int16_quantize` passes both through `quantise`.
    Silence is -100 dB (the power's floor is 1e-10; no upper reference and no top_db). The sums run in float32
    under autocast too. A window of `win` samples (0: n_fft) is centred in the transform's n_fft.

    `scale` "slaney" (with slaney's area norm) is the front end of LAION-CLAP's plain models; "htk" (no norm)
    is that of its fusion models. They differ by about 22 dB, so a model must keep the one it was trained on.
    The tables are not part of the state dict: they follow from the arguments.
    """

    window: Tensor
    filterbank: Tensor

    def __init__(
        self,
        sample_rate: int = 48000,
        n_fft: int = 1024,
        hop: int = 480,
        n_mels: int = 64,
        fmin: float = 50.0,
        fmax: float = 14000.0,
        scale: str = "slaney",
        win: int = 0,
        int16_quantize: bool = False,
    ) -> None:
        super().__init__()
        if scale not in ("slaney", "htk"):
            raise ValueError(f"LogMel: unknown mel scale {scale!r}: use 'slaney' or 'htk'")
        if not 0 <= fmin < fmax <= sample_rate / 2:
            raise SizeError(f"LogMel: mel bands from {fmin} to {fmax} Hz: --fmax may be {sample_rate / 2} at most")
        if not 0 <= win <= n_fft:
            raise SizeError(f"LogMel: a window of {win} samples: n_fft {n_fft} must hold it")
        from librosa.filters import mel

        htk = scale == "htk"
        filters = mel(
            sr=sample_rate,
            n_fft=n_fft,
            n_mels=n_mels,
            fmin=fmin,
            fmax=fmax,
            htk=htk,
            norm=None if htk else "slaney",
        )
        self.n_fft, self.hop, self.int16_quantize = n_fft, hop, int16_quantize
        edges = ((n_fft - (win or n_fft)) // 2, (n_fft - (win or n_fft) + 1) // 2)
        self.register_buffer("window", F.pad(torch.hann_window(win or n_fft), edges), persistent=False)  # (n_fft,)
        self.register_buffer("filterbank", torch.from_numpy(filters), persistent=False)  # (mels, n_fft // 2 + 1)

    def forward(self, waveform: Tensor, frames: Tensor | None = None) -> Tensor:
        """All frames, or only those with these numbers, (n,): no other frame's spectrum is made.

        Raise SizeError for a clip too short to be mirrored at its ends (n_fft // 2 samples or fewer).
        """
        edge = self.n_fft // 2
        if waveform.shape[-1] <= edge:
            raise SizeError(
                f"LogMel: a clip of {waveform.shape[-1]} samples cannot fill a window of {self.n_fft}: "
                f"pad clips to more than {edge} samples"
            )
        ends = waveform[:, 1 : edge + 1].flip(1), waveform[:, -edge - 1 : -1].flip(1)
        windows = torch.cat([ends[0], waveform, ends[1]], 1).unfold(1, self.n_fft, self.hop)  # (batch, frames, n_fft)
        n_frames = windows.shape[1] if frames is None else len(frames)
        clips, size = (windows.split(1), CPU_FRAMES) if windows.device.type == "cpu" else ((windows,), FRAMES)
        spans = [slice(start, start + size) for start in range(0, n_frames, size)]
        with torch.autocast(windows.device.type, enabled=False):
            picked = spans if frames is None else [frames[span] for span in spans]
            mels = [torch.cat([self._mel(some[:, each]) for each in picked], dim=1) for some in clips]
            return torch.cat(mels).unsqueeze(1)

    def n_frames(self, n_samples: int) -> int:
        """How many frames a waveform of so many samples has."""
        return (n_samples - self.n_fft % 2) // self.hop + 1

    def _mel(self, windows: Tensor) -> Tensor:
        """(batch, frames, n_fft) samples > (batch, frames, mels) in dB."""
        samples = windows.float()
        if windows.dtype == torch.int16:
            samples /= 32768
        if self.int16_quantize:
            samples = quantise(samples)
        spectrum = torch.fft.rfft(samples * self.window)  # (batch, frames, n_fft // 2 + 1)
        power = spectrum.real.square() + spectrum.imag.square()
        return 10 * (power @ self.filterbank.T).clamp(min=1e-10).log10()


def front_end(config: ModelConfig) -> LogMel:
    """The front end of a model."""
    return LogMel(
        config.sample_rate,
        config.n_fft,
        config.hop,
        config.n_mels,
        config.fmin,
        config.fmax,
        config.mel_scale,
        config.win,
        config.int16_quantize,
    )


def mels_for(
    waveforms: Sequence[np.ndarray],
    config: ModelConfig,
    mode: str = "auto",
    rng: np.random.Generator | None = None,
    log_mel: LogMel | None = None,
) -> Mels:
    """Mels, on the front end's device, of mono clips (samples,) of any length, float32 in [-1, 1] or int16.

    Modes for clips longer than config.n_samples (fill.py): "centre", "chunks" (several rows a clip, in order),
    "random", or for fused models "fixed-thirds"; "auto" is fixed-thirds for these and else centre. "random"
    draws a fused model's crops from their thirds, as the paper's evaluation did.
    """
    log_mel = log_mel or front_end(config)
    fused = config.fusion != "none"
    if mode == "fixed-thirds" and not fused:
        raise ConfigError("truncation is 'fixed-thirds', but the model is not fused: use centre, chunks or random")
    if fused and mode in ("auto", "fixed-thirds", "random"):
        draw = (rng or np.random.default_rng()) if mode == "random" else None
        return collate([fused_mels(waveform, config, log_mel, draw) for waveform in waveforms])
    mode = "centre" if mode == "auto" else mode
    rows = [windows(waveform, config.n_samples, mode, config.filling, rng) for waveform in waveforms]
    return alone(torch.cat([log_mel(some) for row in rows for some in as_tensor(row, log_mel).split(ROWS)]))


def fused_mels(
    waveform: np.ndarray, config: ModelConfig, log_mel: LogMel, rng: np.random.Generator | None = None
) -> Mels:
    """Mels of one clip for a fused model, from its waveform (samples,)."""
    filled = as_tensor(fill(waveform, config.n_samples, config.filling)[None], log_mel)

    def pick(frames: Tensor) -> Tensor:
        once, places = frames.unique(return_inverse=True)
        return log_mel(filled, once)[0, 0, places.to(filled.device)]

    return fuse(pick, log_mel.n_frames(filled.shape[1]), config, rng)


def fuse(
    pick: Callable[[Tensor], Tensor], n_frames: int, config: ModelConfig, rng: np.random.Generator | None = None
) -> Mels:
    """Mels of one clip for a fused model, from the log-mel of the whole clip, filled, which has n_frames.

    A longer one is shrunk whole, with a crop of each third (fill.thirds). `pick` gives the frames with the numbers
    (n,) that it is asked for, (n, mels): of five minutes these are a sixth.
    """
    chunk = window_frames(config)
    if n_frames <= chunk:  # longer by less than a hop: as many frames, so nothing to crop
        return alone(pick(torch.arange(n_frames))[None, None])
    low, high, weight = neighbours(n_frames, chunk)
    crops = [torch.arange(start, start + chunk) for start in thirds(n_frames, chunk, rng)]
    mel = pick(torch.cat([low, high, *crops])).view(5, chunk, -1)
    whole = torch.lerp(mel[0], mel[1], weight[:, None].to(mel))
    return Mels(whole[None, None], mel[None, 2:], torch.ones(1, dtype=torch.bool, device=mel.device))


def window_frames(config: ModelConfig) -> int:
    """Frames of the window that the model sees."""
    return (config.n_samples - config.n_fft % 2) // config.hop + 1


def neighbours(n_frames: int, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """How n_frames are shrunk to `chunk`: the two frames that each lies between, and how far towards the second.

    As bilinear interpolation without antialiasing (F.interpolate, align_corners=False): the published fused
    checkpoints were trained so, and antialiasing would move the mel by 1.5 dB.
    """
    scale = torch.tensor(n_frames / chunk).item()  # rounded to float32, as is the place: just as there
    place = ((torch.arange(chunk, dtype=torch.float64) + 0.5) * scale - 0.5).float().clamp(min=0)
    low = place.long()
    return low, (low + 1).clamp(max=n_frames - 1), place - low


def alone(mel: Tensor) -> Mels:
    """Mels of clips none of which is longer, from (batch, 1, frames, mels)."""
    return Mels(mel, mel.new_empty(0, 3, *mel.shape[2:]), mel.new_zeros(len(mel), dtype=torch.bool))


def collate(mels: Sequence[Mels]) -> Mels:
    """One batch of several."""
    return Mels(*map(torch.cat, zip(*mels, strict=True)))


def split(mels: Mels, size: int) -> list[Mels]:
    """Consecutive batches of at most `size` clips, each with the parts of its own; waits for the mels' device."""
    longer = mels.longer.split(size)
    parts = mels.parts.split([int(each.sum()) for each in longer])
    return [Mels(*each) for each in zip(mels.whole.split(size), parts, longer, strict=True)]


def as_tensor(waveform: np.ndarray, log_mel: LogMel) -> Tensor:
    """A waveform on the device of the front end."""
    return torch.from_numpy(waveform).to(log_mel.window.device)


class SpecAugment(nn.Module):
    """Zero random stripes of time and of frequency in training (Park et al. 2019, arXiv:1904.08779).

    Every clip draws its own stripes, each 0 to width - 1 bins wide (as in torchlibrosa, LAION-CLAP's front end),
    from torch's default generator on the mel's device. The parts of a longer clip get the stripes of its whole.
    """

    def __init__(self, time_masks: int = 2, time_width: int = 64, freq_masks: int = 2, freq_width: int = 8) -> None:
        super().__init__()
        self.time_masks, self.time_width = time_masks, time_width
        self.freq_masks, self.freq_width = freq_masks, freq_width

    def forward(self, mels: Mels) -> Mels:
        if not self.training:
            return mels
        mask = self.mask(mels.whole)
        parts = mels.parts.masked_fill(mask[mels.longer], 0.0) if len(mels.parts) else mels.parts
        return mels._replace(whole=mels.whole.masked_fill(mask, 0.0), parts=parts)

    def mask(self, mel: Tensor) -> Tensor:
        """True inside the stripes of each clip, (batch, 1, frames, mels)."""
        batch, _, frames, mels = mel.shape
        time = stripes(batch, frames, self.time_masks, self.time_width, mel.device)
        freq = stripes(batch, mels, self.freq_masks, self.freq_width, mel.device)
        return time[:, None, :, None] | freq[:, None, None, :]


def stripes(batch: int, size: int, masks: int, width: int, device: torch.device) -> Tensor:
    """Return (batch, size), true inside `masks` random stripes, each narrower than `width` and `size`."""
    widths = torch.randint(0, max(1, min(width, size)), (batch, masks, 1), device=device)
    starts = (torch.rand(batch, masks, 1, device=device) * (size - widths)).long()
    bins = torch.arange(size, device=device)
    return ((bins >= starts) & (bins < starts + widths)).any(dim=1)
