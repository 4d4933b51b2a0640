"""`fsd50k`: FSD50K, 51,197 sounds of Freesound with labels of 200 classes of AudioSet's ontology, checked by people.

Ground truth names the labels, the clips' info (title, tags, licence, uploader) stands in a JSON beside. The file name
is the Freesound id. Labels are those of the row alone and in its order, whether or not the row names their mids.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.clip import Clip, to_json
from pipelines.disk import BuildError
from pipelines.sources.corpus import Sounds, find
from pipelines.sources.published import freesound, rows_with, spaced
from pipelines.sources.table import several

if TYPE_CHECKING:
    from pipelines.sources import Reading

SPLITS = {"train": "train", "val": "validation"}  # of dev.csv; eval.csv has no such column
MD5 = {  # as published on Zenodo, record 4060432
    "FSD50K.dev_audio.zip": "c480d119b8f7a7e32fdb58f3ea4d6c5a",
    "FSD50K.eval_audio.zip": "6fa47636c3a3ad5c7dfeba99f2637982",
}


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Clips of dev.csv, then of eval.csv; of one of them if that is the path."""
    if path.is_file():
        yield from read_subset(path, path, subset_of(path))
        return
    for subset in ("dev", "eval"):
        table = find(path, "fsd50k", f"FSD50K.ground_truth/{subset}.csv", f"{subset}.csv")
        yield from read_subset(path, table, subset)


def subset_of(table: Path) -> str:
    """ "dev" or "eval", from the name of a table that was given itself."""
    for subset in ("dev", "eval"):
        if subset in table.stem.lower():
            return subset
    raise BuildError(
        f"{table} is neither dev.csv nor eval.csv of FSD50K: give one of them, or the folder that has both"
    )


def read_subset(root: Path, table: Path, subset: str) -> Iterator[Clip]:
    """The clips of one ground truth table."""
    name = f"FSD50K.{subset}_audio"
    sounds = Sounds(table.parent.parent, name) if root.is_file() else Sounds(root, name, f"{name}.zip", md5=MD5)
    known = read_info(table, subset)
    for row in rows_with(("fname", "labels", "split") if subset == "dev" else ("fname", "labels"), table):
        number, info = row["fname"], known.get(row["fname"], {})
        labels = tuple(word for each in row["labels"].split(",") if (word := spaced(each)))
        if subset == "dev" and row["split"] not in SPLITS:
            raise BuildError(f"{table} has the split {row['split']!r}: want {' or '.join(SPLITS)}")
        yield Clip(
            id=f"fsd50k/{number}",
            source="fsd50k",
            location=sounds.locate(f"{number}.wav"),
            tags=tuple(dict.fromkeys([*labels, *several(info.get("tags"))])),
            labels=labels,
            license=str(info.get("license") or ""),
            author=str(info.get("uploader") or ""),
            title=str(info.get("title") or ""),
            url=f"https://freesound.org/s/{number}/",
            split="test" if subset == "eval" else SPLITS[row["split"]],
            recording=freesound(number),
            original=to_json(row | info),
        )


def read_info(table: Path, subset: str) -> dict[str, dict[str, Any]]:
    """{fname: what is known of the clip}, none where the file of it is not there; BuildError if it cannot be read."""
    places = [table.parent.parent / "FSD50K.metadata", table.parent]
    path = next((path for place in places if (path := place / f"{subset}_clips_info_FSD50K.json").is_file()), None)
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BuildError(f"cannot read {path}: {error}: fetch FSD50K.metadata.zip again") from error
    if not isinstance(content, dict):
        raise BuildError(f"{path} is not an object of clips by their names: fetch FSD50K.metadata.zip again")
    return {name: info for name, info in content.items() if isinstance(info, dict)}
