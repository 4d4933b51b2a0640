"""`europarl_st`: Europarl-ST v1.1, sentences from debates of the European Parliament in nine languages.

A list of segments stands under every language of translation, so that a sentence stands in up to eight lists.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.clip import Clip, to_json
from pipelines.disk import BuildError
from pipelines.sources.corpus import Sounds, missing
from pipelines.sources.rows import telling
from pipelines.sources.table import to_section

if TYPE_CHECKING:
    from pipelines.sources import Reading

SAYING = {
    "de": "Eine Person sagt:",
    "en": "A person is saying:",
    "es": "Una persona está diciendo:",
    "fr": "Une personne dit :",
    "it": "Una persona sta dicendo:",
    "nl": "Een persoon zegt:",
    "pl": "Osoba mówi:",
    "pt": "Uma pessoa está a dizer:",
    "ro": "O persoană spune:",
}
# set: split, in this order, so that a sentence of a test set is never trained on
SETS = {"test": "test", "dev": "validation", "train": "train"}
LICENSE = "CC-BY-NC-4.0"
TAGS = ("speech", "politician", "parliament")


def clips(path: Path, reading: "Reading") -> Iterator[Clip]:
    """Every sentence once, in the language that is spoken; of one list if `path` is its segments.lst."""
    places = [f"{depth}*/*/{name}/segments.lst" for name in SETS for depth in ("", "v1.1/")]
    lists = [path] if path.is_file() else [table for place in places for table in sorted(path.glob(place))]
    if not lists:
        raise missing(path, "europarl_st", "<language>/<language>/<set>/segments.lst")
    seen: set[tuple[str, str]] = set()
    for table in lists:
        folder = table.absolute().parents[2]
        language, sounds = folder.name, Sounds(folder, "audios")
        for segment, said in segments(table, language):
            if (language, segment) not in seen:
                seen.add((language, segment))
                yield to_clip(segment, said, language, split_of(table), sounds)


def segments(table: Path, language: str) -> Iterator[tuple[str, str]]:
    """The lines of a list, "<speech> <start> <end>", with the transcripts; BuildError if these do not fit together."""
    with telling(table):
        places, texts = lines(table), lines(table.with_name(f"segments.{language}"))
    if len(places) != len(texts):
        raise BuildError(f"{table} has {len(places)} lines and segments.{language} {len(texts)}: unpack both again")
    yield from zip(places, texts, strict=True)


def lines(path: Path) -> list[str]:
    """The lines of a text, which only a line feed ends."""
    return path.read_bytes().decode("utf-8", "replace").removesuffix("\n").split("\n")


def split_of(table: Path) -> str:
    """The split of a list, which stands in the folder of its set."""
    return SETS.get(table.absolute().parent.name.removesuffix("-noisy"), "")


def to_clip(segment: str, said: str, language: str, split: str, sounds: Sounds) -> Clip:
    """The clip of a segment, which must still be cut from its speech."""
    speech, start, end = [*segment.split(), "", "", ""][:3]
    name, part = Path(speech).name, to_section(start, end)
    clip = Clip(
        id=f"europarl_st/{name}{part.name}",
        source="europarl_st",
        location=sounds.locate(f"{name}.m4a"),
        start=part.start,
        end=part.end,
        captions=(f'{SAYING.get(language, SAYING["en"])} "{said.strip()}"',) if said.strip() else (),
        tags=TAGS,
        license=LICENSE,
        url="https://www.mllp.upv.es/europarl-st/",
        split=split,
        language=language,
        original=to_json({"segment": segment, "language": language, "transcript": said}),
    )
    if part.trouble or part.start is None or part.end is None:
        return clip.reject("manifest", "bad-section", part.trouble or f"no start or end in {segment!r}")
    return Clip(**(vars(clip) | {"duration": part.end - part.start}))
