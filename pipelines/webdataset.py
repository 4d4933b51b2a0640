"""A dataset as WebDataset tars in LAION's layout, which laion_clap's own loader reads.

OUT/<train|valid|test>/0.tar ... with <key>.flac and <key>.json of 512 clips each, and sizes.json {"0.tar": 512, ...}.
The tars are the same for the same dataset, whenever and wherever they are written.
"""

import hashlib
import io
import json
import re
import sys
import tarfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.disk import BuildError, atomic, write_text
from pipelines.verify import bar, check_cheap, shards

PER_TAR = 512  # clips, as LAION wrote them
FOLDERS = {"validation": "valid"}  # LAION's word where it differs
ELSEWHERE = ("audio", "captions", "tags", "fingerprint")  # bytes, or a key of their own in the JSON


@dataclass(frozen=True)
class Piece:
    """A row group of a split: where it lies, the number of its first clip in the split, and how many it has."""

    path: Path
    group: int
    first: int
    rows: int


def export_webdataset(dataset: Path, out: Path, per_tar: int = PER_TAR) -> dict[str, Any]:
    """Write a dataset (its folder, with README.md and data) as tars; returns tars and clips by folder.

    Run again, it continues: tars that are there are complete. Raises BuildError for a dataset without audio, one
    that is not complete, and a folder that holds tars of another dataset.
    """
    splits = check(dataset, per_tar)
    if out.resolve().is_relative_to(dataset.resolve()):
        raise BuildError(f"--out {out} lies inside the dataset {dataset}: choose a folder outside it")
    out.mkdir(parents=True, exist_ok=True)
    begin(out, splits, per_tar)
    total = sum(piece.rows for pieces in splits.values() for piece in pieces)
    written = {}
    with bar("clips", total) as count:
        for split, pieces in splits.items():
            folder = FOLDERS.get(split, split)
            written[folder] = export_split(pieces, out / folder, per_tar, count)
    return {"clips": total, "splits": written}


def check(dataset: Path, per_tar: int) -> dict[str, list[Piece]]:
    """The row groups of each split; raises BuildError for a dataset that is wrong, empty or without audio."""
    import pyarrow.parquet as pq

    if per_tar < 1:
        raise BuildError(f"--per-tar {per_tar}: want at least 1 clip in a tar")
    if not (dataset / "README.md").exists():
        raise BuildError(f"{dataset} holds no complete dataset: want the folder with README.md and data")
    if problems := check_cheap(dataset):
        first = f"{problems[0]['where']} {problems[0]['what']}"
        raise BuildError(f"{first} ({len(problems)} problems in all): see `verify`, build again, then export")
    splits = {}
    for split, paths in shards(dataset).items():
        for path in paths:
            if "audio" not in pq.read_schema(path).names:
                raise BuildError(f"{path} holds metadata only, and tars need audio: build without --metadata-only")
        splits[split] = list(lay_out(paths))
    if not any(splits.values()):
        raise BuildError(f"{dataset} holds no clip: nothing to export")
    return splits


def lay_out(paths: list[Path]) -> Iterator[Piece]:
    """The row groups of a split's shards, in order."""
    import pyarrow.parquet as pq

    first = 0
    for path in paths:
        footer = pq.read_metadata(path)
        for group in range(footer.num_row_groups):
            rows = footer.row_group(group).num_rows
            yield Piece(path, group, first, rows)
            first += rows


def begin(out: Path, splits: dict[str, list[Piece]], per_tar: int) -> None:
    """Remember in OUT/export.json what the tars are made of; raises BuildError if it is something else."""
    paths = dict.fromkeys(piece.path for pieces in splits.values() for piece in pieces)
    made_of = {"per_tar": per_tar, "shards": {path.name: footer_digest(path) for path in paths}}
    note = out / "export.json"
    if note.exists():
        if json.loads(note.read_text(encoding="utf-8")) != made_of:
            raise BuildError(f"{out} holds tars of another dataset or size: remove it, or choose another --out")
        for leftover in out.glob("*/.*.tmp"):  # of a killed export
            leftover.unlink()
        kept = len(list(out.glob("*/*.tar")))
        print(f"continuing: {kept} finished tars in {out} are kept", file=sys.stderr)
    elif any(out.glob("[!.]*")):
        raise BuildError(f"{out} is not empty and not an export of ours: remove it, or choose another --out")
    else:
        write_text(note, json.dumps(made_of, indent=1) + "\n")


def footer_digest(path: Path) -> str:
    """SHA-256 of a Parquet file's size and footer, which holds the place and the bounds of every column."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        handle.seek(-8, io.SEEK_END)
        length = int.from_bytes(handle.read(4), "little")
        handle.seek(-8 - length, io.SEEK_END)
        return hashlib.sha256(size.to_bytes(8, "little") + handle.read(length)).hexdigest()


def export_split(pieces: list[Piece], folder: Path, per_tar: int, count: Callable[[int], None]) -> dict[str, int]:
    """Write those tars of a split that are not there, and sizes.json last."""
    total = pieces[-1].first + pieces[-1].rows if pieces else 0
    sizes = {}
    for start in range(0, total, per_tar):
        end, path = min(start + per_tar, total), folder / f"{start // per_tar}.tar"
        if not path.exists():
            with atomic(path) as temporary:
                write_tar(temporary, read_rows(pieces, start, end))
        sizes[path.name] = end - start
        count(end - start)
    write_text(folder / "sizes.json", json.dumps(sizes, indent=1) + "\n")
    return {"tars": len(sizes), "clips": total}


def read_rows(pieces: list[Piece], start: int, end: int) -> Iterator[dict[str, Any]]:
    """Clips `start` to `end` of a split; only the row groups that hold them are read."""
    import pyarrow.parquet as pq

    at = bisect_right(pieces, start, key=lambda piece: piece.first) - 1
    for piece in pieces[at:]:
        if piece.first >= end:
            break
        table = pq.ParquetFile(piece.path).read_row_group(piece.group, use_threads=False)
        begin = max(0, start - piece.first)
        yield from table.slice(begin, min(end - piece.first, piece.rows) - begin).to_pylist()


def write_tar(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write clips as pairs of FLAC and JSON."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            name = key(row["id"])
            add(tar, f"{name}.flac", row["audio"]["bytes"])
            add(tar, f"{name}.json", json.dumps(describe(row), ensure_ascii=False, sort_keys=True).encode())


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file that says nothing of when, where and by whom it was written."""
    member = tarfile.TarInfo(name)  # its time, owner and group are 0
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def key(id: str) -> str:
    """A clip's name in a tar: what is readable of its id, and a digest that keeps it unique.

    Nothing but ASCII letters, digits, "-" and "_": the loader takes a dot for the start of the extension.
    """
    return f"{re.sub(r'[^A-Za-z0-9-]+', '_', id)[:60]}-{hashlib.sha256(id.encode()).hexdigest()[:12]}"


def describe(row: dict[str, Any]) -> dict[str, Any]:
    """A clip's JSON with LAION's keys; what has none of its own goes into `original_data`."""
    others = {name: value for name, value in row.items() if name not in ELSEWHERE}
    others["original"] = json.loads(row["original"] or "null")
    tags = list(dict.fromkeys([*row["tags"], *row["labels"]]))
    found = {"text": row["captions"], "tag": tags, "original_data": others}
    if row["generated"]:
        found["text_augment_t5"] = row["generated"][0]
        found["text_augment_all"] = [*row["captions"], *row["generated"]]
    return found
