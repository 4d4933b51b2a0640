"""The rules by which what people publish about a sound becomes English sentences."""

import time

import pytest

from pipelines.english import from_title, listing, meaningful, plain, sentence, sentences, sound_of
from pipelines.sources.freesound import described


@pytest.mark.parametrize(
    ("labels", "caption"),
    [
        ([], ""),
        (["dog_bark"], "The sound of dog bark."),
        (("Speech", "Dog"), "The sounds of Speech and Dog."),
        (["a", "b", "c"], "The sounds of a, b and c."),
        (["", " ", "dog"], "The sound of dog."),
        (["dog.", "cat."], "The sounds of dog and cat."),
        (["huge crowd", "p.a."], "The sounds of huge crowd and p.a."),
        (["p.a.", "loop"], "The sounds of p.a. and loop."),
        (["."], ""),
    ],
)
def test_labels_make_one_sentence_with_one_full_stop(labels, caption):
    assert sound_of(labels) == caption


def test_a_listing_has_commas_and_one_and():
    assert [listing(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("Rain", "Rain."), ("Rain.", "Rain."), ("Rain..", "Rain."), ("Rain...", "Rain."), ("Rain\u2026", "Rain."),
     ("Rain!!", "Rain!"), ("Rain,", "Rain."), ("  Rain \n falls ", "Rain falls."), ('He says "hi."', 'He says "hi."'),
     ("Rain (heavy)", "Rain (heavy)."), ("", ""), (".", ""), ("\u96e8\u3002", "\u96e8\u3002")],
)  # fmt: skip
def test_a_sentence_ends_in_exactly_one_mark(text, said):
    assert sentence(text) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A dog, e.g. a pug, barks. It is loud.", "A dog, e.g. a pug, barks."),
        ("Rain, i.e. Water falling. More.", "Rain, i.e. Water falling."),
        ("Played at 3.5 times the speed. Next.", "Played at 3.5 times the speed."),
        ("Version v1.2 of the siren. Next.", "Version v1.2 of the siren."),
        ("Mr. Smith coughs. Next.", "Mr. Smith coughs."),
        ("J. S. Bach on a piano. Next.", "J. S. Bach on a piano."),
        ("The U.S. Army marches. Next.", "The U.S. Army marches."),
        ("It is approx. 3 m away. Next.", "It is approx. 3 m away."),
        ("Take no. 5 of a door. Next.", "Take no. 5 of a door."),
        ("A voice says no. Then a door.", "A voice says no."),
        ("Rain... and wind. Next.", "Rain... and wind."),
        ("Rain... Then wind.", "Rain."),
        ("1. Dog barking. 2. Cat.", "1. Dog barking."),
        ("Wind in trees.Recorded in May.", "Wind in trees."),
        ("Dog barking\nMade in May", "Dog barking."),
        ("a dog\nbarks loudly\n\nThanks", "a dog barks loudly."),
        ("Birds, cars, etc. Recorded in May.", "Birds, cars, etc."),
        ("What? Rain!", "What?"),
        ("\u96e8\u306e\u97f3\u3002\u9ce5", "\u96e8\u306e\u97f3\u3002"),
        ("no mark at all", "no mark at all."),
    ],
)
def test_the_first_sentence_is_whole_and_alone(text, said):
    assert described(text) == said


@pytest.mark.parametrize("text", ["", ".", "...", " . ", "\n", "!?"])
def test_no_words_make_no_sentence(text):
    assert described(text) == ""


def test_sentences_lose_nothing():
    text = "One dog. Two e.g. pugs! 3. Three\nFour. \u96e8\u3002Five"
    assert "".join(sentences(text)).replace(" ", "") == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<p>Rain on <b>roof</b>s.</p>", "Rain on roofs."),
        ("Rain<br>Wind", "Rain. Wind"),
        ("Tom &amp; Jerry &lt;3", "Tom & Jerry <3"),
        ("a < b and 5 > 3", "a < b and 5 > 3"),
        ("Rain from www.foo.com", "Rain"),
        ("Dogs (http://x.com/a?b=c) bark.", "Dogs bark."),
        ("Rain. Visit https://x.org/a.html. Mail me@x.org!", "Rain."),
        ("Rain. <script>alert(1)</script>Wind.", "Rain. Wind."),
    ],
)
def test_plain_text_has_no_html_and_no_addresses(text, said):
    assert plain(text) == said


