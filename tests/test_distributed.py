"""Several processes, started by torchrun, train as one does on the same batches."""

import io
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
from conftest import ROOT, cli
from safetensors.torch import load_file

from clap import checkpoint
from clap.config import ModelConfig, TrainConfig
from clap.log import read
from clap.text import scratch

# Nothing random but the order of clips and their crops, and batch norms that see no statistics of a share.
MODEL = replace(pairs.SMALL.model, pann_head_dropout=0.0, time_mask=1, freq_mask=1, fusion="aff_1d")
TEXTS = [f"The sound of a {label.replace('_', ' ')}." for label in pairs.TONES]
CONFIG = replace(
    pairs.SMALL, model=MODEL, freeze_norm=True, loss="sigmoid", micro_batch=1, epochs=3, log_every=2, save_every=2
)


def arguments(data, run, *more) -> list[str]:
    """The command line of CONFIG, with a text tower without dropout."""
    line = ["train", "--data", data, "--out", run, "--preset", "tiny", *more]
    for kind, config in ((TrainConfig, CONFIG), (ModelConfig, replace(MODEL, text=str(Path(data) / "text")))):
        for each in fields(kind):
            value = getattr(config, each.name)
            if each.metadata and value not in ((), ""):
                flag = "--" + each.name.replace("_", "-")
                if isinstance(value, bool):
                    line += [flag if value else flag.replace("--", "--no-", 1)]
                else:
                    line += [flag, ",".join(map(str, value)) if isinstance(value, tuple) else value]
    return [str(each) for each in line]


def two(data, run) -> subprocess.Popen:
    """The same command under torchrun, in two processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    return subprocess.Popen([*torchrun, str(ROOT / "cli.py"), *arguments(data, run)], stderr=subprocess.PIPE, text=True)


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
    process = two(data, tmp_path / "run")
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 0, said
    ours, theirs = weights(tmp_path / "run"), weights(alone)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=2e-5, msg=name)
    both = [read(run / "metrics.jsonl") for run in (alone, tmp_path / "run")]
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in both]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5) and len(losses[0]) == 8


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
    for name, value in weights(alone).items():
        torch.testing.assert_close(weights(run)[name], value, rtol=1e-4, atol=2e-5, msg=name)
