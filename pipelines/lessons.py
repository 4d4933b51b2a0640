"""What a captioner learns from: each real caption, to be written from its own content words.

The words are lemmas (pipelines.keywords), shuffled anew in each epoch. Now and then one is left out, for a sentence may
need a word that no tag says, or replaced by a word that there is not, for tags hold words that no caption had.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.disk import BuildError
from pipelines.evaluate_captioner import references
from pipelines.keywords import extract
from pipelines.text import clean

if TYPE_CHECKING:
    import numpy as np

Lesson = tuple[tuple[str, ...], str]  # keywords, caption

POOL = 50  # batches whose captions are sorted by length together: less padding, and hardly less random


def read_lessons(captions: Sequence[str | Path]) -> list[Lesson]:
    """(keywords, caption) of each caption of CSV files and of datasets' train splits that has a content word."""
    texts = [clean(text) for path in captions for clip in references(Path(path), "train") for text in clip]
    lessons = [(keywords, text) for text in texts if (keywords := extract(text))]
    if not lessons:
        raise BuildError(f"no caption with a content word in {', '.join(map(str, captions)) or 'no file'}: give others")
    return lessons


def batches(
    lessons: Sequence[Lesson], seed: tuple[int, int], size: int, drop: float, in_order: float, made_up: float
) -> list[list[Lesson]]:
    """Every batch of an epoch, the same whenever it is asked for; `seed` is the run's and the epoch's number.

    Captions of about the same length share a batch.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lessons))
    lengths = np.array([len(caption) for _, caption in lessons])
    pools = [order[start : start + POOL * size] for start in range(0, len(order), POOL * size)]
    ranked = [pool[np.argsort(lengths[pool], kind="stable")] for pool in pools]
    cut = [pool[start : start + size] for pool in ranked for start in range(0, len(pool), size)]
    rng.shuffle(cut)
    words = sorted({word for keywords, _ in lessons for word in keywords})

    def varied(lesson: Lesson) -> Lesson:
        keywords, caption = make_up(lesson, words, rng) if rng.random() < made_up else lesson
        return vary(keywords, rng, drop, in_order), caption

    return [[varied(lessons[i]) for i in each] for each in cut]


def make_up(lesson: Lesson, words: Sequence[str], rng: "np.random.Generator") -> Lesson:
    """The lesson with one keyword made a word that there is not, in the caption too where it finds it there.

    So a model of few words learns to copy those that it has never read. The word is the beginning of one of `words`
    and the end of another.
    """
    keywords, caption = lesson
    old, one, other = (some[int(rng.integers(len(some)))] for some in (keywords, words, words))
    new = one[: (len(one) + 1) // 2] + other[len(other) // 2 :]
    inflected = re.compile(rf"\b{re.escape(old)}(s|ed|ing)?\b", re.IGNORECASE)
    changed, times = inflected.subn(lambda found: new + (found[1] or ""), caption)
    return (tuple(new if word == old else word for word in keywords), changed) if times else lesson


def vary(keywords: Sequence[str], rng: "np.random.Generator", drop: float, in_order: float) -> tuple[str, ...]:
    """Keywords without one of them (of two or more, `drop` of the time), shuffled but for `in_order` of the time."""
    kept = list(keywords)
    if len(kept) > 1 and rng.random() < drop:
        kept.pop(int(rng.integers(len(kept))))
    if rng.random() >= in_order:
        rng.shuffle(kept)
    return tuple(kept)
