"""HTSAT gives the original's embeddings, in any size that fits together."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clap.config import AUDIO_MODELS, ModelConfig
from clap.features import LogMel, Mels, SizeError, quantise
from clap.htsat import HTSAT, WindowAttention

GOLDEN = Path(__file__).resolve().parents[1].parent / "shared" / "golden"


def load_golden(name):
    from safetensors.torch import load_file

    if not (GOLDEN / name).exists():
        pytest.skip(f"no golden values of the original encoders (shared/golden/{name})")
    return load_file(GOLDEN / name)


def golden_mel():
    """The log-mel (2, 1, 1001, 64) of the golden inputs: a noisy sweep, and noise with each value held."""
    t = np.arange(480000) / 48000
    sweep = 0.3 * np.sin(2 * np.pi * (200 + 40 * t) * t)
    sweep = sweep + 0.05 * np.random.default_rng(1234).standard_normal(480000)
    held = np.repeat(0.1 * np.random.default_rng(0).standard_normal(96000), 5)
    waveform = torch.from_numpy(np.stack([sweep, held]).clip(-1, 1).astype(np.float32))
    return LogMel()(quantise(waveform))


def golden_mels(*longer):
    """The golden inputs of fused encoders, two clips of noise in dB of which some are longer."""
    mel = torch.randn(2, 4, 1001, 64, generator=torch.Generator().manual_seed(3)) * 10 - 40
    flags = torch.tensor(longer)
    return Mels(mel[:, :1], mel[flags][:, 1:], flags)


def fill(model, rename=lambda name: name):
    """Fill weights as the golden encoders were: each from a seed made of its name in the original."""
    for ours, value in model.state_dict().items():
        name = rename(ours)
        drawn = torch.randn(value.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "num_batches_tracked":
            continue
        if leaf == "running_var":
            value.copy_(1 + 0.5 * drawn.abs())
        elif leaf == "running_mean":
            value.copy_(0.1 * drawn)
        elif value.ndim == 1:
            value.copy_(1 + 0.1 * drawn if leaf == "weight" else 0.05 * drawn)
        elif leaf == "relative_position_bias_table":
            value.copy_(0.5 * drawn)
        else:
            value.copy_(drawn / np.sqrt(np.prod(value.shape[1:])))
    return model.eval()


def tiny(**sizes):
    """A real HTSAT of 40,000 weights, on a grid of 16 tokens a side: shifted windows, then a lone one."""
    torch.manual_seed(0)
    return HTSAT(**{"spec_size": 64, "width": 16, "depths": (2, 2), "heads": (2, 4), **sizes})


@torch.no_grad()
def test_embedding_of_given_weights_equals_the_original():
    golden = load_golden("d_htsat_small.safetensors")
    model = HTSAT(width=8, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8)).eval()
    model.load_state_dict({name: golden[f"sd.None.{name}"] for name in model.state_dict()})
    original = golden["None.longer_none.embedding"]
    torch.testing.assert_close(model(golden_mel()), original, rtol=0, atol=5e-6)


@torch.no_grad()
def test_embedding_of_the_full_htsat_tiny_equals_the_original():
    original = load_golden("d_encoders_full_filled.safetensors")["htsat_tiny.embedding"]
    torch.testing.assert_close(fill(HTSAT())(golden_mel()), original, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["daf_1d", "aff_1d", "iaff_1d", "daf_2d", "aff_2d", "iaff_2d"])
def test_embeddings_of_longer_clips_equal_the_original(fusion):
    golden = load_golden("d_htsat_small.safetensors")
    model = fill(HTSAT(width=8, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), fusion=fusion))
    for name, longer in {"none": (False, False), "one": (False, True), "all": (True, True)}.items():
        original = golden.get(f"{fusion}.longer_{name}.embedding")  # with 1d and none the original crashes
        if original is not None:
            torch.testing.assert_close(model(golden_mels(*longer)), original, rtol=0, atol=5e-6)


@torch.no_grad()
def test_embedding_of_a_channel_map_equals_the_original():
    # The original sees four channels of every clip, also of those that are not longer.
    original = load_golden("d_htsat_small.safetensors")["channel_map.longer_none.embedding"]
    model = fill(HTSAT(width=8, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), fusion="channel_map"))
    torch.testing.assert_close(model(golden_mels(True, True)), original, rtol=0, atol=5e-6)


@torch.no_grad()
def test_embedding_of_the_full_fused_htsat_tiny_equals_the_original():
    original = load_golden("d_encoders_full_filled.safetensors")["htsat_tiny_aff2d.embedding"]
    model = fill(HTSAT(fusion="aff_2d"))
    torch.testing.assert_close(model(golden_mels(False, True)), original, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "dim", "millions"), [("HTSAT-tiny", 768, 31.3), ("HTSAT-base", 1024, 72.4), ("HTSAT-large", 2048, 278.7)]
)
def test_tiny_base_and_large_have_the_originals_weights_but_for_class_heads_and_tables(name, dim, millions):
    config = ModelConfig(**AUDIO_MODELS[name])
    with torch.device("meta"):
        model = HTSAT(width=config.htsat_width, depths=config.htsat_depths, heads=config.htsat_heads)
    left_out = (6 * dim + 1) * 527 + (527 + 1) * 527 + 513 * (2 * 1024 + 64)  # two heads, STFT, mel bands
    assert model.dim == dim
    assert (sum(p.numel() for p in model.parameters()) + left_out) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("shift", [0, 4])
def test_fused_attention_and_its_gradients_equal_the_plain_formula(shift):
    torch.manual_seed(0)
    attention = WindowAttention(32, heads=4, grid=16, window=8, shift=shift).double()
    table = attention.relative_position_bias_table
    qkv = torch.randn(12, 64, 96, dtype=torch.double, requires_grad=True)  # 3 clips of 4 windows
    q, k, v = qkv.view(12, 64, 3, 4, 8).permute(2, 0, 3, 1, 4)
    relative = table[attention.relative_position_index].permute(2, 0, 1)
    masks = attention.shift_mask.double().repeat(12 // len(attention.shift_mask), 1, 1, 1)
    plain = ((q @ k.mT / 8**0.5 + relative + masks).softmax(-1) @ v).transpose(1, 2).reshape(12, 64, 32)
    fused = attention.attend(qkv)
    torch.testing.assert_close(fused, plain)
    gradients = [torch.autograd.grad(out.square().sum(), (qkv, table)) for out in (fused, plain)]
    torch.testing.assert_close(*gradients)


def test_shifted_windows_do_not_look_round_the_edge():
    torch.manual_seed(0)
    attention = WindowAttention(8, heads=2, grid=16, window=8, shift=4)
    x = torch.randn(1, 16, 16, 8, requires_grad=True)
    attention(x)[0, 0, 0].sum().backward()
    seen = x.grad.abs().sum(-1)[0] > 1e-9
    assert bool(seen[:4, :4].all()) and int(seen.sum()) == 16


def test_gradient_reaches_every_parameter():
    model = tiny(drop_path=0.0)
    model(torch.randn(4, 1, 501, 64)).square().sum().backward()
    unreached = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


@pytest.mark.parametrize("frames", [1, 51, 256, 501, 1001, 3001])
@pytest.mark.parametrize("sizes", [{}, {"n_mels": 32}, {"spec_size": 128, "depths": (1, 1, 1), "heads": (2, 4, 8)}])
def test_any_number_of_frames_fits(sizes, frames):
    model = tiny(**sizes).eval()
    embedding = model(torch.randn(2, 1, frames, model.n_mels))
    assert embedding.shape == (2, model.dim) and bool(embedding.isfinite().all())


def test_pieces_of_time_are_stacked_on_frequency():
    model = tiny(n_mels=16, spec_size=64, patch=2)
    mel = torch.arange(256.0).view(1, 1, 256, 1) + torch.arange(16) / 16
    image = model.fold(mel)[0, 0]
    assert image[0, 0] == 0 and image[15, 0] == 15 / 16 and image[16, 0] == 64 and image[63, 63] == 255 + 15 / 16


@torch.no_grad()
def test_a_clip_is_embedded_alike_alone_and_in_a_batch():
    model, mel = tiny().eval(), torch.randn(3, 1, 501, 64)
    torch.testing.assert_close(model(mel[:1]), model(mel)[:1])


@torch.no_grad()
def test_bfloat16_stays_close_to_float32():
    model, mel = tiny().eval(), 10 * torch.randn(4, 1, 501, 64) - 40
    with torch.autocast("cpu", torch.bfloat16):
        half = model(mel)
    assert float(F.cosine_similarity(half.float(), model(mel)).min()) > 0.999


@torch.no_grad()
def test_training_masks_other_stripes_at_each_step():
    model, mel = tiny(drop_path=0.0).train(), torch.randn(3, 1, 501, 64)
    assert not torch.allclose(model(mel), model(mel))
    model.augment.eval()
    torch.testing.assert_close(model(mel), model(mel))


def test_drop_path_skips_whole_clips_in_training_and_keeps_their_mean():
    drop = tiny(drop_path=0.5).layers[1].blocks[1].drop_path
    kept = drop(torch.ones(4000, 2, 2, 1))
    assert set(kept.flatten().tolist()) == {0.0, 2.0} and float(kept.var(dim=(1, 2, 3)).max()) == 0
    assert float(kept.mean()) == pytest.approx(1, abs=0.1)
    assert bool((drop.eval()(torch.ones(9, 2, 2, 1)) == 1).all())


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        ({"n_mels": 48}, "spec_size 64 is no multiple of n_mels 48"),
        ({"patch": 64}, "cannot be halved 1 times"),
        ({"window": 5}, "a grid of 16, which windows of 5"),
        ({"heads": (2, 3)}, "stage 1 is 32 wide, which 3 heads"),
        ({"heads": (2,)}, "2 depths but 1 heads"),
    ],
)
def test_numbers_that_do_not_fit_together_are_named(sizes, complaint):
    with pytest.raises(SizeError, match=complaint):
        tiny(**sizes)
