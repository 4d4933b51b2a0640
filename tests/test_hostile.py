"""Broken and odd inputs cost exactly their own rows, each with its reason."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import cli, hostile, tone, write


def fates(out: Path) -> dict[str, str]:
    """{native id: reason} of every row of a build, "" for a published one."""
    rows = pq.read_table(sorted((out / "dataset/data").glob("*.parquet")), columns=["id"]).to_pylist()
    kept = {row["id"].split("/", 1)[1]: "" for row in rows}
    rejected = pq.read_table(out / "rejected.parquet").to_pylist()
    return kept | {row["id"].split("/", 1)[1]: row["reason"] for row in rejected}


def test_each_broken_file_costs_its_own_row_only(tmp_path):
    expected = hostile(tmp_path / "in")
    done = cli("build-dataset", "folder", "--input", tmp_path / "in", "--out", tmp_path / "out", "--json")
    assert fates(tmp_path / "out") == expected
    report = json.loads(done.stdout)
    assert report["rows"] == len(expected) == report["kept"] + report["rejected"]


def test_no_control_character_reaches_ids_captions_or_the_terminal(tmp_path):
    write(tmp_path / "in" / "red\x1b[31m\x07.wav")
    done = cli("build-dataset", "folder", "--input", tmp_path / "in", "--out", tmp_path / "out")
    row = pq.read_table(tmp_path / "out/dataset/data").select(["id", "captions"]).to_pylist()[0]
    assert row == {"id": "folder/red%1B[31m%07.wav", "captions": ["red [31m"]}
    assert "\x1b[31m" not in done.stdout + done.stderr


def rejected(tmp_path: Path, *flags: str) -> list[tuple[str, str]]:
    cli("build-dataset", "folder", "--input", tmp_path / "in", "--out", tmp_path / "out", *flags)
    rows = pq.read_table(tmp_path / "out/rejected.parquet").to_pylist()
    return [(row["reason"], row["stage"]) for row in rows]


def test_samples_that_are_not_numbers_are_undecodable(tmp_path):
    wave = tone()
    wave[100] = np.nan
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/nan.wav", wave, 16_000, subtype="FLOAT")
    assert rejected(tmp_path) == [("undecodable", "resample")]


def test_channels_that_cancel_out_are_silent(tmp_path):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/phase.wav", np.hstack([tone(), -tone()]), 16_000)
    assert rejected(tmp_path) == [("silent", "resample")]


def test_a_sample_rate_of_one_hertz_does_not_explode(tmp_path):
    path = write(tmp_path / "in/slow.wav")
    content = bytearray(path.read_bytes())
    content[24:28] = (1).to_bytes(4, "little")
    path.write_bytes(content)
    assert rejected(tmp_path) == [("undecodable", "resample")]


def test_a_playlist_cannot_make_the_decoder_read_other_files(tmp_path):
    secret = write(tmp_path / "secret.wav")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/list.m4a").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n")
    (tmp_path / "in/list.wav").write_text(f"ffconcat version 1.0\nfile '{secret}'\n")
    assert rejected(tmp_path) == [("not-audio", "resample")] * 2


def test_streamed_wav_without_sizes_is_kept(tmp_path):
    content = bytearray(write(tmp_path / "in/streamed.wav").read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "in/streamed.wav").write_bytes(content)
    assert rejected(tmp_path) == []


def test_a_url_is_refused_with_its_reason_while_downloads_are_not_built_in(tmp_path):
    (tmp_path / "t.csv").write_text("url,caption\nhttps://example.org/a.wav,A dog\nftp://example.org/b.wav,A cat\n")
    cli("build-dataset", "csv", "--input", tmp_path / "t.csv", "--out", tmp_path / "out")
    rows = pq.read_table(tmp_path / "out/rejected.parquet").to_pylist()
    assert [row["reason"] for row in rows] == ["unsupported-url"] * 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("folder", "--input", "nowhere"), "input nowhere does not exist"),
        (("csv", "--input", "/dev/null"), "not a file"),
        (("radio", "--input", "."), "unknown source"),
        (("csv", "--input", "bad.csv"), "no column of paths"),
        (("csv", "--input", "ragged.csv"), "cannot read ragged.csv"),
        (("csv", "--input", "good.csv", "--column", "location=nope"), "no column 'nope'"),
        (("csv", "--input", "good.csv", "--column", "nonsense"), "want FIELD=NAME"),
        (("csv", "--input", "empty.csv"), "holds no clips"),
        (("folder", "--input", "."), "lies inside the input"),
    ],
)
def test_input_that_cannot_be_built_exits_with_one_sentence(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    Path("bad.csv").write_text("a,b\n1,2\n")
    Path("good.csv").write_text("path,caption\nx.wav,A dog\n")
    Path("ragged.csv").write_text("path,caption\nx.wav,A dog, barking\n")
    Path("empty.csv").write_text("path,caption\n")
    done = cli("build-dataset", *arguments, "--out", "out", check=False)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_ends_the_build_and_running_again_continues(tmp_path):
    for number in range(12):
        write(tmp_path / f"in/dog {number}.wav", seconds=4, hertz=200 + 50 * number)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let tests mount a disk")
    build = ("build-dataset", "folder", "--input", tmp_path / "in", "--part-rows", 2, "--out")
    try:
        full = cli(*build, disk / "out", check=False)
        assert full.returncode == 1
        assert "Traceback" not in full.stderr
        assert "full" in full.stderr or "No space left" in full.stderr
        finished = sorted((disk / "out/build").glob("*/part-*.parquet"))
        assert finished, "the disk should hold some parts before it is full"
        shutil.copytree(disk / "out", tmp_path / "out")
    finally:
        subprocess.run(["umount", disk], check=True)
    report = json.loads(cli(*build, tmp_path / "out", "--json").stdout)
    assert (report["kept"], report["rejected"]) == (12, 0)
