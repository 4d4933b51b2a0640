"""What it costs to take a recording in: bytes to 48 kHz FLAC, facts and a shard, beside other ways to do it.

    python benchmarks/ingest.py --data ../shared/data/esc10 --formats ogg,mp3,wav,flac,m4a,opus,webm

CPU seconds (user and system, children too) for an hour of audio, all measured in one run, in turns. Two corpora are
made from ESC-10 in every format: S5, 100 clips of 5 s, mono; L25, 80 clips of 25 s, stereo, each channel five clips in
a row; 44.1 kHz (48 kHz for Opus). They are kept in --work.

decode      the fastest of libsndfile reading the whole file, PyAV frame by frame, and ours
floor       decode + soxr HQ + FLAC, each by itself
chain       the floor's three steps in a row for each file, mixed to mono and rounded between them, and nothing else
rest        hash, facts and one Parquet file, each by itself; least: the chain and these
script      both in turn for each file, in the fewest calls that give such rows: nothing is checked, no kill survived,
            no long file bearable; no fingerprint
ours        local files hashed, resampled and measured, and a shard written; with the acoustic fingerprint
laion       an ffmpeg process a file, FLAC and JSON into a tar

With `--sections steps` it shows instead where the time of "ours" goes, step by step.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from tempfile import TemporaryDirectory
from typing import NamedTuple

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import soxr
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.clip import Clip, write_clips
from pipelines.decode import open_audio
from pipelines.download import Download
from pipelines.facts import Meter
from pipelines.fingerprint import fingerprint
from pipelines.local import to_location
from pipelines.resample import SPOOL, Resample, Spool, converted, encoded, measured, mix, to_int16, voice
from pipelines.run import part_path
from pipelines.shard import plan_shards, write_shard

RATE = 44_100
SECONDS = {"S5": 5, "L25": 25}
CODECS = {"m4a": "aac", "opus": "libopus", "webm": "libopus"}  # what libsndfile does not write, or not well
SOME = 20  # clips of which soxr, FLAC and the fingerprint are measured by themselves
FORMATS = "ogg,mp3,wav,flac,m4a,opus,webm"
COLUMNS = ("corpus", "format", "libsndfile", "libav", "decode", "soxr", "flac", "floor", "fingerprint", "ours", "chain",
           "rest", "script", "laion", "of floor", "bare of floor", "least of floor", "script of floor",
           "to laion")  # fmt: skip
STEPS = ("decode", "levels", "soxr", "flac", "fingerprint")  # of resample, in order


def main() -> None:
    """Make the corpora, run the sections asked for, print their tables or their rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of ESC-10's ogg files")
    parser.add_argument("--work", type=Path, default=Path("runs/ingest"), help="where the corpora are kept")
    parser.add_argument("--formats", default=FORMATS)
    parser.add_argument("--sections", default="formats", help=f"which, of {', '.join(SECTIONS)}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    shown = {name: SECTIONS[name](given) for name in given.sections.split(",")}
    if given.json:
        print(json.dumps({"machine": machine(), **shown}, indent=1))
        return
    print(machine())
    for name, rows in shown.items():
        show(name, rows)


def machine() -> str:
    """The machine in a line."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def show(title: str, rows: list[dict[str, object]]) -> None:
    """Print rows with the same keys as a table."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


# Corpora


def corpora(data: Path) -> dict[str, list[np.ndarray]]:
    """{corpus: waveforms (frames, channels) at 44.1 kHz}."""
    files = sorted(data.rglob("*.ogg"))[::3][:100]
    short = [
        soxr.resample(wave, rate, RATE) for wave, rate in (soundfile.read(file, dtype="float32") for file in files)
    ]
    short = [np.pad(wave[: 5 * RATE], (0, max(0, 5 * RATE - len(wave)))) for wave in short]
    draws = np.random.default_rng(0).choice(len(short), (80, 2, 5))
    long = [np.stack([np.concatenate([short[i] for i in row]) for row in draw], 1) for draw in draws]
    return {"S5": [wave[:, None] for wave in short], "L25": long}


def make(given: argparse.Namespace) -> dict[tuple[str, str], list[Path]]:
    """{(corpus, format): files}, written where they are missing."""
    made = {}
    waves: dict[str, list[np.ndarray]] = {}
    for corpus, format in product(SECONDS, given.formats.split(",")):
        folder = given.work / corpus / format
        if not folder.exists():
            waves = waves or corpora(given.data)
            unfinished = folder.with_name(f"{format}.tmp")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            for number, wave in enumerate(waves[corpus]):
                write(unfinished / f"{number:03d}.{format}", wave)
            unfinished.rename(folder)
        made[corpus, format] = sorted(folder.iterdir())
    return made


def write(path: Path, wave: np.ndarray) -> None:
    """A waveform (frames, channels) in the format of the file's name."""
    codec = CODECS.get(path.suffix[1:])
    if codec is None:
        soundfile.write(path, wave, RATE)
        return
    rate = 48_000 if codec == "libopus" else RATE
    layout = "stereo" if wave.shape[1] == 2 else "mono"
    with av.open(str(path), "w") as container:
        track = container.add_stream(codec, rate=rate, layout=layout)
        track.bit_rate = 128_000
        wave = np.ascontiguousarray(soxr.resample(wave, RATE, rate).T)
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout=layout)
        frame.sample_rate = rate
        cut = av.AudioResampler(track.format, layout, rate, track.frame_size or 1024)
        for piece in [*cut.resample(frame), *cut.resample(None), None]:
            container.mux(track.encode(piece))


