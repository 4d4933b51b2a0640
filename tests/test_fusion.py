"""Fusion modules give the original's values and gradients; clips that are not longer never feel them."""

from dataclasses import replace

import numpy as np
import pairs
import pytest
import torch
from test_htsat import load_golden, tiny

from clap.config import FUSIONS, ConfigError, check
from clap.features import Mels, SpecAugment, alone
from clap.fusion import AFF, fusion_model, normalise
from clap.model import CLAP
from clap.pann import PANN

FUSED = FUSIONS[1:]
GOLDEN = "c_fusion_modules.safetensors"


def tower(audio, fusion):
    torch.manual_seed(0)
    return tiny(fusion=fusion, drop_path=0.0) if audio == "htsat" else PANN(widths=(8, 16), fusion=fusion)


def some_mels(*longer, frames=201):
    """Noise in dB for clips of which some are longer, with parts unlike their wholes."""
    generator, flags = torch.Generator().manual_seed(1), torch.tensor(longer)
    mel = torch.randn(len(longer), 4, frames, 64, generator=generator) * 10 - 40
    return Mels(mel[:, :1], mel[flags][:, 1:], flags)


def golden_module(name, dims):
    """A module with the golden weights, and the golden tensors of a batch size."""
    golden, prefix = load_golden(GOLDEN), f"{name}.{dims}D."
    model = fusion_model(f"{name.lower()}_{dims}d", 8)
    model.load_state_dict({key: golden[f"{prefix}sd.{key}"] for key in model.state_dict()})
    return model, lambda batch, key: golden[f"{prefix}B{batch}.{key}"]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("name", ["DAF", "AFF", "iAFF"])
def test_modules_equal_the_original_in_evaluation_training_and_gradients(name, dims, batch):
    model, golden = golden_module(name, dims)
    x, residual = (golden(batch, key).requires_grad_() for key in ("x", "residual"))
    out = model.eval()(x, residual)
    gradients = torch.autograd.grad(out.square().sum(), (x, residual))
    for ours, key in zip((out, *gradients), ("out_eval", "gx_eval", "gr_eval"), strict=True):
        torch.testing.assert_close(ours, golden(batch, key), rtol=1e-5, atol=5e-6)
    torch.testing.assert_close(model.train()(x, residual), golden(batch, "out_train"), rtol=1e-5, atol=5e-6)


def test_a_lone_longer_clip_leaves_the_running_statistics_of_its_pooled_value_alone():
    model = AFF(8, 2).train()
    x = torch.randn(1, 8, 5, 6, requires_grad=True)
    model(x, torch.randn(1, 8, 5, 6)).sum().backward()
    assert torch.equal(model.global_att[2].running_var, torch.ones(2))
    assert not torch.equal(model.local_att[1].running_var, torch.ones(2)) and bool(x.grad.isfinite().all())


@pytest.mark.parametrize("fusion", FUSED)
@pytest.mark.parametrize("audio", ["htsat", "pann"])
def test_a_gradient_reaches_every_parameter_from_a_batch_with_longer_clips(audio, fusion):
    model = tower(audio, fusion).train()
    model(some_mels(True, False, True, False)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSED)
@pytest.mark.parametrize("audio", ["htsat", "pann"])
def test_a_clip_is_embedded_alike_whatever_its_neighbours(audio, fusion):
    model, mels = tower(audio, fusion).eval(), some_mels(True, False, True)
    together = model(mels)
    alone_long = model(Mels(mels.whole[2:], mels.parts[1:], mels.longer[2:]))
    torch.testing.assert_close(together[2:], alone_long, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[1:2], model(alone(mels.whole[1:2])), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSED)
@pytest.mark.parametrize("audio", ["htsat", "pann"])
def test_parts_change_the_embedding_of_longer_clips_only(audio, fusion):
    model, mels = tower(audio, fusion).eval(), some_mels(True, False)
    changed = model(mels._replace(parts=mels.parts + 5)) - model(mels)
    assert float(changed[0].abs().max()) > 1e-4 and not changed[1].any()


