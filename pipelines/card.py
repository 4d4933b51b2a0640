"""The dataset's card (README.md with YAML front matter) and ATTRIBUTION.csv: what a reader must know and credit."""

import csv
import re
from collections import Counter
from pathlib import Path
from typing import Any

from pipelines.disk import atomic, write_text
from pipelines.reasons import explain
from pipelines.report import by_count
from pipelines.run import part_path
from pipelines.sources import Source

SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)

CREDIT = ["id", "title", "author", "url", "license"]
AUDIO = """Audio is FLAC, 48 kHz, mono, 16 bit.

```python
from datasets import Audio, load_dataset
dataset = load_dataset("path/to/this/folder")  # .cast_column("audio", Audio(decode=False)) to get the bytes
```"""
METADATA = """It holds metadata only, no audio.

```python
from datasets import load_dataset
dataset = load_dataset("path/to/this/folder")
```"""


def write_attribution(out: Path, build: Path, stage: str, parts: int) -> dict[str, int]:
    """OUT/dataset/ATTRIBUTION.csv: a line for every published clip. Returns the clips by licence."""
    licenses: Counter[str] = Counter()
    path = out / "dataset" / "ATTRIBUTION.csv"
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(CREDIT)
        for part in range(parts):
            rows = credits(part_path(build, stage, part))
            writer.writerows(rows)
            licenses.update(row[-1] or "not stated" for row in rows)
    return by_count(licenses)


def credits(part: Path) -> list[tuple[str, ...]]:
    """id, title, author, url and licence of a part's kept clips, in order."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.ParquetFile(part).read([*CREDIT, "reason"], use_threads=False)
    table = table.filter(pc.equal(table["reason"], "")).select(CREDIT)
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def write_card(out: Path, source: Source, report: dict[str, Any], licenses: dict[str, int], audio: bool = True) -> None:
    """OUT/dataset/README.md, written last: a dataset with a card is complete. `audio`: whether it holds any."""
    import yaml

    front = {
        "pretty_name": f"{source.card['title']} ({report['kept']} clips)",
        "license": "other",
        "license_name": "mixed" if len(licenses) > 1 else re.sub(r"[^\w.+-]+", "-", next(iter(licenses), "none")),
        "task_categories": ["audio-classification", "text-to-audio"],
        "tags": ["audio", "audio-text", "clap", "clapboard"],
        "size_categories": [next((name for top, name in SIZES if report["kept"] < top), "n>10M")],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": f"data/{split}-*.parquet"} for split in sorted(report["splits"])
                ],
            }
        ],
    }
    funnel = [(f"`{reason}`", n, explain(reason)) for reason, n in report["rejected_by_reason"].items()]
    text = f"""---
{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---
# {source.card["title"]}

{source.card["text"]}

{report["kept"]} clips, {report["hours"]:.2f} hours, built by Clapboard from {report["rows"]} rows of source
`{source.name}`. {AUDIO if audio else METADATA}

## Splits
{table(("split", "clips"), report["splits"].items())}
## Rows in, rows out
{report["rows"]} rows = {report["kept"]} kept + {report["rejected"]} rejected.

{table(("reason", "rows", "meaning"), funnel)}
## Licences
As published by the source; who made each clip stands in `ATTRIBUTION.csv`.

{table(("licence", "clips"), licenses.items())}"""
    write_text(out / "dataset" / "README.md", text.rstrip() + "\n")


def table(head: tuple[str, ...], rows: Any) -> str:
    """A Markdown table, nothing without rows; text from outside cannot break out of its cell."""
    lines = [[str(cell).replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in rows]
    rule = ["---"] * len(head)
    return "".join(f"| {' | '.join(line)} |\n" for line in [list(head), rule, *lines]) if lines else ""
