"""The language of captions: real English ones, clear sentences of others, and names that are in no language."""

import csv
from pathlib import Path

import pytest

from pipelines.language import ENOUGH, LANGUAGES, NONE, classify, detect, model


def captions(shared: Path, n: int) -> list[str]:
    with (shared / "data/audiocaps/train.csv").open(encoding="utf-8", newline="") as file:
        rows = [row["caption"] for row in csv.DictReader(file)]
    return rows[:: len(rows) // n][:n]


def test_real_captions_are_english_and_few_are_undecided(shared):
    found = detect(captions(shared, 1000))
    assert len(found) == 1000
    assert sum(language in ("en", "") for language in found) >= 990
    assert found.count("") < 50


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("de", "Ein Hund bellt in der Ferne, w\u00e4hrend es regnet."),
        ("fr", "Un chien aboie au loin pendant que la pluie tombe."),
        ("es", "Una puerta se cierra de golpe y un perro ladra."),
        ("zh", "下雨的声音"),
        ("ja", "犬が吠えている"),
        ("ru", "Собака лает на улице"),
        ("en", "A dog barks in the distance while it rains."),
    ],
)  # fmt: skip
def test_a_clear_sentence_is_in_its_language(language, text):
    assert detect([text]) == [language]


@pytest.mark.parametrize(
    "name", ["rose bark", "Buddy Bark", "Vox humana organ", "terra nova", "Metal Impact Debris Hit"]
)
def test_a_name_is_english_or_nothing_and_never_latin(name):
    assert detect([name])[0] in ("en", "")


def test_one_word_or_none_is_too_little_to_tell():
    assert detect(["", "rain", "Glass.", "piano 02", "1234 5678", "...", "Deszcz"]) == [""] * 7


def test_each_text_gets_its_own_answer_and_a_long_one_is_cut():
    english, german = "A dog barks in the rain.", "Ein Hund bellt laut im Regen."
    assert detect([english, german, english]) == ["en", "de", "en"]
    assert detect([english * 100_000]) == ["en"]


def test_many_texts_at_once_are_told_as_py3langid_tells_each_of_them(shared):
    texts = [*captions(shared, 200), "下雨的声音", "Киша пада по крову", "Kiša pada po krovu", "LOUD DOG BARKS",
             "\u65e5", "e\u0301te\u0301", "!!!", "\x00 a\x00", "ein Hund " * 50]  # fmt: skip
    texts = [text[:ENOUGH] for text in texts]
    expected = [model().classify(text) for text in texts]
    assert [language for language, _ in classify(texts)] == [language for language, _ in expected]
    assert [share for _, share in classify(texts)] == pytest.approx([share for _, share in expected], abs=1e-4)


def test_the_model_is_loaded_once_and_knows_all_our_languages():
    assert model() is model()
    assert set(model().labels) == {*LANGUAGES, NONE}
