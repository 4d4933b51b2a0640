"""The web, against a server that misbehaves: every file arrives whole or ends with its reason, the others unharmed."""

import asyncio
import gzip
import hashlib
import os
import resource
import socket
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import pairwise
from threading import Thread
from typing import Any
from urllib.parse import urlencode

import pytest
from server import Server, serve

from pipelines import guard, hosts
from pipelines.address import first
from pipelines.clip import Rejected
from pipelines.disk import BuildError
from pipelines.guard import forbidden
from pipelines.transfer import PIECE, TITLE_BYTES, Transfer, describe, inflated, rest_of
from pipelines.web import Fetched, Limits, Web, asked, web

QUICK = {"allow_private_addresses": True, "backoff": 0.01, "download_timeout": 5.0, "read_timeout": 5.0}


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as server:
        yield server


@contextmanager
def opened(**limits: Any) -> Iterator[Web]:
    """A Web with short times, closed at the end."""
    connections = Web(Limits(**QUICK | limits))
    try:
        yield connections
    finally:
        connections.close()


def get(url: str, validator: str = "", **limits: Any) -> tuple[Fetched, bytes]:
    into = BytesIO()
    with opened(**limits) as connections:
        return connections.start(connections.fetch(url, into, validator)).result(), into.getvalue()


def lost(url: str, **limits: Any) -> Rejected:
    """Why a URL could not be had."""
    with pytest.raises(Rejected) as caught:
        get(url, **limits)
    return caught.value


def reason(connections: Web, url: str) -> str:
    """Why a URL could not be had through these connections, "" if it could."""
    try:
        connections.start(connections.fetch(url, BytesIO())).result()
        return ""
    except Rejected as why:
        return why.reason


def until(true: Callable[[], bool]) -> None:
    """Wait for what must come true soon."""
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def test_a_file_arrives_whole_with_its_hash_size_and_validator(server):
    got, body = get(server.url + "/fine")
    assert body == server.body
    assert got == Fetched(hashlib.sha256(body).hexdigest(), len(body), 1, f'"{len(body)}"')


def test_requests_say_who_asks_and_ask_for_plain_bytes(server):
    get(server.url + "/fine", contact="https://example.org/us\nX: y")
    ((_, headers),) = server.log
    name, _, rest = headers["User-Agent"].partition(" ")
    assert name.split("/")[0] == "clapboard" and rest == "(audio-text dataset builder; https://example.org/us X: y)"
    assert headers["Accept-Encoding"] == "identity" and "Cookie" not in headers


def test_a_proxy_of_the_environment_is_not_used(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert get(server.url + "/fine")[1] == server.body


# statuses and retries


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 416, 451])
def test_a_final_status_is_tried_once(server, status):
    why = lost(f"{server.url}/status/{status}")
    assert (why.reason, why.attempts) == (f"http-{status}", 1)
    assert len(server.log) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_passing_status_is_tried_again_as_often_as_allowed(server, status):
    why = lost(f"{server.url}/status/{status}", attempts=3)
    assert (why.reason, why.attempts) == (f"http-{status}", 3)
    assert len(server.log) == 3


@pytest.mark.parametrize(
    ("status", "expected"),
    [(204, "empty"), (202, "not-audio"), (300, "bad-redirect"), (304, "bad-redirect"), (999, "not-audio")],
)
def test_a_status_without_a_file_has_its_reason(server, status, expected):
    assert lost(f"{server.url}/status/{status}").reason == expected


def test_after_two_errors_the_file_arrives_at_the_third_attempt(server):
    got, body = get(server.url + "/status/500/2")
    assert (got.attempts, body) == (3, server.body)


def test_attempts_lie_ever_further_apart(server):
    lost(server.url + "/status/500", attempts=3, backoff=0.1)
    first, second, third = server.times
    assert second - first >= 0.1 and third - second >= 0.2


def test_an_empty_file_is_empty(server):
    server.files["/nothing"] = b""
    assert lost(server.url + "/nothing").reason == "empty"


# Retry-After


@pytest.mark.parametrize("path", ["/wait/1", "/wait/1?status=503", "/wait/2?date=1"])
def test_a_server_that_asks_to_wait_is_asked_no_sooner(server, path):
    got, body = get(server.url + path)
    assert (got.attempts, body) == (2, server.body)
    assert server.times[1] - server.times[0] > 0.95