# Measuring


def cpu() -> float:
    """CPU seconds of this process and its finished children."""
    return sum(use.ru_utime + use.ru_stime for use in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


@dataclass(frozen=True)
class Job:
    """Something to measure, that may write into the folder it is given, and the hours of audio it takes on."""

    work: Callable[[Path], object]
    hours: float


class Heard(NamedTuple):
    """A recording: (frames, channels), (frames,) and Hz."""

    wave: np.ndarray
    mono: np.ndarray
    rate: int


def measure(jobs: dict[str, Job], repeats: int) -> dict[str, list[float]]:
    """CPU seconds an hour of every job, in turns, the deleting of what it wrote left out; a job is run once before."""
    spent: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            with TemporaryDirectory() as folder:
                before = cpu()
                job.work(Path(folder))
                took = cpu() - before
            if turn:
                spent[name].append(took / job.hours)
    return spent


# Section: steps


def steps(given: argparse.Namespace) -> list[dict[str, object]]:
    """What each step of ours adds: the path up to it less the path up to the one before; the floor's to compare."""
    rows: list[dict[str, object]] = []
    for (corpus, format), files in make(given).items():
        hours = SECONDS[corpus] / 3600
        upto = {name: partial(path, files, last) for last, name in enumerate(STEPS)}
        whole = {"hash": partial(hashed, files), **upto, "ours": partial(ours, files)}
        floor = parts(files, hours)
        timed = floor | {f"to {name}": Job(work, hours * len(files)) for name, work in whole.items()}
        least = {name: min(spent) for name, spent in measure(timed, given.repeats).items()}
        added = {name: least[f"to {name}"] - least.get(f"to {before}", 0) for before, name in pairwise(["", *STEPS])}
        rest = least["to ours"] - least["to hash"] - least[f"to {STEPS[-1]}"]
        beside = {"floor's soxr": least["soxr"], "floor's flac": least["flac"], "hash": least["to hash"]}
        rows.append({"corpus": corpus, "format": format, **beside, **added, "pack and shard": rest})
    return rows


def path(files: list[Path], last: int, _: Path) -> None:
    """What resample does with each file, up to the step of that number."""
    for file in files:
        with open_audio(file) as stream, Spool(SPOOL) as flac:
            blocks, meter = stream.blocks, Meter(stream.sample_rate)
            if last >= STEPS.index("levels"):
                blocks = measured(stream, meter)
            if last >= STEPS.index("soxr"):
                blocks = converted(blocks, stream.sample_rate, 48_000)
            if last >= STEPS.index("flac"):
                blocks = encoded(blocks, flac)
            if last >= STEPS.index("fingerprint"):
                fingerprint(voice(blocks))
            for _ in blocks:
                pass


def hashed(files: list[Path], folder: Path) -> list[Clip]:
    """What download does with local files."""
    clips = [Clip(f"b/{number}", "b", to_location(path.absolute()), split="train") for number, path in enumerate(files)]
    with (folder / "raw.pack").open("wb") as pack:
        return list(Download()(clips, pack, Path()))


# Section: formats


def formats(given: argparse.Namespace) -> list[dict[str, object]]:
    """A row for every corpus and format: the least of each, and ratios of these."""
    rows: list[dict[str, object]] = []
    for (corpus, format), files in make(given).items():
        hours = SECONDS[corpus] / 3600
        spent = measure(jobs(files, hours), given.repeats)
        rows.append({"corpus": corpus, "format": format} | summary(spent, min))
        medians = {name: round(value, 2) for name, value in summary(spent, statistics.median).items()}
        print(corpus, format, "medians", medians, "peak MB", peak_memory(files), file=sys.stderr, flush=True)
    return [{name: row.get(name, "-") for name in COLUMNS} for row in rows]


def parts(files: list[Path], hours: float) -> dict[str, Job]:
    """Steps by themselves, on the sound of some files."""
    heard = [read(path) for path in files[:SOME]]
    at_48k = [one.mono if one.rate == 48_000 else soxr.resample(one.mono, one.rate, 48_000) for one in heard]
    some = hours * len(heard)
    return {
        "soxr": Job(partial(each, resampled, heard), some),
        "flac": Job(partial(each, one_flac, [to_int16(wave) for wave in at_48k]), some),
        "fingerprint": Job(partial(each, printed, at_48k), some),
        "facts": Job(partial(each, facts, heard), some),
    }


def jobs(files: list[Path], hours: float) -> dict[str, Job]:
    """What is measured of a corpus in one format."""
    whole = hours * len(files)
    every = parts(files, hours) | {
        "libav": Job(partial(each, libav, files), whole),
        "our decode": Job(partial(each, decoded, files), whole),
        "ours": Job(partial(ours, files), whole),
        "chain": Job(partial(each, chained, files), whole),
        "hash": Job(partial(each, digest, files), whole),
        "write": Job(partial(write_rows, script_rows(files)), whole),
        "script": Job(partial(script, files), whole),
    }
    if files[0].suffix not in (".m4a", ".webm"):
        every["libsndfile"] = Job(partial(each, libsndfile, files), whole)
    if shutil.which("ffmpeg"):
        every["laion"] = Job(partial(laion, files), whole)
    else:
        print("no ffmpeg here: LAION's way is left out", file=sys.stderr)
    return every


def summary(spent: dict[str, list[float]], middle: Callable[[Iterable[float]], float]) -> dict[str, float]:
    """The least (or median) of each, the floor and the ratios; bare is without the fingerprint."""
    row = {name: middle(values) for name, values in spent.items()}
    row["decode"] = min(row[name] for name in ("libsndfile", "libav", "our decode") if name in row)
    row["floor"] = row["decode"] + row["soxr"] + row["flac"]
    row["of floor"] = row["ours"] / row["floor"]
    row["bare of floor"] = (row["ours"] - row["fingerprint"]) / row["floor"]
    row["rest"] = row["hash"] + row["facts"] + row["write"]
    row["least of floor"] = (row["chain"] + row["rest"]) / row["floor"]
    row["script of floor"] = row["script"] / row["floor"]
    if "laion" in row:
        row["to laion"] = row["laion"] / row["ours"]
    return row


def each(work: Callable[[object], object], things: Iterable[object], _: Path) -> None:
    """Do it for each thing."""
    for thing in things:
        work(thing)


def libsndfile(path: Path) -> np.ndarray:
    """The whole file at once."""
    return soundfile.read(path, dtype="float32")[0]


def libav(path: Path) -> np.ndarray:
    """PyAV's plain loop."""
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], 1)


