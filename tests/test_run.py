"""The engine: rows in = rows out, and a decoder's crash costs one clip."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
import pytest
import soundfile
from conftest import ROOT, write

from pipelines.clip import Clip, read_clips, write_clips
from pipelines.disk import BuildError
from pipelines.engine import Step, engine
from pipelines.local import to_location
from pipelines.run import Tally, apply, blame_part, part_path, run_part, stalled


@dataclass(frozen=True)
class Fragile:
    """Stands for a decoder: some titles take the process down, by a crash or as the kernel would."""

    packs: ClassVar[bool] = True
    clip_timeout: ClassVar[float] = 2.0

    def __call__(self, clips: Iterable[Clip], pack: BinaryIO, raw: Path) -> Iterator[Clip]:
        for clip in clips:
            if clip.title == "crash":
                ctypes.string_at(0)
            if clip.title == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if clip.title == "hang":
                time.sleep(1_000)
            if clip.title == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            pack.write(b"x")
            yield replace(clip, audio_bytes=1)


@dataclass(frozen=True)
class Forgetful:
    packs: ClassVar[bool] = False

    def __call__(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        yield from list(clips)[1:]


def part_of(build: Path, *titles: str) -> None:
    write_clips(part_path(build, "manifest", 0), [Clip(f"x/{i}", "x", title=t) for i, t in enumerate(titles)])


def reasons(build: Path) -> list[str]:
    return [clip.reason for clip in read_clips(part_path(build, "fragile", 0))]


def test_a_stage_that_loses_a_clip_ends_the_run():
    with pytest.raises(BuildError, match="lost or swapped"):
        apply(Forgetful(), [Clip("x/1", "x"), Clip("x/2", "x")], Tally(), {})


def test_rejected_clips_pass_by_and_keep_their_place():
    gone = Clip("x/1", "x").reject("download", "http-404")
    tally = Tally()
    clips = apply(Fragile(), [Clip("x/0", "x"), gone, Clip("x/2", "x")], tally, {}, BytesIO(), Path())
    assert [clip.id for clip in clips] == ["x/0", "x/1", "x/2"]
    assert clips[1] is gone
    assert (tally["fragile"].rows, tally["fragile"].kept, tally["fragile"].reasons) == (3, 2, {"http-404": 1})


def test_a_reason_outside_the_vocabulary_is_an_error():
    with pytest.raises(KeyError):
        Clip("x/1", "x").reject("filter", "ugly")


def run_in_a_process(build: Path) -> int:
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path; from test_run import *;"
        "run_part(Path(sys.argv[1]), 'manifest', [Fragile()], 0)"
    )
    line = [sys.executable, "-c", code, str(build), str(ROOT), str(ROOT / "tests")]
    return subprocess.run(line, capture_output=True).returncode


def test_without_workers_a_clip_that_crashes_the_process_is_rejected_on_the_next_run(tmp_path):
    part_of(tmp_path, "fine", "crash", "fine", "crash")
    codes = [run_in_a_process(tmp_path) for _ in range(3)]
    assert codes == [-signal.SIGSEGV, -signal.SIGSEGV, 0]
    assert reasons(tmp_path) == ["", "decoder-crashed", "", "decoder-crashed"]


def test_a_clip_in_hand_when_the_build_was_killed_from_outside_is_not_blamed(tmp_path):
    part_of(tmp_path, "fine", "kill")
    assert [run_in_a_process(tmp_path) for _ in range(4)] == [-signal.SIGKILL] * 4
    part_of(tmp_path, "fine", "fine")  # the journal still names the second clip
    assert run_in_a_process(tmp_path) == 0
    assert reasons(tmp_path) == ["", ""]


def test_on_ray_clips_that_kill_their_worker_are_found_and_rejected(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    part_of(tmp_path, "fine", "crash", "kill", "fine")
    stages = [Fragile()]
    step = Step(partial(run_part, tmp_path, "manifest", stages), died=partial(blame_part, tmp_path, stages))
    with engine(workers=1) as run:
        (tally,) = run([step], [0])
    assert tally["fragile"].reasons == {"decoder-crashed": 2}
    assert reasons(tmp_path) == ["", "decoder-crashed", "decoder-crashed", ""]


def test_on_ray_a_decoder_that_hangs_and_a_worker_that_is_stopped_cost_their_clip(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    monkeypatch.setattr("pipelines.run.GRACE", 1.0)
    monkeypatch.setattr("pipelines.run.DEATHS", 2)
    monkeypatch.setattr("pipelines.engine.TICK", 0.5)
    part_of(tmp_path, "fine", "hang", "stop", "fine")
    stages = [Fragile()]
    died, hung = partial(blame_part, tmp_path, stages), partial(stalled, tmp_path, stages)
    with engine(workers=1) as run:
        list(run([Step(partial(run_part, tmp_path, "manifest", stages), died=died, stalled=hung)], [0]))
    assert reasons(tmp_path) == ["", "decoder-crashed", "decoder-crashed", ""]


def test_in_this_process_a_decoder_that_hangs_ends_it_and_is_rejected_on_the_next_run(tmp_path):
    part_of(tmp_path, "fine", "hang", "fine")
    assert [run_in_a_process(tmp_path) for _ in range(2)] == [1, 0]
    assert reasons(tmp_path) == ["", "decoder-crashed", ""]


def test_workers_that_die_with_no_clip_in_hand_end_the_run(tmp_path):
    path = part_path(tmp_path, "fragile", 0).with_suffix(".journal")
    path.parent.mkdir()
    path.touch()
    blame_part(tmp_path, [Fragile()], 0, deaths=2)
    with pytest.raises(BuildError, match="died 3 times"):
        blame_part(tmp_path, [Fragile()], 0, deaths=3)


def test_a_clip_is_blamed_only_for_deaths_of_its_own(tmp_path):
    path = part_path(tmp_path, "fragile", 0).with_suffix(".journal")
    path.parent.mkdir()
    for deaths, row in enumerate((1, 2, 1, 3, 1), start=1):
        assert b"Fatal" not in (path.read_bytes() if path.exists() else b"")
        with path.open("ab") as journal:
            journal.write(b"row %d\n" % row)
        blame_part(tmp_path, [Fragile()], 0, deaths)
    assert path.read_bytes().endswith(b"row 1\nFatal to 3 workers\n")


def test_an_error_of_a_worker_ends_the_run_as_itself():
    def fail(item: int) -> None:
        raise BuildError(f"no luck with {item}")

    with pytest.raises(BuildError, match="no luck with 7"), engine(workers=1) as run:
        list(run([Step(fail)], [7]))


def test_a_clip_that_takes_more_memory_than_a_worker_may_costs_itself_only(tmp_path):
    write(tmp_path / "fine.wav")
    soundfile.write(tmp_path / "greedy.wav", np.zeros((990_000, 64), np.int16), 990_000)  # 253 MB a second, as float
    clips = [Clip(f"x/{name}", "x", location=to_location(tmp_path / f"{name}.wav")) for name in ("fine", "greedy")]
    write_clips(part_path(tmp_path, "manifest", 0), clips)
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path; from pipelines.engine import limit_memory;"
        "from pipelines.resample import Resample; from pipelines.run import run_part; import soundfile, soxr, av;"
        "import pyarrow.pandas_compat; limit_memory(240 * 2**20);"
        "run_part(Path(sys.argv[1]), 'manifest', [Resample()], 0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), str(ROOT)], check=True)
    fine, greedy = read_clips(part_path(tmp_path, "resample", 0))
    assert fine.reason == "" and greedy.reason in ("decoder-crashed", "undecodable")  # whoever was refused the memory


def test_secrets_of_an_address_do_not_reach_the_detail():
    said = "403 at https://bob:hunter2@e.org/a.wav?X-Amz-Signature=SECRET, sorry"
    assert Clip("x/1", "x").reject("download", "http-403", said).detail == "403 at https://e.org/a.wav sorry"
