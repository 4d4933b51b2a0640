"""`macs`: MACS, captions and tags of 3,930 clips of TAU Urban Acoustic Scenes 2019, by two to five people each."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.clip import Clip, to_json
from pipelines.disk import BuildError
from pipelines.sources.corpus import Sounds, find
from pipelines.sources.published import compare, spaced
from pipelines.sources.table import several

if TYPE_CHECKING:
    from pipelines.sources import Reading

TAU = "TAU-urban-acoustic-scenes-2019-development"
MD5 = {  # as published on Zenodo, records 5114771 and 2589280
    "MACS.yaml": "23fcb2ebd0b109094034ef9e87972256",
    f"{TAU}.audio.1.zip": "aca4ebfd9ed03d5f747d6ba8c24bc728",
    f"{TAU}.audio.2.zip": "c4f170408ce77c8c70c532bf268d7be0",
    f"{TAU}.audio.3.zip": "c7214a07211f10f3250290d05e72c37e",
    f"{TAU}.audio.9.zip": "3c32a693a6b111ffb957be3c1dd22e9b",
    f"{TAU}.audio.10.zip": "0ffbf60006da520cc761fb74c878b98b",
    f"{TAU}.audio.11.zip": "599055d93b4c11057c29be2df54538d4",
    f"{TAU}.audio.12.zip": "98b8d162ff3665695c4c910e6c372cc8",
    f"{TAU}.audio.13.zip": "a356c08b1a5a21d433eba37ef87587f4",
}
LICENSE = "Tampere University: experimental and non-commercial use"  # of the audio


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Clips in the order of MACS.yaml, with the sentences of all who listened."""
    table = find(path, "macs", "MACS.yaml", "*/MACS.yaml")
    packed = [] if path.is_file() else [f"{TAU}.audio.*.zip"]
    sounds = Sounds(table.parent if path.is_file() else path, "audio", f"{TAU}/audio", *packed, md5=MD5)
    for entry in read_entries(compare(table, MD5)):
        name, said = str(entry.get("filename") or ""), listed(entry.get("annotations"))
        clip = Clip(
            id=f"macs/{Path(name).stem}",
            source="macs",
            location=sounds.locate(name) if name else "",
            captions=tuple(text for each in said if (text := str(each.get("sentence") or ""))),
            tags=tuple(dict.fromkeys(spaced(tag) for each in said for tag in several(each.get("tags")))),
            license=LICENSE,
            title=Path(name).stem,
            original=to_json(entry),
        )
        yield clip if name else clip.reject("manifest", "missing-file", "an entry without a filename")


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The entries below `files`; BuildError if they cannot be read."""
    import yaml

    try:
        with path.open("rb") as handle:
            content = yaml.load(handle, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # C: 20 times as fast
    except yaml.YAMLError as error:
        raise BuildError(f"cannot read {path}: {error}: fetch it again") from error
    if not isinstance(content, dict) or not isinstance(content.get("files"), list):
        raise BuildError(f"{path} has no list `files`: is it the published MACS.yaml?")
    return listed(content["files"])


def listed(items: Any) -> list[dict[str, Any]]:
    """Those items of a list that have fields; none of what is no list."""
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
