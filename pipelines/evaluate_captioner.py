"""How faithful and how fluent captioners are: keywords of held-out captions are given back as sentences and compared.

Keywords come from one human caption of a clip (its first), so that a sentence can be judged by them (pipelines.
faithfulness) and by all captions of the clip (ROUGE-L, BLEU). The first caption is among those, which lifts both for
every captioner alike. What is scored is what a captioner wrote, never the template that stands in for it in a build.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from pipelines.disk import BuildError
from pipelines.english import sound_of
from pipelines.faithfulness import choose, coverage, invention
from pipelines.keywords import extract, tokens
from pipelines.sources.corpus import read_rows
from pipelines.text import words
from pipelines.verify import find_dataset

if TYPE_CHECKING:
    from pipelines.captioner import Captioner

Keywords = tuple[str, ...]
Write = Callable[[list[Keywords]], list[str]]  # a sentence for each set of keywords, "" for none

HUMAN = ("captions", "labels", "tags", "language")  # columns that tell what people wrote, and in which language
CLIP = (("youtube_id", "start_time"), ("file_name",), ("id",))  # columns that tell which rows are one clip


def compare(models: Mapping[str, "Captioner"], captions: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    """Scores of the template and of each model: of its likeliest sentences, and of the truest ones ("MODEL, chosen").

    Both come from the same candidates, which are written once: their captions per second are the same.
    """
    writers = {name: likeliest(model) for name, model in models.items()}
    choosers = {f"{name}, chosen": chosen(model) for name, model in models.items()}
    scores = evaluate({"template": template, **writers, **choosers}, captions)
    for name in models:
        scores[f"{name}, chosen"]["captions_per_second"] = scores[name]["captions_per_second"]
    return scores


def evaluate(
    captioners: Mapping[str, Write], captions: Sequence[Sequence[str]], keywords: Sequence[Keywords] | None = None
) -> dict[str, dict[str, float]]:
    """{captioner: its scores} over clips, each with its human captions; `keywords` are extracted without any.

    A clip whose first caption gives no keywords is left out. Raises BuildError where none is left.

    coverage, invention: see pipelines.faithfulness; complete: the share of sentences with every keyword;
    rouge_l: F-measure against the nearest caption, without stemming; bleu: BLEU-4 of the corpus, 0 to 1; distinct_1,
    distinct_2: different words and pairs of words among all; captions_per_second: by the clock; n: clips.
    """
    sets = keywords if keywords is not None else [extract(several[0]) if several else () for several in captions]
    pairs = [(tuple(given), list(several)) for given, several in zip(sets, captions, strict=True) if given and several]
    if not pairs:
        raise BuildError("no caption to evaluate with: want English captions that people wrote")
    return {name: measure(write, pairs) for name, write in captioners.items()}


def measure(write: Write, pairs: list[tuple[Keywords, list[str]]]) -> dict[str, float]:
    """The scores of one captioner over (keywords, captions) of clips."""
    begin = perf_counter()
    written = write([given for given, _ in pairs])
    seconds = perf_counter() - begin
    covered = [coverage(text, given) for text, (given, _) in zip(written, pairs, strict=True)]
    invented = [invention(text, given) for text, (given, _) in zip(written, pairs, strict=True)]
    captions = [several for _, several in pairs]
    return {
        "coverage": mean(covered),
        "invention": mean(invented),
        "complete": mean([share == 1 for share in covered]),
        "rouge_l": rouge(written, captions),
        "bleu": bleu(written, captions),
        "distinct_1": distinct(written, 1),
        "distinct_2": distinct(written, 2),
        "captions_per_second": len(written) / max(seconds, 1e-9),
        "n": len(written),
    }


def template(sets: list[Keywords]) -> list[str]:
    """The captioner without a model: "The sounds of A, B and C."."""
    return [sound_of(given) for given in sets]


def likeliest(captioner: "Captioner") -> Write:
    """What a model writes by itself: of its candidates the most probable one, "" where there is none."""

    def write(sets: list[Keywords]) -> list[str]:
        return [found[0][0] if found else "" for found in captioner.generate(sets)]

    return write


def chosen(captioner: "Captioner") -> Write:
    """What a model writes: of its candidates the one that is truest to the keywords, "" where there is none."""

    def write(sets: list[Keywords]) -> list[str]:
        several = zip(captioner.generate(sets), sets, strict=True)
        return [found[choose(found, given)[0]][0] if found else "" for found, given in several]

    return write


def rouge(written: list[str], captions: list[list[str]]) -> float:
    """Mean ROUGE-L (F-measure, the nearest of a clip's captions) by Google's rouge-score."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    return mean([scorer.score_multi(several, text)["rougeL"].fmeasure
                 for several, text in zip(captions, written, strict=True)])  # fmt: skip


