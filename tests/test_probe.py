"""Probes on made-up features, and on tones through small real models: what is learnt, and what is never looked at."""

import json
from dataclasses import replace

import numpy as np
import pairs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.metrics
import torch
from safetensors.torch import load_file

from clap import metrics
from clap.config import ClapError
from clap.data import open_split
from clap.encoded import encode, encoded, keep, listen
from clap.fit import Examples, build_head, choose, predict
from clap.folds import Round, by_split, recordings, rounds
from clap.model import CLAP
from clap.probe import load_probe, maker, probe, summary
from clap.probe_config import ProbeConfig

QUICK = ProbeConfig(epochs=8, patience=3, lr=(1e-2,), weight_decay=(0.01,), batch_size=16)
LABELS = list(pairs.TONES)


def small(seed: int) -> CLAP:
    """A model with random weights."""
    torch.manual_seed(seed)
    return CLAP.create(pairs.SMALL.model, ["a low tone", "a high tone", "a buzz"]).eval()


@pytest.fixture(scope="module")
def model():
    return small(0)


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    return pairs.write(tmp_path_factory.mktemp("folds"), pairs.tones(48), group=20)


@pytest.fixture(scope="module")
def made(model, folded, tmp_path_factory):
    out = tmp_path_factory.mktemp("probe")
    return probe(model, folded, out, QUICK), out


def with_splits(folder, test_labels=None):
    """Tones of 24, 6 and 12 clips; `test_labels` are given to the clips of the test split in the place of theirs."""
    rows = pairs.tones(42)
    for row, label in zip(rows[30:], test_labels or [], strict=False):
        row["labels"] = [label]
    for split, part in (("train", rows[:24]), ("validation", rows[24:30]), ("test", rows[30:])):
        pairs.write(folder, part, split)
    return str(folder)


def clouds(n: int, apart: float, several: bool = False) -> Examples:
    """Features of three classes, Gaussian clouds `apart` from each other along axes of ten."""
    rng = np.random.default_rng(0)
    relevant = rng.random((n, 3)) < 0.4 if several else np.eye(3, dtype=bool)[np.arange(n) % 3]
    relevant[~relevant.any(1), 0] = True
    features = rng.normal(size=(n, 10)) + apart * relevant @ np.eye(3, 10)
    return Examples(features.astype(np.float32), relevant, several, "bce" if several else "ce")


def on_clouds(examples: Examples, config: ProbeConfig) -> tuple[np.ndarray, np.ndarray]:
    """(scores, relevant) of the last half of the rows, after learning from the first."""
    train, validation, test = np.split(np.arange(len(examples.inputs)), [100, 150])
    found = choose(maker(None, examples, config), examples, Round("", "", train, validation, test, True), config, 0)
    return predict(found.classifier, examples, test).numpy(), examples.relevant[test]


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_separable_features_are_told_apart_without_a_mistake(head, loss):
    examples = replace(clouds(300, apart=12), loss=loss)
    assert metrics.correct(*on_clouds(examples, replace(QUICK, head=head))).all()


def test_labels_that_mean_nothing_score_chance():
    examples = clouds(300, apart=12)
    shuffled = np.random.default_rng(1).permutation(examples.relevant)
    accuracy = metrics.correct(*on_clouds(replace(examples, relevant=shuffled), ProbeConfig())).mean()
    assert 1 / 3 - 0.12 < accuracy < 1 / 3 + 0.12  # three deviations of 150 draws


def test_several_labels_a_clip_are_learnt():
    scores, relevant = on_clouds(clouds(300, apart=6, several=True), ProbeConfig())
    assert metrics.mean_average_precision(scores, relevant) > 0.97 < metrics.mean_auc(scores, relevant)


