"""`clotho`: Clotho v2.1, 5,929 sounds of Freesound of 15 to 30 s, each with five captions written by people.

Splits by their official names: development is train, validation is validation, evaluation is test. LAION had the last
two the other way round. Some recordings lie in several splits; rows are kept as published, and the datacard names them.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.clip import Clip, to_json
from pipelines.disk import BuildError
from pipelines.sources.corpus import Sounds, missing
from pipelines.sources.published import compare, freesound, rows_with

if TYPE_CHECKING:
    from pipelines.sources import Reading

SPLITS = {"development": "train", "validation": "validation", "evaluation": "test"}
CHALLENGE = "test"  # sounds of a DCASE challenge, of which only metadata are published: never part of the corpus
CAPTION = re.compile(r"caption_\d+")
MD5 = {  # of version 2.1, as published on Zenodo, record 4783391
    "clotho_captions_development.csv": "d4090b39ce9f2491908eebf4d5b09bae",
    "clotho_captions_validation.csv": "5879e023032b22a2c930aaa0528bead4",
    "clotho_captions_evaluation.csv": "1b16b9e57cf7bdb7f13a13802aeb57e2",
    "clotho_metadata_development.csv": "170d20935ecfdf161ce1bb154118cda5",
    "clotho_metadata_validation.csv": "2e010427c56b1ce6008b0f03f41048ce",
    "clotho_metadata_evaluation.csv": "13946f054d4e1bf48079813aac61bf77",
}


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Clips of the splits that are there, in the order of their captions; of one table if that is the path.

    Where there are only metadata tables, their clips have no captions; it is still known which recordings they are of.
    """
    tables = [path] if path.is_file() else tables_of(path, "captions") or tables_of(path, "metadata")
    if not tables:
        raise missing(path, "clotho", "clotho_captions_development.csv, _validation or _evaluation")
    for table in tables:
        yield from read_split(table, split_of(table))


def tables_of(root: Path, kind: str) -> list[Path]:
    """The tables of captions or metadata in the corpus's folder or up to two below, one a split."""
    names = [f"clotho_{kind}_{split}.csv" for split in SPLITS]
    found = [[path for depth in ("", "*/", "*/*/") for path in sorted(root.glob(depth + name))] for name in names]
    return [paths[0] for paths in found if paths]


def split_of(table: Path) -> str:
    """The official name of the split that a table is of."""
    found = next((split for split in (*SPLITS, CHALLENGE) if table.stem.lower().endswith(split)), None)
    if found is None:
        raise BuildError(f"{table} is no table of Clotho: want clotho_captions_<split>.csv of {', '.join(SPLITS)}")
    return found


def read_split(table: Path, split: str) -> Iterator[Clip]:
    """The clips of a split, with what its metadata table says of each."""
    sounds = Sounds(table.parent, split, f"clotho_audio_{split}/{split}", f"clotho_audio_{split}",
                    f"../clotho_audio_files/{split}", f"../{split}")  # fmt: skip
    for row in read_rows_of(table, split):
        name, link = row["file_name"], row.get("sound_link", "")
        yield Clip(
            id=f"clotho/{split}/{name}",
            source="clotho",
            location=sounds.locate(name),
            captions=tuple(row[column] for column in sorted(filter(CAPTION.fullmatch, row))),
            tags=tuple(word for each in row.get("keywords", "").split(";") if (word := each.strip())),
            license=row.get("license", ""),
            author=row.get("manufacturer", ""),
            title=Path(name).stem,
            url=link if link.startswith("http") else "",
            split=SPLITS.get(split, split),
            recording=freesound(row.get("sound_id", "")),  # "Not found" for some
            original=to_json(row),
        )


def read_rows_of(table: Path, split: str) -> Iterator[dict[str, str]]:
    """The rows of a captions table with those of the metadata beside it; of a metadata table its own."""
    if "metadata" in table.name:
        yield from read_metadata(table).values()
        return
    beside = table.with_name(f"clotho_metadata_{split}.csv")
    known = read_metadata(beside) if beside.is_file() else {}
    for row in rows_with(["file_name", "caption_1"], compare(table, MD5)):
        yield known.get(row["file_name"].strip(), {}) | row


def read_metadata(path: Path) -> dict[str, dict[str, str]]:
    """{file name: row} of a metadata table, which is Latin-1 and, in one release, separated by ";"."""
    with compare(path, MD5).open(encoding="latin-1") as lines:
        separator = ";" if lines.readline().startswith("file_name;") else ","
    rows = rows_with(["file_name"], path, separator=separator, encoding="latin-1")
    return {row["file_name"].strip(): row for row in rows}
