"""`recipe`: several sources as one, as a TOML file describes them.

    title = "My mixture"
    exclude_evaluation = ["esc50", "clotho"]   # as --exclude-evaluation; what that flag says comes before it
    [[source]]
    name = "freesound"
    input = "freesound"                        # below --data-root, else below the recipe's own folder
    weight = 1.0                               # for training; the card shows it
    published = { clips = 515581, hours = 3033.38 }

Ids, splits, folds and captions are each source's own. A source whose input is not there is an error that lists all
such and how to obtain them; with --available the others are taken, and the list is printed.
"""

import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.clip import Clip
from pipelines.disk import BuildError
from pipelines.remote import is_remote

if TYPE_CHECKING:
    from pipelines.sources import Reading

TOP = {"title": str, "description": str, "exclude_evaluation": list, "source": list}
KEYS = {"name": str, "input": str, "weight": int | float, "published": dict}
COUNTS = {"clips": int | float, "hours": int | float}  # as published


@dataclass(frozen=True)
class Ingredient:
    """One source of a mixture: where its corpus is, its weight in training, its clips and hours as published."""

    name: str
    input: Path | str
    weight: float = 1.0
    published: dict[str, float] = field(default_factory=dict)

    @property
    def there(self) -> bool:
        """Whether its corpus is there, as far as can be told before it is read."""
        return isinstance(self.input, str) or self.input.exists()


@dataclass(frozen=True)
class Mixture:
    """What a recipe says."""

    title: str
    description: str
    exclude_evaluation: tuple[str, ...]
    ingredients: tuple[Ingredient, ...]


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Clips of all ingredients, one after another in the order of the recipe."""
    from pipelines.sources import Reading, source

    mixture = read_mixture(path, reading)
    found = present(mixture, reading.available)
    for each in mixture.ingredients:
        if each not in found:
            print(f"without {each.name}, which is not in {each.input}: {obtain(each)}", file=sys.stderr)
    for each in found:
        yield from source(each.name).clips(each.input, Reading())


def inputs(path: Path, reading: "Reading") -> list[Path | str]:
    """What the clips depend on: the recipe, and the inputs that are there."""
    return [path] + [each.input for each in read_mixture(path, reading).ingredients if each.there]


def corpora(path: Path, reading: "Reading") -> Path:
    """The folder below which the corpora of the evaluation are, too; BuildError where ingredients are missing."""
    present(read_mixture(path, reading), reading.available)
    return root_of(path, reading)


def root_of(path: Path, reading: "Reading") -> Path:
    """The folder below which all inputs are."""
    return Path(reading.data_root or path.parent).absolute()


def present(mixture: Mixture, available: bool) -> list[Ingredient]:
    """The ingredients that are there; raises BuildError unless all are, or only `available` ones are wanted."""
    missing = [each for each in mixture.ingredients if not each.there]
    found = [each for each in mixture.ingredients if each.there]
    if missing and (not available or not found):
        told = "; ".join(f"{each.name} in {each.input}: {obtain(each)}" for each in missing)
        raise BuildError(
            f"{len(missing)} of {len(mixture.ingredients)} sources are not there. {told}. Obtain them, name their "
            "folder with --data-root, or go on without them with --available"
        )
    return found


def obtain(ingredient: Ingredient) -> str:
    """How to obtain a source."""
    from pipelines.sources import read_card

    return str(read_card(ingredient.name)["obtain"]).strip().rstrip(".")


def read_mixture(path: Path, reading: "Reading") -> Mixture:
    """A recipe; raises BuildError for what it must not say."""
    if reading.column or reading.labels_from_folders:
        raise BuildError(f"--column and --labels-from-folders are for one source alone, and {path} is a recipe")
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BuildError(f"cannot read the recipe {path}: {error}") from error
    refuse(path, said)
    root = root_of(path, reading)
    return Mixture(
        said.get("title", path.stem),
        said.get("description", ""),
        tuple(said.get("exclude_evaluation", ())),
        tuple(Ingredient(**table | {"input": place(table["input"], root)}) for table in said["source"]),
    )


def refuse(path: Path, said: dict[str, Any]) -> None:
    """Raise BuildError unless a recipe holds what it should, in the types that it should."""
    from pipelines.sources import SOURCES

    tables, apart = said.get("source"), said.get("exclude_evaluation", [])
    if not tables or not shaped(said, TOP) or not all(isinstance(name, str) for name in apart):
        raise BuildError(f"{path}: want [[source]] tables, and beside them only a title, a description and a list of "
                         "names exclude_evaluation")  # fmt: skip
    for table in tables:
        good = shaped(table, KEYS) and "input" in table and shaped(table.get("published", {}), COUNTS)
        if not good or table.get("name") not in set(SOURCES) - {"recipe"}:
            raise BuildError(f"{path}: each [[source]] has name (of a source) and input, and may have weight, a "
                             f"number, and published, numbers of clips and hours: {table}")  # fmt: skip
    names = [table["name"] for table in tables]
    if again := next((name for name in names if names.count(name) > 1), ""):
        raise BuildError(f"{path} names the source {again} twice: its clips would be counted together; name it once")


def shaped(table: Any, types: dict[str, Any]) -> bool:
    """Whether it is a table of no other keys than these, each of its type; a truth value is no number."""
    return isinstance(table, dict) and all(
        isinstance(value, types.get(key, ())) and not isinstance(value, bool) for key, value in table.items()
    )


def place(input: str, root: Path) -> Path | str:
    """Where an ingredient is: a URL, or a path below the root."""
    return input if is_remote(input) else root / input


def told(path: Path, reading: "Reading") -> dict[str, Any]:
    """The title and text of the dataset's card, its ingredients, and the evaluation corpora to keep apart."""
    mixture = read_mixture(path, reading)
    return {"title": mixture.title, "text": mixture.description.strip()} | {
        "ingredients": [{"name": each.name, "weight": each.weight, "published": each.published}
                        for each in mixture.ingredients],
        "exclude_evaluation": list(mixture.exclude_evaluation),
    }  # fmt: skip
