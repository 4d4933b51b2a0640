"""`laion`: what LAION released of its audio: tables of addresses with captions, and WebDataset tars of FLAC and JSON.

A table has the columns url, caption or caption1, caption2, ..., caption_t5 and an id (freesound_id, epidemic_id).
A tar, <dataset>/<split>/<n>.tar, holds <key>.flac and <key>.json {text, tag, original_data, text_augment_t5, ...};
its members are read where they lie. sizes.json beside the tars says how many pairs each holds: a tar with another
number, or one that is not there, ends the build. Half a pair stays a row, rejected. What LAION's T5 wrote is
`generated`, never a caption.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.archive import Member, member_location, members, open_member
from pipelines.clip import Clip, Rejected, to_json
from pipelines.disk import BuildError
from pipelines.recording import FREESOUND
from pipelines.sources.corpus import missing
from pipelines.sources.published import freesound
from pipelines.sources.rows import read_table
from pipelines.sources.table import SPLITS, natural, several, splits_in, text
from pipelines.text import public

if TYPE_CHECKING:
    from pipelines.sources import Reading

TABLES = (".csv", ".parquet")
T5 = "laion-t5"
AUDIO = (".flac", ".wav", ".mp3", ".ogg")
CAPTION = re.compile(r"caption_?\d*")
LARGEST_JSON = 2**24  # bytes


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Clips of a table or a tar, or of those below a folder: tables first, then tars, each in the order of names."""
    found = [path] if path.is_file() else sorted(path.rglob("*"), key=lambda each: (each.parent, natural_name(each)))
    tables = [each for each in found if each.suffix.lower() in TABLES]
    tars = [each for each in found if each.suffix.lower() == ".tar"]
    if not tables and not tars:
        raise missing(path, "laion", "a table (.csv, .parquet) or tars")
    for folder in dict.fromkeys(tar.parent for tar in tars):
        refuse_absent(folder)
    for table in tables:
        yield from read_release(table)
    for tar in tars:
        yield from read_tar(tar.absolute())


def natural_name(path: Path) -> tuple[str, int]:
    """Sort key under which 10.tar follows 9.tar."""
    return natural((path.name, ""))


# ---- tables


def read_release(path: Path) -> Iterator[Clip]:
    """The clips of a table; BuildError if it has no addresses."""
    table = read_table(path)
    if "url" not in table.columns:
        raise BuildError(f"{path} has no column url; it has {', '.join(map(str, table.columns))}: is it LAION's table?")
    number = 0
    for piece in table.pieces():
        for cells in zip(*piece, strict=True):
            number += 1
            yield from_row(dict(zip(map(str, table.columns), cells, strict=True)), path, number)


def from_row(row: dict[str, Any], path: Path, number: int) -> Clip:
    """The clip of a row; one whose address is not of the web is rejected."""
    url = text(row["url"])
    named = next((text(row[name]) for name in row if re.fullmatch(r"(\w+_)?id", name) and text(row[name])), "")
    captions = sorted(filter(CAPTION.fullmatch, row), key=lambda name: natural((name, "")))
    credit = of_freesound(row)
    clip = Clip(
        id=f"laion/{path.stem}/{named or public(url) or f'row-{number}'}",
        source="laion",
        location=url,
        captions=tuple(said for name in captions for said in several(row[name])),
        url=f"https://freesound.org/s/{credit.partition(':')[2]}/" if credit else public(url),
        split=split_in(path.stem),
        recording=credit,
        original=to_json(row),
        **written_by_t5(row.get("caption_t5")),
        **credits(row),
    )
    if not url:
        return clip.reject("manifest", "missing-file", f"row {number} names no address")
    if not url.startswith(("http://", "https://")):
        return clip.reject("manifest", "unsupported-url", f"row {number} names {url.partition('://')[0]}, not the web")
    return clip


def split_in(stem: str) -> str:
    """The split that a table's name tells, "" if it names none or several (freesound_train+test)."""
    found = set(splits_in(stem))
    return found.pop() if len(found) == 1 else ""


def of_freesound(data: dict[str, Any]) -> str:
    """The Freesound recording that metadata name, by an id or an address; "" if none."""
    names = ["freesound_id", "fsID", "sound_id", *(["fname"] if "mids(class_label_id)" in data else [])]  # of FSD50K
    ids = [text(data.get(name)) for name in names]
    found = [match[1] for cell in data.values() if isinstance(cell, str) and (match := FREESOUND.search(cell))]
    return next((recording for each in ids + found if (recording := freesound(each))), "")


def credits(data: dict[str, Any]) -> dict[str, Any]:
    """Licence, author and title, by the names under which the sources of LAION give them."""
    authors = (data.get(name) for name in ("username", "uploader", "manufacturer", "author"))
    return {
        "license": text(data.get("license")),
        "author": next(filter(None, map(text, authors)), ""),
        "title": text(data.get("title")),
    }


