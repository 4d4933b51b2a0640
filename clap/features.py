"""Front end: waveform > log-mel, computed inside the model, and the masks that training lays over it."""

import torch
from torch import Tensor, nn

from clap.config import ClapError

LOUDEST = 32767  # the largest int16


class SizeError(ClapError):
    """Sizes of a clip, a front end or a tower that do not fit together."""


def quantise(waveform: Tensor) -> Tensor:
    """Pass a float waveform through int16 as LAION's loader does, truncating towards zero.

    Lowers every non-zero sample of decoded 16-bit audio by one step; LAION's checkpoints were trained so.
    """
    return (waveform.clamp(-1, 1) * LOUDEST).trunc() / LOUDEST


class LogMel(nn.Module):
    """Waveform (batch, samples) > log-mel (batch, 1, frames, mels) in dB, frames = samples // hop + 1.

    Takes float32 in [-1, 1], or int16, which is scaled by 1/32768. Silence is -100 dB (the power's floor is
    1e-10; no upper reference and no top_db). The sums run in float32 under autocast too.

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
    ) -> None:
        super().__init__()
        if scale not in ("slaney", "htk"):
            raise ValueError(f"LogMel: unknown mel scale {scale!r}: use 'slaney' or 'htk'")
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
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer("filterbank", torch.from_numpy(filters), persistent=False)  # (mels, n_fft // 2 + 1)

    def forward(self, waveform: Tensor) -> Tensor:
        """Raise SizeError for a clip too short to be mirrored at its ends (n_fft // 2 samples or fewer)."""
        if waveform.shape[-1] <= self.n_fft // 2:
            raise SizeError(
                f"LogMel: a clip of {waveform.shape[-1]} samples cannot fill a window of {self.n_fft}: "
                f"pad clips to more than {self.n_fft // 2} samples"
            )
        if waveform.dtype == torch.int16:
            waveform = waveform.float() / 32768
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(
                waveform.float(),
                self.n_fft,
                self.hop,
                window=self.window,
                pad_mode="reflect",
                return_complex=True,
            )
            power = torch.view_as_real(spectrum).square().sum(-1)  # (batch, n_fft // 2 + 1, frames)
            mel = self.filterbank @ power
            return 10 * mel.clamp(min=1e-10).log10().transpose(1, 2).unsqueeze(1)


class SpecAugment(nn.Module):
    """Zero random stripes of time and of frequency in training (Park et al. 2019, arXiv:1904.08779).

    Takes and returns (batch, 1, frames, mels). Every clip draws its own stripes, each 0 to width - 1 bins
    wide (as in torchlibrosa, LAION-CLAP's front end), from torch's default generator on the mel's device.
    """

    def __init__(self, time_masks: int = 2, time_width: int = 64, freq_masks: int = 2, freq_width: int = 8) -> None:
        super().__init__()
        self.time_masks, self.time_width = time_masks, time_width
        self.freq_masks, self.freq_width = freq_masks, freq_width

    def forward(self, mel: Tensor) -> Tensor:
        if not self.training:
            return mel
        batch, _, frames, mels = mel.shape
        time = stripes(batch, frames, self.time_masks, self.time_width, mel.device)
        freq = stripes(batch, mels, self.freq_masks, self.freq_width, mel.device)
        return mel.masked_fill(time[:, None, :, None] | freq[:, None, None, :], 0.0)


def stripes(batch: int, size: int, masks: int, width: int, device: torch.device) -> Tensor:
    """Return (batch, size), true inside `masks` random stripes, each narrower than `width` and `size`."""
    widths = torch.randint(0, max(1, min(width, size)), (batch, masks, 1), device=device)
    starts = (torch.rand(batch, masks, 1, device=device) * (size - widths)).long()
    bins = torch.arange(size, device=device)
    return ((bins >= starts) & (bins < starts + widths)).any(dim=1)
