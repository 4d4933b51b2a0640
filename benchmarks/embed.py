"""Embed a folder of clips: ours against laion_clap and against transformers' processor and model, in one process.

In the environment of its own that benchmarks/laion_loader.py describes (random weights, the same for all three):

    HF_HUB_OFFLINE=1 PYTHONPATH=../shared/tools:. peers/bin/python benchmarks/embed.py ../shared/data/esc10

All read the same files with one thread of torch, in turns, so that what else the machine does is shared by all.
CPU seconds count every thread of the process, those that decode ahead included.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import laion_clap_offline  # noqa: F401 - first, as it says
import numpy as np
import torch
from parity import twins

BATCH = 8


def peers(folder: Path) -> dict[str, Callable[[list[str]], np.ndarray]]:
    """Each peer as a function from files to embeddings."""
    from clap.export import to_transformers

    theirs, ours = twins("HTSAT-tiny", fused=False)
    to_transformers(ours, folder)
    return {
        "ours": lambda files: ours.embed_audio(files, batch_size=BATCH),
        "ours, bf16": lambda files: ours.embed_audio(files, batch_size=BATCH, precision="bf16"),
        "laion_clap": lambda files: in_batches(files, lambda some: theirs.get_audio_embedding_from_filelist(some)),
        "transformers": transformers_peer(folder),
    }


def transformers_peer(folder: Path) -> Callable[[list[str]], np.ndarray]:
    """transformers as its documentation uses it: librosa, the processor, the model."""
    import librosa
    from transformers import ClapModel, ClapProcessor

    model, processor = ClapModel.from_pretrained(folder).eval(), ClapProcessor.from_pretrained(folder)

    def embed(some: list[str]) -> np.ndarray:
        clips = [librosa.load(path, sr=48000)[0] for path in some]
        found: Any = processor(audio=clips, sampling_rate=48000, return_tensors="pt")
        with torch.no_grad():
            return model.get_audio_features(**found).pooler_output.numpy()

    return lambda files: in_batches(files, embed)


@torch.no_grad()
def in_batches(files: list[str], embed: Callable[[list[str]], np.ndarray]) -> np.ndarray:
    """As many files at a time as ours takes; no gradients, although laion_clap would record them."""
    return np.concatenate([embed(files[i : i + BATCH]) for i in range(0, len(files), BATCH)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = sorted(str(path) for path in given.folder.rglob("*") if path.suffix in (".ogg", ".wav", ".flac"))
    files = found[:: max(1, len(found) // given.clips)][: given.clips]
    with tempfile.TemporaryDirectory() as folder:
        embed = peers(Path(folder))
    first = {name: each(files[:BATCH]) for name, each in embed.items()}  # and warm up
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in embed}
    for _ in range(given.rounds):
        for name, each in embed.items():
            wall, cpu = time.perf_counter(), time.process_time()
            each(files)
            spent[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    for name, rounds in spent.items():
        wall, cpu = (median(column) for column in zip(*rounds, strict=True))
        cosine = (first[name] * first["ours"]).sum(1).min()
        print(
            f"{name:14} {len(files) / wall:6.2f} clips/s, {cpu / len(files):6.3f} CPU s a clip, "
            f"least cosine to ours {cosine:.6f}"
        )


if __name__ == "__main__":
    main()
