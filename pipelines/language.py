"""The language of captions, by a model that ships inside a wheel (py3langid), so that nothing is fetched.

Captions are short and mostly English, and a model that knows 139 languages finds Frisian in "An engine revs". So it
chooses among the languages that people publish sounds in, and has to be sure before it says that one is not English.
The model takes half a second to load, once per process. It is naive Bayes over the byte sequences that an automaton
finds. py3langid takes the automaton's steps one text after another, in Python; here many texts take each step
together, in a sixth of the time.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.text import words

if TYPE_CHECKING:
    import numpy as np

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
TOGETHER = 4096  # texts that the model looks at at once


def detect(texts: list[str]) -> list[str]:
    """ISO 639-1 code of each text, "" where there is too little to tell or it is in none of LANGUAGES."""
    heads = [text[:ENOUGH] for text in texts]
    tellable = list({text: None for text in heads if not too_little(text)})
    codes: dict[str, str] = {}
    for begin in range(0, len(tellable), TOGETHER):
        batch = tellable[begin : begin + TOGETHER]
        found = zip(batch, classify(batch), strict=True)
        codes |= {text: judge(text, language, probability) for text, (language, probability) in found}
    return [codes.get(text, "") for text in heads]


def too_little(text: str) -> bool:
    """Whether nobody could tell the language: one word in plain Latin letters is never enough."""
    return text.isascii() and words(text) < 2


def judge(text: str, language: str, probability: float) -> str:
    """What the model says of a text, "" where it is not sure enough."""
    if language == "en":
        return language if probability >= SURE else ""
    if language == NONE or probability < SURE_SCRIPT:
        return ""
    return language if probability >= SURE_FOREIGN or OTHER_SCRIPT.search(text) else ""


def classify(texts: list[str]) -> Iterator[tuple[str, float]]:
    """The most likely of LANGUAGES and NONE for each text, and its probability, as `model().classify` has them."""
    import numpy as np

    known, labels = model(), model().labels
    data = list(map(known._encode, texts))  # py3langid's own: UTF-8 in NFC, all capitals in lower case
    scores = posteriors(data) / np.sqrt([[len(each) or 1] for each in data])
    shares = np.exp(scores - scores.max(1, keepdims=True))
    one = np.array(known.nb_classes)[:, None] == np.array(labels)  # scripts of a language are one label
    shares = shares @ one / shares.sum(1, keepdims=True)
    return zip((labels[best] for best in shares.argmax(1)), shares.max(1).tolist(), strict=True)


def posteriors(data: list[bytes]) -> "np.ndarray":
    """The naive Bayes model's logarithms, (texts, classes); 0 for a text in which it knows no feature."""
    import numpy as np
    from scipy.sparse import csr_matrix

    weights, prior = tables().weights, model().nb_pc
    features = walk(data)
    text, place = np.nonzero(features >= 0)
    seen = (np.ones(len(text), np.float32), (text, features[text, place]))
    counts = csr_matrix(seen, (len(data), len(weights)))  # what is seen again adds up
    return counts.log1p() @ weights + prior * (np.diff(counts.indptr) > 0)[:, None]


def walk(data: list[bytes]) -> "np.ndarray":
    """The feature that the automaton finds at each byte, -1 for none: (texts, bytes of the longest)."""
    import numpy as np

    lengths = np.array([len(each) for each in data])
    letters = np.array(data)[:, None].view(np.uint8)  # zeros after the end of a shorter one
    state, found = np.zeros(len(data), np.int64), np.empty(letters.shape, np.int32)
    for place in range(letters.shape[1]):
        state = tables().next[tables().row[state] + letters[:, place]]
        found[:, place] = np.where(place < lengths, tables().feature[state], -1)
    return found


class Tables(NamedTuple):
    """The model as arrays: where a state's 256 successors begin in `next`, and its feature, -1 for none."""

    row: "np.ndarray"
    next: "np.ndarray"
    feature: "np.ndarray"
    weights: "np.ndarray"  # of each feature, (features, classes)


@cache
def tables() -> Tables:
    """Those of the model, made once per process."""
    import numpy as np

    known = model()
    row = np.array(known.tk_row, np.int64) << 8
    weights = np.ascontiguousarray(known.nb_ptc, np.float32)
    return Tables(row, np.asarray(known.tk_nextmove), np.array(known.tk_output, np.int32), weights)


@cache
def model() -> Any:
    """The identifier, loaded once per process; the probabilities are over LANGUAGES alone."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([*LANGUAGES, NONE])
    return identifier
