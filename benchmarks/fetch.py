"""Files over loopback HTTP: the fetch alone beside img2dataset, and whole builds of small clips.

    python benchmarks/fetch.py --clips 20000 --workers 2 --img2dataset /path/to/venv/bin/python

The server is another process, whose work is not counted. Fetching: files of 60 KB into packs, hashed, against
img2dataset storing the same files as they are, hashed too, into tars. Building: clips of half a second, each another
sound, from address to published shard; then memory as it went, and what 633,526 clips would take at that rate.
"""

import argparse
import csv
import os
import platform
import shutil
import subprocess
import sys
import time
from multiprocessing import Process, Queue
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

from measure import measure

ROOT = Path(__file__).resolve().parents[1]
ALL = 633_526  # pairs of LAION-Audio-630K
OURS = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from pipelines.clip import Clip, write_clips
from pipelines.download import Download
from pipelines.run import part_path, run_part
build, addresses = Path(sys.argv[2]), Path(sys.argv[3]).read_text().split()[1:]
stage = Download(allow_private_addresses=True, per_host=64)
for part, start in enumerate(range(0, len(addresses), 256)):
    some = addresses[start:start + 256]
    write_clips(part_path(build, "manifest", part), [Clip(a, "x", location=a) for a in some])
    (count,) = run_part(build, "manifest", [stage], part).values()
    assert count.kept == count.rows == len(some), count
"""
THEIRS = """
import sys
from img2dataset import download
download(url_list=sys.argv[3], input_format="txt", output_folder=sys.argv[2], output_format="webdataset",
         processes_count=1, thread_count=64, resize_mode="no", disable_all_reencoding=True, compute_hash="sha256",
         number_sample_per_shard=256, enable_wandb=False)
"""


def serve(queue: "Queue[int]") -> None:
    """/file/12 is 60 KB, /clip/12.wav half a second at 16 kHz; no two are alike."""
    import asyncio
    from io import BytesIO

    import numpy as np
    import soundfile
    from aiohttp import web

    async def reply(request: Any) -> Any:
        number = int("".join(filter(str.isdigit, request.path)))
        random = np.random.default_rng(number)
        if request.path.startswith("/file"):
            return web.Response(body=b"\xff\xd8" + random.bytes(60_000))
        wave = 0.3 * np.sin(2 * np.pi * (100 + number % 5_000) * np.arange(8_000) / 16_000) + random.normal(
            0, 0.01, 8_000
        )
        sound = BytesIO()
        soundfile.write(sound, wave, 16_000, format="WAV")
        return web.Response(body=sound.getvalue())

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/{any:.*}", reply)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        queue.put(site._server.sockets[0].getsockname()[1])  # type: ignore[union-attr]
        await asyncio.Event().wait()

    asyncio.run(run())


def main() -> None:
    """Run both parts and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/fetch"))
    parser.add_argument("--files", type=int, default=5_120)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--img2dataset", help="a Python that has img2dataset; left out without")
    given = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", flush=True)
    queue: Queue[int] = Queue()
    server = Process(target=serve, args=(queue,), daemon=True)
    server.start()
    address = f"http://127.0.0.1:{queue.get()}"
    given.out.mkdir(parents=True, exist_ok=True)
    if given.files:
        fetching(address, given)
    if given.clips:
        building(address, given)


def fetching(address: str, given: argparse.Namespace) -> None:
    """CPU seconds of 1,000 files, ours and theirs in turns; the start of each process is taken off."""
    peers = {"ours": (sys.executable, OURS)}
    if given.img2dataset:
        peers["img2dataset"] = (given.img2dataset, THEIRS)
    taken: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(given.repeats):
        for name, (python, code) in peers.items():
            few, many = (cost(python, code, address, given.out, n) for n in (256, given.files))
            taken[name].append(1000 * (many - few) / (given.files - 256))
    for name, seconds in taken.items():
        print(
            f"fetch, {name}: {' '.join(f'{each:.2f}' for each in seconds)} CPU s for 1,000 files of 60 KB", flush=True
        )


def cost(python: str, code: str, address: str, out: Path, files: int) -> float:
    """CPU seconds of a process that fetches so many files."""
    shutil.rmtree(out / "fetched", ignore_errors=True)
    table = out / "addresses.txt"
    table.write_text("\n".join(["url", *(f"{address}/file/{n}.jpg" for n in range(files))]) + "\n")
    before = getrusage(RUSAGE_CHILDREN)
    subprocess.run([python, "-c", code, ROOT, out / "fetched", table], check=True, capture_output=True)
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def building(address: str, given: argparse.Namespace) -> None:
    """A whole build, with the memory of all its processes at each tenth of its time."""
    shutil.rmtree(given.out / "build", ignore_errors=True)
    with (given.out / "clips.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([["id", "url", "caption"], *[[n, f"{address}/clip/{n}.wav", f"Sound number {n}"]
                                                                 for n in range(given.clips)]])  # fmt: skip
    line = [sys.executable, str(ROOT / "cli.py"), "build-dataset", "csv", "--input", str(given.out / "clips.csv"),
            "--out", str(given.out / "build"), "--workers", str(given.workers), "--allow-private-addresses",
            "--per-host", "64", "--json"]  # fmt: skip
    start = time.monotonic()
    report = measure("build", line, every=True)
    wall = time.monotonic() - start
    print(f"{report['kept']} of {report['rows']} clips kept: {report['rows'] / wall:.0f} rows/s; {ALL:,} such rows "
          f"would take {ALL / report['rows'] * wall / 3600:.1f} h", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
