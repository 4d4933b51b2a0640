"""What Ray costs and gains: the same build in this process, with one worker and with two.

    python benchmarks/workers.py --input runs/ingest/L25

Each is built twice, with a quarter of the clips and with all; the difference leaves the start of Ray out.
`--input` is a folder of sounds; benchmarks/ingest.py leaves one. What Ray itself takes is told by parts in which there
is nothing to do: CPU seconds of all processes for 1,000 of them less those for 100.
"""

import argparse
import os
import platform
import shutil
import sys
from pathlib import Path

from measure import Seen, cost

EMPTY = """
import sys
sys.path.insert(0, {root!r})
from pipelines.engine import Step, engine
with engine(2) as run:
    list(run([Step(abs), Step(abs)], range(int(sys.argv[1]))))
print("{{}}")
"""
CLI = Path(__file__).resolve().parents[1] / "cli.py"


def main() -> None:
    """Build and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/workers"))
    parser.add_argument("--part-rows", type=int, default=16)
    given = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", flush=True)
    clips = sum(1 for path in given.input.rglob("*") if path.is_file())
    nothing = [cost([sys.executable, "-c", EMPTY.format(root=str(CLI.parent)), str(n)])[1] for n in (100, 1_000)]
    print(f"a part with nothing to do: {(nothing[1] - nothing[0]) / 900 * 1000:.1f} CPU ms of Ray", flush=True)
    walls = {}
    for workers in (0, 1, 2):
        few, many = (build(given, workers, limit) for limit in (clips // 4, clips))
        walls[workers], cpu = many[0] - few[0], many[1] - few[1]
        print(f"{workers} workers: {walls[workers]:.1f} s, {cpu:.1f} CPU s for {clips - clips // 4} clips, "
              f"{many[2].largest / 2**20:.0f} MiB in the largest process", flush=True)  # fmt: skip
    print(f"one worker takes {walls[1] / walls[0]:.3f} of the time of none, two take {walls[2] / walls[0]:.3f}: "
          f"{walls[0] / walls[2]:.2f} times the speed")  # fmt: skip


def build(given: argparse.Namespace, workers: int, limit: int) -> tuple[float, float, Seen]:
    """Wall and CPU seconds of a build, all its processes together, and what was seen of them."""
    shutil.rmtree(given.out, ignore_errors=True)
    return cost([sys.executable, str(CLI), "build-dataset", "folder", "--input", str(given.input), "--out",
                 str(given.out), "--workers", str(workers), "--part-rows", str(given.part_rows), "--limit", str(limit),
                 "--dedup", "none", "--json"])[:3]  # fmt: skip


if __name__ == "__main__":
    main()
