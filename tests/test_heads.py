"""Heads against LAION-CLAP's, which heads a loss brings along, that they train and are resumed, what is frozen."""

import shutil
from dataclasses import replace

import pairs
import pytest
import torch
from safetensors.torch import load_file

from clap.config import LOSSES, ConfigError, for_loss
from clap.heads import freeze, norms, projection, train_mode, transform
from clap.loss import compute
from clap.model import CLAP
from clap.text import scratch
from clap.train import train

SHORT = replace(pairs.SMALL, epochs=2, save_every=2, eval_every=100)
CAPTIONS = ["The sound of a low tone.", "The sound of a high tone."]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pairs.write(tmp_path_factory.mktemp("data"), pairs.tones(9))


def weights(run):
    return load_file(run / "last" / "model.safetensors")


@pytest.mark.parametrize(("name", "activation"), [("relu", torch.relu), ("gelu", torch.nn.functional.gelu)])
def test_a_projection_is_two_layers_and_its_activation(name, activation):
    head, x = projection(6, 4, name), torch.randn(3, 6)
    assert torch.equal(head(x), head[2](activation(head[0](x))))


def test_a_transform_is_laions_mlp_with_the_keys_of_its_checkpoints():
    head, x = transform(4).eval(), torch.randn(3, 4)
    assert set(head.state_dict()) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert torch.equal(head(x), head[3](torch.relu(head[0](x)))) and head[2].p == 0.1


@pytest.mark.parametrize(
    ("loss", "heads", "moves"),
    [
        ("softmax", set(), {"log_scale_a", "log_scale_t"}),
        ("mlp", {"audio_transform", "text_transform"}, {"log_scale_a", "log_scale_t"}),
        ("sigmoid", {"logit_bias"}, {"log_scale_a", "logit_bias"}),
        ("triplet-max", set(), set()),
        ("triplet-weighted", set(), set()),
        ("nt-xent", set(), set()),
    ],
)
def test_a_loss_brings_its_heads_trains_them_and_is_resumed(loss, heads, moves, data, tmp_path):
    config = replace(SHORT, loss=loss)
    train(config, data, tmp_path / "run")
    trained = weights(tmp_path / "run")
    optional = {"audio_transform", "text_transform", "logit_bias"}
    assert optional & {name.split(".")[0] for name in trained} == heads
    assert CLAP.from_pretrained(tmp_path / "run").config == for_loss(config)
    start = CLAP.create(for_loss(config), CAPTIONS).state_dict()
    scales = {"log_scale_a", "log_scale_t", "logit_bias"} & set(trained)
    assert {name for name in scales if trained[name] != start[name]} == moves

    half = shutil.copytree(tmp_path / "run", tmp_path / "half", symlinks=True)
    shutil.rmtree(half / "checkpoints" / "step-00000004")
    train(config, data, half)
    again = weights(half)
    assert all(torch.equal(trained[name], again[name]) for name in trained)


@pytest.mark.parametrize(("loss", "scales"), [*((loss, "two") for loss in LOSSES), ("softmax", "one")])
def test_what_is_trained_has_a_gradient_and_nothing_else(loss, scales):
    config = replace(SHORT, loss=loss, scales=scales, model=replace(SHORT.model, transforms=True, logit_bias=True))
    model = CLAP.create(for_loss(config), CAPTIONS).train()
    freeze(model, config)
    tokens = model.tokenizer(CAPTIONS * 2, padding=True, return_tensors="pt")
    out = model(torch.randn(4, config.model.n_samples), tokens["input_ids"], tokens["attention_mask"])
    compute(config, out, torch.arange(4), torch.arange(4)).backward()
    assert all((p.grad is not None) == p.requires_grad for _, p in model.named_parameters())


def test_with_one_scale_as_laion_the_other_stays(data, tmp_path):
    train(replace(SHORT, scales="one"), data, tmp_path)
    trained = weights(tmp_path)
    assert trained["log_scale_t"].exp().item() == pytest.approx(1 / 0.07) != trained["log_scale_a"].exp().item()


