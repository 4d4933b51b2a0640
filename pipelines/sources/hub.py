"""`hub`: a dataset of the Hugging Face Hub, or a folder in the same layout: Parquet shards, else an audiofolder.

Audio in a shard's Audio column is located as a row of the shard and read from there. Other columns are recognised as
in a table, or given with `--column`; numbers of a ClassLabel become names by the shard's `huggingface` metadata. A
dataset that Clapboard built reads back with what it published, under ids that begin with `hub/`.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote

from pipelines.clip import Clip, Rejected
from pipelines.disk import BuildError, tree
from pipelines.local import local_path, readable, to_location
from pipelines.parquet import audio_leaf, open_shard, row_location
from pipelines.remote import is_remote, list_remote, open_remote
from pipelines.sources import folder
from pipelines.sources.rows import PIECE, Table, plain, telling
from pipelines.sources.table import (
    IN_NAMES,
    Layout,
    Piece,
    piece_to_clips,
    plan_layout,
    read_pieces,
    recognise,
    several,
    split_named,
    splits_in,
)

if TYPE_CHECKING:
    import pyarrow.parquet as pq

    from pipelines.sources import Reading

NUMBERED = re.compile(r"(.+?)-\d{5}-of-\d{5}")  # of a shard's name
OF_RECORDING = ("start", "end", "size", "sha256")


def clips(path: Path | str, reading: "Reading") -> Iterator[Clip]:
    """Clips of the shards in the order of their names; without any, of the audio files there."""
    root = path.rstrip("/") if isinstance(path, str) and is_remote(path) else to_location(Path(path).absolute())
    found, license = shards(root), license_of(root)
    for clip in (clip for shard in found for clip in read_shard(root, shard, reading)):
        yield clip if clip.license else replace(clip, license=license)
    for clip in [] if found else folder.clips(path, reading):
        name, license = clip.id.partition("/")[2], clip.license or license
        yield replace(clip, id=f"hub/{name}", source="hub", split=clip.split or split_above(name), license=license)


def shards(root: str) -> list[str]:
    """The URLs of the Parquet files at or below a URL in the order of names, the metadata of an audiofolder apart."""
    if is_remote(root):
        found = [url for url, _ in list_remote(root)]
    elif (path := local_path(root)).is_dir():
        if (path / "build/recipe.json").exists():
            raise BuildError(f"{path} is the folder of a build: give {path / 'dataset'}, which it published")
        found = [to_location(each / name) for each, _, names in tree(path) for name in names]
    else:
        found = [root]
    hidden = re.compile(r"/\.[^/]*(?=/|$)|/metadata\.parquet$")
    return [url for url in found if url.endswith(".parquet") and not hidden.search(url.removeprefix(root))]


def license_of(root: str) -> str:
    """The licence that a dataset's card states for all of it, "" without one; "other" and such say nothing."""
    import yaml

    try:
        with opened(f"{root}/README.md") as handle:
            front = yaml.safe_load(handle.read(2**20).decode("utf-8", "replace").split("---\n")[1])
    except Rejected as why:
        if why.reason != "missing-file":
            raise BuildError(f"cannot read the card of {root}: {why.detail}: run the same command again") from why
        return ""
    except (IndexError, yaml.YAMLError):
        return ""  # a card that is none for programs
    stated = front.get("license") if isinstance(front, dict) else None
    return stated if isinstance(stated, str) and stated not in ("other", "unknown") else ""


@contextmanager
def opened(url: str) -> Iterator[BinaryIO]:
    """A small file here or remote; raises Rejected if it is not there."""
    if is_remote(url):
        with open_remote(url) as handle:
            yield handle
    else:
        with readable(), local_path(url).open("rb") as handle:
            yield handle


def split_of(name: str) -> str:
    """The split that the path of a shard tells: its own name first, then its folders; "" if none does."""
    *folders, file = name.rpartition(".")[0].split("/")
    for part in (file, *reversed(folders)):
        if known := splits_in(part):
            return known[-1]
    numbered = NUMBERED.fullmatch(file)
    return split_named(numbered[1]) if numbered else ""


def split_above(name: str) -> str:
    """The split of a file of an audiofolder: the outermost folder that is called like one; "" if none is."""
    return next((IN_NAMES[each] for each in name.lower().split("/")[:-1] if each in IN_NAMES), "")


# ---- one shard


def read_shard(root: str, shard: str, reading: "Reading") -> Iterator[Clip]:
    """The clips of a shard, one a row."""
    name = shard.removeprefix(root).strip("/") or shard.rpartition("/")[2]
    name = name if is_remote(root) else unquote(name, errors="replace")
    try:
        with telling(Path(name)), open_shard(shard) as file:
            audio = embedded_in(file, reading.columns())
            layout = layout_of(file, audio, root, name, reading.columns())
            for piece in read_pieces(*layout):
                for row, clip in zip(piece.numbers, with_ours(piece), strict=True):
                    place = row_location(shard, audio, row - 1) if audio else moved(clip.location, root)
                    yield replace(clip, location=place, split=clip.split or split_of(name))
    except Rejected as why:
        raise BuildError(f"cannot read {shard}: {why.reason}: {why.detail}") from why


def base_of(root: str) -> Path:
    """The folder from which a local table's paths start."""
    path = local_path(root)
    return path if path.is_dir() else path.parent


def moved(location: str, root: str) -> str:
    """A location that a remote table names: any file is one of the repository, never one of this machine."""
    if not is_remote(root) or not location.startswith("file:"):
        return location
    return f"{root}{local_path(location)}"


