"""A published corpus on this machine: its tables, checked and read row by row, and its audio, unpacked or not."""

import hashlib
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.archive import is_archive, member_location, members
from pipelines.disk import BuildError
from pipelines.local import to_location
from pipelines.sources.rows import PIECE, advance, refuse_open_quote, telling
from pipelines.sources.table import section

YOUTUBE = "https://www.youtube.com/watch?v="


def find(root: Path, source: str, *names: str) -> Path:
    """The first that exists of `names` (patterns too) below `root`; `root` itself if that is a file.

    BuildError, with what the datacard says about how to obtain the corpus, if none does.
    """
    if root.is_file():
        return root
    found = next((path for name in names for path in sorted(root.glob(name))), None)
    if found is None:
        raise missing(root, source, " or ".join(names))
    return found


def missing(root: Path, source: str, what: str) -> BuildError:
    """The error of a corpus of which a file is not there."""
    from pipelines.sources import read_card

    how = read_card(source)["obtain"]
    return BuildError(f"{root} does not hold {what} of source {source}. How to obtain it: {how}")


def verify(path: Path, md5: dict[str, str]) -> Path:
    """The path; raises BuildError if its MD5 is not the one published for a file of its name."""
    if wanted := md5.get(path.name):
        with path.open("rb") as handle:
            found = hashlib.file_digest(handle, "md5").hexdigest()
        if found != wanted:
            raise BuildError(f"{path} is not the published file (MD5 {found}, published {wanted}): fetch it again")
    return path


def read_rows(
    path: Path, separator: str = ",", encoding: str = "utf-8-sig", **options: Any
) -> Iterator[dict[str, str]]:
    """The rows of a CSV as {column: text}, "" for an empty cell; `options` are those of pandas.read_csv.

    BuildError if it cannot be read. One piece of the table is in memory at a time.
    """
    import pandas as pd

    settings: dict[str, Any] = {
        "sep": separator, "encoding": encoding, "dtype": str, "keep_default_na": False, "index_col": False,
        "chunksize": PIECE,
    }  # fmt: skip
    with telling(path), pd.read_csv(path, **(settings | options)) as reader:
        while (frame := advance(reader)) is not None:
            columns = [frame[name].fillna("").tolist() for name in frame.columns]
            refuse_open_quote(columns, separator)
            names = list(map(str, frame.columns))
            yield from (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))


class Sounds:
    """Where a corpus's audio files are: in the first of some folders or archives below its root that has them.

    `places` are relative to `root`: a folder "audio", or an archive "audio.zip" (split zips by their last part).
    `md5` holds the published sums of archives, by their names; an archive that differs raises BuildError.
    """

    def __init__(self, root: Path, *places: str, md5: dict[str, str] | None = None) -> None:
        root = root if root.is_dir() else root.parent
        paths = [path for place in places for path in sorted(root.glob(place))]
        self.fallback = root / places[0]
        self.folders = [path.absolute() for path in paths if path.is_dir()]
        self.names: dict[str, dict[str, Path]] = {}
        self.archives = [verify(path.absolute(), md5 or {}) for path in paths if is_archive(path)]

    @cached_property
    def packed(self) -> dict[str, str]:
        """{a member's name, its last two parts, its last part: its location}, of all archives."""
        found: dict[str, str] = {}
        for archive in self.archives:
            for member in members(archive):
                parts = member.name.split("/")
                for start in {0, max(0, len(parts) - 2), len(parts) - 1}:
                    found.setdefault("/".join(parts[start:]), member_location(archive, member.name))
        return found

    def find(self, *names: str) -> str | None:
        """The location of the first of these names (each relative to a place) that is there."""
        names = tuple(map(inside, names))
        for name in names:
            below, _, file = name.rpartition("/")
            if folder := self.listed(below).get(file):
                return to_location(folder / name)
        return next((self.packed[name] for name in names if name in self.packed), None) if self.archives else None

    def listed(self, below: str) -> dict[str, Path]:
        """{name: the first of the folders that has it} of the files at `below` in each folder, which is read once."""
        if below not in self.names:
            found = self.names[below] = {}
            for folder in self.folders:
                for name in names_in(folder / below):
                    found.setdefault(name, folder)
        return self.names[below]

    def locate(self, *names: str) -> str:
        """The same; where it would be if it is nowhere, so that download says that it is missing."""
        folder = self.folders[0] if self.folders else self.fallback.absolute()
        return self.find(*names) or to_location(folder / inside(names[0]))


def names_in(folder: Path) -> list[str]:
    """The names in a folder, none if there is no such folder; BuildError if it cannot be read."""
    with telling(folder):
        return os.listdir(folder) if os.path.isdir(folder) else []  # noqa: PTH112, PTH208 - a Path's own costs more


def inside(name: str) -> str:
    """A relative path as it is; of one that leads elsewhere only its last part."""
    return name.rpartition("/")[2] if name.startswith("/") or ".." in name.split("/") else name


def youtube(sounds: Sounds, video: str, start: float, end: float) -> dict[str, Any]:
    """Fields of Clip for a section of a YouTube video: of the file cut from it if it is there, else of the video.

    Files are known as <id>_<start> (also in six digits, and in milliseconds), Y<id> or <id>, with usual extensions.
    """
    stems = (f"{video}_{start:06.0f}", f"{video}_{start:g}", f"{video}_{start * 1000:.0f}",
             f"{video}_{start * 1000:.0f}_{end * 1000:.0f}", f"Y{video}", video)  # fmt: skip
    kinds = (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".mp4")
    there = sounds.find(*(stem + kind for stem in stems for kind in kinds)) if sounds.folders or sounds.archives else ""
    cut = {"location": there} if there else {"location": YOUTUBE + video, "start": start, "end": end}
    return {**cut, "url": YOUTUBE + video, "recording": f"youtube:{video}{section(start, end)}"}
