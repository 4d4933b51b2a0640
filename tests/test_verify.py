"""Verify finds what is wrong, and only that: each test damages one thing of a real dataset."""

import csv
import io
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import cli, tone, write

from pipelines.disk import BuildError
from pipelines.push import push
from pipelines.verify import check_cheap, verify


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    lines = ["file_name,caption_1,split,license"]
    for number in range(8):
        write(folder / f"in/{number}.wav", 0.5, 16_000, 200 + 50 * number)
        lines.append(f'{number}.wav,Tone {number},{("train", "test")[number % 2]},"CC-BY-4.0"')
    lines.append("gone.wav,Gone,train,CC-BY-4.0")
    (folder / "in/metadata.csv").write_text("\n".join(lines) + "\n")
    cli("build-dataset", "folder", "--input", folder / "in", "--out", folder / "out", "--workers", 0)
    return folder / "out"


@pytest.fixture
def out(built, tmp_path):
    return shutil.copytree(built, tmp_path / "out")


def shard(out):
    return out / "dataset/data/train-00000-of-00001.parquet"


def found(out):
    """The problems, as (what it is about, what is wrong)."""
    return [(each["where"].removeprefix(f"{out}/"), each["what"]) for each in verify(out)["problems"]]


def change(out, **columns):
    """Write the shard of the split train with another value in its first row."""
    table = pq.read_table(shard(out))
    for name, value in columns.items():
        place = table.schema.get_field_index(name)
        values = [value, *table[name].to_pylist()[1:]]
        table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    pq.write_table(table, shard(out))


def flac(out):
    return pq.read_table(shard(out))["audio"][0].as_py()["bytes"]


def audio(data):
    return {"bytes": data, "path": "x.flac"}


def encoded(seconds=0.5, rate=48_000, channels=1, subtype="PCM_16"):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(seconds, rate, channels=channels), rate, format="FLAC", subtype=subtype)
    return buffer.getvalue()


def test_a_build_and_its_dataset_alone_are_without_problems(built):
    whole = {"clips": 8, "hours": round(8 * 0.5 / 3600, 4), "problems": []}
    assert verify(built) == whole
    assert verify(built / "dataset") == whole


def test_what_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(BuildError, match="no dataset in"):
        verify(tmp_path)


def test_a_flipped_byte_in_a_flac_is_found(out):
    data = shard(out).read_bytes()
    place = data.index(flac(out)) + len(flac(out)) * 2 // 3
    shard(out).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    ((where, what),) = found(out)
    assert where == "dataset/data/train-00000-of-00001.parquet folder/0.wav"
    assert "has audio" in what


