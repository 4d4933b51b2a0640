"""Give every clip a caption: the published ones, else a sentence made from its labels or tags.

The rule for labels is LAION's, see pipelines.english. With a captioner, sentences are also generated from keywords: of
those that the model proposes the most faithful ones are kept (pipelines.faithfulness), and where none is faithful
enough the rule makes the sentence, which then says so.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from pipelines.beams import Decoding, Keywords
from pipelines.clip import Clip
from pipelines.debias import neutral
from pipelines.disk import BuildError
from pipelines.english import sound_of
from pipelines.faithfulness import Scores, choose, coverage, invention
from pipelines.keywords import clean_tags, extract
from pipelines.setting import setting

CHOICES = {"keywords": ("tags", "captions", "both"), "precision": ("auto", "fp32", "bf16")}
LEAST = {"beams": 1, "samples": 0, "most_keywords": 1, "most_tokens": 1, "no_repeat": 0, "generations": 1}
TEMPLATE = "template"  # in place of a model's name


@dataclass(frozen=True)
class Caption:
    """Fill `captions` where a source published none and, with a captioner, `generated` from keywords.

    A clip without keywords, or too short, has nothing generated. The scores are those of the sentence as the model
    wrote it, before `debias`; a template's log-probability is 0.
    """

    packs: ClassVar[bool] = False

    captioner: str = setting("", "seq2seq model that writes sentences from keywords: folder or Hub id", metavar="MODEL")
    captioner_revision: str = setting("", "its commit on the Hub; by default the newest one, noted in the recipe")
    keywords: str = setting("tags", "what sentences are made from: tags (and labels), captions or both")
    most_keywords: int = setting(12, "most keywords of a clip; the first ones count")
    beams: int = setting(4, "width of the beam search, and sentences that it proposes")
    samples: int = setting(0, "sentences drawn at random and proposed too")
    temperature: float = setting(1.0, "of the draw")
    length_penalty: float = setting(1.5, "of the beams: over 0 longer sentences win")
    no_repeat: int = setting(3, "word pieces in a row that no sentence has twice; 0 for any")
    most_tokens: int = setting(48, "word pieces of the longest sentence")
    precision: str = setting("auto", "of the model: fp32, bf16, or auto (bf16 on a GPU, else fp32)")
    caption_seed: int = setting(0, "of the draw")
    generations: int = setting(1, "most sentences that are kept of a clip")
    min_coverage: float = setting(0.75, "share of the keywords that a sentence must express")
    max_invention: float = setting(0.2, "share of a sentence's content words that no keyword supports")
    shortest_captioned: float = setting(2.0, "shortest clip to write sentences for, in seconds")
    debias: bool = setting(False, "generated sentences are of persons and children, not of men, women, boys and girls")

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise BuildError(f"--{name} cannot be {getattr(self, name)!r}: choose one of {', '.join(choices)}")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise BuildError(f"--{name.replace('_', '-')} {getattr(self, name)}: want at least {least}")
        if self.temperature <= 0:
            raise BuildError(f"--temperature {self.temperature}: want more than 0")

    @property
    def pooled(self) -> bool:
        """Whether it works with a model, which a process should load only once."""
        return bool(self.captioner)

    def pinned(self, held: Mapping[str, Any] | None = None) -> Self:
        """The same stage with the captioner's revision named for good; raises BuildError where it is out of reach.

        `held` are its settings in the build that is continued: where they name the same captioner and no other
        revision was asked for, theirs holds. A folder that is there is of the revision that it holds now.
        """
        from pipelines.captioner import pin

        if not self.captioner:
            return self
        model, revision, folder = self.captioner, self.captioner_revision, Path(self.captioner).expanduser()
        same = held is not None and held.get("captioner") in (model, str(folder.absolute()))
        if held and same and not revision and not folder.is_dir():
            model, revision = held["captioner"], held["captioner_revision"]
        else:
            model, revision = pin(model, revision)
        return replace(self, captioner=model, captioner_revision=revision)

    def ready(self, whole: bool = False) -> None:
        """Raise BuildError where the captioner cannot be read: its tokenizer, or the `whole` of it."""
        from pipelines.captioner import captioner, look

        if self.captioner and whole:
            captioner(self.captioner, self.captioner_revision, self.decoding())
        elif self.captioner:
            look(self.captioner, self.captioner_revision)

    def __call__(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        if not self.captioner:
            yield from map(described, clips)
            return
        clips = list(clips)  # a part: equal keywords are written of once
        wanted = [self.keywords_of(clip) for clip in clips]
        written = self.write({each for each in wanted if each})
        for clip, keywords in zip(clips, wanted, strict=True):
            clip = described(clip)
            yield replace(clip, **written[keywords]) if keywords and not clip.reason else clip

    def keywords_of(self, clip: Clip) -> Keywords:
        """The keywords that a clip's sentences are made from; none where it should have no sentences."""
        if clip.duration is not None and clip.duration < self.shortest_captioned:
            return ()
        tags = clean_tags((*clip.labels, *clip.tags)) if self.keywords != "captions" else ()
        english = clip.captions and clip.language in ("", "en")
        words = extract(clip.captions[0]) if self.keywords != "tags" and english else ()
        return clean_tags((*tags, *words))[: self.most_keywords]

    def write(self, sets: Iterable[Keywords]) -> dict[Keywords, dict[str, Any]]:
        """For each set of keywords the fields that its clips get."""
        from pipelines.captioner import captioner

        sets = sorted(sets)
        model = captioner(self.captioner, self.captioner_revision, self.decoding())
        return {each: self.fields(each, found) for each, found in zip(sets, model.generate(sets), strict=True)}

    def decoding(self) -> Decoding:
        """How the captioner searches."""
        return Decoding(
            beams=self.beams, samples=self.samples, temperature=self.temperature, length_penalty=self.length_penalty,
            no_repeat=self.no_repeat, most_tokens=self.most_tokens, seed=self.caption_seed,
            precision=self.precision,
        )  # fmt: skip

    def fields(self, keywords: Keywords, proposed: list[tuple[str, float]]) -> dict[str, Any]:
        """`generated`, its scores and who wrote it: the best of what was proposed, or the template."""
        kept = self.best(keywords, proposed)
        by = self.name() if kept else TEMPLATE
        if not kept:
            text = sound_of(keywords)
            kept = [(text, Scores(coverage(text, keywords), invention(text, keywords)))]
        written: dict[str, tuple[Scores, int]] = {}  # de-biased, two sentences may be one
        for text, scores in kept:
            text, count = neutral(text) if self.debias else (text, 0)
            written.setdefault(text, (scores, count))
        scored = tuple(dict(each._asdict()) for each, _ in written.values())
        count = sum(count for _, count in written.values())
        return {"generated": tuple(written), "generated_scores": scored, "generated_by": by, "debiased": count}

    def best(self, keywords: Keywords, proposed: list[tuple[str, float]]) -> list[tuple[str, Scores]]:
        """At most `generations` of the proposed sentences within the thresholds, the best first."""
        left = [
            (text, logprob) for text, logprob in proposed
            if coverage(text, keywords) >= self.min_coverage and invention(text, keywords) <= self.max_invention
        ]  # fmt: skip
        kept: list[tuple[str, Scores]] = []
        while left and len(kept) < self.generations:
            index, scores = choose(left, keywords)
            kept.append((left.pop(index)[0], scores))
        return kept

    def name(self) -> str:
        """The captioner as it is published: <Hub id or name of its folder>@<revision>."""
        path = Path(self.captioner)
        return f"{path.name if path.is_dir() else self.captioner}@{self.captioner_revision}"


def described(clip: Clip) -> Clip:
    """The clip with a caption by the rule for labels if it has none, or rejected where there is nothing to say."""
    if clip.captions:
        return clip
    if caption := sound_of(clip.labels or clip.tags):
        return replace(clip, captions=(caption,))
    return clip.reject("caption", "no-caption", "no caption, label or tag")