def test_while_a_host_rests_none_of_its_files_is_asked_for_but_other_hosts_go_on(server):
    with serve() as other, opened() as connections:
        waiting = connections.start(connections.fetch(server.url + "/wait/1", BytesIO()))
        until(lambda: bool(server.log))
        time.sleep(0.1)
        second = connections.start(connections.fetch(server.url + "/fine", BytesIO()))
        assert reason(connections, other.url + "/fine") == ""
        assert not second.done() and len(server.log) == 1
        assert waiting.result().attempts == 2 and second.result().attempts == 1
    assert min(server.times[1:]) - server.times[0] > 0.95


def test_a_server_that_asks_to_wait_too_long_is_left_alone_at_once(server):
    with opened() as connections:
        with pytest.raises(Rejected) as caught:
            connections.start(connections.fetch(server.url + "/wait/3600", BytesIO())).result()
        assert (caught.value.reason, caught.value.attempts) == ("http-429", 1)
        assert caught.value.detail == "the server asked to wait 3600 s"
        assert reason(connections, server.url + "/fine") == "circuit-open"
    assert len(server.log) == 1


@pytest.mark.parametrize("text", ["", "soon", "-5", "9" * 5000, "Wed, 99 Foo 2026", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_retry_after_that_says_nothing_useful_is_no_wait(text):
    assert asked(text) <= 0


# limits


def test_a_drip_is_too_slow_and_an_endless_stream_too_large(server):
    assert lost(server.url + "/drip", attempts=1, download_timeout=1.0).reason == "slow"
    assert lost(server.url + "/endless", max_download_bytes=200_000).reason == "too-large"


def test_a_drip_that_is_not_too_slow_ends_at_the_deadline(server):
    why = lost(server.url + "/drip", attempts=2, download_timeout=0.3, min_speed=1)
    assert (why.reason, why.attempts) == ("timeout", 2)


def test_a_server_that_says_nothing_ends_as_timeout_by_either_clock(server):
    for clock, detail in (("download_timeout", "not finished within"), ("read_timeout", "no byte within")):
        why = lost(server.url + "/hang", attempts=1, **{clock: 0.2})
        assert (why.reason, why.detail) == ("timeout", f"{detail} the time allowed")


def test_a_file_declared_larger_than_the_limit_is_not_read(server):
    why = lost(server.url + "/fine", max_download_bytes=49_999)
    assert (why.reason, why.detail) == ("too-large", "50000 bytes")
    assert get(server.url + "/fine", max_download_bytes=50_000)[1] == server.body


def test_the_wait_for_a_turn_is_not_counted_against_the_deadline(server):
    with opened(per_host=1, download_timeout=0.3, attempts=1) as connections:
        begun = [connections.start(connections.fetch(f"{server.url}/hold/{i}", BytesIO())) for i in range(15)]
        assert [each.result().size for each in begun] == [50_000] * 15
    assert server.times[-1] - server.times[0] > 0.3


def test_the_deadline_is_for_all_redirects_together(server):
    assert lost(server.url + "/late/4", attempts=1, download_timeout=0.5).reason == "timeout"


# broken transfers


@pytest.mark.parametrize("query", ['etag="a"', 'etag="a"&ranges=bytes'])
def test_a_broken_transfer_goes_on_where_it_stopped(server, query):
    got, body = get(f"{server.url}/cut/2?{query}")
    assert (got.attempts, body, got.size) == (3, server.body, 50_000)
    assert got.sha256 == hashlib.sha256(server.body).hexdigest()
    asked_for = [headers.get("Range") for _, headers in server.log]
    assert asked_for == [None, "bytes=16666-", "bytes=27777-"]
    assert server.log[1][1]["If-Range"] == '"a"'


@pytest.mark.parametrize("query", ['etag=W/"a"', "etag=", 'etag="a"&ranges=none'])
def test_without_a_strong_validator_or_ranges_it_begins_anew(server, query):
    got, body = get(f"{server.url}/cut/2?{query}")
    assert (got.attempts, body) == (3, server.body)
    assert got.sha256 == hashlib.sha256(server.body).hexdigest()
    assert all("Range" not in headers for _, headers in server.log)


def test_if_the_file_changed_in_between_all_of_it_is_fetched_anew(server):
    got, body = get(f'{server.url}/cut/1?etag="a"&then=other')
    assert (got.attempts, body, got.validator) == (2, server.body[:9_000], '"b"')
    assert got.sha256 == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("then", ["416", "wrong"])
def test_if_the_rest_cannot_be_had_all_of_it_is_fetched_anew(server, then):
    got, body = get(f'{server.url}/cut/1?etag="a"&then={then}')
    assert (got.attempts, body) == (3, server.body)
    assert [headers.get("Range") for _, headers in server.log] == [None, "bytes=16666-", None]


def test_a_server_that_sends_parts_only_is_asked_until_all_is_here(server):
    got, body = get(server.url + "/piecemeal")
    assert (got.attempts, body) == (3, server.body)


def test_a_part_that_nobody_asked_for_is_no_file(server):
    why = lost(server.url + "/piecemeal?unasked=1", attempts=2)
    assert (why.reason, why.attempts) == ("incomplete-body", 2)
    assert all("Range" not in headers for _, headers in server.log)


def test_a_rest_that_may_not_be_all_of_it_is_fetched_anew(server):
    got, body = get(server.url + '/cut/1?etag="a"&chunked=1&then=*')
    assert (got.attempts, body) == (2, server.body)  # its size was not known either: nothing was kept
    got, body = get(server.url + '/cut/1?etag="a"&then=*')
    assert (got.attempts, body) == (2, server.body)
    transfer = Transfer(BytesIO(b"12345"), 100, size=5, mark='"a"')
    with pytest.raises(Rejected, match="incomplete-body"):
        rest_of("bytes 5-8/*", transfer, '"a"')
    assert (transfer.size, transfer.into.getvalue()) == (0, b"")


def test_a_rest_that_ends_beyond_its_whole_is_fetched_anew():
    for span, known in (("bytes 5-9/10", None), ("bytes 5-9/*", 10), ("bytes 5-7/10", 10)):
        assert rest_of(span, Transfer(BytesIO(), 100, size=5, mark='"a"', total=known), '"a"') == 10
    for span in ("bytes 5-10/10", "bytes 5-99/10", "bytes 5-9/11", "bytes 4-9/10"):
        with pytest.raises(Rejected, match="incomplete-body"):
            rest_of(span, Transfer(BytesIO(), 100, size=5, mark='"a"', total=10), '"a"')


def test_a_transfer_that_stalls_goes_on_where_it_stopped(server):
    got, body = get(server.url + "/stall", read_timeout=0.2)
    assert (got.attempts, body) == (2, server.body)
    assert server.log[1][1]["Range"] == "bytes=25000-"


@pytest.mark.parametrize("query", ['etag="a"', "etag=&chunked=1"])
def test_fewer_bytes_than_declared_are_an_incomplete_body(server, query):
    why = lost(f"{server.url}/cut/9?{query}", attempts=2)
    assert (why.reason, why.attempts) == ("incomplete-body", 2)


@pytest.mark.parametrize("declared", [1_000, 49_990])
def test_bytes_beyond_the_declared_length_end_in_no_file(server, declared):
    with opened(per_host=1, attempts=2) as connections:
        for _ in range(5):
            into = BytesIO()
            try:  # whether the surplus is seen in time is a matter of packets
                connections.start(connections.fetch(f"{server.url}/too-much/{declared}", into)).result()
                assert into.getvalue() == server.body[:declared]
            except Rejected as why:
                assert why.reason == "connection"
        into = BytesIO()
        connections.start(connections.fetch(server.url + "/fine", into)).result()
        assert into.getvalue() == server.body


def test_connections_that_fail_are_named_so(server):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/", server.url + "/reset", server.url + "/not-http",
                server.url.replace("http", "https") + "/fine", "http://nowhere.invalid/"):  # fmt: skip
        why = lost(url, attempts=2)
        assert (why.reason, why.attempts) == ("connection", 2), url
    assert server.asked("/reset") == 2


# redirects and addresses


def test_redirects_are_followed_up_to_ten(server):
    assert get(server.url + "/deep/10")[1] == server.body
    why = lost(server.url + "/deep/11")
    assert (why.reason, why.attempts) == ("bad-redirect", 1)


@pytest.mark.parametrize(
    "path",
    ["/circle", "/to", "/to?file:///etc/passwd", "/to?ftp://example.org/x", "/to?http://", "/to?http://h:99999/",
     "/to?javascript:alert(1)", "/to?http://[::1"],
)  # fmt: skip
def test_a_redirect_to_nowhere_is_bad(server, path):
    assert lost(server.url + path).reason == "bad-redirect"


@pytest.mark.parametrize("url", ["", "x", "ftp://example.org/x", "http://", "http:///x", "http://h:x/", "http://[::1"])
def test_what_is_no_address_of_http_is_unsupported(url):
    why = lost(url)
    assert (why.reason, why.attempts) == ("unsupported-url", 0)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1.", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "[::1]", "[::ffff:127.0.0.1]",
     "localhost", "LOCALHOST.", "x.localhost", "x.localhost.", "0", "169.254.169.254", "[fe80::1]", "10.0.0.1"],
)  # fmt: skip
def test_private_addresses_are_forbidden_however_they_are_written(server, host):
    why = lost(f"http://{host}:{server.server_port}/fine", allow_private_addresses=False)
    assert (why.reason, why.attempts) == ("forbidden-address", 1)
    assert server.log == []


