"""The dataset's card (README.md with YAML front matter) and ATTRIBUTION.csv: what a reader must know and credit.

Text from outside cannot break out of its place in the card: what Markdown or HTML could take for its own is written
as character references.
"""

import csv
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipelines.disk import atomic, write_text
from pipelines.examples import examples
from pipelines.licenses import card_license, restrictions
from pipelines.reasons import explain
from pipelines.report import NOT_STATED, about, by_count, funnel, grid
from pipelines.run import part_path
from pipelines.text import clean

SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)
EXAMPLES = 8
SPOKEN = 0.01  # share of the clips from which a language stands in the front matter: detection has strays
MARKS = re.compile(r"[\\`*_{}\[\]<>#|~&$!@]")  # what Markdown or HTML would take for its own

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

BY_SOUND = "\nBy sound: clips from about 3 s on, within the first 2 minutes of a recording."


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
            licenses.update(row[-1] or NOT_STATED for row in rows)
    return by_count(licenses)


def credits(part: Path) -> list[tuple[str, ...]]:
    """id, title, author, url and licence of a part's kept clips, in order."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.ParquetFile(part).read([*CREDIT, "reason"], use_threads=False)
    table = table.filter(pc.equal(table["reason"], "")).select(CREDIT)
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def write_card(
    out: Path, name: str, card: dict[str, Any], report: dict[str, Any], licenses: dict[str, int], audio: bool = True
) -> None:
    """OUT/dataset/README.md, written last: a dataset with a card is complete.

    `name` and `card` are those of the source; `audio`: whether the dataset holds any.
    """
    import yaml

    front = yaml.safe_dump(front_matter(out / "dataset", card, report, licenses), sort_keys=False, allow_unicode=True)
    stages = [(f"`{stage}`", before, before - after, after) for stage, before, after in funnel(out / "build", report)]
    reasons = [(f"`{reason}`", n, explain(reason)) for reason, n in report["rejected_by_reason"].items()]
    terms = [(inert(name), n, ", ".join(sorted(restrictions(stated(name)))) or "none") for name, n in licenses.items()]
    compared = [[inert(cell) for cell in row] for row in grid(report["contamination"])]
    sections = [
        f"# {inert(card['title'])}\n\n{card['text']}",
        f"{report['kept']:,} clips, {report['hours']:,.2f} hours, built by Clapboard from {report['rows']:,} rows of "
        f"source `{name}`. {AUDIO if audio else METADATA}",
        f"## Sources\n{sources(report['sources'], card.get('ingredients', ()))}",
        f"## Examples\n{captions(out / 'dataset')}",
        f"## Splits\n{table(('split', 'clips'), ((inert(name), n) for name, n in report['splits'].items()))}",
        f"## Rows in, rows out\n{report['rows']} rows = {report['kept']} kept + {report['rejected']} rejected.\n\n"
        f"{table(('stage', 'in', 'rejected', 'out'), stages)}\n{table(('reason', 'rows', 'meaning'), reasons)}",
        generated(report),
        "## Licences\nAs published by the source; who made each clip stands in `ATTRIBUTION.csv`.\n\n"
        + table(("licence", "clips", "asks for"), terms),
        "## Contamination\n"
        + (table(compared[0], compared[1:]) if compared else "Nothing was compared with evaluation sets.")
        + (BY_SOUND if any(row["compared"].get("audio") for row in report["contamination"]) else ""),
        f"## To rebuild it\n{rebuild(out / 'build', name)}",
    ]
    text = "\n\n".join(section.strip() for section in sections if section)
    write_text(out / "dataset" / "README.md", f"---\n{front}---\n{text}\n")


def front_matter(
    dataset: Path, card: dict[str, Any], report: dict[str, Any], licenses: dict[str, int]
) -> dict[str, Any]:
    """What the Hub reads of a card."""
    kept = report["kept"]
    spoken = [
        code for code, n in report["languages"].items() if n >= SPOKEN * kept and re.fullmatch("[a-z]{2,3}", code)
    ]
    return {
        "pretty_name": f"{card['title']} ({kept} clips)",
        **({"language": spoken} if spoken else {}),
        **card_license({stated(name): n for name, n in licenses.items()}),
        "task_categories": ["audio-classification", "text-to-audio"],
        "tags": ["audio", "audio-text", "clap", "clapboard"],
        "size_categories": [next((name for top, name in SIZES if kept < top), "n>10M")],
        **dataset_info(dataset),
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": f"data/{split}-*.parquet"} for split in sorted(report["splits"])
                ],
            }
        ],
    }


def dataset_info(dataset: Path) -> dict[str, Any]:
    """Features, splits and sizes in bytes, as the Hub writes them; {} for a dataset without shards.

    The size of a split is that of its columns, uncompressed; the download's that of its files.
    """
    import pyarrow.parquet as pq

    paths = sorted((dataset / "data").glob("*.parquet"))
    if not paths:
        return {}
    splits: dict[str, Counter[str]] = {}
    for path in paths:
        metadata = pq.read_metadata(path)
        size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        splits.setdefault(path.name.split("-")[0], Counter()).update(num_bytes=size, num_examples=metadata.num_rows)
    return {
        "dataset_info": {
            "features": features(paths[0]),
            "splits": [{"name": name, **sums} for name, sums in splits.items()],
            "download_size": sum(path.stat().st_size for path in paths),
            "dataset_size": sum(sums["num_bytes"] for sums in splits.values()),
        }
    }


def features(shard: Path) -> list[dict[str, Any]]:
    """A shard's columns as the Hub's front matter spells them, from the schema that `datasets` reads."""
    import pyarrow.parquet as pq

    described = json.loads((pq.read_schema(shard).metadata or {})[b"huggingface"])["info"]["features"]
    return [{"name": name, **spelled(feature)} for name, feature in described.items()]


def spelled(feature: Any) -> dict[str, Any]:
    """One feature: {"dtype": ...}, {"list": ...} or {"struct": [...]}."""
    kind = feature.get("_type") if isinstance(feature, dict) else None
    if kind == "Value":
        return {"dtype": feature["dtype"]}
    if kind == "List":
        inner = spelled(feature["feature"])
        return {"list": inner["dtype"] if list(inner) == ["dtype"] else [*inner["struct"]]}
    if kind is None:
        return {"struct": [{"name": name, **spelled(inner)} for name, inner in feature.items()]}
    return {"dtype": {kind.lower(): {key: value for key, value in feature.items() if key != "_type"}}}


def sources(counted: dict[str, dict[str, Any]], ingredients: Iterable[dict[str, Any]] = ()) -> str:
    """A table of the sources, and what is known of each: licence, page, counts as published, citation.

    Of a mixture also its ingredients: the weight in training, and the clips and hours as published.
    """
    rows = [(inert(name), sums["clips"], f"{sums['hours']:.2f}", sums["captions"]) for name, sums in counted.items()]
    mixed = [
        (inert(each["name"]), f"{each['weight']:g}", *(each["published"].get(what, "") for what in ("clips", "hours")))
        for each in ingredients
    ]
    told = table(("ingredient", "weight", "clips as published", "hours as published"), mixed)
    known = [(name, card) for name in counted if (card := about(name))]
    return (
        table(("source", "clips", "hours", "captions"), rows)
        + (f"\n{told}" if told else "")
        + "".join(credit(name, card) for name, card in known)
    )


def credit(name: str, card: dict[str, Any]) -> str:
    """A paragraph on a source, from its datacard."""
    page = f" {card['homepage']}" if card.get("homepage") else ""
    counts = ", ".join(f"{n:,} {what.replace('_', ' ')}" if isinstance(n, int | float) else f"{what} {n}"
                       for what, n in card.get("counts", {}).items())  # fmt: skip
    cited = f"\n```\n{str(card['citation']).strip()}\n```\n" if card.get("citation") else ""
    told = f" As published: {counts}." if counts else ""
    rules = f"Licence: {card['license']}. Captions: {card['captions']}.".replace("<", "&lt;")
    return f"\n**{card['title']}** (`{name}`).{page} {rules}{told}\n{cited}"


def captions(dataset: Path) -> str:
    """A table of a few clips and what is said of them."""
    clips = examples(dataset, EXAMPLES, ["id", "captions", "generated", "tags"])
    rows = [
        (
            inert(clip["id"]),
            "<br>".join(inert(text) for text in [*clip["captions"], *(clip["generated"] or ())]),
            inert(", ".join(clip["tags"])),
        )
        for clip in clips
    ]
    return table(("id", "captions", "tags"), rows) or "No clip was kept."


def generated(report: dict[str, Any]) -> str:
    """A section on who wrote the sentences from keywords, for how many clips; "" without any."""
    rows = [(inert(name), n) for name, n in report.get("generated", {}).items()]
    words = report.get("debiased", 0)
    told = f"\n{words:,} words that told the sex of persons were replaced or left out." if words else ""
    return f"## Generated captions\n{table(('by', 'clips'), rows)}{told}" if rows else ""


def rebuild(build: Path, name: str) -> str:
    """The command line of the build and the versions that it ran with, without names of this machine's folders."""
    recipe = json.loads((build / "recipe.json").read_text(encoding="utf-8"))
    line = ["python cli.py build-dataset", name, "--input", "INPUT", "--out", "OUT"]
    line += [] if "download" in recipe["stages"] else ["--metadata-only"]
    for stage, settings in recipe["stages"].items():
        left_out = {"manifest": ("source", "input", "part_rows"), "dedup": ("exclude_evaluation",)}.get(stage, ())
        line += [flag(key, value) for key, value in settings.items() if key not in left_out]
    versions = ", ".join(f"{package} {version}" for package, version in recipe["versions"].items() if version)
    return f"```\n{' '.join(filter(None, line)).replace('`', '')}\n```\nIt ran with {versions}."


