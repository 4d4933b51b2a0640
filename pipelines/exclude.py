"""Reject what must not be used, on licences, ids, file names and languages, before a byte is fetched."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from pipelines.clip import Clip
from pipelines.disk import BuildError
from pipelines.evaluation import HELP, Index, Lists, read_index
from pipelines.language import detect
from pipelines.licenses import matches
from pipelines.setting import setting
from pipelines.text import printable

SECTION = r"(#[\d.e+]*-[\d.e+]*)?(#\d+)?$"  # of a recording, or the number of a repeated id


@dataclass(frozen=True)
class Exclude:
    """Keep clips under an allowed licence and in an allowed language that no list names."""

    packs: ClassVar[bool] = False

    licenses: tuple[str, ...] = setting((), "keep only these licences: CC0,CC-BY (each with all its versions)")
    languages: tuple[str, ...] = setting((), "keep only captions in these languages: en,de; or in one nobody can tell")
    exclude_ids: tuple[str, ...] = setting(
        (),
        "file of ids to leave out, native or published, one a line, or a blacklist of WavCaps (.json)",
        metavar="FILE",
    )
    exclude_evaluation: tuple[str, ...] = setting((), HELP, metavar="NAME[=METADATA],...")
    lists: Path | None = None  # where those of exclude_evaluation are

    def __post_init__(self) -> None:
        for name in self.languages:
            if not re.fullmatch("[a-z]{2,3}", name):
                raise BuildError(f"--languages {name}: want codes of ISO 639, such as en,de")

    def bound(self, lists: Lists) -> "Exclude":
        """The stage with the lists that its build has read."""
        return replace(self, exclude_evaluation=lists.known, lists=lists.path)

    def __call__(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        assert self.lists or not self.exclude_evaluation, "evaluation.bind comes first"
        excluded = frozenset(self.exclude_ids)
        index = read_index(self.lists, self.exclude_evaluation) if self.lists and self.exclude_evaluation else None
        return in_languages([self.judge(clip, excluded, index) for clip in clips], frozenset(self.languages))

    def judge(self, clip: Clip, excluded: frozenset[str], index: Index | None) -> Clip:
        """The clip, rejected if its licence is not among those wanted or a list names it."""
        if self.licenses and not any(matches(clip.license, wanted) for wanted in self.licenses):
            return clip.reject("exclude", "license", clip.license or "no licence given")
        if excluded and (id := on_list(clip, excluded)):
            return clip.reject("exclude", "evaluation-overlap", f"id {id} is on the list")
        if index and (why := index.overlap(clip)):
            return clip.reject("exclude", "evaluation-overlap", why)
        return clip


def on_list(clip: Clip, excluded: frozenset[str]) -> str:
    """The id of a clip that a list names: as published, native, or of its recording, with or without the site."""
    native = clip.id.removeprefix(f"{clip.source}/")
    whole = clip.recording.partition("#")[0]
    ids = [clip.id, native, clip.recording, whole, whole.partition(":")[2]]
    if "#" in native:
        ids += [re.sub(SECTION, "", native), re.sub(r"#\d+$", "", native)]
    return next((id for id in ids if id in excluded), "")


def in_languages(clips: list[Clip], wanted: frozenset[str]) -> Iterator[Clip]:
    """The clips with the language of their captions; captions in no wanted one (any, if none is named) are dropped.

    A language that the source states holds for all its captions. What is too short to tell is kept, unless all of a
    clip's captions together are told to be in another language.
    """
    if wanted:
        clips = list(only(clips, wanted))
    told = [clip for clip in clips if not clip.reason and not clip.language and clip.captions]
    codes = iter(detect([" ".join(clip.captions) for clip in told]))
    for clip in clips:
        if clip.reason or clip.language or not clip.captions:
            yield clip
        elif (code := next(codes)) and wanted and code not in wanted:
            yield clip.reject("exclude", "language", f"captions together in {code}")
        else:
            yield clip.changed(language=code)


def only(clips: list[Clip], wanted: frozenset[str]) -> Iterator[Clip]:
    """The clips with their captions in wanted languages, and in one that cannot be told; rejected if none is left."""
    codes = iter(detect([text for clip in clips if not (clip.reason or clip.language) for text in clip.captions]))
    for clip in clips:
        if clip.reason or not clip.captions:
            yield clip
            continue
        spoken = [(clip.language or next(codes), text) for text in clip.captions]
        kept = tuple(text for code, text in spoken if not code or code in wanted)
        if kept:
            yield replace(clip, captions=kept)
        else:
            yield clip.reject("exclude", "language", f"captions in {', '.join(sorted({code for code, _ in spoken}))}")


def read_ids(path: Path) -> tuple[str, ...]:
    """The ids of a list, sorted; empty lines and lines that start with # do not count. A .json is WavCaps's."""
    if path.suffix.lower() == ".json":
        from pipelines.sources.wavcaps import read_blacklist

        return tuple(sorted(set(read_blacklist(path))))
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"cannot read the list of ids {path}: {error}") from error
    return tuple(sorted({printable(line) for line in lines if line.strip() and not line.startswith("#")}))