@pytest.mark.parametrize("fusion", FUSED)
@pytest.mark.parametrize("audio", ["htsat", "pann"])
@pytest.mark.parametrize("longer", [(False, False), (False, True)])
def test_training_needs_neither_a_longer_clip_nor_two_of_them(audio, fusion, longer):
    model, mels = tower(audio, fusion).train(), some_mels(*longer)
    assert bool(model(mels).isfinite().all()) and mels.longer.tolist() == list(longer)


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["aff_1d", "iaff_2d", "channel_map"])
@pytest.mark.parametrize("audio", ["htsat", "pann"])
def test_bfloat16_stays_close_to_float32(audio, fusion):
    model, mels = tower(audio, fusion).eval(), some_mels(True, False, True)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(mels)
    assert float(torch.cosine_similarity(half.float(), model(mels)).min()) > 0.999


def test_in_training_a_short_clip_weighs_as_much_as_a_longer_one_in_the_statistics_of_bands():
    mels = Mels(torch.tensor([1.0, 5.0]).view(2, 1, 1, 1), torch.full((1, 3, 1, 1), 5.0), torch.tensor([False, True]))
    out = normalise(torch.nn.BatchNorm2d(1), mels)
    torch.testing.assert_close(out.whole.flatten(), torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(out.parts.flatten(), torch.ones(3))


def test_spec_augment_masks_the_same_stripes_in_a_clip_and_its_parts():
    ones = Mels(torch.ones(2, 1, 201, 64), torch.ones(1, 3, 201, 64), torch.tensor([False, True]))
    masked = SpecAugment().train()(ones)
    assert torch.equal(masked.parts, masked.whole[1:].expand(1, 3, -1, -1)) and not masked.whole[1].all()


@pytest.fixture(scope="module", params=["htsat", "pann"])
def fused_clap(request):
    torch.manual_seed(0)
    sizes = {"htsat_spec": 64, "htsat_width": 8, "htsat_depths": (2, 2), "htsat_heads": (2, 4), "htsat_window": 4}
    model = replace(pairs.SMALL.model, audio=request.param, fusion="aff_2d", mel_scale="htk", **sizes)
    return CLAP.create(model, ["A low tone.", "A buzz."]).eval()


@torch.no_grad()
def test_waveforms_of_any_length_are_embedded_alike_alone_and_in_a_batch(fused_clap):
    clips = [pairs.sound("buzz", seed, seconds) for seed, seconds in enumerate((0.1, 0.25, 0.26, 0.7, 1.3))]
    together = fused_clap.encode_waveforms(clips)
    singly = torch.cat([fused_clap.encode_waveforms([clip]) for clip in clips])
    torch.testing.assert_close(together, singly, rtol=0, atol=5e-6)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(5))


@torch.no_grad()
def test_chunks_of_a_clip_are_averaged(fused_clap):
    long, short = pairs.sound("buzz", 0, 0.75), pairs.sound("low_tone", 1, 0.2)
    parts = fused_clap.encode_waveforms([long[:12000], long[12000:24000], long[24000:]])
    embedded = fused_clap.encode_waveforms([long, short], "chunks")
    torch.testing.assert_close(embedded[0], torch.nn.functional.normalize(parts.mean(dim=0), dim=0))
    torch.testing.assert_close(embedded[1:], fused_clap.encode_waveforms([short]))


def test_a_fused_model_trains_on_waveforms_of_its_window(fused_clap):
    waveform = torch.from_numpy(np.stack([pairs.sound("buzz", i, 0.25) for i in range(3)])).float()
    fused_clap.train().encode_audio(waveform).sum().backward()
    reached = {name.split(".")[0] for name, p in fused_clap.audio.named_parameters() if p.grad is not None}
    fused_clap.zero_grad()
    fused_clap.eval()
    assert reached >= {"bn0"} and "fusion_model" not in reached


@pytest.mark.parametrize("settings", [{"fusion": "aff"}, {"filling": "loop"}, {"mel_scale": "bark"}])
def test_unknown_settings_are_refused_with_those_there_are(settings):
    with pytest.raises(ConfigError, match=r"use .* or "):
        check(replace(pairs.SMALL, model=replace(pairs.SMALL.model, **settings)))
