"""Batches for training: compressed clips are shuffled in pools of row groups, and decoded last, in threads.

Order, crops and captions are functions of (seed, epoch, row), so a run that was interrupted takes up the
very batch it would have had next, without decoding what it skips. (Data-parallel training will give each
process its slice of every batch.)
"""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from clap.config import TrainConfig
from clap.data import DataError, Dataset, decode, read_group
from clap.text import clean, drop_words, tokenize

if TYPE_CHECKING:
    import pyarrow as pa

AHEAD = 3  # batches being decoded while one is in use


@dataclass(frozen=True)
class Batch:
    """Pairs for one step. Two rows with the same caption id, or clip id, are not each other's negatives."""

    waveform: Tensor  # (batch, n_samples) int16
    input_ids: Tensor  # (batch, tokens of the longest caption)
    attention_mask: Tensor  # (batch, tokens of the longest caption)
    caption_ids: Tensor  # (batch,) int64, hash of the cleaned caption
    clip_ids: Tensor  # (batch,) int64, hash of the id
    ids: tuple[str, ...]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        moved: dict[str, Any] = {
            name: (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Pair:
    """A clip as it enters a batch."""

    id: str
    waveform: np.ndarray  # (n_samples,) int16
    caption: str  # as published
    said: str  # as the model reads it


@dataclass(frozen=True)
class Loader:
    """Shuffled batches of a dataset; its length is the batches of an epoch (what is left over waits)."""

    data: Dataset
    tokenizer: Any
    config: TrainConfig

    def __post_init__(self) -> None:
        if not len(self):
            raise DataError(
                f"{self.data.name} has {len(self.data)} clips, which do not fill a batch of "
                f"{self.config.batch_size}: lower --batch-size"
            )

    def __len__(self) -> int:
        return len(self.data) // self.config.batch_size

    def batches(self, start: int = 0) -> Generator[Batch]:
        """Batches from number `start`, counted over all epochs, to the end of the last epoch."""
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(self.config.workers) as decoders:
            clips = self._clips(start, reader)
            pending: deque[list[Future[Pair]]] = deque()
            while rows := list(islice(clips, self.config.batch_size)):
                pending.append([decoders.submit(self._pair, *row) for row in rows])
                if len(pending) > AHEAD:
                    yield self._collate(pending.popleft())
            while pending:
                yield self._collate(pending.popleft())

    def _pools(self, start: int) -> Iterator[tuple[int, np.ndarray]]:
        """(epoch, rows of a pool) from batch `start` on."""
        size, n_batches = self.config.batch_size, len(self)
        for epoch in range(start // n_batches, self.config.epochs):
            skip = start % n_batches * size if epoch == start // n_batches else 0
            at = 0
            for rows in order(self.data.members(), self.config.pool, self.config.seed, epoch):
                wanted = rows[max(0, skip - at) : max(0, n_batches * size - at)]
                at += len(rows)
                if len(wanted):
                    yield epoch, wanted

    def _clips(self, start: int, reader: ThreadPoolExecutor) -> Iterator[tuple[int, int, "pa.Buffer"]]:
        """(epoch, row, compressed audio) in order; the next pool is read while this one is used."""
        ahead: deque[tuple[int, np.ndarray, Future[dict]]] = deque()
        pools = self._pools(start)
        while True:
            ahead.extend((*pool, reader.submit(self._read, pool[1])) for pool in islice(pools, 2 - len(ahead)))
            if not ahead:
                return
            epoch, rows, reading = ahead.popleft()
            groups = reading.result()
            for row in rows:
                yield epoch, int(row), groups[self.data.group[row]][self.data.offset[row]]

    def _read(self, rows: np.ndarray) -> dict[int, list]:
        return {int(index): read_group(*self.data.groups[index]) for index in np.unique(self.data.group[rows])}

    def _pair(self, epoch: int, row: int, flac: "pa.Buffer") -> Pair:
        rng = np.random.default_rng([self.config.seed, epoch, row])
        captions = self.data.captions(row, self.config.texts)
        caption = captions[rng.integers(len(captions))]
        said = drop_words(caption, self.config.word_dropout, rng)
        model = self.config.model
        waveform = decode(flac, model.sample_rate, model.n_samples, self.data.where(row), rng, model.filling)
        if self.config.roll:
            waveform = np.roll(waveform, rng.integers(len(waveform)))
        return Pair(self.data.rows["id"][row].as_py(), waveform, caption, said)

    def _collate(self, tasks: list[Future[Pair]]) -> Batch:
        pairs = [task.result() for task in tasks]
        said = [pair.said for pair in pairs]
        return Batch(
            torch.from_numpy(np.stack([pair.waveform for pair in pairs])),
            *tokenize(self.tokenizer, said, self.config.model.text_context),
            torch.tensor([identity(clean(pair.caption)) for pair in pairs]),
            torch.tensor([identity(pair.id) for pair in pairs]),
            tuple(pair.id for pair in pairs),
        )


def order(members: list[np.ndarray], pool: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Rows of an epoch in pools of at least `pool` rows: whole row groups in random order, shuffled together.

    members: the rows of every row group. Each row comes exactly once; (seed, epoch) fixes the order.
    """
    rng = np.random.default_rng([seed, epoch])
    held: list[np.ndarray] = []
    for index in rng.permutation(len(members)):
        held.append(members[index])
        if sum(map(len, held)) >= pool:
            yield rng.permutation(np.concatenate(held))
            held = []
    if held:
        yield rng.permutation(np.concatenate(held))


def identity(text: str) -> int:
    """A 63-bit hash, the same in every process."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 1
