"""Near duplicates: how many copies are found after each transformation, false alarms, and cost.

    python -m benchmarks.dedup --data ../shared/data

Every sound file below the folder is taken (its first minute), as it is and joined by fives to clips of about 25 s;
every fourth one is copied and put beside all originals, one transformation at a time. Fingerprints are then made up
to measure how comparing them grows with the number of clips.
"""

import argparse
import io
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")

import av
import numpy as np
import pyarrow.parquet as pq
import soundfile
import soxr

from pipelines.clip import Clip, write_clips
from pipelines.dedup import SOUNDING, Dedup
from pipelines.fingerprint import EDGE, HOP, PRINT_RATE, fingerprint
from pipelines.resample import voice

RATE = 48_000
LAION = 633_526  # clips of LAION-Audio-630K, 25 s each on average


def vorbis(wave: np.ndarray) -> np.ndarray:
    """Through Ogg Vorbis at quality 3."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", RATE, 1, "VORBIS", format="OGG", compression_level=0.7) as sound:
        for start in range(0, len(wave), RATE):  # libsndfile crashes on a minute in one piece
            sound.write(wave[start : start + RATE])
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


def libav(wave: np.ndarray, codec: str, format: str, sample: str, bits: int) -> np.ndarray:
    """Through a codec of libav."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        track = container.add_stream(codec, rate=RATE, layout="mono", format=sample, bit_rate=bits)
        track.open()
        whole = av.AudioFrame.from_ndarray(np.rint(wave[None] * 32767).astype(np.int16), format="s16", layout="mono")
        whole.sample_rate = RATE
        cut = av.AudioResampler(format=sample, layout="mono", rate=RATE, frame_size=track.codec_context.frame_size)
        for frame in [*cut.resample(whole), *cut.resample(None), None]:
            container.mux(track.encode(frame))
    file.seek(0)
    with av.open(file) as container:
        same = av.AudioResampler(format="flt", layout="mono", rate=RATE)
        frames = [piece for frame in container.decode(audio=0) for piece in same.resample(frame)]
    return np.concatenate([frame.to_ndarray().ravel() for frame in frames])


def mp3(wave: np.ndarray) -> np.ndarray:
    """Through MP3 at 64 kbit/s."""
    return libav(wave, "libmp3lame", "mp3", "s16p", 64_000)


def opus(wave: np.ndarray) -> np.ndarray:
    """Through Opus at 32 kbit/s."""
    return libav(wave, "libopus", "ogg", "s16", 32_000)


def half_rate(wave: np.ndarray) -> np.ndarray:
    """To 22.05 kHz and back."""
    return soxr.resample(soxr.resample(wave, RATE, 22_050), 22_050, RATE)


def cut(wave: np.ndarray, start: float, end: float = 0.0) -> np.ndarray:
    """Without so many seconds at the start and the end."""
    return wave[round(start * RATE) : len(wave) - round(end * RATE)]


def louder(wave: np.ndarray, decibel: float) -> np.ndarray:
    """Another level, clipped at full scale."""
    return np.clip(wave * 10 ** (decibel / 20), -1, 1).astype(np.float32)


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ogg q3": vorbis,
    "mp3 64k": mp3,
    "opus 32k": opus,
    "-12 dB": lambda wave: louder(wave, -12),
    "+6 dB": lambda wave: louder(wave, 6),
    "22.05 kHz": half_rate,
    "0.37 s off the start": lambda wave: cut(wave, 0.37),
    "2 s off the start": lambda wave: cut(wave, 2),
    "1 s off both ends": lambda wave: cut(wave, 1.013, 1),
    "2 s off the end": lambda wave: cut(wave, 0, 2),
    "0.75 s off, -6 dB, mp3": lambda wave: mp3(louder(cut(wave, 0.75, 0.5), -6)),
    "1.1 s off, opus": lambda wave: opus(cut(wave, 1.111)),
    "22.05 kHz, ogg": lambda wave: vorbis(half_rate(wave)),
    "mp3, opus": lambda wave: opus(mp3(wave)),
}


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of sound files, searched to its depth")
    parser.add_argument("--clips", default="12500,50000", help="how many made-up clips to compare")
    given = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}")
    waves = {str(path): load(path) for path in sorted(given.data.rglob("*.ogg"))}
    names = list(waves)
    joined = {
        f"{names[i]} +4": np.concatenate([waves[each] for each in names[i : i + 5]])
        for i in range(0, len(names) - 4, 5)
    }
    cost(joined)
    for title, originals in (("as they are", waves), ("joined by fives", joined)):
        recall(title, originals)
    for clips in map(int, given.clips.split(",")):
        with get_context("spawn").Pool(1) as pool:  # a process of its own, for its peak of memory
            pool.apply(scale, (clips,))


def load(path: Path) -> np.ndarray:
    """The first minute, mono at 48 kHz, as 16 bits hold it."""
    wave, rate = soundfile.read(path, dtype="float32", always_2d=True, frames=60 * soundfile.info(path).samplerate)
    return np.clip(np.rint(soxr.resample(wave.mean(1), rate, RATE) * 32768) / 32768, -1, 1).astype(np.float32)


