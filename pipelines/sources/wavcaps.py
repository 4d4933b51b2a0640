"""`wavcaps`: WavCaps, 403,050 sounds of FreeSound, BBC, SoundBible and AudioSet whose descriptions ChatGPT rewrote.

Its blacklists name the clips of evaluation sets: `read_blacklist` gives the recordings.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.clip import Clip, to_json
from pipelines.disk import BuildError
from pipelines.sources.corpus import YOUTUBE, Sounds, missing
from pipelines.sources.rows import telling
from pipelines.sources.table import text

if TYPE_CHECKING:
    from pipelines.sources import Reading

# subset: its list; FreeSound had a second one, fsd_final_2s.json, of clips that are in the first as well
LISTS = {
    "FreeSound": "fsd_final.json",
    "BBC_Sound_Effects": "bbc_final.json",
    "SoundBible": "sb_final.json",
    "AudioSet_SL": "as_final.json",
}
SITES = {"FreeSound": "https://freesound.org", "SoundBible": "https://soundbible.com/"}  # before an item's href
ZIPPED = "mnt/fast/nobackup/scratch4weeks/xm00178/WavCaps/data/waveforms"  # the folder in the published zips
LICENSE = "academic use only"  # of the whole; it stands above the licences of the four sites
ID = re.compile(r"[A-Za-z0-9_-]+")
QUOTED = re.compile(r"""(['"])(.*?)\1\s*(?=,|\]|$)""")
NOWHERE = "Not found"  # in a blacklist: a clip whose recording its authors did not find


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Clips of the subsets whose lists the folder holds; of one subset if `path` is its list."""
    if path.is_dir():
        home, lists = path, {subset: path / "json_files" / subset / name for subset, name in LISTS.items()}
    else:
        home, lists = path.parent, {subset_of(path): path}
    if not any(table.exists() for table in lists.values()):
        raise missing(path, "wavcaps", "json_files/<subset>/<list>.json")
    for subset, table in lists.items():
        if table.exists():
            sounds = sounds_of(subset, home)
            for number, item in enumerate(read_items(table), start=1):
                yield to_clip(subset, number, item, sounds)


def sounds_of(subset: str, home: Path) -> Sounds:
    """The audio of one subset, for different subsets give the same id to different sounds."""
    inside = f"{ZIPPED}/{subset}_flac"
    places = (
        f"audio/{subset}",
        inside,
        f"Zip_files/{subset}/{inside}",
        f"Zip_files/{subset}",
        f"Zip_files/{subset}/*.zip",
    )
    return Sounds(home, *places)


def subset_of(table: Path) -> str:
    """The subset of a list that is given by itself, which its name tells; BuildError if it does not."""
    short = table.stem.partition("_")[0]
    for subset, name in LISTS.items():
        if name.partition("_")[0] == short:
            return subset
    raise BuildError(f"{table} does not say in its name which subset it is: call it {', '.join(LISTS.values())}")


def read_items(table: Path) -> list[dict[str, Any]]:
    """The items of a list; BuildError if it is none."""
    content = read_json(table)
    items = content.get("data") if isinstance(content, dict) else content
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise BuildError(f'{table} is not a list of WavCaps, {{"data": [{{...}}, ...]}}: fetch it again')
    return items


def read_json(path: Path) -> Any:
    """The content of a JSON file, a NaN as None; BuildError if it cannot be read."""
    with telling(path), path.open(encoding="utf-8-sig") as handle:
        return json.load(handle, parse_constant=lambda name: None)


def to_clip(subset: str, number: int, item: dict[str, Any], sounds: Sounds) -> Clip:
    """The clip of an item. AudioSet's items have names of files as ids, "Y<video>.wav"."""
    name = text(item.get("id")).removesuffix(".wav")
    if not ID.fullmatch(name):
        clip = Clip(f"wavcaps/{subset}/row-{number}", "wavcaps", original=to_json(item))
        return clip.reject("manifest", "missing-file", f"{name!r} is not an id")
    return Clip(
        id=f"wavcaps/{subset}/{name}",
        source="wavcaps",
        location=sounds.locate(f"{name}.flac"),
        captions=(text(item.get("caption")),),
        tags=listed(item.get("tags") or item.get("category")),
        license=LICENSE,
        author=text(item.get("author")),
        title=text(item.get("title") or item.get("file_name")),
        url=page(subset, name, item),
        duration=seconds(item.get("duration")),
        recording=recording(subset, name),
        original=to_json(item),
    )


def listed(cell: Any) -> tuple[str, ...]:
    """The texts of a list, which may be printed as Python does: "['a', 'b']"; a bare text is one."""
    if isinstance(cell, list):
        return tuple(text(item) for item in cell)
    said = text(cell)
    if said.startswith("["):
        return tuple(item for _, item in QUOTED.findall(said))
    return (said,) if said else ()


def seconds(value: Any) -> float | None:
    """A duration, 0 too; None for what is none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 <= value < 1e9 else None


def page(subset: str, name: str, item: dict[str, Any]) -> str:
    """Where to give credit."""
    if subset == "AudioSet_SL":
        return YOUTUBE + name.removeprefix("Y")
    href = text(item.get("href"))
    return SITES[subset] + href if href and subset in SITES else text(item.get("download_link"))


def recording(subset: str, name: str) -> str:
    """What a clip was cut from. The part of a video is not published, so it is any part."""
    if subset == "AudioSet_SL":
        return f"youtube:{name.removeprefix('Y')}"
    return f"freesound:{name}" if subset == "FreeSound" else ""


def read_blacklist(path: Path) -> list[str]:
    """The recordings on a blacklist, {"AudioSet": ["Y<video>.wav"], "FreeSound": ["<id>"]}: "youtube:<video>" first.

    BuildError for anything else in it, for a name that is not understood would let its clip through.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not set(content) <= {"AudioSet", "FreeSound"}:
        raise BuildError(f"{path} is not a blacklist of WavCaps: want lists AudioSet and FreeSound")
    found = []
    for subset, shape in (("AudioSet", r"Y([\w-]+)\.wav"), ("FreeSound", r"(\d+)")):
        for name in content.get(subset, []):
            if known := re.fullmatch(shape, text(name), re.ASCII):
                found.append(f"{'youtube' if subset == 'AudioSet' else 'freesound'}:{known[1]}")
            elif name != NOWHERE:
                raise BuildError(f"{path} names {name!r} in {subset}: want Y<video>.wav or a Freesound id")
    return found
