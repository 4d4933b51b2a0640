"""PANN: convolutional audio towers, Cnn6, Cnn10 and Cnn14 (Kong et al. 2020, arXiv:1912.10211, table 2)."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clap.features import SizeError, SpecAugment

POOLINGS = 5  # Cnn14's sixth block no longer pools: 64 mels halved five times are 2


class PANN(nn.Module):
    """Log-mel (batch, 1, frames, n_mels) in dB > embedding (batch, dim), dim = widths[-1].

    The defaults are Cnn14. Cnn10 is widths=(64, 128, 256, 512, 1024); Cnn6 is four widths, kernel=5, convs=1.
    The first five blocks halve frames and mels, so a clip needs at least 2 ** min(5, blocks) frames (32 for
    Cnn14: 0.32 s at 10 ms); any longer one will do. Raise SizeError for a shorter clip or too few mels.
    """

    def __init__(
        self,
        n_mels: int = 64,
        widths: Sequence[int] = (64, 128, 256, 512, 1024, 2048),
        kernel: int = 3,
        convs: int = 2,
        dropout: float = 0.2,
        head_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.dim = widths[-1]
        self.shortest = 2 ** min(POOLINGS, len(widths))
        if n_mels < self.shortest:
            raise SizeError(
                f"PANN: {n_mels} mels cannot be halved {min(POOLINGS, len(widths))} times: "
                f"use {self.shortest} or more, or fewer widths"
            )
        self.bn0 = nn.BatchNorm2d(n_mels)
        self.augment = SpecAugment()
        self.blocks = nn.Sequential(
            OrderedDict(
                (f"conv_block{i + 1}", conv_block(into, out, kernel, convs, i < POOLINGS, dropout))
                for i, (into, out) in enumerate(zip((1, *widths), widths, strict=False))
            )
        )
        self.dropout = nn.Dropout(head_dropout)
        self.fc1 = nn.Linear(self.dim, self.dim)
        self.apply(init_weights)

    def forward(self, mel: Tensor) -> Tensor:
        if mel.shape[2] < self.shortest:
            raise SizeError(
                f"PANN: a mel of {mel.shape[2]} frames is too short for its poolings: "
                f"pad clips to {self.shortest} frames or more"
            )
        mel = self.bn0(mel.transpose(1, 3)).transpose(1, 3)
        mel = self.augment(mel).contiguous(memory_format=torch.channels_last)  # 26-33 % less CPU
        x = self.blocks(mel).mean(dim=3)  # (batch, dim, frames / 2 ** poolings)
        x = self.dropout(x.amax(dim=2) + x.mean(dim=2))
        return self.dropout(F.relu(self.fc1(x)))


def conv_block(into: int, out: int, kernel: int, convs: int, pool: bool, dropout: float) -> nn.Sequential:
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
    layers["dropout"] = nn.Dropout(dropout)
    return nn.Sequential(layers)


def init_weights(module: nn.Module) -> None:
    """Draw convolutions and linear layers as the authors do (Xavier, zero bias)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