@pytest.mark.parametrize("refit", [True, False])
def test_the_clips_that_chose_are_learnt_from_only_if_the_round_says_so(refit):
    examples = clouds(300, apart=12)
    third = examples.relevant[:, 2]
    train, validation = np.flatnonzero(~third)[:100], np.arange(200, 250)
    found = choose(maker(None, examples, QUICK), examples, Round("", "", train, validation, train, refit), QUICK, 0)
    guesses = predict(found.classifier, examples, np.flatnonzero(third)).argmax(dim=1)
    assert (guesses == 2).float().mean() > 0.9 if refit else not (guesses == 2).any()


def test_the_scale_and_place_of_features_do_not_matter():
    examples = clouds(300, apart=2)
    moved = replace(examples, inputs=examples.inputs * np.float32(1e-3) + np.float32(0.1))
    (here, _), (there, _) = on_clouds(examples, QUICK), on_clouds(moved, QUICK)
    assert np.abs(here - there).max() < 0.05


def test_features_that_a_tower_moves_are_scaled_by_what_came_last():
    head, rng = build_head("linear", 4, 2).train(), np.random.default_rng(0)
    head(torch.from_numpy(rng.normal(3, 1e-3, (64, 4)).astype(np.float32)))
    assert np.allclose(head[0].running_mean, 3, atol=1e-3) and np.allclose(head[0].running_var, 1e-6, rtol=0.6)
    for _ in range(100):
        head(torch.from_numpy(rng.normal(-5, 1, (64, 4)).astype(np.float32)))
    assert np.allclose(head[0].running_mean, -5, atol=0.1) and np.allclose(head[0].running_var, 1, atol=0.2)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_head_favours_no_label_at_first(kind):
    assert not build_head(kind, 8, 5).train()(torch.randn(4, 8)).any()


def test_the_mlp_is_laions():
    shapes = [tuple(p.shape) for p in build_head("mlp", 512, 50).parameters()]
    assert shapes == [(1024, 512), (1024,), (50, 1024), (50,)]


@pytest.mark.parametrize("ties", [False, True])
def test_mean_average_precision_and_auc_are_scikit_learns(ties):
    rng = np.random.default_rng(3)
    scores, relevant = rng.normal(size=(60, 7)), rng.random((60, 7)) < 0.3
    scores = scores.round() if ties else scores
    wanted = sklearn.metrics.average_precision_score(relevant, scores, average="macro")
    assert metrics.mean_average_precision(scores, relevant) == pytest.approx(wanted)
    assert metrics.mean_auc(scores, relevant) == pytest.approx(sklearn.metrics.roc_auc_score(relevant, scores))


def test_auc_leaves_out_classes_that_no_clip_has_or_all_have():
    scores = np.array([[0.1, 5, 5], [0.9, 6, 1], [0.8, 7, 3]])
    relevant = np.array([[0, 0, 1], [1, 0, 1], [1, 0, 1]], bool)
    assert metrics.mean_auc(scores, relevant) == 1.0
    assert metrics.mean_auc(scores[:, 1:], relevant[:, 1:]) == 0.5


@pytest.mark.parametrize("labels", ["onehot", "multi"])
def test_scores_of_a_linear_probe_equal_the_originals(shared, labels):
    arrays = np.load(shared / "golden/f_metrics.npz")
    wanted = json.loads((shared / "golden/f_metrics.json").read_text())["linear_probe"][labels]
    scores, relevant = arrays["lp_pred"], arrays[f"lp_{labels}"] > 0
    assert metrics.mean_auc(scores, relevant) == pytest.approx(wanted["mauc"])
    assert metrics.mean_average_precision(scores, relevant) == pytest.approx(wanted["map"])


def test_every_fold_is_held_out_once_and_the_next_one_chooses(folded):
    data = open_split(folded, "all", (), 48000)
    fold = data.rows["fold"].to_numpy()
    found = rounds(data, (), 0)
    assert [each.held_out for each in found] == ["fold 1", "fold 2", "fold 3", "fold 4"]
    assert [set(fold[each.validation]) for each in found] == [{2}, {3}, {4}, {1}] and found[3].chosen_by == "fold 1"
    for each in found:
        parts = np.concatenate([each.train, each.validation, each.test])
        assert sorted(parts) == list(range(48)) and set(fold[each.test]) == {int(each.held_out[-1])}
    assert [each.held_out for each in rounds(data, [3], 0)] == ["fold 3"]


