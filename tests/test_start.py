"""A run that starts from a trained model: which settings are whose, what is kept, what is new, what is refused."""

from dataclasses import replace

import numpy as np
import pairs
import pytest
import torch
from test_convert import laion_state, tokenizer, training_file  # noqa: F401
from typer.testing import CliRunner

import cli
from clap import checkpoint, export
from clap.config import ConfigError, ModelConfig, TrainConfig
from clap.data import open_split
from clap.model import CLAP
from clap.start import settle, start

SOUND = [np.random.default_rng(0).standard_normal(9000).astype(np.float32)]
CAPTIONS = ["The sound of a low tone.", "A buzz."]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return open_split(pairs.write(tmp_path_factory.mktemp("data"), pairs.tones(6)), "train", (), 48000)


@pytest.fixture(scope="module")
def trained(clips, tmp_path_factory):
    """A small model in a run folder."""
    run = tmp_path_factory.mktemp("trained")
    torch.manual_seed(3)
    model = start(pairs.SMALL, clips)
    with torch.no_grad():
        model.log_scale_a.fill_(3.0)
    checkpoint.write(run, 7, model.fill)
    checkpoint.link(run, "best", 7)
    return run


def asked(trained, **model):
    """Settings of the model that differ from the defaults, beside --init."""
    return TrainConfig(init=str(trained), model=ModelConfig(**model), batch_size=4)


def begun(config, clips, given=()):
    return start(settle(config, None, given), clips)


def same(a, b):
    return np.array_equal(a.embed_audio(SOUND), b.embed_audio(SOUND)) and np.array_equal(
        a.embed_text(CAPTIONS), b.embed_text(CAPTIONS)
    )


def test_the_model_is_the_checkpoints_whatever_the_defaults(trained, clips):
    config = settle(asked(trained), None)
    assert config.model == pairs.SMALL.model and config.batch_size == 4
    assert same(start(config, clips), CLAP.from_pretrained(trained))


def test_words_that_a_tower_from_scratch_does_not_know_are_told(trained, clips, tmp_path, caplog):
    begun(asked(trained), clips)
    assert not caplog.records
    french = [row | {"captions": ["Le chant des oiseaux"]} for row in pairs.tones(3)]
    begun(asked(trained), open_split(pairs.write(tmp_path, french), "train", (), 48000))
    assert "does not know 100 % of the captions' words" in caplog.text


def test_settings_that_move_no_weight_may_be_changed(trained, clips):
    config = settle(asked(trained, time_mask=3, pann_dropout=0.4, text_context=20), None)
    model = start(config, clips)
    expected = replace(pairs.SMALL.model, time_mask=3, pann_dropout=0.4, text_context=20)
    assert model.config == config.model == expected and model.text.context == 20
    assert model.audio.augment.time_width == 3 and model.audio.block_dropout.p == 0.4
    assert same(model, CLAP.from_pretrained(trained))


def test_another_architecture_is_refused_with_what_differs(trained):
    config = asked(trained, dim=8, n_mels=32, audio="pann", hop=960)
    with pytest.raises(ConfigError, match=r"\(hop is 480, not 960, dim is 16, not 8\): .*finetune.*time_mask"):
        settle(config, None)


def test_more_tokens_than_the_tower_has_places_for_are_refused(trained, clips):
    assert begun(asked(trained, text_context=76), clips).config.text_context == 76
    with pytest.raises(ConfigError, match=r"text_context is 78, the text tower of .* reads 77 tokens: lower it"):
        begun(asked(trained, text_context=78), clips)


def test_a_loss_brings_new_heads_and_siglips_scale_beside_a_new_bias(trained, clips):
    mlp = begun(replace(asked(trained), loss="mlp"), clips)
    assert mlp.audio_transform is not None and mlp.log_scale_a == 3.0 and same(mlp, CLAP.from_pretrained(trained))
    sigmoid = begun(replace(asked(trained), loss="sigmoid"), clips)
    assert sigmoid.logit_bias == -10 and sigmoid.log_scale_a.exp().item() == pytest.approx(10)
    assert same(sigmoid, CLAP.from_pretrained(trained))