def bleu(written: list[str], captions: list[list[str]]) -> float:
    """BLEU-4 of the corpus by NLTK, words in lower case; smoothed, so that a few sentences have one too."""
    from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu

    references = [[tokens(each) for each in several] for several in captions]
    smooth = SmoothingFunction().method1
    return float(corpus_bleu(references, [tokens(text) for text in written], smoothing_function=smooth))


def distinct(written: list[str], size: int) -> float:
    """The share of different runs of `size` words among all such runs; 0 without any."""
    runs = [run for text in written for run in neighbours(tokens(text), size)]
    return len(set(runs)) / len(runs) if runs else 0.0


def neighbours(words: list[str], size: int) -> Iterator[tuple[str, ...]]:
    """The runs of `size` words in a list."""
    return zip(*(words[i:] for i in range(size)), strict=False)


def mean(values: Sequence[float]) -> float:
    """The mean of at least one value."""
    return sum(values) / len(values)


def references(path: Path, split: str = "test", limit: int | None = None) -> list[list[str]]:
    """The human captions of each clip of a CSV file, or of a split ("all" for every one) of a dataset or a build.

    A CSV has a column `caption`, a row per caption, or `caption_1`, `caption_2` and so on. Raises BuildError for
    anything else.
    """
    clips = of_dataset(path, split) if path.is_dir() else iter(of_table(path))
    found = list(islice((several for several in clips if several), limit))
    if not found:
        raise BuildError(f"no caption in {path}: give a CSV with a column caption, or a dataset with split {split}")
    return found


def of_table(path: Path) -> list[list[str]]:
    """The captions of a CSV, those of a clip together (AudioCaps' and Clotho's layouts)."""
    clips: dict[Any, list[str]] = {}
    for row, cells in enumerate(read_rows(path)):
        columns = [name for name in cells if re.fullmatch(r"caption(_\d+)?", name)]
        if not columns:
            raise BuildError(f"{path} has no column caption, only {', '.join(cells)}: rename the right one")
        known = next((names for names in CLIP if set(names) <= set(cells)), ())
        clip = tuple(cells[name] for name in known) or row
        clips.setdefault(clip, []).extend(cells[name] for name in columns if words(cells[name]))
    return list(clips.values())


def of_dataset(path: Path, split: str) -> Iterator[list[str]]:
    """The human captions of each clip of a dataset's split; none of a clip whose language is told and not English."""
    from pyarrow import parquet

    data = find_dataset(path) / "data"
    for shard in sorted(data.glob("*.parquet" if split == "all" else f"{split}-*.parquet")):
        file = parquet.ParquetFile(shard)
        there = [name for name in HUMAN if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=there):
            yield from map(human, batch.to_pylist())


def human(row: dict[str, Any]) -> list[str]:
    """The captions of a row that people wrote in English: not what the rule for labels made of its labels or tags."""
    if (row.get("language") or "en") != "en":
        return []
    made = sound_of(row.get("labels") or row.get("tags") or ())
    return [text for text in row["captions"] or () if text != made]
