"""Contrastive language-audio pretraining: towers, data, training, evaluation. Imports nothing until used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clap.model import CLAP as CLAP

__all__ = ["CLAP"]


def __getattr__(name: str) -> Any:
    if name == "CLAP":
        from clap.model import CLAP

        return CLAP
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
