"""Batches for training: compressed clips are shuffled in pools of row groups, and decoded last, in threads.

The order of an epoch is a function of (seed, epoch); crops and captions are functions of (seed, epoch, place in it).
A global batch is the same whatever the number of processes, of which each makes a slice of it. So a run that was
interrupted takes up the very batch it would have had next, on any number of them, without decoding what it skips.

A process reads, of a pool's row groups, the audio of its own rows; but as a pool mixes its row groups, many processes
read nearly all of them, each for itself. On one machine the page cache makes that cheap; for many machines that
stream, `cache = mel` reads each clip once.
"""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clap import features
from clap.batch import Batch, lengths
from clap.cache import Cache, crop
from clap.config import ConfigError, TrainConfig
from clap.data import DataError, Dataset, Tally, Undecodable, decode
from clap.features import Mels
from clap.fill import fill
from clap.order import epoch_length, order, visits
from clap.shards import read_group
from clap.text import clean, drop_words, tokenize
from clap.threads import threads

AHEAD = 2  # batches that are made while one is in use
TRIES = 100  # clips that are tried for one place in a batch


@dataclass(frozen=True)
class Pool:
    """Rows of an epoch that are shuffled together."""

    epoch: int
    first: int  # place in the epoch of its first row
    rows: np.ndarray


@dataclass(frozen=True)
class Pair:
    """A clip as it enters a batch."""

    id: str
    audio: np.ndarray | Mels  # (n_samples,) int16, or mels of one clip
    caption: str  # as published
    said: str  # as the model reads it
    failed: tuple[str, ...] = ()  # clips for which it stands in, because they did not decode, and why