def test_where_private_addresses_are_admitted_cloud_metadata_are_not(server):
    assert lost(server.url + "/to?http://169.254.169.254/latest/").reason == "forbidden-address"
    assert lost(server.url + "/to?http://[fe80::1]/").reason == "forbidden-address"
    assert get(f"http://x.localhost:{server.server_port}/fine")[1] == server.body


def answers(monkeypatch: pytest.MonkeyPatch, *lists: list[str]) -> None:
    """Let name.test resolve to these lists of addresses, one after the other, the last for good."""
    left, real = list(lists), socket.getaddrinfo

    def resolve(name: Any, port: Any, *arguments: Any, **named: Any) -> Any:
        if name != "name.test":
            return real(name, port, *arguments, **named)
        found = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.fixture
def public(monkeypatch) -> Iterator[Server]:
    """A server at 127.0.0.5, which is taken for a public address."""
    monkeypatch.setattr(guard, "forbidden", lambda each, private: each != "127.0.0.5" and forbidden(each, private))
    with serve("127.0.0.5") as server:
        yield server


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]", "169.254.169.254"])
def test_a_redirect_from_a_public_address_to_a_private_one_is_forbidden(server, public, host):
    url = f"{public.url}/to?http://{host}:{server.server_port}/fine"
    why = lost(url, allow_private_addresses=False)
    assert (why.reason, why.attempts) == ("forbidden-address", 1)
    assert get(public.url + "/fine", allow_private_addresses=False)[1] == public.body
    assert server.log == []


