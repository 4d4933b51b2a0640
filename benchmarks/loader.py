"""Loaders side by side: clips per CPU second of ours, of ours with the cache of log-mels, and of laion_clap's.

In the environment of its own that benchmarks/laion_loader.py describes (a few minutes on one thread):

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=../shared/tools:. peers/bin/python benchmarks/loader.py \
        ../shared/data/esc10 --out runs/loader

Clips of 10 s, 30 s and 5 min are recordings of ESC-10 joined; the same are read as our Parquet and as tars that
export-webdataset made of it. Theirs is get_wds_dataset as their training calls it (shuffled; decoding, filling, cutting
and fusion mels their own), iterated in this process without the DataLoader's, which would only add to its cost; its
tokenizer is a stand-in that costs nothing, ours is real. torchaudio.load goes through soundfile (laion_loader.py).

"waveform" ends at a batch of waveforms, which is what both loaders give a plain model. "mel" goes on to the log-mels,
that both models make of them on their device: theirs with torchlibrosa, ours with clap.features, here on the CPU.
"fusion" ends at the four mels of every clip, which their loader makes. With the cache ours ends at mels in both.
"decoding" is whole clips from FLAC to 16 bits and nothing else: no loader that hears them whole can be faster.
One process, one thread, each in turn, CPU seconds of all threads; the median of the turns.
"""

import argparse
import csv
import io
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import soundfile
import soxr
import torch

ROOT = Path(__file__).resolve().parents[1]
OURS = [ROOT / ".venv" / "bin" / "python", ROOT / "cli.py"]  # in the environment of `make setup`
RATE = 48000
CLIPS = {10: 48, 30: 24, 300: 8}  # seconds: how many
BATCH = 8
CACHED_EPOCHS = 20  # one pass over the cache is too short to be measured


def main() -> None:
    """Print a line for every length and end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of ESC-10 with metadata.csv")
    parser.add_argument("--out", type=Path, default=Path("runs/loader"))
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'clips':>6} {'end':>9} {'theirs':>8} {'ours':>8} {'ratio':>6} {'cached':>8} {'ratio':>6}", end=" ")
    print(f"{'decoding':>8} {'ratio':>6} {'building':>9}")
    for seconds, n in CLIPS.items():
        folder = given.out.resolve() / f"{seconds}s"
        prepare(given.data.resolve(), folder, seconds, n)
        for end in ("waveform", "mel", "fusion"):
            ways = {
                "theirs": theirs(folder, end),
                "ours": ours(folder, end, "none"),
                "cached": ours(folder, end, "mel"),
                "decoding": decoding(folder),
            }
            found = {name: measured(way, given.turns) for name, way in ways.items()}
            told = [f"{found['theirs']:8.1f}", f"{found['ours']:8.1f}", f"{found['ours'] / found['theirs']:6.1f}"]
            told += [f"{found['cached']:8.0f}", f"{found['cached'] / found['theirs']:6.0f}"]
            told += [f"{found['decoding']:8.1f}", f"{found['decoding'] / found['theirs']:6.1f}"]
            print(f"{seconds:>4} s {end:>9} {' '.join(told)} {building(folder, end):9.1f}", flush=True)


def measured(way: Callable[[], int], turns: int) -> float:
    """Clips per CPU second, the median of some turns after one that is not counted, in which tables are made."""
    rates = []
    for _ in range(turns + 1):
        start = time.process_time()
        rates.append(way() / (time.process_time() - start))
    return statistics.median(rates[1:])


# ---- data


def prepare(data: Path, folder: Path, seconds: int, n: int) -> None:
    """`n` joined clips as our dataset and as tars."""
    if (folder / "tars").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "wav").mkdir(parents=True)
    paths = [data / row["path"] for row in csv.DictReader((data / "metadata.csv").open(encoding="utf-8"))]
    sounds = joined(paths, seconds * RATE)
    with (folder / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption", "split"])
        for i in range(n):
            soundfile.write(folder / "wav" / f"{i}.wav", next(sounds), RATE)
            writer.writerow([folder / "wav" / f"{i}.wav", f"Sounds number {i}, one after the other", "train"])
    build = ["build-dataset", "csv", "--input", folder / "clips.csv", "--out", folder / "ours", "--dedup", "none"]
    subprocess.run([*map(str, [*OURS, *build])], check=True, stdout=subprocess.DEVNULL)
    export = ["export-webdataset", folder / "ours" / "dataset", "--out", folder / "tars" / "clips", "--per-tar", 64]
    subprocess.run([*map(str, [*OURS, *export])], check=True, stdout=subprocess.DEVNULL)


def joined(paths: list[Path], n_samples: int) -> Iterator[np.ndarray]:
    """Recordings one after the other, again from the first after the last, cut to (n_samples,)."""
    held, at = np.empty(0, np.float32), 0
    while True:
        while len(held) < n_samples:
            wave, rate = soundfile.read(paths[at % len(paths)], dtype="float32")
            held, at = np.concatenate([held, soxr.resample(wave, rate, RATE)]), at + 1
        yield held[:n_samples]
        held = held[n_samples:]


# ---- the loaders, each a function that reads all clips and returns how many


def theirs(folder: Path, end: str) -> Callable[[], int]:
    """laion_clap's loader as its training uses it, and its front end."""
    import laion_clap_offline  # noqa: F401 - first, as it says
    import torchaudio
    from laion_clap.training import data
    from laion_loader import load, settings
    from torchlibrosa.stft import LogmelFilterBank, Spectrogram

    torchaudio.load = load
    tars = sorted(map(str, (folder / "tars" / "clips" / "train").glob("*.tar")))
    given = settings(tars, BATCH, "none")
    asked = SimpleNamespace(**{**vars(given), "data_truncating": "fusion" if end == "fusion" else "rand_trunc"})
    audio = {"sample_rate": RATE, "window_size": 1024, "hop_size": 480, "mel_bins": 64, "fmin": 50, "fmax": 14000}
    spectrum = Spectrogram(1024, 480, 1024, freeze_parameters=True)
    bands = LogmelFilterBank(RATE, 1024, 64, 50, 14000, amin=1e-10, top_db=None, freeze_parameters=True)

    def read() -> int:
        sizes = str(Path(tars[0]).parent / "sizes.json")
        made = data.get_wds_dataset(asked, {"audio_cfg": audio}, is_train=True, is_local=True, sizefilepath_=sizes)
        n = 0
        with torch.no_grad():
            for batch in made.dataloader.pipeline[0].dataset:
                n += len(batch["waveform"])
                if end == "mel":
                    bands(spectrum(batch["waveform"]))
        return n

    return read