class Loader:
    """Shuffled batches of a dataset for process `rank` of `world`; its length is the global batches of an epoch.

    What an epoch has left over waits for another one. With `cache = mel` that cache must be built (cache.build).
    """

    def __init__(self, data: Dataset, tokenizer: Any, config: TrainConfig, rank: int = 0, world: int = 1) -> None:
        self.data, self.tokenizer, self.config, self.rank, self.world = data, tokenizer, config, rank, world
        if config.batch_size % world:
            raise ConfigError(f"batch_size {config.batch_size} is no multiple of {world} processes: change it")
        if not len(self):
            raise DataError(
                f"{data.name} has {epoch_length(data)} clips an epoch, which do not fill a batch of "
                f"{config.batch_size}: lower --batch-size"
            )
        self.log_mel = features.front_end(config.model)
        self.pinned = config.device != "cpu" and torch.cuda.is_available()
        self.cache = Cache(data, config) if config.cache == "mel" else None

    def __len__(self) -> int:
        return epoch_length(self.data) // self.config.batch_size

    def batches(self, start: int = 0) -> Generator[Batch]:
        """This process's slices of the global batches from number `start`, counted over all epochs, to the last one."""
        share = self.config.batch_size // self.world
        tally = Tally(len(self) * share)
        with threads(1, self.config.workers, 1) as (reader, decoders, collator):
            places = self._places(start, reader)
            ready: deque[Future[Batch]] = deque()
            while True:
                while len(ready) <= AHEAD and (mine := list(islice(places, share))):
                    tasks = [decoders.submit(self._pair, *each) for each in mine]
                    ready.append(collator.submit(self._collate, tasks, tally))
                if not ready:
                    return
                yield ready.popleft().result()

    def _places(self, start: int, reader: ThreadPoolExecutor) -> Iterator[tuple[Pool, int, Future[dict[int, Any]]]]:
        """(pool, place in it, compressed audio by row) of this process; a pool is read while the last one is used."""
        ahead: deque[tuple[Pool, np.ndarray, Future[dict[int, Any]]]] = deque()
        pools = self._pools(start)
        while True:
            for pool, places in islice(pools, 2 - len(ahead)):
                ahead.append((pool, places, reader.submit(self._read, pool.rows[places])))
            if not ahead:
                return
            pool, places, flacs = ahead.popleft()
            yield from ((pool, place, flacs) for place in places.tolist())

    def _pools(self, start: int) -> Iterator[tuple[Pool, np.ndarray]]:
        """Pools from global batch `start` on, and the places in each that this process has."""
        size, n_batches = self.config.batch_size, len(self)
        share = size // self.world
        for epoch in range(start // n_batches, self.config.epochs):
            skip = start % n_batches * size if epoch == start // n_batches else 0
            first = 0
            for rows in order(visits(self.data, self.config.seed, epoch), self.config.pool, self.config.seed, epoch):
                places = np.arange(first, first + len(rows))
                wanted = (skip <= places) & (places < n_batches * size) & (places % size // share == self.rank)
                if wanted.any():
                    yield Pool(epoch, first, rows), np.flatnonzero(wanted)
                first += len(rows)

    def _read(self, rows: np.ndarray) -> dict[int, Any]:
        """Compressed audio by row; nothing if the cache serves."""
        if self.cache:
            return {}
        rows = np.unique(rows)
        found: dict[int, Any] = {}
        for group in np.unique(self.data.group[rows]):
            here = rows[self.data.group[rows] == group]
            shard, index = self.data.groups[group]
            found.update(zip(here.tolist(), read_group(shard, index, self.data.offset[here].tolist()), strict=True))
        return found

    def _pair(self, pool: Pool, place: int, flacs: Future[dict[int, Any]]) -> Pair:
        """The pair at a place of a pool; if its clip does not decode, one from a batch further on, and so forth."""
        failed: dict[int, str] = {}
        for turn in range(min(len(pool.rows), TRIES) + 1):
            at = (place + (self.config.batch_size + turn - 1 if turn else 0)) % len(pool.rows)
            row = int(pool.rows[at])
            if row in failed:  # once around a small pool, or a clip that comes twice in an epoch
                continue
            rng = np.random.default_rng([self.config.seed, pool.epoch, pool.first + place, turn])
            try:
                return self._made(row, rng, flacs.result(), tuple(failed.values()))
            except Undecodable as error:
                failed[row] = str(error)
        first, *_ = failed.values()
        raise DataError(f"{len(failed)} clips that should be heard one for the other all fail: {first}")

    def _made(self, row: int, rng: np.random.Generator, flacs: dict[int, Any], failed: tuple[str, ...]) -> Pair:
        captions = self.data.captions(row, self.config.texts)
        caption = captions[rng.integers(len(captions))]
        said = drop_words(caption, self.config.word_dropout, rng)
        return Pair(self.data.rows["id"][row].as_py(), self._audio(row, rng, flacs), caption, said, failed)

    def _audio(self, row: int, rng: np.random.Generator, flacs: dict[int, Any]) -> np.ndarray | Mels:
        """A random window of the clip, or for a fused model the mels of the whole."""
        model, fused = self.config.model, self.config.model.fusion != "none"
        if self.cache:
            return crop(self.cache[row], model, rng, self.config.roll)
        flac = flacs[row] if row in flacs else self._read(np.array([row]))[row]  # another's row that stands in
        wanted = 0 if fused else model.n_samples
        waveform = decode(flac, model.sample_rate, wanted, self.data.where(row), None if fused else rng)
        waveform = fill(waveform, model.n_samples, model.filling)
        if self.config.roll:
            waveform = np.roll(waveform, rng.integers(len(waveform)))
        return features.fused_mels(waveform, model, self.log_mel, rng) if fused else waveform

    def _collate(self, tasks: list[Future[Pair]], tally: Tally) -> Batch:
        pairs = [task.result() for task in tasks]
        failed = [each for pair in pairs for each in pair.failed]
        tally.add(len(pairs), failed)
        tokens, mask = tokenize(self.tokenizer, [pair.said for pair in pairs], self.config.model.text_context)
        rows = lengths(mask).argsort(stable=True)
        pairs = [pairs[row] for row in rows.tolist()]
        batch = Batch(
            joined([pair.audio for pair in pairs]),
            tokens[rows],
            mask[rows],
            torch.tensor([identity(clean(pair.caption)) for pair in pairs]),
            torch.tensor([identity(pair.id) for pair in pairs]),
            tuple(pair.id for pair in pairs),
            len(failed),
        )
        return batch.pin() if self.pinned else batch


def joined(audio: list[Any]) -> Tensor | Mels:
    """Waveforms, or mels, of clips as a batch."""
    if isinstance(audio[0], Mels):
        return features.collate(audio)
    return torch.from_numpy(np.stack(audio))


def identity(text: str) -> int:
    """A 63-bit hash, the same in every process."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 1