def written_by_t5(said: Any) -> dict[str, Any]:
    """Fields of Clip for sentences that LAION's T5 made, none without."""
    sentences = tuple(several(said))
    return {"generated": sentences, "generated_by": T5} if sentences else {}


# ---- tars


def refuse_absent(folder: Path) -> None:
    """Raise BuildError if sizes.json of a folder names a tar that is not there."""
    for name in read_sizes(folder):
        if not (folder / name).is_file():
            raise BuildError(f"{folder} has no {name}, which its sizes.json names: fetch it, or take it out of there")


def read_sizes(folder: Path) -> dict[str, int]:
    """{name of a tar: pairs in it} of the sizes.json in a folder, none without."""
    path = folder / "sizes.json"
    if not path.is_file():
        return {}
    try:
        sizes = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): int(count) for name, count in sizes.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise BuildError(f"cannot read {path}: {error}: fetch it again, or delete it to count nothing") from error


def read_tar(tar: Path) -> Iterator[Clip]:
    """The clips of a tar in its order; BuildError if it holds another number of pairs than sizes.json says.

    Where a key has two sounds, the first is the pair's; the others follow all pairs, as halves.
    """
    pairs: dict[str, dict[str, Member]] = {}
    others: dict[str, dict[str, Member]] = {}
    for member in members(tar):
        key, dot, kind = member.name.rpartition(".")
        if f"{dot}{kind.lower()}" in (*AUDIO, ".json"):
            half = "json" if kind.lower() == "json" else "audio"
            if pairs.setdefault(key, {}).setdefault(half, member) is not member:
                others[member.name] = {half: member}
    wanted = read_sizes(tar.parent).get(tar.name, len(pairs))
    if wanted != len(pairs):
        raise BuildError(f"{tar} holds {len(pairs)} pairs, but its sizes.json says {wanted}: fetch it again")
    for key, pair in [*pairs.items(), *others.items()]:
        yield from_pair(tar, key, pair)


def from_pair(tar: Path, key: str, pair: dict[str, Member]) -> Clip:
    """The clip of a pair, rejected if a half is missing or cannot be read."""
    folder, name = tar.parent, key.rpartition("/")[2]
    clip = Clip(
        id=f"laion/{folder.parent.name}/{folder.name}/{tar.stem}/{name}",
        source="laion",
        split=SPLITS.get(folder.name.lower(), ""),
        location=member_location(tar, pair["audio"].name if "audio" in pair else f"{key}.flac"),
        size=pair["audio"].size if "audio" in pair else None,
    )
    trouble = next((member.trouble for member in pair.values() if member.trouble), "")
    if len(pair) < 2 or trouble:
        lacking = "json" if "audio" in pair else "audio"
        return clip.reject("manifest", "bad-archive-member", trouble or f"{key} has no {lacking} in {tar.name}")
    try:
        return with_text(clip, read_json(tar, pair["json"].name))
    except Rejected as why:
        return clip.reject("manifest", why.reason, why.detail)


def with_text(clip: Clip, data: dict[str, Any]) -> Clip:
    """The clip with what its JSON says."""
    known = data.get("original_data")
    known = known if isinstance(known, dict) else {}
    url = next((text(known[name]) for name in ("sound_link", "url", "download_url") if text(known.get(name))), "")
    fields = {
        "captions": tuple(several(data.get("text"))),
        "tags": tuple(several(data.get("tag"))),
        "url": public(url) if url.startswith("http") else "",
        "recording": of_freesound(known),
        "original": to_json(data),
    }
    ours = {}  # what only a dataset of Clapboard's holds, exported to this layout
    if isinstance(known.get("labels"), list) and isinstance(known.get("fold"), int):
        ours = {"labels": tuple(several(known["labels"])), "fold": known["fold"]}
    written = written_by_t5(data.get("text_augment_t5"))
    if written and text(known.get("generated_by")):
        written["generated_by"] = text(known["generated_by"])
    return Clip(**(vars(clip) | fields | credits(known) | ours | written))


def read_json(tar: Path, name: str) -> dict[str, Any]:
    """The object in a member; raises Rejected if it is none."""
    with open_member(tar, name) as handle:
        content = handle.read(LARGEST_JSON + 1)
    try:
        data = json.loads(content) if len(content) <= LARGEST_JSON else None
    except (ValueError, RecursionError) as error:
        raise Rejected("bad-archive-member", f"{name}: {error}") from error
    if not isinstance(data, dict):
        raise Rejected("bad-archive-member", f"{name} is not a JSON object of at most {LARGEST_JSON} bytes")
    return data
