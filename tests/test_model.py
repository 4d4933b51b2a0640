"""The model: what goes in and out of it, on disk and in memory, does not depend on batch or format."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pairs
import pytest
import soundfile
import torch

from clap.config import PRESETS, ConfigError, ModelConfig, TrainConfig, check, from_dict, to_dict
from clap.data import DataError
from clap.model import CLAP, ModelError, audio_tower

CAPTIONS = ["The sound of a low tone.", "The sound of a high tone.", "A buzz."]
HTSAT = replace(
    pairs.SMALL.model,
    audio="htsat",
    htsat_spec=32,
    htsat_width=8,
    htsat_depths=(2, 2),
    htsat_heads=(2, 4),
    htsat_window=4,
)


@pytest.fixture(scope="module", params=["pann", "htsat"])
def model(request):
    torch.manual_seed(0)
    config = HTSAT if request.param == "htsat" else pairs.SMALL.model
    return CLAP.create(config, CAPTIONS).eval()


@pytest.fixture(scope="module")
def clips():
    return [pairs.sound(label, 0, 0.4) for label in pairs.TONES]


def close(a, b):
    np.testing.assert_allclose(a, b, atol=2e-6)


def test_embeddings_are_normalised_float32(model, clips):
    for embedding in (model.embed_audio(clips), model.embed_text(CAPTIONS)):
        assert embedding.shape == (3, 16) and embedding.dtype == np.float32
        close(np.linalg.norm(embedding, axis=1), 1)


def test_batch_size_and_neighbours_do_not_matter(model, clips):
    close(model.embed_audio(clips, batch_size=1), model.embed_audio(clips, batch_size=32))
    close(model.embed_audio(clips[1:2]), model.embed_audio(clips)[1:2])
    close(model.embed_text(CAPTIONS, batch_size=1), model.embed_text(CAPTIONS))


def test_embedding_twice_is_the_same_and_leaves_training_on(model, clips):
    model.train()
    try:
        assert (model.embed_audio(clips) == model.embed_audio(clips)).all() and model.audio.training
    finally:
        model.eval()


def test_files_equal_arrays(model, clips, tmp_path):
    pcm = (clips[0] * 32768).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", pcm, 48000)
    file = model.embed_audio([tmp_path / "a.wav"])
    close(file, model.embed_audio(str(tmp_path / "a.wav")))
    close(file, model.embed_audio([pcm]))
    close(file, model.embed_audio([pcm / np.float32(32768)]))
    close(file, model.embed_audio(np.stack([pcm, pcm]))[:1])


def test_stereo_is_averaged(model, clips, tmp_path):
    low, high = clips[:2]
    soundfile.write(tmp_path / "b.wav", np.stack([low, high], axis=1), 48000, subtype="FLOAT")
    both = model.embed_audio([tmp_path / "b.wav"]), model.embed_audio([(low + high) / 2])
    np.testing.assert_allclose(*both, atol=1e-3)  # near silence, a rounding error is many dB


def test_other_rates_are_resampled(model):
    t = np.arange(12000) / 24000
    wide = 0.5 * np.sin(2 * np.pi * 300 * np.arange(24000) / 48000)
    embedded = model.embed_audio([0.5 * np.sin(2 * np.pi * 300 * t)], sample_rate=24000)
    assert (embedded @ model.embed_audio([wide]).T).item() > 0.99


def test_of_a_long_clip_the_centre_counts(model):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 36001).astype(np.float32)
    close(model.embed_audio([noise]), model.embed_audio([noise[12000:24000]]))


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (np.zeros(0, np.float32), "clip 1 is empty"),
        (np.full(500, np.nan, np.float32), "clip 1 holds NaN"),
        ("nowhere.wav", "nowhere.wav is not a file"),
    ],
)
def test_a_clip_that_cannot_be_embedded_is_named(model, clips, clip, message):
    with pytest.raises(DataError, match=message):
        model.embed_audio([clips[0], clip])


def test_a_saved_model_embeds_the_same(model, clips, tmp_path):
    model.save_pretrained(tmp_path)
    again = CLAP.from_pretrained(tmp_path)
    assert again.config == model.config and not again.training
    assert (again.embed_audio(clips) == model.embed_audio(clips)).all()
    assert (again.embed_text(CAPTIONS) == model.embed_text(CAPTIONS)).all()


def test_similarity_is_the_cosine(model, clips):
    similarity = model.similarity(model.embed_audio(clips), model.embed_text(CAPTIONS[:2]))
    assert similarity.shape == (3, 2) and (abs(similarity) <= 1 + 1e-6).all()


def test_a_gradient_reaches_every_parameter(model, clips):
    model.train()
    waveform = torch.from_numpy(np.stack([clip[:12000] for clip in clips])).float()
    tokens = model.tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    out = model(waveform, tokens["input_ids"], tokens["attention_mask"])
    (out.scale_a * out.scale_t * (out.audio @ out.text.T).square().sum()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    model.zero_grad()
    model.eval()
    assert not missing


def test_int16_and_float_waveforms_agree(model, clips):
    pcm = torch.from_numpy((np.stack([clip[:12000] for clip in clips]) * 32768).astype(np.int16))
    with torch.no_grad():
        torch.testing.assert_close(model.encode_audio(pcm), model.encode_audio(pcm.float() / 32768))


def test_scales_start_at_the_papers_value_and_are_clamped(model):
    assert model.log_scale_a.exp().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        model.log_scale_a.fill_(9.0)
    model.clamp_scales()
    assert model.log_scale_a.exp().item() == pytest.approx(100)
    with torch.no_grad():
        model.log_scale_a.copy_(model.log_scale_t)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_together_and_survive_json(name):
    check(PRESETS[name])
    assert from_dict(TrainConfig, to_dict(PRESETS[name])) == PRESETS[name]


@pytest.mark.parametrize(
    ("name", "dim", "smallest", "largest"),  # millions of parameters; the originals' hold class heads too
    [
        ("paper-htsat-roberta", 768, 27, 31.3),
        ("paper-pann", 2048, 75, 81.8),
        ("tiny", 64, 0, 2),
        ("tiny-htsat", 64, 0, 2),
    ],
)
def test_audio_towers_have_the_sizes_they_are_named_for(name, dim, smallest, largest):
    tower = audio_tower(PRESETS[name].model)
    assert tower.dim >= dim and smallest < sum(p.numel() for p in tower.parameters()) / 1e6 < largest


def test_settings_have_help_and_wrong_ones_say_what_is_right():
    from dataclasses import fields

    assert all(f.metadata["help"] for c in (ModelConfig, TrainConfig) for f in fields(c) if f.name != "model")
    with pytest.raises(ConfigError, match="targets is 'all': use multi-positive or plain"):
        check(replace(pairs.SMALL, targets="all"))
    with pytest.raises(ConfigError, match=r"unknown settings \['colour'\]"):
        from_dict(ModelConfig, {"colour": 1})


def test_validating_on_what_is_trained_on_is_refused():
    check(replace(pairs.SMALL, folds=(1, 2), validation_split="train", validation_folds=(3,)))
    with pytest.raises(ConfigError, match="trained on and validated on"):
        check(replace(pairs.SMALL, folds=(1, 2), validation_split="train", validation_folds=(2,)))


def test_what_is_no_model_is_said(tmp_path):
    with pytest.raises(ModelError, match="holds no checkpoint"):
        CLAP.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no model at"):
        CLAP.from_pretrained(tmp_path / "nothing")


def test_importing_clap_imports_nothing_heavy():
    code = "import clap, sys; print([m for m in ('torch', 'transformers', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- damaged folders


def damage(folder, changed):
    """Change settings in config.json."""
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | changed))


DAMAGES = {
    "cut weights": lambda folder: os.truncate(folder / "model.safetensors", 2000),
    "cut config": lambda folder: (folder / "config.json").write_text("{"),
    "list for config": lambda folder: (folder / "config.json").write_text("[1]"),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no text": lambda folder: shutil.rmtree(folder / "text"),
    "cut text": lambda folder: (folder / "text" / "config.json").write_text("{"),
    "other width": lambda folder: damage(folder, {"dim": 24}),
    "width of no number": lambda folder: damage(folder, {"dim": "wide"}),
    "other tower": lambda folder: damage(folder, {"audio": "foo"}),
    "code in text": lambda folder: (folder / "text" / "config.json").write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}'
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_folder_is_a_model_error(model, tmp_path, kind):
    model.save_pretrained(tmp_path / "m")
    DAMAGES[kind](tmp_path / "m")
    with pytest.raises((ModelError, ConfigError)):
        CLAP.from_pretrained(tmp_path / "m")


def test_a_model_that_could_not_be_written_whole_is_not_there(model, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.torch.save_model", full)
    with pytest.raises(OSError, match="no space"):
        model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_model_is_written_over_another_and_beside_other_files(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model.safetensors").write_text("old")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine" and CLAP.from_pretrained(tmp_path).config == model.config
    assert not list(tmp_path.parent.glob(".*.tmp"))


def test_a_tower_that_shares_weights_comes_back(tmp_path):
    made = CLAP.create(replace(pairs.SMALL.model, text_arch="t5"), CAPTIONS).eval()
    made.save_pretrained(tmp_path / "m")
    assert (CLAP.from_pretrained(tmp_path / "m").embed_text(CAPTIONS) == made.embed_text(CAPTIONS)).all()
