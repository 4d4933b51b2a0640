"""Settings that nothing good can come of are refused with a sentence, before any work is done."""

from dataclasses import replace

import pairs
import pytest

from clap.config import PRESETS, ConfigError, ModelConfig, check, check_model, read


def test_every_preset_can_be_trained():
    for config in PRESETS.values():
        check(config)


def test_a_text_tower_from_scratch_is_not_frozen():
    with pytest.raises(ConfigError, match="from scratch random"):
        check(replace(pairs.SMALL, freeze=("text",)))


@pytest.mark.parametrize(
    "name", ["hop", "n_fft", "n_mels", "dim", "sample_rate", "text_vocab", "text_layers", "text_heads", "text_context"]
)
def test_sizes_that_make_no_model_are_refused(name):
    with pytest.raises(ConfigError, match=rf"^{name} is 0: it must be"):
        check(replace(pairs.SMALL, model=replace(pairs.SMALL.model, **{name: 0})))


def test_a_context_without_room_for_a_word_is_refused():
    with pytest.raises(ConfigError, match="text_context is 2: it must be 3 or more"):
        check_model(ModelConfig(text_context=2))


@pytest.mark.parametrize("content", ["{", "[1]", "", None])
def test_a_damaged_config_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json (cannot be read|holds a list)"):
        read(ModelConfig, path)
