"""Shared by all tests: small real sounds, the command line, and the folder of reference data."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the reference data beside the repository (../shared) are not here")
    return SHARED


def tone(seconds: float = 1.0, rate: int = 16_000, hertz: float = 440.0, channels: int = 1) -> np.ndarray:
    """A sine at half of full scale, float32 (frames, channels)."""
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def write(path: Path, seconds: float = 1.0, rate: int = 16_000, hertz: float = 440.0, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(os.fsencode(path), tone(seconds, rate, hertz, channels), rate, format=path.suffix[1:].upper())
    return path


def hostile(folder: Path) -> dict[str, str]:
    """Broken files and odd names beside good ones; returns the reason that each must get ("" for none)."""
    good = write(folder / "good dog.wav").read_bytes()
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("this is not audio\n" * 100)
    (folder / "truncated.wav").write_bytes(good[: len(good) // 2])
    (folder / "four gigabytes.wav").write_bytes(good[:40] + struct.pack("<I", 4_000_000_000) + good[44:])
    (folder / "a folder.wav").mkdir()
    (folder / "dangling.wav").symlink_to(folder / "nowhere.wav")
    os.mkfifo(folder / "pipe.wav")
    (folder / "noise.wav").write_bytes(np.random.default_rng(0).bytes(5_000))
    (folder / "header only.wav").write_bytes(good[:44])
    (folder / "corrupt.flac").write_bytes(b"fLaC" + np.random.default_rng(0).bytes(5_000))
    write(folder / "new\nline.wav", hertz=500)
    write(Path(os.fsdecode(bytes(folder) + b"/caf\xe9.wav")), hertz=600)
    return {
        "good dog.wav": "", "empty.wav": "empty", "text.wav": "not-audio", "truncated.wav": "truncated",
        "four gigabytes.wav": "truncated", "a folder.wav": "not-audio", "dangling.wav": "missing-file",
        "pipe.wav": "not-audio", "noise.wav": "not-audio", "header only.wav": "truncated",
        "corrupt.flac": "undecodable", "new%0Aline.wav": "", "caf%E9.wav": "",
    }  # fmt: skip


def command(arguments: tuple[object, ...]) -> list[str]:
    """A command line of ours."""
    return [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]


def cli(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, as a user would."""
    done = subprocess.run(command(arguments), capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


def tree(folder: Path) -> dict[str, bytes]:
    """Every published or working file of a build with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
