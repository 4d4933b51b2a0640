"""Learning side by side: ESC-10's folds 1-3 with our trainer and with laion_clap's, zero-shot on fold 4.

In the environment of its own that benchmarks/laion_loader.py describes (half an hour on one thread):

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=../shared/tools:. peers/bin/python benchmarks/learning.py \
        ../shared/data/esc10 --out runs/learning

Theirs is laion_clap's own main.py with its flags, loader, ClipLoss, AdamW and schedule, on tars that export-webdataset
wrote. Three things around it are not its own: its HTSAT is made with smaller numbers (a CPU has to train it), its
loader is asked for clips of 5 s instead of 10, and torchaudio.load goes through soundfile.
Both train the same towers (HTSAT, and CLIP's text transformer with CLIP's BPE, from scratch), on the same 240 clips,
for the same epochs, with the same batch, learning rate, warm-up, weight decay and masks. In "plain" all else is as with
them too, so that only the code differs. "ours" has what our preset does beside that: equal captions attract, clips are
rolled, words dropped, gradients clipped, and there is a second scale. CPU seconds are those of the whole command that
trains, its start and its children included. A finished run is not trained again.
"""

import argparse
import csv
import resource
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
OURS = [ROOT / ".venv" / "bin" / "python", ROOT / "cli.py"]  # in the environment of `make setup`
WIDTH, LAYERS, HEADS, DIM = 128, 2, 4, 128  # of the text tower, and of the space that audio and text share
HTSAT = {"spec_size": 128, "embed_dim": 32, "depths": [2, 2, 2], "num_heads": [2, 4, 8]}  # as preset tiny-htsat
SECONDS, N_FFT, HOP, TIME_MASK, FREQ_MASK = 5, 2048, 960, 16, 8
BATCH, LR, WARMUP, DECAY = 16, 1e-3, 20, 0.01
THEIR_RECIPE = "--targets plain --scales one --no-roll --word-dropout 0 --clip-norm 1e9".split()
THEIR_FLAGS = (
    "--dataset-type webdataset --datasetnames esc10 --datasetinfos train --workers 1 --data-filling repeatpad "
    "--amodel HTSAT-tiny --tmodel transformer --no-eval --save-frequency 0"
).split()
PROMPTS = "This is a sound of {}.", "The sound of {}."  # the usual one; that of the captions in training


def main() -> None:
    """Train each in turn, seed after seed; print accuracy and CPU seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of ESC-10 with metadata.csv")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--runs", default="laion_clap,plain,ours", help="which, in turn")
    given = parser.parse_args()
    out = given.out.resolve()
    laion()
    prepare(given.data.resolve(), out)
    for name in given.runs.split(","):
        found = [once(name, out, given.epochs, seed) for seed in given.seeds.split(",")]
        means = [statistics.mean(column) for column in zip(*found, strict=True)]
        print(f"{name}: {means[0]:.0f} CPU s, accuracy {means[1]:.3f} with {PROMPTS[0]!r}, {means[2]:.3f} with "
              f"{PROMPTS[1]!r} ({len(found)} seeds, {given.epochs} epochs)", flush=True)  # fmt: skip


def once(name: str, out: Path, epochs: int, seed: str) -> tuple[float, float, float]:
    """CPU seconds of a run, and its accuracy on fold 4 with both prompts."""
    run = out / f"{name}-{epochs}-{seed}"
    cpu = train(name, out, run, epochs, seed)
    embedded = (their_embeddings if name == "laion_clap" else our_embeddings)(run, *held_out(out))
    scores = [accuracy(embedded[0], text, held_out(out)[1]) for text in embedded[1:]]
    print(f"    {name}, seed {seed}: {cpu:.0f} CPU s, accuracy {scores[0]:.4f}, {scores[1]:.4f}", flush=True)
    return cpu, scores[0], scores[1]


# ---- data


def prepare(data: Path, out: Path) -> None:
    """The same clips for both: folds 1-3 as our dataset and as tars, fold 4 to evaluate on; and the text tower."""
    if (out / "text").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    rows = list(csv.DictReader((data / "metadata.csv").open(encoding="utf-8")))
    for name, folds in {"learn": "123", "test": "4"}.items():
        with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows({**row, "path": data / row["path"]} for row in rows if row["fold"] in folds)
        cli("build-dataset", "csv", "--input", out / f"{name}.csv", "--out", out / name)
    cli("export-webdataset", out / "learn" / "dataset", "--out", out / "tars" / "esc10", "--per-tar", 120)
    clip_text(out / "text")


def held_out(out: Path) -> tuple[list[np.ndarray], list[str]]:
    """Clips of fold 4, (samples,) int16 each, and the label of each."""
    from clap.data import decode, open_split, read_group

    data = open_split(str(out / "test" / "dataset"), "train", (), 48000)
    flacs = [read_group(*data.groups[data.group[row]])[data.offset[row]] for row in range(len(data))]
    clips = [decode(flac, 48000, SECONDS * 48000, data.where(row)) for row, flac in enumerate(flacs)]
    return clips, [labels[0] for labels in data.rows["labels"].to_pylist()]


def accuracy(audio: np.ndarray, texts: np.ndarray, labels: list[str]) -> float:
    """Share of clips nearest to the text of their own label, texts in the order of sorted labels."""
    from clap import metrics

    names = sorted(set(labels))
    relevant = np.array([[label == name for name in names] for label in labels])
    return float(metrics.classification(audio @ texts.T, relevant, names)["accuracy"])


# ---- training, each by its own command line


def train(name: str, out: Path, run: Path, epochs: int, seed: str) -> float:
    """CPU seconds of training in `run`; a finished run is not trained again."""
    done = run / "cpu_seconds"
    if not done.exists():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        line = their_line(out, run, epochs) if name == "laion_clap" else our_line(name, out, run, epochs)
        subprocess.run([*map(str, line), "--seed", seed], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        done.write_text(str(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime))
    return float(done.read_text())


def our_line(name: str, out: Path, run: Path, epochs: int) -> list[object]:
    """Our training, its sizes those of the preset; what the preset sets and laion_clap shares is said again."""
    same = ["--epochs", epochs, "--batch-size", BATCH, "--lr", LR, "--warmup", WARMUP, "--weight-decay", DECAY]
    model = ["--preset", "tiny-htsat", "--text", out / "text", "--text-pooling", "auto", "--dim", DIM]
    recipe = THEIR_RECIPE if name == "plain" else []
    return [*OURS, "train", "--data", out / "learn" / "dataset", "--out", run, *model, *same, *recipe]


def their_line(out: Path, run: Path, epochs: int) -> list[object]:
    """laion_clap's main.py, as its training scripts call it."""
    where = ["--datasetpath", out / "tars", "--logs", run.parent, "--name", run.name, "--report-to", ""]
    same = ["--epochs", epochs, "--batch-size", BATCH, "--lr", LR, "--warmup", WARMUP, "--wd", DECAY]
    return [sys.executable, __file__, "train-laion", *where, *same, *THEIR_FLAGS]


