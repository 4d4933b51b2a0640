"""A small model that has learnt tones: what evaluation says of it, by hand."""

import json
from dataclasses import replace

import numpy as np
import pairs
import pytest

from clap import metrics
from clap.data import DataError, open_split
from clap.evaluate import classify, embed_labels, retrieval, validate, zero_shot
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


class Known:
    """A System of embeddings that are given: of clips in their order, of texts by their last word."""

    def __init__(self, audio, text):
        self.audio, self.text = audio, text

    def embed_audio(self, clips, **_):
        return self.audio[: len(clips)]

    def embed_text(self, texts):
        return self.text[[int(text.split()[-1]) for text in texts]]


def test_retrieval_of_five_captions_a_clip_gives_the_golden_values_of_laion_clap(shared, tmp_path):
    arrays = np.load(shared / "golden/f_metrics.npz")
    golden = json.loads((shared / "golden/f_metrics.json").read_text())["evaluate_clotho_audiocaps_5cap"]
    rows = pairs.tones(20)
    for i, row in enumerate(rows):
        row["captions"] = [f"caption {5 * i + j}" for j in range(5)]
    found = retrieval(Known(arrays["audio"], arrays["text5"]), pairs.write(tmp_path, rows, split="test"))
    for way, scores in found.items():
        for key, name in (("R@1", "R@1"), ("R@5", "R@5"), ("R@10", "R@10"), ("mAP@10", "map10_laion")):
            assert scores[name] == pytest.approx(golden[f"Clotho-test/{way}_{key}"])


@pytest.mark.parametrize("seed", range(4))
def test_retrieval_with_any_number_of_captions_is_that_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 14, size=17)
    owner = rng.permutation(np.repeat(np.arange(17), sizes))
    audio, text = rng.normal(size=(17, 3)), rng.normal(size=(len(owner), 3))
    like, clips = text @ audio.T, range(17)
    by_text = [int((like[q] > like[q, o]).sum()) for q, o in enumerate(owner)]
    by_audio = [[int((like[:, k] > like[q, k]).sum()) for q in np.flatnonzero(owner == k)] for k in clips]
    hits = [[r for r in own if r < 10] for own in by_audio]  # LAION: in the order of the captions, not of the ranks
    laion = [sum(j / (r + 1) for j, r in enumerate(own, 1)) / n for own, n in zip(hits, sizes, strict=True)]
    right = [sum(j / (r + 1) for j, r in enumerate(sorted(own), 1) if r < 10) / min(len(own), 10) for own in by_audio]
    got = metrics.retrieval(audio, text, owner)
    for k in (1, 5, 10):
        assert got["text_to_audio"][f"R@{k}"] == pytest.approx(np.mean([r < k for r in by_text]))
        assert got["audio_to_text"][f"R@{k}"] == pytest.approx(np.mean([min(own) < k for own in by_audio]))
    assert got["text_to_audio"]["map10"] == pytest.approx(np.mean([(r < 10) / (r + 1) for r in by_text]))
    assert got["audio_to_text"]["map10"] == pytest.approx(np.mean(right))
    assert got["text_to_audio"]["median_rank"] == np.floor(np.median(by_text)) + 1
    assert got["audio_to_text"]["map10_laion"] == pytest.approx(np.mean(laion))


def test_equal_captions_tie_whatever_a_matrix_product_makes_of_them():
    for n in range(2, 40):
        rng = np.random.default_rng(n)
        one, query = (rng.normal(size=(m, 512)).astype(np.float32) for m in (n, 3 * n))
        truth = rng.integers(n, size=3 * n)
        first, second = (metrics.ranks(query, np.concatenate([one, one]), truth + k) for k in (0, n))
        assert (second == first + 1).all()


def test_validation_scores_are_those_of_retrieval_and_their_mean(model, data):
    scores = validate(model, open_split(data, "test", (), 48_000))
    found = retrieval(model, data)
    assert scores["zero_shot/accuracy"] == zero_shot(model, data)["accuracy"]
    assert scores["mean_recall"] == metrics.mean_recall(found)
    assert scores["audio_to_text/map10"] == found["audio_to_text"]["map10"]


def test_a_run_writes_zero_shot_scores_beside_those_of_retrieval(model, data, tmp_path):
    pairs.write(tmp_path / "data", pairs.tones(6))
    pairs.write(tmp_path / "data", pairs.tones(9)[6:], split="validation")
    train(replace(pairs.SMALL, epochs=1), str(tmp_path / "data"), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    (scores,) = [line for line in lines if "validation/mean_recall" in line]
    assert 0 <= scores["validation/zero_shot/accuracy"] <= 1 and scores["validation/zero_shot/chance"] == 1 / 3


@pytest.mark.parametrize("labels", [["zebra", "giraffe", "buzz"], ["buzz", "", "low_tone"]])
def test_labels_that_cannot_be_told_apart_or_that_lack_are_no_reason_not_to_validate(model, tmp_path, labels):
    rows = pairs.tones(3)
    for row, label in zip(rows, labels, strict=True):
        row["labels"] = [label] if label else []
    scores = validate(model, open_split(pairs.write(tmp_path, rows), "train", (), 48_000))
    assert "mean_recall" in scores and not [name for name in scores if name.startswith("zero_shot")]


def test_several_prompts_are_one_embedding_a_label(model):
    one, two = (embed_labels(model, ["buzz", "low_tone"], prompt) for prompt in ("{}", "The sound of a {}."))
    mean = (one + two) / np.linalg.norm(one + two, axis=1, keepdims=True)
    np.testing.assert_allclose(embed_labels(model, ["buzz", "low_tone"], ["{}", "The sound of a {}."]), mean, atol=1e-6)
    assert np.abs(one - two).max() > 1e-3
    with pytest.raises(DataError, match=r"no .* where the label goes"):
        embed_labels(model, ["buzz"], ["{}", "buzz"])
