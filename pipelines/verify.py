"""Re-read a dataset and everything beside it, and tell what is wrong: nothing here trusts the build that wrote it.

The cheap checks read footers, the report, the card and the clips' licences; the rest decodes every clip, a row group
at a time, so that memory does not grow with the dataset (ids and licences apart: about 100 bytes a clip).
"""

import hashlib
import io
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.clip import SAMPLE_RATE
from pipelines.disk import BuildError
from pipelines.engine import Step, engine
from pipelines.licenses import card_license, restrictions
from pipelines.shard import published

if TYPE_CHECKING:
    import pyarrow as pa

NAME = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.parquet")
MOST = 1000  # problems that are listed
MINUTE = 60.0  # s between lines where there is no terminal
BLOCK = 2**16  # samples decoded at once

Problem = dict[str, str]  # where, what


@dataclass
class Group:
    """What a row group holds: clips, the seconds that their rows state, and what is wrong with them."""

    clips: int = 0
    seconds: float = 0.0
    problems: list[Problem] = field(default_factory=list)


def verify(out: Path, workers: int = 0) -> dict[str, Any]:
    """Read all of a build's dataset, or of a dataset's folder alone; returns clips, hours and problems.

    A problem is {"where": file and clip, "what": sentence}; at most 1,000 are listed. Raises BuildError where there
    is no dataset.
    """
    dataset = find_dataset(out)
    problems, good = check_files(dataset)
    whole = not problems
    if whole:  # else every count would be wrong too
        problems += check_counts(out, dataset, good)
    places = list(groups(good))
    total, found = sum(count_rows(path) for path in good), {}
    with engine(workers) as run, bar("clips", total) as count:
        for place, group in run([Step(read_group)], places):
            found[place] = group
            count(group.clips)
    for place in places:  # in order, whichever came first
        problems += found[place].problems[: max(0, MOST - len(problems))]
    problems += check_credits(dataset, good, whole)
    if len(problems) >= MOST:
        problems = [*problems[:MOST], problem(dataset, "has more problems than are listed here")]
    return {
        "clips": sum(group.clips for group in found.values()),
        "hours": round(sum(group.seconds for group in found.values()) / 3600, 4),
        "problems": problems,
    }


def find_dataset(out: Path) -> Path:
    """The dataset's folder of a build, or the folder itself; raises BuildError if it is neither."""
    if (out / "dataset" / "README.md").exists() or (out / "dataset" / "data").is_dir():
        return out / "dataset"
    if (out / "data").is_dir():
        return out
    raise BuildError(f"no dataset in {out}: name the folder given as --out, or one that holds README.md and data")


def check_cheap(out: Path) -> list[Problem]:
    """What is wrong as far as footers, report.json and the card tell; reads of the clips only their licences."""
    dataset = find_dataset(out)
    problems, good = check_files(dataset)
    return problems or check_counts(out, dataset, good)


def problem(where: object, what: str) -> Problem:
    """One thing that is wrong."""
    return {"where": str(where), "what": what}


# ---- files, counts, card


def shards(dataset: Path) -> dict[str, list[Path]]:
    """The shards of each split, in order; files named otherwise are left out."""
    found: dict[str, list[Path]] = {}
    for path in sorted((dataset / "data").glob("*.parquet")):
        if named := NAME.fullmatch(path.name):
            found.setdefault(named["split"], []).append(path)
    return found


def check_files(dataset: Path) -> tuple[list[Problem], list[Path]]:
    """What is wrong with the shards as files, and those that can be read on: all there, each of our schema."""
    problems, good = [], []
    for path in sorted((dataset / "data").glob("[!.]*")):
        if not NAME.fullmatch(path.name):
            problems.append(problem(path, "is not named as SPLIT-00000-of-00000.parquet"))
    for split, paths in shards(dataset).items():
        totals = {int(named["total"]) for path in paths if (named := NAME.fullmatch(path.name))}
        promised = {f"{split}-{number:05d}-of-{max(totals):05d}.parquet" for number in range(max(totals))}
        missing = sorted(promised - {path.name for path in paths})
        problems += [problem(dataset / "data" / name, "is missing") for name in missing]
        for path in paths:
            wrong = check_schema(path) if path.name in promised else "is of another number of shards"
            problems += [problem(path, wrong)] if wrong else []
            good += [] if wrong else [path]
    return problems, good


