"""A setting of a stage: a dataclass field whose default and help text are written once."""

from dataclasses import asdict, field, fields
from typing import Any


def setting(default: Any, help: str, metavar: str | None = None, manner: bool = False) -> Any:
    """A field of a frozen dataclass; the command line makes its flag from it.

    A `manner` says how the work is done (a timeout, a number of connections), not what is made: a build that
    continues with another one redoes nothing.
    """
    return field(default=default, metadata={"help": help, "metavar": metavar, "manner": manner})


def settings(stage: Any) -> dict[str, Any]:
    """What a stage's results depend on: its settings without its manners."""
    lasting = {each.name for each in fields(stage) if each.metadata and not each.metadata["manner"]}
    return {name: value for name, value in asdict(stage).items() if name in lasting}
