"""`slakh`: Slakh2100, single instruments of songs, played from MIDI by sampled instruments.

A clip is a stem: one instrument through one song. The mixes of all stems say less than any of these and are left out.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.clip import Clip, to_json
from pipelines.disk import BuildError
from pipelines.english import sentence
from pipelines.sources.corpus import Sounds, missing
from pipelines.sources.rows import telling
from pipelines.sources.table import SPLITS, text

if TYPE_CHECKING:
    from pipelines.sources import Reading

LICENSE = "CC-BY-4.0"
MADE_OF = {"drums": "drum", "strings": "string", "sound effects": "sound effect", "ethnic": "ethnic instrument",
           "percussive": "percussion"}  # before "music"; other classes stay as they are  # fmt: skip


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """The stems that were rendered, track by track; of one track if `path` is its metadata.yaml.

    Those of tracks in omitted/ are rejected: the redux release omits them as renderings of MIDI files it already has.
    """
    tables = [path] if path.is_file() else sorted(
        table for depth in ("", "*/", "*/*/") for table in path.glob(f"{depth}Track*/metadata.yaml")
    )  # fmt: skip
    if not tables:
        raise missing(path, "slakh", "<split>/Track<number>/metadata.yaml")
    for table in tables:
        group, track = table.absolute().parts[-3:-1]
        for clip in stems(table, track, SPLITS.get(group, "")):
            if group == "omitted":
                yield clip.reject("manifest", "near-duplicate", "its MIDI file is played in another track as well")
            else:
                yield clip


def stems(table: Path, track: str, split: str) -> Iterator[Clip]:
    """The clips of a track."""
    about = read_yaml(table)
    sounds = Sounds(table.parent, "stems")
    for key, stem in sorted(about["stems"].items(), key=str):
        if not isinstance(stem, dict) or not stem.get("audio_rendered", True):
            continue  # there is no such sound
        name = Path(str(key)).name
        instrument = text(stem.get("inst_class")).lower().removesuffix(" (continued)")
        yield Clip(
            id=f"slakh/{track}/{name}",
            source="slakh",
            location=sounds.locate(f"{name}.flac", f"{name}.wav"),
            captions=(caption(instrument, text(stem.get("plugin_name"))),),
            tags=(instrument, text(stem.get("midi_program_name")).lower()),
            license=LICENSE,
            url="http://www.slakh.com/",
            split=split,
            original=to_json(stem | {"track": track, "stem": name, "UUID": about.get("UUID")}),
        )


def read_yaml(table: Path) -> dict[str, Any]:
    """A track's metadata; BuildError if there are no stems in it."""
    import yaml

    try:
        with telling(table):
            about = yaml.safe_load(table.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise BuildError(f"cannot read {table}: {error}") from error
    if not isinstance(about, dict) or not isinstance(about.get("stems"), dict):
        raise BuildError(f"{table} lists no stems: is it the metadata.yaml of a track of Slakh?")
    return about


def caption(instrument: str, plugin: str) -> str:
    """LAION's rule: ("piano", "scarbee_clavinet_full.nkm") > "Playing piano music synthesized with the ... plugin."."""
    music = f"Playing {MADE_OF.get(instrument, instrument)} music"
    name = re.sub(r"\.[a-z]\w{1,4}$", "", plugin.lower()).replace("_", " ")  # the extension of a file, not "v1.2"
    return sentence(f"{music} synthesized with the {name} plugin" if name else music)
