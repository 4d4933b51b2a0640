"""Tars in LAION's layout: all clips, named safely, the same bytes whenever written, also after a kill."""

import io
import json
import re
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from pipelines.disk import BuildError
from pipelines.shard import published
from pipelines.webdataset import export_webdataset

NAMES = ["a/b.c d.wav", "../../etc/passwd", "é\N{SNOWMAN}", "a b.c/d.wav", "x" * 300]


def row(number, name=None, **others):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(480 + number, 0.1), 48_000, format="FLAC", subtype="PCM_16")
    facts = {"id": f"csv/{name or number}", "source": "csv", "captions": [f"Sound {number}.", "Another."]}
    audio = {"bytes": buffer.getvalue(), "path": f"{number}.flac"}
    made = {"tags": ["a"], "labels": ["dog", "a"], "generated": [], "generated_scores": [], "fingerprint": b"\0\1",
            "duration": 0.01, "license": "CC0-1.0", "fold": 3, "original": '{"freesound_id": 7}'}  # fmt: skip
    return facts | {"audio": audio} | made | others


def write(folder, split, rows, shards=1):
    (folder / "data").mkdir(parents=True, exist_ok=True)
    size = -(-len(rows) // shards)
    for number in range(shards):
        table = pa.Table.from_pylist(rows[number * size : (number + 1) * size], published())
        path = folder / "data" / f"{split}-{number:05d}-of-{shards:05d}.parquet"
        pq.write_table(table, path, row_group_size=4)


def describe(folder, *splits):
    """Write the card of a dataset with these splits."""
    files = "".join(f"\n  - {{split: {split}, path: data/{split}-*}}" for split in splits)
    (folder / "README.md").write_text(f"---\nlicense: cc0-1.0\nconfigs:\n- data_files:{files or ' []'}\n---\n")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    write(folder, "train", [row(n) for n in range(25)], shards=2)
    write(folder, "validation", [row(n, name) for n, name in enumerate(NAMES)])
    write(folder, "test", [row(0, generated=["A dog barks.", "A dog."], generated_by="t5")])
    describe(folder, "train", "validation", "test")
    return folder


def read(path):
    """Names and contents of a tar, in order."""
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_split_becomes_a_folder_of_laions_name_with_tars_and_sizes(dataset, tmp_path):
    report = export_webdataset(dataset, tmp_path / "out", per_tar=10)
    assert report == {
        "clips": 31,
        "splits": {
            "test": {"tars": 1, "clips": 1}, "train": {"tars": 3, "clips": 25}, "valid": {"tars": 1, "clips": 5},
        },
    }  # fmt: skip
    sizes = json.loads((tmp_path / "out/train/sizes.json").read_text())
    assert sizes == {"0.tar": 10, "1.tar": 10, "2.tar": 5}
    found = [json.loads(data) for name in sizes for _, data in read(tmp_path / "out/train" / name)[1::2]]
    assert [each["original_data"]["id"] for each in found] == [f"csv/{n}" for n in range(25)]
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_a_clip_is_its_flac_beside_json_with_laions_keys(dataset, tmp_path):
    export_webdataset(dataset, tmp_path / "out")
    (sound, flac), (text, data) = read(tmp_path / "out/train/0.tar")[:2]
    found = json.loads(data)
    assert (sound.removesuffix(".flac"), flac) == (text.removesuffix(".json"), row(0)["audio"]["bytes"])
    assert set(found) == {"text", "tag", "original_data"}
    assert (found["text"], found["tag"]) == (["Sound 0.", "Another."], ["a", "dog"])
    assert found["original_data"]["original"] == {"freesound_id": 7} and found["original_data"]["fold"] == 3


def test_generated_captions_are_written_as_laion_wrote_t5s(dataset, tmp_path):
    export_webdataset(dataset, tmp_path / "out")
    found = json.loads(read(tmp_path / "out/test/0.tar")[1][1])
    assert found["text_augment_t5"] == "A dog barks."
    assert found["text_augment_all"] == ["Sound 0.", "Another.", "A dog barks.", "A dog."]


def test_names_are_relative_unique_and_without_dots_whatever_the_ids_are(dataset, tmp_path):
    export_webdataset(dataset, tmp_path / "out")
    with tarfile.open(tmp_path / "out/valid/0.tar") as tar:
        members = tar.getmembers()
    assert len({member.name for member in members}) == 2 * len(NAMES)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,80}\.(flac|json)", member.name) for member in members)
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


def test_an_export_that_was_stopped_keeps_finished_tars_and_ends_with_the_same_bytes(dataset, tmp_path, capsys):
    export_webdataset(dataset, tmp_path / "whole", per_tar=7)
    shutil.copytree(tmp_path / "whole", tmp_path / "out")
    for lost in ("train/1.tar", "train/sizes.json", "test/0.tar"):
        (tmp_path / "out" / lost).unlink()
    (tmp_path / "out/train/.1.tar.99.tmp").write_bytes(b"half")
    kept = (tmp_path / "out/train/0.tar").stat().st_mtime_ns
    export_webdataset(dataset, tmp_path / "out", per_tar=7)
    assert "continuing: 4 finished tars" in capsys.readouterr().err
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert (tmp_path / "out/train/0.tar").stat().st_mtime_ns == kept


def test_tars_of_another_dataset_or_size_are_not_continued(dataset, tmp_path):
    export_webdataset(dataset, tmp_path / "out", per_tar=7)
    with pytest.raises(BuildError, match="tars of another dataset or size"):
        export_webdataset(dataset, tmp_path / "out", per_tar=8)
    other = shutil.copytree(dataset, tmp_path / "other")
    write(other, "test", [row(1, generated=["A dog barks.", "A dog."], generated_by="t5")])
    with pytest.raises(BuildError, match="tars of another dataset or size"):
        export_webdataset(other, tmp_path / "out", per_tar=7)


def test_what_cannot_be_exported_is_refused(dataset, tmp_path):
    with pytest.raises(BuildError, match="no complete dataset"):
        export_webdataset(tmp_path, tmp_path / "out")
    with pytest.raises(BuildError, match="at least 1 clip"):
        export_webdataset(dataset, tmp_path / "out", per_tar=0)
    with pytest.raises(BuildError, match="lies inside the dataset"):
        export_webdataset(dataset, dataset / "tars")
    assert not (dataset / "tars").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(BuildError, match="not an export of ours"):
        export_webdataset(dataset, tmp_path / "mine")
    silent = shutil.copytree(dataset, tmp_path / "silent")
    path = silent / "data/test-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["audio"]).cast(published(False)), path)
    with pytest.raises(BuildError, match="metadata only"):
        export_webdataset(silent, tmp_path / "out")


def test_a_dataset_with_a_missing_shard_and_an_empty_one_are_refused(dataset, tmp_path):
    holed = shutil.copytree(dataset, tmp_path / "holed")
    (holed / "data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(BuildError, match=r"train-00001-of-00002.parquet is missing .* build again, then export"):
        export_webdataset(holed, tmp_path / "out")
    (tmp_path / "empty/data").mkdir(parents=True)
    describe(tmp_path / "empty")
    with pytest.raises(BuildError, match="holds no clip"):
        export_webdataset(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()