def decoded(path: Path) -> int:
    """Our blocks, one after another."""
    with open_audio(path) as stream:
        return sum(map(len, stream.blocks))


def resampled(heard: Heard) -> None:
    """soxr's high quality to 48 kHz at once, where there is something to do."""
    if heard.rate != 48_000:
        soxr.resample(heard.mono, heard.rate, 48_000, quality="HQ")


def printed(wave: np.ndarray) -> bytes:
    """The fingerprint, as resample takes it from blocks of a second."""
    return fingerprint(voice(iter([wave[start : start + 48_000] for start in range(0, len(wave), 48_000)])))


def one_flac(wave: np.ndarray) -> None:
    """16-bit FLAC in memory."""
    soundfile.write(io.BytesIO(), wave, 48_000, format="FLAC")


def ours(files: list[Path], folder: Path) -> None:
    """Hash, resample and measure local files, and write the part and a shard."""
    build = folder / "build"
    part = part_path(build, "resample", 0)
    part.parent.mkdir(parents=True)
    clips = hashed(files, folder)
    with part.with_suffix(".pack").open("ab") as pack:
        clips = list(Resample()(clips, pack, folder / "raw.pack"))
    lost = [clip for clip in clips if clip.reason]
    assert not lost, lost[0]
    write_clips(part, clips)
    for shard in plan_shards(build, folder / "dataset", "resample", 1):
        write_shard(build, folder / "dataset", shard)