def test_a_name_with_one_forbidden_address_among_others_is_refused(server, monkeypatch):
    answers(monkeypatch, ["127.0.0.1", "169.254.169.254"])
    assert lost(f"http://name.test:{server.server_port}/fine").reason == "forbidden-address"
    assert server.log == []


def test_a_name_that_changes_its_answer_is_checked_again(public, monkeypatch):
    answers(monkeypatch, ["127.0.0.5"], ["127.0.0.1"])
    with opened(allow_private_addresses=False, attempts=1) as connections:
        url = f"http://name.test:{public.server_port}/reset"
        assert reason(connections, url) == "connection"
        connections.session.connector.clear_dns_cache()
        assert reason(connections, url) == "forbidden-address"
    assert len(public.log) == 1


@pytest.mark.parametrize("found", [["127.0.0.1"], ["127.0.0.1", "10.0.0.1"]])
def test_an_answer_that_changes_between_check_and_connection_is_caught_at_the_connection(server, monkeypatch, found):
    answers(monkeypatch, found)
    monkeypatch.setattr("pipelines.address.refuse", lambda *_: None)  # as if other addresses had been checked
    why = lost(f"http://name.test:{server.server_port}/fine", allow_private_addresses=False)
    assert (why.reason, why.attempts) == ("forbidden-address", 1)
    assert server.log == []


def test_a_password_goes_along_on_its_own_host_only_and_into_no_detail(server):
    url = server.url.replace("//", "//me:secret@")
    with serve() as other:
        get(f"{url}/to?/fine")
        get(f"{url}/to?{server.url}/fine")
        get(f"{url}/to?{other.url}/fine")
        assert all("Authorization" in headers for _, headers in server.log)
        assert [path for path, _ in server.log].count("/fine") == 2
        assert "Authorization" not in other.log[0][1]
    for path in ("/status/404", "/to?http://", "/not-http", "/reset", "/circle", "/page", "/cut/9"):
        why = lost(url + path, attempts=1)
        assert "secret" not in why.detail + str(why.__cause__ or ""), path


def test_an_address_goes_out_as_it_was_signed_and_is_quoted_only_where_it_must_be(server):
    for path in ("/a%2fb%7E?x=%41+%20&y=a%2Bb", "/caf\xe9 1"):
        lost(server.url + path)
    assert [path for path, _ in server.log] == ["/a%2fb%7E?x=%41+%20&y=a%2Bb", "/caf%C3%A9%201"]


# what the body is


def test_a_body_that_comes_compressed_unasked_is_inflated(server):
    for path in ("/gzip", "/gzip?as=x-gzip"):
        got, body = get(server.url + path)
        assert (body, got.size) == (server.body, len(server.body))
        assert got.sha256 == hashlib.sha256(server.body).hexdigest()