def flag(name: str, value: Any) -> str:
    """A setting as a flag; "" for one that is not set. Lists of ids and paths of files are named, not spelled out."""
    option = "--" + name.replace("_", "-")
    if name == "exclude_evaluation":
        value = [item.split()[0] for item in value]  # without the digest of what it held
    if value is None or value is False or value == "" or value == []:  # but 0 is a setting
        return ""
    if value is True:
        return option
    if name == "column":
        return " ".join(f"{option} {shlex.quote(clean(pair))}" for pair in value)
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    place = "/" in text and (name != "captioner" or text.startswith("/"))  # a pinned one is user/name, or absolute
    return f"{option} {'FILE' if name in ('exclude_ids', 'scores') or place else shlex.quote(clean(text))}"


def stated(license: str) -> str:
    """A licence as the clips have it: "" where none is stated."""
    return "" if license == NOT_STATED else license


def inert(text: Any) -> str:
    """Text from outside on one line, in which nothing means anything to Markdown or HTML."""
    return MARKS.sub(lambda mark: f"&#{ord(mark[0])};", clean(str(text)))


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table, "" without rows."""
    lines = [[str(cell) for cell in row] for row in rows]
    names = list(head)
    return "".join(f"| {' | '.join(line)} |\n" for line in [names, ["---"] * len(names), *lines]) if lines else ""
