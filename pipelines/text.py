"""Text from outside, made safe and plain: captions, names, messages."""

import re
import unicodedata
from typing import Any

BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # reorder what a reader sees

ADDRESS = re.compile(r"(\s*[a-z][a-z0-9+.-]*://)(?:[^/?#]*@)?", re.IGNORECASE)  # its scheme and who asks
SIGNING = re.compile(
    r"(?:^|[&;])(?:x-amz-[^=&]*|x-goog-[^=&]*|signature|expires|key-pair-id|policy|sig|se|sp|sv"
    r"|token|access_token|api_key|key)=",
    re.IGNORECASE,
)


def printable(text: str) -> str:
    """Text as it was published, without control characters and unpaired surrogates.

    A surrogate stands for a byte that was not UTF-8; it becomes U+FFFD, so that Parquet and terminals can take it.
    """
    if text.isprintable():  # nearly every text; it has none of these
        return text.strip()
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return "".join(" " if unicodedata.category(char) == "Cc" or char in BIDI else char for char in text).strip()


def clean(text: str) -> str:
    """Printable text as one line of normalised Unicode (NFC); runs of white space become one space."""
    return " ".join(unicodedata.normalize("NFC", printable(text)).split())


def words(text: str) -> int:
    """How many words a caption has, split at white space, punctuation alone not counted."""
    parts = text.split()
    plain = sum(map(str.isalnum, parts))
    return plain if plain == len(parts) else sum(any(map(str.isalnum, part)) for part in parts)


def public(url: str) -> str:
    """An address without what only its owner should know; any other text as it is.

    That is the user and password before the host, and the whole query if a parameter in it signs the request.
    """
    if "@" not in url and "?" not in url:  # nearly every text
        return url
    if (address := ADDRESS.match(url)) is None:
        return url
    place, fragment_mark, fragment = url[address.end() :].partition("#")
    path, _, query = place.partition("?")
    return address[1] + (path if SIGNING.search(query) else place) + fragment_mark + fragment


def published(value: Any) -> Any:
    """A text, or a list or dict of such, with the addresses in it as `public` has them; any other value as it is."""
    if isinstance(value, str):
        return public(value)
    if isinstance(value, list):
        return list(map(published, value))
    return {name: published(item) for name, item in value.items()} if isinstance(value, dict) else value


def from_name(stem: str) -> str:
    """A caption from a file name (LAION's rule for its file-name corpora): "_" and "-" become spaces."""
    return clean(re.sub(r"[_-]+", " ", stem))
