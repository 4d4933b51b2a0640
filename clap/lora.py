"""LoRA (Hu et al. 2021, arXiv:2106.09685): beside every linear layer W of the towers a trained B A of low rank.

The towers stay as they are; projections and heads train as usual. B starts at 0, so that at first nothing is changed,
and W + B A is what a checkpoint holds: a model like any other, of the same size and speed. The paper's scale, alpha /
rank, is 1. A PANN has one linear layer, its last: its convolutions stay.
"""

import copy
from typing import Any

from torch import Tensor, nn

from clap.config import ClapError, ConfigError
from clap.model import CLAP

NAME = "lora"


def apply(model: CLAP, rank: int, saved: dict[str, Tensor] | None = None) -> None:
    """Put LoRA of `rank` into both towers, in place, and freeze the rest of them; `saved` is what `adapters` gave.

    Call it before the optimiser is made, and after heads.freeze: layers that are frozen get none.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ClapError('peft, which makes LoRA, is not installed: pip install "clapboard[lora]"') from error
    layers = [linear(tower) for tower in (model.audio, model.text)]
    if not any(layers):
        raise ConfigError("lora: no linear layer of the towers is left to adapt: freeze less of them")
    for tower, names in zip((model.audio, model.text), layers, strict=True):
        tower.requires_grad_(False)
        if names:
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), tower, NAME)
    if saved is not None:
        model.load_state_dict(saved, strict=False)


def linear(tower: nn.Module) -> list[str]:
    """The names of a tower's linear layers that are not frozen."""
    return [name for name, each in tower.named_modules() if isinstance(each, nn.Linear) and each.weight.requires_grad]


def adapted(model: nn.Module) -> dict[str, Any]:
    """peft's layers in a model, by the names of the linear layers they stand for."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def adapters(model: nn.Module) -> dict[str, Tensor]:
    """What a run needs besides `merged` to go on exactly: A, B and, as they were, the weights beside them."""
    inside = tuple(f"{name}." for name in adapted(model))
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith(inside)}


def merged(model: CLAP) -> CLAP:
    """A plain model that computes the same, with names that CLAP.from_pretrained knows; `model` stays as it is."""
    plain = copy.deepcopy(model)
    for name, layer in adapted(plain).items():
        layer.merge()
        plain.set_submodule(name, layer.get_base_layer())
    return plain
