"""What a run says: metrics.jsonl, and a progress line on a terminal or plain lines elsewhere."""

import json
import os
import time
from pathlib import Path
from typing import Any

from clap.checkpoint import write_text


class Log:
    """The log of a run at `step` of `total`; lines of a killed run after `step` are taken out first."""

    def __init__(self, run: Path, step: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.path = run / "metrics.jsonl"
        self.lines = [line for line in read(self.path) if line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))
        self.file = self.path.open("a", encoding="utf-8")
        self.console = Console(stderr=True, highlight=False)
        self.total, self.start, self.clips, self.rate = total, time.monotonic(), 0, 0.0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=total, completed=step)

    def __enter__(self) -> "Log":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        self.file.close()

    def tick(self, step: int, loss: float, clips: int) -> None:
        """One more step on the progress line, with clips/s since the last line of the log."""
        self.clips += clips
        self.rate = self.clips / max(1e-9, time.monotonic() - self.start)
        self.bar.update(self.task, completed=step, description=f"loss {loss:.3f}  {self.rate:.0f} clips/s")

    def write(self, step: int, values: dict[str, float]) -> None:
        """A line of metrics.jsonl, flushed to the disk; the clock of clips/s starts again."""
        line = {"step": step, **values}
        self.lines.append(line)
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        told = "  ".join(f"{key} {value:.4g}" for key, value in values.items() if key.count("/") < 2)
        self.say(f"step {step}/{self.total}  {told}")
        self.start, self.clips = time.monotonic(), 0

    def say(self, text: str) -> None:
        """A line for people."""
        self.console.print(text, soft_wrap=True)

    def latest(self) -> dict[str, float]:
        """The last value of every metric."""
        return {key: value for line in self.lines for key, value in line.items()}


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line without its end is what a killed run left, and left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
