"""Reject what must not be used, on licences and ids, before a byte is fetched."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipelines.clip import Clip
from pipelines.disk import BuildError
from pipelines.setting import setting
from pipelines.text import printable

SECTION = r"(#[\d.e+]*-[\d.e+]*)?(#\d+)?$"  # of a recording, or the number of a repeated id


@dataclass(frozen=True)
class Exclude:
    """Keep clips under an allowed licence that are not on the list of ids."""

    packs: ClassVar[bool] = False

    licenses: tuple[str, ...] = setting((), "keep only these licences (as published; case does not matter)")
    exclude_ids: tuple[str, ...] = setting((), "file of native ids to leave out, one a line", metavar="FILE")

    def __call__(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        allowed = {name.casefold() for name in self.licenses}
        excluded = set(self.exclude_ids)
        for clip in clips:
            native = clip.id.removeprefix(f"{clip.source}/")
            if allowed and clip.license.casefold() not in allowed:
                yield clip.reject("exclude", "license", clip.license or "no licence given")
            elif not excluded.isdisjoint((native, re.sub(SECTION, "", native), re.sub(r"#\d+$", "", native))):
                yield clip.reject("exclude", "evaluation-overlap", f"id {native} is on the list")
            else:
                yield clip


def read_ids(path: Path) -> tuple[str, ...]:
    """The ids of a list, sorted; empty lines and lines that start with # do not count."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"cannot read the list of ids {path}: {error}") from error
    return tuple(sorted({printable(line) for line in lines if line.strip() and not line.startswith("#")}))
