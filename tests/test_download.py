"""The download stage, end to end: every row ends with its reason or its bytes, whatever the servers do."""

import csv
import hashlib
import json
import resource
import shutil
import signal
import subprocess
import time
import zipfile
from functools import partial
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import cli, command, tree, write
from server import Server, serve
from test_hostile import fates

POLITE = ("--allow-private-addresses", "--backoff", "0.01", "--attempts", 2, "--download-timeout", 3)


@pytest.fixture
def server():
    with serve() as server:
        yield server


def table(folder: Path, locations: list[str]) -> Path:
    """A CSV of locations, each with a caption."""
    path = folder / "in.csv"
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows(
            [["id", "path", "caption"], *[[n, x, f"Dog {n}"] for n, x in enumerate(locations)]]
        )
    return path


def sounds(server: Server, folder: Path, number: int) -> list[str]:
    """Addresses of so many sounds that the server serves well."""
    for n in range(number):
        server.files[f"/sound{n}.wav"] = write(folder / "sound.wav", 0.5, hertz=200 + 7 * n).read_bytes()
    return [server.url + path for path in server.files]


def build(path: Path, out: Path, *flags: object) -> dict:
    done = cli("build-dataset", "csv", "--input", path, "--out", out, *POLITE, *flags, "--json")
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def parts(out: Path) -> dict[Path, tuple[int, int]]:
    """The downloaded parts with the identity of their files."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.glob("build/download/part-*.parquet")}


MISBEHAVIOUR = {
    "/status/404": "http-404", "/status/403": "http-403", "/status/500": "http-500", "/status/500/1": "",
    "/wait/1": "", "/drip": "timeout", "/endless": "too-large", "/hang": "timeout", "/cut/1": "",
    "/cut/9?ranges=none&etag=": "incomplete-body", "/circle/a": "bad-redirect", "/to": "bad-redirect",
    "/to?http://169.254.169.254/latest/meta-data": "forbidden-address", "/to?file:///etc/passwd": "bad-redirect",
    "/gzip/50": "too-large", "/page": "not-audio", "/reset": "connection", "/fine": "not-audio",
}  # fmt: skip


def test_each_misbehaviour_costs_its_own_row_and_retrying_recovers_exactly_the_transient_ones(server, tmp_path):
    server.body = write(tmp_path / "long.wav", 1.5).read_bytes()
    good = sounds(server, tmp_path, 8)
    bad = [server.url + path for path in MISBEHAVIOUR if path != "/fine"]
    expected = ["" for _ in good] + [MISBEHAVIOUR[path] for path in MISBEHAVIOUR if path != "/fine"]
    path, out = table(tmp_path, good + bad), tmp_path / "out"
    flags = ("--max-download-bytes", 10**6, "--min-speed", 0, "--part-rows", 8, "--dedup", "none")
    build(path, out, *flags)
    assert [fates(out)[str(n)] for n in range(len(expected))] == expected

    server.files |= {path.partition("?")[0]: server.body for path in MISBEHAVIOUR}  # all is well again
    before, asked = parts(out), len(server.log)
    build(path, out, *flags, "--retry-rejected")
    transient = {"http-500", "timeout", "incomplete-body", "connection"}
    assert [fates(out)[str(n)] for n in range(len(expected))] == [
        "" if reason in transient else reason for reason in expected
    ]
    assert len(server.log) - asked == sum(reason in transient for reason in expected)
    after = parts(out)
    assert after[min(before)] == before[min(before)], "the part of good rows was left alone"


def test_the_private_network_is_not_asked_unless_admitted(server, tmp_path):
    path = table(tmp_path, sounds(server, tmp_path, 1))
    cli("build-dataset", "csv", "--input", path, "--out", tmp_path / "out")
    assert fates(tmp_path / "out") == {"0": "forbidden-address"}
    assert not server.log


def test_a_named_reason_is_tried_again_whatever_it_is(server, tmp_path):
    good = sounds(server, tmp_path, 2)
    path, out = table(tmp_path, [*good, server.url + "/late.wav"]), tmp_path / "out"
    assert build(path, out)["rejected_by_reason"] == {"http-404": 1}
    server.files["/late.wav"] = write(tmp_path / "late.wav", 1.0).read_bytes()
    assert build(path, out, "--retry-rejected")["rejected_by_reason"] == {"http-404": 1}
    assert build(path, out, "--retry-rejected", "http-404")["rejected_by_reason"] == {}
    line = ["build-dataset", "csv", "--input", path, "--out", out, *POLITE, "--min-words", 2]
    done = cli(*line, "--retry-rejected", "ugly", check=False)
    assert done.returncode == 1 and "no such reason" in done.stderr
    assert (out / "dataset/README.md").exists()


def test_refreshing_fetches_only_what_has_changed_at_its_server(server, tmp_path):
    path, out = table(tmp_path, sounds(server, tmp_path, 3)), tmp_path / "out"
    build(path, out)
    first = tree(out / "dataset")
    build(path, out, "--refresh")
    assert tree(out / "dataset") == first
    server.files["/sound1.wav"] = write(tmp_path / "new.wav", 2.0).read_bytes()
    build(path, out, "--refresh")
    asked = [headers.get("If-None-Match") for _, headers in server.log]
    assert len(asked) == 9 and None not in asked[3:]
    rows = pq.read_table(out / "dataset/data", columns=["id", "duration"]).to_pylist()
    assert {row["id"]: row["duration"] for row in rows} == {"csv/0": 0.5, "csv/1": 2.0, "csv/2": 0.5}


def test_refreshing_sees_files_of_this_machine_that_have_changed(tmp_path):
    here = [write(tmp_path / f"{n}.wav", 0.5) for n in range(2)]
    path, out = table(tmp_path, [str(each) for each in here]), tmp_path / "out"
    build(path, out)
    write(here[1], 0.8)
    build(path, out, "--refresh")
    rows = pq.read_table(out / "dataset/data", columns=["id", "duration"]).to_pylist()
    assert {row["id"]: row["duration"] for row in rows} == {"csv/0": 0.5, "csv/1": 0.8}


def test_retried_files_have_other_limits_and_other_settings_are_refused(server, tmp_path):
    path, out = table(tmp_path, sounds(server, tmp_path, 2)), tmp_path / "out"
    server.files["/sound1.wav"] = write(tmp_path / "long.wav", 3.0).read_bytes()
    build(path, out, "--max-download-bytes", 50_000)
    asked = len(server.log)
    assert fates(out) == {"0": "", "1": "too-large"}
    done = cli(
        "build-dataset", "csv", "--input", path, "--out", out, *POLITE, "--max-download-bytes", 10**6,
        "--retry-rejected", "too-large",
    )  # fmt: skip
    assert "other limits of download hold from now on" in done.stderr
    assert fates(out) == {"0": "", "1": ""} and len(server.log) == asked + 1
    first = tree(out / "dataset")
    line = ["build-dataset", "csv", "--input", path, "--out", out, *POLITE, "--max-download-bytes", 10**6]
    done = cli(*line, "--licenses", "CC0", "--retry-rejected", check=False)
    assert done.returncode == 1 and "would be fetched again" in done.stderr and tree(out / "dataset") == first


def test_files_of_archives_the_web_and_this_machine_make_one_dataset(server, tmp_path):
    (web,) = sounds(server, tmp_path, 1)
    here = write(tmp_path / "here.wav", 0.7)
    with zipfile.ZipFile(tmp_path / "pack.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(write(tmp_path / "inside.wav", 0.9), "a folder/in#side.wav")
    path = table(tmp_path, [web, str(here), "pack.zip#a folder/in#side.wav", "pack.zip#gone.wav"])
    build(path, tmp_path / "out")
    assert fates(tmp_path / "out") == {"0": "", "1": "", "2": "", "3": "bad-archive-member"}
    rows = pq.read_table(tmp_path / "out/dataset/data", columns=["id", "duration"]).to_pylist()
    assert {row["id"][4:]: row["duration"] for row in rows} == {"0": 0.5, "1": 0.7, "2": 0.9}


@pytest.mark.parametrize(
    ("keep", "raw", "packs"), [("all", True, True), ("audio", False, True), ("none", False, False)]
)
def test_what_is_kept_of_the_working_files(server, tmp_path, keep, raw, packs):
    path, out = table(tmp_path, sounds(server, tmp_path, 3)), tmp_path / "out"
    build(path, out, "--keep", keep)
    assert (out / "build/download/part-00000.pack").exists() == raw
    assert (out / "build/resample/part-00000.pack").exists() == packs
    asked = len(server.log)
    build(path, out, "--keep", keep)
    assert len(server.log) == asked, "a finished build asks nothing"
    report = build(path, out, "--keep", keep, "--min-duration", 0.2)
    assert report["kept"] == 3
    assert len(server.log) == (asked if packs else 2 * asked), "a new threshold needs the network only without audio"


def test_an_unknown_choice_of_what_to_keep_is_refused_before_anything_is_fetched(server, tmp_path):
    path = table(tmp_path, sounds(server, tmp_path, 1))
    line = ("build-dataset", "csv", "--input", path, "--out", tmp_path / "out", *POLITE, "--keep", "some")
    done = cli(*line, check=False)
    assert done.returncode == 1 and "want one of all, audio, none" in done.stderr and not server.log


def durations(out: Path) -> dict[str, float]:
    """{native id: seconds of the FLAC} of every published clip."""
    rows = pq.read_table(out / "dataset/data", columns=["id", "audio"]).to_pylist()
    return {row["id"][4:]: soundfile.info(BytesIO(row["audio"]["bytes"])).duration for row in rows}


def test_trying_again_without_the_working_audio_is_refused_and_leaves_the_dataset(server, tmp_path):
    path, out = table(tmp_path, [*sounds(server, tmp_path, 2), server.url + "/status/500"]), tmp_path / "out"
    build(path, out, "--keep", "none")
    before = tree(out / "dataset")
    line = ("build-dataset", "csv", "--input", path, "--out", out, *POLITE, "--retry-rejected")
    done = cli(*line, check=False)
    assert done.returncode == 1 and "--keep none" in done.stderr
    assert tree(out / "dataset") == before


def test_audio_stays_with_its_clip_when_parts_tried_again_are_decoded_anew(server, tmp_path):
    server.files["/a.wav"] = write(tmp_path / "a.wav", 0.5).read_bytes()
    path, out = table(tmp_path, [server.url + "/a.wav", server.url + "/b.wav"]), tmp_path / "out"
    build(path, out)
    server.files["/b.wav"] = write(tmp_path / "b.wav", 0.9).read_bytes()
    build(path, out, "--retry-rejected", "http-404", "--keep", "all")
    shutil.rmtree(out / "build/resample")
    build(path, out, "--dedup", "none")
    assert durations(out) == {"0": 0.5, "1": 0.9}


def test_a_clip_whose_table_states_its_hash_comes_back_when_its_server_does(server, tmp_path):
    sound = write(tmp_path / "a.wav").read_bytes()
    path, out = tmp_path / "in.csv", tmp_path / "out"
    path.write_text(f"id,path,caption,sha256\n0,{server.url}/a.wav,A dog,{hashlib.sha256(sound).hexdigest()}\n")
    server.broken = True
    assert build(path, out)["rejected_by_reason"] == {"http-500": 1}
    server.broken, server.files["/a.wav"] = False, sound
    assert build(path, out, "--retry-rejected")["kept"] == 1


def test_a_server_that_is_down_while_refreshing_costs_no_clip(server, tmp_path):
    path, out = table(tmp_path, sounds(server, tmp_path, 2)), tmp_path / "out"
    build(path, out)
    before = tree(out / "dataset")
    server.broken = True
    assert build(path, out, "--refresh")["kept"] == 2
    assert tree(out / "dataset") == before


def test_what_is_fetched_anew_is_published_anew(server, tmp_path):
    server.files["/a.wav"] = write(tmp_path / "a.wav", 0.5).read_bytes()
    path, out = table(tmp_path, [server.url + "/a.wav"]), tmp_path / "out"
    build(path, out)
    server.files["/a.wav"] = write(tmp_path / "a.wav", 0.9).read_bytes()
    for stage in ("download", "resample", "filter", "dedup", "caption"):
        shutil.rmtree(out / "build" / stage)
    build(path, out)
    assert durations(out) == {"0": 0.9}


def test_more_files_than_may_be_open_by_default_can_wait_for_their_turn(server, tmp_path):
    server.body = bytes(200_000)
    path = table(tmp_path, [f"{server.url}/{'hang' if n == 0 else 'fine'}?{n}" for n in range(200)])
    low = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (128, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    line = command(("build-dataset", "csv", "--input", path, "--out", tmp_path / "out", *POLITE, "--json"))
    done = subprocess.run(line, preexec_fn=low, capture_output=True, text=True)
    assert json.loads(done.stdout)["rejected_by_reason"] == {"not-audio": 199, "timeout": 1}, done.stderr


@pytest.mark.slow
def test_killed_while_downloading_the_build_ends_in_the_same_bytes_and_fetches_no_finished_part_again(server, tmp_path):
    path = table(tmp_path, [*sounds(server, tmp_path, 40), server.url + "/status/404"])
    build(path, tmp_path / "reference", "--part-rows", 4, "--workers", 0)
    line = command(
        ("build-dataset", "csv", "--input", path, "--out", tmp_path / "out", *POLITE, "--part-rows", 4, "--workers", 0)
    )
    killed = 0
    while killed < 5:
        before = parts(tmp_path / "out")
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(parts(tmp_path / "out")) < 2 * killed + 1 and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
        after = parts(tmp_path / "out")
        assert {path: after.get(path) for path in before} == before
    build(path, tmp_path / "out", "--part-rows", 4, "--workers", 0)
    assert tree(tmp_path / "out/dataset") == tree(tmp_path / "reference/dataset")


@pytest.mark.slow
def test_on_ray_downloads_give_the_same_bytes_and_share_their_manners(server, tmp_path):
    path = table(tmp_path, [*sounds(server, tmp_path, 40), server.url + "/status/404"])
    build(path, tmp_path / "reference", "--part-rows", 4, "--workers", 0)
    server.most = 0
    build(path, tmp_path / "out", "--part-rows", 4, "--workers", 2, "--per-host", 3)
    assert server.most <= 3
    assert tree(tmp_path / "out/dataset") == tree(tmp_path / "reference/dataset")
    shutil.rmtree(tmp_path / "out")
