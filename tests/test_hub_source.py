"""Datasets of the Hugging Face Hub as inputs: shards that `datasets` or Clapboard wrote, here and on a server."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, write
from hub import serve

from pipelines.clip import Clip, Rejected, write_clips
from pipelines.disk import BuildError
from pipelines.manifest import prepare
from pipelines.parquet import is_row, open_row, row_location
from pipelines.shard import published
from pipelines.sources import Reading, source

FLAC = b"fLaC sound "


def clips(path: Path, **reading: object) -> list[Clip]:
    return list(prepare(source("hub").clips(path, Reading(**reading))))


def audio_of(clip: Clip) -> bytes:
    with open_row(clip.location) as handle:
        return handle.read()


def shard(path: Path, rows: dict[str, list[Any]], group: int = 2, features: dict[str, Any] | None = None) -> Path:
    """A shard with numbered sounds in an Audio column, as `datasets` lays it out."""
    count = len(next(iter(rows.values())))
    cells = [{"bytes": FLAC + bytes([row]), "path": f"{row}.flac"} for row in range(count)]
    table = pa.table({"audio": cells} | rows)
    features = {"audio": {"_type": "Audio"}} | (features or {})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def test_a_dataset_written_by_datasets_reads_back_with_names_for_its_classes(tmp_path):
    from datasets import Audio, ClassLabel, Dataset, Features, List, Value

    sounds = [write(tmp_path / "in" / name).read_bytes() for name in ("a.wav", "b.flac")]
    features = Features(
        audio=Audio(sampling_rate=16_000),
        captions=List(Value("string")),
        label=ClassLabel(names=["dog bark", "rain"]),
        tags=List(ClassLabel(names=["animal", "weather"])),
    )
    rows = {
        "audio": [{"bytes": sounds[0], "path": "a.wav"}, {"bytes": sounds[1], "path": "b.flac"}],
        "captions": [["A dog", "A bark"], ["Rain"]],
        "label": [0, 1],
        "tags": [[0], [1, 0]],
    }
    data = tmp_path / "set/data"
    data.mkdir(parents=True)
    table = pa.Table.from_pydict(rows, schema=features.arrow_schema)  # from_dict would ask for torchcodec
    Dataset(table).to_parquet(str(data / "validation-00000-of-00001.parquet"))
    dog, rain = clips(tmp_path / "set")
    assert (dog.id, dog.captions, dog.labels, dog.tags) == (
        "hub/a.wav",
        ("A dog", "A bark"),
        ("dog bark",),
        ("animal",),
    )
    assert (rain.labels, rain.tags, rain.split) == (("rain",), ("weather", "animal"), "validation")
    assert [audio_of(clip) for clip in (dog, rain)] == sounds
    assert json.loads(dog.original) == {"audio": "a.wav", "captions": ["A dog", "A bark"], "label": "dog bark",
                                        "tags": ["animal"]}  # fmt: skip


def test_what_clapboard_published_reads_back(tmp_path):
    row = {
        "id": "esc50/1-7-A", "source": "esc50", "audio": {"bytes": FLAC, "path": "esc50_1-7-A.flac"},
        "captions": ["A dog, then [rain]", "Rain"], "generated": ["A dog."], "generated_by": "template",
        "generated_scores": [{"coverage": 1.0, "invention": 0.0, "logprob": -1.0}], "language": "en",
        "tags": ["dog, small"], "labels": ["dog"], "duration": 5.0, "sample_rate": 44100, "channels": 1,
        "license": "CC0-1.0", "author": "ann", "title": "Rex", "url": "https://e.org/7", "fold": 3,
        "sha256": "0" * 64, "fingerprint": b"\x00\xff", "original": "{}",
    }  # fmt: skip
    table = pa.Table.from_pylist([row], published())
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data/train-00000-of-00001.parquet")
    (clip,) = clips(tmp_path)
    assert (clip.id, clip.source, clip.split, clip.fold) == ("hub/esc50/1-7-A", "hub", "train", 3)
    assert (clip.captions, clip.tags, clip.labels) == (("A dog, then [rain]", "Rain"), ("dog, small",), ("dog",))
    assert (clip.license, clip.author, clip.title, clip.url) == ("CC0-1.0", "ann", "Rex", "https://e.org/7")
    assert (clip.generated, clip.generated_by) == (("A dog.",), "template")
    assert clip.generated_scores[0]["coverage"] == 1.0
    assert clip.sha256 == "" and "fingerprint" not in clip.original and audio_of(clip) == FLAC


def test_every_row_of_every_row_group_has_its_own_bytes(tmp_path):
    words = ["rain", "wind", "dog", "cat", "bell"]
    shard(tmp_path / "train-00000-of-00002.parquet", {"text": words})
    shard(tmp_path / "train-00001-of-00002.parquet", {"text": ["siren"]})
    found = clips(tmp_path)
    assert [clip.captions[0] for clip in found] == [*words, "siren"]
    assert [audio_of(clip)[-1] for clip in found] == [0, 1, 2, 3, 4, 0]
    assert [audio_of(clip)[-1] for clip in reversed(found)] == [0, 4, 3, 2, 1, 0]
    assert [clip.id for clip in found[-2:]] == ["hub/4.flac", "hub/0.flac#2"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/test-00000-of-00001.parquet", "test"),
        ("default/validation/0000.parquet", "validation"),
        ("music-train-00003-of-00004.parquet", "train"),
        ("data/all_-00000-of-00001.parquet", "all_"),
        ("val.parquet", "validation"),
        ("dev-00000-of-00001.parquet", "validation"),  # so does `datasets` read it
    ],
)
def test_the_split_stands_in_the_name_of_a_shard_or_its_folder(tmp_path, name, split):
    shard(tmp_path / name, {"text": ["a"]})
    assert [clip.split for clip in clips(tmp_path)] == [split]


def test_a_column_split_goes_before_the_name(tmp_path):
    shard(tmp_path / "train-00000-of-00001.parquet", {"text": ["a", "b"], "split": ["test", None]})
    assert [clip.split for clip in clips(tmp_path)] == ["test", "train"]


def test_nothing_is_cut_from_audio_that_lies_in_its_row(tmp_path):
    shard(tmp_path / "train.parquet", {"text": ["a"], "start_time": [30], "youtube_id": ["x"]})
    (clip,) = clips(tmp_path)
    assert (clip.start, clip.end, clip.reason) == (None, None, "")


def test_other_columns_can_be_named(tmp_path):
    table = pa.table({"sound": [{"bytes": FLAC, "path": None}], "says": ["A dog"], "text": ["x"]})
    pq.write_table(table, tmp_path / "part.parquet")
    (clip,) = clips(tmp_path / "part.parquet", column=("location=sound", "captions=says"))
    assert clip.captions == ("A dog",) and audio_of(clip) == FLAC
    assert clip.id == "hub/part/0"  # a row without a name has its number


def test_bytes_that_are_no_struct_are_audio_too(tmp_path):
    pq.write_table(pa.table({"audio": [FLAC], "text": ["A dog"]}), tmp_path / "t.parquet")
    (clip,) = clips(tmp_path)
    assert audio_of(clip) == FLAC and "fLaC" not in clip.original


def test_shards_without_bytes_name_files_beside_them_or_addresses(tmp_path):
    write(tmp_path / "wavs/a.wav")
    audio = [{"bytes": None, "path": "wavs/a.wav"}, {"bytes": None, "path": "https://e.org/b.wav"}]
    table = pa.table(
        {"audio": pa.array(audio, pa.struct({"bytes": pa.binary(), "path": pa.string()})), "text": ["A", "B"]}
    )
    pq.write_table(table, tmp_path / "train.parquet")
    near, far = clips(tmp_path)
    assert near.size and near.id == "hub/wavs/a.wav" and far.location == "https://e.org/b.wav"


def test_without_shards_it_is_an_audiofolder_whose_folders_are_splits(tmp_path):
    write(tmp_path / "test/a.wav")
    pd.DataFrame({"file_name": ["a.wav"], "text": ["A dog"]}).to_parquet(tmp_path / "test/metadata.parquet")
    (clip,) = clips(tmp_path)
    assert (clip.id, clip.source, clip.split, clip.captions) == ("hub/test/a.wav", "hub", "test", ("A dog",))


@pytest.mark.parametrize(
    ("name", "split"),
    [("test/steam_train_01.wav", "test"), ("train/nuclear_test.wav", "train"), ("test/train/1.wav", "test"),
     ("dev/1.wav", "validation"), ("steam_train/1.wav", "")],
)  # fmt: skip
def test_the_split_of_a_file_of_an_audiofolder_is_its_outermost_folder_that_is_called_like_one(tmp_path, name, split):
    write(tmp_path / name)
    (clip,) = source("hub").clips(tmp_path, Reading())
    assert clip.split == split


def test_a_card_that_cannot_be_read_now_is_no_card_without_a_licence():
    script = "from pipelines.sources.hub import license_of; license_of('hf://datasets/user/sounds')"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9"})  # fmt: skip
    assert "BuildError: cannot read the card of hf://datasets/user/sounds" in done.stderr


@pytest.mark.parametrize(
    ("columns", "generated"),
    [({"generated": [True]}, ()), ({"generated": [["A dog."]]}, ()),
     ({"generated": [["A dog."]], "generated_by": ["t5"], "generated_scores": [[0.5]]}, ("A dog.",)),
     ({"generated": [["A dog."]], "generated_by": ["t5"], "generated_scores": [[{"x": "y"}]]}, ("A dog.",))],
)  # fmt: skip
def test_columns_of_others_under_our_names_are_not_taken_for_ours(tmp_path, columns, generated):
    shard(tmp_path / "t.parquet", columns)
    (clip,) = clips(tmp_path)
    assert (clip.generated, clip.generated_scores) == (generated, ())
    write_clips(tmp_path / "part.parquet", [clip])


def test_the_licence_of_the_card_is_that_of_rows_without_their_own(tmp_path):
    shard(tmp_path / "t.parquet", {"license": ["cc0-1.0", None]})
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Sounds\n")
    assert [clip.license for clip in clips(tmp_path)] == ["CC0-1.0", "CC-BY-4.0"]
    for text in ("---\nlicense: other\n---\n", "---\nlicense: [a: b\n---\n", "# Sounds\n"):
        (tmp_path / "README.md").write_text(text)
        assert [clip.license for clip in clips(tmp_path)] == ["CC0-1.0", ""]


def test_the_folder_of_a_build_is_not_the_dataset_in_it(tmp_path):
    shard(tmp_path / "build/manifest/part-00000.parquet", {"text": ["a"]})
    (tmp_path / "build/recipe.json").write_text("{}")
    with pytest.raises(BuildError, match="is the folder of a build: give"):
        clips(tmp_path)


def test_a_class_without_a_name_is_no_label(tmp_path):
    features = {"label": {"names": ["dog"], "_type": "ClassLabel"}}
    shard(tmp_path / "t.parquet", {"label": [0, -1, 5]}, features=features)
    assert [clip.labels for clip in clips(tmp_path)] == [("dog",), (), ()]


def test_a_row_without_audio_and_one_that_is_not_there_are_rejected(tmp_path):
    cells = [{"bytes": FLAC, "path": "0"}, {"bytes": None, "path": "1"}]
    pq.write_table(pa.table({"audio": cells, "text": ["a", "b"]}), tmp_path / "t.parquet")
    first, second = clips(tmp_path)
    assert audio_of(first) == FLAC and second.reason == ""
    with pytest.raises(Rejected, match="missing-file"):
        audio_of(second)
    for number, reason in ((2, "bad-archive-member"), (10**20, "bad-archive-member")):
        with pytest.raises(Rejected, match=reason):
            with open_row(row_location(first.location.partition("#")[0], "audio", number)):
                raise AssertionError
    with pytest.raises(Rejected, match="no audio in a column other"):
        with open_row(first.location.replace("#audio", "#other")):
            raise AssertionError


def test_a_damaged_shard_is_a_sentence_and_a_reason(tmp_path):
    path = shard(tmp_path / "t.parquet", {"text": ["a", "b", "c"]})
    (first, *_) = clips(tmp_path)
    content = bytearray(path.read_bytes())
    at = content.index(FLAC)
    content[at - 40 : at] = bytes(40)  # a page's header
    path.write_bytes(content)
    with pytest.raises(Rejected, match="bad-archive-member"):
        audio_of(first)
    path.write_bytes(b"PAR1")
    with pytest.raises(BuildError, match=r"cannot read t.parquet"):
        clips(tmp_path)
    path.unlink()
    with pytest.raises(Rejected, match="missing-file"):
        audio_of(first)


def test_only_rows_of_shards_are_rows():
    assert is_row("hf://datasets/u/n/data/train-00000-of-00001.parquet#audio/12")
    assert (
        not is_row("file:///a.zip#b/12") and not is_row("file:///a.parquet") and not is_row("file:///a.parquet#audio")
    )
    with pytest.raises(Rejected, match="unsupported-url"), open_row("file:///a.parquet"):
        raise AssertionError


# HF_ENDPOINT is read when huggingface_hub is imported, hence a process of its own.
LIST = """
import json, sys
from pipelines.manifest import prepare
from pipelines.sources import Reading, source

