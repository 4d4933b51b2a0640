"""Text from outside, made safe and plain: captions, names, messages."""

import re
import unicodedata

BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # reorder what a reader sees


def printable(text: str) -> str:
    """Text as it was published, without control characters and unpaired surrogates.

    A surrogate stands for a byte that was not UTF-8; it becomes U+FFFD, so that Parquet and terminals can take it.
    """
    if text.isprintable():  # nearly every text; it has none of these
        return text.strip()
    text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return "".join(" " if unicodedata.category(char) == "Cc" or char in BIDI else char for char in text).strip()


def clean(text: str) -> str:
    """Printable text as one line of normalised Unicode (NFC); runs of white space become one space."""
    return " ".join(unicodedata.normalize("NFC", printable(text)).split())


def words(text: str) -> int:
    """How many words a caption has, split at white space, punctuation alone not counted."""
    return sum(word.isalnum() or any(map(str.isalnum, word)) for word in text.split())


def from_name(stem: str) -> str:
    """A caption from a file name (LAION's rule for its file-name corpora): "_" and "-" become spaces."""
    return clean(re.sub(r"[_-]+", " ", stem))


def says_something(text: str) -> bool:
    """Whether there is a word of at least two letters, unlike in "01" or "3 158476 A"."""
    return re.search(r"[^\W\d_]{2}", text) is not None
