"""What people see of an index: a clip with its credit, what it holds in all, and its clips as points of a plane."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

    from clap.search.index import Index

NOT_STATED = "not stated"  # a licence or a source
EXAMPLES, EXAMPLE = 6, 60  # captions to try, and the most characters of one


@dataclass(frozen=True)
class Clip:
    """A clip: `row` is its number in the index; `attribution` is a line that credits it; duration in seconds."""

    row: int
    id: str
    source: str
    captions: list[str]
    labels: list[str]
    tags: list[str]
    license: str
    author: str
    title: str
    url: str
    duration: float | None
    attribution: str


@dataclass(frozen=True)
class Found(Clip):
    """A result: a clip, and the cosine similarity of its embedding to the query's."""

    score: float


@dataclass(frozen=True)
class Facets:
    """What the index holds: clips, hours, how many clips of each source and licence, captions to try."""

    clips: int
    hours: float
    sources: dict[str, int]
    licenses: dict[str, int]
    examples: list[str]


@dataclass(frozen=True)
class Map:
    """Clips as points in [0, 1]: the rows `row` lie at `x`, `y`, and belong to `groups[group]`."""

    row: list[int]
    x: list[float]
    y: list[float]
    group: list[int]
    groups: list[str]


def clip(index: "Index", row: int) -> Clip:
    """What is shown of a row; of addresses only those of the web, for javascript: and others could do something."""
    (found,) = index.table.slice(row, 1).to_pylist()
    facts = {field.name: found[field.name] for field in fields(Clip) if field.name in found}
    facts |= {name: found[name] or NOT_STATED for name in ("source", "license")}
    facts["url"] = found["url"] if found["url"].startswith(("http://", "https://")) else ""
    name = (found["title"] or found["id"]) + (found["author"] and f" by {found['author']}")
    credit = [name, f"license: {facts['license']}", facts["url"]]
    return Clip(row=row, attribution=", ".join(filter(None, credit)), **facts)


def kept(index: "Index", source: str, license: str) -> np.ndarray | None:
    """(rows,) bool: the clips of a source and under a licence as `facets` names them, "" being any; None for all."""
    wanted = {column: name for column, name in (("source", source), ("license", license)) if name}
    masks = [index.among(column, {"" if name == NOT_STATED else name}) for column, name in wanted.items()]
    return np.logical_and.reduce(masks) if masks else None


def facets(index: "Index") -> Facets:
    """Counts over the whole index, and first captions of clips at even distances."""
    import pyarrow.compute as pc

    hours = (pc.sum(index.table["duration"]).as_py() or 0) / 3600
    return Facets(len(index), hours, count(index.table["source"]), count(index.table["license"]), examples(index))


def count(column: "pa.ChunkedArray") -> dict[str, int]:
    """Text > how often it stands in a column, the most frequent first."""
    found = {each["values"] or NOT_STATED: each["counts"] for each in column.value_counts().to_pylist()}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def examples(index: "Index") -> list[str]:
    """A few short captions, each once."""
    rows = np.unique(np.linspace(0, len(index) - 1, 10 * EXAMPLES).astype(int))
    firsts = (captions[0] for captions in index.table["captions"].take(rows).to_pylist() if captions)
    texts = list(dict.fromkeys(text for text in firsts if 0 < len(text) <= EXAMPLE))
    return texts[:: -(-len(texts) // EXAMPLES)] if texts else []
