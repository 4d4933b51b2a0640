"""The loss against the original's values and gradients, and what multi-positive targets change."""

import json

import pytest
import torch

from clap.loss import contrastive, positives


@pytest.mark.parametrize("scale", ["1.0000", "14.2857", "100.0000"])
def test_values_and_gradients_equal_the_original(shared, scale):
    golden = json.loads((shared / "golden/e_cliploss.json").read_text())
    expected = golden[f"single.scale{scale}.mlp0"]
    audio, text = (torch.tensor(golden["inputs"][k], requires_grad=True) for k in ("audio", "text"))
    factor = torch.tensor(1 / 0.07 if scale == "14.2857" else float(scale), requires_grad=True)
    loss = contrastive(audio, text, factor, factor, torch.eye(8, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], abs=2e-6)
    torch.testing.assert_close(audio.grad, torch.tensor(expected["g_audio"]), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(text.grad, torch.tensor(expected["g_text"]), atol=2e-6, rtol=1e-5)
    assert factor.grad.item() == pytest.approx(expected["g_scale"], abs=2e-6)


def pair(n=6, d=4):
    torch.manual_seed(0)
    return [torch.nn.functional.normalize(torch.randn(n, d), dim=1) for _ in range(2)]


def test_each_direction_has_its_own_scale():
    audio, text = pair()
    scales = [torch.tensor(s, requires_grad=True) for s in (5.0, 9.0)]
    contrastive(audio, text, *scales, torch.eye(6, dtype=torch.bool)).backward()
    both = torch.nn.functional.cross_entropy
    y = torch.arange(6)
    expected = (both(5 * audio @ text.T, y) + both(9 * text @ audio.T, y)) / 2
    assert contrastive(audio, text, *scales, torch.eye(6, dtype=torch.bool)).item() == pytest.approx(expected.item())
    assert all(s.grad.abs() > 0 for s in scales)


def test_same_caption_or_same_clip_is_positive():
    captions, clips = torch.tensor([7, 7, 8, 9]), torch.tensor([1, 2, 3, 3])
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = expected[2, 3] = expected[3, 2] = True
    assert (positives(captions, clips) == expected).all()


def test_identical_captions_do_not_repel():
    audio, text = pair(2)
    text = text[:1].expand(2, -1).clone().requires_grad_()
    audio = audio[:1].expand(2, -1).clone()
    one = torch.tensor(10.0)
    contrastive(audio, text, one, one, torch.ones(2, 2, dtype=torch.bool)).backward()
    assert text.grad.abs().max() < 1e-6


def test_bfloat16_embeddings_give_a_float32_loss():
    audio, text = (x.bfloat16() for x in pair())
    assert contrastive(audio, text, *[torch.tensor(1.0)] * 2, torch.eye(6, dtype=torch.bool)).dtype == torch.float32
