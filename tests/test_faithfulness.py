"""Scores of sentences against the keywords they were made from."""

import csv

import pytest

from pipelines.english import sound_of
from pipelines.faithfulness import Scores, choose, coverage, invention
from pipelines.keywords import extract

# Published as a generated caption: the tag "p.a." had been taken for three prompts
NONSENSE = (
    "p vs wrestling on the mezzanine with huge crowds a teddy bear in the midst of a storm a loop of tv shows "
    "on a computer."
)


@pytest.mark.parametrize(
    ("sentence", "keywords", "share"),
    [
        ("A dog barks.", ["dog bark"], 1),
        ("A dog barks.", ["dog", "cat"], 1 / 2),
        ("A dog barks.", ["dog barking loudly"], 0),
        ("A DOG is barking loudly!", ["dog", "barks", "loud"], 1),
        ("Two men laugh.", ["laughter", "man"], 1),
        ("A gun shot.", ["gunshot"], 1),
        ("Gunshots.", ["gun shot"], 1),
        ("A tick-tock.", ["ticktock"], 1),
        ("Wrestling over the P.A.", ["p.a.", "wrestling"], 1),
        ("A German plays the mandolin.", ["man"], 0),
        ("An engine is off.", ["off"], 1),
        ("An engine.", ["off"], 0),
        ("Anything.", [], 1),
        ("", ["dog"], 0),
    ],
)
def test_coverage_is_the_share_of_keywords_that_are_said(sentence, keywords, share):
    assert coverage(sentence, keywords) == pytest.approx(share)


@pytest.mark.parametrize(
    ("sentence", "keywords", "share"),
    [
        ("A dog barks.", ["dog bark"], 0),
        ("A dog barks at a cat.", ["dog bark"], 1 / 3),
        ("The sound of a dog is heard in the background.", ["dog"], 0),
        ("A man speaks.", ["male speech"], 0),
        ("A man is speaking loudly.", ["man", "speak"], 1 / 3),
        ("A gun shot and gunshots.", ["gunshot"], 0),
        ("Gunshots.", ["gun", "shot"], 0),
        ("A busy street.", ["bus", "street"], 1 / 2),
        ("A corner shop.", ["corn", "shop"], 1 / 2),
        ("A dog barks.", [], 1),
        ("It is.", ["dog"], 0),
        ("A dog is not barking, without rain.", ["dog", "bark", "rain"], 2 / 5),
        ("A dog isn't barking; nobody barks.", ["dog", "bark"], 2 / 5),
        ("No dog, neither bark nor rain; it cannot rain.", ["dog", "bark", "rain"], 4 / 8),
        ("Without rain.", ["without rain"], 0),
        ("", ["dog"], 0),
    ],
)
def test_invention_is_the_share_of_content_words_without_a_keyword(sentence, keywords, share):
    assert invention(sentence, keywords) == pytest.approx(share)


def test_the_published_nonsense_invents_much_and_a_plain_sentence_nothing():
    keywords = ("p.a.", "wrestling", "mezzanine", "huge crowd", "loop")  # the parts of it that belong together
    assert invention(NONSENSE, keywords) > 0.5
    assert coverage(NONSENSE, keywords) < 1
    assert invention(sound_of(keywords), keywords) == 0
    assert coverage(sound_of(keywords), keywords) == 1


def test_the_best_says_most_then_invents_least_then_is_most_probable():
    keywords = ("dog", "bark")
    candidates = [("A dog.", -0.1), ("A dog barks at a cat.", -0.2), ("A dog barks.", -0.9), ("The dog barks.", -0.8)]
    assert choose(candidates, keywords) == (3, Scores(1.0, 0.0, -0.8))
    assert choose(candidates[:2], keywords) == (1, Scores(1.0, pytest.approx(1 / 3), -0.2))
    assert choose(candidates[:1], iter(keywords)) == (0, Scores(0.5, 0.0, -0.1))


def test_of_equals_the_first_is_chosen():
    assert choose([("A dog.", -1.0), ("The dog.", -1.0)], ["dog"])[0] == 0


def test_there_is_no_best_of_none():
    with pytest.raises(ValueError):
        choose([], ["dog"])


def test_a_caption_is_faithful_to_its_own_keywords(shared):
    with (shared / "data" / "audiocaps" / "val.csv").open(encoding="utf-8") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    for caption in captions:
        assert coverage(caption, extract(caption)) == 1 and invention(caption, extract(caption)) == 0, caption