@pytest.mark.parametrize(
    "plea",
    ["Please credit me.", "Free to use under CC0!", "If you use it, please leave a comment.", "Thanks for listening.",
     "Licensed under Creative Commons.", "Recorded with a Zoom H4n.",
     "Recorded with a built-in mic.", "Recorded using my Zoom H4n and two AKG C414 mics, 96 kHz/24 bit.",
     "Zoom H4n, internal mics.", "Made with FL Studio 12 and Audacity.", "Microphone: R\u00f8de NT1.",
     "Attribution not required.",
     "It was edited with Audacity.", "Check out my other sounds.", "Enjoy!", "All rights reserved."],
)  # fmt: skip
def test_whole_sentences_of_boilerplate_go(plea):
    assert plain(plea) == ""
    assert plain(f"A dog barks. {plea} It is loud.") == "A dog barks. It is loud."


@pytest.mark.parametrize(
    "text",
    ["Rain on a tin roof recorded with a Zoom H4n.", "A credit card machine beeps.", "Birds in a public garden.",
     "A voice says thank you for listening.", "The man thanks people for listening.",
     "Recorded on a farm with a barking dog.", "A microphone falls on the floor.",
     "Steps in a free climbing hall.", "A copy machine at work.", "Recorded with two mics: crickets and frogs",
     "Created with a phone ringing", "Created with a ringing phone", "Tascam DR-40, frogs at night.",
     "Made with wood and a contact microphone, a creaking door"],
)  # fmt: skip
def test_sentences_about_the_sound_stay(text):
    assert plain(text) == text


@pytest.mark.parametrize(
    ("title", "caption"),
    [
        ("rose_bark.wav", "rose bark."),
        ("Rain.WAV", "Rain."),
        ("Siren v1.2", "Siren v1.2."),
        ("Siren v1.2.flac", "Siren v1.2."),
        ("Dog (small", "Dog small."),
        ("Dog bark (", "Dog bark."),
        ("Dog (small) bark", "Dog (small) bark."),
        ("Sample - B4 (Sample & Hold Me-71-127.wav)", "Sample - B4 (Sample & Hold Me-71-127)."),
        ("Tom &amp; Jerry", "Tom & Jerry."),
        ("Rain!", "Rain!"),
        (".wav", ""),
        ("___", ""),
        ("", ""),
    ],
)
def test_a_title_becomes_a_caption(title, caption):
    assert from_title(title) == caption


@pytest.mark.parametrize(
    "text",
    ["", "01", "untitled", "Untitled.", "New Recording 5", "audio 3", "track 12", "Track01", "zoom0004", "ZOOM_0004.",
     "A4",
     "DR0000_0123", "IMG_1234", "REC001", "STE-000", "1-100032-A", "no name", "Sound Effect 3", "Voice memo 12",
     "sample", "3f2504e0-4f89-11d3-9a0c-0305e82c3301", "20110503 00", "..."],
)  # fmt: skip
def test_names_of_files_are_not_meaningful(text):
    assert not meaningful(text)


@pytest.mark.parametrize(
    "text",
    ["rain", "\u96e8", "8 bit laser", "808 kick", "rose bark.", "zoom", "file 3 rain", "20081231 fire 01", "noise",
     "Music", "Recording of rain", "\u0434\u043e\u0436\u0434\u044c", "Dr. Smith", "The sound of rain.", "H1 rain",
     "voice 001", "wave sound"],
)  # fmt: skip
def test_one_word_about_the_sound_is_meaningful(text):
    assert meaningful(text)


@pytest.mark.parametrize(
    "piece", ["a. ", "<!--", "www.,", "x@", "a.a.", "(", "e.g. ", "please w w ", "made with ", "\n,"]
)
def test_hostile_text_takes_no_time(piece):
    text, begin = piece * 100_000, time.monotonic()
    for function in (plain, described, from_title, meaningful):
        function(text)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    "text",
    ["Recorded with https://www.example.com/averylongaddress/of/some/page/that/goes/on.html in the old forest behind "
     "our house on a very quiet evening", "at " * 6600 + "x http://a.com/b", "made with a b mic" + " h4" * 6000 + " x",
     "made with mic " + "a" * 19_000 + "4."],
    ids=["address", "at", "models", "model"],
)  # fmt: skip
def test_no_text_makes_a_pattern_hang(text):
    begin = time.monotonic()
    assert described(text)
    assert time.monotonic() - begin < 2
