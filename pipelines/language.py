"""The language of captions, by a model that ships inside a wheel (py3langid), so that nothing is fetched.

Captions are short and mostly English, and a model that knows 139 languages finds Frisian in "An engine revs". So it
chooses among the languages that people publish sounds in, and has to be sure before it says that one is not English.
About 30 us a caption; the model takes half a second to load, once per process.
"""

import re
from functools import cache
from typing import Any

from pipelines.text import words

LANGUAGES = (
    "ar bg bn ca cs da de el en es et fa fi fr he hi hr hu id it ja ko lt lv nl no pl pt ro ru sk sl sr sv th tr uk ur "
    "vi zh"
).split()
NONE = "zxx"  # the model's own class of numbers, codes and markup
SURE = 0.2  # least probability of English: of AudioCaps' captions 0.5 % fall below it
SURE_FOREIGN = 0.7  # and 1 in 10,000 reaches this
SURE_SCRIPT = 0.3  # in letters that English is not written with, where only the neighbours compete
OTHER_SCRIPT = re.compile(r"(?![\u0000-\u036f])[^\W\d_]")  # letters after the Latin ones
ENOUGH = 120  # characters


def detect(texts: list[str]) -> list[str]:
    """ISO 639-1 code of each text, "" where there is too little to tell or it is in none of LANGUAGES."""
    return [language_of(text[:ENOUGH]) for text in texts]


def language_of(text: str) -> str:
    """The code of one text. One word in plain Latin letters is never enough."""
    if text.isascii() and words(text) < 2:
        return ""
    language, probability = model().classify(text)
    if language == "en":
        return language if probability >= SURE else ""
    foreign = OTHER_SCRIPT.search(text)
    return "" if language == NONE or probability < (SURE_SCRIPT if foreign else SURE_FOREIGN) else language


@cache
def model() -> Any:
    """The identifier, loaded once per process; the probabilities are over LANGUAGES alone."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([*LANGUAGES, NONE])
    return identifier
