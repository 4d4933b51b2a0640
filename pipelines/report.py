"""Counts of a build, from the rows themselves: while it runs, and for good in report.json and rejected.parquet."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.disk import BuildError, atomic, write_text
from pipelines.reasons import retryable
from pipelines.run import part_path

if TYPE_CHECKING:
    import pyarrow as pa

FATE = ("id", "source", "stage", "reason", "detail", "attempts")


def summarise(out: Path) -> dict[str, Any]:
    """Rows, kept, rejected by reason and stage, hours and clips by split; `complete` once the card is written.

    Works on a build that still runs or was killed: each part counts as far as it has come. Raises BuildError
    where there is no build.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    build = out / "build"
    if not (build / "recipe.json").exists():
        raise BuildError(f"no build in {out}: is it the folder given as --out?")
    table = pa.concat_tables(latest(build, ["stage", "reason", "duration", "split"]))
    rejected = pc.not_equal(table["reason"], "")
    kept, lost = table.filter(pc.invert(rejected)), table.filter(rejected)
    return {
        "rows": table.num_rows,
        "kept": kept.num_rows,
        "rejected": lost.num_rows,
        "rejected_by_reason": counts(lost["reason"]),
        "rejected_by_stage": counts(lost["stage"]),
        "hours": round((pc.sum(kept["duration"]).as_py() or 0) / 3600, 4),
        "splits": counts(kept["split"]),
        "complete": (out / "dataset" / "README.md").exists(),
    }


def counts(values: "pa.ChunkedArray") -> dict[str, int]:
    """How often each value occurs, most frequent first."""
    return by_count({each["values"].as_py(): each["counts"].as_py() for each in values.value_counts()})


def by_count(counted: dict[str, int]) -> dict[str, int]:
    """Most frequent first, equally frequent ones by name."""
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


def latest(build: Path, columns: list[str]) -> "Iterator[pa.Table]":
    """Columns of every part, each as the last stage left it that the part has passed; at first none of no part."""
    import pyarrow.parquet as pq

    from pipelines.clip import schema

    stages = list(json.loads((build / "recipe.json").read_text())["stages"])
    yield schema().empty_table().select(columns)
    for first in sorted((build / "manifest").glob("part-*.parquet")):
        part = int(first.stem.removeprefix("part-"))
        paths = [part_path(build, stage, part) for stage in reversed(stages)]
        path = next((path for path in paths if path.exists()), first)
        yield pq.ParquetFile(path).read(columns, use_threads=False).select(columns)


def write_report(out: Path) -> dict[str, Any]:
    """Write OUT/rejected.parquet and OUT/report.json; raises BuildError unless every row is accounted for."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    report = summarise(out) | {"complete": True}
    promised = json.loads((out / "build" / "manifest.json").read_text())["rows"]
    shards = sum(pq.read_metadata(path).num_rows for path in (out / "dataset").glob("data/*.parquet"))
    if report["rows"] != promised or report["kept"] != shards:
        raise BuildError(
            f"{promised} rows came in, but {report['kept']} are kept, {report['rejected']} rejected and {shards} "
            f"published in {out}: delete its folders build and dataset, and run again"
        )
    parts = latest(out / "build", list(FATE))
    table = pa.concat_tables(part.filter(pc.not_equal(part["reason"], "")) for part in parts)
    again = pa.array([retryable(reason) for reason in table["reason"].to_pylist()], pa.bool_())
    with atomic(out / "rejected.parquet") as temporary:
        pq.write_table(table.append_column("retryable", again), temporary, compression="zstd")
    write_text(out / "report.json", json.dumps(report, indent=1) + "\n")
    return report
