"""PANN gives the original's embeddings for Cnn6, Cnn10 and Cnn14, and runs in any size."""

import pytest
import torch
import torch.nn.functional as F
from test_htsat import fill, golden_mel, golden_mels, load_golden

from clap.config import AUDIO_MODELS, ModelConfig
from clap.features import SizeError
from clap.model import audio_tower
from clap.pann import PANN


def small(**sizes):
    torch.manual_seed(0)
    return PANN(**{"widths": (8, 16, 32), **sizes})


@torch.no_grad()
@pytest.mark.parametrize("name", ["PANN-6", "PANN-10", pytest.param("PANN-14", marks=pytest.mark.slow)])
def test_embedding_equals_the_original(name):
    original = load_golden("d_encoders_full_filled.safetensors")[name.replace("PANN-", "Cnn") + ".embedding"]
    model = fill(audio_tower(ModelConfig(**AUDIO_MODELS[name])), rename=lambda ours: ours.removeprefix("blocks."))
    torch.testing.assert_close(model(golden_mel()), original, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["aff_1d", "aff_2d"])
def test_embeddings_of_longer_clips_equal_the_original(fusion):
    original = load_golden("d_encoders_full_filled.safetensors")[f"Cnn14_{fusion.replace('_', '')}.embedding"]
    model = fill(PANN(fusion=fusion), rename=lambda ours: ours.removeprefix("blocks."))
    torch.testing.assert_close(model(golden_mels(False, True)), original, rtol=0, atol=1e-5)


def test_gradient_reaches_every_parameter():
    model = small()
    model(torch.randn(8, 1, 501, 64)).sum().backward()
    unreached = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


@torch.no_grad()
@pytest.mark.parametrize("frames", [51, 501, 3001])
@pytest.mark.parametrize("blocks", [1, 4, 5, 6, 7])
def test_half_a_second_to_thirty_fit_any_number_of_blocks(blocks, frames):
    model = small(widths=(4,) * blocks).eval()
    assert model(torch.randn(2, 1, frames, 64)).shape == (2, model.dim)


def test_a_clip_too_short_to_pool_is_refused_with_its_length():
    with pytest.raises(SizeError, match="7 frames is too short"):
        small()(torch.randn(2, 1, 7, 64))
    assert small()(torch.randn(2, 1, 8, 64)).shape == (2, 32)


def test_too_few_mels_to_pool_are_refused():
    with pytest.raises(SizeError, match="16 mels cannot be halved 5 times"):
        PANN(n_mels=16)


@torch.no_grad()
def test_a_clip_is_embedded_alike_alone_and_in_a_batch():
    model, mel = small().eval(), torch.randn(3, 1, 501, 64)
    torch.testing.assert_close(model(mel[:1]), model(mel)[:1])


@torch.no_grad()
def test_training_masks_other_stripes_at_each_step():
    model, mel = small(dropout=0.0, head_dropout=0.0).train(), torch.randn(3, 1, 501, 64)
    assert not torch.allclose(model(mel), model(mel))
    model.augment.eval()
    torch.testing.assert_close(model(mel), model(mel))


@torch.no_grad()
def test_bfloat16_stays_close_to_float32():
    model, mel = small().eval(), 10 * torch.randn(4, 1, 501, 64) - 40
    with torch.autocast("cpu", torch.bfloat16):
        half = model(mel)
    assert float(F.cosine_similarity(half.float(), model(mel)).min()) > 0.999