def take(wave: np.ndarray) -> bytes:
    """The fingerprint of a waveform at 48 kHz, as `resample` takes it."""
    return fingerprint(voice(iter([wave[start : start + RATE] for start in range(0, len(wave), RATE)])))


def cost(waves: dict[str, np.ndarray]) -> None:
    """CPU seconds per hour of audio and bytes per 25 s."""
    start = time.process_time()
    sizes = [len(take(wave)) for wave in waves.values()]
    spent, seconds = time.process_time() - start, sum(map(len, waves.values())) / RATE
    rate, size = spent / seconds * 3600, sum(sizes) / seconds * 25
    print(f"fingerprint: {rate:.2f} CPU s an hour of audio, {size:.0f} bytes a clip of 25 s")


def clip(name: str, print_: bytes) -> Clip:
    """A clip of which only the fingerprint is known."""
    return Clip(
        id=name, source="bench", captions=("a sound",), duration=len(print_) / 4 * HOP / PRINT_RATE, fingerprint=print_
    )


def verdicts(clips: Sequence[Clip]) -> dict[str, str]:
    """Details of the near duplicates by id."""
    with TemporaryDirectory() as folder:
        write_clips(Path(folder) / "part.parquet", clips)
        stage = Dedup("near").gather([Path(folder) / "part.parquet"], Path(folder) / "verdicts.parquet")
        return {clip.id: clip.detail for clip in stage(clips) if clip.reason}


def recall(title: str, waves: dict[str, np.ndarray]) -> None:
    """Originals that are taken for each other; copies that are found, and those taken for something else."""
    originals = [clip(f"a {name}", take(wave)) for name, wave in waves.items()]
    among = verdicts(originals)
    print(
        f"\n{len(originals)} clips {title}: {len(among)} of {len(originals) * (len(originals) - 1) // 2:,} pairs match"
    )
    for name, detail in among.items():
        print(f"  {Path(name[2:]).name}: {re.sub('a /.*/', '', detail)}")
    originals = [each for each in originals if each.id not in among]
    waves = {name: wave for name, wave in waves.items() if f"a {name}" not in among}
    print(f"{'copy':24s} {'copies':>6s} {'found':>6s} {'of those heard':>15s} {'wrong':>6s} {'bit errors':>11s}")
    for name, change in COPIES.items():
        copies = [clip(f"b {each}", take(change(waves[each]))) for each in list(waves)[::4]]
        found = verdicts([*originals, *copies])
        right = {each: found[each] for each in found if each[0] == "b" and f"a {each[2:]} (" in found[each]}
        wrong = len(found) - len(right)
        heard = [each for each in copies if np.count_nonzero(np.frombuffer(each.fingerprint, "<u4")) >= 2 * SOUNDING]
        of_heard = len([each for each in heard if each.id in right]) / len(heard)
        rates = [float(re.search(r"rate (\S+)\)", detail)[1]) for detail in right.values()]  # type: ignore[index]
        share = len(right) / len(copies)
        print(
            f"{name:24s} {len(copies):6d} {share:6.1%} {of_heard:15.1%} {wrong:6d} {np.mean(rates):11.3f}", flush=True
        )


def made_up(random: np.random.Generator, frames: int) -> np.ndarray:
    """Words whose bits flip as often as those of real sounds do."""
    flips = np.packbits(random.random((frames, 32)) < 0.07, axis=1).view("<u4")[:, 0]
    words = np.bitwise_xor.accumulate(flips ^ (np.arange(frames) == 0) * random.integers(2**32, dtype=np.uint32))
    words[:EDGE] = words[-EDGE:] = 0
    return words.astype("<u4")


def scale(clips: int) -> None:
    """Compare made-up clips of 25 s, of which every twentieth copies another one; CPU seconds and peak of memory."""
    random = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        parts, words = [], np.zeros(0, "<u4")
        for start in range(0, clips, 256):
            rows = []
            for number in range(start, min(start + 256, clips)):
                if number % 20 == 19:
                    wrong = np.packbits(random.random((len(words), 32)) < 0.08, axis=1).view("<u4")[:, 0]
                    words = np.where(words == 0, 0, words ^ wrong)[random.integers(1, 100) :]
                else:
                    words = made_up(random, int(PRINT_RATE * 25 / HOP))
                rows.append(clip(f"{number:08d}", words.astype("<u4").tobytes()))
            parts.append(Path(folder) / f"part-{start}.parquet")
            write_clips(parts[-1], rows)
        before, wall = time.process_time(), time.monotonic()
        Dedup("near").gather(parts, Path(folder) / "verdicts.parquet")
        spent, wall = time.process_time() - before, time.monotonic() - wall
        found = pq.read_metadata(Path(folder) / "verdicts.parquet").num_rows
    status = Path("/proc/self/status").read_text(encoding="ascii")  # getrusage would count the parent's peak
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10  # type: ignore[index]
    said = f"{clips:,} made-up clips, {clips // 20:,} copies: {found:,} found, {spent:.0f} CPU s, {wall:.0f} s"
    whole = spent * LAION / clips / 60
    print(f"{said}, peak {peak:.0f} MiB (in proportion {whole:.1f} CPU min for {LAION:,} clips)", flush=True)


if __name__ == "__main__":
    main()