def test_heads_that_the_checkpoint_has_stay(trained, clips, tmp_path):
    mlp = begun(replace(asked(trained), loss="mlp"), clips)
    mlp.save_pretrained(tmp_path / "mlp")
    model = begun(asked(tmp_path / "mlp"), clips)
    assert torch.equal(model.audio_transform[0].weight, mlp.audio_transform[0].weight)


def test_a_run_that_goes_on_has_its_own_checkpoints_settings(trained, tmp_path):
    config = settle(asked(tmp_path / "gone"), checkpoint.newest(trained))
    assert config.model == pairs.SMALL.model and config.init


def test_a_flag_that_is_the_usual_value_holds_too(clips, tmp_path):
    padded = replace(pairs.SMALL.model, filling="pad")
    CLAP.create(padded, CAPTIONS).save_pretrained(tmp_path / "padded")
    config = asked(tmp_path / "padded")
    assert settle(config, None).model == padded
    assert settle(config, None, ["filling", "lr"]).model == replace(padded, filling="repeatpad")
    assert begun(config, clips, ["filling"]).config.filling == "repeatpad"
    with pytest.raises(ConfigError, match=r"another model than the settings ask for \(audio is 'pann', not 'htsat'\)"):
        settle(config, None, ["audio"])


def test_a_head_that_is_asked_to_go_is_left_behind_unless_the_loss_needs_it(trained, clips, tmp_path):
    begun(replace(asked(trained), loss="mlp"), clips).save_pretrained(tmp_path / "mlp")
    config = asked(tmp_path / "mlp")
    model = begun(config, clips, ["transforms"])
    assert model.audio_transform is None and same(model, CLAP.from_pretrained(trained))
    needing = settle(replace(config, loss="mlp"), None, ["transforms"])
    assert needing.model.transforms and settle(needing, tmp_path / "mlp", ["transforms"]) == needing


@pytest.fixture
def line(tmp_path):
    """Run the command line of a run from a model that fills with silence, with these flags."""
    data = pairs.write(tmp_path / "data", pairs.tones(6))
    CLAP.create(replace(pairs.SMALL.model, filling="pad"), CAPTIONS).save_pretrained(tmp_path / "padded")
    given = f"--batch-size 3 --epochs 1 --device cpu --init {tmp_path / 'padded'} --out {tmp_path / 'run'}".split()
    return lambda *flags: CliRunner().invoke(cli.app, ["train", "--data", data, *given, *flags])


def filling(run):
    return CLAP.from_pretrained(run).config.filling


def test_the_command_line_keeps_to_flags_that_are_usual_values(line, tmp_path):
    refused = line("--audio", "htsat")
    assert refused.exit_code == 1 and "(audio is 'pann', not 'htsat')" in refused.stderr
    for _ in ("begun", "done"):
        assert line("--filling", "repeatpad").exit_code == 0 and filling(tmp_path / "run") == "repeatpad"


def test_a_run_does_not_go_on_with_a_flag_that_it_was_begun_without(line, tmp_path):
    assert line().exit_code == 0 and filling(tmp_path / "run") == "pad"
    refused = line("--filling", "repeatpad")
    assert refused.exit_code == 1 and filling(tmp_path / "run") == "pad"
    assert "run holds a run with other settings (filling is 'pad', not 'repeatpad')" in refused.stderr
    assert line().exit_code == 0


def test_without_init_the_model_is_new_with_the_heads_of_its_loss(clips):
    config = settle(replace(pairs.SMALL, loss="sigmoid"), None)
    torch.manual_seed(0)
    assert start(config, clips).config == config.model == replace(pairs.SMALL.model, logit_bias=True)


def test_a_file_of_laions_takes_its_tokenizer_from_text(clips, tmp_path, tokenizer):  # noqa: F811
    path = training_file(tmp_path / "laion.pt", laion_state())
    config = settle(asked(path, text=str(tokenizer), time_mask=3), None)
    model = start(config, clips)
    assert model.config == config.model and config.model.text == str(tokenizer) and config.model.time_mask == 3
    original = CLAP.from_pretrained(path, tokenizer=tokenizer)
    assert same(model, original)

    export.to_transformers(original, tmp_path / "hf")
    theirs = start(settle(asked(tmp_path / "hf"), None), clips)
    assert np.abs(theirs.embed_text(CAPTIONS) - original.embed_text(CAPTIONS)).max() < 1e-6
