"""`folder`: a tree of audio files, also as an archive or on remote storage. The caption is the file's name, the
label its folder's name on request.

A metadata.csv, .jsonl or .parquet with a `file_name` column is honoured as in Hugging Face's audiofolder, for the
files below its folder; a file that it does not list is left without a caption, not without a row.

What lies in an archive or remotely is seen as a tree below "/", and each clip gets its true location last.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO

from pipelines.archive import Member, is_archive, member_location, members, open_member
from pipelines.clip import Clip, Rejected, to_json
from pipelines.disk import BuildError, tree
from pipelines.local import local_path, member_of, to_location
from pipelines.remote import is_remote, list_remote, open_remote
from pipelines.sources.table import grouped, plan_layout, read_table, recognise, rows_to_clips, section
from pipelines.text import from_name

if TYPE_CHECKING:
    from pipelines.sources import Reading

AUDIO = frozenset(
    ".3gp .aac .ac3 .aif .aifc .aiff .amr .ape .au .caf .flac .m4a .mka .mkv .mov .mp3 .mp4 .oga .ogg .opus "
    ".snd .w64 .wav .wave .webm .wma .wv".split()
)
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


LARGEST_TABLE = 2**30  # bytes


def clips(path: Path | str, reading: "Reading") -> Iterator[Clip]:
    """Clips of a tree in the order of their paths, of an archive in its own; BuildError if `path` is neither."""
    if isinstance(path, str) and is_remote(path):
        yield from remote_clips(path.rstrip("/"), reading)
        return
    path = Path(path).resolve() if ".." in Path(path).parts else Path(path).absolute()
    if is_archive(path):
        places = partial(member_location, path), partial(open_member, path)
        yield from contained(members(path), *places, reading)
    elif path.is_dir():
        sounds, tables = walk(path)
        yield from described(path, sounds, tables, nullcontext, reading)
    else:
        raise BuildError(f"{path} is not a folder: source folder takes a folder of audio files, a zip, tar or tar.gz")


def remote_clips(root: str, reading: "Reading") -> Iterator[Clip]:
    """Clips below a URL such as s3://bucket/sounds or hf://datasets/user/repository."""

    def locate(name: str) -> str:
        return f"{root}/{name}"

    found = (Member(url.removeprefix(root).lstrip("/"), size) for url, size in list_remote(root))
    yield from contained(found, locate, lambda name: open_remote(locate(name)), reading)


def contained(
    found: Iterable[Member],
    locate: Callable[[str], str],
    fetch: Callable[[str], AbstractContextManager[BinaryIO]],
    reading: "Reading",
) -> Iterator[Clip]:
    """Clips of the members of an archive or a remote folder, which are located and fetched by their names."""
    sounds, tables, strays = {}, {}, []
    for member in found:
        path = Path("/", member.name)
        if path.name in METADATA:
            if member.copies or path in tables:
                raise BuildError(f"the table {member.name} is there more than once: leave one, or unpack the input")
            tables[path] = member
        elif path.suffix.lower() in AUDIO:
            if member.trouble or str(path) != f"/{member.name}":
                strays.append(member)
            else:
                sounds[path] = member
    yield from (stray(member, locate(member.name)) for member in strays)
    in_order = sorted(tables, key=lambda path: (len(path.parts), path))
    for clip in described(Path("/"), list(sounds), in_order, lambda path: fetched(tables[path], fetch), reading):
        if is_local(clip):
            path = local_path(clip.location)
            member = sounds.get(path, Member(str(path)[1:], 0))
            clip = replace(clip, location=locate(member.name), size=member.size)
        yield clip


def stray(member: Member, location: str) -> Clip:
    """A clip whose name is no plain path or which cannot be read, so that no table can describe it."""
    caption = from_name(Path(member.name).stem)
    clip = Clip(
        id=f"folder/{escape(Path(member.name))}",
        source="folder",
        location=location,
        size=member.size,
        captions=(caption,),
        original=to_json({"file_name": member.name}),
    )
    return clip.reject("manifest", "bad-archive-member", member.trouble) if member.trouble else clip


@contextmanager
def fetched(table: Member, fetch: Callable[[str], AbstractContextManager[BinaryIO]]) -> Iterator[Path]:
    """A metadata table as a file for as long as it is read; raises BuildError if it cannot be had."""
    with TemporaryDirectory() as folder:
        path = Path(folder, Path(table.name).name)
        try:
            with fetch(table.name) as source, path.open("wb") as target:
                while (block := source.read(2**20)) and target.tell() <= LARGEST_TABLE:
                    target.write(block)
        except Rejected as why:
            raise BuildError(f"cannot read the table {table.name}: {why.reason}: {why.detail}") from why
        if path.stat().st_size > LARGEST_TABLE:
            raise BuildError(f"the table {table.name} is larger than {LARGEST_TABLE} bytes: unpack the input first")
        try:
            yield path
        except BuildError as error:  # names a file that is gone when it is read
            raise BuildError(str(error).replace(str(path), table.name)) from error


def described(
    root: Path,
    sounds: list[Path],
    tables: list[Path],
    opened: Callable[[Path], AbstractContextManager[Path]],
    reading: "Reading",
) -> Iterator[Clip]:
    """Clips of the sounds below `root` and of the rows of the tables there; `opened` gives a table's own file."""
    rows: list[Clip] = []
    for table in tables:
        with opened(table) as file:
            content = read_table(file)
            columns = recognise(content, {"location": "file_name"} | reading.columns(), table)
            # what a table in an archive names lies there too, whatever this machine has of that name
            layout = plan_layout(content, columns, table.parent, "folder", archives=file == table)
            rows += rows_to_clips(content, layout)
    yield from (row for row in rows if not is_local(row))
    listed: dict[str, list[Clip]] = {}
    for clip in grouped(filter(is_local, rows), key=lambda row: (row.location, row.start, row.end, row.detail)):
        listed.setdefault(clip.location, []).append(clip)
    for sound in sounds:
        unlisted = any(sound.is_relative_to(table.parent) for table in tables)
        here = listed.pop(to_location(sound), None) or [from_file(sound, root, captioned=not unlisted)]
        yield from (named(clip, root, reading.labels_from_folders) for clip in here)
    for absent in listed.values():
        yield from (named(clip, root, reading.labels_from_folders) for clip in absent)


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
    member = member_of(clip.location)  # of an archive that a table names
    name = escape(Path(f"{inside}#{member}") if member else inside) + section(clip.start, clip.end)
    return replace(clip, id=f"folder/{name}", labels=(label,) if label else clip.labels)


def escape(path: Path) -> str:
    """A path as readable text: bytes that are not UTF-8, control characters and "%" become %XX."""
    return "".join(
        char if char.isprintable() and char != "%" else "".join(f"%{byte:02X}" for byte in os.fsencode(char))
        for char in str(path)
    )
