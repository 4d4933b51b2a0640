"""Tables as large as memory and beyond, and builds of their rows without audio."""

import json
import sys
import unicodedata
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import cli, tree, write

from pipelines.clip import Clip, write_clips
from pipelines.local import local_path, member_of, to_location
from pipelines.manifest import cut, prepare
from pipelines.run import part_path
from pipelines.shard import COLUMNS, plan_shards, row_groups, write_shard
from pipelines.sources import Reading, rows, source
from pipelines.text import BIDI

TABLE = """id,url,caption,tags,licence,duration,sample_rate,channels,bytes,sha256,split
1,https://e.org/1.ogg,A dog,"dog,bark",CC0,2.5,44100,2,1000,{0},train
2,https://e.org/2.ogg,A cat,,CC-BY,3,48000.0,1,,,test
1,https://e.org/1.ogg,It barks,,CC0,2.5,44100,2,1000,{0},train
3,gone.wav,,,CC0,700,44100,1,,,train
4,s3://bucket/4.wav,Rain,,CC0,,8000,,,,train
5,https://e.org/5.ogg,A copy,,CC0,2.5,44100,2,1000,{0},train
""".format("ab" * 32)


def table(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def clips(path: Path) -> list[Clip]:
    return list(prepare(source("csv").clips(path, Reading())))


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("metadata")
    line = ("build-dataset", "csv", "--input", table(folder, TABLE), "--metadata-only", "--part-rows", 2)
    cli(*line, "--workers", 0, "--out", folder / "out")
    return folder / "out"


def test_a_build_of_metadata_publishes_the_facts_of_the_table_and_opens_nothing(out):
    report = json.loads((out / "report.json").read_text())
    assert (report["rows"], report["kept"]) == (5, 2)
    assert report["rejected_by_reason"] == {"duplicate": 1, "low-sample-rate": 1, "too-long": 1}
    (row,) = pq.read_table(out / "dataset/data/train-00000-of-00001.parquet").to_pylist()
    assert (row["captions"], row["tags"]) == (["A dog", "It barks"], ["dog", "bark"])
    assert (row["duration"], row["sample_rate"], row["channels"], row["sha256"]) == (2.5, 44_100, 2, "ab" * 32)
    assert {path.name for path in (out / "build").iterdir()}.isdisjoint({"download", "resample"})


def test_datasets_loads_metadata_without_an_audio_column(out, tmp_path):
    from datasets import load_dataset

    loaded = load_dataset(str(out / "dataset"), cache_dir=str(tmp_path))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 1, "test": 1}
    assert loaded["test"].column_names == [name for name in COLUMNS if name != "audio"]
    assert loaded["test"][0]["captions"] == ["A cat"]


def test_the_card_says_that_there_is_no_audio(out):
    card = (out / "dataset/README.md").read_text()
    assert "no audio" in card and "FLAC" not in card


def test_workers_on_ray_build_the_same_bytes_of_metadata(out, tmp_path):
    line = ("build-dataset", "csv", "--input", out.parent / "t.csv", "--metadata-only", "--part-rows", 2)
    cli(*line, "--workers", 2, "--out", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(out)


def test_metadata_is_cut_into_shards_by_its_bytes_and_keeps_its_order(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.shard.SHARD_BYTES", 15_000)
    monkeypatch.setattr("pipelines.shard.METADATA_ROWS", 3)
    for part in range(4):
        some = [Clip(f"x/{part}-{row}", "x", split="train") for row in range(5)]
        write_clips(part_path(tmp_path, "last", part), some)
    shards = plan_shards(tmp_path, tmp_path / "dataset", "last", 4, audio=False)
    assert len(shards) > 1
    for shard in shards:
        write_shard(tmp_path, tmp_path / "dataset", shard)
        assert {group.num_rows for group in list(row_groups(tmp_path, shard))[:-1]} <= {3}
    found = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "dataset/data").iterdir()))
    assert found["id"].to_pylist() == [f"x/{part}-{row}" for part in range(4) for row in range(5)]
    assert plan_shards(tmp_path, tmp_path / "dataset", "last", 4, audio=False) == []