def embedded_in(file: "pq.ParquetFile", given: dict[str, str]) -> str:
    """The column whose rows hold audio itself, "" if the shard names files or addresses.

    It is the column given for the location, else the one that the features call Audio, else one of a usual name.
    """
    stated = [name for name, feature in features_of(file).items()
              if isinstance(feature, dict) and feature.get("_type") == "Audio"]  # fmt: skip
    names = [given["location"]] if "location" in given else [*stated, "audio"]
    return next((name for name in names if (leaf := audio_leaf(file.schema, name)) and holds_bytes(file, leaf)), "")


def layout_of(file: "pq.ParquetFile", audio: str, root: str, name: str, given: dict[str, str]) -> tuple[Table, Layout]:
    """A shard as a table, and how its columns are to be read."""
    table = to_table(file, audio, name.removesuffix(".parquet"))
    columns = recognise(table, given | ({"location": audio} if audio else {}), Path(name))
    if audio:  # what is in a row is the clip: nothing is cut from it, and other facts are of what it was made from
        columns = {field: names for field, names in columns.items() if field not in OF_RECORDING or field in given}
    base = Path("/") if is_remote(root) else base_of(root)
    return table, plan_layout(table, columns, base, "hub", archives=not is_remote(root))


def holds_bytes(file: "pq.ParquetFile", leaf: str) -> bool:
    """Whether any row holds bytes in a leaf, as far as its statistics know; text is no bytes."""
    found = [file.schema.column(i) for i in range(len(file.schema)) if file.schema.column(i).path == leaf]
    if not found or found[0].logical_type.type == "STRING":
        return False
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        chunks = [group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == leaf]
        if any(not part.statistics or part.statistics.null_count < part.num_values for part in chunks):
            return True
    return False


def features_of(file: "pq.ParquetFile") -> dict[str, Any]:
    """The features that `datasets` wrote to a shard, none without."""
    written = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    with telling(Path("its huggingface metadata")):
        features = json.loads(written).get("info", {}).get("features", {})
    return features if isinstance(features, dict) else {}


def to_table(file: "pq.ParquetFile", audio: str, stem: str) -> Table:
    """A shard as a table: no bytes, names for class labels, and for audio its path or <stem>/<row>."""
    leaves = {file.schema.column(i).path: file.schema.column(i) for i in range(len(file.schema))}
    wanted = [
        leaf for leaf, column in leaves.items() if not is_binary(column) and not leaf.startswith("__index_level_")
    ]
    classes = {name: names for name, feature in features_of(file).items() if (names := class_names(feature))}
    rest = [name for name in file.schema_arrow.names if name != audio
            and any((leaf + ".").startswith(name + ".") for leaf in wanted)]  # fmt: skip

    def pieces() -> Iterator[list[list[Any]]]:
        first = 0
        for batch in file.iter_batches(PIECE, columns=wanted, use_threads=False):
            cells = [
                [named(plain(cell), classes.get(name)) for cell in batch.column(name).to_pylist()] for name in rest
            ]
            paths = batch.column(audio).to_pylist() if f"{audio}.path" in wanted else [None] * batch.num_rows
            places = [path_in(cell) or f"{stem}/{row}" for row, cell in enumerate(paths, start=first)]
            yield [places, *cells] if audio else cells
            first += batch.num_rows

    return Table([audio, *rest] if audio else rest, pieces)


def is_binary(column: Any) -> bool:
    """Whether a leaf of a Parquet schema holds bytes that are no text."""
    return column.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY") and column.logical_type.type == "NONE"


def path_in(cell: Any) -> str:
    """The name that an Audio cell gives; of a path on somebody's machine only the last part."""
    path = cell.get("path") if isinstance(cell, dict) else None
    return (PurePosixPath(path).name if path.startswith("/") else path) if path else ""


def class_names(feature: Any) -> list[str]:
    """The names of a ClassLabel, also of a list of such; none for another feature."""
    if isinstance(feature, list):
        return class_names(feature[0]) if feature else []
    if not isinstance(feature, dict):
        return []
    return (
        list(feature.get("names", [])) if feature.get("_type") == "ClassLabel" else class_names(feature.get("feature"))
    )


def named(cell: Any, names: list[str] | None) -> Any:
    """A cell with class names for numbers; a number without a name (-1) is none."""
    if names is None or cell is None:
        return cell
    if isinstance(cell, list):
        return [name for each in cell if (name := named(each, names)) is not None]
    return names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else None


def with_ours(piece: Piece) -> Iterator[Clip]:
    """The clips of a piece with those fields that only a dataset of Clapboard publishes."""
    names = ("generated", "generated_by", "generated_scores")
    blank: list[Any] = [None] * len(piece.numbers)
    columns = [piece.cells[piece.layout.names.index(name)] if name in piece.layout.names else blank for name in names]
    for clip, said, by, scores in zip(piece_to_clips(piece), *columns, strict=True):
        if isinstance(said, list) and isinstance(by, str) and by:  # anybody may call a column "generated"
            sentences = tuple(several(said))
            ours = isinstance(scores, list) and len(scores) == len(sentences) and all(map(is_score, scores))
            clip = replace(clip, generated=sentences, generated_by=by, generated_scores=tuple(scores) if ours else ())
        yield clip


def is_score(score: Any) -> bool:
    """Whether it is what our captioner says of a sentence."""
    return (isinstance(score, dict) and set(score) == {"coverage", "invention", "logprob"}
            and all(isinstance(value, float) for value in score.values()))  # fmt: skip
