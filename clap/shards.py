"""Shards of a dataset: found in a folder, on the Hub or in object storage, and read in place, a row group at a time.

What is remote is streamed through fsspec: footers and small columns once, the audio of a row group as it is needed,
each as one request for a range of bytes. Where a service is, and with which credentials, its library takes from the
environment (HF_ENDPOINT, HF_TOKEN, AWS_..., GOOGLE_...).
"""

import re
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from clap.config import ClapError
from clap.text import HUB_ID

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

T = TypeVar("T")

SHARD = re.compile(r"(?P<split>.+)-(?P<index>\d{5})-of-(?P<total>\d{5})\.parquet")
WEIGHTED = re.compile(r"(?P<name>.+):(?P<weight>\d+\.?\d*|\.\d+)")
ATTEMPTS = 4  # at a remote shard, beside those its library makes
PAUSE = 1.0  # s before the second attempt, doubled before each that follows
STEP = 2**20  # bytes that are fetched at once where only a few rows of a row group are wanted
FEW = 3  # clips of a row group by which a shard is known, beside its footer


class DataError(ClapError):
    """A dataset that cannot be trained or evaluated on; the message says what, where and what to do."""


def weighted(name: str) -> tuple[str, Fraction]:
    """A dataset and how often its rows come in an epoch: of PATH:2.5 PATH and 5/2, of a name without number 1."""
    match = WEIGHTED.fullmatch(name)
    if match is None or Path(name).is_dir():
        return name, Fraction(1)
    if not (weight := Fraction(match["weight"])):
        raise DataError(f"{name} has the weight 0: leave the dataset out, or give a number above 0")
    return match["name"], weight


def splits(name: str) -> set[str]:
    """Names of the splits of a dataset."""
    return {match["split"] for match in map(SHARD.fullmatch, _listed(weighted(name)[0])[1]) if match}


def find(name: str, split: str) -> list[Path | str]:
    """Paths, or URLs, of the shards of a split, in order ("all": of every one).

    All of them must be there, for their names say how many there are.
    """
    root, files = _listed(name)
    matches = [match for match in map(SHARD.fullmatch, files) if match]
    wanted = [match for match in matches if split in ("all", match["split"])]
    if not wanted:
        known = ", ".join(sorted({match["split"] for match in matches}))
        raise DataError(
            f"{root} has no split {split!r}: "
            + (f"it has {known}" if known else "it has no shards in data/; give the folder build-dataset made")
        )
    there = {match.string for match in wanted}
    totals = {(match["split"], match["total"]) for match in wanted}
    expected = {f"{split}-{i:05d}-of-{total}.parquet" for split, total in totals for i in range(int(total))}
    if there != expected or len(totals) != len(dict(totals)):
        odd = ", ".join(sorted(expected - there)) or "shards of two builds"
        raise DataError(f"{root}/data is not whole or not of one build ({odd}): build or copy it again")
    return [root / "data" / each.string if isinstance(root, Path) else f"{root}/data/{each.string}" for each in wanted]


def _listed(name: str) -> tuple[Path | str, list[str]]:
    """A dataset's folder or URL, and the names of the files in its data/."""
    if Path(name).is_dir():
        return Path(name), sorted(path.name for path in (Path(name) / "data").glob("*.parquet"))
    if "://" not in name and not HUB_ID.fullmatch(name):
        raise DataError(
            f"no dataset at {name}: give the folder that build-dataset made (OUT/dataset), a Hub id, or a URL of "
            "storage (hf://, s3://, gs://)"
        )
    from fsspec.core import url_to_fs

    url = name.rstrip("/") if "://" in name else f"hf://datasets/{name}"
    try:
        files, path = url_to_fs(url)
        return url, sorted(Path(each).name for each in files.glob(f"{path}/data/*.parquet"))
    except ImportError as error:
        raise DataError(f"{url} needs a package that is not installed: {error}") from error
    except Exception as error:  # libraries of storage have no base class in common
        service = "the Hugging Face Hub" if url.startswith("hf://") else "storage"
        raise DataError(f"{name} is no folder here, and {service} did not give it: {error}") from error


