"""What can be embedded, files, arrays and rows of a dataset, as mono waveforms at the model's rate."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from clap.checkpoint import atomic
from clap.data import DataError, Dataset, Undecodable, decode, read_group

if TYPE_CHECKING:
    from clap.model import CLAP
    from clap.systems import System

logger = logging.getLogger(__name__)
SOUNDS = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"}
OTHERS = {".m4a", ".mp4", ".aac", ".webm", ".wma", ".mka", ".mkv", ".amr"}  # sounds that libsndfile does not open
EXACT = {"WAV", "WAVEX", "FLAC", "AIFF", "AU", "CAF", "W64"}  # formats in which a seek is exact to the sample
WORKERS = 4
BATCH = 32  # files


def waveforms(clips: Any, sample_rate: int, wanted: int, window: int, mode: str) -> Iterator[np.ndarray]:
    """Mono (samples,) at `wanted` Hz, float32, or int16 of a dataset, decoded in threads a few clips ahead.

    `window` is the length of the model's clips; with the mode "centre" longer ones come cut to it. Raises DataError,
    which names the clip.
    """
    cut = window if mode == "centre" else 0
    if isinstance(clips, Dataset):
        if clips.sample_rate != wanted:
            raise DataError(
                f"{clips.name} is opened at {clips.sample_rate} Hz, the model expects {wanted}: open it at {wanted}"
            )
        return ahead(compressed(clips), lambda item: from_row(clips, item, cut))
    numbers = getattr(getattr(clips, "dtype", None), "kind", "f") not in "OSUT"  # not an array of paths or of arrays
    if isinstance(clips, str | Path) or (numbers and getattr(clips, "ndim", 2) == 1):
        clips = [clips]

    def one(item: tuple[int, Any]) -> np.ndarray:
        index, clip = item
        if isinstance(clip, str | Path):
            return centre(checked(*from_file(clip, wanted, cut), wanted, str(clip)), cut)
        array = clip.detach().cpu().numpy() if isinstance(clip, torch.Tensor) else np.asarray(clip)
        return centre(checked(array, sample_rate, wanted, f"clip {index}"), cut)

    return ahead(enumerate(clips), one)


def ahead(items: Iterable[Any], work: Callable[[Any], np.ndarray]) -> Iterator[np.ndarray]:
    """What `work` makes of the items, in order, in threads; never more than a few items before they are wanted."""
    iterator, pending = iter(items), deque[Future[np.ndarray]]()
    with ThreadPoolExecutor(WORKERS) as threads:
        while True:
            pending.extend(threads.submit(work, item) for item in islice(iterator, 2 * WORKERS - len(pending)))
            if not pending:
                return
            yield pending.popleft().result()


def compressed(data: Dataset) -> Iterator[tuple[int, Any]]:
    """Every row with its compressed audio, of which one row group is held at a time."""
    for rows in data.members():
        flacs = read_group(*data.groups[data.group[rows[0]]])
        yield from ((row, flacs[data.offset[row]]) for row in rows.tolist())


def from_row(data: Dataset, item: tuple[int, Any], cut: int) -> np.ndarray:
    """One clip (samples,) int16, of a longer one the centre window of `cut` samples (0: no limit); not filled."""
    row, flac = item
    return decode(flac, data.sample_rate, cut, data.where(row))


def from_file(path: str | Path, wanted: int, cut: int) -> tuple[np.ndarray, int]:
    """(channels, samples) float32 and the rate of a file that libsndfile opens; its centre where that will do."""
    import soundfile

    if not Path(path).is_file():
        raise DataError(f"{path} is not a file: give the path of a sound")
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:
            exact = cut and file.samplerate == wanted and file.format in EXACT and file.frames > cut
            if exact:
                file.seek((file.frames - cut) // 2)
            return file.read(cut if exact else file.frames, dtype="float32", always_2d=True).T, file.samplerate
    except soundfile.LibsndfileError as error:
        raise DataError(f"{path} does not decode ({error}): give wav, flac, ogg or mp3") from error


def checked(waveform: np.ndarray, rate: int, wanted: int, where: str) -> np.ndarray:
    """Mono (samples,) float32 at `wanted` Hz; DataError if it is empty or not finite."""
    if waveform.dtype != np.int16 and not np.issubdtype(waveform.dtype, np.floating):
        raise DataError(f"{where} is of {waveform.dtype}: give floats in [-1, 1], or int16")
    waveform = mono(waveform)
    if rate != wanted:
        import soxr

        waveform = soxr.resample(waveform, rate, wanted)
    if not len(waveform):
        raise DataError(f"{where} is empty: leave it out")
    if not np.isfinite(waveform).all():
        raise DataError(f"{where} holds NaN or infinity: leave it out, or decode it again")
    return waveform


def centre(waveform: np.ndarray, cut: int) -> np.ndarray:
    """The centre window of `cut` samples (0: all), as a copy, so that a batch does not hold its whole clips."""
    if not 0 < cut < len(waveform):
        return waveform
    start = (len(waveform) - cut) // 2
    return waveform[start : start + cut].copy()


def mono(waveform: np.ndarray) -> np.ndarray:
    """(channels, samples) or (samples,), float or int16 > (samples,) float32, the mean of the channels."""
    if waveform.ndim > 2 or (waveform.ndim == 2 and len(waveform) > waveform.shape[1] > 0):
        raise DataError(f"an array of shape {waveform.shape}: give (samples,) or (channels, samples)")
    if waveform.dtype == np.int16:
        waveform = waveform / np.float32(32768)
    if waveform.ndim == 1 or len(waveform) == 1:
        return np.ascontiguousarray(waveform.reshape(-1), dtype=np.float32)
    return np.ascontiguousarray(waveform.mean(axis=0), dtype=np.float32)


def find(paths: Sequence[str | Path]) -> list[Path]:
    """Files, and the sounds in folders and below them, sorted; DataError if there is none.

    Sounds of other kinds in a folder are left out with a warning: `build-dataset` takes them.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        below = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else []
        found += [each for each in below if each.suffix.lower() in SOUNDS] if path.is_dir() else [path]
        if others := [each for each in below if each.suffix.lower() in OTHERS]:
            kinds = ", ".join(sorted({each.suffix.lower() for each in others}))
            logger.warning("%s: %d files left out (%s): make a dataset of them", path, len(others), kinds)
    if not found:
        raise DataError(f"no sounds in {', '.join(map(str, paths))}: give files or folders of {', '.join(SOUNDS)}")
    return found