def script(files: list[Path], folder: Path) -> None:
    """The least that gives rows like ours: what it leaves out is all that a build can be relied on for."""
    write_rows(script_rows(files), folder)


def script_rows(files: list[Path]) -> list[dict[str, object]]:
    """Hash, FLAC and facts of each file."""
    return [script_row(path) for path in files]


def script_row(path: Path) -> dict[str, object]:
    """Those of one file."""
    heard = read(path)
    return {"sha256": digest(path), "audio": to_flac(heard), **facts(heard)}


def read(path: Path) -> Heard:
    """A whole file: WAV by libsndfile, others as ours."""
    if path.suffix == ".wav":
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    else:
        with open_audio(path) as stream:
            wave, rate = np.concatenate(list(stream.blocks)), stream.sample_rate
    return Heard(wave, wave[:, 0] if wave.shape[1] == 1 else mix(wave), rate)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def chained(path: Path) -> bytes:
    """The floor's steps in a row."""
    return to_flac(read(path))


def to_flac(heard: Heard) -> bytes:
    """48 kHz, mono, 16 bits."""
    sound = heard.mono
    if heard.rate != 48_000:
        sound = soxr.resample(sound, heard.rate, 48_000, quality="HQ")
    soundfile.write(flac := io.BytesIO(), to_int16(sound), 48_000, format="FLAC")
    return flac.getvalue()


def facts(heard: Heard) -> dict[str, object]:
    """Those that ours states."""
    meter, rate = Meter(heard.rate), heard.rate
    for start in range(0, len(heard.mono), rate):
        meter.add(heard.wave[start : start + rate], heard.mono[start : start + rate])
    return {"channels": heard.wave.shape[1], "sample_rate": rate, **meter.facts()}


def write_rows(rows: list[dict[str, object]], folder: Path) -> None:
    """One Parquet file in one call."""
    pq.write_table(pa.Table.from_pylist(rows), folder / "0.parquet", compression="NONE", use_dictionary=False)


def laion(files: list[Path], folder: Path) -> None:
    """As LAION's scripts do: ffmpeg for every file, a JSON beside it, both into a tar."""
    with tarfile.open(folder / "0.tar", "w") as tar:
        for path in files:
            made = folder / f"{path.stem}.flac"
            line = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-i", path, "-ar", "48000", "-ac", "1"]
            subprocess.run([*line, "-sample_fmt", "s16", made], check=True)
            text = made.with_suffix(".json")
            text.write_text(json.dumps({"text": ["a sound"], "tag": [], "original_data": {"id": path.stem}}))
            tar.add(made, made.name)
            tar.add(text, text.name)


def peak_memory(files: list[Path]) -> int:
    """MB that a process of its own holds at most while it takes these files in."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_of_ours, (files,))


def peak_of_ours(files: list[Path]) -> int:
    """MB, in the process where it runs; getrusage would count its parent's as well."""
    with TemporaryDirectory() as folder:
        ours(files, Path(folder))
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


SECTIONS: dict[str, Callable[[argparse.Namespace], list[dict[str, object]]]] = {"formats": formats, "steps": steps}

if __name__ == "__main__":
    main()
