"""What a build is doing, on standard error: a live table on a terminal, else a line a minute."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.run import Count, Tally

if TYPE_CHECKING:
    from rich.table import Table

MINUTE = 60.0  # s between lines where there is no terminal


class Progress:
    """Counts by stage, shown while it is open."""

    def __init__(self, build: Path) -> None:
        path = build / "manifest.json"
        self.rows = int(json.loads(path.read_text())["rows"]) if path.exists() else 0
        self.tally, self.expected, self.began = Tally(), {}, {}  # type: ignore[var-annotated]
        self.closed = threading.Event()

    def __enter__(self) -> "Progress":
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        self.live = Live(get_renderable=self.table, console=console, transient=True) if console.is_terminal else None
        if self.live:
            self.live.start()
        else:
            threading.Thread(target=self.lines, args=(console,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        if self.live:
            self.live.stop()

    def follow(self, shares: dict[str, float], results: Iterable[Any]) -> None:
        """Wait for results and count them. `shares` tells of each stage which share of all rows it has to do."""
        self.began |= dict.fromkeys(shares, time.monotonic())
        self.expected |= {stage: round(share * self.rows) for stage, share in shares.items()}
        for tally in results:
            if tally is not self.tally:
                self.tally.merge(tally)

    def lines(self, console: Any) -> None:
        """Print a line each minute until closed."""
        while not self.closed.wait(MINUTE):
            for stage, cells in self.cells():
                console.print(
                    f"{time.strftime('%H:%M:%S')} {stage}: {', '.join(filter(None, cells))}",
                    markup=False,
                    soft_wrap=True,
                )

    def table(self) -> "Table":
        """A line for each stage."""
        from rich.table import Table

        grid = Table("stage", "rows", "speed", "audio", "kept", "rejected", "left", box=None)
        for stage, cells in self.cells():
            grid.add_row(stage, *cells)
        return grid

    def cells(self) -> Iterator[tuple[str, list[str]]]:
        """(stage, its figures as text) in order."""
        for stage, expected in list(self.expected.items()):
            count = self.tally.get(stage, Count())
            speed = count.rows / max(time.monotonic() - self.began[stage], 1e-3)
            left = f"{(expected - count.rows) / speed / 60:.0f} min" if 0 < count.rows < expected else ""
            reasons = ", ".join(f"{reason} {n:,}" for reason, n in Counter(dict(count.reasons)).most_common(3))
            rejected = f"{sum(count.reasons.values()):,} rejected" + (f" ({reasons})" if reasons else "")
            yield stage, [f"{count.rows:,} of {expected:,}", f"{speed:,.0f}/s", f"{count.seconds / 3600:.2f} h",
                          f"{count.kept:,} kept", rejected, left and f"{left} left"]  # fmt: skip