def train_laion() -> None:
    """laion_clap's main() with the smaller model and the shorter clips."""
    laion()
    from training import data, main

    main.create_model = lambda *_, device, **__: (their_model().to(device), {"audio_cfg": {}})  # type: ignore
    data.get_wds_dataset = partial(data.get_wds_dataset, max_len=SECONDS * 48000)
    main.main()


# ---- models


def laion() -> None:
    """Import laion_clap, without a network and without torchcodec."""
    import laion_clap_offline  # noqa: F401 - first, as it says
    import torchaudio
    from laion_loader import load

    torchaudio.load = load
    import laion_clap  # noqa: F401 - puts its own folder on the path


def their_model() -> Any:
    """laion_clap's CLAP with a small HTSAT, by the arguments of its classes."""
    from clap_module import htsat, model
    from torchlibrosa.augmentation import SpecAugmentation

    sizes = {"window_size": N_FFT, "hop_size": HOP, "clip_samples": SECONDS * 48000, "model_type": "HTSAT"}
    audio = {**sizes, "model_name": "tiny", "audio_length": 1024}
    text = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": HEADS, "layers": LAYERS}
    width = HTSAT["embed_dim"] * 2 ** (len(HTSAT["depths"]) - 1)  # type: ignore
    model.create_htsat_model = lambda config, *_: htsat.HTSAT_Swin_Transformer(**HTSAT, config=config)
    made = model.CLAP(width, audio, {**text, "model_type": "transformer"}, joint_embed_shape=DIM)  # type: ignore
    made.audio_branch.spec_augmenter = SpecAugmentation(TIME_MASK, 2, FREQ_MASK, 2)
    return made


def clip_text(folder: Path) -> None:
    """A folder of CLIP's text transformer for transformers, random, of these sizes, with laion_clap's BPE."""
    from clap_module.tokenizer import SimpleTokenizer
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    bpe, start, end = SimpleTokenizer(), "<start_of_text>", "<end_of_text>"
    config = CLIPTextConfig(
        vocab_size=len(bpe.encoder), hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, hidden_act="gelu", bos_token_id=bpe.encoder[start], eos_token_id=bpe.encoder[end],
        pad_token_id=bpe.encoder[end],
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder)
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    CLIPTokenizer(bpe.encoder, list(bpe.bpe_ranks), **special, model_max_length=77).save_pretrained(folder)


def our_embeddings(run: Path, clips: list[np.ndarray], labels: list[str]) -> list[np.ndarray]:
    """Embeddings of clips, then of the labels in each prompt."""
    from clap.model import CLAP

    model = CLAP.from_pretrained(run)
    texts = [[prompt.format(name) for name in sorted(set(labels))] for prompt in PROMPTS]
    return [model.embed_audio(clips), *map(model.embed_text, texts)]


@torch.no_grad()
def their_embeddings(run: Path, clips: list[np.ndarray], labels: list[str]) -> list[np.ndarray]:
    """As `our_embeddings`, by laion_clap's own methods."""
    from clap_module import tokenize

    from clap.fill import fill

    model = their_model().eval()
    saved = torch.load(next((run / "checkpoints").glob("epoch_*.pt")), weights_only=False)
    model.load_state_dict(saved["state_dict"])
    waves = [{"waveform": torch.from_numpy(fill(clip, SECONDS * 48000) / np.float32(32767))} for clip in clips]
    texts = [tokenize([prompt.format(name) for name in sorted(set(labels))]) for prompt in PROMPTS]
    embedded = [torch.nn.functional.normalize(model.encode_text(text, "cpu"), dim=-1).numpy() for text in texts]
    return [model.get_audio_embedding(waves).numpy(), *embedded]


def cli(*arguments: object) -> None:
    """One of our commands."""
    subprocess.run([*map(str, [*OURS, *arguments])], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    if sys.argv[1:2] == ["train-laion"]:
        del sys.argv[1]
        train_laion()
    else:
        main()
