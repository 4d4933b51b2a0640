"""Sentences that do not say of which sex a person is: the paper's de-biasing, by the rules of words/persons.toml.

Whole words only, with agreement; names stay ("Herman", "Isle of Man"), and so do words that hold one ("man-made").
Keywords that a sentence is compared with afterwards need the same treatment. "He" is a person even where a dog was
meant: the rules know no animals.
"""

import re
import tomllib
from functools import cache
from itertools import islice, pairwise
from typing import Any

from pipelines.keywords import WORDS, lemma

WORD = re.compile(r"[^\W\d_]+(?:[-'\u2019][^\W\d_]+)*")
QUOTE = re.compile(r"(?<!\w)['\u2018]")  # opens one: an apostrophe at the end of a word may then close it
OWNER = re.compile(r"s['\u2019](?=\s\w)", re.IGNORECASE)  # the end of "boys'"
# What stands before the first word of a sentence; the full stop of "Mr." does not
OPENING = re.compile(r"(?:^|[!?:\"\u201c(]|(?<!\b[DMS][rst])\.)[\s\"'\u201c\u2018(]*$")
LOOK_BACK = 20  # characters; the first word of a sentence has no more marks and spaces before it
TWICE = re.compile(r"\b(person|child|parent|adult) and (?:an? )?(?=\1\b)", re.IGNORECASE)
GROUPS = re.compile(r"\b(people|children|adults) (?:and|or) \1\b", re.IGNORECASE)


def neutral(sentence: str) -> tuple[str, int]:
    """The sentence without the sex of persons, and how many words were replaced or left out."""
    sentence, shorter = with_phrases(sentence)
    sentence, fewer = without_adjectives(sentence)
    count = shorter + fewer
    found = list(WORD.finditer(sentence))
    names, seen = kept(sentence, found), {"he": "person", "she": "person"}
    pieces, end, quoted = [], 0, QUOTE.search(sentence)
    for i, match in enumerate(found):
        instead = "" if i in names else replacement(sentence, found, i, seen)
        mark = bool(instead and not quoted and OWNER.match(sentence, match.end() - 1))
        said = cased(owner(instead) if mark else instead, match[0]) if instead else match[0]
        pieces += [sentence[end : match.start()], said]
        count, end = count + bool(instead), match.end() + mark
    text = "".join(pieces) + sentence[end:]
    return (TWICE.sub(r"\1 and another ", GROUPS.sub(r"\1", text)), count) if count else (text, 0)


def replacement(sentence: str, found: list[re.Match[str]], i: int, seen: dict[str, str]) -> str:
    """What stands for the i-th word, "" for the word itself.

    `seen` are the persons that "he" and "she" mean; a noun is noted there.
    """
    name = found[i][0].lower().replace("\u2019", "'")
    word, owns = name.removesuffix("'s"), name.endswith("'s")
    if word in seen:
        return f"the {owner(seen[word]) if owns else seen[word]}"
    if word in ("her", "his"):
        return "their" if not alone(sentence, found, i) else "them" if word == "her" else "theirs"
    for who in seen:
        if word in rules()[who]:
            if word in rules()["adjectives"]["words"] and not owns and not is_noun(sentence, found, i):
                return ""
            instead = rules()[who][word]
            seen[who] = seen[who] if instead in ("people", "children", "parents") else instead
            return owner(instead) if owns else instead
    return rules()["pronouns"].get(word, "")


def owner(noun: str) -> str:
    """The form of a noun that owns something."""
    return f"{noun}'" if noun.endswith("s") else f"{noun}'s"


def alone(sentence: str, found: list[re.Match[str]], i: int) -> bool:
    """Whether the i-th word has no noun after it: a mark, nothing or a word that begins something else follows."""
    for word, following in pairwise(islice(found, i, None)):
        if sentence[word.end() : following.start()].strip():
            return True
        name = following[0].lower()
        if name in listed("pronouns_before", "alone"):
            return True
        if not name.endswith("ly"):  # an adverb says nothing yet
            return False
    return True


def is_noun(sentence: str, found: list[re.Match[str]], i: int) -> bool:
    """Whether "male" or "female" is a person and not an adjective: it is alone, or does what persons do."""
    acts = (word[0].lower() for word in islice(found, i + 1, None) if not word[0].endswith("ly"))
    return alone(sentence, found, i) or lemma(next(acts, "")) in listed("adjectives", "acts")


