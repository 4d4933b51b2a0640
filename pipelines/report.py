"""Counts of a build, from the rows themselves: while it runs, and for good in report.json and rejected.parquet."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.disk import BuildError, atomic, write_text
from pipelines.reasons import retryable
from pipelines.run import part_path

if TYPE_CHECKING:
    import pyarrow as pa

FATE = ("id", "source", "stage", "reason", "detail", "attempts")
COUNTED = ("source", "stage", "reason", "split", "license", "language", "duration", "captions",
           "generated_by", "debiased")  # fmt: skip
NOT_STATED = "not stated"  # in place of no licence


def summarise(out: Path) -> dict[str, Any]:
    """Rows, kept, rejected by reason and stage, hours, clips by split, licence, language and source.

    `complete` once the card is written; `contamination` says what was compared with evaluation sets. Works on a
    build that still runs or was killed: each part counts as far as it has come. Raises BuildError where there is
    no build.
    """
    from pipelines.evaluation import contamination

    build = out / "build"
    if not (build / "recipe.json").exists():
        raise BuildError(f"no build in {out}: is it the folder given as --out?")
    sums = Sums()
    for table in latest(build, list(COUNTED)):
        sums.add(table)
    return {
        "rows": sums.rows,
        "kept": sums.kept,
        "rejected": sums.rows - sums.kept,
        "rejected_by_reason": by_count(sums.reason),
        "rejected_by_stage": by_count(sums.stage),
        "hours": round(sum(source["seconds"] for source in sums.sources.values()) / 3600, 4),
        "splits": by_count(sums.split),
        "sources": {name: describe(counted) for name, counted in sums.sources.items()},
        "licenses": by_count(Counter({name or NOT_STATED: n for name, n in sums.license.items()})),
        "languages": by_count(Counter({name: n for name, n in sums.language.items() if name})),
        "generated": by_count(Counter({name: n for name, n in sums.generated_by.items() if name})),
        "debiased": sums.debiased,
        "contamination": contamination(build),
        "complete": (out / "dataset" / "README.md").exists(),
    }


@dataclass
class Sums:
    """Counts over the parts seen so far; those of reason and stage over rejected rows, the others over kept ones."""

    rows: int = 0
    kept: int = 0
    reason: Counter[str] = field(default_factory=Counter)
    stage: Counter[str] = field(default_factory=Counter)
    split: Counter[str] = field(default_factory=Counter)
    license: Counter[str] = field(default_factory=Counter)
    language: Counter[str] = field(default_factory=Counter)
    generated_by: Counter[str] = field(default_factory=Counter)
    debiased: int = 0  # words
    sources: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, table: "pa.Table") -> None:
        """Count a part."""
        import pyarrow.compute as pc

        kept, lost = sort_out(table)
        self.rows, self.kept = self.rows + table.num_rows, self.kept + kept.num_rows
        for name in ("reason", "stage"):
            count(getattr(self, name), lost[name])
        for name in ("split", "license", "language", "generated_by"):
            count(getattr(self, name), kept[name])
        self.debiased += pc.sum(kept["debiased"], min_count=0).as_py()
        for source in table["source"].unique().to_pylist():  # also one of which nothing was kept
            self.sources.setdefault(source, Counter(clips=0, seconds=0, captions=0))
        for source, counted in per_source(kept):
            self.sources[source].update(counted)


def sort_out(table: "pa.Table") -> tuple["pa.Table", "pa.Table"]:
    """The kept and the rejected rows of a table."""
    import pyarrow.compute as pc

    rejected = pc.not_equal(table["reason"], "")
    return table.filter(pc.invert(rejected)), table.filter(rejected)


def per_source(kept: "pa.Table") -> list[tuple[str, dict[str, Any]]]:
    """(source, its clips, seconds and captions) of a part's kept rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    captions = pc.list_value_length(kept["captions"])
    table = pa.table({"source": kept["source"], "seconds": pc.fill_null(kept["duration"], 0), "captions": captions})
    wanted: list[Any] = [([], "count_all"), ("seconds", "sum"), ("captions", "sum")]
    sums = table.group_by("source", use_threads=False).aggregate(wanted)
    columns = (sums[name].to_pylist() for name in ("source", "count_all", "seconds_sum", "captions_sum"))
    return [(name, {"clips": n, "seconds": s, "captions": c}) for name, n, s, c in zip(*columns, strict=True)]


