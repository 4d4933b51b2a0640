"""Steps of training side by side: ours, laion_clap's model and loss, transformers' ClapModel and its loss.

HTSAT-tiny and RoBERTa-base with random weights, clips of 10 s at 48 kHz, real captions; forward, backward and AdamW,
the same batches for all, in turns. On a CPU in float32, in the environment that benchmarks/laion_loader.py describes:

    HF_HUB_OFFLINE=1 PYTHONPATH=../shared/tools:. peers/bin/python benchmarks/train.py
    .venv/bin/python benchmarks/train.py --runs ours,transformers             without laion_clap
    .venv/bin/python benchmarks/train.py --memory --runs ours,recompute       memory a clip, a process each
    .venv/bin/python benchmarks/train.py --flops                              FLOPs of the towers, for docs/scaling.md

On a GPU, in bfloat16, with the peak that its vendor states (an H200 SXM: 989 dense bf16 TFLOP/s):

    ... benchmarks/train.py --device cuda --batch 256 --steps 20 --peak 989 --runs ours,compile,laion,transformers
    ... benchmarks/train.py --device cuda --batch 4096 --micro 256 --steps 4 --peak 989 --runs ours,compile,recompute

Each run has a process of its own, so that none finds its memory cut up by another.
The runs: "ours", and ours with a setting ("compile", "recompute"); "laion" and "transformers" as they come, with texts
padded to 77 tokens, and each with texts as long as the batch's longest ("laion-dynamic", "transformers-dynamic").
All begin at waveforms. In the peers' favour: transformers gets our log-mel, for its own extractor, in numpy, costs ten
times as much; both get a fused AdamW, laion_clap also bfloat16; and neither clips gradients, as ours does.
Audio is noise, which costs what sound does. Captions are AudioCaps' and tokens are its words and marks, for there is
no tokenizer of RoBERTa's offline, whose pieces are about as many.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

with suppress(ImportError):  # then laion_clap needs the Hub
    import laion_clap_offline  # noqa: F401 - first, as it says

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
CAPTIONS = ROOT.parent / "shared" / "data" / "audiocaps" / "train.csv"
RUNS = "ours,laion,laion-dynamic,transformers,transformers-dynamic"
OURS = {"ours": {}, "compile": {"compile": True}, "recompute": {"recompute": True}}
Step = Callable[["Pairs"], object]
HERE: dict[str, Any] = {}  # of a process of its own: its step and batches


class Pairs(NamedTuple):
    """A batch as everyone needs it, on the device."""

    waveform: Tensor  # (batch, 480000) int16
    floats: Tensor  # (batch, 480000) float32
    short: dict[str, Tensor]  # input_ids and attention_mask (batch, tokens of the longest)
    padded: dict[str, Tensor]  # (batch, 77)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default=RUNS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", default="1", help="of torch on a CPU: 1, or 1,2 for one after the other")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--micro", type=int, default=0, help="ours: clips in memory at once (0: the whole batch)")
    parser.add_argument("--steps", type=int, default=2, help="steps in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", type=float, default=0, help="the device's peak TFLOP/s, to print MFU")
    parser.add_argument("--captions", type=Path, default=CAPTIONS)
    parser.add_argument("--profile", action="store_true", help="where a step of the first run spends its time")
    parser.add_argument("--memory", action="store_true", help="on a CPU: resident memory a clip")
    parser.add_argument("--flops", action="store_true", help="count FLOPs of the towers, and end")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.flops:
        return flops()
    if given.memory:
        return memory(given)
    for threads in map(int, given.threads.split(",")):
        race(given, threads)
    return None


# ---- the race


def race(given: argparse.Namespace, threads: int) -> None:
    """Every run in turns on the same batches; prints a table, ratios to the first run."""
    names, batches = given.runs.split(","), drawn(given, "cpu")
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    held: dict[str, int] = {}
    with ExitStack() as stack:
        runs = {name: stack.enter_context(process(name, given, threads)) for name in names}
        for turn in range(given.rounds + 1):
            for name, run in runs.items():
                wall, cpu, held[name] = run.submit(cost, given.device).result()
                spent[name] += [(wall, cpu)] if turn else []  # the first one warms up
                print(f"    turn {turn}, {name}: {cpu:.2f} CPU s", file=sys.stderr, flush=True)
        if given.json:
            return print(json.dumps(runs[names[0]].submit(peak).result()))
        if given.profile:
            runs[names[0]].submit(profile, given.device).result()
    clips, gflop = given.batch * given.steps, useful(batches)
    tokens = sum(len(each.short["input_ids"][0]) for each in batches) / len(batches)
    print(f"{given.device}, {threads} threads of torch, batch {given.batch}, longest caption {tokens:.1f} tokens, "
          f"{gflop:.1f} GFLOP a clip without padding")  # fmt: skip
    fastest = {name: [min(column) for column in zip(*rounds, strict=True)] for name, rounds in spent.items()}
    middle = {name: [median(column) for column in zip(*rounds, strict=True)] for name, rounds in spent.items()}
    first = middle[next(iter(middle))]
    for name, (wall, cpu) in middle.items():
        mfu = f", MFU {clips / wall * gflop / given.peak / 10:5.1f} %" if given.peak else ""
        mib = f", {held[name] / given.batch / 2**20:.0f} MiB a clip" if given.device != "cpu" else ""
        print(f"{name:21} {clips / wall:8.2f} clips/s ({wall / first[0]:.2f}), {clips / cpu:6.3f} clips per CPU s "
              f"({cpu / first[1]:.2f}; best round {clips / fastest[name][1]:.3f}){mfu}{mib}", flush=True)  # fmt: skip
    return None


def process(name: str, given: argparse.Namespace, threads: int) -> ProcessPoolExecutor:
    """A process that runs one contestant."""
    return ProcessPoolExecutor(1, get_context("spawn"), enter, (name, given, threads))


def enter(name: str, given: argparse.Namespace, threads: int) -> None:
    """Make this process's contestant and its batches."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    HERE["batches"], HERE["step"] = drawn(given, given.device), contestant(name, given)


