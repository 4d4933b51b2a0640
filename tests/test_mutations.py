"""A thousand broken files of every format cost nothing but themselves: no crash, no lost row, no memory."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from conftest import ROOT, cli, tone, write

FILES = 1_000
BY_LIBSNDFILE = ("wav", "flac", "ogg", "mp3", "aiff", "caf", "w64")
BY_LIBAV = {"m4a": "aac", "webm": "libopus", "opus": "libopus"}


def originals(folder: Path) -> dict[str, bytes]:
    """{suffix: a whole file of 0.25 s}."""
    for suffix in BY_LIBSNDFILE:
        write(folder / f"dog.{suffix}", 0.25, 48_000, channels=2)
    for suffix, codec in BY_LIBAV.items():
        with av.open(str(folder / f"dog.{suffix}"), "w") as container:
            track = container.add_stream(codec, rate=48_000, layout="stereo")
            wave = np.ascontiguousarray(tone(0.25, 48_000, channels=2).T)
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="stereo")
            frame.sample_rate = 48_000
            cut = av.AudioResampler(track.format, "stereo", 48_000, track.frame_size or 1024)
            for piece in [*cut.resample(frame), *cut.resample(None), None]:
                container.mux(track.encode(piece))
    return {path.suffix[1:]: path.read_bytes() for path in sorted(folder.iterdir())}


def mutants(whole: dict[str, bytes], count: int) -> Iterator[tuple[str, bytes]]:
    """(suffix, content) of files with bytes flipped (in the header or anywhere), cut short, or under another's head."""
    random = np.random.default_rng(0)
    names = list(whole)
    for number in range(count):
        suffix, kind = names[number % len(names)], number // len(names) % 4
        content = bytearray(whole[suffix])
        if kind < 2:
            for place in random.integers(0, (100, len(content))[kind], random.integers(1, 9)):
                content[place] = random.integers(0, 256)
        elif kind == 2:
            del content[random.integers(1, len(content)) :]
        else:
            head = whole[names[random.integers(len(names))]][: random.integers(4, 200)]
            content[: len(head)] = head
        yield suffix, bytes(content)


@pytest.mark.slow
def test_a_thousand_mutants_are_each_kept_or_rejected(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "in").mkdir()
    for number, (suffix, content) in enumerate(mutants(originals(tmp_path / "whole"), FILES)):
        (tmp_path / f"in/word {number}.{suffix}").write_bytes(content)
    done = cli(
        "build-dataset", "folder", "--input", tmp_path / "in", "--out", tmp_path / "out", "--workers", 0, "--json"
    )
    report = json.loads(done.stdout)
    assert report["rows"] == FILES == report["kept"] + report["rejected"]
    assert 0.1 * FILES < report["kept"] < 0.9 * FILES  # they are neither harmless nor all beyond reading
    assert "Traceback" not in done.stderr and "callback" not in done.stderr


def bombs(folder: Path) -> dict[str, bytes]:
    """Small files whose headers claim as much as their fields can hold."""
    whole = originals(folder)
    wav, flac, ogg, w64, webm = (bytearray(whole[name]) for name in ("wav", "flac", "ogg", "w64", "webm"))
    most = {"channels.wav": bytearray(wav), "rate.wav": bytearray(wav), "frames.wav": wav}
    struct.pack_into("<H", most["channels.wav"], 22, 0xFFFF)
    struct.pack_into("<I", most["rate.wav"], 24, 0xFFFFFFF0)
    struct.pack_into("<I", wav, wav.index(b"data") + 4, 0xFFFFFFF0)
    both = bytearray(most["rate.wav"])
    struct.pack_into("<HI", both, 22, 64, 999_999)
    flac[18:26] = b"\xf4\x23\xff" + b"\xff" * 5  # nearly 1 MHz, 8 channels, 32 bits, 2**36 frames
    struct.pack_into("<BI", ogg, ogg.index(b"\x01vorbis") + 11, 255, 0xFFFFFFF0)
    struct.pack_into("<Q", w64, w64.index(b"data") + 16, 2**62)
    place = webm.index(b"\xb5\x88") + 2  # its sampling frequency, a float64
    struct.pack_into(">d", webm, place, 1e12)
    return {
        **most,
        "rate and channels.wav": both,
        "all.flac": flac,
        "all.ogg": ogg,
        "frames.w64": w64,
        "rate.webm": webm,
    }


def test_headers_that_claim_too_much_take_no_memory(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "in").mkdir()
    for name, content in bombs(tmp_path / "whole").items():
        (tmp_path / "in" / name).write_bytes(content)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import soxr, soundfile, av; from pathlib import Path;"
        "from pipelines.clip import Clip; from pipelines.local import to_location;"
        "from pipelines.resample import Resample; from resource import *; pack = open(sys.argv[3], 'wb');"
        "paths = sorted(Path(sys.argv[2]).iterdir());"
        "before = getrusage(RUSAGE_SELF).ru_maxrss;"
        "clips = list(Resample()([Clip(p.name, 'x', to_location(p)) for p in paths], pack, Path()));"
        "print(getrusage(RUSAGE_SELF).ru_maxrss - before, *[c.id + '=' + c.reason for c in clips], sep='\\n')"
    )
    line = [sys.executable, "-c", code, str(ROOT), str(tmp_path / "in"), os.devnull]
    kilobytes, *fates = subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()
    assert int(kilobytes) < 60_000
    kept = [fate[:-1] for fate in fates if fate.endswith("=")]
    assert kept == ["frames.w64", "rate.webm"]  # libsndfile cuts its claim; Opus has 48 kHz whatever Matroska says


def test_the_originals_are_whole(tmp_path):
    (tmp_path / "in").mkdir()
    assert len(originals(tmp_path / "in")) == len(BY_LIBSNDFILE) + len(BY_LIBAV)
    assert soundfile.info(tmp_path / "in/dog.wav").frames == 12_000
    done = cli(
        "build-dataset", "folder", "--input", tmp_path / "in", "--out", tmp_path / "out", "--dedup", "none", "--json"
    )
    assert json.loads(done.stdout)["kept"] == len(BY_LIBSNDFILE) + len(BY_LIBAV)
