"""`gtzan`: GTZAN, 1,000 excerpts of 30 s of music in 10 genres. It has no table: its tree of files says all.

The tree is genres/<genre>/<genre>.000NN.au as published, genres_original/<genre>/<genre>.000NN.wav in later copies.
"""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.archive import is_archive, member_location, members
from pipelines.clip import Clip, to_json
from pipelines.disk import BuildError
from pipelines.local import to_location
from pipelines.sources.corpus import missing

if TYPE_CHECKING:
    from pipelines.sources import Reading

NAME = re.compile(
    r"((blues|classical|country|disco|hiphop|jazz|metal|pop|reggae|rock)\.\d{5})\.(au|wav)", re.IGNORECASE
)
TREES = ("genres", "genres_original", "Data/genres_original", ".")
ARCHIVES = ("genres.tar.gz", "genres_original.zip")


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Clips in the order of their names; BuildError for a file, since there is no table of them."""
    if not path.is_dir():
        raise BuildError(f"{path} is a file: source gtzan has no table and takes the folder that holds genres/")
    found = {Path(location.partition("#")[2] or location).name: location for location in locations(path)}
    if not found:
        raise missing(path, "gtzan", "genres/<genre>/<genre>.000NN.au or .wav")
    for name, location in sorted(found.items()):
        yield to_clip(name, location)


def locations(root: Path) -> Iterator[str]:
    """Where the files of the first tree that has any are, else of the archives."""
    for tree in TREES:
        if inside := [path for path in (root / tree).glob("*/*") if NAME.fullmatch(path.name)]:
            yield from (to_location(path.absolute()) for path in inside)
            return
    archives = filter(is_archive, (root / name for name in ARCHIVES))
    for archive, member in chain.from_iterable(((one, each) for each in members(one)) for one in archives):
        if NAME.fullmatch(member.name.rpartition("/")[2]):
            yield member_location(archive, member.name)


def to_clip(name: str, location: str) -> Clip:
    """The clip of a file: its genre stands in its name."""
    genre = name.partition(".")[0].lower()
    return Clip(
        id=f"gtzan/{name.rpartition('.')[0]}",
        source="gtzan",
        location=location,
        captions=(f"This audio is a {genre} song.",),
        tags=(genre,),
        labels=(genre,),
        original=to_json({"file": f"{genre}/{name}"}),
    )
