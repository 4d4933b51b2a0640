"""Keywords: the facts that a sentence is made from, out of a clip's tags or of a caption that someone wrote.

Words are compared as lemmas ("barks", "barking" and "bark" are one) by simplemma, whose data ship in its wheel, so that
nothing is fetched. English only. The lists lie in pipelines/words.
"""

import re
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path

from pipelines.text import clean

WORDS = Path(__file__).with_name("words")
# Abbreviations with their full stops ("p.a."), numbers with a decimal point, words with an apostrophe inside
TOKEN = re.compile(
    r"(?<![^\W_])[^\W\d_](?:\.[^\W\d_])+(?![^\W_])\.?|\d+(?:[.,]\d+)+|[^\W_]+(?:['\u2019][^\W_]+)*", re.UNICODE
)
LONGEST = 20_000  # characters of a text that are looked at
OWNER = re.compile(r"['\u2019]s$")


def clean_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """The keywords among a clip's tags, in their order: lower case, "_" as a space, technical tags left out.

    Marks inside stay ("p.a.", "male speech, man speaking"). Tags with the same lemmas are one: the first.
    """
    found: dict[frozenset[str], str] = {}
    for tag in tags:
        keyword = clean(tag.replace("_", " ")).lower()
        if worded(keyword) and not technical(keyword):
            found.setdefault(frozenset(map(lemma, needed(keyword))), keyword)
    return tuple(found.values())


def extract(caption: str) -> tuple[str, ...]:
    """The content words of a caption as lemmas, in its order, each once.

    Words that only say that there is a sound ("noise", "heard") are left out, unless there are no others.
    """
    found = tuple(dict.fromkeys(content(caption)))
    return tuple(word for word in found if word not in listed("neutral.txt")) or found


def content(text: str) -> list[str]:
    """The lemmas of a text's content words in its order, repetitions too; a word with a hyphen is two."""
    return [lemma(word) for word in telling(text)]


def telling(text: str) -> list[str]:
    """The content words of a text as they stand, in lower case."""
    return [word for word in tokens(text) if not is_stop(word)]


def needed(keyword: str) -> list[str]:
    """The words that express a keyword: its content words, or all its words where it has none ("off")."""
    return telling(keyword) or tokens(keyword)


def tokens(text: str) -> list[str]:
    """Words in lower case; "'s" goes, and the full stops of an abbreviation ("P.A." and "pa" are the same)."""
    return [OWNER.sub("", word).replace(".", "") if word[0].isalpha() else word
            for word in TOKEN.findall(text[:LONGEST].lower())]  # fmt: skip


def is_stop(word: str) -> bool:
    """Whether a word in lower case tells nothing of a sound, as it stands or by its lemma."""
    stop = listed("stop.txt")
    return word in stop or lemma(word) in stop


@lru_cache(maxsize=1 << 16)
def lemma(word: str) -> str:
    """The dictionary form of an English word in lower case: "children" is "child", "crying" is "cry"."""
    import simplemma

    if word in (known := corrections()):
        return known[word]
    return simplemma.lemmatize(word, lang="en").lower()


def worded(keyword: str) -> bool:
    """Whether a keyword has a letter, or is a number that names something ("808", "747")."""
    return any(char.isalpha() for char in keyword) or re.fullmatch(r"[1-9]\d{2}", keyword) is not None


def technical(keyword: str) -> bool:
    """Whether a whole tag tells of files, equipment or catalogues and not of the sound (words/technical.txt)."""
    names, pattern = technicalities()
    plain = " ".join(re.split(r"[-_\s]+", keyword)).strip()
    return plain in names or pattern.fullmatch(plain) is not None


@cache
def technicalities() -> tuple[frozenset[str], re.Pattern[str]]:
    """Technical tags by name, and one pattern for all others."""
    found = lines("technical.txt")
    patterns = [line.strip("/") for line in found if line.startswith("/")]
    return frozenset(line for line in found if not line.startswith("/")), re.compile("|".join(patterns))


@cache
def listed(name: str) -> frozenset[str]:
    """The words of a list in words/."""
    return frozenset(word for line in lines(name) for word in line.split())


@cache
def corrections() -> dict[str, str]:
    """Lemmas that the dictionary has wrong, or that mean another thing of sounds."""
    return dict(line.split() for line in lines("lemmas.txt"))


def lines(name: str) -> list[str]:
    """The lines of a file in words/ without comments."""
    text = (WORDS / name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
