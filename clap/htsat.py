"""HTSAT: a Swin transformer over a log-mel folded into a square image (Chen et al. 2022, arXiv:2202.00874).

Modules carry the names of LAION-CLAP's state dict, so that its tensors load without renames. What CLAP does
not use (class heads, attention maps) is left out: the embedding is the mean of the final tokens.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clap.features import Mels, SizeError, SpecAugment, alone
from clap.fusion import frames_conv, fuse, fuse_frames, fusion_model, normalise, stack


class HTSAT(nn.Module):
    """Log-mel (batch, 1, frames, n_mels) in dB, or Mels > embedding (batch, dim), dim = width * 2 ** (stages - 1).

    The defaults are LAION-CLAP's HTSAT-tiny; base is width=128, large width=256, both depths=(2, 2, 12, 2).
    Any number of frames is stretched to spec_size ** 2 / n_mels of them (1,024 by default, 10.24 s); a clip
    much longer than that is better cut first, for the stretch does not smooth before it drops frames.
    With `fusion` (see fusion.py) it also hears the parts of longer clips: a 1d one joins mels, a 2d one the
    patches of their images, channel_map makes them channels of one image.
    Raise SizeError where the numbers do not fit together.
    """

    def __init__(
        self,
        n_mels: int = 64,
        spec_size: int = 256,
        patch: int = 4,
        width: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (4, 8, 16, 32),
        window: int = 8,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.1,
        fusion: str = "none",
    ) -> None:
        super().__init__()
        check_sizes(n_mels, spec_size, patch, width, depths, heads, window)
        self.n_mels, self.spec_size, self.fusion = n_mels, spec_size, fusion
        self.dim = width * 2 ** (len(depths) - 1)
        self.bn0 = nn.BatchNorm2d(n_mels)
        self.augment = SpecAugment()
        self.patch_embed = PatchEmbed(patch, width, fusion)
        last = max(1, sum(depths) - 1)
        rates = iter(drop_path * i / last for i in range(sum(depths)))  # deeper blocks drop more
        self.layers = nn.ModuleList()
        for i, (depth, n_heads) in enumerate(zip(depths, heads, strict=True)):
            grid, dim = spec_size // patch >> i, width << i
            blocks = [Block(dim, n_heads, grid, window, bool(j % 2), mlp_ratio, next(rates)) for j in range(depth)]
            self.layers.append(Stage(blocks, PatchMerging(dim) if i < len(depths) - 1 else None))
        self.norm = nn.LayerNorm(self.dim)
        self.apply(init_weights)
        if fusion.endswith("_1d"):
            self.mel_conv1d, self.fusion_model = frames_conv(n_mels), fusion_model(fusion, n_mels)

    def forward(self, mel: Tensor | Mels) -> Tensor:
        mels = normalise(self.bn0, mel if isinstance(mel, Mels) else alone(mel))
        if self.fusion.endswith("_1d"):
            mels = fuse_frames(mels, self.mel_conv1d, self.fusion_model)
        mels = self.augment(mels)
        parts = self.fold(mels.parts) if len(mels.parts) else mels.parts
        x = self.patch_embed(mels._replace(whole=self.fold(mels.whole), parts=parts))
        for layer in self.layers:
            x = layer(x)
        return self.norm(x).mean(dim=(1, 2))

    def fold(self, mel: Tensor) -> Tensor:
        """Cut (batch, channels, frames, mels) in pieces of time, stacked on frequency: a square image."""
        pieces = self.spec_size // self.n_mels
        frames = self.spec_size * pieces
        if mel.shape[2] != frames:
            mel = F.interpolate(mel, (frames, self.n_mels), mode="bicubic", align_corners=True)
        image = mel.unflatten(2, (pieces, self.spec_size)).transpose(3, 4)
        return image.flatten(2, 3)  # (batch, channels, pieces * mels, spec_size)


class PatchEmbed(nn.Module):
    """Images (batch, 1, height, width) and 3 parts of some > tokens (batch, height / patch, width / patch, dim)."""

    def __init__(self, patch: int, dim: int, fusion: str) -> None:
        super().__init__()
        self.fusion = fusion
        self.proj = nn.Conv2d(4 if fusion == "channel_map" else 1, dim, patch, stride=patch)
        self.norm = nn.LayerNorm(dim)
        if fusion.endswith("_2d"):
            self.mel_conv2d = nn.Conv2d(1, dim, (patch, 3 * patch), stride=(patch, 3 * patch))
            self.fusion_model = fusion_model(fusion, dim)

    def forward(self, images: Mels) -> Tensor:
        x = self.proj(stack(images) if self.fusion == "channel_map" else images.whole)
        if self.fusion.endswith("_2d") and len(images.parts):
            local = self.mel_conv2d(images.parts.flatten(0, 1).unsqueeze(1))  # patches three times as long
            local = local.unflatten(0, (-1, 3)).permute(0, 2, 3, 1, 4).flatten(3)  # side by side in time
            local = F.pad(local, (0, x.shape[3] - local.shape[3]))
            x = fuse(x, local, images.longer, self.fusion_model)
        return self.norm(x.permute(0, 2, 3, 1))


class Stage(nn.Module):
    """Blocks over one grid of tokens (batch, grid, grid, dim), then, but in the last, a merge of tokens."""

    def __init__(self, blocks: list["Block"], downsample: "PatchMerging | None") -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return x if self.downsample is None else self.downsample(x)


class PatchMerging(nn.Module):
    """(batch, grid, grid, dim) > (batch, grid / 2, grid / 2, 2 * dim) (Swin, section 3.1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class Block(nn.Module):
    """Windowed attention and an MLP, each pre-normed and residual, on (batch, grid, grid, dim).

    Every other block shifts its windows by half, so that neighbours meet; a lone window has no neighbours.
    """

    def __init__(
        self, dim: int, heads: int, grid: int, window: int, shifted: bool, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        shift = window // 2 if shifted and grid > window else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, grid, min(window, grid), shift)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class WindowAttention(nn.Module):
    """Attention inside windows of a (shifted) grid with a learned relative bias (Swin, section 3.2)."""

    relative_position_index: Tensor
    shift_mask: Tensor

    def __init__(self, dim: int, heads: int, grid: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_index(window), persistent=False)
        self.register_buffer("shift_mask", shift_mask(grid, window, shift), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1]
        if self.shift:  # rolling by nothing would still copy
            x = x.roll((-self.shift, -self.shift), (1, 2))
        out = self.proj(self.attend(self.qkv(partition(x, self.window))))
        out = merge(out, self.window, grid)
        return out.roll((self.shift, self.shift), (1, 2)) if self.shift else out

    def attend(self, qkv: Tensor) -> Tensor:
        """Attend within each window: (batch * windows, tokens, 3 * dim) > (batch * windows, tokens, dim).

        Shifted windows have a mask each, so they stand beside the heads: one set of masks serves every clip.
        """
        groups, tokens = self.shift_mask.shape[0], qkv.shape[1]
        split = qkv.view(-1, groups, tokens, 3, self.heads, qkv.shape[2] // (3 * self.heads))
        q, k, v = split.permute(3, 0, 1, 4, 2, 5).flatten(2, 3)  # (batch, groups * heads, tokens, dim / heads)
        if q.device.type == "cpu" and q.requires_grad:  # as torch would, without its search for rows of -inf: 3 % less
            out = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).add_(self.bias()).softmax(dim=-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias())
        return out.unflatten(1, (groups, self.heads)).transpose(2, 3).reshape(len(qkv), tokens, -1)

    def bias(self) -> Tensor:
        """Return relative bias plus shift mask, (1, groups * heads, tokens, tokens)."""
        relative = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        return (relative + self.shift_mask).flatten(0, 1).unsqueeze(0)


class MLP(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class DropPath(nn.Module):
    """Drop a residual branch for whole clips in training, and scale up the rest (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(1 - self.rate)
        return x * (keep / (1 - self.rate))


def partition(x: Tensor, window: int) -> Tensor:
    """Cut (batch, grid, grid, dim) into windows (batch * windows, window ** 2, dim), row by row."""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return x.transpose(2, 3).reshape(-1, window * window, x.shape[-1])


def merge(windows: Tensor, window: int, grid: int) -> Tensor:
    """Undo `partition`."""
    x = windows.view(-1, grid // window, grid // window, window, window, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, grid, grid, windows.shape[-1])


def relative_index(window: int) -> Tensor:
    """Return for each pair of a window's tokens the row of the bias table, (window ** 2, window ** 2)."""
    places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    offset = places[:, None] - places[None] + window - 1
    return offset[..., 0] * (2 * window - 1) + offset[..., 1]


def shift_mask(grid: int, window: int, shift: int) -> Tensor:
    """Return (windows, 1, window ** 2, window ** 2): -100 between tokens that only the roll brought together.

    Without a shift it is one window of zeros. -100 is Swin's choice, kept so that outputs agree exactly.
    """
    if shift == 0:
        return torch.zeros(1, 1, window**2, window**2)
    place = torch.arange(grid)
    band = (place >= grid - window).long() + (place >= grid - shift).long()
    region = partition((3 * band[:, None] + band[None]).view(1, grid, grid, 1), window).squeeze(-1)
    return ((region[:, None] != region[:, :, None]) * -100.0).unsqueeze(1)


def init_weights(module: nn.Module) -> None:
    """Draw linear layers as Swin does; all else keeps torch's defaults."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_sizes(
    n_mels: int,
    spec_size: int,
    patch: int,
    width: int,
    depths: Sequence[int],
    heads: Sequence[int],
    window: int,
) -> None:
    """Raise SizeError, naming the numbers, unless mel, image, patches, windows and heads tile each other."""
    if len(depths) != len(heads):
        raise SizeError(f"HTSAT: {len(depths)} depths but {len(heads)} heads: give one of each per stage")
    if spec_size % n_mels:
        raise SizeError(f"HTSAT: spec_size {spec_size} is no multiple of n_mels {n_mels}: choose one that is")
    coarsest = patch << (len(depths) - 1)
    if spec_size % coarsest:
        raise SizeError(
            f"HTSAT: spec_size {spec_size} cannot be halved {len(depths) - 1} times after patches of "
            f"{patch}: use a multiple of {coarsest}, or fewer stages"
        )
    for i, n_heads in enumerate(heads):
        grid, dim = spec_size // patch >> i, width << i
        if grid % min(window, grid):
            raise SizeError(f"HTSAT: stage {i} has a grid of {grid}, which windows of {window} do not tile")
        if dim % n_heads:
            raise SizeError(f"HTSAT: stage {i} is {dim} wide, which {n_heads} heads do not divide")
