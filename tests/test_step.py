"""A step: the gradient of the whole batch however it is cut, recomputed or shared between processes."""

from dataclasses import replace

import numpy as np
import pairs
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clap.config import ModelConfig, TrainConfig, for_loss
from clap.data import open_split
from clap.distributed import World
from clap.heads import freeze
from clap.loader import Batch, Loader
from clap.loss import compute
from clap.model import CLAP
from clap.step import blocks, embed, gradients, make_optimizer, parameter_groups, prepare, reseed, update

ALONE = World(torch.device("cpu"))
SEED = (0, 7, 0)
CONFIG = replace(pairs.SMALL, batch_size=8, micro_batch=3)
HTSAT = replace(
    CONFIG.model, audio="htsat", htsat_spec=64, htsat_width=8, htsat_depths=(2, 2), htsat_heads=(1, 2), htsat_window=4
)


@pytest.fixture(scope="module")
def batch(tmp_path_factory) -> Batch:
    data = open_split(pairs.write(tmp_path_factory.mktemp("data"), pairs.tones(8)), "train", (), 48000)
    model = CLAP.create(CONFIG.model, data.all_captions())
    return next(Loader(data, model.tokenizer, CONFIG).batches())


def model_of(config: TrainConfig) -> CLAP:
    torch.manual_seed(0)
    captions = [f"The sound of a {name.replace('_', ' ')}." for name in pairs.TONES]
    model = CLAP.create(for_loss(config), captions)
    freeze(model, config)
    return model.train()


def gradient(model: CLAP) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def without_chance(model: ModelConfig) -> ModelConfig:
    """No dropout and no stripes."""
    return replace(model, pann_head_dropout=0.0, htsat_drop_path=0.0, time_mask=1, freq_mask=1)


def still(model: CLAP) -> CLAP:
    """Batch norms as in evaluation, and no dropout in the text tower or the loss's layers."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("loss", ["softmax", "mlp", "sigmoid", "triplet-weighted"])
@pytest.mark.parametrize("audio", [CONFIG.model, HTSAT], ids=["pann", "htsat"])
def test_micro_batches_give_the_gradient_of_the_whole_batch(batch, loss, audio):
    config = replace(CONFIG, loss=loss, model=without_chance(audio))
    whole, cut = (still(model_of(config)) for _ in range(2))
    expected = gradients(whole, batch, replace(config, micro_batch=0), SEED)
    assert gradients(cut, batch, config, SEED).item() == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(gradient(cut), gradient(whole), rtol=1e-4, atol=1e-5)
    assert gradient(whole).abs().max() > 1e-3


def test_both_passes_draw_the_same_dropout_and_stripes(batch):
    config = replace(CONFIG, model=replace(HTSAT, htsat_drop_path=0.5))
    cut, graph = model_of(config), model_of(config)
    gradients(cut, batch, config, SEED)
    parts = [embed(graph, part, config, (*SEED, i)) for i, part in enumerate(batch.split(3))]
    sides = [torch.cat(side) for side in zip(*parts, strict=True)]
    compute(config, graph.heads(*sides), batch.caption_ids, batch.clip_ids).backward()
    torch.testing.assert_close(gradient(cut), gradient(graph), rtol=1e-4, atol=1e-5)


def test_running_statistics_move_once_for_each_micro_batch(batch):
    config = replace(CONFIG, model=without_chance(CONFIG.model))
    cut, once = model_of(config), model_of(config)
    gradients(cut, batch, config, SEED)
    for part in batch.split(3):
        embed(once, part, config, SEED)
    assert torch.equal(cut.audio.bn0.running_mean, once.audio.bn0.running_mean)
    assert cut.audio.bn0.momentum == 0.1 and cut.audio.bn0.num_batches_tracked == 3


@pytest.mark.parametrize("audio", [CONFIG.model, HTSAT], ids=["pann", "htsat"])
def test_recomputed_activations_give_the_same_gradient_and_statistics(batch, audio):
    config = replace(CONFIG, model=audio, micro_batch=0)
    kept, again = model_of(config), model_of(config)
    assert len(list(blocks(again.audio))) == 4
    prepare(again, replace(config, recompute=True), ALONE)
    for model in (kept, again):
        gradients(model, batch, config, SEED)
    torch.testing.assert_close(gradient(again), gradient(kept), rtol=1e-5, atol=1e-7)
    for name, value in kept.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_frozen_tower_takes_part_in_micro_batches(batch):
    config = replace(CONFIG, freeze=("audio",))
    model = model_of(config)
    before = {name: p.clone() for name, p in model.named_parameters()}
    update(model, make_optimizer(model, config), batch, 0, 1e-2, config, ALONE)
    moved = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"text", "audio_projection", "text_projection", "log_scale_a", "log_scale_t"}


def test_only_matrices_decay_and_each_tower_has_its_rate():
    config = replace(CONFIG, weight_decay=0.1, lr_audio=0.5, lr_text=2.0)
    model = model_of(config)
    groups = parameter_groups(model, config)
    rate = {id(p): (group["factor"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(rate) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert rate[id(model.audio.fc1.weight)] == (0.5, 0.1) and rate[id(model.audio.fc1.bias)] == (0.5, 0.0)
    assert rate[id(model.text.encoder.embeddings.word_embeddings.weight)] == (2.0, 0.1)
    assert rate[id(model.audio_projection[0].weight)] == (1.0, 0.1) and rate[id(model.log_scale_a)] == (1.0, 0.0)


def test_the_same_numbers_give_the_same_random_numbers_and_others_do_not():
    drawn = []
    for numbers in ((0, 1), (0, 1), (0, 2), (1, 0)):
        reseed(numbers)
        drawn.append(torch.rand(4).tolist())
    assert drawn[0] == drawn[1] and len({tuple(each) for each in drawn}) == 3


@pytest.mark.slow
def test_compiled_towers_give_the_same_gradient(batch):
    one_block = replace(HTSAT, htsat_depths=(1,), htsat_heads=(1,))  # compiling takes long
    config = replace(CONFIG, model=without_chance(one_block), micro_batch=0)
    plain, compiled = (still(model_of(config)) for _ in range(2))
    prepare(compiled, replace(config, compile=True), ALONE)
    for model in (plain, compiled):
        gradients(model, batch, config, SEED)
    torch.testing.assert_close(gradient(compiled), gradient(plain), rtol=1e-3, atol=1e-5)
    assert np.isfinite(gradient(plain)).all()


@pytest.mark.parametrize("audio", [CONFIG.model, HTSAT], ids=["pann", "htsat"])
@pytest.mark.parametrize("fusion", ["none", "aff_1d", "aff_2d"])
def test_on_several_gpus_batch_norms_are_synchronised_but_those_that_only_longer_clips_reach(audio, fusion):
    model = model_of(replace(CONFIG, model=replace(audio, fusion=fusion)))
    prepare(model, CONFIG, World(torch.device("cuda"), size=2))
    assert isinstance(model.audio.bn0, nn.SyncBatchNorm)
    for name, norm in model.audio.named_modules():
        if isinstance(norm, _BatchNorm):
            apart = "fusion_model." in name or "mel_conv" in name
            assert isinstance(norm, nn.SyncBatchNorm) is not apart, name