@pytest.mark.parametrize(
    ("sound", "what"),
    [
        (lambda good: good[: len(good) * 2 // 3], "has audio"),
        (lambda good: b"", "holds no FLAC"),
        (lambda good: b"RIFF" + good, "holds no FLAC"),
        (lambda good: good[:26] + bytes(16) + good[42:], "(their MD5 differs)"),
        (lambda good: encoded(rate=44_100), "44100 Hz, 1 channels, 16 bits"),
        (lambda good: encoded(channels=2), "48000 Hz, 2 channels, 16 bits"),
        (lambda good: encoded(subtype="PCM_24"), "48000 Hz, 1 channels, 24 bits"),
        (lambda good: encoded(0.7), "has 0.700 s of audio, its row says 0.5"),
    ],
)
def test_audio_that_is_not_what_was_encoded_is_found(out, sound, what):
    change(out, audio=audio(sound(flac(out))))
    ((where, said),) = found(out)
    assert where.endswith("folder/0.wav") and what in said


@pytest.mark.parametrize(("captions", "what"), [([], "has no caption"), (["A", " "], "has an empty caption")])
def test_a_row_without_a_caption_is_found(out, captions, what):
    change(out, captions=captions)
    assert [said for _, said in found(out)] == [what]


def test_a_dropped_shard_is_found_once_and_not_as_wrong_counts(out):
    renamed = shard(out).with_name("train-00000-of-00002.parquet")
    shard(out).rename(renamed)
    assert found(out) == [("dataset/data/train-00001-of-00002.parquet", "is missing")]


def test_a_split_that_is_gone_is_found_by_card_report_and_credits(out):
    shard(out).unlink()
    where = {where for where, _ in found(out)}
    assert where == {"dataset/README.md", "report.json", "dataset/ATTRIBUTION.csv"}


def test_a_shard_that_does_not_open_or_has_other_columns_is_found(out):
    table = pq.read_table(shard(out))
    pq.write_table(table.drop_columns(["language"]), shard(out))
    assert found(out) == [
        ("dataset/data/train-00000-of-00001.parquet", "has other columns than are published: language")
    ]
    pq.write_table(table.replace_schema_metadata(None), shard(out))
    assert [what for _, what in found(out)] == ["does not tell `datasets` its features"]
    shard(out).write_bytes(b"PAR1 not Parquet")
    ((_, what),) = found(out)
    assert "cannot be opened as Parquet" in what


def test_a_file_with_another_name_among_the_shards_is_found(out):
    (out / "dataset/data/more.parquet").write_bytes(shard(out).read_bytes())
    assert found(out) == [("dataset/data/more.parquet", "is not named as SPLIT-00000-of-00000.parquet")]


def test_a_changed_row_count_in_the_report_is_found(out):
    report = json.loads((out / "report.json").read_text())
    (out / "report.json").write_text(json.dumps(report | {"rows": 10}))
    assert found(out) == [("report.json", "says 10 rows, which is not 8 kept + 1 rejected")]
    (out / "report.json").write_text(json.dumps(report | {"splits": {"train": 5, "test": 4}}))
    assert found(out) == [
        ("report.json", "says the splits have {'train': 5, 'test': 4} clips, the shards hold {'test': 4, 'train': 4}")
    ]


def test_rejected_rows_that_are_lost_are_found(out):
    rejected = pq.read_table(out / "rejected.parquet")
    pq.write_table(rejected[:0], out / "rejected.parquet")
    assert found(out) == [("rejected.parquet", "lists 0 rows, report.json says that 1 are rejected")]


def test_an_id_that_comes_twice_is_found_in_any_shard(out):
    change(out, id="folder/1.wav")  # of the split test
    assert found(out) == [
        ("dataset/data", "folder/1.wav comes 2 times"),
        ("dataset/ATTRIBUTION.csv", "credits folder/0.wav, which is not published"),
    ]


def test_a_wrong_and_a_missing_credit_are_found(out):
    path = out / "dataset/ATTRIBUTION.csv"
    rows = list(csv.DictReader(path.open(newline="")))
    rows[0]["license"] = "CC0-1.0"
    gone = rows.pop()
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert set(found(out)) == {
        ("dataset/ATTRIBUTION.csv", f"says 'CC0-1.0' of {rows[0]['id']}, whose row says 'CC-BY-4.0'"),
        ("dataset/ATTRIBUTION.csv", f"does not credit {gone['id']}"),
    }
    path.unlink()
    assert "cannot be read" in found(out)[0][1]


def test_a_card_that_disagrees_with_the_shards_is_found(out):
    path = out / "dataset/README.md"
    card = path.read_text()
    assert "num_examples: 4" in card
    path.write_text(card.replace("num_examples: 4", "num_examples: 5"))
    assert "says the splits have {'test': 5, 'train': 5} examples" in found(out)[0][1]
    path.write_text(card.replace("split: train", "split: learn"))
    assert found(out) == [("dataset/README.md", "names other splits than there are: test, train")]
    path.write_text("# No front matter\n")
    assert [where for where, _ in found(out)] == ["dataset/README.md"]
    path.unlink()
    assert [where for where, _ in found(out)] == ["dataset/README.md"]


@pytest.mark.parametrize("odd", ["configs: [default]", "dataset_info: [1]", "dataset_info: {splits: {train: 4}}"])
def test_an_odd_card_is_a_problem_and_no_traceback(out, odd):
    path = out / "dataset/README.md"
    path.write_text(f"---\nlicense: cc-by-4.0\n{odd}\n---\n# Text\n")
    ((where, what),) = found(out)
    assert where == "dataset/README.md" and "configs or dataset_info that cannot be read" in what


def test_a_card_more_permissive_than_the_clips_is_found(out):
    path = out / "dataset/README.md"
    path.write_text(path.read_text().replace("license: cc-by-4.0", "license: cc0-1.0"))
    ((where, what),) = found(out)
    assert where == "dataset/README.md" and "8 clips are under CC-BY-4.0 (attribution)" in what


def test_the_cheap_checks_find_counts_and_open_no_audio(out):
    change(out, audio=audio(b""))
    assert check_cheap(out) == []
    (out / "report.json").write_text("{}")
    assert [each["where"] for each in check_cheap(out)] == [str(out / "report.json")]


def test_a_dataset_of_metadata_alone_is_verified_too(built, tmp_path):
    cli("build-dataset", "folder", "--input", built.parent / "in", "--out", tmp_path / "out", "--metadata-only")
    assert verify(tmp_path / "out") == {"clips": 9, "hours": 0.0, "problems": []}


def test_a_build_that_kept_nothing_is_without_problems_but_is_not_pushed(tmp_path):
    (tmp_path / "t.csv").write_text("path,caption\na.wav,A\n")
    cli("build-dataset", "csv", "--input", tmp_path / "t.csv", "--out", tmp_path / "out")
    assert verify(tmp_path / "out") == {"clips": 0, "hours": 0.0, "problems": []}
    with pytest.raises(BuildError, match="holds no clip"):
        push(tmp_path / "out", "user/name", dry_run=True)
