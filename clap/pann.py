"""PANN: convolutional audio towers, Cnn6, Cnn10 and Cnn14 (Kong et al. 2020, arXiv:1912.10211, table 2)."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clap.features import Mels, SizeError, SpecAugment, alone
from clap.fusion import frames_conv, fuse, fuse_frames, fusion_model, normalise, stack

POOLINGS = 5  # Cnn14's sixth block no longer pools: 64 mels halved five times are 2


class PANN(nn.Module):
    """Log-mel (batch, 1, frames, n_mels) in dB, or Mels > embedding (batch, dim), dim = widths[-1].

    The defaults are Cnn14. Cnn10 is widths=(64, 128, 256, 512, 1024); Cnn6 is four widths, kernel=5, convs=1.
    The first five blocks halve frames and mels, so a clip needs at least 2 ** min(5, blocks) frames (32 for
    Cnn14: 0.32 s at 10 ms); any longer one will do. Raise SizeError for a shorter clip or too few mels.
    With `fusion` (see fusion.py) it also hears the parts of longer clips: a 1d one joins mels, a 2d one the maps
    after the first block, channel_map makes them channels of one mel.
    """

    def __init__(
        self,
        n_mels: int = 64,
        widths: Sequence[int] = (64, 128, 256, 512, 1024, 2048),
        kernel: int = 3,
        convs: int = 2,
        dropout: float = 0.2,
        head_dropout: float = 0.5,
        fusion: str = "none",
    ) -> None:
        super().__init__()
        self.dim, self.fusion = widths[-1], fusion
        self.shortest = 2 ** min(POOLINGS, len(widths))
        if n_mels < self.shortest:
            raise SizeError(
                f"PANN: {n_mels} mels cannot be halved {min(POOLINGS, len(widths))} times: "
                f"use {self.shortest} or more, or fewer widths"
            )
        self.bn0 = nn.BatchNorm2d(n_mels)
        self.augment = SpecAugment()
        channels = 4 if fusion == "channel_map" else 1
        self.blocks = nn.Sequential(
            OrderedDict(
                (f"conv_block{i + 1}", conv_block(into, out, kernel, convs, i < POOLINGS))
                for i, (into, out) in enumerate(zip((channels, *widths), widths, strict=False))
            )
        )
        self.block_dropout = nn.Dropout(dropout)
        self.dropout = nn.Dropout(head_dropout)
        self.fc1 = nn.Linear(self.dim, self.dim)
        self.apply(init_weights)
        if fusion.endswith("_1d"):
            self.mel_conv1d, self.fusion_model = frames_conv(n_mels), fusion_model(fusion, n_mels)
        if fusion.endswith("_2d"):
            self.mel_conv2d = map_conv(widths[0])
            self.fusion_model = fusion_model(fusion, widths[0])

    def forward(self, mel: Tensor | Mels) -> Tensor:
        mels = mel if isinstance(mel, Mels) else alone(mel)
        if mels.whole.shape[2] < self.shortest:
            raise SizeError(
                f"PANN: a mel of {mels.whole.shape[2]} frames is too short for its poolings: "
                f"pad clips to {self.shortest} frames or more"
            )
        mels = normalise(self.bn0, mels)
        if self.fusion.endswith("_1d"):
            mels = fuse_frames(mels, self.mel_conv1d, self.fusion_model)
        x = self.convolve(self.augment(mels)).mean(dim=3)  # (batch, dim, frames / 2 ** poolings)
        x = self.dropout(x.amax(dim=2) + x.mean(dim=2))
        return self.dropout(F.relu(self.fc1(x)))

    def convolve(self, mels: Mels) -> Tensor:
        """Every block; a 2d fusion joins the parts after the first."""
        x = stack(mels) if self.fusion == "channel_map" else mels.whole
        x = x.contiguous(memory_format=torch.channels_last)  # 26-33 % less CPU
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == 0 and self.fusion.endswith("_2d") and len(mels.parts):
                local = self.mel_conv2d(mels.parts.flatten(0, 1).unsqueeze(1))  # a third as many frames
                local = local.unflatten(0, (-1, 3)).transpose(1, 2).flatten(2, 3)  # one after the other
                local = F.pad(local, (0, 0, 0, x.shape[2] - local.shape[2]))
                x = fuse(x, local, mels.longer, self.fusion_model)
            x = self.block_dropout(x)
        return x


def map_conv(width: int) -> nn.Sequential:
    """The convolution of 2d fusion, (batch, 1, frames, mels) > (batch, width, about frames / 6, mels / 2)."""
    conv = nn.Conv2d(1, width, 5, stride=(6, 2), padding=2)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def conv_block(into: int, out: int, kernel: int, convs: int, pool: bool) -> nn.Sequential:
    """Convolutions with batch norm and ReLU, then 2 x 2 average pooling, on (batch, channels, frames, mels).

    Layers carry the names of LAION-CLAP's state dict (conv1, bn1, ...).
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(1, convs + 1):
        channels = into if i == 1 else out
        layers[f"conv{i}"] = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)
        layers[f"bn{i}"] = nn.BatchNorm2d(out)
        layers[f"relu{i}"] = nn.ReLU(inplace=True)
    if pool:
        layers["pool"] = nn.AvgPool2d(2)
    return nn.Sequential(layers)


def init_weights(module: nn.Module) -> None:
    """Draw convolutions and linear layers as the authors do (Xavier, zero bias)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
