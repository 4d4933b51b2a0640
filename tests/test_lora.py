"""LoRA changes nothing at first, trains in the towers' stead, is saved as a plain model, and goes on exactly."""

import shutil
import sys
from dataclasses import replace

import pairs
import pytest
import torch
from safetensors.torch import load_file

from clap import lora
from clap.config import ClapError, ConfigError, ModelConfig
from clap.heads import freeze, train_mode
from clap.loss import compute
from clap.model import CLAP
from clap.train import train

CAPTIONS = ["The sound of a low tone.", "The sound of a high tone.", "A buzz."]
HTSAT = {"audio": "htsat", "htsat_spec": 64, "htsat_width": 16, "htsat_depths": (1, 1), "htsat_heads": (2, 2)}
T5 = {"text_arch": "t5", "text_tokens": "unigram", "text_vocab": 40}
SIZES = [pytest.param({}, id="pann-roberta"), pytest.param({**HTSAT, **T5}, id="htsat-t5")]
SOUNDS = torch.randn(3, 12000, generator=torch.Generator().manual_seed(0))


def model(sizes, rank=2, **settings):
    """A model with LoRA, its plain weights, its settings."""
    torch.manual_seed(0)
    config = replace(pairs.SMALL, lora=rank, model=replace(pairs.SMALL.model, **sizes), **settings)
    made = CLAP.create(config.model, CAPTIONS)
    plain = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    freeze(made, config)
    lora.apply(made, config.lora)
    return made, plain, config


def embed(made):
    return torch.from_numpy(made.embed_audio(list(SOUNDS.numpy()))), torch.from_numpy(made.embed_text(CAPTIONS))


def steps(made, config, n, lr=0.5):
    """n steps of SGD on three pairs; dropout draws the same numbers in every step."""
    tokens = made.tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr)
    for _ in range(n):
        torch.manual_seed(1)
        train_mode(made, config)
        out = made(SOUNDS, tokens["input_ids"], tokens["attention_mask"])
        optimizer.zero_grad()
        compute(config, out, torch.arange(3), torch.arange(3)).backward()
        optimizer.step()


@pytest.mark.parametrize("sizes", SIZES)
def test_at_first_nothing_is_changed(sizes, tmp_path):
    made, plain, config = model(sizes)
    before = CLAP.create(config.model, CAPTIONS)
    before.load_state_dict(plain)
    assert all(torch.equal(a, b) for a, b in zip(embed(made), embed(before), strict=True))


@pytest.mark.parametrize("sizes", SIZES)
def test_towers_stay_while_lora_and_projections_train(sizes):
    made, plain, config = model(sizes)
    steps(made, config, 3)
    now = made.state_dict()
    towers = {name for name in plain if name.startswith(("audio.", "text."))}
    inside = {name: name if name in now else name.replace(".weight", ".base_layer.weight") for name in towers}
    inside |= {name: name.replace(".bias", ".base_layer.bias") for name in towers if inside[name] not in now}
    assert all(torch.equal(plain[name], now[inside[name]]) for name in towers)  # batch norm's statistics too
    moved = [name for name, value in now.items() if name in plain and not torch.equal(value, plain[name])]
    assert {name.split(".")[0] for name in moved} >= {"audio_projection", "text_projection"}
    assert all(tensor.any() for name, tensor in now.items() if ".lora_B." in name)
    assert {name.split(".")[0] for name in now if ".lora_B." in name} == {"audio", "text"}


@pytest.mark.parametrize("sizes", SIZES)
def test_what_is_saved_is_a_plain_model_that_computes_the_same(sizes, tmp_path):
    made, plain, config = model(sizes)
    steps(made, config, 3)
    lora.merged(made).save_pretrained(tmp_path / "saved")
    assert lora.adapted(made)  # itself it stays as it was
    again = CLAP.from_pretrained(tmp_path / "saved")
    assert again.state_dict().keys() == plain.keys() and not lora.adapted(again)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(embed(made), embed(again), strict=True))
    assert not torch.allclose(embed(again)[0], embed(model(sizes)[0])[0], atol=1e-2)


def test_plain_weights_and_adapters_go_on_exactly(tmp_path):
    made, _, config = model({})
    steps(made, config, 2)
    lora.merged(made).save_pretrained(tmp_path / "saved")
    torch.save(lora.adapters(made), tmp_path / "adapters.pt")
    steps(made, config, 2)

    again = CLAP.from_pretrained(tmp_path / "saved")
    freeze(again, config)
    lora.apply(again, config.lora, torch.load(tmp_path / "adapters.pt", weights_only=True))
    steps(again, config, 2)
    then = again.state_dict()
    assert all(torch.equal(tensor, then[name]) for name, tensor in made.state_dict().items())


def test_a_run_with_lora_from_a_trained_model_is_resumed_exactly_and_reads_as_a_plain_one(tmp_path):
    data = pairs.write(tmp_path / "data", pairs.tones(9))
    first = replace(pairs.SMALL, epochs=1, eval_every=100)
    train(first, data, tmp_path / "first")
    config = replace(first, model=ModelConfig(), init=str(tmp_path / "first"), lora=2, epochs=2, save_every=2, lr=0.01)
    train(config, data, tmp_path / "run")
    half = shutil.copytree(tmp_path / "run", tmp_path / "half", symlinks=True)
    shutil.rmtree(half / "checkpoints" / "step-00000004")
    train(config, data, half)
    start, whole, again = (load_file(tmp_path / name / "last/model.safetensors") for name in ("first", "run", "half"))
    assert start.keys() == whole.keys() and all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    moved = {name for name in start if not torch.equal(start[name], whole[name])}
    assert {"audio.fc1.weight", "text.encoder.encoder.layer.0.intermediate.dense.weight"} <= moved
    assert not any(name in moved for name in start if "conv_block" in name or "embeddings" in name)


def test_a_frozen_part_gets_no_lora():
    made, _, _ = model(HTSAT, freeze=("text", "audio.layers.0"))
    names = set(lora.adapted(made))
    assert names and all(name.startswith("audio.layers.1.") for name in names)
    still = ("text.", "audio.layers.0.")
    assert not any(p.requires_grad for name, p in made.named_parameters() if name.startswith(still))


def test_lora_of_frozen_towers_is_refused():
    with pytest.raises(ConfigError, match="no linear layer of the towers is left"):
        model({}, freeze=("text", "audio"))


def test_without_peft_the_way_to_get_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ClapError, match=r'pip install "clapboard\[lora\]"'):
        model({})
