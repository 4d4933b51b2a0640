"""The published dataset: `datasets` loads it, the Hub parses its card, every clip is credited and in order."""

import csv
import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from conftest import cli, write

from pipelines.reasons import FINAL, RETRYABLE, explain, retryable
from pipelines.shard import COLUMNS


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    lines = ["file_name,caption_1,caption_2,label,tags,split,license,author,title,url"]
    for number in range(230):
        split = ("train", "train", "validation", "test")[number % 4]
        write(folder / f"in/{number}.wav", 0.3, 16_000, 200 + 10 * number)
        lines.append(
            f'{number}.wav,Tone {number},,tone,"a;b",{split},CC0,"Ann, ""A""",T|{number},http://e.org/{number}'
        )
    lines.append("gone.wav,Gone,,tone,,train,CC-BY,Bob,,")
    (folder / "in/metadata.csv").write_text("\n".join(lines) + "\n")
    cli("build-dataset", "folder", "--input", folder / "in", "--out", folder / "out", "--workers", 0)
    return folder / "out"


def test_datasets_loads_the_folder_with_its_splits_and_reads_without_torchcodec(out, tmp_path):
    from datasets import Audio, load_dataset

    loaded = load_dataset(str(out / "dataset"), cache_dir=str(tmp_path))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 116, "validation": 57, "test": 57}
    assert loaded["train"].features["audio"] == Audio(sampling_rate=48_000, num_channels=1)
    row = loaded["test"].cast_column("audio", Audio(decode=False))[0]
    wave, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
    assert rate == 48_000 and len(wave) == pytest.approx(0.3 * 48_000, abs=2)
    assert (row["id"], row["captions"]) == ("folder/103.wav", ["Tone 103"])
    assert (row["labels"], row["tags"]) == (["tone"], ["a", "b"])
    assert json.loads(row["original"])["file_name"] == "103.wav"


def test_datasets_streams_the_folder(out):
    from datasets import Audio, load_dataset

    stream = load_dataset(str(out / "dataset"), split="validation", streaming=True)
    rows = list(stream.cast_column("audio", Audio(decode=False)))
    assert [row["id"] for row in rows] == [f"folder/{n}.wav" for n in sorted(map(str, range(2, 230, 4)))]


def test_audio_decodes_where_torchcodec_is_installed(out, tmp_path):
    pytest.importorskip("torchcodec", reason="torchcodec is not installed", exc_type=ImportError)
    from datasets import load_dataset

    audio = load_dataset(str(out / "dataset"), split="test", cache_dir=str(tmp_path))[0]["audio"]
    assert audio["sampling_rate"] == 48_000 and np.abs(audio["array"]).max() > 0.4


def test_shards_hold_the_published_columns_in_row_groups_of_at_most_100(out):
    path = out / "dataset/data/train-00000-of-00001.parquet"
    file = pq.ParquetFile(path)
    assert file.schema_arrow.names == list(COLUMNS)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [100, 16]
    audio = next(c for i in range(50) if (c := file.metadata.row_group(0).column(i)).path_in_schema == "audio.bytes")
    assert audio.compression == "UNCOMPRESSED" and audio.has_offset_index
    assert not {"RLE_DICTIONARY", "PLAIN_DICTIONARY"} & set(audio.encodings)


def test_the_hub_parses_the_card(out):
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(out / "dataset/README.md")
    assert card.data.size_categories == ["n<1K"]
    assert [file["split"] for file in card.data.configs[0]["data_files"]] == ["test", "train", "validation"]
    assert "| `missing-file` | 1 |" in card.text and "231 rows = 230 kept + 1 rejected" in card.text


def test_names_from_outside_cannot_break_the_card(tmp_path):
    write(tmp_path / "a.wav")
    (tmp_path / "t.csv").write_text('path,caption,license\na.wav,A dog,"CC0 |\n---\n<script>"\n')
    cli("build-dataset", "csv", "--input", tmp_path / "t.csv", "--out", tmp_path / "out")
    card = (tmp_path / "out/dataset/README.md").read_text()
    assert "<script>" not in card
    assert yaml.safe_load(card.split("---\n")[1])["pretty_name"]


