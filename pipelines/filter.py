"""Keep or reject by the facts in the columns; opens no audio, so another threshold takes seconds."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

from pipelines.clip import Clip
from pipelines.setting import setting
from pipelines.sources import SOURCES, read_card
from pipelines.text import words

LONGEST = 600.0  # s


@dataclass(frozen=True)
class Filter:
    """Thresholds on duration (s), sample rate (Hz), peak (dBFS) and words a caption."""

    packs: ClassVar[bool] = False

    min_duration: float = setting(0.1, "shortest clip in seconds")
    max_duration: float | None = setting(None, "longest clip in seconds; by default 600, or what its datacard says")
    min_sample_rate: int = setting(16_000, "lowest sample rate of the source in Hz")
    silent_below: float = setting(-60.0, "a clip whose peak is under this is silent, in dBFS")
    min_words: int = setting(1, "fewest words of a published caption")
    max_words: int = setting(60, "most words of a published caption")

    def __call__(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        for clip in clips:
            fits = tuple(text for text in clip.captions if self.min_words <= words(text) <= self.max_words)
            reason, detail = self.judge(clip, fits)
            if reason:
                yield clip.reject("filter", reason, detail)
            else:
                yield clip if fits == clip.captions else replace(clip, captions=fits)

    def judge(self, clip: Clip, fits: tuple[str, ...]) -> tuple[str, str]:
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
        return "", ""


@cache
def longest(source: str) -> float:
    """The longest clip (s) of a source that its datacard has in mind, else 600."""
    return float(read_card(source).get("max_duration", LONGEST)) if source in SOURCES else LONGEST
