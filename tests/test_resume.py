"""A build gives the same bytes however it ran: killed and resumed, in this process or on Ray."""

import json
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import cli, command, hostile, tree, write


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """40 sounds of several formats, rates and lengths among 12 odd files."""
    folder = tmp_path_factory.mktemp("sounds")
    hostile(folder)
    for number in range(40):
        suffix = ("wav", "flac", "ogg", "mp3")[number % 4]
        name = f"dog {'abcdefghij'[number % 10]} {number}.{suffix}"
        write(
            folder / name,
            0.5 + number % 7,
            (16_000, 44_100, 48_000)[number % 3],
            100 + 30 * number,
            1 + number % 2,
        )
    return folder


@pytest.fixture(scope="module")
def reference(sounds, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "out"
    cli(*build(sounds, out))
    return out


def build(sounds: Path, out: Path, *flags: object) -> tuple[object, ...]:
    return (
        "build-dataset",
        "folder",
        "--input",
        sounds,
        "--out",
        out,
        "--part-rows",
        4,
        "--workers",
        0,
        *flags,
    )


def test_workers_on_ray_give_the_same_bytes_as_this_process(sounds, reference, tmp_path):
    cli(*build(sounds, tmp_path / "out", "--workers", 2))
    assert tree(tmp_path / "out") == tree(reference)


def finished(out: Path) -> dict[Path, tuple[int, int]]:
    """Working parts and shards that are complete, with the identity of their files.

    The manifest is complete as a whole, once its count is written: killed before, it is read from the source anew.
    """
    paths = [*out.glob("build/*/part-*.parquet"), *out.glob("dataset/data/*.parquet")]
    if not (out / "build/manifest.json").exists():
        paths = [path for path in paths if path.parent.name != "manifest"]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def kill_at_random(line: list[str], out: Path, reference: Path, times: int, longest: float) -> None:
    """Run `line` and SIGKILL it, until that happened `times` times while it was at work.

    Nothing that was finished before a kill may be written again; a build that wins the race must equal the
    reference, and is begun anew.
    """
    pick, killed = random.Random(0), 0
    while killed < times:
        before, start = finished(out), time.monotonic()
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(pick.uniform(0.2, 1) * longest)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        assert process.returncode in (0, -signal.SIGKILL)
        after = finished(out)
        assert {path: after.get(path) for path in before} == before
        if process.returncode == 0:
            assert tree(out) == tree(reference)
            shutil.rmtree(out)
            longest = time.monotonic() - start
        else:
            longest *= 1.1


@pytest.mark.slow
def test_killed_twenty_times_the_build_ends_in_the_same_bytes(sounds, reference, tmp_path):
    kill_at_random(command(build(sounds, tmp_path / "out")), tmp_path / "out", reference, times=20, longest=2)
    cli(*build(sounds, tmp_path / "out"))
    assert tree(tmp_path / "out") == tree(reference)


@pytest.mark.slow
def test_killed_on_ray_the_build_ends_in_the_same_bytes(sounds, reference, tmp_path):
    line = command(build(sounds, tmp_path / "out", "--workers", 2))
    kill_at_random(line, tmp_path / "out", reference, times=4, longest=9)
    cli(*build(sounds, tmp_path / "out"))
    assert tree(tmp_path / "out") == tree(reference)


def test_a_finished_build_writes_no_part_again(sounds, reference, tmp_path):
    out = shutil.copytree(reference, tmp_path / "out")
    before = finished(out)
    cli(*build(sounds, out))
    assert finished(out) == before
    assert tree(out) == tree(reference)


def test_a_new_threshold_redoes_the_filter_and_what_follows_only(sounds, reference, tmp_path):
    out = shutil.copytree(reference, tmp_path / "out")
    before = finished(out)
    done = cli(*build(sounds, out, "--min-duration", 2))
    assert "redoing filter, dedup, caption" in done.stderr
    redone = {path.parent.name for path, file in finished(out).items() if before.get(path) != file}
    assert redone == {"filter", "dedup", "caption", "data"}
    reasons = pq.read_table(out / "rejected.parquet")["reason"].to_pylist()
    assert reasons.count("too-short") > 5
    cli(*build(sounds, out))
    assert tree(out) == tree(reference)


def test_a_mistake_in_the_command_leaves_a_finished_build_alone(sounds, reference, tmp_path):
    out = shutil.copytree(reference, tmp_path / "out")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    done = cli("build-dataset", "csv", "--input", tmp_path / "bad.csv", "--out", out, check=False)
    assert done.returncode == 1
    assert tree(out) == tree(reference)


@pytest.mark.parametrize("stage", ["manifest", "download", "filter", "caption"])
def test_deleting_a_folder_redoes_from_there(sounds, reference, tmp_path, stage):
    out = shutil.copytree(reference, tmp_path / "out")
    shutil.rmtree(out / "build" / stage)
    cli(*build(sounds, out))
    assert tree(out) == tree(reference)


def test_a_changed_input_redoes_the_build(tmp_path):
    write(tmp_path / "in/one dog.wav")
    first = json.loads(cli(*build(tmp_path / "in", tmp_path / "out"), "--json").stdout)
    write(tmp_path / "in/two dogs.wav", hertz=600)
    second = json.loads(cli(*build(tmp_path / "in", tmp_path / "out"), "--json").stdout)
    assert (first["kept"], second["kept"]) == (1, 2)


def test_an_input_that_moved_is_refused_and_a_link_in_its_place_continues(tmp_path):
    write(tmp_path / "in/dog.wav")
    cli(*build(tmp_path / "in", tmp_path / "out"))
    (tmp_path / "in").rename(tmp_path / "moved")
    cli(*build(tmp_path / "moved", tmp_path / "out", "--min-duration", 0.1))  # no file of the input is read
    shutil.rmtree(tmp_path / "out/build/resample")
    done = cli(*build(tmp_path / "moved", tmp_path / "out", "--min-duration", 0.1), check=False)
    assert done.returncode == 1 and "put the input back" in done.stderr
    (tmp_path / "in").symlink_to(tmp_path / "moved")
    cli(*build(tmp_path / "in", tmp_path / "out", "--min-duration", 0.1))


def test_a_build_of_before_places_were_remembered_goes_on(tmp_path):
    write(tmp_path / "in/one dog.wav")
    cli(*build(tmp_path / "in", tmp_path / "out"))
    recipe = tmp_path / "out/build/recipe.json"
    recipe.write_text(json.dumps({k: v for k, v in json.loads(recipe.read_text()).items() if k != "places"}))
    cli("caption", tmp_path / "out", "--keywords", "tags")
    (tmp_path / "in").rename(tmp_path / "moved")
    cli(*build(tmp_path / "moved", tmp_path / "out", "--keywords", "tags"))


def test_a_second_build_in_the_same_folder_refuses(sounds, tmp_path):
    line = command(build(sounds, tmp_path / "out"))
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        while not (tmp_path / "out/build/manifest.json").exists():
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        second = cli(*build(sounds, tmp_path / "out"), check=False)
        first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert "another build is at work" in second.stderr


@pytest.mark.parametrize(("stop", "workers"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGTERM, 2)])
def test_stopped_it_says_how_to_continue_and_exits_130(sounds, reference, tmp_path, stop, workers):
    line = command(build(sounds, tmp_path / "out", "--workers", workers))
    usual = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run in the background
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(line, preexec_fn=usual, **pipes) as process:
        while not list(tmp_path.glob("out/build/resample/part-*.parquet")):
            time.sleep(0.01)
        process.send_signal(stop)
        _, said = process.communicate()
    assert process.returncode == 130
    assert "Run the same command again" in said and "Traceback" not in said
    status = json.loads(cli("status", tmp_path / "out", "--json").stdout)
    assert status["complete"] is False and status["rows"] == 53
    cli(*build(sounds, tmp_path / "out"))
    assert tree(tmp_path / "out") == tree(reference)


def test_no_ray_process_survives_a_build(sounds, tmp_path, monkeypatch):
    monkeypatch.setenv("CLAPBOARD_TEST", str(tmp_path))  # children inherit it; other tests may have a Ray of their own
    line = command(build(sounds, tmp_path / "out", "--workers", 1))
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        seen: set[bytes] = set()
        while process.poll() is None:
            seen |= ray_processes(tmp_path)
            time.sleep(0.1)
    assert process.returncode == 0 and seen, "a build with a worker has processes of Ray"
    deadline = time.monotonic() + 20
    while ray_processes(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not ray_processes(tmp_path)


def ray_processes(mark: Path) -> set[bytes]:
    """Command lines of the Ray processes that this test's build started."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it has ended
                line = (folder / "cmdline").read_bytes()
                ours = f"CLAPBOARD_TEST={mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
                if ours and any(name in line for name in (b"raylet", b"gcs_server", b"ray::")):
                    found.add(line)
    return found
