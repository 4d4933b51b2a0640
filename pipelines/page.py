"""OUT/report.html: what a build made, as one page that opens offline, with clips to look at and listen to.

The template beside this file draws it. Text from outside is escaped there, and the page's own policy lets it run no
script but its own and load nothing from elsewhere.
"""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.disk import write_text
from pipelines.examples import brief, examples
from pipelines.figures import Figures, figures
from pipelines.preview import preview
from pipelines.reasons import explain
from pipelines.report import NOT_STATED, about, by_count, funnel, grid

CLIPS = 50
MOST = 15  # bars of a list; the rest is one more
SHOWN = ["id", "source", "audio", "captions", "generated", "tags", "duration", "license", "author", "title", "url"]
Bars = list[tuple[str, int]]


def write_page(out: Path, report: dict[str, Any], title: str) -> None:
    """Write OUT/report.html from the build's parts, its report and the published clips."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    room = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
                       trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    room.filters |= {"number": number, "short": short, "sha256": sha256, "link": link}
    counted = figures(out / "build")
    page = room.get_template("report.html.j2").render(
        title=title,
        report=report,
        funnel=funnel(out / "build", report),
        charts=charts(counted, report),
        sources=[(name, sums, about(name)) for name, sums in report["sources"].items()],
        reasons=[(reason, n, explain(reason)) for reason, n in report["rejected_by_reason"].items()],
        hosts=hosts(counted),
        contamination=grid(report["contamination"]),
        clips=list(clips(out / "dataset")),
    )
    write_text(out / "report.html", page)


def charts(counted: Figures, report: dict[str, Any]) -> list[tuple[str, str, Any, bool]]:
    """(title, unit, bars, whether they are a histogram) of each chart that has something to show."""
    rates = list(by_count({f"{rate:,}": n for rate, n in counted.rates.items()}).items())
    spoken = report["languages"] and report["languages"] | {
        "not known": report["kept"] - sum(report["languages"].values())
    }
    tags = list(by_count(counted.tags).items())[:MOST]
    different = f"of {'more than ' if counted.forgot else ''}{len(counted.tags):,} different ones"
    drawn: list[tuple[str, str, Any, bool]] = [
        ("Duration", "seconds", counted.histogram("duration"), True),
        ("Words per caption", "words", counted.histogram("words"), True),
        ("Loudness of the source", "RMS, dBFS", counted.histogram("rms_dbfs"), True),
        ("Bandwidth of the source", "kHz", counted.histogram("bandwidth_hz", 1e-3), True),
        ("Sample rate of the source", "Hz", rates, False),
        ("Splits", "clips", list(report["splits"].items()), False),
        ("Licences", "clips", list(report["licenses"].items()), False),
        ("Languages of captions", "clips", list(by_count(spoken).items()), False),
        ("Most frequent tags", different, tags, False),
    ]
    return [(name, unit, bars if columns else top(bars), columns) for name, unit, bars, columns in drawn if bars]


def top(bars: Bars) -> Bars:
    """The first bars under short names, and one for all others."""
    rest = bars[MOST:]
    return [(brief(name), n) for name, n in bars[:MOST] if n] + (
        [(f"{len(rest):,} others", sum(n for _, n in rest))] if rest else []
    )


def hosts(counted: Figures) -> list[tuple[str, int, str]]:
    """(host, rejected rows, its most frequent reasons) of the hosts with most of them, under short names."""
    sums = by_count({host: reasons.total() for host, reasons in counted.hosts.items()})
    named = [(brief(host), n, ", ".join(f"{why} {k:,}" for why, k in list(by_count(counted.hosts[host]).items())[:3]))
             for host, n in list(sums.items())[:MOST]]  # fmt: skip
    rest = list(sums.values())[MOST:]
    return named + ([(f"{len(rest):,} others", sum(rest), "")] if rest else [])


def clips(dataset: Path) -> Iterator[dict[str, Any]]:
    """What the page shows of each example, its sound and spectrogram (where there is audio) as data: addresses."""
    for clip in examples(dataset, CLIPS, SHOWN):
        audio = clip.pop("audio", None)
        heard = seen = ""
        if audio:
            sound, picture, _ = preview(audio["bytes"], clip["id"])
            heard, seen = data("audio/mpeg", sound), data("image/png", picture)
        texts = [*clip["captions"], *(clip["generated"] or ())]
        yield clip | {"texts": texts, "heard": heard, "seen": seen, "license": clip["license"] or NOT_STATED}


def data(kind: str, content: bytes) -> str:
    """A data: address that holds its content."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def number(value: float) -> str:
    """12,345 or 3.14 or 0.0015"""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}" if value >= 1 else f"{value:.2g}"


def short(value: int) -> str:
    """950, 12k, 3.4M: a number that fits over a bar."""
    for size, letter in ((10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.{int(value < 10 * size)}f}{letter}"
    return str(value)


def sha256(text: str) -> str:
    """The hash by which the page's policy knows its own script."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def link(url: str) -> str:
    """The address if it is a whole one of the web, else "": others, such as javascript:, could do something."""
    return url if url.startswith(("http://", "https://")) and not url.endswith("…") else ""
