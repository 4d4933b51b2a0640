"""The guard: no guarded thread reaches a private or local address, whatever it is called and whoever connects."""

import socket
import threading
import urllib.request
from urllib.error import URLError

import pytest
from server import serve

from pipelines.guard import Forbidden, forbidden, guarded

PRIVATE = ["127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "::1", "fd12::1", "::ffff:127.0.0.1",
           "2002:7f00:1::", "64:ff9b::7f00:1"]  # fmt: skip
NEVER = ["169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "100.100.100.200", "0.0.0.0",
         "::", "100.64.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1",
         "192.0.2.1", "168.63.129.16", "64:ff9b::a9fe:a9fe", "ff02::1", "fec0::1", "192.0.0.1", "192.0.0.9",
         "::ffff:192.0.0.1", "3fff::1", "4000::1", "64:ff9b:1::808:808"]  # fmt: skip
PUBLIC = ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_only_where_they_are_admitted(address):
    assert forbidden(address, private=False)
    assert not forbidden(address, private=True)


@pytest.mark.parametrize("address", NEVER)
def test_link_local_metadata_and_special_addresses_never(address):
    assert forbidden(address, private=False)
    assert forbidden(address, private=True)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_always(address):
    assert not forbidden(address, private=False)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.0.0.1"])
def test_a_guarded_connection_by_any_library_is_refused(name):
    with serve() as server:
        with guarded(private=False):
            with pytest.raises(Forbidden):
                socket.create_connection((name, server.server_port), timeout=5)
            with pytest.raises(URLError) as caught:
                urllib.request.urlopen(f"http://{name}:{server.server_port}/fine", timeout=5)
        assert isinstance(caught.value.reason, Forbidden)
        assert server.log == []


def test_a_name_that_the_socket_would_resolve_unseen_is_refused():
    with guarded(private=True), socket.socket() as plain, pytest.raises(Forbidden):
        plain.connect(("localhost", 9))


@pytest.mark.parametrize("send", ["sendto", "sendmsg"])
def test_datagrams_are_refused_too(send):
    with guarded(private=False), socket.socket(type=socket.SOCK_DGRAM) as plain, pytest.raises(Forbidden):
        if send == "sendto":
            plain.sendto(b"x", ("127.0.0.1", 9))
        else:
            plain.sendmsg([b"x"], [], 0, ("127.0.0.1", 9))


def test_where_private_addresses_are_admitted_they_answer():
    with serve() as server, guarded(private=True):
        assert urllib.request.urlopen(server.url + "/fine", timeout=5).read() == server.body


def test_the_guard_ends_with_its_block_and_holds_in_its_thread_only():
    with serve() as server:
        address = ("127.0.0.1", server.server_port)
        with guarded(private=False):
            with guarded(private=True):
                socket.create_connection(address).close()
            with pytest.raises(Forbidden):
                socket.create_connection(address)
            reached = []
            other = threading.Thread(target=lambda: reached.append(socket.create_connection(address).close()))
            other.start()
            other.join()
        socket.create_connection(address).close()
    assert reached == [None]