def check_schema(path: Path) -> str:
    """What is wrong with a shard's footer, "" for nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        return f"cannot be opened as Parquet: {error}"
    wanted = published("audio" in schema.names)
    if schema.equals(wanted):
        features = (schema.metadata or {}).get(b"huggingface")
        return "" if features == (wanted.metadata or {})[b"huggingface"] else "does not tell `datasets` its features"
    both = set(wanted.names) & set(schema.names)
    every = dict.fromkeys([*wanted.names, *schema.names])
    names = [name for name in every if name not in both or schema.field(name) != wanted.field(name)]
    return f"has other columns than are published: {', '.join(names) or 'another order'}"


def count_rows(path: Path) -> int:
    """Rows of a Parquet file, by its footer."""
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_rows


def check_counts(out: Path, dataset: Path, good: list[Path]) -> list[Problem]:
    """What the card, the report and the rejected rows say against what the shards hold."""
    counts = {split: sum(map(count_rows, paths)) for split, paths in shards(dataset).items()}
    problems = check_card(dataset, counts)
    if out != dataset and (out / "report.json").exists():
        problems += check_report(out, counts)
    return problems


def check_report(out: Path, counts: dict[str, int]) -> list[Problem]:
    """report.json against the shards and rejected.parquet."""
    import pyarrow as pa

    path, rejects = out / "report.json", out / "rejected.parquet"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        splits, rows, kept, rejected = (report[name] for name in ("splits", "rows", "kept", "rejected"))
    except (ValueError, KeyError, TypeError) as error:
        return [problem(path, f"cannot be read: {error!r}")]
    problems = []
    if splits != counts:
        problems.append(problem(path, f"says the splits have {splits} clips, the shards hold {counts}"))
    if kept != sum(counts.values()):
        problems.append(problem(path, f"says that {kept} clips are kept, the shards hold {sum(counts.values())}"))
    if rows != kept + rejected:
        problems.append(problem(path, f"says {rows} rows, which is not {kept} kept + {rejected} rejected"))
    try:
        listed = count_rows(rejects)
    except (pa.ArrowException, OSError) as error:
        return [*problems, problem(rejects, f"cannot be read: {error}")]
    if listed != rejected:
        problems.append(problem(rejects, f"lists {listed} rows, report.json says that {rejected} are rejected"))
    return problems


def read_front(dataset: Path) -> dict[str, Any]:
    """The YAML front matter of a dataset's card; raises BuildError if there is none that can be read."""
    import yaml

    path = dataset / "README.md"
    if not path.exists():
        raise BuildError(f"{path} is missing, so the dataset is not complete: run build-dataset again to complete it")
    try:
        before, front, _ = re.split(r"^---$", path.read_text(encoding="utf-8"), maxsplit=2, flags=re.MULTILINE)
        found = yaml.safe_load(front)
    except (ValueError, yaml.YAMLError) as error:
        raise BuildError(f"{path} has no front matter that can be read: delete it and build again: {error}") from error
    if before.strip() or not isinstance(found, dict):
        raise BuildError(f"{path} does not begin with front matter: delete it and build again")
    return found


def check_card(dataset: Path, counts: dict[str, int]) -> list[Problem]:
    """The card's splits, numbers of examples and licence against the shards."""
    path = dataset / "README.md"
    try:
        front = read_front(dataset)
        splits, examples = stated_splits(front)
    except BuildError as error:
        return [problem(path, str(error).removeprefix(f"{path} "))]
    except (AttributeError, KeyError, TypeError) as error:
        return [problem(path, f"has configs or dataset_info that cannot be read: {error!r}")]
    problems = []
    if splits != set(counts):
        problems.append(problem(path, f"names other splits than there are: {', '.join(sorted(counts))}"))
    if examples and examples != counts:
        problems.append(problem(path, f"says the splits have {examples} examples, the shards hold {counts}"))
    return problems + check_license(dataset, front)


def stated_splits(front: dict[str, Any]) -> tuple[set[str], dict[str, int]]:
    """The splits that a card names, and {split: examples} as far as it counts them; any error if it is odd."""
    files = [each for config in front.get("configs") or [] for each in config.get("data_files") or []]
    counted = (front.get("dataset_info") or {}).get("splits") or []
    return {file.get("split") for file in files}, {split["name"]: split["num_examples"] for split in counted}


