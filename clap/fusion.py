"""Feature fusion: a longer clip's shrunken whole and its three crops become one (LAION-CLAP, section 3.2).

AFF and iAFF are attentional feature fusion (Dai et al. 2021, arXiv:2009.14082) as LAION-CLAP changed it.
Modules carry the names of LAION-CLAP's state dict. A clip that is not longer never passes through them, also in
training: there the original takes one short clip for a longer one if a batch has none, to reach every weight.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clap.features import Mels, alone


class DAF(nn.Module):
    """Direct addition of two maps of one shape."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return x + residual


class AFF(nn.Module):
    """Weigh two maps (batch, channels, ...) against each other, w x + (1 - w) residual, at every point.

    Twice that, as in LAION-CLAP; w = sigmoid(local_att(x + residual) + global_att(x + residual)).
    """

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.local_att = attention(channels, dims)
        self.global_att = attention(channels, dims, pool=True)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        both = x + residual
        weight = torch.sigmoid(self.local_att(both) + self.global_att(both))
        return 2 * x * weight + 2 * residual * (1 - weight)


class IAFF(nn.Module):
    """AFF twice, the second weighing by the first's result, and without the factor 2.

    Both share global_att: the original's global_att2 is never called, and not built here.
    """

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.local_att = attention(channels, dims)
        self.global_att = attention(channels, dims, pool=True)
        self.local_att2 = attention(channels, dims)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        both = x + residual
        weight = torch.sigmoid(self.local_att(both) + self.global_att(both))
        first = x * weight + residual * (1 - weight)
        weight = torch.sigmoid(self.local_att2(first) + self.global_att(first))
        return x * weight + residual * (1 - weight)


class PointNorm(_BatchNorm):
    """BatchNorm over (batch, channels, ...) that also trains on one value a channel: one longer clip, pooled.

    That value is then its own mean, and the result the bias, as where the original doubles the clip; unlike there,
    the running variance doesn't learn from it that nothing varies.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(torch.cat([x, x]), None, None, self.weight, self.bias, True, 0.0, self.eps)[:1]
        return super().forward(x)


def attention(channels: int, dims: int, pool: bool = False, reduction: int = 4) -> nn.Sequential:
    """Two 1 x 1 convolutions with batch norm over (batch, channels, ...) of 1 or 2 dims, of its mean if `pool`."""
    conv = nn.Conv1d if dims == 1 else nn.Conv2d
    mean = [nn.AdaptiveAvgPool1d(1) if dims == 1 else nn.AdaptiveAvgPool2d(1)] if pool else []
    inner = channels // reduction
    layers = [conv(channels, inner, 1), PointNorm(inner), nn.ReLU(inplace=True), conv(inner, channels, 1)]
    return nn.Sequential(*mean, *layers, PointNorm(channels))


def fusion_model(fusion: str, channels: int) -> nn.Module:
    """The module of a config's `fusion`, such as "aff_2d", for maps of `channels`."""
    kind, dims = fusion.removesuffix("d").split("_")
    if kind == "daf":
        return DAF()
    return (AFF if kind == "aff" else IAFF)(channels, int(dims))


def frames_conv(n_mels: int) -> nn.Sequential:
    """The convolution of 1d fusion, (batch, n_mels, frames) > (batch, n_mels, about frames / 3)."""
    return nn.Sequential(nn.Conv1d(n_mels, n_mels, 5, stride=3, padding=2), nn.BatchNorm1d(n_mels))


def normalise(norm: nn.BatchNorm2d, mels: Mels) -> Mels:
    """Batch norm of each mel band; in training every clip counts alike, shrunken whole and parts as four mels."""
    if not len(mels.parts):
        return mels._replace(whole=bands(norm, mels.whole))
    if not norm.training:
        return mels._replace(whole=bands(norm, mels.whole), parts=bands(norm, mels.parts))
    stacked = bands(norm, stack(mels))
    return mels._replace(whole=stacked[:, :1], parts=stacked[mels.longer, 1:])


def bands(norm: nn.BatchNorm2d, mel: Tensor) -> Tensor:
    """Apply `norm` to (batch, channels, frames, mels) with the mel bands as its channels."""
    return norm(mel.transpose(1, 3)).transpose(1, 3)


def stack(mels: Mels) -> Tensor:
    """(batch, 4, frames, mels): the whole and its parts, or, of clips that have none, the clip four times."""
    stacked = mels.whole.repeat(1, 4, 1, 1)
    if len(mels.parts):
        stacked[mels.longer, 1:] = mels.parts
    return stacked


def fuse_frames(mels: Mels, conv: nn.Module, model: nn.Module) -> Mels:
    """1d fusion: the parts, a third as long, one after the other, into the shrunken whole; no parts remain."""
    if not len(mels.parts):
        return mels
    frames = mels.whole.shape[2]
    local = conv(mels.parts.flatten(0, 1).mT)  # (longer * 3, mels, frames / 3)
    local = local.unflatten(0, (-1, 3)).transpose(1, 2).flatten(2)
    local = F.pad(local, (0, frames - local.shape[2]))
    return alone(fuse(mels.whole[:, 0].mT, local, mels.longer, model).mT.unsqueeze(1))


def fuse(x: Tensor, local: Tensor, longer: Tensor, model: nn.Module) -> Tensor:
    """Replace the rows of x (batch, channels, ...) that are longer by their fusion with `local`."""
    rows = longer.nonzero().squeeze(1)
    return x.index_copy(0, rows, model(x[rows], local).to(x.dtype))
