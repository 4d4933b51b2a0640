"""A build of rows without audio, as large as LAION-Audio-630K: wall, CPU seconds and memory of build and resume.

    python benchmarks/metadata.py --rows 633526 --out runs/metadata --workers 0

The table is synthetic and seeded: texts as long as Freesound's, a tenth of the rows further captions of another
row's clip, some clips with the same bytes, too long, of a low rate or without any text.
"""

import argparse
import csv
import os
import platform
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from measure import measure

CLI = Path(__file__).resolve().parents[1] / "cli.py"
COLUMNS = (
    "id,download_url,caption_1,caption_2,tags,license,username,title,url,duration,sample_rate,channels,bytes,sha256"
)
LICENSES = ("CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-NC-3.0", "Sampling+")


def main() -> None:
    """Make the table, build from it, run the same command again; a line of figures each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=633_526)
    parser.add_argument("--out", type=Path, default=Path("runs/metadata"))
    parser.add_argument("--workers", type=int, default=0)
    given = parser.parse_args()
    table, out = given.out / f"{given.rows}.csv", given.out / "build"
    if not table.exists():
        make(table, given.rows)
    shutil.rmtree(out, ignore_errors=True)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", flush=True)
    print(f"{given.rows} rows, {table.stat().st_size / 2**20:.0f} MiB, {given.workers} workers", flush=True)
    line = [sys.executable, str(CLI), "build-dataset", "csv", "--input", str(table), "--out", str(out),
            "--metadata-only", "--workers", str(given.workers), "--json"]  # fmt: skip
    report = measure("build", line)
    measure("resume", line)
    measure("status", [sys.executable, str(CLI), "status", str(out), "--json"])
    print(f"{report['rows']} clips = {report['kept']} kept + {report['rejected']} rejected, {report['splits']}")


def make(path: Path, rows: int) -> None:
    """Write the table; the same number of rows gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(COLUMNS.split(","))
        writer.writerows(invent(rows))
    temporary.replace(path)


def invent(rows: int) -> Iterator[list[object]]:
    """Rows of a corpus like Freesound."""
    pick = random.Random(0)
    words = ["".join(pick.choices("abcdefghijklmnoprstuvwyzé", k=pick.randint(2, 9))) for _ in range(5000)]
    words += ["a", "the", "of", "and", "in"] * 200

    def text(fewest: int, most: int, separator: str = " ") -> str:
        return separator.join(pick.choices(words, k=pick.randint(fewest, most)))

    earlier: list[list[object]] = []
    for number in range(rows):
        if earlier and pick.random() < 0.1:  # a further caption of a clip far above or close by
            row = list(pick.choice(earlier))
            yield [*row[:2], text(4, 20), *row[3:]]
            continue
        sha256, silent = f"{pick.getrandbits(256):064x}", pick.random() < 0.01
        if earlier and pick.random() < 0.01:
            sha256 = str(pick.choice(earlier)[-1])
        url, seconds = f"https://sounds.example.org/{number % 997}/{number}", pick.lognormvariate(2.3, 1.3)
        row = [
            number, f"{url}/download.ogg", "" if silent else text(4, 30), "" if silent else text(2, 6),
            "" if silent else text(3, 12, ","), pick.choice(LICENSES), text(1, 2, "_"), text(2, 7), url,
            f"{seconds:.6f}", pick.choice((8_000, 22_050, 44_100, 44_100, 48_000, 96_000)), pick.choice((1, 2)),
            int(seconds * 12_000), sha256,
        ]  # fmt: skip
        yield row
        if number % 11 == 0:
            earlier.append(row)


if __name__ == "__main__":
    main()
