"""Text from outside, made safe and plain: captions, names, messages."""

import re
import unicodedata

BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # reorder what a reader sees


def clean(text: str) -> str:
    """One line of normalised Unicode (NFC) without control characters or unpaired surrogates.

    A surrogate stands for a byte that was not UTF-8; it becomes U+FFFD, so that Parquet and terminals can
    take it. Runs of white space become one space.
    """
    text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    text = "".join(" " if unicodedata.category(char) == "Cc" or char in BIDI else char for char in text)
    return " ".join(unicodedata.normalize("NFC", text).split())


def words(text: str) -> int:
    """How many words a caption has, split at white space, punctuation alone not counted."""
    return sum(any(char.isalnum() for char in word) for word in text.split())


def from_name(stem: str) -> str:
    """A caption from a file name (LAION's rule for its file-name corpora): "_" and "-" become spaces.

    A name without a word of at least two letters ("01", "3-158476-A") says nothing and gives "".
    """
    caption = clean(re.sub(r"[_-]+", " ", stem))
    return caption if re.search(r"[^\W\d_]{2}", caption) else ""
