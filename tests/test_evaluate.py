"""A small model that has learnt tones: what evaluation says of it, by hand."""

from dataclasses import replace

import numpy as np
import pairs
import pytest

from clap.data import DataError
from clap.evaluate import classify, retrieval, zero_shot
from clap.model import CLAP
from clap.train import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    pairs.write(folder, pairs.tones(51)[48:], split="test")
    return pairs.write(folder, pairs.tones(48), group=20)


@pytest.fixture(scope="module")
def model(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    config = replace(pairs.SMALL, epochs=25, batch_size=12, lr=3e-3, warmup=5)
    train(config, data, run)
    return CLAP.from_pretrained(run)


def test_a_trained_model_tells_tones_apart_in_a_prompt_it_never_read(model, data):
    scores = zero_shot(model, data, split="test")
    assert scores["accuracy"] == 1.0 and scores["n"] == 3 and scores["chance"] == pytest.approx(1 / 3)
    assert scores["per_class"] == {"low_tone": 1.0, "high_tone": 1.0, "buzz": 1.0}


def test_folds_and_labels_are_as_given(model, data):
    scores = zero_shot(model, data, [*pairs.TONES, "silence"], "{}", split="train", folds=[2])
    assert scores["n"] == 12 and scores["chance"] == 0.25


def test_several_labels_on_a_clip_give_mean_average_precision(model, tmp_path):
    rows = pairs.tones(6)
    for row in rows:
        row["labels"].append("low_tone" if row["labels"] != ["low_tone"] else "buzz")
    scores = zero_shot(model, pairs.write(tmp_path, rows), split="all")
    assert 0 < scores["map"] <= 1 and "accuracy" not in scores and scores["chance"] == pytest.approx(2 / 3)


def test_retrieval_is_that_of_its_embeddings(model, data):
    scores = retrieval(model, data, split="test")
    assert scores["text_to_audio"]["n"] == scores["audio_to_text"]["n"] == 3
    assert scores["text_to_audio"]["R@1"] == scores["audio_to_text"]["R@1"] == 1.0


def test_clips_may_have_any_number_of_captions(model, tmp_path):
    rows = pairs.tones(6)
    rows[0]["captions"] *= 4
    scores = retrieval(model, pairs.write(tmp_path, rows), split="train")
    assert scores["text_to_audio"]["n"] == 9 and scores["audio_to_text"]["n"] == 6


def test_files_are_classified_likeliest_first(model, tmp_path):
    for label in pairs.TONES:
        (tmp_path / f"{label}.flac").write_bytes(pairs.flac(pairs.sound(label, 99, 0.3)))
    files = [tmp_path / f"{label}.flac" for label in pairs.TONES]
    found = classify(model, files, list(pairs.TONES))
    assert [next(iter(shares)) for shares in found] == list(pairs.TONES)
    assert all(np.isclose(sum(shares.values()), 1) for shares in found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["buzz"]}, "labels .*high_tone.* not among those given"),
        ({"prompt": "a sound"}, "no {} where the label goes"),
        ({"split": "validation"}, "no split 'validation': it has test, train"),
    ],
)
def test_wrong_questions_are_told_what_is_wrong(model, data, changes, message):
    with pytest.raises(DataError, match=message):
        zero_shot(model, data, **{"split": "test", **changes})


def test_clips_without_labels_cannot_be_classified(model, tmp_path):
    rows = pairs.tones(4)
    rows[1]["labels"] = []
    with pytest.raises(DataError, match="clips without labels"):
        zero_shot(model, pairs.write(tmp_path, rows), split="train")


def test_labels_that_the_model_cannot_tell_apart_are_refused(model, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "a.wav", np.ones(48_000) / 2, 48_000)
    for labels in (["zebra", "giraffe"], ["buzz", "buzz"], []):
        with pytest.raises(DataError):
            classify(model, [tmp_path / "a.wav"], labels)