def test_sizes_cut_a_part_only_where_its_bytes_are_fetched():
    heavy = [Clip(f"x/{row}", "x", size=300) for row in range(4)]
    assert [len(part) for part in cut(heavy, 3, 500)] == [1, 1, 1, 1]
    assert [len(part) for part in cut(heavy, 3, None)] == [3, 1]


def test_rows_of_a_clip_far_apart_or_side_by_side_are_one_clip_in_the_place_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "PIECE", 2)
    rows_ = ("a.wav,One", "b.wav,Two", "c.wav,Three", "c.wav,Four", "a.wav,Five", ",Six", ",Seven", "a.wav,Eight")
    path = table(tmp_path, "\n".join(["path,caption", *rows_]))
    found = [(clip.id, clip.captions) for clip in clips(path)]
    assert found == [
        ("csv/a.wav", ("One", "Five", "Eight")), ("csv/b.wav", ("Two",)), ("csv/c.wav", ("Three", "Four")),
        ("csv/row-6", ("Six",)), ("csv/row-7", ("Seven",)),
    ]  # fmt: skip


def test_sections_of_a_recording_are_clips_of_their_own(tmp_path):
    text = "path,start_time,end_time,caption\na.wav,30,40,One\na.wav,30.0,40,Two\na.wav,0,9.5,Three\na.wav,,,All\n"
    found = [(clip.id, clip.start, clip.end, clip.captions) for clip in clips(table(tmp_path, text))]
    assert found == [
        ("csv/a.wav#30-40", 30, 40, ("One", "Two")), ("csv/a.wav#0-9.5", 0, 9.5, ("Three",)),
        ("csv/a.wav", None, None, ("All",)),
    ]  # fmt: skip
    (clip,) = clips(table(tmp_path, "path,onset,caption\na.wav,5,One\n"))
    assert (clip.id, clip.start, clip.end) == ("csv/a.wav#5-", 5, None)


def test_an_id_given_to_two_sections_loses_neither(tmp_path):
    rows = ["7,a.wav,0,5,One", "7,a.wav,5,9,Two", "7,a.wav,,,All", "8,a.wav,0,5,Once"]
    for order in (rows, rows[::-1]):
        found = clips(table(tmp_path, "\n".join(["id,path,start,end,caption", *order])))
        assert {clip.id: clip.captions for clip in found} == {
            "csv/7#0-5": ("One",), "csv/7#5-9": ("Two",), "csv/7": ("All",), "csv/8": ("Once",),
        }  # fmt: skip


@pytest.mark.parametrize("start, end, section", [
    (".5", "1e1", (0.5, 10)), ("1:30", "1:01:01.5", (90, 3661.5)), ("-0", "", (0, None)), ("", "3", (None, 3)),
])  # fmt: skip
def test_a_section_is_given_in_seconds_or_as_a_clock_shows_it(tmp_path, start, end, section):
    (clip,) = clips(table(tmp_path, f"path,start,end\na.wav,{start},{end}\n"))
    assert (clip.start, clip.end, clip.reason) == (*section, "")


@pytest.mark.parametrize("start, end", [
    ("x", ""), ("-1", "5"), ("", "x"), ("inf", ""), ("1e999", ""), ("5", "5"), ("", "0"), ("9", "5"), ("1:75", ""),
])  # fmt: skip
@pytest.mark.parametrize("name", ["t.csv", "metadata.csv"])
def test_a_section_that_cannot_be_is_a_rejected_row_and_not_the_whole_recording(tmp_path, name, start, end):
    path = table(tmp_path, f"file_name,caption,start,end\na.wav,All,,\na.wav,Part,{start},{end}\n", name)
    found = clips(path) if name == "t.csv" else list(prepare(source("folder").clips(tmp_path, Reading())))
    assert [(clip.captions, clip.stage, clip.reason) for clip in found] == [
        (("All",), "", ""), (("Part",), "manifest", "bad-section"),
    ]  # fmt: skip
    assert found[1].detail.startswith("row 2: ") and repr(start or end) in found[1].detail