def ours(folder: Path, end: str, cache: str) -> Callable[[], int]:
    """Our loader, and our front end."""
    from clap import cache as mels
    from clap.data import open_split
    from clap.features import front_end
    from clap.loader import Loader
    from clap.text import train_tokenizer

    data = open_split(str(folder / "ours" / "dataset"), "train", (), RATE)
    config = asked(folder, end, cache)
    if cache == "mel":
        mels.build(data, config)
    loader = Loader(data, train_tokenizer(data.all_captions(), 300), config)
    log_mel = front_end(config.model)

    def read() -> int:
        n = 0
        for batch in loader.batches():
            n += len(batch)
            if end == "mel" and cache == "none":
                log_mel(batch.audio)
        return n

    return read


def asked(folder: Path, end: str, cache: str) -> Any:
    """Settings of the paper's plain or fused model."""
    from clap.config import ModelConfig, TrainConfig

    model = ModelConfig(fusion="aff_2d", mel_scale="htk") if end == "fusion" else ModelConfig()
    epochs = CACHED_EPOCHS if cache == "mel" else 1
    return TrainConfig(
        model, batch_size=BATCH, epochs=epochs, workers=1, cache=cache, cache_dir=str(folder / "cache"), device="cpu"
    )


def decoding(folder: Path) -> Callable[[], int]:
    """libsndfile alone, from memory."""
    from pyarrow import parquet

    cells = parquet.read_table(folder / "ours" / "dataset" / "data", columns=["audio"])["audio"].to_pylist()

    def read() -> int:
        for cell in cells:
            soundfile.read(io.BytesIO(cell["bytes"]), dtype="int16")
        return len(cells)

    return read


def building(folder: Path, end: str) -> float:
    """Clips per CPU second of making the cache anew."""
    from dataclasses import replace

    from clap import cache
    from clap.data import open_split

    data = open_split(str(folder / "ours" / "dataset"), "train", (), RATE)
    shutil.rmtree(folder / "again", ignore_errors=True)
    start = time.process_time()
    cache.build(data, replace(asked(folder, end, "mel"), cache_dir=str(folder / "again")))
    return len(data) / (time.process_time() - start)


if __name__ == "__main__":
    main()
