"""CLAP scores: the cosines that they are said to be, and a build that rejects by them."""

import json
from dataclasses import replace

import numpy as np
import pairs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write

from clap.config import ClapError, ConfigError
from clap.data import open_split
from clap.model import CLAP
from clap.search.score import score
from pipelines.build import STAGES, build_dataset
from pipelines.clip import Clip
from pipelines.disk import BuildError
from pipelines.filter import Filter
from pipelines.sources import source


@pytest.fixture(scope="module")
def model():
    return CLAP.create(
        replace(pairs.SMALL.model, text_vocab=300), [row["captions"][0] for row in pairs.tones(3)]
    ).eval()


def test_a_score_is_the_mean_cosine_of_a_clip_and_its_captions(model, tmp_path):
    rows = pairs.tones(7)
    rows[2]["captions"] += ["A low tone.", "The buzz."]
    data = pairs.write(tmp_path / "data", rows)
    done = score(model, data, tmp_path / "scores.parquet")
    audio = model.embed_audio(open_split(data, "all", (), 48000))
    for i, row in enumerate(pq.read_table(tmp_path / "scores.parquet").to_pylist()):
        cosines = [float(model.embed_text([text])[0] @ audio[i]) for text in rows[i]["captions"]]
        assert row["id"] == f"test/{i}" and row["score"] == pytest.approx(np.mean(cosines), abs=1e-5)
        assert row["best"] == pytest.approx(max(cosines), abs=1e-5) and cosines[row["worst"]] == min(cosines)
    assert (done["clips"], done["skipped"]) == (7, 0)


def test_a_broken_clip_has_no_score_and_a_dataset_of_them_no_file(model, tmp_path):
    rows = pairs.tones(5)
    rows[3]["audio"]["bytes"] = rows[3]["audio"]["bytes"][:60]
    assert score(model, pairs.write(tmp_path / "data", rows), tmp_path / "a.parquet")["skipped"] == 1
    assert pq.read_table(tmp_path / "a.parquet")["id"].to_pylist() == ["test/0", "test/1", "test/2", "test/4"]
    for row in rows:
        row["audio"]["bytes"] = pairs.tones(1)[0]["audio"]["bytes"][:200]
    with pytest.raises(ClapError):
        score(model, pairs.write(tmp_path / "broken", rows), tmp_path / "b.parquet")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["a.parquet"]


def test_clips_of_which_none_decodes_are_passed_over_and_unknown_texts_are_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr("clap.search.score.BATCH", 2)
    rows = pairs.tones(6)
    for row in rows[2:4]:
        row["audio"]["bytes"] = row["audio"]["bytes"][:60]
    data = pairs.write(tmp_path / "data", rows)
    assert score(model, data, tmp_path / "a.parquet")["skipped"] == 2
    assert pq.read_table(tmp_path / "a.parquet")["id"].to_pylist() == ["test/0", "test/1", "test/4", "test/5"]
    with pytest.raises(ClapError, match="use captions, generated, both"):
        score(model, data, tmp_path / "b.parquet", texts="caption")
    with pytest.raises(ConfigError, match="is a folder"):
        score(model, data, tmp_path)


def written(path, scores):
    columns = {"id": list(scores), "score": pa.array(scores.values(), pa.float32())}
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_a_clip_under_the_least_score_is_rejected_and_one_without_stays(tmp_path):
    scores = written(tmp_path / "s.parquet", {"x/low": 0.1, "x/high": 0.5, "x/nan": np.nan, "x/null": None})
    clips = [Clip(f"x/{name}", "x", captions=("A dog.",)) for name in ("low", "high", "nan", "null", "other")]
    found = list(Filter(scores=scores, min_score=0.3)(clips))
    assert [clip.reason for clip in found] == ["low-score", "", "", "", ""] and found[0].detail == "0.1000"


@pytest.mark.parametrize("settings", [{"scores": "s.parquet"}, {"min_score": 0.3}])
def test_a_file_and_a_least_score_go_together(settings):
    with pytest.raises(BuildError, match="give both"):
        Filter(**settings)


def test_a_file_that_holds_no_scores_is_refused(tmp_path):
    pq.write_table(pa.table({"id": ["x"]}), tmp_path / "ids.parquet")
    (tmp_path / "text.parquet").write_text("id,score")
    for name in ("ids", "text", "none"):
        with pytest.raises(BuildError, match=r"no Parquet file with id and score|missing-file"):
            Filter(scores=str(tmp_path / f"{name}.parquet"), min_score=0.0).pinned()


def build(folder, **settings):
    """Build FOLDER/sounds with these settings of the filter."""
    stages = [Filter(**settings) if isinstance(stage, Filter) else stage for stage in STAGES]
    return build_dataset(source("folder"), folder / "sounds", folder / "out", stages=stages)


def test_a_build_rejects_by_scores_and_another_file_redoes_the_filter_alone(tmp_path, capfd):
    for name in ("a", "b", "c"):
        write(tmp_path / f"sounds/{name} dog.wav", hertz=ord(name) * 3)
    scores = written(tmp_path / "s.parquet", {"folder/a dog.wav": 0.1, "folder/b dog.wav": 0.9})
    assert build(tmp_path, scores=scores, min_score=0.5)["rejected_by_reason"] == {"low-score": 1}
    (rejected,) = pq.read_table(tmp_path / "out/rejected.parquet").to_pylist()
    assert (rejected["id"], rejected["stage"], rejected["detail"]) == ("folder/a dog.wav", "filter", "0.1000")
    capfd.readouterr()
    assert build(tmp_path, scores=scores, min_score=0.5)["kept"] == 2
    assert "redoing" not in capfd.readouterr().err
    written(tmp_path / "s.parquet", {"folder/a dog.wav": 0.1, "folder/b dog.wav": 0.2})
    assert build(tmp_path, scores=scores, min_score=0.5)["rejected_by_reason"] == {"low-score": 2}
    assert "filter changed: redoing filter, dedup, caption and the shards" in capfd.readouterr().err
    recipe = json.loads((tmp_path / "out/build/recipe.json").read_text())["stages"]["filter"]
    assert len(recipe["scores"]) == 64 and str(tmp_path) not in json.dumps(recipe)


def test_scores_of_a_dataset_filter_the_build_that_made_it(model, tmp_path):
    for hertz in (300, 600, 900, 1200):
        write(tmp_path / f"sounds/tone of {hertz}.wav", hertz=hertz)
    assert build(tmp_path)["kept"] == 4
    file = tmp_path / "s.parquet"
    score(model, str(tmp_path / "out/dataset"), file)
    least = sorted(pq.read_table(file)["score"].to_pylist())[2] - 1e-6
    assert build(tmp_path, scores=str(file), min_score=least)["rejected_by_reason"] == {"low-score": 2}