found = [(clip.location, clip.split) for clip in prepare(source("hub").clips(sys.argv[1], Reading()))]
print(json.dumps(found))
"""
READ = """
import json, sys
from pipelines.clip import Rejected
from pipelines.parquet import open_row

found = []
for row in (4, 0, 1, 9):
    try:
        with open_row(f"{sys.argv[1]}#audio/{row}") as handle:
            found.append(handle.read().decode())
    except Rejected as why:
        found.append(why.reason)
print(json.dumps(found))
"""


def on_the_hub(folder: Path, script: str, url: str, cache: Path) -> Any:
    """What a script says of a URL while a stand-in for the Hub serves a folder as datasets/user/sounds."""
    with serve({"datasets/user/sounds": folder}) as endpoint:
        home = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "PYTHONPATH": str(ROOT)}
        line = [sys.executable, "-c", script, url]
        done = subprocess.run(line, env=os.environ | home, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_shards_on_the_hub_are_read_where_they_lie(tmp_path):
    shard(tmp_path / "set/data/test-00000-of-00001.parquet", {"text": list("abcde")})
    root = "hf://datasets/user/sounds"
    place = f"{root}/data/test-00000-of-00001.parquet"
    found = on_the_hub(tmp_path / "set", LIST, root, tmp_path / "cache")
    assert found == [[f"{place}#audio/{row}", "test"] for row in range(5)]
    read = on_the_hub(tmp_path / "set", READ, place, tmp_path / "cache")
    assert read == [*((FLAC + bytes([row])).decode() for row in (4, 0, 1)), "bad-archive-member"]
    absent = on_the_hub(tmp_path / "set", READ, f"{root}/data/absent.parquet", tmp_path / "cache")
    assert set(absent) == {"missing-file"}


def test_files_that_a_dataset_on_the_hub_names_are_never_those_of_this_machine(tmp_path):
    (tmp_path / "set").mkdir()
    names = ["/etc/passwd", "file:///etc/passwd", "wavs/a.wav"]
    pd.DataFrame({"path": names, "text": list("abc")}).to_parquet(tmp_path / "set/train.parquet")
    root = "hf://datasets/user/sounds"
    found = on_the_hub(tmp_path / "set", LIST, root, tmp_path / "cache")
    assert [place for place, _ in found] == [f"{root}/etc/passwd", f"{root}/etc/passwd", f"{root}/wavs/a.wav"]
