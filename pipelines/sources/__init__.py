"""Where clips come from: one file per source, each a function from an input path to clips.

A source is the only place that knows a corpus's quirks. Its datacard (datacards/<name>.md) says what it is.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
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

    def columns(self) -> dict[str, str]:
        """{field: column name} of `column`; raises BuildError if one is malformed or no such field exists."""
        from pipelines.sources.table import NAMES

        pairs = dict(pair.partition("=")[::2] for pair in self.column)
        for name, column in pairs.items():
            if name not in NAMES or not column:
                raise BuildError(f"--column {name}={column}: want FIELD=NAME with FIELD one of {', '.join(NAMES)}")
        return pairs


@dataclass(frozen=True)
class Source:
    """A corpus: its name, its clips given an input path, and its datacard."""

    name: str
    clips: Callable[[Any, Reading], Iterable[Clip]]
    card: dict[str, Any]


def folder(path: Path | str, reading: Reading) -> Iterable[Clip]:
    """A folder or an archive of audio files, here or at a URL; see pipelines.sources.folder."""
    from pipelines.sources.folder import clips

    return clips(path, reading)


def csv(path: Path, reading: Reading) -> Iterable[Clip]:
    """A table of paths or URLs; see pipelines.sources.table."""
    from pipelines.sources.table import clips

    return clips(path, reading)


SOURCES: dict[str, Callable[[Any, Reading], Iterable[Clip]]] = {"folder": folder, "csv": csv}


def source(name: str) -> Source:
    """The source of that name with its card; raises BuildError for an unknown one."""
    if name not in SOURCES:
        raise BuildError(f"unknown source {name!r}: choose one of {', '.join(SOURCES)}")
    return Source(name, SOURCES[name], read_card(name))


def read_card(name: str) -> dict[str, Any]:
    """Front matter of datacards/<name>.md, with its prose under "text"."""
    import yaml

    here = Path(__file__).resolve().parents[1]
    beside = [here / "datacards", here.parent / "datacards"]  # in a wheel, in a checkout
    path = next(folder / f"{name}.md" for folder in beside if (folder / f"{name}.md").exists())
    _, front, text = path.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front) | {"text": text.strip()}
