"""`folder`: a tree of audio files. The caption is the file's name, the label its folder's name on request.

A metadata.csv, .jsonl or .parquet with a `file_name` column is honoured as in Hugging Face's audiofolder, for the
files below its folder; a file that it does not list is left without a caption, not without a row.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.clip import Clip, Rejected, to_json
from pipelines.disk import BuildError, tree
from pipelines.download import local_path, to_location
from pipelines.sources.table import grouped, read_table, recognise, rows_to_clips
from pipelines.text import from_name, says_something

if TYPE_CHECKING:
    from pipelines.sources import Reading

AUDIO = frozenset(
    ".3gp .aac .ac3 .aif .aifc .aiff .amr .ape .au .caf .flac .m4a .mka .mkv .mov .mp3 .mp4 .oga .ogg .opus "
    ".snd .w64 .wav .wave .webm .wma .wv".split()
)
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Clips of a tree in the order of their paths; raises BuildError if `path` is not a folder."""
    if not path.is_dir():
        raise BuildError(f"{path} is not a folder: source folder takes a folder of audio files")
    path = path.absolute()
    sounds, tables = walk(path)
    rows: list[Clip] = []
    for table in tables:
        frame = read_table(table)
        columns = recognise(frame, {"location": "file_name"} | reading.columns(), table)
        rows += rows_to_clips(frame, columns, table.parent, "folder")
    yield from (row for row in rows if not is_local(row))
    listed = {clip.location: clip for clip in grouped(filter(is_local, rows), key=lambda row: row.location)}
    for sound in sounds:
        unlisted = any(sound.is_relative_to(table.parent) for table in tables)
        here = to_location(sound)
        clip = listed.pop(here) if here in listed else from_file(sound, path, captioned=not unlisted)
        yield named(clip, path, reading.labels_from_folders)
    for absent in listed.values():
        yield named(absent, path, reading.labels_from_folders)


def is_local(clip: Clip) -> bool:
    """Whether a row names a file; one that does not goes on as it is, to be rejected with its reason."""
    try:
        return bool(local_path(clip.location).name)
    except Rejected:
        return False


def walk(root: Path) -> tuple[list[Path], list[Path]]:
    """Everything under `root` that is named like audio (folders and dead links too), and metadata tables."""
    sounds, tables = [], []
    for folder, folders, files in tree(root):
        sounds += [folder / name for name in sorted(files + folders) if Path(name).suffix.lower() in AUDIO]
        tables += [folder / name for name in METADATA if name in files]
    return sounds, tables


def from_file(path: Path, root: Path, captioned: bool) -> Clip:
    """A clip of which only the file is known."""
    caption = from_name(path.stem) if captioned else ""
    return Clip(
        id="",
        source="folder",
        location=to_location(path),
        captions=(caption,) if caption else (),
        original=to_json({"file_name": str(path.relative_to(root))}),
    )


def named(clip: Clip, root: Path, labelled: bool) -> Clip:
    """The clip with its path below `root` as native id (odd bytes as %XX) and, on request, its label."""
    path = local_path(clip.location)
    inside = path.relative_to(root) if path.is_relative_to(root) else path
    label = from_name(inside.parent.name) if labelled and not clip.labels else ""
    clip = replace(clip, id=f"folder/{escape(inside)}", labels=(label,) if label else clip.labels)
    if label and clip.captions == (from_name(path.stem),) and not says_something(clip.captions[0]):
        return replace(clip, captions=())  # the label says more than a number
    return clip


def escape(path: Path) -> str:
    """A path as readable text: bytes that are not UTF-8, control characters and "%" become %XX."""
    return "".join(
        char if char.isprintable() and char != "%" else "".join(f"%{byte:02X}" for byte in os.fsencode(char))
        for char in str(path)
    )
