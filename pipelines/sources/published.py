"""The tables of a published corpus: whether they have their columns and are the files that were published."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipelines.disk import BuildError
from pipelines.sources.corpus import read_rows, verify


def rows_with(columns: Iterable[str], path: Path, **options: Any) -> Iterator[dict[str, str]]:
    """The rows of a CSV that must have these columns; BuildError names those it lacks.

    `options` go to `read_rows`; a byte that is not of the encoding becomes U+FFFD.
    """
    for row in read_rows(path, **{"encoding_errors": "replace"} | options):
        if absent := [name for name in columns if name not in row]:
            raise BuildError(
                f"{path} has no column {', '.join(absent)}; it has {', '.join(row)}: "
                "is it the published table of this corpus?"
            )
        yield row


def compare(path: Path, md5: dict[str, str]) -> Path:
    """The path of a table; says on stderr if it is not the published one, and goes on.

    Part of a corpus, or a corrected list, is a good input. What cannot be read at all is told by who reads it.
    """
    try:
        verify(path, md5)
    except BuildError as error:
        print(f"note: {error}. Reading it as it is.", file=sys.stderr)
    return path


def whole(said: str) -> int:
    """A cell as a whole number from 0, 0 for anything else: a fold that is not known is no fold."""
    return int(said) if said.strip().isdecimal() else 0


def freesound(said: str) -> str:
    """The recording that a Freesound id names, "" for anything that is no id."""
    return f"freesound:{said.strip()}" if said.strip().isdecimal() else ""


def spaced(name: str) -> str:
    """A class name as words: "dog_bark" > "dog bark"."""
    return name.replace("_", " ").strip()