@pytest.mark.parametrize("window", [15, -15])
def test_both_kinds_of_deflate_are_inflated(server, window):
    engine = zlib.compressobj(wbits=window)
    server.packed = engine.compress(server.body) + engine.flush()
    assert get(server.url + "/packed?as=deflate")[1] == server.body


def test_a_gzip_bomb_is_too_large_and_one_broken_off_incomplete(server):
    into = BytesIO()
    with opened(max_download_bytes=2_000_000) as connections, pytest.raises(Rejected) as caught:
        connections.start(connections.fetch(server.url + "/gzip/50", into)).result()
    assert caught.value.reason == "too-large" and len(into.getvalue()) <= 2_000_000
    assert lost(server.url + "/gzip/cut", attempts=2).reason == "incomplete-body"


def inflate(body: bytes, encoding: str) -> list[bytes]:
    async def pieces() -> list[bytes]:
        async def chunks() -> AsyncIterator[bytes]:
            yield body

        return [piece async for piece in inflated(chunks(), encoding)]

    return asyncio.run(pieces())


def test_what_inflates_comes_in_bounded_pieces_and_whole():
    found = inflate(gzip.compress(bytes(10**6)) + gzip.compress(b"and more"), "gzip")
    assert b"".join(found) == bytes(10**6) + b"and more"
    assert max(map(len, found)) <= PIECE
    for size in range(PIECE, PIECE + 50):  # somewhere here the last bytes come of no further input
        engine = zlib.compressobj(9, wbits=-15)
        assert sum(map(len, inflate(engine.compress(bytes(size)) + engine.flush(), "deflate"))) == size


def test_padding_after_what_inflates_is_passed_over():
    for body in (b"", bytes(PIECE + 7)):
        assert b"".join(inflate(gzip.compress(body) + bytes(1_000), "gzip")) == body
    assert b"".join(inflate(gzip.compress(b"one") + bytes(9) + gzip.compress(b"two"), "gzip")) == b"onetwo"


def test_an_encoding_that_is_not_known_or_not_true_is_no_audio(server):
    assert lost(server.url + "/gzip?as=br").detail == "encoded as br"
    assert lost(server.url + "/packed?as=gzip").reason == "not-audio"


def test_a_page_in_place_of_a_file_is_no_audio_whatever_it_calls_itself(server):
    why = lost(server.url + "/page")
    assert (why.reason, why.detail, why.attempts) == ("not-audio", "an HTML page: Sorry & bye", 1)


def described(pages: list[bytes]) -> str:
    async def describing() -> str:
        async def pieces() -> AsyncIterator[bytes]:
            for page in pages[1:]:
                yield page

        return await describe(pages[0], pieces())

    return asyncio.run(describing())


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (b"<html><TITLE lang=en> No\n</Title>", "an HTML page: No"),
        (b"<html><title>never closed", "an HTML page"),
        (b"<html></title>", "an HTML page"),
        (b"<html><title", "an HTML page"),
        (b"<html><title>&#" + b"9" * 5_000 + b";</title>", "an HTML page: \ufffd"),
        (b"<?xml?><x>" + b" " * TITLE_BYTES + b"<title>late</title>", "an XML document"),
        (b"<html>" + b"<title" * 10_000, "an HTML page"),
    ],
)
def test_a_page_is_described_by_its_title_however_it_comes(page, expected):
    assert described([page]) == described([page[at : at + 9] for at in range(0, len(page), 9)]) == expected


@pytest.mark.parametrize("body", [b"<?xml version='1.0'?><Error/>", b"\n<html>", b"<!-- x --><html>", b"<Error>no"])
def test_other_pages_are_no_audio_either(server, body):
    server.files["/x"] = body
    assert lost(server.url + "/x").reason == "not-audio"


@pytest.mark.parametrize("body", [b"RIFF<html>", b"<<<<", b"<\0html>", b"\xff\xfb<"])
def test_bytes_that_only_resemble_a_page_pass(server, body):
    server.files["/x"] = body
    assert get(server.url + "/x")[1] == body


# has it changed?


def test_a_file_that_has_not_changed_is_not_sent_again(server):
    tag = get(server.url + "/fine")[0].validator
    got, body = get(server.url + "/fine", validator=tag)
    assert (got.size, got.validator, got.attempts, body) == (-1, tag, 1, b"")
    got, body = get(server.url + "/fine", validator='"another"')
    assert (got.size, body) == (50_000, server.body)


@pytest.mark.parametrize(("etag", "attempts"), [("", 2), ('"a"', 3)])
def test_a_file_that_proves_unchanged_after_part_of_it_came_leaves_nothing_behind(server, etag, attempts):
    got, body = get(f"{server.url}/cut/1?{urlencode({'etag': etag, 'then': 304})}", validator='"known"')
    assert (got.size, got.attempts, body) == (-1, attempts, b"")
    assert server.log[-1][1]["If-None-Match"] == '"known"'


