"""Settings of a probe, apart from the code that fits it so that the command line's --help loads no torch."""

from dataclasses import dataclass

from clap.config import ClapError, setting

HEADS = ("linear", "mlp")
LOSSES = ("auto", "ce", "bce")
FEATURES = ("normalised", "projection")


class ProbeError(ClapError):
    """A probe that cannot be fitted or used; the message says what to do."""


@dataclass(frozen=True)
class ProbeConfig:
    """Probe. Everything that decides a classifier on a model's audio side, given the model and the data."""

    head: str = setting("linear", "linear, or mlp: a hidden layer of 1024 with dropout 0.1, as LAION-CLAP's")
    loss: str = setting("auto", "ce (one label a clip), bce (any number), or auto: bce if a clip has several")
    features: str = setting(
        "normalised", "what the head sees: normalised embeddings, or as LAION-CLAP the projection before that"
    )
    finetune: bool = setting(False, "train the audio tower and its projection too")
    folds: tuple[int, ...] = setting((), "hold out only these of the dataset's folds, in turn (empty: each)")
    lr: tuple[float, ...] = setting(
        (1e-3, 1e-2), "learning rates of the head to choose among; fine-tuning takes the first"
    )
    weight_decay: tuple[float, ...] = setting((0.01, 1.0), "AdamW's decays of matrices to choose among, likewise")
    lr_tower: float = setting(1e-4, "fine-tuning: learning rate of tower and projection")
    epochs: int = setting(100, "most passes over the training clips")
    patience: int = setting(10, "stop after this many epochs without a better score")
    batch_size: int = setting(64, "clips in a step")
    seeds: tuple[int, ...] = setting((0,), "repeat everything with each of these seeds")


def check(config: ProbeConfig) -> None:
    """Raise ProbeError for a setting outside its values, with the values it may take."""
    for name, allowed in {"head": HEADS, "loss": LOSSES, "features": FEATURES}.items():
        if getattr(config, name) not in allowed:
            raise ProbeError(f"{name} is {getattr(config, name)!r}: use {' or '.join(allowed)}")
    for name in ("epochs", "patience", "batch_size"):
        if getattr(config, name) < 1:
            raise ProbeError(f"{name} is {getattr(config, name)}: it must be 1 or more")
    for name in ("lr", "weight_decay", "seeds"):
        if not getattr(config, name) or min(getattr(config, name)) < 0:
            raise ProbeError(f"{name} is {getattr(config, name)}: give one or more, none below 0")
    for name in ("folds", "seeds"):
        if len(set(getattr(config, name))) < len(getattr(config, name)):
            raise ProbeError(f"{name} is {getattr(config, name)}: give each once")
