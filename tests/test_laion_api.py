"""Scripts written for laion_clap run with clap.laion's CLAP_Module, and say what is wrong before they compute."""

import socket
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from test_convert import CAPTIONS, SMALL, laion_state, roberta

from clap.config import AUDIO_MODELS, ConfigError
from clap.laion import CLAP_Module
from clap.model import CLAP, ModelError
from clap.text import train_tokenizer

SIZES = {"htsat_width": 8, "htsat_depths": (2, 2, 2, 2), "htsat_heads": (1, 2, 4, 8)}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "fused"])
def clap(request, tmp_path_factory):
    folder, patch = tmp_path_factory.mktemp("laion"), pytest.MonkeyPatch()
    patch.setitem(AUDIO_MODELS, "HTSAT-mini", {"audio": "htsat", **SIZES})
    train_tokenizer(CAPTIONS, 100).save_pretrained(folder)
    state = laion_state()
    if request.param:
        torch.manual_seed(0)
        config = replace(SMALL, fusion="aff_2d", mel_scale="htk")
        state |= {f"audio_branch.{k}": v for k, v in CLAP(config, roberta(), None).audio.state_dict().items()}
    torch.save({"state_dict": state}, folder / "a.pt")
    made = CLAP_Module(enable_fusion=request.param, amodel="HTSAT-mini", device="cpu")
    made.load_ckpt(folder / "a.pt", tokenizer=folder)
    yield made
    patch.undo()


def noise(seconds, seed=0):
    return 0.3 * np.random.default_rng(seed).standard_normal(round(48000 * seconds)).clip(-3, 3).astype(np.float32)


def test_the_readmes_script_runs(clap, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", noise(2), 48000)
    soundfile.write(tmp_path / "b.wav", noise(12, 1), 48000)
    files = [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]
    audio = clap.get_audio_embedding_from_filelist(x=files, use_tensor=False)
    text = clap.get_text_embedding(CAPTIONS)
    assert audio.shape == (2, 16) and text.shape == (3, 16) and audio.dtype == np.float32
    again = clap.get_audio_embedding_from_filelist(x=files, use_tensor=True)
    assert isinstance(again, torch.Tensor) and (again.numpy() == audio).all()  # long clips too: nothing is random
    data = np.stack([soundfile.read(files[0])[0]] * 2).astype(np.float32)
    np.testing.assert_allclose(clap.get_audio_embedding_from_data(x=data), audio[[0, 0]], atol=2e-6)


@pytest.mark.parametrize("seconds", [3, 12])
def test_tensors_give_gradients_and_are_not_rounded(clap, seconds):
    quiet = torch.from_numpy(1e-4 * noise(seconds))[None].requires_grad_()
    embedding = clap.get_audio_embedding_from_data(x=quiet, use_tensor=True)
    embedding[0, 0].backward()
    if not (clap.enable_fusion and seconds > 10):
        assert float(quiet.grad.abs().sum()) > 0
    rounded = clap.get_audio_embedding_from_data(x=quiet.detach().numpy())
    assert float(abs(embedding.detach().numpy() - rounded).max()) > 1e-4
    config = replace(clap.model.config, int16_quantize=False)
    exact = CLAP(config, clap.model.text.encoder, clap.model.tokenizer).eval()
    exact.load_state_dict(clap.model.state_dict())
    np.testing.assert_allclose(embedding.detach(), exact.embed_audio(quiet.detach()), atol=2e-6)
    clap.model.zero_grad()


def test_texts_may_bring_their_own_tokenizer_and_want_gradients(clap):
    def padded(texts):
        return clap.model.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt")

    own = clap.get_text_embedding(CAPTIONS, tokenizer=padded, use_tensor=True)
    assert own.requires_grad
    np.testing.assert_allclose(own.detach(), clap.get_text_embedding(CAPTIONS), atol=2e-6)


def test_making_one_needs_no_network_and_no_weights(monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    with pytest.raises(ModelError, match="call load_ckpt"):
        CLAP_Module().get_text_embedding(["a"])


def test_another_model_than_was_announced_is_refused(clap, tmp_path):
    clap.model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no HTSAT-tiny .*htsat_width 8, .*make the CLAP_Module for it"):
        CLAP_Module(enable_fusion=clap.enable_fusion, device="cpu").load_ckpt(tmp_path)
    with pytest.raises(ModelError, match="it has fusion"):
        CLAP_Module(not clap.enable_fusion, "cpu", "HTSAT-mini").load_ckpt(tmp_path)
    with pytest.raises(ConfigError, match="model_id is 4: use 0 to 3"):
        CLAP_Module().load_ckpt(model_id=4)
    with pytest.raises(ConfigError, match="amodel is 'RN50': use HTSAT-tiny"):
        CLAP_Module(amodel="RN50")