def describe(counted: Counter[str]) -> dict[str, Any]:
    """Clips, hours and captions of a source."""
    hours = round(counted["seconds"] / 3600, 4)
    return {"clips": counted["clips"], "hours": hours, "captions": counted["captions"]}


def count(counted: Counter[Any], values: "pa.ChunkedArray") -> None:
    """Add how often each value occurs."""
    found = values.value_counts()
    pairs = zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True)
    for value, n in pairs:
        counted[value] += n


def by_count(counted: dict[str, int]) -> dict[str, int]:
    """Most frequent first, equally frequent ones by name."""
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


def grid(rows: list[dict[str, Any]]) -> list[list[Any]]:
    """Rows of figures as a table, its head first; nothing without rows. A cell of counts becomes text."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name, "") for name in names] for row in rows]
    return [names, *([told(cell) for cell in row] for row in cells)] if rows else []


def told(cell: Any) -> Any:
    """{"clips": 2000, "audio": 40} as "clips 2,000, audio 40"; any other cell as it is."""
    return (", ".join(f"{kind} {n:,}" for kind, n in cell.items()) or "none") if isinstance(cell, dict) else cell


def about(name: str) -> dict[str, Any]:
    """What the datacard of a source says; nothing for a source that has none."""
    from pipelines.sources import SOURCES, read_card

    return read_card(name) if name in SOURCES else {}


def funnel(build: Path, report: dict[str, Any]) -> list[tuple[str, int, int]]:
    """(stage, rows in, rows out) of each stage in order, the shards last."""
    left, rows = report["rows"], []
    for stage in ["manifest", *(name for name in stages(build) if name != "manifest"), "shard"]:
        lost = report["rejected_by_stage"].get(stage, 0)
        rows.append((stage, left, left - lost))
        left -= lost
    return rows


def stages(build: Path) -> list[str]:
    """The names of the build's stages, in order."""
    return list(json.loads((build / "recipe.json").read_text(encoding="utf-8"))["stages"])


def latest(build: Path, columns: list[str]) -> "Iterator[pa.Table]":
    """Columns of every part, each as the last stage left it that the part has passed; at first none of no part.

    A column that is not there, in a part of an earlier version, has the values of a new clip.
    """
    import pyarrow.parquet as pq

    from pipelines.clip import schema

    names = stages(build)
    yield schema().empty_table().select(columns)
    for first in sorted((build / "manifest").glob("part-*.parquet")):
        part = int(first.stem.removeprefix("part-"))
        paths = [part_path(build, stage, part) for stage in reversed(names)]
        path = next((path for path in paths if path.exists()), first)
        file = pq.ParquetFile(path)
        table = file.read([name for name in columns if name in file.schema_arrow.names], use_threads=False)
        for name in (name for name in columns if name not in table.column_names):
            table = table.append_column(schema().field(name), blank(name, table.num_rows))
        yield table.select(columns)


def blank(name: str, rows: int) -> "pa.Array":
    """A column of clips as it is before any stage has filled it."""
    import pyarrow as pa

    from pipelines.clip import Clip, schema

    return pa.array([getattr(Clip("", ""), name)] * rows, schema().field(name).type)


def write_report(out: Path) -> dict[str, Any]:
    """Write OUT/rejected.parquet and OUT/report.json; raises BuildError unless every row is accounted for."""
    import pyarrow.parquet as pq

    report = summarise(out) | {"complete": True}
    promised = json.loads((out / "build" / "manifest.json").read_text())["rows"]
    shards = sum(pq.read_metadata(path).num_rows for path in (out / "dataset").glob("data/*.parquet"))
    if report["rows"] != promised or report["kept"] != shards:
        raise BuildError(
            f"{promised} rows came in, but {report['kept']} are kept, {report['rejected']} rejected and {shards} "
            f"published in {out}: delete its folders build and dataset, and run again"
        )
    write_rejected(out)
    write_text(out / "report.json", json.dumps(report, indent=1) + "\n")
    return report


def write_rejected(out: Path) -> None:
    """Write OUT/rejected.parquet: each rejected row, why, and whether trying again may help."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pa.concat_tables(
        part.filter(pc.not_equal(part["reason"], "")) for part in latest(out / "build", list(FATE))
    )
    again = pa.array([retryable(reason) for reason in table["reason"].to_pylist()], pa.bool_())
    with atomic(out / "rejected.parquet") as temporary:
        pq.write_table(table.append_column("retryable", again), temporary, compression="zstd")
