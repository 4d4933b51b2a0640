"""What stands on the towers: projections into the shared space, the second MLPs of the MLP loss, and what trains."""

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clap.config import ConfigError, TrainConfig

if TYPE_CHECKING:
    from clap.model import CLAP

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}
TRAINED = {  # parts beside towers and projections that a loss moves; the others have fixed temperatures or none
    "softmax": ("log_scale_a", "log_scale_t"),
    "mlp": ("log_scale_a", "log_scale_t", "audio_transform", "text_transform"),
    "sigmoid": ("log_scale_a", "logit_bias"),
}


def projection(into: int, dim: int, activation: str = "relu") -> nn.Sequential:
    """Linear, activation, Linear: a tower's output (batch, into) > (batch, dim), to be normalised."""
    return nn.Sequential(nn.Linear(into, dim), ACTIVATIONS[activation](), nn.Linear(dim, dim))


def transform(dim: int) -> nn.Sequential:
    """LAION-CLAP's MLPLayers [dim, dim, dim]: normalised (batch, dim) > (batch, dim), not to be normalised again."""
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(0.1), nn.Linear(dim, dim))


def freeze(model: "CLAP", config: TrainConfig) -> None:
    """Let only that be trained which has a gradient: what the loss uses, without what the settings freeze.

    Call it before the optimiser is made. A parameter that waits for a gradient would be no use to the optimiser, and
    LAION-CLAP's plain loss leaves its second scale where it began (`scales` one). ConfigError for a name that is no
    part of the model, and where nothing is left to train.
    """
    for name in ("log_scale_a", "log_scale_t", "audio_transform", "text_transform", "logit_bias"):
        part = getattr(model, name)
        if part is not None:
            part.requires_grad_(name in TRAINED.get(config.loss, ()))
    if config.loss == "softmax" and config.scales == "one":
        model.log_scale_t.requires_grad_(False)
    if "text" in config.freeze:
        model.text.freeze(cached=not config.word_dropout)
    for prefix in config.freeze:
        for parameter in under(model, prefix):
            parameter.requires_grad_(False)
    for norm in norms(model) if config.freeze_norm else ():
        norm.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"freeze {', '.join(config.freeze)} leaves nothing to train: leave a part out")


def train_mode(model: "CLAP", config: TrainConfig) -> None:
    """`model.train()`, but frozen parts stay as in evaluation: no dropout, no masks, fixed batch norms.

    LoRA stands beside towers that stay as they are, so their batch norms are fixed too.
    """
    model.train()
    parts = dict(model.named_modules())
    for prefix in config.freeze:
        if prefix in parts:  # or else it is a single parameter
            parts[prefix].eval()
    for norm in norms(model) if config.freeze_norm or config.lora else ():
        norm.eval()


def norms(model: nn.Module) -> list[nn.Module]:
    """Its batch norms, synchronised ones included."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def under(model: nn.Module, prefix: str) -> list[nn.Parameter]:
    """The parameters of the part of that name, such as audio.layers.0; ConfigError if there is none."""
    found = {name: parameter for name, parameter in model.named_parameters() if f"{name}.".startswith(f"{prefix}.")}
    if not found:
        depth = max(2, prefix.count(".") + 1)
        known = dict.fromkeys(".".join(name.split(".")[:depth]) for name, _ in model.named_parameters())
        raise ConfigError(f"freeze {prefix!r}: no part of the model has that name. Such are {', '.join(known)}")
    return list(found.values())