def test_a_date_serves_where_there_is_no_tag(server):
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    get(server.url + "/fine", validator=date)
    assert server.log[0][1]["If-Modified-Since"] == date


@pytest.mark.parametrize("tag", ['"caf\xe9"', '"' + "x" * 300 + '"'])
def test_a_validator_that_cannot_be_kept_is_dropped(server, tag):
    got, body = get(f"{server.url}/cut/0?{urlencode({'etag': tag})}")
    assert (got.validator, body) == ("", server.body)


# hosts


def test_a_host_never_gets_more_requests_at_once_than_allowed(server):
    with opened(per_host=3) as connections:
        begun = [connections.start(connections.fetch(f"{server.url}/hold/{i}", BytesIO())) for i in range(30)]
        for each in begun:
            each.result()
    assert server.most == 3


def test_all_hosts_together_never_get_more_requests_at_once_than_allowed(server):
    with opened(in_flight=2) as connections:
        urls = [f"http://{name}:{server.server_port}/hold/{i}" for i in range(5) for name in ("127.0.0.1", "localhost")]
        for each in [connections.start(connections.fetch(url, BytesIO())) for url in urls]:
            each.result()
    assert server.most == 2


def test_a_host_gets_no_more_requests_a_second_than_allowed(server):
    with opened(host_rate=20) as connections:
        begun = [connections.start(connections.fetch(f"{server.url}/fine", BytesIO())) for _ in range(8)]
        for each in begun:
            each.result()
    assert server.times[-1] - server.times[0] > 0.3


def test_files_that_wait_for_their_host_take_no_slot_from_others(server):
    with serve() as other, opened(in_flight=1) as connections:
        assert reason(connections, server.url + "/fine") == ""
        connections.loop.call_soon_threadsafe(connections.host(first(server.url)).rest, 30)
        waiting = [connections.start(connections.fetch(server.url + "/fine", BytesIO())) for _ in range(5)]
        assert reason(connections, other.url + "/fine") == ""
        assert not any(each.done() for each in waiting)


def test_a_file_that_waited_for_a_slot_does_not_go_once_its_host_rests(server):
    with serve() as other, opened(in_flight=1) as connections:
        hanging = connections.start(connections.fetch(other.url + "/hang", BytesIO()))
        until(lambda: bool(other.log))
        second = connections.start(connections.fetch(server.url + "/fine", BytesIO()))
        time.sleep(0.1)  # now it waits for the slot
        connections.loop.call_soon_threadsafe(connections.host(first(server.url)).rest, 30)
        hanging.cancel()
        assert reason(connections, other.url + "/fine") == ""
        assert not second.done() and server.log == []


@pytest.fixture
def hasty(monkeypatch) -> None:
    """A circuit breaker with short times."""
    monkeypatch.setattr(hosts, "COOL_OFF", 0.1)
    monkeypatch.setattr(hosts, "PROBE_EVERY", 0.5)


def test_a_host_that_only_fails_is_left_alone_then_given_up_and_others_go_on(server, hasty):
    server.broken = True
    with serve() as other, opened(attempts=1, per_host=1) as connections:
        ends = [reason(connections, f"{server.url}/fine?{i}") for i in range(14)]
        assert ends == ["http-500"] * 13 + ["circuit-open"]
        gaps = [after - before for before, after in pairwise(server.times[9:])]
        assert [gap > wanted for gap, wanted in zip(gaps, (0.1, 0.2, 0.4), strict=True)] == [True] * 3
        assert reason(connections, other.url + "/fine") == ""


def test_a_host_that_was_given_up_is_probed_and_comes_back(server, hasty):
    server.broken = True
    with opened(attempts=1) as connections:
        ends = [reason(connections, f"{server.url}/fine?{i}") for i in range(14)]
        assert ends[-1] == "circuit-open"
        count, server.broken = len(server.log), False
        assert reason(connections, server.url + "/fine") == "circuit-open" and len(server.log) == count
        until(lambda: reason(connections, server.url + "/fine") == "")
        assert reason(connections, server.url + "/fine") == ""


def test_while_a_host_cools_off_files_wait_and_one_probe_goes_alone(server, hasty):
    server.broken = True
    with opened(attempts=1) as connections:
        for i in range(10):
            assert reason(connections, f"{server.url}/fine?{i}") == "http-500"
        server.broken, server.most = False, 0
        begun = [connections.start(connections.fetch(f"{server.url}/hold/{i}", BytesIO())) for i in range(9)]
        assert [each.result().size for each in begun] == [50_000] * 9
    assert server.times[10] - server.times[9] > 0.1
    assert server.times[11] - server.times[10] > 0.02  # the probe's answer takes so long


