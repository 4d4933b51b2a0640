"""Zero-shot on ESC-10: train on folds 1-3 with each preset and seed, evaluate on fold 4, print mean and spread.

    python benchmarks/esc10.py --data ../shared/data/esc10 --out runs/esc10 --presets tiny,tiny-htsat --seeds 0,1,2

Run again, it continues: a finished build or run is not done again.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

CLI = [sys.executable, str(Path(__file__).resolve().parents[1] / "cli.py")]


def main() -> None:
    """Build, train, evaluate; one line a run and one a preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of metadata.csv")
    parser.add_argument("--out", type=Path, default=Path("runs/esc10"))
    parser.add_argument("--presets", default="tiny,tiny-htsat")
    parser.add_argument("--seeds", default="0,1,2")
    given = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", flush=True)
    run("build-dataset", "csv", "--input", given.data / "metadata.csv", "--out", given.out / "build", "--workers", 2)
    for preset in given.presets.split(","):
        scores = [once(given.out, preset, int(seed)) for seed in given.seeds.split(",")]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        print(f"{preset}: accuracy {statistics.mean(scores):.3f} +- {spread:.3f} (standard deviation of {scores})")


def once(out: Path, preset: str, seed: int) -> float:
    """Accuracy on fold 4 of one run trained on folds 1-3."""
    start, cpu, folder = time.monotonic(), children(), out / f"{preset}-{seed}"
    data = ("--data", out / "build" / "dataset")
    run("train", *data, "--out", folder, "--preset", preset, "--folds", "1,2,3", "--seed", seed)
    minutes, seconds = (time.monotonic() - start) / 60, children() - cpu
    shown = run("evaluate", "zero-shot", "--model", folder, *data, "--split", "train", "--folds", "4", "--json")
    accuracy = json.loads(shown)["accuracy"]
    print(f"{preset} seed {seed}: accuracy {accuracy:.4f}, {minutes:.1f} min, {seconds:.0f} CPU s", flush=True)
    return accuracy


def children() -> float:
    """CPU seconds of finished child processes."""
    times = os.times()
    return times.children_user + times.children_system


def run(*arguments: object) -> str:
    """A command's standard output; its errors go to the terminal."""
    return subprocess.run([*CLI, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    main()
