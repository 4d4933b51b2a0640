"""Scores against the originals' values, against scikit-learn's definitions and on cases done by hand."""

import json

import numpy as np
import pytest

from clap import metrics


@pytest.fixture(scope="module")
def original(shared):
    folder = shared / "golden"
    return np.load(folder / "f_metrics.npz"), json.loads((folder / "f_metrics.json").read_text())


def test_equal_mean_recalls_are_equal_in_whatever_order_they_are_added():
    def scores(*given):
        keys = ("R@1", "R@5", "R@10")
        return {"a": dict(zip(keys, given[:3], strict=True)), "b": dict(zip(keys, given[3:], strict=True))}

    assert metrics.mean_recall(scores(0.05, 0.25, 0.5, 0.1, 0.25, 0.5)) == metrics.mean_recall(
        scores(0.05, 0.25, 0.55, 0.05, 0.25, 0.5)
    )


def test_one_caption_scores_equal_the_original(original):
    arrays, expected = original
    got = metrics.retrieval(arrays["audio"], arrays["text5"][::5], np.arange(20))
    expected = expected["get_metrics_1cap(text5[::5])"]
    for way, scores in got.items():
        for key in ("R@1", "R@5", "R@10", "median_rank"):
            assert scores[key] == pytest.approx(expected[f"{way}_{key}"])
        assert scores["map10"] == pytest.approx(expected[f"{way}_mAP@10"])


def test_five_caption_scores_equal_the_original(original):
    arrays, expected = original
    got = metrics.retrieval(arrays["audio"], arrays["text5"], np.repeat(np.arange(20), 5))
    expected = expected["evaluate_clotho_audiocaps_5cap"]
    for way, scores in got.items():
        for key in ("R@1", "R@5", "R@10"):
            assert scores[key] == pytest.approx(expected[f"Clotho-test/{way}_{key}"])
        assert scores["map10_laion"] == pytest.approx(expected[f"Clotho-test/{way}_mAP@10"])
    assert got["audio_to_text"]["map10"] < got["audio_to_text"]["map10_laion"]
    assert got["text_to_audio"]["n"] == 100 and got["audio_to_text"]["n"] == 20


def test_zero_shot_accuracy_equals_the_original(original):
    arrays, expected = original
    relevant = np.eye(7, dtype=bool)[arrays["labels"]]
    got = metrics.classification(arrays["audio"] @ arrays["cls"].T, relevant, list("abcdefg"))
    assert got["accuracy"] == pytest.approx(expected["zero_shot"]["R@1"])
    assert got["chance"] == pytest.approx(1 / 7) and got["n"] == 20


def test_mean_average_precision_equals_the_original(original):
    arrays, expected = original
    got = metrics.classification(arrays["lp_pred"], arrays["lp_multi"] > 0, list("abcdefg"))
    assert got["map"] == pytest.approx(expected["linear_probe"]["multi"]["map"])


def test_map10_by_hand_with_ragged_captions():
    audio = np.eye(3)
    text = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.7, 0.3, 0], [0, 0, 1]])
    got = metrics.retrieval(audio, text, np.array([0, 0, 1, 2]))["audio_to_text"]
    # clip 0 finds its captions at 1 and 3, clip 1 at 2, clip 2 at 1
    assert got["map10"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2 + 1) / 3)
    assert got["R@1"] == pytest.approx(2 / 3) and got["median_rank"] == 1


def test_order_of_captions_does_not_change_scores():
    rng = np.random.default_rng(0)
    audio, text, owner = rng.normal(size=(9, 4)), rng.normal(size=(30, 4)), rng.integers(0, 9, 30)
    shuffled = rng.permutation(30)
    a, b = metrics.retrieval(audio, text, owner), metrics.retrieval(audio, text[shuffled], owner[shuffled])
    assert a["audio_to_text"]["map10"] == pytest.approx(b["audio_to_text"]["map10"])
    assert a["text_to_audio"] == b["text_to_audio"]


def test_a_constant_model_scores_chance():
    same = np.ones((50, 4)) / 2
    got = metrics.retrieval(same, same, np.arange(50))
    assert [got[way]["R@1"] for way in got] == [0.02, 0.02]
    assert [got[way]["R@10"] for way in got] == [0.2, 0.2]


def test_more_than_ten_captions_can_reach_one():
    audio, text = np.eye(2), np.repeat(np.eye(2), 12, axis=0)
    assert metrics.retrieval(audio, text, np.repeat([0, 1], 12))["audio_to_text"]["map10"] == 1


def test_ranks_do_not_depend_on_chunks(monkeypatch):
    rng = np.random.default_rng(1)
    query, target, truth = rng.normal(size=(40, 8)), rng.normal(size=(25, 8)), rng.integers(0, 25, 40)
    whole = metrics.ranks(query, target, truth)
    monkeypatch.setattr(metrics, "CHUNK", 7)
    assert (metrics.ranks(query, target, truth) == whole).all()
    order = np.argsort(-(query @ target.T), axis=1)
    assert (whole == (order == truth[:, None]).argmax(1)).all()


def test_nan_raises_instead_of_winning():
    bad = np.full((3, 2), np.nan)
    with pytest.raises(metrics.MetricError, match="diverged"):
        metrics.retrieval(bad, np.ones((3, 2)), np.arange(3))


def test_average_precision_takes_ties_together():
    assert metrics.average_precision(np.array([1.0, 1.0, 0.0]), np.array([True, False, True])) == pytest.approx(
        0.5 * 0.5 + 0.5 * 2 / 3
    )


def test_per_class_accuracies_average_to_the_whole_when_balanced():
    scores = np.array([[2, 1], [1, 2], [3, 1], [1, 0.5]])
    relevant = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], bool)
    got = metrics.classification(scores, relevant, ["dog", "rain"])
    assert got["per_class"] == {"dog": 0.5, "rain": 0.0} and got["accuracy"] == 0.25
