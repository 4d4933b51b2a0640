"""Probes on ESC-10, by its folds: each held out in turn, the next one chooses, nothing is chosen by the tested one.

    python cli.py build-dataset csv --input ../shared/data/esc10/metadata.csv --out runs/esc10/build
    python -m benchmarks.probe --data runs/esc10/build/dataset --out runs/probe --seeds 0,1,2 --runs runs/esc10/tiny-0

Figures: a linear head on means and deviations of log-mels; on a random, untrained tower of the preset `tiny`; that
tower trained with the head, from random weights, on nothing but the training folds; and, on fold 4 alone, a head on the
CLAPs of --runs, which benchmarks/esc10.py trained on captions of folds 1-3 (so it is only the test fold that they do
not know: the fold that chooses is one they were trained on).
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clap.config import PRESETS
from clap.features import front_end, mels_for
from clap.model import CLAP
from clap.probe import probe
from clap.probe_config import ProbeConfig

MODEL = PRESETS["tiny"].model
SCRATCH = ProbeConfig(finetune=True, features="projection", epochs=30, patience=30, lr_tower=1e-3, batch_size=16)


class MelStatistics:
    """A system without weights: mean and deviation over time of each band of the preset's log-mels."""

    def __init__(self) -> None:
        self.log_mel = front_end(MODEL)

    def embed_audio(self, clips: Sequence[np.ndarray], sample_rate: int) -> np.ndarray:
        mels = [mels_for([clip], MODEL, "centre", None, self.log_mel).whole[0, 0] for clip in clips]
        return np.stack([torch.cat([mel.mean(0), mel.std(0)]).numpy() for mel in mels])


def untrained(seed: int) -> CLAP:
    """The preset `tiny` with random weights."""
    torch.manual_seed(seed)
    return CLAP.create(MODEL, ["a sound"]).eval()


def row(
    name: str, model: Callable[[int], Any], config: ProbeConfig, data: str, out: Path, seeds: Sequence[int]
) -> None:
    """One line of the table: a model and a probe for every seed."""
    cpu = time.process_time()
    found = [probe(model(seed), data, out, replace(config, seeds=(seed,))) for seed in seeds]
    cpu = time.process_time() - cpu
    held = np.array([[each["accuracy"] for each in one["rounds"]] for one in found])  # (seeds, folds)
    spread = held.mean(axis=1).std(ddof=1) if len(seeds) > 1 else 0.0
    folds = " ".join(f"{value:.3f}" for value in held.mean(axis=0))
    map_, mauc = (np.mean([one[key] for one in found]) for key in ("map", "mauc"))
    print(
        f"| {name} | {held.mean():.3f} | {folds} | {spread:.3f} | {map_:.3f} | {mauc:.3f} "
        f"| {len(seeds)} | {cpu / len(seeds):.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the dataset that build-dataset made of ESC-10")
    parser.add_argument("--out", type=Path, default=Path("runs/probe"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--tuned-seeds", default="0", help="of the tower trained from scratch, the dearest row")
    parser.add_argument("--tuned-folds", default="1,2,3,4", help="folds that it holds out, about 2 CPU minutes each")
    parser.add_argument("--runs", default="", help="CLAPs trained on folds 1-3, one a seed, separated by commas")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds, tuned = ([int(seed) for seed in each.split(",")] for each in (given.seeds, given.tuned_seeds))
    linear = ProbeConfig(features="projection")
    print(
        "| | accuracy | by fold | sd of seeds | mAP | mAUC | seeds | CPU s a seed |\n|---|---|---|---|---|---|---|---|"
    )
    row("log-mel statistics, linear", lambda _: MelStatistics(), ProbeConfig(), given.data, given.out, seeds)
    row("untrained tower, linear", untrained, linear, given.data, given.out, seeds)
    row("untrained tower, mlp", untrained, ProbeConfig(features="projection", head="mlp"), given.data, given.out, seeds)
    runs = [run for run in given.runs.split(",") if run]
    if runs:
        trained = [CLAP.from_pretrained(run) for run in runs]
        four = ProbeConfig(features="projection", folds=(4,))
        row("CLAP of folds 1-3, fold 4 only", trained.__getitem__, four, given.data, given.out, range(len(runs)))
    scratch = replace(SCRATCH, folds=tuple(map(int, given.tuned_folds.split(","))))
    row(f"tower from scratch, folds {given.tuned_folds}", untrained, scratch, given.data, given.out, tuned)


if __name__ == "__main__":
    main()