def check_license(dataset: Path, front: dict[str, Any]) -> list[Problem]:
    """Where the card asks for less than the clips' licences do, as the shards themselves state them.

    The card that a build writes for these clips is right; "unknown" promises nobody anything.
    """
    import pyarrow as pa

    path, stated = dataset / "README.md", front.get("license")
    try:
        counts = count_licenses(dataset)
    except (pa.ArrowException, OSError) as error:
        return [problem(dataset / "data", f"licences cannot be read: {error}")]
    names = [str(name) for name in (stated if isinstance(stated, list) else [stated]) if name]
    if all(front.get(key) == value for key, value in card_license(counts).items()) or names == ["unknown"]:
        return []
    if names == ["other"]:
        names = [str(front.get("license_name") or "")]
    if not any(names):
        return [problem(path, "states no licence: build again to have one written")]
    asked = frozenset[str]().union(*map(asks, names))
    return [
        problem(path, f"says {' and '.join(names)}, but {clips} clips are under {license or 'no stated licence'} "
                f"({', '.join(sorted(more))}): leave them out with --licenses, or state a licence that asks for it")
        for license, clips in sorted(counts.items()) if (more := restrictions(license) - asked)
    ]  # fmt: skip


def asks(name: str) -> frozenset[str]:
    """What a card's licence asks for: of "mixed-attribution-noncommercial" it stands in the name.

    One that we do not know asks for nothing that we could count on, not even for what is unknown of the clips.
    """
    if name.split("-")[0] == "mixed":
        return frozenset(name.split("-")[1:])
    return restrictions(name) - {"unknown"}


def count_licenses(dataset: Path) -> Counter[str]:
    """Clips by licence, read from the shards."""
    import pyarrow.parquet as pq

    counts: Counter[str] = Counter()
    for path in [path for paths in shards(dataset).values() for path in paths]:
        for each in pq.read_table(path, columns=["license"])["license"].value_counts():
            counts[each["values"].as_py() or ""] += each["counts"].as_py()
    return counts


# ---- clips


def groups(paths: list[Path]) -> Iterator[tuple[Path, int]]:
    """(shard, number of row group) in order."""
    import pyarrow.parquet as pq

    for path in paths:
        yield from ((path, number) for number in range(pq.read_metadata(path).num_row_groups))


def read_group(place: tuple[Path, int]) -> tuple[tuple[Path, int], Group]:
    """The place, and what its row group holds: every clip read and its audio decoded."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, number = place
    try:
        file = pq.ParquetFile(path)
        columns = [name for name in ("id", "captions", "duration", "audio") if name in file.schema_arrow.names]
        rows = file.read_row_group(number, columns, use_threads=False).to_pylist()
    except (pa.ArrowException, OSError) as error:
        return place, Group(problems=[problem(path, f"row group {number} cannot be read: {error}")])
    group = Group(len(rows), sum(row["duration"] or 0 for row in rows))
    for row in rows:
        group.problems += [problem(f"{path} {row['id']}", what) for what in check_row(row)]
    return place, group


def check_row(row: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a published row, in sentences without their subject."""
    if not row["captions"]:
        yield "has no caption"
    elif not all(caption and caption.strip() for caption in row["captions"]):
        yield "has an empty caption"
    if "audio" in row and (wrong := check_flac((row["audio"] or {}).get("bytes") or b"", row["duration"])):
        yield wrong