@pytest.mark.parametrize("address, shown", [
    ("https://me:secret@e.org/a.wav", "https://e.org/a.wav"),
    ("https://e.org/a.wav?X-Amz-Signature=secret&v=1#t", "https://e.org/a.wav#t"),
    ("https://e.org/a.wav?v=1&sig=secret", "https://e.org/a.wav"),
    ("https://e.org/@a.wav?v=1&design=2", "https://e.org/@a.wav?v=1&design=2"),
])  # fmt: skip
def test_what_only_the_owner_of_an_address_should_know_is_not_published(tmp_path, address, shown):
    row = {"url": address, "page_url": address, "more": {"list": [address]}, "caption": "Is it me@home?"}
    (clip,) = clips(table(tmp_path, json.dumps(row), "t.jsonl"))
    assert (clip.id, clip.url, clip.location) == (f"csv/{shown}", shown, address)
    assert json.loads(clip.original) == row | {"url": shown, "page_url": shown, "more": {"list": [shown]}}


@pytest.mark.parametrize("name", ["t.csv", "metadata.csv"])
def test_a_file_named_by_way_of_its_parent_folder_is_the_same_clip(tmp_path, name):
    write(tmp_path / "in/sub/a.wav")
    rows = "sub/a.wav,One\nsub/../sub/a.wav,Two\n../in/sub/a.wav,Three\n./sub/a.wav,Four\nsub//a.wav,Five\n"
    table(tmp_path / "in", f"file_name,caption\n{rows}", name)
    folder = tmp_path / "in/sub/.."  # the input itself may be named so too
    found = clips(folder / name) if name == "t.csv" else list(prepare(source("folder").clips(folder, Reading())))
    assert {clip.location for clip in found} == {to_location(tmp_path / "in/sub/a.wav")}
    assert found[0].captions[:2] == ("One", "Two")


@pytest.mark.parametrize("value", ["-1", "x", "1e99", "44100.5", "99999999999999", "\u0662"])
def test_a_fact_that_is_no_number_of_its_kind_is_unknown(tmp_path, value):
    (clip,) = clips(table(tmp_path, f"path,caption,sample_rate,sha256\na.wav,A dog,{value},{value}\n"))
    assert clip.sample_rate is None and clip.sha256 == ""


def test_a_member_of_an_archive_is_a_place_and_a_number_sign_in_a_name_stays_one(tmp_path):
    write(tmp_path / "dog #1.wav")
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as archive:
        archive.write(tmp_path / "dog #1.wav", "in/dog #1.wav")
    text = "path,caption\npack.zip#in/dog #1.wav,In it\ndog #1.wav,Beside it\ngone.zip#dog.wav,A name\n"
    member, beside, name = clips(table(tmp_path, text))
    assert local_path(member.location) == tmp_path / "pack.zip" and member_of(member.location) == "in/dog #1.wav"
    assert local_path(beside.location) == tmp_path / "dog #1.wav" and member_of(beside.location) == ""
    assert local_path(name.location) == tmp_path / "gone.zip#dog.wav"


def test_lines_of_json_need_not_have_the_same_keys(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "PIECE", 1)
    path = table(tmp_path, '{"path": "a.wav"}\n\n{"path": "b.wav", "caption": "A cat", "n": 3}\n', "t.jsonl")
    assert [clip.captions for clip in clips(path)] == [(), ("A cat",)]
    assert json.loads(clips(path)[0].original) == {"path": "a.wav", "caption": None, "n": None}


def test_an_integer_stays_one_where_other_rows_of_a_parquet_table_lack_it(tmp_path):
    pq.write_table(pa.table({"id": [7, None], "path": ["a.wav", "b.wav"]}), tmp_path / "t.parquet")
    assert [clip.id for clip in clips(tmp_path / "t.parquet")] == ["csv/7", "csv/b.wav"]


def test_text_that_python_calls_printable_holds_nothing_to_take_out():
    odd = (char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char) in ("Cc", "Cs"))
    assert not any(char.isprintable() for char in [*odd, *BIDI])