def read(shard: Path | str, work: Callable[["pq.ParquetFile"], T], step: int = 0, attempts: int = ATTEMPTS) -> T:
    """What `work` makes of a shard, open; where it is remote, it is tried a few times before DataError is raised.

    `step`: of a remote one, fetch columns in such pieces, bytes, as far as they are read (0: whole).
    """
    import pyarrow as pa

    remote = "://" in str(shard)
    try:
        return _remote(str(shard), work, step) if remote else _local(shard, work)
    except (ClapError, MemoryError):
        raise
    except pa.ArrowInvalid as error:
        raise DataError(f"{shard} is no whole Parquet file: build or copy it again") from error
    except Exception as error:  # libraries of storage have no base class in common
        final = attempts == 1 or isinstance(error, FileNotFoundError | PermissionError | ImportError)
        if not remote or final:
            raise DataError(
                f"{shard} cannot be read ({type(error).__name__}: {error}): when it can, start again, which goes "
                "on where this stopped, or copy the dataset here"
            ) from error
    time.sleep(PAUSE * 2 ** (ATTEMPTS - attempts))
    return read(shard, work, step, attempts - 1)


def _local(shard: Path | str, work: Callable[["pq.ParquetFile"], T]) -> T:
    import pyarrow.parquet as pq

    with pq.ParquetFile(shard, memory_map=True) as file:
        return work(file)


def _remote(shard: str, work: Callable[["pq.ParquetFile"], T], step: int) -> T:
    import pyarrow.parquet as pq
    from fsspec.core import url_to_fs

    files, path = url_to_fs(shard)
    # Arrow's own threads, which read ahead, can abort a process that ends while they let go of a Python file.
    ours = {"buffer_size": step, "pre_buffer": False}
    with files.open(path, "rb", cache_type="none") as handle, pq.ParquetFile(handle, **ours) as file:
        return work(file)


def read_group(shard: Path | str, group: int, offsets: Sequence[int] | None = None) -> list["pa.Buffer | None"]:
    """Compressed audio of a row group, or of some of its rows, as views into what was read."""

    def work(file: "pq.ParquetFile") -> "pa.ChunkedArray":
        audio = file.read_row_group(group, columns=["audio.bytes"]).column("audio")
        return audio if offsets is None or len(offsets) == len(audio) else audio.take(offsets)

    return _buffers(read(shard, work))


def first_clips(shard: Path | str, group: int, n: int) -> list["pa.Buffer | None"]:
    """Compressed audio of the first `n` rows of a row group, without reading the rest of it."""

    return read(shard, lambda file: _first(file, group, n), STEP)


def _first(file: "pq.ParquetFile", group: int, n: int) -> list["pa.Buffer | None"]:
    return _buffers(next(file.iter_batches(batch_size=n, row_groups=[group], columns=["audio.bytes"])).column("audio"))


def identity(shard: Path | str) -> str:
    """A hash that changes with the content of a shard and not with its place: of its footer, and of a few clips.

    The footer holds the number, sizes and offsets of its rows, which differ where compressed audio does. Of audio that
    is not compressed they may be equal, so the first clips of the first and the last row group count as well; clips
    between them that changed without a change of size are not noticed.
    """

    def work(file: "pq.ParquetFile") -> str:
        footer = BytesIO()
        file.metadata.write_metadata_file(footer)
        hashed = sha256(footer.getvalue())
        groups = [index for index in range(file.num_row_groups) if file.metadata.row_group(index).num_rows]
        for group in dict.fromkeys(groups[:1] + groups[-1:]):
            for clip in _first(file, group, FEW):
                hashed.update(clip or b"")
        return hashed.hexdigest()[:16]

    return read(shard, work, STEP)


def _buffers(audio: "pa.ChunkedArray | pa.StructArray") -> list["pa.Buffer | None"]:
    import pyarrow as pa

    whole = audio.combine_chunks() if isinstance(audio, pa.ChunkedArray) else audio
    return [value.as_buffer() for value in whole.field("bytes")]