def test_every_published_clip_is_credited(out):
    with (out / "dataset/ATTRIBUTION.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 230
    first = {"id": "folder/0.wav", "title": "T|0", "author": 'Ann, "A"', "url": "http://e.org/0", "license": "CC0-1.0"}
    assert rows[0] == first


def test_status_counts_what_the_files_hold(out):
    status = json.loads(cli("status", out, "--json").stdout)
    assert (status["rows"], status["kept"], status["rejected"]) == (231, 230, 1)
    assert status["rejected_by_reason"] == {"missing-file": 1} and status["rejected_by_stage"] == {"download": 1}
    assert status["splits"] == {"train": 116, "test": 57, "validation": 57} and status["complete"] is True
    assert status["hours"] == pytest.approx(230 * 0.3 / 3600, abs=1e-4)
    assert json.loads((out / "report.json").read_text()) == status


def test_a_rejected_row_says_where_why_and_whether_to_try_again(out):
    (row,) = pq.read_table(out / "rejected.parquet").to_pylist()
    assert row == {
        "id": "folder/gone.wav", "source": "folder", "stage": "download", "reason": "missing-file",
        "detail": "No such file or directory", "attempts": 1, "retryable": False,
    }  # fmt: skip


def test_a_dataset_that_lost_a_row_is_not_called_complete(out, tmp_path):
    copy = shutil.copytree(out, tmp_path / "out")
    part = copy / "build/caption/part-00000.parquet"
    pq.write_table(pq.read_table(part).slice(1), part)
    (copy / "dataset/README.md").unlink()
    source = json.loads((copy / "build/recipe.json").read_text())["stages"]["manifest"]["source"]
    done = cli("build-dataset", source, "--input", out.parent / "in", "--out", copy, check=False)
    assert done.returncode == 1 and "231 rows came in" in done.stderr


def test_licences_and_lists_of_ids_reject_before_a_byte_is_read(tmp_path):
    (tmp_path / "t.csv").write_text("path,caption,license\na.wav,A,CC0\nb.wav,B,CC-BY\nc.wav,C,cc0\n")
    (tmp_path / "ids.txt").write_text("# evaluation set\nc.wav\n")
    flags = ("--licenses", "cc0", "--exclude-ids", tmp_path / "ids.txt")
    cli("build-dataset", "csv", "--input", tmp_path / "t.csv", "--out", tmp_path / "out", *flags)
    rows = pq.read_table(tmp_path / "out/rejected.parquet").to_pylist()
    assert [(row["id"], row["reason"], row["stage"]) for row in rows] == [
        ("csv/a.wav", "missing-file", "download"),
        ("csv/b.wav", "license", "exclude"),
        ("csv/c.wav", "evaluation-overlap", "exclude"),
    ]


def test_an_excluded_id_excludes_its_sections_too(tmp_path):
    rows = "7,a.wav,A,0,5\n7,a.wav,B,5,9\n8,b.wav,C,,\n"
    (tmp_path / "t.csv").write_text(f"id,path,caption,start,end\n{rows}")
    (tmp_path / "ids.txt").write_text("7\n")
    flags = ("--exclude-ids", tmp_path / "ids.txt")
    cli("build-dataset", "csv", "--input", tmp_path / "t.csv", "--out", tmp_path / "out", *flags)
    rejected = pq.read_table(tmp_path / "out/rejected.parquet").to_pylist()
    assert [row["id"] for row in rejected if row["reason"] == "evaluation-overlap"] == ["csv/7#0-5", "csv/7#5-9"]


def test_captions_go_by_length_one_by_one_and_labels_make_one_where_there_is_none(tmp_path):
    for number, name in enumerate("abcd"):
        write(tmp_path / f"{name}.wav", hertz=300 + 100 * number)
    long = " ".join(["word"] * 61)
    (tmp_path / "t.csv").write_text(
        f"path,caption_1,caption_2,label\na.wav,{long},A dog,\nb.wav,{long},,x\nc.wav,,,dog_bark;siren;rain\nd.wav,,,\n"
    )
    cli("build-dataset", "csv", "--input", tmp_path / "t.csv", "--out", tmp_path / "out")
    rows = pq.read_table(tmp_path / "out/dataset/data", columns=["id", "captions"]).to_pylist()
    kept = {row["id"]: row["captions"] for row in rows}
    assert kept == {"csv/a.wav": ["A dog"], "csv/c.wav": ["The sounds of dog bark, siren and rain."]}
    rejected = pq.read_table(tmp_path / "out/rejected.parquet").to_pylist()
    assert {row["id"]: row["reason"] for row in rejected} == {"csv/b.wav": "caption-length", "csv/d.wav": "no-caption"}


def test_when_no_clip_is_kept_the_build_ends_well_and_warns(tmp_path):
    (tmp_path / "t.csv").write_text("path,caption\na.wav,A\n")
    done = cli("build-dataset", "csv", "--input", tmp_path / "t.csv", "--out", tmp_path / "out")
    assert "no clip was kept" in done.stderr


def test_every_reason_has_a_sentence_and_the_transient_ones_are_retryable():
    assert all(explain(reason) for reason in [*RETRYABLE, *FINAL, "http-404", "http-503"])
    assert [retryable(f"http-{n}") for n in (404, 408, 410, 425, 429, 500, 503)] == [False, True, False, *[True] * 4]
    with pytest.raises(KeyError):
        explain("http-200")
