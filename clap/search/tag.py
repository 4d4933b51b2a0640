"""Many sounds and many labels: which fit which, by cosine, so that a sound may have several or none."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clap.checkpoint import write_text
from clap.config import PROMPT
from clap.data import DataError
from clap.embed import embed_some, find
from clap.evaluate import embed_labels
from clap.search.rows import bar, chunks
from clap.systems import System

BATCH = 128


@dataclass(frozen=True)
class Tagged:
    """A file and its labels with their cosines, the best first; or why it has none."""

    file: Path
    labels: dict[str, float]
    error: str = ""


def tag(
    model: System,
    paths: Sequence[str | Path],
    labels: Sequence[str],
    prompt: str = PROMPT,
    most: int = 5,
    threshold: float = -1.0,
    truncation: str = "auto",
) -> Iterator[Tagged]:
    """For each file, and each sound in and below a folder, at most `most` labels whose cosine is `threshold` or more.

    A file that does not decode comes with the reason. Cosines of a model are comparable among files, not among models.
    """
    names, files = list(labels), find(paths)
    text = embed_labels(model, names, prompt)  # (labels, dim)
    with bar("sounds tagged", len(files)) as count:
        for some in chunks(files, BATCH):
            audio, broken = embed_some(model, some, truncation)
            scores = iter(audio @ text.T if len(audio) else ())
            for i, file in enumerate(some):
                yield (
                    Tagged(file, {}, broken[i])
                    if i in broken
                    else Tagged(file, fits(next(scores), names, most, threshold))
                )
            count(len(some))


def fits(scores: np.ndarray, labels: Sequence[str], most: int, threshold: float) -> dict[str, float]:
    """The labels of the highest scores (labels,), at most `most`, none under the threshold."""
    order = np.argsort(-scores, kind="stable")[:most].tolist()
    return {labels[i]: float(scores[i]) for i in order if scores[i] >= threshold}


def read_labels(path: str | Path) -> list[str]:
    """The labels of a file, one a line; empty lines do not count."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the labels {path}: {error}") from error
    if not (labels := list(dict.fromkeys(line.strip() for line in lines if line.strip()))):
        raise DataError(f"{path} holds no labels: write one a line")
    return labels


def write_csv(path: str | Path, found: Sequence[Tagged]) -> None:
    """Write a row `file, label, score, error` for every label of every file, and for each that has none."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(["file", "label", "score", "error"])
    for each in found:
        rows = [(label, f"{score:.4f}", "") for label, score in each.labels.items()] or [("", "", each.error)]
        writer.writerows([str(each.file).encode("utf-8", "backslashreplace").decode(), *row] for row in rows)
    write_text(Path(path), lines.getvalue())
