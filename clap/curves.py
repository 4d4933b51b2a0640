"""The curves of a run as one picture, RUN/curves.png, from its metrics.jsonl."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clap import checkpoint
from clap.config import ClapError
from clap.log import read

BLUE, ORANGE, GREEN, RED, GREY, STAR = "#2b6cb0", "#dd6b20", "#2f855a", "#c53030", "#718096", "#d69e2e"
BEST = "validation/mean_recall"
SCORES = {  # metric: (label, colour, dashes)
    BEST: ("mean recall", "#1a202c", "-"),
    "validation/text_to_audio/R@1": ("text → audio R@1", BLUE, "-"),
    "validation/text_to_audio/R@10": ("text → audio R@10", BLUE, "--"),
    "validation/audio_to_text/R@1": ("audio → text R@1", ORANGE, "-"),
    "validation/audio_to_text/R@10": ("audio → text R@10", ORANGE, "--"),
    "validation/zero_shot/accuracy": ("zero-shot accuracy", GREEN, "-"),
    "validation/zero_shot/map": ("zero-shot mAP", GREEN, "-"),
}
SMOOTH = 100  # on either side, a hundredth of the curve: shows the trend under the noise of single batches


def draw(run: Path) -> Path:
    """Draw RUN/curves.png, atomically; ClapError if the run has no metrics yet."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read(run / "metrics.jsonl")
    if not lines:
        raise ClapError(f"{run} has no metrics.jsonl with lines to draw: train a while first")
    figure = Figure(figsize=(15, 8.5), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    place = {"left": 0.04, "right": 0.945, "top": 0.9, "bottom": 0.08, "wspace": 0.24, "hspace": 0.42}
    axes = figure.subplots(2, 3, gridspec_kw=place).ravel()
    panels(axes, lines)
    figure.suptitle(title(run, lines), x=0.02, ha="left", fontsize=13, fontweight="bold", parse_math=False)
    for axis in axes:
        tidy(axis, int(lines[-1]["step"]))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    checkpoint.write_bytes(run / "curves.png", buffer.getvalue())
    return run / "curves.png"


def panels(axes: Sequence[Any], lines: list[dict[str, Any]]) -> None:
    """Six panels: loss, scores, learning rate, gradient, scales, speed."""
    loss, scores, rate, gradient, scales, speed = axes
    curve(loss, lines, "loss", BLUE, smooth=True)
    loss.set_title("Training loss", loc="left")
    for name, (label, colour, dashes) in SCORES.items():
        curve(scores, lines, name, colour, label=label, linestyle=dashes, linewidth=2.4 if name == BEST else 1.4)
    scores.set_title("Validation", loc="left")
    mark_best(scores, loss, lines)
    curve(rate, lines, "lr", GREEN)
    rate.set_title("Learning rate", loc="left")
    rate.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    curve(gradient, lines, "grad_norm", RED, smooth=True)
    gradient.set_title("Length of the gradient", loc="left")
    curve(scales, lines, "scale_a", BLUE, label="audio → text")
    curve(scales, lines, "scale_t", ORANGE, label="text → audio", linestyle="--")
    scales.set_title("Scale of the similarities", loc="left")
    curve(speed, lines, "clips_per_second", BLUE, smooth=True)
    speed.set_title("Speed", loc="left")
    speed.set_ylabel("clips per second", color=BLUE)
    waiting(speed, lines)


def curve(axis: Any, lines: list[dict[str, Any]], name: str, colour: str, smooth: bool = False, **style: Any) -> None:
    """One metric over steps, if the run has it; `smooth` draws it pale under its running mean."""
    points = [(line["step"], line[name]) for line in lines if name in line]
    if not points:
        return
    x, y = np.array(points, dtype=float).T
    width = len(y) // SMOOTH
    if smooth and width > 1:
        axis.plot(x, y, color=colour, alpha=0.2, linewidth=0.8)
        y = running_mean(y, width)
    marker = {"marker": "o", "markersize": 4} if len(y) <= 40 else {}
    axis.plot(x, y, color=colour, **{"linewidth": 1.6, **marker, **style})


def running_mean(values: Any, width: int) -> np.ndarray:
    """The mean of up to `width` values on either side and of the value itself; fewer at the ends. (n,) > (n,)."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    left, right = np.maximum(index - width, 0), np.minimum(index + width + 1, len(values))
    return (total[right] - total[left]) / (right - left)


def best(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The line of the best validation so far, the first one of equals; None without validation."""
    return max((line for line in lines if BEST in line), key=lambda line: line[BEST], default=None)


def mark_best(scores: Any, loss: Any, lines: list[dict[str, Any]]) -> None:
    """A star on the best mean recall, and its step in both panels; a word where there was no validation."""
    found = best(lines)
    if found is None:
        scores.text(0.5, 0.5, "no validation", transform=scores.transAxes, ha="center", color=GREY)
        return
    for axis in (scores, loss):
        axis.axvline(found["step"], color=GREY, linewidth=1, linestyle=":")
    scores.plot(found["step"], found[BEST], "*", markersize=15, color=STAR, markeredgecolor="white", label="best")


def waiting(speed: Any, lines: list[dict[str, Any]]) -> None:
    """The share of time that went by waiting for data, on an axis of its own beside the speed's."""
    axis = speed.twinx()
    curve(axis, lines, "data_wait", ORANGE, smooth=True)
    axis.set_ylim(0, max([0.1, *(line["data_wait"] * 1.1 for line in lines if "data_wait" in line)]))
    axis.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axis.set_ylabel("time waiting for data", color=ORANGE)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelcolor=GREY)


def title(run: Path, lines: list[dict[str, Any]]) -> str:
    """Name of the run, how far it is, how good it is."""
    latest = {key: value for line in lines for key, value in line.items()}
    told = [run.absolute().name, f"step {latest['step']:,}"]
    told += [f"epoch {latest['epoch']:.3g}"] if "epoch" in latest else []
    told += [f"loss {latest['loss']:.3g}"] if "loss" in latest else []
    found = best(lines)
    told += [f"best mean recall {found[BEST]:.3f} at step {found['step']:,}"] if found else []
    return "   ·   ".join(told)


def tidy(axis: Any, last: int) -> None:
    """Pale grid, no frame, steps from 0 below, a legend under it where curves have names."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#cbd5e0")
    axis.grid(color="#e2e8f0", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, labelcolor=GREY)
    axis.set_xlim(0, last * 1.03)
    axis.update_datalim([(0, 0)])
    axis.autoscale_view(scalex=False)
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    if axis.get_legend_handles_labels()[0]:
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.06), "ncols": 3}
        axis.legend(**place, fontsize=8.5, frameon=False, handlelength=1.6, columnspacing=1.2)
