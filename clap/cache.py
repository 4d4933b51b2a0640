"""Log-mels of whole clips on disk, computed once: an epoch then decodes nothing, and makes no spectra.

    FOLDER/<key>/mels.f16       (frames, mels) float16, clip after clip: 128 KB for 10 s of the paper's front end
    FOLDER/<key>/ends.npy       (rows + 1,) 0, and where each clip ends, in frames; one that did not decode has none
    FOLDER/<key>/groups.npy     (row groups + 1,) 0, and the row after the last of each
    FOLDER/<key>/about.json     the shard and the front end, for people

Such a folder serves a shard, under a key that changes with the shard's content and with every setting that a mel
depends on; so it may lie anywhere and serve many runs. It is written beside and renamed: one that exists is complete.
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from clap.checkpoint import sync
from clap.config import ModelConfig, TrainConfig
from clap.data import DataError, Dataset, Tally, Undecodable, decode, place
from clap.features import LogMel, Mels, alone, front_end, fuse, window_frames
from clap.fill import fill
from clap.shards import first_clips, identity, read, read_group
from clap.threads import threads

if TYPE_CHECKING:
    import pyarrow.parquet as pq

SETTINGS = (
    "sample_rate", "n_samples", "filling", "int16_quantize",
    "n_fft", "win", "hop", "n_mels", "fmin", "fmax", "mel_scale",
)  # fmt: skip
LAYOUT = 1  # of the files
SOME = 8  # shards, and clips of each, from which the room for all is estimated
OPENING = 8  # shards that are opened at once: of remote ones it is the waiting that takes time


@dataclass(frozen=True)
class Kept:
    """The log-mels of a shard."""

    path: Path  # of mels.f16
    n_mels: int
    ends: np.ndarray  # (rows + 1,)
    groups: np.ndarray  # (row groups + 1,)

    def clip(self, group: int, offset: int) -> np.ndarray:
        """(frames, n_mels) of a row of a row group; no frames if it did not decode.

        The file is open only as long as the array lives: a process may have fewer files open than there are shards.
        """
        row = self.groups[group] + offset
        start, end = self.ends[row : row + 2].tolist()
        shape = (end - start, self.n_mels)
        if start == end:
            return np.empty(shape, np.float16)
        return np.memmap(self.path, np.float16, "c", 2 * start * self.n_mels, shape)


class Cache:
    """Log-mels of the rows of a dataset; DataError unless `build` has made them."""

    def __init__(self, data: Dataset, config: TrainConfig) -> None:
        folders = located(data, config)
        missing = [shard for shard, folder in folders.items() if not folder.is_dir()]
        if missing:
            raise DataError(f"{home(config)} has no log-mels of {missing[0]}: clap.cache.build makes them")
        self.data = data
        self.kept = {shard: open_kept(folder, config.model.n_mels) for shard, folder in folders.items()}

    def __getitem__(self, row: int) -> np.ndarray:
        """The log-mel of a row's whole clip, filled, (frames, n_mels) float16; Undecodable if there is none.

        It is mapped from the disk, so that of a long clip only the window is read that is cut from it.
        """
        shard, group = self.data.groups[self.data.group[row]]
        try:
            mel = self.kept[shard].clip(group, self.data.offset[row])
        except (OSError, ValueError) as error:  # gone; cut short
            raise DataError(f"log-mels cannot be read ({error}): start again, which makes what is missing") from error
        if not len(mel):
            raise Undecodable(f"{self.data.where(row)}: audio did not decode when it was cached")
        return mel


def crop(mel: np.ndarray, config: ModelConfig, rng: np.random.Generator, roll: bool = False) -> Mels:
    """What a model hears in training of a clip's whole log-mel (frames, mels): float16, of one clip.

    Of a plain model a window at random, `roll`ed or not; of a fused one what features.fuse makes of the whole. A window
    of a mel is the mel of a window that starts at a multiple of the hop, but for the two frames at either end whose
    spectrum reaches over it: these see the sound that is there, and not the window mirrored at its edge. On ESC-10,
    joined, that moves the first and the last frame by 3.6 dB on average, their neighbours by 0.04, and float16 all
    others by 0.03 at most: over a window of 10 s 0.012 dB.
    """
    chunk, fused = window_frames(config), config.fusion != "none"
    if fused:
        shift = rng.integers(len(mel)) if roll else 0
        mels = fuse(
            lambda frames: torch.from_numpy(mel[(frames.numpy() - shift) % len(mel)]).float(), len(mel), config, rng
        )
        return Mels(mels.whole.half(), mels.parts.half(), mels.longer)
    start = rng.integers(len(mel) - chunk + 1)
    mel = np.array(mel[start : start + chunk])
    if roll:
        mel = np.roll(mel, rng.integers(len(mel)), axis=0)
    return alone(torch.from_numpy(mel)[None, None])


def build(data: Dataset, config: TrainConfig) -> None:
    """Make the log-mels of all shards that have none, in config.workers threads, with a progress bar on a terminal.

    Whole shards are made, whatever the folds. Several processes may do so at once: each takes the next shard that no
    other one is at, and at the end waits for them. Killed halfway, it goes on after the last whole shard. Raises
    DataError if the disk has too little room, if it fills up, or if too many clips do not decode (see Tally).
    """
    missing = {shard: folder for shard, folder in located(data, config).items() if not folder.is_dir()}
    if not missing:
        return
    home(config).mkdir(parents=True, exist_ok=True)
    check_room([*missing], config)
    log_mel, tally = front_end(config.model), Tally(len(data))
    n_groups = sum(shard in missing for shard, _ in data.groups)
    with threads(1, config.workers) as (reader, decoders), progress(n_groups) as tick:
        for wait in (False, True):
            for shard, folder in missing.items():
                with locked(folder, wait) as mine:
                    if mine and not folder.is_dir():
                        mels = log_mels(shard, config.model, log_mel, reader, decoders, tally)
                        write(folder, mels, {"shard": str(shard), **settings(config.model)}, tick)


def log_mels(
    shard: Path | str,
    config: ModelConfig,
    log_mel: LogMel,
    reader: ThreadPoolExecutor,
    decoders: ThreadPoolExecutor,
    tally: Tally,
) -> Iterator[list[np.ndarray]]:
    """Of every row group the log-mels of its clips, (frames, n_mels) float16, of those that do not decode (0, n_mels).

    A row group is read while the one before it is decoded.
    """

    def work(flac: Any, where: str) -> np.ndarray | Undecodable:
        try:
            waveform = fill(decode(flac, config.sample_rate, 0, where), config.n_samples, config.filling)
        except Undecodable as error:
            return error
        return log_mel(torch.from_numpy(waveform)[None])[0, 0].half().contiguous().numpy()

    ids = read(shard, ids_of)
    reading = [reader.submit(read_group, shard, group) for group in range(min(1, len(ids)))]
    for group, names in enumerate(ids):
        flacs = reading.pop().result()
        if group + 1 < len(ids):
            reading.append(reader.submit(read_group, shard, group + 1))
        places = [place(shard, group, offset, name) for offset, name in enumerate(names)]
        made = list(decoders.map(work, flacs, places))
        tally.add(len(made), [str(each) for each in made if isinstance(each, Undecodable)])
        yield [np.empty((0, config.n_mels), np.float16) if isinstance(each, Undecodable) else each for each in made]


def ids_of(file: "pq.ParquetFile") -> list[list[str]]:
    """The ids of every row group."""
    return [file.read_row_group(i, columns=["id"])["id"].to_pylist() for i in range(file.num_row_groups)]


def write(folder: Path, groups: Iterable[list[np.ndarray]], about: dict[str, Any], tick: Callable[[], None]) -> None:
    """Write the log-mels of a shard, given row group after row group, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    ends, rows = [0], [0]
    try:
        temporary.mkdir()
        with (temporary / "mels.f16").open("wb") as file:
            for mels in groups:
                for mel in mels:
                    file.write(mel.data)
                    ends.append(ends[-1] + len(mel))
                rows.append(len(ends) - 1)
                tick()
        np.save(temporary / "ends.npy", ends)
        np.save(temporary / "groups.npy", rows)
        (temporary / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        for path in [*temporary.iterdir(), temporary]:
            sync(path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise DataError(f"log-mels cannot be written to {folder.parent} ({error}): give another --cache-dir") from error
    temporary.rename(folder)
    sync(folder.parent)


def open_kept(folder: Path, n_mels: int) -> Kept:
    """The log-mels that `write` wrote."""
    return Kept(folder / "mels.f16", n_mels, np.load(folder / "ends.npy"), np.load(folder / "groups.npy"))


def located(data: Dataset, config: TrainConfig) -> dict[Path | str, Path]:
    """The shards that rows of a dataset are in, and the folder of each one's log-mels."""
    shards = list(dict.fromkeys(data.groups[group][0] for group in np.unique(data.group)))
    with ThreadPoolExecutor(OPENING) as openers:
        known = zip(shards, openers.map(identity, shards), strict=True)
        keys = {shard: json.dumps([LAYOUT, each, settings(config.model)]) for shard, each in known}
    return {shard: home(config) / sha256(key.encode()).hexdigest()[:24] for shard, key in keys.items()}


def settings(config: ModelConfig) -> dict[str, Any]:
    """All that a log-mel depends on."""
    return {name: getattr(config, name) for name in SETTINGS}


def home(config: TrainConfig) -> Path:
    """The folder of the cache."""
    return Path(config.cache_dir or "~/.cache/clapboard").expanduser()


@contextmanager
def locked(folder: Path, wait: bool) -> Iterator[bool]:
    """Whether this process alone may make `folder`; if not `wait`, false where another one is at it."""
    with folder.with_name(f".{folder.name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def check_room(shards: list[Path | str], config: TrainConfig) -> None:
    """Raise DataError if the disk has no room for the log-mels of `shards`, by the first clips of some of them."""
    model, here = config.model, home(config)
    some = shards[:: -(-len(shards) // SOME)]
    flacs = [(flac, str(shard)) for shard in some for flac in first_clips(shard, 0, SOME) if flac]
    needs = sum(mel_bytes(samples(flac, where, model), model) for flac, where in flacs)
    per_byte = needs / max(1, sum(len(flac) for flac, _ in flacs))
    with ThreadPoolExecutor(OPENING) as openers:
        needed = round(per_byte * sum(openers.map(audio_bytes, shards)))
    free = shutil.disk_usage(here).free
    if needed > free:
        raise DataError(
            f"the log-mels need about {needed / 1e9:.1f} GB ({mel_bytes(10 * model.sample_rate, model) / 1e3:.0f} KB "
            f"for 10 s), {here} has {free / 1e9:.1f}: give --cache-dir on a larger disk, or --cache none"
        )


def mel_bytes(n_samples: int, config: ModelConfig) -> int:
    """Bytes of the log-mel of a clip, once it is filled."""
    return 2 * config.n_mels * (max(n_samples, config.n_samples) // config.hop + 1)


def samples(flac: Any, where: str, config: ModelConfig) -> int:
    """Length of a clip, decoded, as its header may claim any; 0 if it does not decode."""
    try:
        return len(decode(flac, config.sample_rate, 0, where))
    except Undecodable:
        return 0


def audio_bytes(shard: Path | str) -> int:
    """Bytes of the audio of a shard, by its footer."""

    def work(file: "pq.ParquetFile") -> int:
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        columns = [group.column(index) for group in groups for index in range(group.num_columns)]
        return sum(each.total_uncompressed_size for each in columns if each.path_in_schema == "audio.bytes")

    return read(shard, work)


@contextmanager
def progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error, if that is a terminal; what it yields moves it on."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("log-mels", total=total)
        yield lambda: bar.advance(task)
