"""Where clips come from: one file per source, each a function from an input path to clips.

A source is the only place that knows a corpus's quirks. Its datacard (datacards/<name>.md) says what it is.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pipelines.clip import Clip
from pipelines.disk import BuildError
from pipelines.setting import setting


@dataclass(frozen=True)
class Reading:
    """How to read an input; a source uses what applies to it."""

    column: tuple[str, ...] = setting((), "FIELD=NAME: take a field from this column", metavar="FIELD=NAME")
    labels_from_folders: bool = setting(False, "folder: the parent folder's name is the label")
    data_root: str = setting("", "recipe: folder below which the sources' inputs are", metavar="DIR", manner=True)
    available: bool = setting(False, "recipe: go on without the sources that are not there")

    def columns(self) -> dict[str, str]:
        """{field: column name} of `column`; raises BuildError if one is malformed or no such field exists."""
        from pipelines.sources.table import NAMES

        pairs = dict(pair.partition("=")[::2] for pair in self.column)
        for name, column in pairs.items():
            if name not in NAMES or not column:
                raise BuildError(f"--column {name}={column}: want FIELD=NAME with FIELD one of {', '.join(NAMES)}")
        if len(pairs) < len(self.column):
            raise BuildError(f"--column {' --column '.join(self.column)}: each FIELD once")
        return pairs


def alone(input: Any, reading: Reading) -> list[Any]:
    """What the clips of most sources depend on: the input itself."""
    return [input]


def beside(input: Any, reading: Reading) -> Path | None:
    """The folder in which other corpora are by default: that of the input; None for one that is a URL."""
    return input.absolute().parent if isinstance(input, Path) else None


def nothing(input: Any, reading: Reading) -> dict[str, Any]:
    """What the input of most sources adds to the datacard."""
    return {}


@dataclass(frozen=True)
class Source:
    """A corpus: its name, its clips given an input path, its datacard.

    Given the input too, `inputs` are all that its clips depend on, `corpora` is the folder in which those of the
    evaluation are, and `told` is what the input adds to the datacard.
    """

    name: str
    clips: Callable[[Any, Reading], Iterable[Clip]]
    card: dict[str, Any]
    inputs: Callable[[Any, Reading], list[Any]] = alone
    corpora: Callable[[Any, Reading], Path | None] = beside
    told: Callable[[Any, Reading], dict[str, Any]] = nothing


# name: the module below pipelines.sources whose function `clips` reads it, or module:function
SOURCES: dict[str, str] = {
    "folder": "folder",
    "csv": "table",
    "hub": "hub",
    "laion": "laion",
    "freesound": "freesound",
    "epidemic_sound": "epidemic_sound",
    "bbc": "bbc",
    "audiostock": "audiostock",
    "free_to_use_sounds": "file_names:free_to_use_sounds",
    "sonniss": "file_names:sonniss",
    "we_sound_effects": "file_names:we_sound_effects",
    "paramount_motion": "file_names:paramount_motion",
    "audioset": "audioset",
    "audiocaps": "audiocaps",
    "clotho": "clotho",
    "macs": "macs",
    "fsd50k": "fsd50k",
    "wavtext5k": "wavtext5k",
    "wavcaps": "wavcaps",
    "vggsound": "vggsound",
    "urbansound8k": "urbansound8k",
    "esc50": "esc50",
    "gtzan": "gtzan",
    "slakh": "slakh",
    "europarl_st": "europarl_st",
    "recipe": "mixture",
}


def source(name: str) -> Source:
    """The source of that name with its card; raises BuildError for an unknown one."""
    if name not in SOURCES:
        raise BuildError(f"unknown source {name!r}: choose one of {', '.join(SOURCES)}")
    place, _, function = SOURCES[name].partition(":")
    module = import_module(f"pipelines.sources.{place}")
    extra = {key: getattr(module, key) for key in ("inputs", "corpora", "told") if hasattr(module, key)}
    return Source(name, getattr(module, function or "clips"), read_card(name), **extra)


def read_card(name: str) -> dict[str, Any]:
    """Front matter of datacards/<name>.md, with its prose under "text"."""
    import yaml

    here = Path(__file__).resolve().parents[1]
    beside = [here / "datacards", here.parent / "datacards"]  # in a wheel, in a checkout
    path = next(folder / f"{name}.md" for folder in beside if (folder / f"{name}.md").exists())
    _, front, text = path.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front) | {"text": text.strip()}
