"""A setting of a stage: a dataclass field whose default and help text are written once."""

from dataclasses import field
from typing import Any


def setting(default: Any, help: str, metavar: str | None = None) -> Any:
    """A field of a frozen dataclass; the command line makes its flag from it."""
    return field(default=default, metadata={"help": help, "metavar": metavar})
