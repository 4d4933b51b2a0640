"""`esc50`: ESC-50, 2,000 clips of 5 s in 50 classes and 5 folds, cut from recordings on Freesound.

The table has the class and fold of each clip. Who made it, and under which licence, stands in the LICENSE beside.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipelines.clip import Clip, to_json
from pipelines.sources.corpus import Sounds, find
from pipelines.sources.published import freesound, rows_with, spaced, whole

if TYPE_CHECKING:
    from pipelines.sources import Reading

COLUMNS = ("filename", "fold", "category", "src_file")
TABLES = ("meta/esc50.csv", "ESC-50-master/meta/esc50.csv", "esc50.csv")
# - [1-100032-A.ogg]: clip derived from rose_bark.wav (http://www.freesound.org/...) by nfrae [CC0]
CREDIT = re.compile(r"- \[([^\]]+)\.\w+\]:\s*clip derived from (.*) \((https?://\S+)\) by (.*) \[([^\]]+)\]")
WHOLE = "http://creativecommons.org/licenses/by-nc/3.0/"  # of the dataset, by its LICENSE
ESC10 = "https://creativecommons.org/licenses/by/3.0/"  # of the part that is ESC-10


class Credit(NamedTuple):
    """What LICENSE says of a clip's recording."""

    title: str = ""
    url: str = ""
    author: str = ""
    license: str = ""


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Clips in the order of meta/esc50.csv; all are of split "train", with their fold."""
    table = find(path, "esc50", *TABLES)
    home = table.parent.parent if table.parent.name == "meta" else table.parent
    sounds, credits = Sounds(home, "audio", "ESC-50-master.zip", "audio.zip"), read_credits(home / "LICENSE")
    for row in rows_with(COLUMNS, table):
        name, label = row["filename"], spaced(row["category"])
        stem = re.sub(r"-\d+$", "", Path(name).stem)  # 1-100032-A-0.wav is of class 0, and 1-100032-A in LICENSE
        credit = credits.get(stem, Credit(license=ESC10 if row.get("esc10") == "True" else WHOLE))
        yield Clip(
            id=f"esc50/{Path(name).stem}",
            source="esc50",
            location=sounds.locate(name),
            tags=(label,),
            labels=(label,),
            fold=whole(row["fold"]),
            split="train",
            recording=freesound(row["src_file"]),
            original=to_json(row),
            **credit._asdict(),
        )


def read_credits(path: Path) -> dict[str, Credit]:
    """{stem of a clip's first file: its credit}, none where there is no LICENSE."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    return {found[1]: Credit(*found.groups()[1:]) for found in CREDIT.finditer(text)}