def test_one_file_that_always_fails_does_not_close_its_host_to_others(server, hasty):
    with opened(attempts=12, backoff=1e-5) as connections:
        assert reason(connections, server.url + "/status/500") == "http-500"
        assert connections.host(first(server.url)).openings == 0


def test_answers_about_one_file_only_never_close_a_host(server):
    with opened() as connections:
        assert {reason(connections, server.url + "/status/404") for _ in range(15)} == {"http-404"}
        assert reason(connections, server.url + "/fine") == ""


def test_a_host_can_be_given_up_from_any_thread_and_all_that_wait_hear_of_it(server):
    with opened(host_rate=0.1) as connections:
        assert reason(connections, server.url + "/fine") == ""
        waiting = [connections.start(connections.fetch(server.url + "/fine", BytesIO())) for _ in range(20)]
        connections.give_up(server.url + "/any", 60, "it said so")
        for each in waiting:
            with pytest.raises(Rejected) as caught:
                each.result()
            why = caught.value
            assert (why.reason, why.detail, why.attempts) == ("circuit-open", "it said so", 0)


def test_another_library_takes_its_turn_and_its_failures_count(server, hasty):
    async def ask(video: int) -> None:
        async with connections.turn(f"{server.url}/page?{video}"):
            raise Rejected("rate-limited", "too many videos")

    with opened(attempts=1) as connections:
        for video in range(10):
            with pytest.raises(Rejected, match="rate-limited"):
                connections.start(ask(video)).result()
        assert connections.host(first(server.url)).openings == 1


# robots.txt


ROBOTS = b"\xef\xbb\xbfUser-agent: clapboard\nDisallow: /private\nCrawl-delay: %d\n\nUser-agent: *\nDisallow: /\n"


def test_robots_txt_is_asked_once_and_obeyed_where_respected(server):
    server.files["/robots.txt"] = ROBOTS % 0
    with opened(respect_robots=True) as connections:
        assert reason(connections, server.url + "/private/1") == "robots"
        assert reason(connections, server.url + "/fine") == ""
        assert reason(connections, server.url + "/to?/private/2") == "robots"
    assert [path for path, _ in server.log] == ["/robots.txt", "/fine", "/to?/private/2"]


def test_its_crawl_delay_is_kept(server):
    server.files["/robots.txt"] = ROBOTS % 1
    with opened(respect_robots=True) as connections:
        for _ in range(2):
            assert reason(connections, server.url + "/fine") == ""
    assert server.times[2] - server.times[1] > 0.95


@pytest.mark.parametrize(
    "junk",
    ["Crawl-delay: \xb2", "Crawl-delay: " + "9" * 5_000, "Crawl-delay: " + "0" * 4_000, "Disallow: http://[",
     "Request-rate: \xb2/1"],
)  # fmt: skip
def test_a_line_of_robots_txt_that_is_junk_says_nothing_and_the_others_hold(server, junk):
    text = f"User-agent: clapboard\n{junk}\nDisallow: /private\n\nUser-agent: one\n{junk}\nUser-agent: *\nDisallow: /\n"
    server.files["/robots.txt"] = f"{text}\nUser-agent: clapboard\n{junk}\n".encode()
    with opened(respect_robots=True) as connections:
        assert reason(connections, server.url + "/private/1") == "robots"
        assert reason(connections, server.url.replace("//", "//u%5Bser@") + "/fine") == ""


def test_a_crawl_delay_beyond_all_numbers_is_the_longest(server):
    server.files["/robots.txt"] = ROBOTS % 10**4_000
    with opened(respect_robots=True) as connections:
        assert reason(connections, server.url + "/private/1") == "robots"
        assert connections.host(first(server.url)).interval == 60


@pytest.mark.parametrize("declared", [True, False])
def test_of_a_robots_txt_too_large_the_first_whole_lines_hold(server, declared, monkeypatch):
    text = b"User-agent: *\nDisallow: /private\nDisallow: /fine\n"
    monkeypatch.setattr("pipelines.web.ROBOTS_BYTES", text.index(b"fine"))  # "Disallow: /" would forbid all
    length = len(text) if declared else None
    monkeypatch.setattr(
        server.RequestHandlerClass,
        "do_robots_txt",
        lambda asked: asked.reply(200, text, Content_Length=length, Connection="close"),
        raising=False,
    )
    with opened(respect_robots=True) as connections:
        assert reason(connections, server.url + "/private/1") == "robots"
        assert reason(connections, server.url + "/fine") == ""


