"""The model that a run starts from: a new one, or with --init a trained one in any format that CLAP reads."""

from dataclasses import fields, replace
from pathlib import Path

from clap import convert, export
from clap.config import ConfigError, ModelConfig, TrainConfig, for_loss, read
from clap.data import Dataset
from clap.model import CLAP, locate

# What may differ from the checkpoint's: it moves no weight, nor what the model was trained to hear.
CHANGEABLE = frozenset(
    {
        "filling", "htsat_drop_path", "pann_dropout", "pann_head_dropout", "time_mask", "freq_mask", "text_context",
        "transforms", "logit_bias",
    }
)  # fmt: skip


def start(config: TrainConfig, clips: Dataset) -> CLAP:
    """The model before its first step; new parts are random, and a new tokenizer learns from the clips' captions."""
    if config.init:
        found = load(config)
        return refit(found, adopt(config, found.config), config.init)
    model = CLAP.create(for_loss(config), clips.all_captions(config.texts))
    if config.init_audio:
        convert.init_audio(model.audio, config.init_audio)
    return model


def settle(config: TrainConfig, checkpoint: Path | None) -> TrainConfig:
    """The settings with those of the model that is really trained: of the run's checkpoint, or else of --init.

    Call it before data are opened: rate, window and context of the model decide how they are read.
    """
    if checkpoint is not None:
        return replace(config, model=read(ModelConfig, checkpoint / "config.json"))
    if not config.init:
        return replace(config, model=for_loss(config))
    folder = locate(config.init)
    found = load(config).config if foreign(folder) else read(ModelConfig, folder / "config.json")
    return replace(config, model=adopt(config, found))


def adopt(config: TrainConfig, found: ModelConfig) -> ModelConfig:
    """The checkpoint's settings, with those of CHANGEABLE that were asked for, and the heads that the loss needs.

    Asked for is what differs from ModelConfig's defaults. ConfigError if that is another model than the checkpoint's.
    """
    settings = {each.name: getattr(config.model, each.name) for each in fields(ModelConfig)}
    asked = {name: value for name, value in settings.items() if value != getattr(ModelConfig, name)}
    other = {name: value for name, value in asked.items() if name not in CHANGEABLE and value != getattr(found, name)}
    if other:
        said = ", ".join(f"{name} is {getattr(found, name)!r}, not {value!r}" for name, value in other.items())
        raise ConfigError(
            f"{config.init} is another model than the settings ask for ({said}): leave them to it, as --preset "
            f"finetune does. What may differ: {', '.join(sorted(CHANGEABLE))}"
        )
    kept = {name: value for name, value in asked.items() if name in CHANGEABLE}
    return for_loss(replace(config, model=replace(found, **kept)))


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
    """The model with other CHANGEABLE settings; heads that it lacked are new, and so are the scales of a new bias."""
    if config == model.config:
        return model
    if config.text_context > model.config.text_context:
        check_context(model, config.text_context, name)
    made = CLAP(config, model.text.encoder, model.tokenizer)
    tensors = model.state_dict()
    if config.logit_bias and not model.config.logit_bias:  # SigLIP's start: scale and bias belong together
        del tensors["log_scale_a"], tensors["log_scale_t"]
    new = [key for key in made.state_dict() if key not in tensors]
    convert.load(made, tensors, name, new)
    return made


def check_context(model: CLAP, context: int, name: str) -> None:
    """Raise ConfigError unless the text tower has places for so many tokens; RoBERTa's count from its padding on."""
    settings = model.text.encoder.config
    before = 1 + settings.pad_token_id if "roberta" in settings.model_type else 0
    places = getattr(settings, "max_position_embeddings", context + before) - before
    if context > places:
        raise ConfigError(f"text_context is {context}, the text tower of {name} reads {places} tokens: lower it")
