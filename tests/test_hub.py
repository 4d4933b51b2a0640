"""Datasets and models by Hub id: downloaded from a server that speaks the Hub's protocol."""

import os
import subprocess
import sys
from dataclasses import replace

import pairs
from conftest import ROOT
from hub import serve

from clap.train import train

SCRIPT = """
import sys
from clap import CLAP
from clap.evaluate import zero_shot
print(zero_shot(CLAP.from_pretrained(sys.argv[1]), sys.argv[2], split="test")["n"])
"""


def test_a_model_and_a_dataset_come_from_the_hub_by_their_ids(tmp_path):
    pairs.write(tmp_path / "data", pairs.tones(9), split="test")
    pairs.write(tmp_path / "data", pairs.tones(24))
    train(replace(pairs.SMALL, epochs=1), str(tmp_path / "data"), tmp_path / "run")
    repositories = {"datasets/user/sounds": tmp_path / "data", "user/model": (tmp_path / "run/best").resolve()}
    with serve(repositories) as endpoint:
        home = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
        line = [sys.executable, "-c", SCRIPT, "user/model", "user/sounds"]
        done = subprocess.run(line, env=os.environ | home, capture_output=True, text=True)
    assert done.stdout.strip() == "9", done.stderr
