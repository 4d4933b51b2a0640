"""Addresses of http(s): parsed without changing a letter, resolved to what may be connected to, followed onward."""

import errno
import re
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipelines.clip import Rejected
from pipelines.guard import refuse

if TYPE_CHECKING:
    from yarl import URL

PLAIN = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+")  # an address that needs no quoting


class Resolver:
    """aiohttp's own resolver, which refuses a name with any forbidden address."""

    def __init__(self, private: bool) -> None:
        from aiohttp import ThreadedResolver

        self.names, self.private = ThreadedResolver(), private

    async def resolve(self, name: str, port: int = 0, family: Any = socket.AF_INET) -> list[Any]:
        """The addresses of a name; raises Forbidden, or OSError if it has none."""
        if f".{name.lower().rstrip('.')}".endswith(".localhost"):
            name = "localhost"
        try:
            found = await self.names.resolve(name, port, family)
        except UnicodeError as error:
            raise OSError(errno.EINVAL, "no host can have such a name") from error
        for each in found:
            refuse(each["host"], self.private)
        return list(found)

    async def close(self) -> None:
        """Nothing to close."""


def parse(text: str) -> "URL":
    """An address, quoted only where it must be, since some servers sign the very letters; ValueError if it is none."""
    from yarl import URL

    return URL(text, encoded=PLAIN.fullmatch(text) is not None)


def first(text: str) -> "URL":
    """The address to begin with; raises Rejected if it is not one of http(s)."""
    try:
        return fit(parse(text.strip()))
    except ValueError as error:
        raise Rejected("unsupported-url", "not an address of http(s)", attempts=0) from error


def onward(url: "URL", place: str) -> "URL":
    """The address that a redirect leads to; raises Rejected. A password goes along only on the same host."""
    try:
        target = fit(url.join(parse(place)))
    except ValueError as error:
        raise Rejected("bad-redirect", "to what is not an address of http(s)") from error
    if target.user is None and url.user is not None and target.origin() == url.origin():
        target = target.with_user(url.user).with_password(url.password)
    return target


def fit(url: "URL") -> "URL":
    """The address without fragment, its IPv4 address in the usual form; ValueError if it is not one of http(s)."""
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("not http(s)")
    with suppress(OSError):
        url = url.with_host(socket.inet_ntoa(socket.inet_aton(url.host.rstrip("."))))
    return url.with_fragment(None)
