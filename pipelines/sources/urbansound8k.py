"""`urbansound8k`: UrbanSound8K, 8,732 clips of at most 4 s in 10 classes and 10 folds, cut from Freesound recordings.

`start` and `end` of its table count in the recording that a clip was cut from: they are no section of its file.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.clip import Clip, to_json
from pipelines.sources.corpus import Sounds, find
from pipelines.sources.published import freesound, rows_with, spaced, whole

if TYPE_CHECKING:
    from pipelines.sources import Reading

COLUMNS = ("slice_file_name", "fsID", "fold", "class")
TABLES = ("metadata/UrbanSound8K.csv", "UrbanSound8K/metadata/UrbanSound8K.csv", "UrbanSound8K.csv")
LICENSE = "http://creativecommons.org/licenses/by-nc/3.0/"  # of the dataset, by its README
MD5 = {"UrbanSound8K.tar.gz": "9aa69802bbf37fb986f71ec1483a196e"}


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Clips in the order of metadata/UrbanSound8K.csv; all are of split "train", with their fold."""
    table = find(path, "urbansound8k", *TABLES)
    home = table.parent.parent if table.parent.name == "metadata" else table.parent
    if path.is_dir():
        sounds = Sounds(path, "audio", "UrbanSound8K/audio", "UrbanSound8K.tar.gz", md5=MD5)
    else:
        sounds = Sounds(home, "audio")
    for row in rows_with(COLUMNS, table):
        name, label, number = row["slice_file_name"], spaced(row["class"]), row["fsID"].strip()
        yield Clip(
            id=f"urbansound8k/{Path(name).stem}",
            source="urbansound8k",
            location=sounds.locate(f"fold{row['fold']}/{name}"),
            tags=(label,),
            labels=(label,),
            license=LICENSE,
            url=f"https://freesound.org/s/{number}/" if number else "",
            fold=whole(row["fold"]),
            split="train",
            recording=freesound(number),
            original=to_json(row),
        )