def test_without_a_validation_split_no_recording_is_both_learnt_from_and_chosen_by(tmp_path):
    pairs.write(tmp_path, pairs.tones(40), group=7)
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    pages = [f"https://freesound.org/s/{i // 4}/" for i in range(38)] + ["", ""]
    pq.write_table(pq.read_table(path).append_column("url", pa.array(pages)), path, row_group_size=7)
    pairs.write(tmp_path, pairs.tones(6), "test")
    data = open_split(str(tmp_path), "all", (), 48000)
    split = np.array(["test"] * 6 + ["train"] * 40)
    assert len(set(recordings(data)[6:])) == 12  # ten pages, the two without are by themselves
    for seed in range(5):
        (each,) = rounds(data, (), seed)
        assert np.array_equal(each.validation, by_split(data, split, seed).validation) and each.refit
        assert sorted([*each.train, *each.validation, *each.test]) == list(range(46))
        assert not set(recordings(data)[each.train]) & set(recordings(data)[each.validation])
        assert each.chosen_by == "2 of 12 recordings in train" and 2 <= len(each.validation) <= 8
        assert list(each.test) == list(range(6))


@pytest.mark.parametrize("by", ["split", "fold"])
def test_nothing_is_chosen_by_the_clips_that_are_tested(model, tmp_path, by):
    config = replace(QUICK, lr=(1e-3, 1e-2), epochs=12, folds=(4,) if by == "fold" else ())
    found = []
    for name in ("right", "wrong"):
        if by == "split":
            wrong = ["buzz", "low_tone", "high_tone"] * 4 if name == "wrong" else None
            data = with_splits(tmp_path / name, wrong)
        else:
            rows = pairs.tones(48)
            for i, row in enumerate(rows):
                if name == "wrong" and row["fold"] == 4:
                    row["labels"] = [LABELS[(i + 2) % 3]]
            data = pairs.write(tmp_path / name, rows)
        result = probe(model, data, tmp_path / name / "out", config)
        found.append((result["rounds"][0], load_file(tmp_path / name / "out/probe/head.safetensors")))
    (right, head), (wrong, same) = found
    assert right["accuracy"] > 0.6 > wrong["accuracy"] + 0.2
    for key in ("epoch", "lr", "weight_decay", "validation"):
        assert right[key] == wrong[key]
    assert all(torch.equal(head[name], same[name]) for name in head)


def test_folds_give_means_and_deviations_and_every_score(made):
    result, _ = made
    held = [each["accuracy"] for each in result["rounds"]]
    assert len(held) == 4 and result["accuracy"] == pytest.approx(np.mean(held)) and result["accuracy"] > 0.9
    assert result["std"]["accuracy"] == pytest.approx(np.std(held, ddof=1)) and result["std_seeds"]["accuracy"] == 0
    assert result["labels"] == sorted(LABELS) and set(result["per_class"]) == set(LABELS)
    assert result["chance"] == pytest.approx(1 / 3) and result["n"] == 48 and result["settings"]["loss"] == "ce"
    assert result["map"] > 0.9 and result["mauc"] > 0.9
    assert all(1 <= each["epoch"] <= 8 for each in result["rounds"])


def test_seeds_are_averaged_before_folds_are_compared():
    def once(held, seed, accuracy):
        return {
            "held_out": held,
            "seed": seed,
            "accuracy": accuracy,
            "per_class": {"a": accuracy},
            "chance": 0.5,
            "n": 2,
        }

    got = summary([once("1", 0, 0.0), once("2", 0, 0.5), once("1", 1, 0.5), once("2", 1, 1.0)])
    assert got["accuracy"] == 0.5 == got["per_class"]["a"] and got["n"] == 4
    assert got["std"]["accuracy"] == got["std_seeds"]["accuracy"] == pytest.approx(np.std([0.25, 0.75], ddof=1))


