"""Several processes, started by torchrun, train as one does on the same batches."""

import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pairs
import pytest
import soundfile
import torch
import torch.distributed as dist
from conftest import ROOT, cli
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer

from clap import checkpoint
from clap.config import ConfigError, ModelConfig, TrainConfig
from clap.data import open_split
from clap.distributed import join
from clap.fusion import normalise
from clap.loader import Loader
from clap.log import read
from clap.text import scratch

# Nothing random but the order of clips and their crops, and batch norms that see no statistics of a share.
MODEL = replace(pairs.SMALL.model, pann_head_dropout=0.0, time_mask=1, freq_mask=1, fusion="aff_1d")
TEXTS = [f"The sound of a {label.replace('_', ' ')}." for label in pairs.TONES]
CONFIG = replace(
    pairs.SMALL, model=MODEL, freeze_norm=True, loss="sigmoid", micro_batch=1, epochs=3, log_every=2, save_every=2
)


def arguments(data, run, config=CONFIG) -> list[str]:
    """The command line of a config, with a text tower without dropout."""
    line = ["train", "--data", data, "--out", run, "--preset", "tiny"]
    for kind, settings in ((TrainConfig, config), (ModelConfig, replace(MODEL, text=str(Path(data) / "text")))):
        for each in fields(kind):
            value = getattr(settings, each.name)
            if each.metadata and value not in ((), ""):
                flag = "--" + each.name.replace("_", "-")
                if isinstance(value, bool):
                    line += [flag if value else flag.replace("--", "--no-", 1)]
                else:
                    line += [flag, ",".join(map(str, value)) if isinstance(value, tuple) else value]
    return [str(each) for each in line]


def two(data, run, config=CONFIG) -> subprocess.Popen:
    """The same command under torchrun, in two processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    line = [*torchrun, str(ROOT / "cli.py"), *arguments(data, run, config)]
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True)


def finish(process) -> None:
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 0, said


def duration(row) -> float:
    return soundfile.info(io.BytesIO(row["audio"]["bytes"])).duration


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    encoder, tokenizer = scratch(TEXTS, vocab=100, width=32, layers=1, heads=2, context=77)
    encoder.config.hidden_dropout_prob = encoder.config.attention_probs_dropout_prob = 0.0
    encoder.save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    pairs.write(folder, pairs.tones(6), split="validation")
    short = [row for row in pairs.tones(70) if duration(row) <= MODEL.clip_seconds]
    longer = [row for row in pairs.tones(70) if duration(row) > 0.4][:4]
    return pairs.write(folder, [*short[:9], *longer[:2], *short[9:18], *longer[2:]])  # batches with and without longer


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("alone")
    cli(*arguments(data, run))
    return run


def weights(run):
    return load_file(run / "last" / "model.safetensors")


@pytest.mark.slow
def test_two_processes_give_the_weights_and_the_log_of_one(alone, data, tmp_path):
    finish(two(data, tmp_path / "run"))
    torch.testing.assert_close(weights(tmp_path / "run"), weights(alone), rtol=1e-4, atol=2e-5)
    both = [read(run / "metrics.jsonl") for run in (alone, tmp_path / "run")]
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in both]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5) and len(losses[0]) == 8


@pytest.mark.slow
def test_two_workers_of_ray_train_give_the_weights_of_one(alone, data, tmp_path):
    run = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, str(ROOT / "tests" / "ray_train.py"), str(tmp_path / "ray"), *arguments(data, run)]
    finish(subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment))
    torch.testing.assert_close(weights(run), weights(alone), rtol=1e-4, atol=2e-5)


def test_a_group_without_a_backend_for_the_cpu_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    dist.init_process_group("cuda:gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(ConfigError, match="make it with 'gloo'"), join("cpu"):
            pass
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_that_are_stopped_save_and_one_goes_on(alone, data, tmp_path):
    run = tmp_path / "run"
    process = two(data, run)
    while checkpoint.newest(run) is None and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert int(checkpoint.newest(run).name[-8:]) < 15
    cli(*arguments(data, run))
    torch.testing.assert_close(weights(run), weights(alone), rtol=1e-4, atol=2e-5)


def statistics(data, config, rank, size):
    """Those of the first batch norm, whose input no weight decides, after the shares that a process has of a run."""
    norm, clips = nn.BatchNorm2d(MODEL.n_mels), open_split(data, "train", (), 48000)
    tokenizer = AutoTokenizer.from_pretrained(Path(data) / "text")
    for batch in Loader(clips, tokenizer, config, rank, size).batches():
        normalise(norm, batch.audio)
    return norm.running_mean, norm.running_var


@pytest.mark.slow
def test_statistics_of_batch_norms_are_the_mean_over_the_processes(data, tmp_path):
    config = replace(CONFIG, freeze_norm=False, micro_batch=0, epochs=1)
    run = tmp_path / "run"
    finish(two(data, run, config))
    whole = weights(run)
    means, variances = zip(*(statistics(data, config, rank, 2) for rank in (0, 1)), strict=True)
    torch.testing.assert_close(whole["audio.bn0.running_mean"], sum(means) / 2)
    torch.testing.assert_close(whole["audio.bn0.running_mean"], statistics(data, config, 0, 1)[0])  # as of one process
    torch.testing.assert_close(whole["audio.bn0.running_var"], sum(variances) / 2)