def some(sounds: Any, rows: np.ndarray) -> Any:
    """These rows of a dataset, or these of a list of files."""
    if isinstance(sounds, Dataset):
        return replace(sounds, rows=sounds.rows.take(rows), group=sounds.group[rows], offset=sounds.offset[rows])
    return [sounds[row] for row in rows]


def embed_some(model: "System", sounds: Any, truncation: str = "auto") -> tuple[np.ndarray, dict[int, str]]:
    """(n, dim) embeddings of the files, or rows of a Dataset, that decode, and {place among all: why} of the others.

    A batch with a broken clip is halved until the clip is alone.
    """
    try:
        found = model.embed_audio(sounds, truncation=truncation)
        odd = np.flatnonzero(~np.isfinite(found).all(axis=1)).tolist()
        return np.delete(found, odd, axis=0), dict.fromkeys(odd, "the model's embedding of it is not finite")
    except DataError as error:
        if isinstance(sounds, Dataset) and not isinstance(error, Undecodable):
            raise  # a shard that cannot be read (a network that is down) is no fault of its clips
        if len(sounds) == 1:
            return np.empty((0, 0), np.float32), {0: str(error)}
    half = len(sounds) // 2
    first, broken = embed_some(model, some(sounds, np.arange(half)), truncation)
    second, others = embed_some(model, some(sounds, np.arange(half, len(sounds))), truncation)
    whole = [found for found in (first, second) if len(found)]
    return np.concatenate(whole or [first]), broken | {half + clip: why for clip, why in others.items()}


def embed_files(model: "CLAP", paths: Sequence[str | Path], out: str | Path, truncation: str = "auto") -> int:
    """Embed files and folders into `out`, a .npz of `files` (n,) and `embeddings` (n, dim); returns n.

    A file that does not decode is left out, with a warning; DataError if all are. `out` is written beside and renamed:
    one that is there is whole.
    """
    every, files, embeddings = find(paths), [], []
    if missing := [str(path) for path in every if not path.exists()]:
        raise DataError(f"{', '.join(missing)}: no such file")
    for start in range(0, len(every), BATCH):
        part = every[start : start + BATCH]
        found, broken = embed_some(model, part, truncation)
        for i, why in broken.items():
            logger.warning("left out: %s", why if str(part[i]) in why else f"{part[i]}: {why}")
        files += [str(path) for i, path in enumerate(part) if i not in broken]
        embeddings += [found] if len(found) else []
    if not files:
        raise DataError("not one of these sounds decodes")
    with atomic(Path(out)) as temporary, temporary.open("wb") as handle:
        np.savez(handle, files=np.array(files), embeddings=np.concatenate(embeddings))
    return len(files)
