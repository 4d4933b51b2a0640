"""Sentences made free of the sex of persons."""

import csv
import re
import time

import pytest

from pipelines.debias import neutral
from pipelines.keywords import clean_tags


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("A woman speaks.", "A person speaks."),
        ("The men cheer at a girl", "The people cheer at a child"),
        ("A woman speaks while she laughs and claps.", "A person speaks while the person laughs and claps."),
        ("A boy runs as he yells", "A child runs as the child yells"),
        ("A girl cries as he calls her", "A child cries as the person calls them"),
        ("She's singing to her dog", "The person's singing to their dog"),
        ("She is heard. He has gone", "The person is heard. The person has gone"),
        ("Someone calls her. It is his", "Someone calls them. It is theirs"),
        ("Someone calls her softly", "Someone calls them softly"),
        ("Someone calls him and her", "Someone calls them and them"),
        ("A dog wags his tail", "A dog wags their tail"),
        ("Her own voice and hers", "Their own voice and theirs"),
        ("A man talks to himself", "A person talks to themselves"),
        ("His or her dog barks as he or she sings", "Their dog barks as the person sings"),
        ("A woman's voice and the men\u2019s choir", "A person's voice and the people's choir"),
        ("A man and a woman talk", "A person and another person talk"),
        ("An adult man and an adult woman talk", "An adult and another adult talk"),
        ("A man and woman talk", "A person and another person talk"),
        ("Men and women and boys and girls", "People and children"),
        ("A MAN SPEAKS AS SHE SINGS", "A PERSON SPEAKS AS THE PERSON SINGS"),
        ('"He sings," says a boy: "Man!"', '"The person sings," says a child: "Person!"'),
        ("a policeman shouts", "a police officer shouts"),
        ("The boys' voices and the ladies\u2019 choir", "The children's voices and the people's choir"),
        ("THE GIRLS' VOICES", "THE CHILDREN'S VOICES"),
        ("A man sings the Beach Boys' songs", "A person sings the Beach Boys' songs"),
        ("A sign says 'no girls' on the door", "A sign says 'no children' on the door"),
        ("'The female speaks' says \u2018hers\u2019 to", "'The person speaks' says \u2018theirs\u2019 to"),
        ("A policemen's radio, the mothers' songs", "A police officers' radio, the parents' songs"),
        ("The dads and policewomen laugh", "The parents and police officers laugh"),
    ],
)
def test_persons_lose_their_sex_and_sentences_stay_right(sentence, said):
    text, count = neutral(sentence)
    assert text == said and count > 0


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("A male speaks", "A person speaks"),
        ("A female is talking", "A person is talking"),
        ("A male loudly shouts", "A person loudly shouts"),
        ("A female adult speaks", "An adult speaks"),
        ("An adult female and adult males", "An adult and adults"),
        ("A female speaking and sneezing", "A person speaking and sneezing"),
        ("Male singing", "Person singing"),
        ("A male voice", "A voice"),
        ("Male voices", "Voices"),
        ("male speech, man speaking", "speech, person speaking"),
        ("Two males and a female", "Two people and a person"),
        ("Male and female voices sing", "Voices sing"),
        ("Both male and female voices, a male and female voices", "Voices, voices"),
        ("A male or female announcer talks", "An announcer talks"),
        ("A male and a female voice speak", "A voice and another voice speak"),
        ("A talk between a male and female adult", "A talk between an adult and another adult"),
        ("Male and female voice talking", "Voice and another voice talking"),
        ("A MALE AND FEMALE VOICE", "A VOICE AND ANOTHER VOICE"),
        ("A male and female choir", "A choir"),
        ("A male and a female child play", "A person and a child play"),
        ("A male and female are talking", "A person and another person are talking"),
    ],
)
def test_male_and_female_go_before_a_noun_for_persons_and_are_persons_alone(sentence, said):
    assert neutral(sentence)[0] == said


@pytest.mark.parametrize(
    "sentence",
    ["", "Rain.", "A German plays the mandolin in a manhole", "Herman and Sherman talk", "On the Isle of Man",
     "A man-made noise", "A boy band plays", "A male turkey gobbles", "He he he", "A heron, a shell and a hero",
     "Mr. Guy speaks", "Ladybugs and a cowboy", "Humans, a hymn and this", "Many women-only"],
)  # fmt: skip
def test_other_words_and_names_stay(sentence):
    assert neutral(sentence) == (sentence, 0)


def test_replacements_are_counted():
    assert neutral("A man and his boy talk as she sings")[1] == 4
    assert neutral("A male voice says hers")[1] == 2


def test_a_neutral_sentence_is_neutral_again_and_names_no_sex(shared):
    with (shared / "data" / "audiocaps" / "val.csv").open(encoding="utf-8") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    replaced = 0
    for caption in captions:
        text, count = neutral(caption)
        replaced += count
        assert neutral(text) == (text, 0)
        assert not re.search(r"\b(woman|women|man|men|boys?|girls?|she|he|her|his|him)\b", text), caption
    assert replaced > 1_000


def test_keywords_can_be_made_neutral_too():
    assert clean_tags(neutral(tag)[0] for tag in ("woman", "man", "man_speaking")) == ("person", "person speaking")


def test_hostile_text_takes_no_time():
    begin = time.monotonic()
    for piece in ("her ", "her slowly ", "he he ", "a male ", "a  ", "man and a ", "'", "A-", "\u201c "):
        neutral(piece * 2_000)
    assert time.monotonic() - begin < 5
