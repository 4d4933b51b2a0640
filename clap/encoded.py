"""What a model's audio side makes of a dataset, computed once: features or mels in a memory-mapped file."""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clap.checkpoint import atomic
from clap.data import Dataset
from clap.embed import waveforms
from clap.features import mels_for
from clap.model import CLAP, chunks
from clap.probe_config import ProbeError
from clap.shards import identity
from clap.systems import dataset_rate, digest

BATCH = 32  # clips heard at once


def encoded(model: Any, data: Dataset, kind: str, folder: Path) -> np.ndarray:
    """(clips, ...) float32, as `encode` makes them, read in place from FOLDER/<kind>-<key>.npy.

    The key stands for the model (systems.digest), the rows and the content of their shards: what is there already is
    not computed again, unless the model is a foreign system that does not name its weights.
    """
    known = digest(model)
    key = sha256(f"{known} {version(data)}".encode()).hexdigest()[:16]
    path = folder / f"{kind}-{key}.npy"
    if not known or not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        parts = chunks(listen(model, data, whole=kind != "mels"), BATCH)
        keep(path, len(data), (encode(model, part, kind) for part in parts))
    return np.load(path, mmap_mode="r")


def listen(model: Any, clips: Any, whole: bool = True) -> Iterator[np.ndarray]:
    """Mono waveforms, at the model's rate, of files or of a Dataset; `whole` or cut to the centre window.

    A model that is not fused hears only the centre anyway.
    """
    rate = dataset_rate(model)
    if not isinstance(model, CLAP):
        return waveforms(clips, rate, rate, 0, "whole")
    mode = "whole" if whole and model.config.fusion != "none" else "centre"
    return waveforms(clips, rate, rate, model.config.n_samples, mode)


@torch.no_grad()
def encode(model: Any, sounds: Sequence[np.ndarray], kind: str) -> np.ndarray:
    """Features of mono clips at the model's rate, in evaluation mode.

    "normalised": (clips, dim) embeddings, of any system that has embed_audio. Of a CLAP also "projection": these
    before they are L2-normalised, which LAION-CLAP's probes see, and "mels": (clips, frames, mels) dB of the centre.
    """
    if kind == "normalised":
        return np.asarray(model.embed_audio(list(sounds), sample_rate=dataset_rate(model)), np.float32)
    if not isinstance(model, CLAP):
        raise ProbeError(f"{type(model).__name__} gives embeddings only: use --features normalised, no --finetune")
    mels = mels_for(sounds, model.config, "centre" if kind == "mels" else "auto", None, model.log_mel)
    if kind == "mels":
        return mels.whole[:, 0].cpu().numpy()
    model.eval()
    return model.audio_projection(model.audio(mels)).float().cpu().numpy()


def version(data: Dataset) -> str:
    """What a dataset's rows and their audio follow from."""
    return f"{data.fingerprint()} {[identity(shard) for shard in dict.fromkeys(shard for shard, _ in data.groups)]}"


def keep(path: Path, n: int, blocks: Iterable[np.ndarray]) -> None:
    """Write n rows, which come in blocks, as one array in a .npy file, whole or not at all."""
    blocks = iter(blocks)
    first = next(blocks)
    with atomic(path) as temporary:
        array = np.lib.format.open_memmap(temporary, "w+", np.float32, (n, *first.shape[1:]))
        at = 0
        for block in shown(chain([first], blocks), -(-n // len(first)), "encoding"):
            array[at : at + len(block)] = block
            at += len(block)
        array.flush()


def shown(items: Iterable[Any], n: int, doing: str) -> Iterable[Any]:
    """The items, with a progress bar on stderr while they come, if it is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, doing, n, console=console, transient=True, disable=not console.is_terminal)
