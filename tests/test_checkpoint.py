"""Checkpoints: which are kept, that a kill at any moment leaves a whole one, and that files are replaced at once."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from clap import checkpoint
from clap.checkpoint import link, name, newest, place, prune, top, write, write_bytes
from clap.config import ClapError


def fill(folder):
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "trainer.pt").write_bytes(b"state")


def run_with(folder, steps):
    for step in steps:
        write(folder, step, fill)
    return folder


def kept(run):
    return [int(path.name.removeprefix("step-")) for path in sorted((run / "checkpoints").iterdir())]


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (1, [], [5]),
        (2, [], [4, 5]),
        (2, [1], [1, 4, 5]),
        (1, [3, 2], [2, 3, 5]),
        (9, [1], [1, 2, 3, 4, 5]),
        (1, [77], [5]),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, keep, best, left):
    prune(run_with(tmp_path, range(1, 6)), keep, best)
    assert kept(tmp_path) == left


def test_what_the_links_point_to_is_kept_and_what_is_half_written_is_not(tmp_path):
    run_with(tmp_path, range(1, 6))
    link(tmp_path, "best", 2)
    link(tmp_path, "last", 3)
    (tmp_path / "checkpoints" / ".step-00000009.tmp").mkdir()
    prune(tmp_path, 1)
    assert kept(tmp_path) == [2, 3, 5]


def test_the_best_are_the_highest_and_the_earlier_of_equals():
    found = []
    for step, score in enumerate([0.3, 0.5, 0.5, 0.1, 0.4], start=1):
        found = top(found, score, step, 3)
    assert found == [(0.5, 2), (0.5, 3), (0.4, 5)]
    assert top(found, 0.5, 9, 1) == [(0.5, 2)]


def test_a_step_that_is_evaluated_again_counts_once():
    assert top([(0.5, 2), (0.4, 4)], 0.5, 2, 3) == [(0.5, 2), (0.4, 4)]


def test_a_checkpoint_that_is_there_is_not_written_again(tmp_path):
    run_with(tmp_path, [1])
    write(tmp_path, 1, lambda folder: pytest.fail("filled again"))
    assert newest(tmp_path) == tmp_path / name(1)


def test_a_fill_that_fails_leaves_the_one_before(tmp_path):
    def broken(folder):
        fill(folder)
        raise OSError("disk full")

    run_with(tmp_path, [1])
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, 2, broken)
    assert newest(tmp_path) == tmp_path / name(1)
    write(tmp_path, 2, fill)
    assert newest(tmp_path) == tmp_path / name(2)


KILLED = """
import os, signal, sys
from pathlib import Path
from clap import checkpoint

left, run = int(sys.argv[1]), Path(sys.argv[2])

def counted(name):
    usual = getattr(Path, name)
    def call(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return usual(*arguments, **options)
    setattr(Path, name, call)

for each in ("mkdir", "write_bytes", "rename", "replace", "symlink_to", "unlink"):
    counted(each)

def fill(folder):
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "trainer.pt").write_bytes(b"state")

checkpoint.write(run, 4, fill)
checkpoint.link(run, "last", 4)
checkpoint.link(run, "best", 4)
checkpoint.prune(run, 1, [4])
"""


def test_a_kill_at_any_moment_leaves_whole_checkpoints_and_links_that_lead_to_one(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for left in range(40):
        run = run_with(tmp_path / str(left), [1, 2, 3])
        link(run, "last", 3)
        link(run, "best", 2)
        done = subprocess.run([sys.executable, "-c", KILLED, str(left), str(run)], env=env, capture_output=True)
        for folder in [newest(run), (run / "last").resolve(), (run / "best").resolve()]:
            assert {path.name for path in folder.iterdir()} == {"model.safetensors", "trainer.pt"}, left
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert left > 10 and kept(run) == [4]


def test_nothing_is_placed_into_a_run(tmp_path):
    run_with(tmp_path, [1])
    with pytest.raises(ClapError, match="holds a run"):
        place(tmp_path, fill)


def test_a_file_is_replaced_whole(tmp_path):
    write_bytes(tmp_path / "curves.png", b"old")
    write_bytes(tmp_path / "curves.png", b"new")
    checkpoint.write_text(tmp_path / "text", "größer")
    assert (tmp_path / "curves.png").read_bytes() == b"new" and (tmp_path / "text").read_text("utf-8") == "größer"
    assert not list(tmp_path.glob(".*"))
