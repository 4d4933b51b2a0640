"""One clip's whole journey through the command line: from files to a dataset, a model, scores and labels."""

import csv
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import cli, tree

from pipelines.demo import expected_rejections, synthesise


@pytest.mark.slow
def test_from_sounds_to_a_model_that_labels_them(tmp_path):
    synthesise(tmp_path / "sounds", clips=60)
    out, run = tmp_path / "out", tmp_path / "run"
    built = cli("build-dataset", "folder", "--input", tmp_path / "sounds", "--out", out, "--json")
    assert json.loads(built.stdout)["rejected_by_reason"] == expected_rejections()

    small = ("--epochs", 2, "--pann-widths", "4,8", "--text-width", 16, "--text-layers", 1, "--dim", 16)
    trained = cli("train", "--data", out / "dataset", "--out", run, *small, "--json")
    assert json.loads(trained.stdout)["epoch"] == 2
    assert {path.name for path in run.iterdir()} >= {"config.json", "metrics.jsonl", "checkpoints", "last", "best"}

    found = json.loads(cli("evaluate", "retrieval", "--model", run, "--data", out / "dataset", "--json").stdout)
    names = {"R@1", "R@5", "R@10", "map10", "map10_laion", "median_rank", "n"}
    assert set(found["text_to_audio"]) == set(found["audio_to_text"]) == names
    guessed = json.loads(cli("evaluate", "zero-shot", "--model", run, "--data", out / "dataset", "--json").stdout)
    assert set(guessed) == {"accuracy", "n", "chance", "per_class"}

    sound = next((tmp_path / "sounds").rglob("*.wav"))
    labels = cli("classify", sound, "--model", run, "--labels", "rain,siren,tone", "--json")
    (answer,) = json.loads(labels.stdout)
    assert sorted(answer["labels"]) == ["rain", "siren", "tone"]
    assert sum(answer["labels"].values()) == pytest.approx(1)


@pytest.mark.slow
def test_esc10_is_kept_whole_with_its_titles_authors_and_licences(shared, tmp_path):
    metadata = shared / "data/esc10/metadata.csv"
    built = cli("build-dataset", "csv", "--input", metadata, "--out", tmp_path / "out", "--workers", 2, "--json")
    report = json.loads(built.stdout)
    assert (report["rows"], report["kept"], report["splits"]) == (320, 320, {"train": 320})
    with metadata.open(newline="") as handle:
        published = {f"csv/{row['path']}": row for row in csv.DictReader(handle)}
    columns = ["id", "title", "author", "license", "url", "fold", "labels", "captions"]
    for row in pq.read_table(tmp_path / "out/dataset/data", columns=columns).to_pylist():
        own = published.pop(row["id"])
        names = {"CC0": "CC0-1.0", "CC-BY": "CC-BY", "CC-Sampling+": "LicenseRef-Sampling-Plus-1.0"}
        assert (row["title"], row["author"], row["license"]) == (own["title"], own["author"], names[own["license"]])
        assert (row["url"], row["fold"], row["labels"]) == (own["source_url"], int(own["fold"]), [own["label"]])
        assert row["captions"] == [f"The sound of {own['label']}."]
    assert not published


@pytest.mark.slow
def test_every_recording_of_a_real_folder_whose_name_says_something_is_kept_long_music_included(shared, tmp_path):
    folder = shared / "data/librosa"
    built = cli("build-dataset", "folder", "--input", folder, "--out", tmp_path / "out", "--workers", 0, "--json")
    report = json.loads(built.stdout)
    numbers = sum(re.fullmatch(r"[\d-]+", path.stem) is not None for path in folder.glob("*.ogg"))  # of LibriSpeech
    assert report["rows"] == len(list(folder.glob("*.ogg"))) and report["kept"] == report["rows"] - numbers
    assert report["rejected_by_reason"] == {"no-caption": numbers} and numbers
    durations = pq.read_table(tmp_path / "out/dataset/data", columns=["duration"])["duration"].to_pylist()
    assert max(durations) > 100
    assert report["hours"] == pytest.approx(sum(durations) / 3600, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("train", "--data", "nowhere", "--out", "run"), "no dataset at nowhere"),
        (("train", "--data", ".", "--out", "run", "--preset", "huge"), "unknown preset 'huge'"),
        (("evaluate", "retrieval", "--model", "nowhere", "--data", "."), "no model at nowhere"),
        (("evaluate", "zero-shot", "--model", ".", "--data", "."), "holds no checkpoint"),
        (("status", "nowhere"), "no build in nowhere"),
    ],
)
def test_what_is_not_there_is_said_in_one_sentence(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    done = cli(*arguments, check=False)
    assert done.returncode == 1
    assert sentence in done.stderr and "Traceback" not in done.stderr


def test_status_leaves_a_build_as_it_is(tmp_path: Path):
    synthesise(tmp_path / "sounds", clips=3)
    cli("build-dataset", "folder", "--input", tmp_path / "sounds", "--out", tmp_path / "out")
    before = tree(tmp_path / "out")
    cli("status", tmp_path / "out")
    assert tree(tmp_path / "out") == before
