"""Sound libraries that publish nothing but audio files with telling names: the caption is the name (LAION's rule).

free_to_use_sounds, sonniss, we_sound_effects and paramount_motion are read alike: a folder or an archive of any depth,
any audio extension in any case; equal names in different folders are different clips.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.clip import Clip
from pipelines.sources import folder

if TYPE_CHECKING:
    from pipelines.sources import Reading


def free_to_use_sounds(path: Path | str, reading: "Reading") -> Iterator[Clip]:
    """Clips of the Free To Use Sounds bundle."""
    return library("free_to_use_sounds", path, reading)


def sonniss(path: Path | str, reading: "Reading") -> Iterator[Clip]:
    """Clips of the Sonniss GDC bundles."""
    return library("sonniss", path, reading)


def we_sound_effects(path: Path | str, reading: "Reading") -> Iterator[Clip]:
    """Clips of We Sound Effects."""
    return library("we_sound_effects", path, reading)


def paramount_motion(path: Path | str, reading: "Reading") -> Iterator[Clip]:
    """Clips of Paramount Motion's sound effects."""
    return library("paramount_motion", path, reading)


def library(name: str, path: Path | str, reading: "Reading") -> Iterator[Clip]:
    """The clips of source `folder` under the library's name; the path below the input is the native id."""
    for clip in folder.clips(path, reading):
        native = clip.id.removeprefix("folder/")
        yield replace(clip, id=f"{name}/{native}", source=name, title=clip.title or Path(native).stem)