def test_only_the_rules_of_the_latest_hosts_are_remembered(server, monkeypatch):
    monkeypatch.setattr("pipelines.web.MOST_ROBOTS", 2)
    with serve() as second, serve() as third, opened(respect_robots=True) as connections:
        for host in (server, second, server, third, server, second):
            assert reason(connections, host.url + "/fine") == ""
        assert len(connections.robots) == 2
    assert [host.asked("/robots.txt") for host in (server, second, third)] == [1, 2, 1]


def test_without_a_robots_txt_all_is_allowed(server):
    assert get(server.url + "/fine", respect_robots=True)[1] == server.body


def test_a_robots_txt_that_cannot_be_had_now_forbids_for_now(server):
    server.broken = True
    why = lost(server.url + "/fine", respect_robots=True, attempts=2)
    assert (why.reason, why.attempts) == ("http-500", 0)
    assert [path for path, _ in server.log] == ["/robots.txt"] * 2


# the event loop and its callers


def test_a_cancelled_file_leaves_nothing_in_flight(server):
    with opened(in_flight=3, per_host=3) as connections:
        begun = [connections.start(connections.fetch(f"{server.url}/{name}", BytesIO()))
                 for name in ("hang", "drip", "endless", "hang", "status/500")]  # fmt: skip
        until(lambda: len(server.log) >= 3)
        for each in begun:
            each.cancel()
        until(lambda: not asyncio.all_tasks(connections.loop))
        until(lambda: server.gone.is_set())
        begun = [connections.start(connections.fetch(server.url + "/hold", BytesIO())) for _ in range(6)]
        assert [each.result().size for each in begun] == [50_000] * 6


def test_a_cancelled_probe_leaves_the_way_free_for_the_next(server, hasty):
    server.broken = True
    with opened(attempts=1) as connections:
        for i in range(10):
            reason(connections, f"{server.url}/fine?{i}")
        server.broken = False
        probe = connections.start(connections.fetch(server.url + "/hang", BytesIO()))
        until(lambda: server.asked("/hang") == 1)
        second = connections.start(connections.fetch(server.url + "/fine", BytesIO()))
        probe.cancel()
        assert second.result(5).size == 50_000


def test_closing_ends_all_that_is_under_way(server):
    with opened() as connections:
        hanging = connections.start(connections.fetch(server.url + "/hang", BytesIO()))
        until(lambda: bool(server.log))
    assert hanging.cancelled() and not connections.thread.is_alive()


def test_many_threads_share_the_one_web_of_the_same_limits(server):
    limits, found = Limits(**QUICK), []
    threads = [Thread(target=lambda: found.append(web(limits))) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(set(map(id, found))) == 1
    assert reason(web(limits), server.url + "/fine") == ""
    web(limits).close()


def test_trouble_of_this_machine_ends_the_run_and_is_no_reason(server):
    class Full(BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(28, "No space left on device")

    with opened() as connections, pytest.raises(OSError, match="No space left"):
        connections.start(connections.fetch(server.url + "/fine", Full())).result()


@pytest.mark.parametrize("name", ["attempts", "in_flight", "per_host"])
def test_a_limit_that_would_let_nothing_through_is_an_error(name):
    with pytest.raises(BuildError, match="at least 1"):
        Limits(**{name: 0})


def test_too_many_open_files_end_the_run_with_what_to_do(server):
    with opened() as connections, open_files_at_most(connections), pytest.raises(BuildError, match="ulimit -n"):
        connections.start(connections.fetch(server.url + "/fine", BytesIO())).result()


@contextmanager
def open_files_at_most(connections: Web) -> Iterator[None]:
    """Let this process open no further file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_good_and_bad_files_together_each_get_their_own_end(server):
    ends = {"/fine": "", "/status/404": "http-404", "/status/500/2": "", "/drip": "slow", "/hang": "timeout",
            "/page": "not-audio", "/circle": "bad-redirect", "/cut/2": "", "/gzip/9": "too-large",
            "/reset": "connection", "/hold": "", "/endless": "too-large",
            "/to?http://169.254.169.254/": "forbidden-address"}  # fmt: skip
    with opened(max_download_bytes=10**6, download_timeout=0.8, attempts=3) as connections:
        begun = {path: connections.start(connections.fetch(server.url + path, BytesIO())) for path in ends}
        for path, future in begun.items():
            try:
                found, size = "", future.result().size
                assert size == 50_000
            except Rejected as why:
                found = why.reason
            assert found == ends[path], path