def drawn(given: argparse.Namespace, device: str) -> list[Pairs]:
    """The batches of a turn."""
    words = spoken(given.captions)
    return [pairs(*words, given.batch, seed, device) for seed in range(given.steps)]


def peak() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cost(device: str) -> tuple[float, float, int]:
    """Wall and CPU seconds of a step on each batch, and on a GPU the bytes that were allocated for it on top."""
    step, batches = HERE["step"], HERE["batches"]
    gpu = torch.device(device).type == "cuda"
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if gpu else 0
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        step(batch)
    if gpu:
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall, cpu, torch.cuda.max_memory_allocated() - before if gpu else 0


def contestant(name: str, given: argparse.Namespace) -> Step:
    """The step of a run."""
    if name in OURS:
        return ours(OURS[name], given)
    peer, _, dynamic = name.partition("-")
    if peer not in PEERS or dynamic not in ("", "dynamic"):
        raise SystemExit(f"no run {name!r}: choose of {RUNS},compile,recompute")
    return PEERS[peer](given, bool(dynamic))


# ---- data


def spoken(path: Path) -> tuple[list[str], Any]:
    """Captions, and a tokenizer that knows their words."""
    from clap.text import train_tokenizer

    with path.open(encoding="utf-8", newline="") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    return captions, train_tokenizer(captions, 50265)


def pairs(captions: list[str], tokenizer: Any, size: int, seed: int, device: str) -> Pairs:
    """Noise, and captions drawn at random, by length as our loader hands them out."""
    from clap.text import tokenize

    rng = np.random.default_rng(seed)
    drawn = [captions[row] for row in rng.integers(len(captions), size=size)]
    said = sorted(drawn, key=lambda caption: len(tokenizer.tokenize(caption)))
    short = dict(zip(("input_ids", "attention_mask"), tokenize(tokenizer, said, 77), strict=True))
    long = tokenizer(said, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    waveform = torch.from_numpy(rng.integers(-3000, 3000, (size, 480_000), dtype=np.int16))
    found = waveform, waveform / 32768, short, {key: long[key] for key in short}
    return Pairs(*(to(part, device) for part in found))


def to(part: Any, device: str) -> Any:
    """A tensor, or a dict of some, on the device."""
    return {key: each.to(device) for key, each in part.items()} if isinstance(part, dict) else part.to(device)


# ---- who runs


def ours(settings: dict[str, Any], given: argparse.Namespace) -> Step:
    """Our trainer's own step (clap/step.py), with its clipping of gradients."""
    from clap.batch import Batch
    from clap.config import TrainConfig
    from clap.distributed import World
    from clap.step import make_optimizer, prepare, update

    config = replace(TrainConfig(micro_batch=given.micro), **settings)
    model, world = our_model().to(given.device), World(torch.device(given.device))
    prepare(model, config, world)
    optimizer = make_optimizer(model, config)
    ids = torch.arange(given.batch, device=given.device)

    def step(batch: Pairs) -> None:
        tokens, mask = batch.short["input_ids"], batch.short["attention_mask"]
        made = Batch(batch.waveform, tokens, mask, ids, ids, ("",) * given.batch)
        update(model, optimizer, made, 0, 1e-4, config, world)
        optimizer.zero_grad()

    return step


def our_model() -> Any:
    """HTSAT-tiny and a random RoBERTa-base."""
    from clap.config import ModelConfig
    from clap.model import CLAP

    return CLAP(ModelConfig(), roberta(), None)


def roberta() -> Any:
    """RoBERTa-base, random."""
    from transformers import RobertaConfig, RobertaModel

    return RobertaModel(RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1))


