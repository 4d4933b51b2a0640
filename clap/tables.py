"""Results of `evaluate paper` beside published figures (published.toml): as Markdown and as a plot."""

import io
import math
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clap.checkpoint import write_bytes
from clap.config import ClapError

WAYS = {"text_to_audio": "text to audio", "audio_to_text": "audio to text"}
RECALLS = ("R@1", "R@5", "R@10")


def published() -> dict[str, Any]:
    """`sources` and the list `system`, each with a name, a source and percentages by corpus."""
    return tomllib.loads(Path(__file__).with_name("published.toml").read_text(encoding="utf-8"))


def tables(found: dict[str, Any]) -> str:
    """Markdown of what `paper.measure` found: the paper's tables, what was skipped, and what is missing."""
    known, corpora = published(), found["corpora"]
    given = ", ".join(f"{key} {value}" for key, value in found["settings"].items())
    parts = [f"# {plain(found['model'])}\n\n{plain(given)}.\nIn percent; in brackets 95 % intervals over clips."]
    parts += [retrieval(found["model"], name, each, known) for name, each in corpora.items() if ranked(each)]
    if labelled := {name: each for name, each in corpora.items() if not ranked(each)}:
        parts.append(zero_shot(found["model"], labelled, known))
    told = [f"- {each['title']}: {note}" for each in corpora.values() for note in each["notes"]]
    told += [
        f"- {each['title']}: mean of {len(each['folds'])} folds {100 * each['mean_of_folds']:.1f}"
        for each in corpora.values()
        if "folds" in each
    ]
    told += [f"- {name} was skipped: {plain(reason)}" for name, reason in found["skipped"].items()]
    parts += ["## Notes\n\n" + "\n".join(told)] if told else []
    if found["missing"]:
        lines = (f"- {name}: `{each['build']}`  {plain(each['obtain'])}" for name, each in found["missing"].items())
        parts.append("## Not here\n\n" + "\n".join(line.rstrip() for line in lines))
    used = {row["source"] for row in known["system"] if set(row) & set(corpora)}
    sources = [f"- {key}: {text}" for key, text in known["sources"].items() if key in used]
    return "\n\n".join([*parts, "## Sources\n\n" + "\n".join(sources)]) + "\n"


def ranked(entry: dict[str, Any]) -> bool:
    """Whether a corpus was measured by retrieval."""
    return bool(entry["score"] == "retrieval")


def retrieval(model: str, name: str, entry: dict[str, Any], known: dict[str, Any]) -> str:
    """Table of both directions of one corpus."""
    short = {"text_to_audio": "T>A", "audio_to_text": "A>T"}
    head = ["system", *(f"{short[way]} {key}" for way in WAYS for key in RECALLS), "source"]
    rows = [
        [row["name"], *(percent(value) for value in row[name]), row["source"]] for row in known["system"] if name in row
    ]
    ours = [within(entry["scores"][way][key], entry["intervals"][way][key]) for way in WAYS for key in RECALLS]
    more = [
        f"{text}: mAP@10 {within(scores['map10'], entry['intervals'][way]['map10'])}, as LAION computes it "
        f"{percent(100 * scores['map10_laion'])}, median rank {scores['median_rank']:g}."
        for way, text in WAYS.items()
        for scores in [entry["scores"][way]]
    ]
    title = f"## Retrieval, {entry['title']} {entry['split']}, {entry['clips']} clips, {entry['captions']} captions"
    return "\n\n".join([title, grid([head, *rows, [f"**{plain(model)}**", *ours, "here"]]), "\n".join(more)])


def zero_shot(model: str, entries: dict[str, dict[str, Any]], known: dict[str, Any]) -> str:
    """Table of all corpora with labels."""
    unit = {"accuracy": "accuracy", "map": "mAP"}
    head = ["system", *(f"{each['title']} {unit[each['score']]}" for each in entries.values()), "source"]
    rows = [
        [row["name"], *(percent(row[name][0]) if name in row else "" for name in entries), row["source"]]
        for row in known["system"]
        if set(row) & set(entries)
    ]
    chance = ["chance", *(percent(100 * each["scores"]["chance"]) for each in entries.values()), ""]
    ours = [within(each["scores"][each["score"]], each["intervals"][each["score"]]) for each in entries.values()]
    return "## Zero-shot\n\n" + grid([head, *rows, chance, [f"**{plain(model)}**", *ours, "here"]])


def percent(value: float) -> str:
    """One decimal, nothing for not-a-number."""
    return "" if math.isnan(value) else f"{value:.1f}"


def within(value: float, interval: Sequence[float]) -> str:
    """A share as percentage with its interval."""
    low, high = (100 * bound for bound in interval)
    return f"{100 * value:.1f} [{low:.1f}, {high:.1f}]"


def plain(text: Any) -> str:
    """Text on one line, without control characters, that does not end a table's cell."""
    line = " ".join(str(text).split())
    return "".join(c for c in line if c.isprintable()).replace("|", "\\|")


def grid(rows: list[list[str]]) -> str:
    """A Markdown table, aligned, so that it can be read as it is."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def plot(found: dict[str, Any], path: Path) -> None:
    """PNG: a line for each figure with its interval, those that were published, and chance."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ClapError(
            f"the plot needs matplotlib, which does not import ({error}): pip install matplotlib"
        ) from error
    lines, known = list(figures(found["corpora"])), published()["system"]
    figure = Figure(figsize=(9, 1.6 + 0.5 * max(len(lines), 4)), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row["name"] for row in known if set(row) & set(found["corpora"])))
    for i, system in enumerate(names):
        points = [(row[corpus][column], y) for y, (_, corpus, column, *_) in enumerate(lines)
                  for row in known if row["name"] == system and corpus in row]  # fmt: skip
        style: Any = {"marker": "osv^D<>P"[i // 10], "color": f"C{i % 10}", "s": 26, "alpha": 0.75}
        axes.scatter(*zip(*points, strict=True), label=system, zorder=2, **style)
    for y, (_, _, _, value, (low, high), chance) in enumerate(lines):
        bar: Any = {
            "xerr": [[max(0, value - low)], [max(0, high - value)]],
            "color": "black",
            "capsize": 4,
            "zorder": 3,
        }
        axes.errorbar(value, y, fmt="D", markersize=7, label=found["model"] if y == 0 else None, **bar)
        axes.plot(chance, y, "|", color="grey", markersize=14, label="chance" if y == 0 else None)
    axes.set_yticks(range(len(lines)), [line[0] for line in lines])
    axes.set(xlim=(0, 100), xlabel="percent", ylim=(len(lines) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=7, frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_bytes(path, picture.getvalue())


def figures(corpora: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, int, float, Sequence[float], float]]:
    """(label, corpus, column of published.toml, value, interval, chance), in percent, of all that is plotted."""

    def line(label: str, name: str, column: int, value: float, interval: Sequence[float], chance: float) -> Any:
        return label, name, column, 100 * value, [100 * bound for bound in interval], 100 * chance

    for name, each in corpora.items():
        scores, intervals, title = each["scores"], each["intervals"], each["title"]
        if ranked(each):
            for column, way in ((0, "text_to_audio"), (3, "audio_to_text")):
                label = f"{title}, {WAYS[way]}, R@1"
                yield line(label, name, column, scores[way]["R@1"], intervals[way]["R@1"], 1 / each["clips"])
        else:
            unit = each["score"]
            label = f"{title}, {'mAP' if unit == 'map' else unit}"
            yield line(label, name, 0, scores[unit], intervals[unit], scores["chance"])
