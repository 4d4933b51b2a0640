"""The model that a run starts from: a new one, or with --init a trained one in any format that CLAP reads."""

import logging
from collections.abc import Collection
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from clap import convert, export
from clap.config import ConfigError, ModelConfig, TrainConfig, for_loss, read
from clap.data import Dataset
from clap.model import CLAP, locate

SOME, MANY = 1000, 0.3  # captions that are looked at; share of unknown words that is told
logger = logging.getLogger(__name__)

# What may differ from the checkpoint's: it moves no weight, nor what the model was trained to hear.
CHANGEABLE = frozenset(
    {
        "filling", "htsat_drop_path", "pann_dropout", "pann_head_dropout", "time_mask", "freq_mask", "text_context",
        "transforms", "logit_bias",
    }
)  # fmt: skip


def start(config: TrainConfig, clips: Dataset) -> CLAP:
    """The model of settings that are settled, before its first step.

    New parts are random, and a new tokenizer learns from the clips' captions.
    """
    if config.init:
        model = refit(load(config), config.model, config.init)
        warn_of_words(model, clips, config)
        return model
    model = CLAP.create(config.model, clips.all_captions(config.texts))
    if config.init_audio:
        convert.init_audio(model.audio, config.init_audio)
    return model


def settle(config: TrainConfig, checkpoint: Path | None, given: Collection[str] = ()) -> TrainConfig:
    """The settings with those of the model that is really trained: of the run's checkpoint, or else of --init.

    Call it before data are opened: rate, window and context of the model decide how they are read. ConfigError if
    another model was asked for.
    """
    if checkpoint is not None:
        found = read(ModelConfig, checkpoint / "config.json")
        wanted = asked(for_loss(config), given)
        if said := differences(found, {name: value for name, value in wanted.items() if name in given}):
            run = checkpoint.parent.parent
            raise ConfigError(f"{run} holds a run with other settings ({said}): repeat them, or give another --out")
        return replace(config, model=found)
    if not config.init:
        return replace(config, model=for_loss(config))
    folder = locate(config.init)
    found = load(config).config if foreign(folder) else read(ModelConfig, folder / "config.json")
    return replace(config, model=adopt(config, found, given))


def adopt(config: TrainConfig, found: ModelConfig, given: Collection[str]) -> ModelConfig:
    """The checkpoint's settings, with those of CHANGEABLE that were asked for, and the heads that the loss needs.

    ConfigError if what was asked for is another model than the checkpoint's.
    """
    wanted = asked(config.model, given)
    if said := differences(found, {name: value for name, value in wanted.items() if name not in CHANGEABLE}):
        raise ConfigError(
            f"{config.init} is another model than the settings ask for ({said}): leave them to it, as --preset "
            f"finetune does. What may differ: {', '.join(sorted(CHANGEABLE))}"
        )
    kept = {name: value for name, value in wanted.items() if name in CHANGEABLE}
    return for_loss(replace(config, model=replace(found, **kept)))


def asked(model: ModelConfig, given: Collection[str]) -> dict[str, Any]:
    """The settings that differ from ModelConfig's defaults or were `given`, whatever their value, by name."""
    settings = {each.name: getattr(model, each.name) for each in fields(ModelConfig)}
    return {name: value for name, value in settings.items() if name in given or value != getattr(ModelConfig, name)}


def differences(found: ModelConfig, wanted: dict[str, Any]) -> str:
    """What is not as wanted, for messages; "" if nothing is."""
    pairs = [(name, getattr(found, name), value) for name, value in wanted.items()]
    return ", ".join(f"{name} is {here!r}, not {value!r}" for name, here, value in pairs if here != value)


def load(config: TrainConfig) -> CLAP:
    """The model of `init`. Foreign ones take their tokenizer, which LAION's files lack, from --text if it is given."""
    folder = locate(config.init)
    text = config.model.text if config.model.text != ModelConfig.text else None
    model = CLAP.from_pretrained(folder, tokenizer=text)
    if text and foreign(folder):
        model.config = replace(model.config, text=text)
    return model


def foreign(path: Path) -> bool:
    """Whether a model is a file of LAION's or a folder of transformers', not ours."""
    return path.is_file() or export.is_transformers(path)


def refit(model: CLAP, config: ModelConfig, name: str) -> CLAP:
    """The model with other CHANGEABLE settings; heads that it lacked are new, and so are the scales of a new bias.

    Heads that it had, and that were asked to go, are left behind.
    """
    if config == model.config:
        return model
    if config.text_context > model.config.text_context:
        check_context(model, config.text_context, name)
    made = CLAP(config, model.text.encoder, model.tokenizer)
    places = made.state_dict()
    tensors = {key: tensor for key, tensor in model.state_dict().items() if key in places}
    if config.logit_bias and not model.config.logit_bias:  # SigLIP's start: scale and bias belong together
        del tensors["log_scale_a"], tensors["log_scale_t"]
    new = [key for key in places if key not in tensors]
    convert.load(made, tensors, name, new)
    return made


def warn_of_words(model: CLAP, clips: Dataset, config: TrainConfig) -> None:
    """Warn where a text tower from scratch does not know the words of the captions, which it reads as padding."""
    captions = list(islice(clips.all_captions(config.texts), SOME)) or [""]
    words = [word for each in model.tokenizer(captions, add_special_tokens=False)["input_ids"] for word in each]
    if (unknown := words.count(model.tokenizer.pad_token_id)) > MANY * len(words):
        logger.warning(
            "%s does not know %.0f %% of the captions' words, and does not learn them: train without --init",
            config.init, 100 * unknown / len(words),
        )  # fmt: skip


def check_context(model: CLAP, context: int, name: str) -> None:
    """Raise ConfigError unless the text tower has places for so many tokens; RoBERTa's count from its padding on."""
    settings = model.text.encoder.config
    before = 1 + settings.pad_token_id if "roberta" in settings.model_type else 0
    places = getattr(settings, "max_position_embeddings", context + before) - before
    if context > places:
        raise ConfigError(f"text_context is {context}, the text tower of {name} reads {places} tokens: lower it")
