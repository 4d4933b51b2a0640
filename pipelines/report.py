"""Counts of a build, from the rows themselves: while it runs, and for good in report.json and rejected.parquet."""

import json
from collections import Counter
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
    build = out / "build"
    if not (build / "recipe.json").exists():
        raise BuildError(f"no build in {out}: is it the folder given as --out?")
    table = latest(build, ["stage", "reason", "duration", "split"])
    rows = table.to_pylist()
    kept = [row for row in rows if not row["reason"]]
    return {
        "rows": len(rows),
        "kept": len(kept),
        "rejected": len(rows) - len(kept),
        "rejected_by_reason": counts(row["reason"] for row in rows if row["reason"]),
        "rejected_by_stage": counts(row["stage"] for row in rows if row["reason"]),
        "hours": round(sum(row["duration"] or 0 for row in kept) / 3600, 4),
        "splits": counts(row["split"] for row in kept),
        "complete": (out / "dataset" / "README.md").exists(),
    }


def counts(values: Any) -> dict[str, int]:
    """How often each value occurs, most frequent first."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def latest(build: Path, columns: list[str]) -> "pa.Table":
    """Columns of every part, each as the last stage left it that the part has passed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipelines.clip import schema

    stages = list(json.loads((build / "recipe.json").read_text())["stages"])
    tables = [schema().empty_table().select(columns)]
    for first in sorted((build / "manifest").glob("part-*.parquet")):
        part = int(first.stem.removeprefix("part-"))
        paths = [part_path(build, stage, part) for stage in reversed(stages)]
        path = next((path for path in paths if path.exists()), first)
        tables.append(pq.read_table(path, columns=columns))
    return pa.concat_tables(tables)


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
    table = latest(out / "build", list(FATE))
    table = table.filter(pc.not_equal(table["reason"], ""))
    again = pa.array([retryable(reason) for reason in table["reason"].to_pylist()], pa.bool_())
    with atomic(out / "rejected.parquet") as temporary:
        pq.write_table(table.append_column("retryable", again), temporary, compression="zstd")
    write_text(out / "report.json", json.dumps(report, indent=1) + "\n")
    return report
