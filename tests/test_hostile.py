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
from conftest import cli, command, hostile, tone, write

from cli import table as show_table


def fates(out: Path) -> dict[str, str]:
    """{native id: reason} of every row of a build, "" for a published one."""
    shards = sorted((out / "dataset/data").glob("*.parquet"))
    kept = {
        id.split("/", 1)[1]: "" for shard in shards for id in pq.read_table(shard, columns=["id"])["id"].to_pylist()
    }
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
    done = cli("build-dataset", "folder", "--input", tmp_path / "\x1b[31mgone", "--out", tmp_path / "out", check=False)
    assert done.returncode == 1 and "\x1b" not in done.stderr
    cli("build-dataset", "folder", "--input", tmp_path / "in", "--out", tmp_path / "out")
    row = pq.read_table(tmp_path / "out/dataset/data").select(["id", "captions"]).to_pylist()[0]
    assert row == {"id": "folder/red%1B[31m%07.wav", "captions": ["red [31m"]}


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


def test_an_address_of_another_kind_than_http_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("id,url,caption\n1,gopher://example.org/a.wav,A dog\n2,ftp://e.org/b.wav,A cat\n")
    cli("build-dataset", "csv", "--input", tmp_path / "t.csv", "--out", tmp_path / "out")
    assert fates(tmp_path / "out") == {"1": "unsupported-url", "2": "unsupported-url"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("folder", "--input", "nowhere"), "input nowhere does not exist"),
        (("csv", "--input", "/dev/null"), "neither a file nor a folder"),
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


def test_a_few_frames_at_a_high_rate_are_empty_and_not_a_full_disk(tmp_path):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/one frame.wav", tone()[:1], 192_000)
    assert rejected(tmp_path) == [("empty", "resample")]


def test_samples_far_beyond_full_scale_are_undecodable(tmp_path):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/huge.wav", tone() * 1e30, 16_000, subtype="FLOAT")
    assert rejected(tmp_path) == [("undecodable", "resample")]


ODD_ROWS = {
    "an address that is none": ("http://[bad/a.wav", "", "", "unsupported-url"),
    "a byte that is not UTF-8": ("https://127.0.0.1/caf\udce9.wav", "", "", "forbidden-address"),
    "a file address without a root": ("file://in/good.wav", "", "", "unsupported-url"),
    "a fold beyond numbers": ("other.wav", "9" * 400, "", ""),
    "a split beyond names": ("other.wav", "", "s" * 300, ""),
    "a split named all": ("other.wav", "", "all", ""),
    "a file named raw": ("good.raw", "", "", "not-audio"),
}


@pytest.mark.parametrize("name", ODD_ROWS)
def test_an_odd_row_costs_nothing_but_itself(tmp_path, name):
    path, fold, split, reason = ODD_ROWS[name]
    write(tmp_path / "good.wav")
    write(tmp_path / "other.wav", hertz=600)
    (tmp_path / "good.raw").write_bytes(b"no header" * 99)
    odd = f"2,{path},[[[[ a bracket,{fold},{split},{'t' * 200_000}"
    text = f"id,path,caption,fold,split,title\n1,good.wav,A dog,,,\n{odd}\n"
    (tmp_path / "t.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    cli("build-dataset", "csv", "--input", tmp_path / "t.csv", "--out", tmp_path / "out")
    assert fates(tmp_path / "out") == {"1": "", "2": reason}


def test_a_name_with_nul_and_numbers_beyond_64_bits_stay_what_they_are(tmp_path):
    write(tmp_path / "in/good.wav")
    rows = [{"file_name": "a\0b.wav"}, {"file_name": "good.wav", "text": "A dog", "n": 2**70}]
    (tmp_path / "in/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cli("build-dataset", "folder", "--input", tmp_path / "in", "--out", tmp_path / "out")
    assert fates(tmp_path / "out") == {"a b.wav": "missing-file", "good.wav": ""}
    (row,) = pq.read_table(tmp_path / "out/dataset/data", columns=["original"]).to_pylist()
    assert json.loads(row["original"])["n"] == 2**70


def test_an_input_inside_the_output_is_refused_and_left_alone(tmp_path):
    sound = write(tmp_path / "dataset/dog.wav")
    done = cli("build-dataset", "folder", "--input", tmp_path / "dataset", "--out", tmp_path, check=False)
    assert done.returncode == 1 and "which a build writes" in done.stderr
    assert sound.exists()


def test_a_folder_that_is_not_of_a_build_is_not_taken_over(tmp_path):
    write(tmp_path / "in/dog.wav")
    mine = write(tmp_path / "out/dataset/mine.wav")
    done = cli("build-dataset", "folder", "--input", tmp_path / "in", "--out", tmp_path / "out", check=False)
    assert done.returncode == 1 and "not of a build" in done.stderr
    assert mine.exists()


def test_a_title_is_no_markup(capsys):
    show_table("O[/tmp]T", {"a": 1})
    assert "O[/tmp]T" in capsys.readouterr().out


def test_a_reader_that_has_enough_is_no_error(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command(["sources", "--json"]), stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == ""


def test_a_debiased_build_without_a_captioner_is_refused(tmp_path):
    write(tmp_path / "in/dog.wav")
    line = ("build-dataset", "folder", "--input", tmp_path / "in", "--out", tmp_path / "out", "--debias")
    done = cli(*line, check=False)
    assert done.returncode == 1 and "give --captioner too" in done.stderr


def test_other_temporary_files_below_the_output_are_left_alone(tmp_path):
    write(tmp_path / "in/dog.wav")
    mine = tmp_path / "out/other/.precious.tmp"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    beside = tmp_path / "out/.cache.tmp/x"
    beside.parent.mkdir()
    beside.write_text("mine")
    cli("build-dataset", "folder", "--input", tmp_path / "in", "--out", tmp_path / "out")
    assert mine.exists() and beside.exists()
