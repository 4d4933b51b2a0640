"""Which addresses may be connected to: public ones. Checked where the socket connects, whichever library asked.

The check and the connection see the same address, so a name that answers differently the second time, a redirect,
or an odd way to write an address (0x7f.1, 2130706433, ::ffff:127.0.0.1) gains nothing.
"""

import errno
import ipaddress
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

# Of cloud metadata and platform services, in ranges that look private or public: never.
METADATA = {ipaddress.ip_address(each) for each in ("169.254.169.254", "fd00:ec2::254", "fd20:ce::254",
            "100.100.100.200", "192.0.0.192", "168.63.129.16")}  # fmt: skip
OURS = [ipaddress.ip_network(each) for each in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16",
        "::1/128", "fc00::/7")]  # fmt: skip
SPECIAL = [ipaddress.ip_network(each) for each in ("192.0.0.0/24", "3fff::/20")]  # Python 3.11 takes some for public
UNICAST = ipaddress.ip_network("2000::/3")  # all that is public in IPv6
NAT64 = ipaddress.ip_network("64:ff9b::/96")
rules = threading.local()  # .private: whether this thread is guarded, and may reach private addresses


class Forbidden(OSError):
    """An address that must not be connected to; its errno is EACCES, which survives where a library re-raises it."""


def forbidden(address: str, private: bool) -> bool:
    """Whether an IP address must not be connected to; `private` admits loopback and private networks."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inside = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if ip in NAT64:
            inside = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inside is not None:
            return forbidden(str(inside), private)
    if ip in METADATA:
        return True
    if private and any(ip in network for network in OURS):
        return False
    if any(ip in network for network in SPECIAL) or (ip.version == 6 and ip not in UNICAST):
        return True
    return not ip.is_global or ip.is_multicast or ip.is_reserved or ip.is_unspecified


def refuse(address: str, private: bool) -> None:
    """Raise Forbidden for an address that must not be connected to, and for what is no address."""
    try:
        refused = forbidden(address, private)
    except ValueError:  # a name: the socket itself would resolve it, unseen
        refused = True
    if refused:
        raise Forbidden(errno.EACCES, f"the address {address} is private, local or of cloud metadata")


@contextmanager
def guarded(private: bool) -> Iterator[None]:
    """Within, any connection that this thread opens to a forbidden address raises Forbidden."""
    watch()
    before = getattr(rules, "private", None)
    rules.private = private
    try:
        yield
    finally:
        rules.private = before


@cache
def watch() -> None:
    """Look at every connect of this process, once and for good: an audit hook cannot be removed."""
    sys.addaudithook(check)


def check(event: str, arguments: tuple[Any, ...]) -> None:
    """The audit hook: raises Forbidden before a guarded thread connects or sends where it must not."""
    if event not in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        return
    socket_, address = arguments
    private = getattr(rules, "private", None)
    if private is None or address is None or socket_.family not in (socket.AF_INET, socket.AF_INET6):
        return
    refuse(address[0], private)