def kept(sentence: str, found: list[re.Match[str]]) -> set[int]:
    """The places of words that name other things: capitals within a sentence, and the phrases of the rules."""
    places = {
        i for i, match in enumerate(found)
        if match[0].istitle() and not OPENING.search(sentence[max(0, match.start() - LOOK_BACK) : match.start()])
    }  # fmt: skip
    spans = [phrase.span() for phrase in others().finditer(sentence)]
    inside = {at for start, end in spans for at in range(start, end)}
    return places | {i for i, match in enumerate(found) if match.start() in inside}


def without_adjectives(sentence: str) -> tuple[str, int]:
    """The sentence without "male" and "female" before a word that does without, and how many there were."""
    sentence, twice = pairs().subn(together, sentence)
    sentence, once = adjectives().subn(drop, sentence)
    return sentence, 2 * twice + once


def together(match: re.Match[str]) -> str:
    """What "a male and a female voice" are: "a voice and another voice"; but male and female voices are voices."""
    article, noun = match["article"], match["noun"]
    if noun.lower() in listed("adjectives", "several"):
        return cased(noun, match[0][0])
    one = with_article(article, noun) if article else cased(noun, match[0][0])
    two = match["and"] and (match["second"] or noun.lower() in listed("adjectives", "each"))
    return f"{one} {cased('and another', match['and'])} {noun}" if two else one


def drop(match: re.Match[str]) -> str:
    """The first letter of the word after an adjective, with the article that was before that."""
    article, first = match["article"], match["first"]
    return with_article(article, first) if article else cased(first, match["word"][0])


def with_article(article: str, noun: str) -> str:
    """A noun, or its first letter, after "a" or "an", in the capitals of an article."""
    return f"{cased('an' if noun[0].lower() in 'aeiou' else 'a', article)} {noun}"


def with_phrases(sentence: str) -> tuple[str, int]:
    """The sentence with the phrases that are said in fewer words ("his or her"), and how many there were."""
    instead = rules()["phrases"]
    pattern = rf"(?<![\w'-])(?:{'|'.join(instead)})(?![\w-])"
    return re.subn(pattern, lambda match: cased(instead[match[0].lower()], match[0]), sentence, flags=re.IGNORECASE)


def cased(instead: str, word: str) -> str:
    """A replacement in the capitals of the word that it stands for."""
    if len(word) > 1 and word.isupper():
        return instead.upper()
    return instead[0].upper() + instead[1:] if word[0].isupper() else instead


@cache
def adjectives() -> re.Pattern[str]:
    """An adjective that goes, with the article before it and the first letter of the word after it."""
    words, before = "|".join(rules()["adjectives"]["words"]), "|".join(listed("adjectives", "before"))
    return re.compile(
        rf"(?<![\w'-])(?:(?P<article>an?)\s+)?(?P<word>{words})\s+(?=(?:{before})\b(?!-))(?P<first>\w)", re.IGNORECASE
    )


@cache
def pairs() -> re.Pattern[str]:
    """Two adjectives before one noun, each perhaps with an article."""
    words = "|".join(rules()["adjectives"]["words"])
    nouns = "|".join(name for key in ("several", "each", "group") for name in listed("adjectives", key))
    return re.compile(
        rf"(?<![\w'-])(?:both\s+)?(?:(?P<article>an?)\s+)?(?:{words})\s+(?:(?P<and>and)|or)\s+(?P<second>an?\s+)?"
        rf"(?:{words})\s+(?P<noun>{nouns})\b(?!-)",
        re.IGNORECASE,
    )


@cache
def others() -> re.Pattern[str]:
    """The phrases that stay; in longer ones before those that they begin with."""
    longest = sorted(rules()["kept"]["phrases"], key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(longest)})\b", re.IGNORECASE)


@cache
def listed(table: str, key: str) -> frozenset[str]:
    """The words of a list in the rules."""
    return frozenset(rules()[table][key].split())


@cache
def rules() -> dict[str, Any]:
    """The rules of words/persons.toml."""
    return tomllib.loads((WORDS / "persons.toml").read_text(encoding="utf-8"))