def test_sigmoid_starts_where_siglip_does():
    model = CLAP.create(for_loss(replace(SHORT, loss="sigmoid")), CAPTIONS)
    assert model.log_scale_a.exp().item() == pytest.approx(10) and model.logit_bias.item() == -10


def test_a_frozen_text_tower_stays_as_it_was_and_the_run_is_resumed_exactly(data, tmp_path):
    encoder, tokenizer = scratch(CAPTIONS, vocab=100, width=32, layers=1, heads=2, context=77)
    encoder.save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    model = replace(SHORT.model, text=str(tmp_path / "text"))
    config = replace(SHORT, model=model, freeze=("text",), epochs=3)
    train(config, data, tmp_path / "run")
    first = load_file(tmp_path / "run" / "checkpoints" / "step-00000004" / "model.safetensors")
    trained = weights(tmp_path / "run")
    still = {name for name in trained if torch.equal(first[name], trained[name])}
    assert {name for name in trained if name.startswith("text.")} <= still
    assert "text_projection.0.weight" not in still

    half = shutil.copytree(tmp_path / "run", tmp_path / "half", symlinks=True)
    shutil.rmtree(half / "checkpoints" / "step-00000006")
    train(config, data, half)
    assert all(torch.equal(trained[name], each) for name, each in weights(half).items())


FROZEN = [("audio",), ("audio.blocks.conv_block1", "text.encoder.embeddings"), ("text_projection", "log_scale_a")]


def model(**settings):
    """A model as training has it under these settings, and the settings."""
    config = replace(SHORT, **settings)
    made = CLAP.create(for_loss(config), CAPTIONS)
    freeze(made, config)
    return made, config


def step(made, config):
    """One step as in training."""
    train_mode(made, config)
    tokens = made.tokenizer(CAPTIONS * 2, padding=True, return_tensors="pt")
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], 0.01)
    out = made(torch.randn(4, config.model.n_samples), tokens["input_ids"], tokens["attention_mask"])
    compute(config, out, torch.arange(4), torch.arange(4)).backward()
    optimizer.step()


@pytest.mark.parametrize("prefixes", FROZEN, ids=" ".join)
def test_what_is_frozen_stays_with_its_statistics_and_without_dropout_and_the_rest_trains(prefixes):
    made, config = model(freeze=prefixes)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    step(made, config)
    moved = {name for name, tensor in made.state_dict().items() if not torch.equal(tensor, before[name])}
    under = {name for name in before if any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)}
    assert not moved & under
    assert {name for name, _ in made.named_parameters()} - moved <= under | {"logit_bias", "text.encoder.pooler"}
    modes = {name: module.training for name, module in made.named_modules() if name}
    assert not any(modes[name] for name in modes if any(f"{name}.".startswith(f"{each}.") for each in prefixes))
    assert modes["audio_projection"]


def test_a_prefix_is_whole_names_so_that_text_is_not_its_projection():
    made, _ = model(freeze=("text",), word_dropout=0.2)
    assert made.text_projection[0].weight.requires_grad and made.text.frozen and made.text.cache is None


def test_frozen_norms_keep_statistics_and_weights_while_all_else_trains():
    made, config = model(freeze_norm=True)
    before = [{k: v.clone() for k, v in norm.state_dict().items()} for norm in norms(made)]
    step(made, config)
    after = [norm.state_dict() for norm in norms(made)]
    assert before and all(torch.equal(a[k], b[k]) for a, b in zip(before, after, strict=True) for k in a)
    assert made.audio.training and made.audio.blocks.conv_block1.conv1.weight.requires_grad

    usual, config = model()
    mean = usual.audio.bn0.running_mean.clone()
    step(usual, config)
    assert not torch.equal(mean, usual.audio.bn0.running_mean)


def test_an_unknown_part_is_named_with_those_that_there_are():
    with pytest.raises(ConfigError, match=r"freeze 'audio\.layers': no part .* audio\.blocks, .*text_projection\.0"):
        model(freeze=("audio.layers",))


def test_nothing_left_to_train_is_refused():
    with pytest.raises(ConfigError, match="leaves nothing to train: leave a part out"):
        model(loss="triplet-max", freeze=("audio", "text", "audio_projection", "text_projection"))
