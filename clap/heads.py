"""What stands on the towers: projections into the shared space, the second MLPs of the MLP loss, and what trains."""

from typing import TYPE_CHECKING

from torch import nn

from clap.config import TrainConfig

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
    """Let only that be trained which has a gradient: what the loss uses, without the text tower if it is frozen.

    Call it before the optimiser is made. A parameter that waits for a gradient would stop data-parallel training, and
    LAION-CLAP's plain loss leaves its second scale where it began (`scales` one).
    """
    if config.freeze_text:
        model.text.freeze(cached=not config.word_dropout)
    for name in ("log_scale_a", "log_scale_t", "audio_transform", "text_transform", "logit_bias"):
        part = getattr(model, name)
        if part is not None:
            part.requires_grad_(name in TRAINED.get(config.loss, ()))
    if config.loss == "softmax" and config.scales == "one":
        model.log_scale_t.requires_grad_(False)
