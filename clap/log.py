"""What a run says: metrics.jsonl, a progress bar or plain lines, and if wanted TensorBoard and Weights & Biases."""

import json
import os
import secrets
from datetime import timedelta
from pathlib import Path
from typing import Any

from clap.checkpoint import write_text
from clap.config import ClapError

INSTALL = 'is not installed: pip install "clapboard[track]", or leave it out'


class Log:
    """The log of a run at `step` of `total`; lines of a killed run after `step` are taken out first.

    `tensorboard` and `wandb` (a project's name) also get every line, and W&B the run's `settings`. A `quiet` log, of
    processes other than the first, writes and prints nothing.
    """

    def __init__(
        self,
        run: Path,
        step: int,
        total: int,
        *,
        tensorboard: bool = False,
        wandb: str = "",
        settings: dict[str, Any] | None = None,
        quiet: bool = False,
    ) -> None:
        from rich.console import Console

        self.quiet, self.total, self.loss, self.wait = quiet, total, float("nan"), 0.0
        self.lines: list[dict[str, Any]] = []
        self.trackers: list[TensorBoard | WeightsAndBiases] = []
        self.console = Console(stderr=True, highlight=False, quiet=quiet)
        self.bar = progress_bar(self.console)
        self.task = self.bar.add_task("training", total=total, completed=step)
        if quiet:
            return
        self.path = run / "metrics.jsonl"
        self.lines = [line for line in read(self.path) if line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))
        if tensorboard:
            self.trackers.append(TensorBoard(run, step))
        if wandb:
            self.trackers.append(WeightsAndBiases(run, wandb, settings or {}))
        self.file = self.path.open("a", encoding="utf-8")

    def __enter__(self) -> "Log":
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.bar.stop()
        for tracker in self.trackers:
            tracker.close(failed=kind is not None)
        if not self.quiet:
            self.file.close()

    def tick(self, step: int, clips: int, loss: float | None = None) -> None:
        """One more step of `clips` pairs on the progress bar; the latest loss that is known stays there."""
        self.loss = self.loss if loss is None else loss
        speed = self.bar.tasks[self.task].speed or 0.0  # steps/s of the last minutes
        told = f"loss {self.loss:.3f}  {speed * clips:.0f} clips/s  waiting for data {self.wait:.0%}"
        self.bar.update(self.task, completed=step, description=told)

    def write(self, step: int, values: dict[str, float]) -> None:
        """A line of metrics.jsonl, flushed to the disk, and of the trackers."""
        if self.quiet:
            return
        line = {"step": step, **values}
        self.lines.append(line)
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        for tracker in self.trackers:
            tracker.write(step, values)
        self.loss, self.wait = values.get("loss", self.loss), values.get("data_wait", self.wait)
        told = "  ".join(f"{key} {value:.4g}" for key, value in values.items() if key.count("/") < 2)
        left = self.bar.tasks[self.task].time_remaining  # s
        self.say(f"step {step}/{self.total}  {told}" + (f"  {timedelta(seconds=round(left))} to go" if left else ""))

    def say(self, text: str) -> None:
        """A line for people."""
        self.console.print(text, soft_wrap=True)

    def latest(self) -> dict[str, float]:
        """The last value of every metric."""
        return {key: value for line in self.lines for key, value in line.items()}


class TensorBoard:
    """Events in RUN/tensorboard; those of a killed run after `step` are marked void for who reads them."""

    def __init__(self, run: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ClapError(f"TensorBoard {INSTALL}") from error
        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """The values at a step, on the disk at once."""
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def close(self, failed: bool) -> None:
        """End the file of events."""
        self.writer.close()


class WeightsAndBiases:
    """A run of a W&B project, whose id is kept in RUN/wandb.txt, so that a run that goes on is one run there too.

    WANDB_MODE=offline opens no network and writes to RUN/wandb, for `wandb sync`. Steps that a killed run had sent
    are sent again by the one that goes on; W&B keeps the first, which is the same.
    """

    def __init__(self, run: Path, project: str, settings: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ClapError(f"Weights & Biases {INSTALL}") from error
        path = run / "wandb.txt"
        if not path.exists():
            write_text(path, secrets.token_hex(4))
        quiet = wandb.Settings(console="off", silent=True, disable_code=True)
        try:
            self.run = wandb.init(
                project=project,
                name=run.absolute().name,
                id=path.read_text(encoding="utf-8").strip(),
                resume="allow",
                dir=run,
                config=settings,
                settings=quiet,
            )
        except wandb.Error as error:
            raise ClapError(
                f"Weights & Biases gave no run in project {project!r} ({error}): log in by `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from error

    def write(self, step: int, values: dict[str, float]) -> None:
        """The values at a step."""
        self.run.log(values, step=step)

    def close(self, failed: bool) -> None:
        """Send what is left and end the run."""
        self.run.finish(exit_code=int(failed))


def progress_bar(console: Any) -> Any:
    """rich's progress bar, which shows itself on a terminal only."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        disable=console.quiet or not console.is_terminal,
        speed_estimate_period=300,  # s: a step may take many seconds
    )


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line without its end is what a killed run left, and left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