def laion(given: argparse.Namespace, dynamic: bool) -> Step:
    """laion_clap's model and ClipLoss, called as its train_one_epoch does."""
    import laion_clap  # noqa: F401 - puts its own folder on the path
    from clap_module import ClipLoss, create_model

    model = create_model("HTSAT-tiny", "roberta", device=given.device)[0].train()
    loss, optimizer = ClipLoss(cache_labels=True), torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def forward(batch: Pairs) -> Tensor:
        text = batch.short if dynamic else batch.padded
        audio, said, *_, scale, _ = model({"waveform": batch.floats}, text, given.device)
        return loss(audio_features=audio, text_features=said, logit_scale_a=scale)

    return peer_step(forward, optimizer, given.device)


def transformers(given: argparse.Namespace, dynamic: bool) -> Step:
    """transformers' ClapModel with the loss that it computes itself."""
    from transformers import ClapAudioConfig, ClapConfig, ClapModel, ClapTextConfig

    from clap.features import LogMel

    text = ClapTextConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    config = ClapConfig(text_config=text.to_dict(), audio_config=ClapAudioConfig(enable_fusion=False).to_dict())
    model, log_mel = ClapModel(config).to(given.device).train(), LogMel().to(given.device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def forward(batch: Pairs) -> Tensor:
        said = batch.short if dynamic else batch.padded
        return model(**said, input_features=log_mel(batch.floats), return_loss=True).loss

    return peer_step(forward, optimizer, given.device)


def peer_step(forward: Callable[[Pairs], Tensor], optimizer: torch.optim.Optimizer, device: str) -> Step:
    """Forward, backward and AdamW; bfloat16 on a GPU."""
    gpu = torch.device(device).type == "cuda"

    def step(batch: Pairs) -> None:
        with torch.autocast("cuda", torch.bfloat16) if gpu else nullcontext():
            loss = forward(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


PEERS = {"laion": laion, "transformers": transformers}


# ---- what it takes


def useful(batches: list[Pairs]) -> float:
    """GFLOP a clip, forward and backward, of HTSAT-tiny and of RoBERTa-base at the batches' mean longest caption."""
    tokens = [batch.short["input_ids"].shape[1] for batch in batches]
    return tower_gflop("HTSAT-tiny") + sum(map(text_gflop, tokens)) / len(tokens)


def flops() -> None:
    """Print GFLOP a clip or caption, forward and backward, and millions of parameters."""
    from clap.config import AUDIO_MODELS, ModelConfig
    from clap.model import audio_tower

    for name in ("HTSAT-tiny", "HTSAT-base", "HTSAT-large", "PANN-14"):
        tower = audio_tower(ModelConfig(**AUDIO_MODELS[name]))
        print(f"{name:24} {tower_gflop(name):7.1f} GFLOP, {millions(tower):.1f} M")
    for tokens in (12, 16, 20, 77):
        print(f"RoBERTa-base, {tokens:2} tokens {text_gflop(tokens):9.1f} GFLOP, {millions(roberta()):.1f} M")
    print(f"CLAP, HTSAT-tiny and RoBERTa-base: {millions(our_model()):.1f} M parameters")


def tower_gflop(name: str) -> float:
    """An audio tower's, a clip of 10 s."""
    from clap.config import AUDIO_MODELS, ModelConfig
    from clap.model import audio_tower

    tower = audio_tower(ModelConfig(**AUDIO_MODELS[name]))
    return counted(lambda: tower(torch.randn(2, 1, 1001, 64)).sum()) / 2


def text_gflop(tokens: int) -> float:
    """RoBERTa-base's, a caption of so many tokens."""
    encoder, ids = roberta(), torch.full((2, tokens), 5)
    return counted(lambda: encoder(ids).pooler_output.sum()) / 2


def counted(forward: Callable[[], Tensor]) -> float:
    """GFLOP of a forward and backward pass: products of matrices and convolutions, a multiply-add being 2."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # whose products it can count
        forward().backward()
    return counter.get_total_flops() / 1e9


def millions(model: Any) -> float:
    """Parameters."""
    return sum(each.numel() for each in model.parameters()) / 1e6


def memory(given: argparse.Namespace) -> None:
    """Resident memory a clip: what a larger batch adds to the peak of a process that does nothing else."""
    sizes = given.batch, 2 * given.batch
    for name in given.runs.split(","):
        line = [sys.executable, __file__, "--runs", name, "--json", "--steps", "1", "--rounds", "1", "--threads", "1"]
        peaks = [
            int(subprocess.run([*line, "--batch", str(size)], check=True, stdout=subprocess.PIPE, text=True,
                               env=os.environ | {"MALLOC_ARENA_MAX": "1"}).stdout.split()[-1])
            for size in sizes
        ]  # fmt: skip
        print(f"{name:21} {(peaks[1] - peaks[0]) / given.batch / 2**20:5.0f} MiB a clip, "
              f"{peaks[0] / 2**20:.0f} MiB in all at batch {given.batch}", flush=True)  # fmt: skip


def profile(device: str) -> None:
    """What a step spends its time on."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    gpu = torch.device(device).type == "cuda"
    with profiler(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as found:
        HERE["step"](HERE["batches"][0])
    order = "self_device_time_total" if gpu else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=50), flush=True)


if __name__ == "__main__":
    main()
