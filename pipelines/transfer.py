"""One file on its way over http: what has arrived, what can be asked for next, and what an answer means for it.

A transfer that broke off goes on where it stopped if the server can vouch that the rest belongs to it. A body that is
encoded is inflated in bounded pieces, and a page in place of a sound is told by its first bytes.
"""

import asyncio
import hashlib
import re
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from html import unescape
from typing import TYPE_CHECKING, Any, BinaryIO

from pipelines.clip import Rejected
from pipelines.hosts import Host

if TYPE_CHECKING:
    import aiohttp

HEAD = 1024  # bytes looked at to tell a page from a file
PAGE = re.compile(rb"[\xef\xbb\xbf\s]*<(?:!doctype|!--|\?xml|[a-z]{1,20}[\s>])", re.IGNORECASE)
TITLE_BYTES = 64 * 2**10  # of a page, read for its title
CONDITIONS = ("If-None-Match", "If-Modified-Since")  # headers that ask for a file only if it has changed
PIECE = 2**18  # bytes that are inflated at a time


@dataclass
class Transfer:
    """One file on its way: what has arrived over all its attempts, and what can be asked for next."""

    into: BinaryIO
    limit: int  # bytes
    known: str = ""  # validator of what the caller has already
    cut: bool = False  # whether a file too large is of use up to its limit, which is then written
    attempts: int = 0
    host: Host | None = None  # the last one asked
    digest: Any = field(default_factory=hashlib.sha256)
    size: int = 0
    head: bytes = b""
    mark: str = ""  # strong ETag or date, by which the rest can be asked for; "" if it cannot
    total: int | None = None  # bytes of the whole, where the server said so
    validator: str = ""
    unchanged: bool = False

    def restart(self) -> None:
        """Forget what has arrived."""
        if self.size:
            self.into.seek(0)
            self.into.truncate()
            self.digest, self.size = hashlib.sha256(), 0
        self.head, self.mark, self.total = b"", "", None

    def add(self, piece: bytes) -> None:
        """Write and hash what arrived; raises Rejected beyond the limit."""
        room = self.limit - self.size
        self.size += len(piece)
        if self.size > self.limit:
            self.into.write(piece[: max(room, 0)] if self.cut else b"")
            raise Rejected("too-large", f"over {self.limit} bytes")
        if self.into.closed:  # by whoever asked for the file and then cancelled it
            raise asyncio.CancelledError
        self.digest.update(piece)
        self.into.write(piece)

    def ask(self) -> dict[str, str]:
        """The headers that ask for what is missing, or only for what has changed."""
        if self.size and self.mark:
            return {"Range": f"bytes={self.size}-", "If-Range": self.mark}
        if self.known:
            by_tag = self.known.startswith(('"', "W/"))
            return {CONDITIONS[0 if by_tag else 1]: self.known}
        return {}


def refused(status: int, phrase: str) -> Rejected:
    """What a status without a file means."""
    if 400 <= status < 600:
        return Rejected(f"http-{status}", phrase[:100])
    if 300 <= status < 400:
        return Rejected("bad-redirect", f"status {status} and no place to go")
    if status in (204, 205):
        return Rejected("empty", f"status {status}")
    return Rejected("not-audio", f"status {status} in place of the file")


def begin(response: "aiohttp.ClientResponse", transfer: Transfer) -> None:
    """Ready the transfer for the body of an answer: a whole file or the rest of one; raises Rejected."""
    headers = response.headers
    tag, date = printable(headers.get("ETag", "")), printable(headers.get("Last-Modified", ""))
    mark = "" if coding(response) or headers.get("Accept-Ranges") == "none" else tag if tag[:1] == '"' else date
    if response.status == 206:
        span = "" if coding(response) else headers.get("Content-Range", "")
        total = rest_of(span, transfer, mark)
    else:
        transfer.restart()
        total = response.content_length
    if total is not None and total > transfer.limit and not transfer.cut:
        raise Rejected("too-large", f"{total} bytes")
    transfer.total = None if coding(response) else total
    transfer.mark = mark or transfer.mark
    transfer.validator = tag or date or transfer.validator


def rest_of(span: str, transfer: Transfer, mark: str) -> int | None:
    """Length of the whole by Content-Range; raises Rejected, to begin anew, if it is not the rest of our file."""
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", span)
    total = int(match[3]) if match and match[3] != "*" else transfer.total
    asked = transfer.size and transfer.mark and mark in ("", transfer.mark)
    fits = match and int(match[1]) == transfer.size and total is not None and int(match[2]) < total
    if not asked or not fits or transfer.total not in (None, total):
        transfer.restart()
        raise Rejected("incomplete-body", "the server sent another part than the one asked for")
    return total


def printable(text: str) -> str:
    """A header's value, if it is plain and short enough to be kept and sent back; else nothing."""
    return text if len(text) <= 256 and text.isascii() and text.isprintable() else ""


def coding(response: "aiohttp.ClientResponse") -> str:
    """How the body is encoded, though we asked for no encoding; "" for not at all."""
    name = response.headers.get("Content-Encoding", "").strip().lower()
    return "" if name == "identity" else name


async def inflated(chunks: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    """The body behind gzip or deflate, in bounded pieces; raises Rejected for what does not inflate."""
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Rejected("not-audio", f"encoded as {encoding}")
    engine = None
    async for chunk in chunks:
        piece = b""
        chunk = chunk.lstrip(b"\0") if engine and engine.eof else chunk  # padding
        while chunk or len(piece) == PIECE:  # a full piece may have left some behind, in the engine
            if engine is None or (engine.eof and chunk):
                zlib_or_gzip = encoding != "deflate" or chunk[0] & 15 == 8
                engine = zlib.decompressobj(47 if zlib_or_gzip else -15)
            try:
                piece = engine.decompress(chunk, PIECE)
            except zlib.error as error:
                raise Rejected("not-audio", f"not {encoding}, as its header says") from error
            chunk = engine.unused_data.lstrip(b"\0") if engine.eof else engine.unconsumed_tail
            if piece:
                yield piece
            await asyncio.sleep(0)  # others have their turn, however much comes out
    if engine is None or not engine.eof:
        raise Rejected("incomplete-body", f"the {encoding} stream broke off")


async def describe(start: bytes, pieces: AsyncIterator[bytes]) -> str:
    """What kind of page begins with `start`, and its title."""
    text, seen = bytearray(start), 0
    while len(text) < TITLE_BYTES and b"</title" not in text[seen:].lower() and (piece := await anext(pieces, b"")):
        seen = max(0, len(text) - len(b"</title"))
        text += piece
    kind = "an XML document" if b"<?xml" in start[:16].lower() else "an HTML page"
    return ": ".join(filter(None, (kind, title(bytes(text[:TITLE_BYTES])))))


def title(page: bytes) -> str:
    """The title of a page, "" if it has none; found in steps, since a pattern may take the square of its length."""
    text = page.lower()
    begin = text.find(b">", max(0, text.find(b"<title"))) + 1
    end = text.find(b"</title", begin)
    if b"<title" not in text or not begin or end < 0:
        return ""
    return unescape(page[begin:end].strip()[:1_000].decode("utf-8", "replace")).strip()[:100]
