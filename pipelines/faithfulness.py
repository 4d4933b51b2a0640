"""Is a sentence true to its keywords: does it say all of them (coverage), and nothing else (invention)?

Words are compared by their roots: lemmas (pipelines.keywords) whose simple derivations are one, so that "loudly" says
"loud" and "laughter" says "laugh"; compounds may be written in one word or in two ("gun shot", "gunshot"). Only words
are looked at: that the man barks and the dog speaks is not found.
"""

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import NamedTuple

from pipelines.keywords import lemma, lines, listed, needed, telling, tokens

# Endings of adverbs, and the adjective's instead
ADVERBS = (("ically", "ic"), ("ily", "y"), ("bly", "ble"), ("ly", ""))


class Scores(NamedTuple):
    """How good a sentence is for its keywords; `logprob` is the model's own, per token (0 without a model)."""

    coverage: float  # share of the keywords that are expressed, 0 to 1
    invention: float  # share of the content words that no keyword supports, 0 to 1
    logprob: float = 0.0


def coverage(sentence: str, keywords: Iterable[str]) -> float:
    """The share of the keywords that a sentence expresses, each by all its content words; 1 without any."""
    said = spellings(roots(tokens(sentence)))
    found = [expressed(keyword, said) for keyword in keywords]
    return sum(found) / len(found) if found else 1.0


def invention(sentence: str, keywords: Iterable[str]) -> float:
    """The share of a sentence's content words that no keyword supports; 0 for a sentence without any.

    Words that every sound has ("noise", "background": words/neutral.txt) are supported.
    """
    given = frozenset(word for keyword in keywords for word in spellings(roots(tokens(keyword))))
    words = telling(sentence)
    said = roots(words)
    supported = [word in given or joins(word, given) or lemma(words[i]) in listed("neutral.txt")
                 for i, word in enumerate(said)]  # fmt: skip
    for i, neighbours in enumerate(pairwise(said)):
        if "".join(neighbours) in given:
            supported[i] = supported[i + 1] = True
    return supported.count(False) / len(words) if words else 0.0


def choose(candidates: Sequence[tuple[str, float]], keywords: Iterable[str]) -> tuple[int, Scores]:
    """The index and scores of the best of (sentence, log-probability per token); ValueError for none.

    Most keywords expressed first, then least invented, then most probable, then the earliest.
    """
    given = tuple(keywords)
    scores = [Scores(coverage(text, given), invention(text, given), logprob) for text, logprob in candidates]
    best = max(range(len(scores)), key=lambda i: (scores[i].coverage, -scores[i].invention, scores[i].logprob, -i))
    return best, scores[best]


def expressed(keyword: str, said: frozenset[str]) -> bool:
    """Whether all content words of a keyword are among the spellings of a sentence."""
    words = roots(needed(keyword))
    return set(words) <= said or "".join(words) in said


def joins(word: str, given: frozenset[str]) -> bool:
    """Whether a word is two given ones written together; none shorter than three letters."""
    return any(word[:i] in given and word[i:] in given for i in range(3, len(word) - 2))


def spellings(words: Sequence[str]) -> frozenset[str]:
    """Words, and neighbours written together."""
    return frozenset(words) | {first + second for first, second in pairwise(words)}


def roots(words: Iterable[str]) -> list[str]:
    """The root of each word."""
    return [root(word) for word in words]


@lru_cache(maxsize=1 << 16)
def root(word: str) -> str:
    """What a word shares with its derivations: "loudly" and "loud" have one root, as have "laughter" and "laughs"."""
    base = lemma(word)
    if base in (known := families()):
        return known[base]
    for ending, instead in ADVERBS:
        if base.endswith(ending) and len(base) - len(ending) > 2:
            bare = lemma(base.removesuffix(ending) + instead)
            return known.get(bare, bare)
    return base


@cache
def families() -> dict[str, str]:
    """{word: root} of words/families.txt."""
    return {word: line.split()[0] for line in lines("families.txt") for word in line.split()}
