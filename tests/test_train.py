"""Training: it learns, is resumed exactly, whatever stopped it, and refuses what would spoil a run."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pairs
import pytest
import torch
from safetensors.torch import load_file

from clap import checkpoint
from clap.config import ConfigError, to_dict
from clap.data import DataError
from clap.log import read
from clap.model import CLAP
from clap.train import TrainError, against_guessing, learning_rate, train

CONFIG = replace(pairs.SMALL, epochs=4, log_every=2, save_every=3, roll=True, word_dropout=0.2)
SCRIPT = """
import json, os, sys
from clap.config import TrainConfig, from_dict
from clap.log import Log
from clap.train import train

def tick(self, step, *rest, usual=Log.tick):
    usual(self, step, *rest)
    if step == int(sys.argv[5]):
        os.kill(os.getpid(), int(sys.argv[1]))

Log.tick = tick
train(from_dict(TrainConfig, json.loads(sys.argv[2])), sys.argv[3], sys.argv[4])
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    pairs.write(folder, pairs.tones(6), split="validation")
    return pairs.write(folder, pairs.tones(22))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that nothing interrupted: 20 steps in 4 epochs."""
    run = tmp_path_factory.mktemp("whole")
    return run, train(CONFIG, data, run)


def weights(run):
    return load_file(run / "last" / "model.safetensors")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def lines(run):
    """metrics.jsonl without the clock."""
    clock = ("clips_per_second", "data_wait")
    return [{k: v for k, v in line.items() if k not in clock} for line in read(run / "metrics.jsonl")]


def stopped_by(number, data, run, step, config=CONFIG):
    """The same training in another process, which gets the signal in that step; its exit and stderr."""
    command = [sys.executable, "-c", SCRIPT, str(int(number)), json.dumps(to_dict(config)), data, str(run), str(step)]
    threads = str(torch.get_num_threads())
    env = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return done.returncode, done.stderr


def test_a_run_leaves_its_settings_metrics_and_checkpoints(whole):
    run, metrics = whole
    assert json.loads((run / "config.json").read_text())["train"] == to_dict(CONFIG)
    assert [line["step"] for line in lines(run) if "loss" in line] == list(range(2, 21, 2))
    assert [line["step"] for line in lines(run) if "validation/mean_recall" in line] == [5, 10, 15, 20]
    assert metrics["step"] == 20 and metrics["epoch"] == 4
    assert str((run / "last").readlink()) == "checkpoints/step-00000020"
    assert {"model.safetensors", "config.json", "trainer.pt", "text"} == {p.name for p in (run / "last").iterdir()}


def test_best_is_the_checkpoint_with_the_highest_validation_recall(whole):
    run, _ = whole
    recalls = {line["step"]: line.get("validation/mean_recall", -1) for line in lines(run)}
    assert (run / "best").resolve().name == f"step-{max(recalls, key=recalls.get):08d}"
    assert CLAP.from_pretrained(run).config == CONFIG.model


def test_only_the_newest_and_the_best_are_kept(whole):
    run, _ = whole
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    assert kept == {"step-00000018", "step-00000020", (run / "best").resolve().name}


def test_training_twice_gives_the_same_weights(whole, data, tmp_path):
    train(replace(CONFIG, workers=1), data, tmp_path)
    assert equal(weights(tmp_path), weights(whole[0]))


def test_a_killed_run_goes_on_as_if_it_had_not_been(whole, data, tmp_path):
    assert stopped_by(signal.SIGKILL, data, tmp_path, 9)[0] == -signal.SIGKILL
    assert lines(tmp_path)[-1]["step"] == 8 > int(checkpoint.newest(tmp_path).name[-8:])  # to be done again
    half = tmp_path / "checkpoints" / ".step-00000099.tmp"
    half.mkdir()
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 99, "los')
    train(CONFIG, data, tmp_path)
    assert equal(weights(tmp_path), weights(whole[0])) and lines(tmp_path) == lines(whole[0])
    assert not half.exists() and (tmp_path / "best").readlink() == (whole[0] / "best").readlink()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_saves_and_goes_on_in_the_middle_of_an_epoch(whole, data, tmp_path, number):
    code, said = stopped_by(number, data, tmp_path, 8)
    assert code != 0 and "KeyboardInterrupt: stopped and saved at step 8" in said
    train(CONFIG, data, tmp_path)
    assert equal(weights(tmp_path), weights(whole[0])) and lines(tmp_path) == lines(whole[0])


def test_a_run_killed_before_its_links_gets_them_on_the_next_start(whole, data, tmp_path):
    run = shutil.copytree(whole[0], tmp_path / "run", symlinks=True)
    (run / "last").unlink()
    (run / "best").unlink()
    train(CONFIG, data, run)
    assert [(run / name).readlink() for name in ("last", "best")] == [
        (whole[0] / name).readlink() for name in ("last", "best")
    ]


def test_the_same_rows_in_other_row_groups_are_other_data(whole, tmp_path):
    folder = tmp_path / "data"
    pairs.write(folder, pairs.tones(6), split="validation")
    with pytest.raises(ConfigError, match="on other data"):
        train(CONFIG, pairs.write(folder, pairs.tones(22), group=3), whole[0])


def test_a_wish_for_validation_that_cannot_be_met_is_refused(tmp_path):
    alone = pairs.write(tmp_path / "data", pairs.tones(8))
    with pytest.raises(ConfigError, match="no dataset has a split 'dev'"):
        train(replace(CONFIG, validation_split="dev"), alone, tmp_path / "run")
    with pytest.raises(ConfigError, match="would be trained on and validated on"):
        train(replace(CONFIG, split="all", validation_folds=(1,)), alone, tmp_path / "run")


def test_a_validation_clip_that_does_not_decode_is_told_before_the_first_step(data, tmp_path):
    rows = pairs.tones(22)
    rows[-1]["audio"]["bytes"] = rows[-1]["audio"]["bytes"][:300]
    pairs.write(tmp_path / "data", rows, split="validation")
    with pytest.raises(DataError, match="does not decode"):
        train(CONFIG, pairs.write(tmp_path / "data", pairs.tones(22)), tmp_path / "run")
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_warm_up_that_takes_the_whole_run_is_told(data, tmp_path, capsys):
    train(replace(CONFIG, epochs=1, warmup=100), data, tmp_path / "run")
    assert "the warm-up of 100 steps takes the whole run" in capsys.readouterr().err


def test_a_damaged_config_of_a_run_is_told(whole, data, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run", symlinks=True)
    (tmp_path / "run/config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config.json cannot be read .* restore it"):
        train(CONFIG, data, tmp_path / "run")


def test_bf16_trains(data, tmp_path):
    assert math.isfinite(train(replace(CONFIG, precision="bf16", epochs=1), data, tmp_path)["loss"])


def test_a_finished_run_only_repeats_its_metrics(whole, data):
    run, metrics = whole
    before = (run / "metrics.jsonl").read_bytes()
    assert train(CONFIG, data, run) == metrics
    assert (run / "metrics.jsonl").read_bytes() == before


def test_other_settings_in_the_same_folder_are_refused(whole, data):
    other = replace(CONFIG, lr=0.5, model=replace(CONFIG.model, dim=8))
    with pytest.raises(ConfigError, match=r"lr was 0.001, is now 0.5, dim was 16, is now 8.*another --out"):
        train(other, data, whole[0])
    train(replace(CONFIG, workers=3, keep=5), data, whole[0])


def test_other_data_in_the_same_folder_are_refused(whole, tmp_path):
    other = pairs.write(tmp_path, pairs.tones(21))
    with pytest.raises(ConfigError, match=r"other data .22 clips .*now 21"):
        train(CONFIG, other, whole[0])


def test_a_setting_can_be_mended_before_the_first_checkpoint(data, tmp_path):
    with pytest.raises(DataError, match="lower --batch-size"):
        train(replace(CONFIG, batch_size=99), data, tmp_path)
    assert train(replace(CONFIG, epochs=1), data, tmp_path)["step"] == 5


def test_two_processes_cannot_train_in_one_folder(data, tmp_path):
    with checkpoint.lock(tmp_path), pytest.raises(TrainError, match="another process"):
        train(CONFIG, data, tmp_path)


def test_without_validation_best_is_last(tmp_path, capsys):
    train(replace(CONFIG, epochs=1), pairs.write(tmp_path / "data", pairs.tones(8)), tmp_path / "run")
    assert (tmp_path / "run" / "best").resolve() == (tmp_path / "run" / "last").resolve()
    assert "no validation split" in capsys.readouterr().err


def test_divergence_stops_with_advice_and_without_a_broken_checkpoint(data, tmp_path):
    with pytest.raises(TrainError, match=r"diverged.*lower --lr"):
        train(replace(CONFIG, lr=1e30, clip_norm=1e30, save_every=1, eval_every=99), data, tmp_path)
    newest = checkpoint.newest(tmp_path)
    assert newest is None or all(t.isfinite().all() for t in load_file(newest / "model.safetensors").values())


def test_a_loss_far_over_that_of_guessing_stops_with_advice():
    with pytest.raises(TrainError, match=r"loss 9, where guessing costs 1.39: training has diverged"):
        against_guessing(9.0, 4)
    assert not against_guessing(1.2, 4)


def test_a_model_that_collapsed_to_guessing_is_told_of(data, tmp_path, capsys):
    train(replace(CONFIG, lr=3.0, warmup=0, eval_every=99, save_every=99), data, tmp_path)
    assert "loss 1.39 is that of guessing" in capsys.readouterr().err


def test_evaluations_do_not_count_as_training_time(data, tmp_path, monkeypatch):
    def slow(state, *_):
        time.sleep(1.5)
        return False

    monkeypatch.setattr("clap.train.evaluate", slow)
    train(replace(CONFIG, epochs=1, log_every=1, eval_every=2), data, tmp_path)
    speeds = [line["clips_per_second"] for line in read(tmp_path / "metrics.jsonl") if "loss" in line]
    assert min(speeds) > 4 / 1.5


def test_plain_targets_give_another_loss(whole, data, tmp_path):
    plain = train(replace(CONFIG, targets="plain"), data, tmp_path)
    assert plain["loss"] != whole[1]["loss"]


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.25), (3, 1.0), (4, 1.0), (12, 0.5), (20, 0.0), (8, (1 + math.sqrt(0.5)) / 2)]
)
def test_the_rate_rises_in_a_line_and_falls_in_a_cosine(step, expected):
    assert learning_rate(step, total=20, warmup=4, peak=1.0) == pytest.approx(expected)


def test_a_run_that_gets_no_better_stops_early_and_stays_stopped(data, tmp_path, capsys):
    weary = replace(CONFIG, lr=1e-9, eval_every=2, patience=2, save_every=99)
    first = train(weary, data, tmp_path)
    assert "stopped early" in capsys.readouterr().err
    kept = checkpoint.newest(tmp_path)
    assert train(weary, data, tmp_path)["step"] == first["step"] < 20 and checkpoint.newest(tmp_path) == kept


def test_the_best_checkpoints_are_kept_as_many_as_asked(data, tmp_path):
    train(replace(CONFIG, eval_every=2, keep=1, keep_best=3, save_every=99), data, tmp_path)
    recalls = {line["step"]: line["validation/mean_recall"] for line in lines(tmp_path) if len(line) > 9}
    best = sorted(recalls, key=lambda step: (-recalls[step], step))[:3]
    kept = {int(path.name[-8:]) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {*best, 20} and (tmp_path / "best").resolve().name == f"step-{best[0]:08d}"


def test_the_average_of_the_weights_is_kept_and_a_stopped_run_goes_on_with_both(data, tmp_path):
    config = replace(CONFIG, ema=0.9)
    train(replace(config, epochs=1, keep=9), data, tmp_path / "one")
    plain = train(replace(CONFIG, epochs=1), data, tmp_path / "plain")
    assert plain["loss"] == pytest.approx(read(tmp_path / "one" / "metrics.jsonl")[-2]["loss"])  # trained alike
    assert not equal(weights(tmp_path / "one"), weights(tmp_path / "plain"))
    train(config, data, tmp_path / "whole")
    assert stopped_by(signal.SIGTERM, data, tmp_path / "cut", 8, config)[0] != 0
    train(config, data, tmp_path / "cut")
    assert equal(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
