"""What the report's page draws: kept clips by length, rate, loudness, bandwidth, words and tags; rejections by host.

One pass over the parts, a part in memory at a time.
"""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.report import count, latest, sort_out

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ["reason", "location", "duration", "sample_rate", "rms_dbfs", "bandwidth_hz", "captions", "generated", "tags"]
EDGES = {  # of the bars of a histogram; each takes in its lower edge
    "duration": (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 60, 120, 300, inf),  # s
    "rms_dbfs": (-inf, -60, -54, -48, -42, -36, -30, -24, -18, -12, -6, inf),
    "bandwidth_hz": (0, 2000, 4000, 6000, 8000, 10000, 12000, 14000, 16000, 18000, 20000, 22000, inf),
    "words": (0, 3, 5, 7, 9, 11, 13, 16, 21, 31, 41, inf),
}
HOST = r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?:[^/?#@]*@)?(?P<host>[^/?#:]*)"
MOST_TAGS = 2_000_000  # different ones in memory; beyond, the rarer half is forgotten


@dataclass
class Figures:
    """Counts over the parts seen so far."""

    rates: Counter[int] = field(default_factory=Counter)
    tags: Counter[str] = field(default_factory=Counter)
    hosts: dict[str, Counter[str]] = field(default_factory=dict)  # of rejected rows, by reason
    bars: dict[str, Any] = field(default_factory=dict)  # {name of EDGES: count of each bar}
    forgot: bool = False  # whether there were more tags than are counted

    def add(self, table: "pa.Table") -> None:
        """Count a part."""
        import pyarrow.compute as pc

        kept, lost = sort_out(table)
        count(self.rates, kept["sample_rate"].drop_null())
        count(self.tags, pc.list_flatten(kept["tags"]))
        if len(self.tags) > MOST_TAGS:
            self.tags, self.forgot = Counter(dict(self.tags.most_common(MOST_TAGS // 2))), True
        for name in ("duration", "rms_dbfs", "bandwidth_hz"):
            self.draw(name, kept[name])
        for texts in ("captions", "generated"):
            self.draw("words", pc.add(pc.count_substring(pc.list_flatten(kept[texts]), " "), 1))
        for host, reason, n in by_host(lost):
            self.hosts.setdefault(host, Counter())[reason] += n

    def draw(self, name: str, values: "pa.ChunkedArray") -> None:
        """Add values to a histogram; unknown ones do not count."""
        import numpy as np

        edges = np.array(EDGES[name])
        places = np.searchsorted(edges, values.drop_null().to_numpy(), side="right") - 1
        self.bars[name] = self.bars.get(name, 0) + np.bincount(places.clip(0, len(edges) - 2), minlength=len(edges) - 1)

    def histogram(self, name: str, scale: float = 1) -> list[tuple[str, int, str]]:
        """(range, count, lower edge) of each bar, the edges times `scale`; [] where nothing is known."""
        drawn = self.bars.get(name)
        if drawn is None or not drawn.any():
            return []
        pairs = pairwise([edge * scale for edge in EDGES[name]])
        return [(span(low, high), int(n), shown(low)) for (low, high), n in zip(pairs, drawn, strict=True)]


def figures(build: Path) -> Figures:
    """The figures of a build, each part as far as it has come."""
    found = Figures()
    for table in latest(build, COLUMNS):
        found.add(table)
    return found


def by_host(lost: "pa.Table") -> list[tuple[str, str, int]]:
    """(host, reason, rows) of rejected rows; what has no host is named by its scheme, such as file."""
    import pyarrow as pa
    import pyarrow.compute as pc

    place = pc.extract_regex(lost["location"], HOST)
    host, scheme = pc.struct_field(place, "host"), pc.struct_field(place, "scheme")
    named = pc.fill_null(pc.if_else(pc.equal(host, ""), scheme, pc.utf8_lower(host)), "none")
    sums = pa.table({"host": named, "reason": lost["reason"]}).group_by(["host", "reason"], use_threads=False)
    return [(row["host"], row["reason"], row["count_all"]) for row in sums.aggregate([([], "count_all")]).to_pylist()]


def span(low: float, high: float) -> str:
    """ "5 to under 7", "under -60", "300 and more"."""
    if low == -inf:
        return f"under {shown(high)}"
    return f"{shown(low)} and more" if high == inf else f"{shown(low)} to under {shown(high)}"


def shown(edge: float) -> str:
    """An edge as text, with a proper minus; "" for one that is infinite."""
    return "" if edge in (inf, -inf) else f"{edge:g}".replace("-", "\N{MINUS SIGN}")