def check_flac(flac: bytes, duration: float | None) -> str:
    """What is wrong with a clip's FLAC, whose source lasted `duration` seconds; "" for nothing."""
    import soundfile

    if len(flac) < 42 or not flac.startswith(b"fLaC"):
        return "holds no FLAC"
    head = int.from_bytes(flac[18:26], "big")  # 20 bits rate, 3 channels - 1, 5 bits - 1, 36 number of samples
    rate, channels, bits, stated = head >> 44, (head >> 41 & 7) + 1, (head >> 36 & 31) + 1, head % 2**36
    if (rate, channels, bits) != (SAMPLE_RATE, 1, 16):
        return f"has audio of {rate} Hz, {channels} channels, {bits} bits: not 48000 Hz, mono, 16 bits"
    digest, frames = hashlib.md5(usedforsecurity=False), 0
    try:
        with soundfile.SoundFile(io.BytesIO(flac)) as sound:
            for block in sound.blocks(BLOCK, dtype="int16"):
                digest.update(block.astype("<i2", copy=False).tobytes())
                frames += len(block)
    except soundfile.LibsndfileError as error:
        return f"has audio that does not decode: {error}"
    if frames != stated:
        return f"has audio of which {frames} samples decode, its header states {stated}"
    if digest.digest() != flac[26:42]:
        return "has audio whose samples are not those that were encoded (their MD5 differs)"
    if duration is None or abs(frames / SAMPLE_RATE - duration) > 0.01 * duration + 0.1:
        return f"has {frames / SAMPLE_RATE:.3f} s of audio, its row says {duration}"
    return ""


# ---- credits


def check_credits(dataset: Path, good: list[Path], whole: bool) -> list[Problem]:
    """Ids that come twice, and where ATTRIBUTION.csv and the rows differ about who is credited with what licence.

    Of a dataset that is not `whole`, credits without a clip say nothing and are left out.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = dataset / "ATTRIBUTION.csv"
    try:
        rows = pa.concat_tables([pq.read_table(shard, columns=["id", "license"]) for shard in good] or [no_rows()])
    except (pa.ArrowException, OSError) as error:
        return [problem(dataset / "data", f"ids cannot be read: {error}")]
    problems = [problem(dataset / "data", f"{id} comes {times} times") for id, times in twice(rows)]
    try:
        credits = read_credits(path)
    except (pa.ArrowException, OSError) as error:
        return [*problems, problem(path, f"cannot be read: {error}")]
    problems += [problem(path, f"credits {id} {times} times") for id, times in twice(credits)]
    rows = rows.append_column("row", pa.repeat(True, len(rows)))
    credits = credits.append_column("credit", pa.repeat(True, len(credits)))
    both = rows.join(credits, "id", join_type="full outer", right_suffix="_credited").sort_by("id")
    differ = pc.not_equal(pc.coalesce(both["license"], ""), pc.coalesce(both["license_credited"], ""))
    alone = pc.or_(pc.is_null(both["row"]), pc.is_null(both["credit"]))
    for found in both.filter(pc.or_(differ, alone))[:MOST].to_pylist():
        if not found["row"]:
            problems += [problem(path, f"credits {found['id']}, which is not published")] if whole else []
        elif not found["credit"]:
            problems.append(problem(path, f"does not credit {found['id']}"))
        else:
            text = f"says {found['license_credited']!r} of {found['id']}, whose row says {found['license']!r}"
            problems.append(problem(path, text))
    return problems


def no_rows() -> "pa.Table":
    """No id and no licence."""
    return published(False).empty_table().select(["id", "license"])


def read_credits(path: Path) -> "pa.Table":
    """Ids and licences of ATTRIBUTION.csv as text."""
    import pyarrow as pa
    from pyarrow import csv

    return csv.read_csv(
        path,
        csv.ReadOptions(block_size=2**24),
        csv.ParseOptions(newlines_in_values=True),
        csv.ConvertOptions(
            include_columns=["id", "license"], column_types={"id": pa.string(), "license": pa.string()},
            strings_can_be_null=False,
        ),
    )  # fmt: skip


def twice(table: "pa.Table") -> list[tuple[str, int]]:
    """(id, times) of each id that a table holds more than once."""
    import pyarrow.compute as pc

    counted = table.group_by("id").aggregate([([], "count_all")])
    found = counted.filter(pc.greater(counted["count_all"], 1)).sort_by("id")[:MOST]
    return list(zip(found["id"].to_pylist(), found["count_all"].to_pylist(), strict=True))


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that counts on, shown on standard error: a bar on a terminal, else a line a minute."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    done, said = 0, time.monotonic()

    def count(more: int) -> None:
        nonlocal done, said
        done += more
        shown.update(task, completed=done)
        if not console.is_terminal and time.monotonic() - said > MINUTE:
            said = time.monotonic()
            console.print(f"{time.strftime('%H:%M:%S')} {done:,} of {total:,} {what}", soft_wrap=True)

    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task(what, total=total)
        yield count
