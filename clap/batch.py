"""What a step of training gets: pairs of sound and caption as tensors."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clap import features
from clap.features import Mels

BLOCK = 128  # texts that are embedded together


@dataclass(frozen=True)
class Batch:
    """Pairs for one step, by the length of their text. Rows with the same caption or clip id are no negatives."""

    audio: Tensor | Mels  # (batch, n_samples) int16; mels of a fused model, or, float16, from the cache
    input_ids: Tensor  # (batch, tokens of the longest caption)
    attention_mask: Tensor  # (batch, tokens of the longest caption)
    caption_ids: Tensor  # (batch,) int64, hash of the cleaned caption
    clip_ids: Tensor  # (batch,) int64, hash of the id
    ids: tuple[str, ...]
    failed: int = 0  # clips that did not decode, for which others stand in
    blocks: tuple[tuple[int, int, int], ...] = ()  # (first row, end, tokens) of texts that share a length; set by `to`

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device, its mels as float32."""

        def moved(tensor: Tensor) -> Tensor:
            tensor = tensor.to(device, non_blocking=True)
            return tensor.float() if tensor.dtype == torch.float16 else tensor

        return replace(self.map(moved), blocks=tuple(text_blocks(self.attention_mask)))

    def texts(self) -> list[tuple[Tensor, Tensor]]:
        """Tokens and mask of the rows in blocks, in order, each cut to its own longest caption."""
        blocks = self.blocks or text_blocks(self.attention_mask)
        return [(self.input_ids[a:b, :n], self.attention_mask[a:b, :n]) for a, b, n in blocks]

    def pin(self) -> "Batch":
        """The same batch in memory from which a GPU copies while the CPU goes on."""
        return self.map(Tensor.pin_memory)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with every tensor changed."""
        changed: dict[str, Any] = {
            name: Mels(*map(change, value)) if isinstance(value, Mels) else change(value)
            for name, value in vars(self).items()
            if isinstance(value, Tensor | Mels)
        }
        return replace(self, **changed)

    def split(self, size: int) -> list["Batch"]:
        """Consecutive micro-batches of at most `size` rows, their text cut to the longest of each.

        Lengths are looked at: on a GPU that would wait for it, so split first.
        """
        audio = features.split(self.audio, size) if isinstance(self.audio, Mels) else self.audio.split(size)
        texts = zip(self.input_ids.split(size), self.attention_mask.split(size), strict=True)
        parts = []
        for i, (heard, (tokens, mask)) in enumerate(zip(audio, texts, strict=True)):
            rows, longest = slice(i * size, (i + 1) * size), int(lengths(mask).amax())
            ids = (self.caption_ids[rows], self.clip_ids[rows], self.ids[rows])
            parts.append(Batch(heard, tokens[:, :longest], mask[:, :longest], *ids, self.failed if i == 0 else 0))
        return parts


def text_blocks(mask: Tensor) -> Iterator[tuple[int, int, int]]:
    """(first row, end, longest text) of every BLOCK rows, which are sorted: short captions aren't padded to long ones.

    Padding to the longest caption of a thousand would cost several times what the captions do.
    """
    for start in range(0, len(mask), BLOCK):
        rows = mask[start : start + BLOCK]
        yield start, start + len(rows), int(lengths(rows).amax())


def lengths(mask: Tensor) -> Tensor:
    """(batch,) tokens up to the last that is not padding, of (batch, n); an unknown word inside a caption counts."""
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1)
