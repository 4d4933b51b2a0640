"""Keep or reject by the facts in the columns; opens no audio, so another threshold takes seconds."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self

from pipelines.clip import Clip, Rejected
from pipelines.disk import BuildError
from pipelines.local import digest
from pipelines.setting import setting
from pipelines.sources import SOURCES, read_card
from pipelines.text import words

LONGEST = 600.0  # s


@dataclass(frozen=True)
class Filter:
    """Thresholds on duration (s), sample rate (Hz), peak (dBFS), words a caption and CLAP score.

    The scores are the columns `id` (as published) and `score` of a Parquet file, which the command `score` writes. A
    clip that the file does not name, or whose score is NaN, stays: nothing is known against it.
    """

    packs: ClassVar[bool] = False

    min_duration: float = setting(0.1, "shortest clip in seconds")
    max_duration: float | None = setting(None, "longest clip in seconds; by default 600, or what its datacard says")
    min_sample_rate: int = setting(16_000, "lowest sample rate of the source in Hz")
    silent_below: float = setting(-60.0, "a clip whose peak is under this is silent, in dBFS")
    min_words: int = setting(1, "fewest words of a published caption")
    max_words: int = setting(60, "most words of a published caption")
    scores: str = setting("", "file of CLAP scores, as `score` writes it; needs --min-score", metavar="FILE")
    min_score: float | None = setting(None, "lowest score of a clip; one that --scores does not name stays")
    table: Path | None = None  # the file, once `scores` is its digest

    def __post_init__(self) -> None:
        if bool(self.scores) != (self.min_score is not None):
            raise BuildError("--scores FILE says how well captions fit, --min-score X how well they must: give both")

    def pinned(self, held: Mapping[str, Any] | None = None) -> Self:
        """The same stage with its file of scores known by its SHA-256, so that another file redoes it."""
        if not self.scores:
            return self
        path = Path(self.scores).expanduser().absolute()
        try:
            known, _ = digest(path)
        except Rejected as error:
            raise BuildError(f"--scores {path}: {error.reason} {error.detail}") from error
        read_scores(path, known)
        return replace(self, scores=known, table=path)

    def __call__(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        scores = read_scores(self.table or Path(self.scores), self.scores) if self.scores else {}
        for clip in clips:
            fits = tuple(text for text in clip.captions if self.min_words <= words(text) <= self.max_words)
            reason, detail = self.judge(clip, fits, scores.get(clip.id, math.nan))
            if reason:
                yield clip.reject("filter", reason, detail)
            else:
                yield clip if fits == clip.captions else replace(clip, captions=fits)

    def judge(self, clip: Clip, fits: tuple[str, ...], score: float = math.nan) -> tuple[str, str]:
        """The first reason against a clip and the figure behind it, or two empty strings."""
        if clip.duration is not None and clip.duration < self.min_duration:
            return "too-short", f"{clip.duration:.3f} s"
        if clip.duration is not None and clip.duration > (self.max_duration or longest(clip.source)):
            return "too-long", f"{clip.duration:.1f} s"
        if clip.sample_rate is not None and clip.sample_rate < self.min_sample_rate:
            return "low-sample-rate", f"{clip.sample_rate} Hz"
        if clip.peak_dbfs is not None and clip.peak_dbfs < self.silent_below:
            return "silent", f"peak {clip.peak_dbfs:.1f} dBFS"
        if clip.captions and not fits:
            return "caption-length", f"{words(clip.captions[0])} words: {clip.captions[0][:100]}"
        if self.min_score is not None and score < self.min_score:
            return "low-score", f"{score:.4f}"
        return "", ""


@cache
def longest(source: str) -> float:
    """The longest clip (s) of a source that its datacard has in mind, else 600."""
    return float(read_card(source).get("max_duration", LONGEST)) if source in SOURCES else LONGEST


@lru_cache(maxsize=1)
def read_scores(path: Path, known: str) -> dict[str, float]:
    """{id: score} of a file of scores, read anew when what it is `known` by changes; BuildError if it is not one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["id", "score"])
        return dict(zip(table["id"].to_pylist(), table["score"].cast(pa.float64()).fill_null(math.nan).to_pylist(),
                        strict=True))  # fmt: skip
    except (OSError, KeyError, pa.ArrowException) as error:
        raise BuildError(
            f"--scores {path} is no Parquet file with id and score, as `score` writes it: {error}"
        ) from error
