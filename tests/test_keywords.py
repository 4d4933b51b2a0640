"""Keywords out of tags and captions."""

import csv
import time

import pytest

from pipelines.english import sound_of
from pipelines.keywords import clean_tags, content, corrections, extract, lemma, lines, listed


@pytest.mark.parametrize(
    ("tags", "keywords"),
    [
        ([], ()),
        (["dog_bark"], ("dog bark",)),
        (["huge crowd", "p.a."], ("huge crowd", "p.a.")),
        (["Male speech, man speaking"], ("male speech, man speaking",)),
        (['"hello" said'], ('"hello" said',)),
        (["Dog", "dog", "DOGS", "dogs"], ("dog",)),
        (["dog-bark", "barking dog", "dogs_barking"], ("dog-bark",)),
        (["p.a.", "P.A.", "PA"], ("p.a.",)),
        ([" ", "_", "...", "?!"], ()),
        (["01", "7", "808", "747"], ("808", "747")),
        (["off"], ("off",)),
        (["\u96e8", "caf\u00e9"], ("\u96e8", "caf\u00e9")),
    ],
)
def test_tags_become_keywords_once_each_with_their_marks(tags, keywords):
    assert clean_tags(tags) == keywords


@pytest.mark.parametrize(
    "tag",
    ["48khz", "44.1khz", "96k", "24bit", "24-bit", "16_bit", "stereo", "WAV", "zoom-h4n", "zoom_h2n", "h4n", "H5",
     "owi", "field-recording", "Field Recordings", "fieldrecording", "Tascam-DR-40", "dr05", "sony-pcm-d50", "pcm-d100",
     "olympus-ls-10", "r-09hr", "mixpre-6", "sennheiser-mkh-416", "rode-ntg2", "rode nt1a", "rode-videomic-pro", "rode",
     "sm58", "okm", "no.123", "#42",
     "track-3", "20121005", "2012-10-05", "midi-note-60", "note-60", "velocity-100", "cc0", "sound effect", "audacity"],
)  # fmt: skip
def test_technical_tags_go(tag):
    assert clean_tags([tag, "rain"]) == ("rain",)


@pytest.mark.parametrize(
    "tag",
    ["8bit", "440hz", "loop", "c4", "120bpm", "hydrophone", "recorder", "microphone", "tr-808", "ak47", "f16", "md11",
     "wave", "rode a horse",
     "quad", "zoom", "record scratch", "free jazz", "live recording", "library ambience", "test tone", "noise"],
)  # fmt: skip
def test_tags_that_may_tell_of_the_sound_stay(tag):
    assert clean_tags([tag]) == (tag,)


@pytest.mark.parametrize(
    ("caption", "keywords"),
    [
        ("", ()),
        ("A dog barks and dogs are barking", ("dog", "bark")),
        ("Children crying while a woman's voice sings", ("child", "cry", "woman", "voice", "sing")),
        ("The sound of rain is heard in the background", ("rain",)),
        ("Background noise", ("background", "noise")),
        ("Two people talk over the p.a.", ("two", "people", "talk", "pa")),
        ("A tick-tock of several clocks", ("tick", "tock", "clock")),
        ("And then it is", ()),
    ],
)
def test_a_caption_gives_the_lemmas_of_its_content_words(caption, keywords):
    assert extract(caption) == keywords


@pytest.mark.parametrize(
    ("word", "base"),
    [("barking", "bark"), ("men", "man"), ("wolves", "wolf"), ("playing", "play"), ("singing", "sing"),
     ("leaves", "leaf"), ("saw", "saw"), ("rustling", "rustle"), ("tv", "tv"), ("german", "german"), ("qwrt", "qwrt")],
)  # fmt: skip
def test_lemmas_are_dictionary_forms_in_lower_case(word, base):
    assert lemma(word) == base


def test_repetitions_stay_in_the_content_of_a_text():
    assert content("A dog barks and barks") == ["dog", "bark", "bark"]


@pytest.mark.parametrize("name", ["stop.txt", "neutral.txt", "families.txt"])
def test_a_word_stands_once_in_a_list(name):
    words = [word for line in lines(name) for word in line.split()]
    assert sorted(words) == sorted(set(words)) and len(words) > 5


def test_a_corrected_lemma_is_the_lemma_of_itself():
    assert all(lemma(right) == right for right in corrections().values())


def test_no_neutral_word_is_a_stop_word():
    assert not listed("neutral.txt") & listed("stop.txt")


def test_keywords_of_hostile_tags_take_no_time():
    begin = time.monotonic()
    for piece in ("a.", "1,", "a'", "zoom ", "sony ", "r ", "_-", "24 "):
        clean_tags([piece * 50_000])
        extract(piece * 50_000)
    assert time.monotonic() - begin < 5


def test_every_caption_of_audiocaps_has_keywords(shared):
    with (shared / "data" / "audiocaps" / "val.csv").open(encoding="utf-8") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    assert all(extract(caption) for caption in captions)
    assert extract(sound_of(extract(captions[0]))) == extract(captions[0])