def test_the_same_seed_gives_the_same_probe(model, folded, made, tmp_path):
    result, out = made
    assert probe(model, folded, tmp_path, QUICK) == result
    assert (tmp_path / "result.json").read_bytes() == (out / "result.json").read_bytes()
    other = probe(model, folded, tmp_path, replace(QUICK, seeds=(1,), head="mlp"))
    assert other["rounds"][0]["validation"] >= 0 and other["settings"]["seeds"] == (1,)


def test_features_are_computed_once_for_a_model_and_a_dataset(model, folded, tmp_path):
    data = open_split(folded, "all", (), 48000)
    first = encoded(model, data, "normalised", tmp_path)
    (path,) = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    again = encoded(model, data, "normalised", tmp_path)
    assert path.stat().st_mtime_ns == before and isinstance(again, np.memmap)
    assert np.allclose(first, model.embed_audio(data), atol=1e-6)

    other = encoded(small(1), data, "normalised", tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 and not np.allclose(first, other, atol=1e-3)


def test_features_of_a_dataset_that_was_built_again_are_not_the_old_ones(model, tmp_path):
    rows = pairs.tones(8)
    data = open_split(pairs.write(tmp_path, rows), "all", (), 48000)
    first = np.array(encoded(model, data, "normalised", tmp_path / "features"))
    for row, following in zip(rows, pairs.tones(9)[1:], strict=True):
        row["audio"] = following["audio"]
    data = open_split(pairs.write(tmp_path, rows), "all", (), 48000)
    assert np.allclose(encoded(model, data, "normalised", tmp_path / "features")[:-1], first[1:], atol=1e-6)


def test_an_array_that_was_not_finished_is_not_there(tmp_path):
    def broken():
        yield np.ones((2, 3), np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path / "a.npy", 4, broken())
    assert not (tmp_path / "a.npy").exists()
    keep(tmp_path / "a.npy", 2, iter([np.ones((2, 3), np.float32)]))
    assert np.load(tmp_path / "a.npy").tolist() == np.ones((2, 3)).tolist()


@pytest.mark.parametrize("fusion", ["none", "aff_2d"])
def test_a_projection_is_the_embedding_before_it_is_normalised(folded, fusion):
    torch.manual_seed(0)
    config = replace(pairs.SMALL.model, fusion=fusion, pann_widths=(8, 8, 16))
    model = CLAP.create(config, ["a low tone"]).eval()
    data = open_split(folded, "all", (), 48000)
    sounds = list(listen(model, data))[:9]
    assert max(map(len, sounds)) > config.n_samples or fusion == "none"
    projection = encode(model, sounds, "projection")
    lengths = np.linalg.norm(projection, axis=1, keepdims=True)
    assert lengths.std() > 0.01 and np.allclose(projection / lengths, encode(model, sounds, "normalised"), atol=1e-5)


def test_clips_of_several_labels_are_probed_with_bce(model, tmp_path):
    rows = pairs.tones(48)
    for row in rows:
        row["labels"] = [*row["labels"], "tone"] if row["labels"] != ["buzz"] else row["labels"]
    data = pairs.write(tmp_path, rows)
    result = probe(model, data, tmp_path, replace(QUICK, folds=(1,), epochs=20, features="projection"))
    assert result["settings"]["loss"] == "bce" and "accuracy" not in result
    assert result["map"] > 0.9 and result["mauc"] > 0.9 and result["per_class"]["tone"] > 0.9
    with pytest.raises(ClapError, match="several labels, of which ce can learn only one: use --loss bce"):
        probe(model, data, tmp_path, replace(QUICK, loss="ce"))


def test_a_saved_probe_labels_files_as_it_was_tested(model, folded, made, tmp_path):
    result, out = made
    found = load_probe(out / "probe")
    data = open_split(folded, "all", [1], 48000)
    guesses = [next(iter(each)) for each in found.predict(model, data)]
    truth = [labels[0] for labels in data.rows["labels"].to_pylist()]
    assert np.mean([a == b for a, b in zip(guesses, truth, strict=True)]) == result["rounds"][0]["accuracy"]
    (tmp_path / "tone.flac").write_bytes(pairs.flac(pairs.sound("high_tone", 99, 0.3)))
    (shares,) = found.predict(model, [tmp_path / "tone.flac"])
    assert next(iter(shares)) == "high_tone" and sum(shares.values()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ClapError, match="fitted on another model"):
        found.predict(small(1), [tmp_path / "tone.flac"])


def test_fine_tuning_trains_a_copy_of_the_tower_and_saves_it(model, folded, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = replace(QUICK, finetune=True, folds=(2,), epochs=12, patience=12, batch_size=8, lr_tower=3e-3)
    result = probe(model, folded, tmp_path, config)
    assert result["accuracy"] > 0.6
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    tuned, found = CLAP.from_pretrained(tmp_path / "probe" / "model"), load_probe(tmp_path / "probe")
    assert not torch.equal(tuned.audio.fc1.weight, model.audio.fc1.weight)
    data = open_split(folded, "all", [2], 48000)
    truth = [labels[0] for labels in data.rows["labels"].to_pylist()]
    right = [next(iter(each)) == label for each, label in zip(found.predict(tuned, data), truth, strict=True)]
    assert np.mean(right) == result["accuracy"]
    assert np.allclose(encode(tuned, list(listen(tuned, data)), "normalised"), tuned.embed_audio(data), atol=1e-5)


class Loudness:
    """Another system: embeds a clip as its levels in three bands, and has no weights."""

    def embed_audio(self, clips, sample_rate):
        bands = [np.abs(np.fft.rfft(clip, sample_rate)) for clip in clips]
        levels = np.array([[part.sum() for part in np.split(band, [1000, 10000])] for band in bands])
        return levels / np.linalg.norm(levels, axis=1, keepdims=True)


def test_any_system_that_embeds_audio_can_be_probed_but_not_fine_tuned(folded, tmp_path):
    result = probe(Loudness(), folded, tmp_path, QUICK)
    assert result["accuracy"] > 0.9
    with pytest.raises(ClapError, match="Loudness gives embeddings only"):
        probe(Loudness(), folded, tmp_path, replace(QUICK, features="projection"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "deep"}, "head is 'deep': use linear or mlp"),
        ({"epochs": 0}, "epochs is 0: it must be 1 or more"),
        ({"seeds": (1, 1)}, r"seeds is \(1, 1\): give each once"),
        ({"lr": ()}, r"lr is \(\): give one or more"),
        ({"folds": (9,)}, r"has the folds \[1, 2, 3, 4\], not \[9\]"),
        ({"lr": (1e30,)}, "the fit has diverged, give a lower --lr"),
    ],
)
def test_wrong_settings_are_told_what_is_right(model, folded, tmp_path, changes, message):
    with pytest.raises(ClapError, match=message):
        probe(model, folded, tmp_path, replace(QUICK, **changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": []}, "has no label: a probe needs labels for every clip"),
        ({"labels": ["buzz"]}, r"one label only \(buzz\)"),
        ({"fold": 0}, "neither a test split nor three folds"),
    ],
)
def test_a_dataset_that_cannot_be_probed_is_told_why(model, tmp_path, change, message):
    data = pairs.write(tmp_path, [row | change for row in pairs.tones(9)])
    with pytest.raises(ClapError, match=message):
        probe(model, data, tmp_path / "out", QUICK)
