"""A real web server that misbehaves: the path says how. Everything that is asked of it stands in `log`.

    with serve() as server:
        server.url + "/status/404"

`files` holds what it serves well (with Range and If-Range, ETag and If-None-Match); `body` is what the other paths
send. A number in the path is how often or how long, a query how else: /cut/2?etag="a" breaks off twice.
"""

import gzip
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from threading import Event, Lock, Thread
from urllib.parse import parse_qsl, urlsplit


class Server(ThreadingHTTPServer):
    """Its address, what it serves, and what was asked."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, address: str) -> None:
        super().__init__((address, 0), Handler)
        self.url = f"http://{address}:{self.server_port}"
        self.body = Random(0).randbytes(50_000)
        self.packed = b"not packed"
        self.files: dict[str, bytes] = {}
        self.log: list[tuple[str, Message]] = []
        self.times: list[float] = []
        self.lock, self.active, self.most = Lock(), 0, 0
        self.gone = Event()  # set when a client left in the middle
        self.closing = Event()
        self.broken = False  # while it is, every path answers 500

    def asked(self, path: str) -> int:
        """How often a path was asked for."""
        return Counter(each for each, _ in self.log)[path]

    def handle_error(self, *_: object) -> None:
        self.gone.set()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """Note the request, then do what the first part of the path names."""
        server, parts = self.server, urlsplit(self.path)
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        with server.lock:
            server.log.append((self.path, self.headers))
            server.times.append(time.monotonic())
            self.nth = server.asked(self.path)
            server.active += 1
            server.most = max(server.most, server.active)
        try:
            name, *self.rest = parts.path.strip("/").split("/")
            if server.broken:
                self.reply(500)
            elif parts.path in server.files:
                self.whole(server.files[parts.path])
            else:
                getattr(self, "do_" + name.replace("-", "_").replace(".", "_"), self.missing)()
        finally:
            with server.lock:
                server.active -= 1

    def reply(self, status: int, body: bytes = b"", **headers: object) -> None:
        """Send an answer; Content-Length is the body's unless `headers` say otherwise (None for none)."""
        self.send_response(status)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def whole(self, body: bytes, **headers: object) -> None:
        """A file as a good server sends it: all, the part that was asked for, or nothing new."""
        tag = str(headers.setdefault("ETag", f'"{len(body)}"'))
        asked = self.headers.get("Range", "").removeprefix("bytes=").rstrip("-")
        if self.headers.get("If-None-Match") == tag:
            self.reply(304, Content_Length=None, ETag=tag)
        elif asked and self.headers.get("If-Range") == tag:
            start = int(asked)
            span = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self.reply(206, body[start:], Content_Range=span, **headers)
        else:
            self.reply(200, body, **headers)

    def hang_up(self) -> None:
        self.close_connection = True

    def missing(self) -> None:
        self.reply(404, b"nothing here")

    def do_fine(self) -> None:
        self.whole(self.server.body)

    def do_status(self) -> None:
        """/status/500/2: that status, for good or twice."""
        status, times = int(self.rest[0]), int(self.rest[1]) if self.rest[1:] else 10**9
        self.reply(status, b"" if status in (204, 304) else b"no") if self.nth <= times else self.do_fine()

    def do_wait(self) -> None:
        """/wait/1: asks for rest once, for so many seconds (as a date with ?date=1; status by ?status=)."""
        seconds = int(self.rest[0])
        after = formatdate(time.time() + seconds, usegmt=True) if "date" in self.query else seconds
        status = int(self.query.get("status", 429))
        self.reply(status, b"slow down", Retry_After=after) if self.nth == 1 else self.do_fine()

    def do_drip(self) -> None:
        """A byte every now and then."""
        self.reply(200, Content_Length=1_000_000)
        while not self.server.closing.wait(0.05):
            self.wfile.write(b"x")

    def do_endless(self) -> None:
        self.reply(200, Content_Length=None, Connection="close")
        while True:
            self.wfile.write(self.server.body)

    def do_hang(self) -> None:
        """Nothing at all, until the client leaves."""
        self.server.closing.wait(20)
        self.hang_up()

    def do_stall(self) -> None:
        """Half of the body at first, then nothing; all that is missing when asked again."""
        if self.nth > 1:
            return self.do_fine()
        body = self.server.body
        self.reply(200, body[: len(body) // 2], Content_Length=len(body), ETag=f'"{len(body)}"')
        self.server.closing.wait(20)
        self.hang_up()

    def do_too_much(self) -> None:
        """/too-much/1000: declares so many bytes and sends more."""
        self.reply(200, self.server.body, Content_Length=self.rest[0])

    def do_cut(self) -> None:
        """/cut/2: breaks off after a third of what is asked, twice; ?etag= and ?ranges= are sent, ?chunked=1.

        ?then=other: afterwards it is another, shorter file; ?then=416: it says no; ?then=wrong: it sends another part;
        ?then=*: a part of an unknown whole; ?then=304: nothing is new.
        """
        body, tag, then = self.server.body, self.query.get("etag", '"a"'), self.query.get("then", "")
        headers = {"ETag": tag or None, "Accept_Ranges": self.query.get("ranges")}
        asked = self.headers.get("Range", "").removeprefix("bytes=").rstrip("-")
        if self.nth > int(self.rest[0]):
            if then == "other":
                return self.whole(body[:9_000], ETag='"b"')
            if then == "304":
                return self.reply(304, Content_Length=None)
            if then == "*" and asked:
                return self.reply(206, body[int(asked) :], Content_Range=f"bytes {asked}-{len(body) - 1}/*", ETag=tag)
            if then and asked:
                span = f"bytes 7-{len(body) - 1}/{len(body)}"
                return self.reply(416) if then == "416" else self.reply(206, body[7:], Content_Range=span, ETag=tag)
            return self.whole(body, **headers)
        start = int(asked) if asked and self.headers.get("If-Range") == tag else 0
        rest = body[start:]
        if "chunked" in self.query:
            piece = rest[: len(rest) // 3]
            self.reply(200, b"%x\r\n%s\r\n" % (len(piece), piece), Content_Length=None, Transfer_Encoding="chunked")
        else:
            span = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
            self.reply(206 if start else 200, rest[: len(rest) // 3], Content_Length=len(rest), **headers, **span)
        self.hang_up()

    def do_piecemeal(self) -> None:
        """Never more than 20,000 bytes in an answer; with ?unasked=1 as a part even if none was asked for."""
        body, asked = self.server.body, self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").rstrip("-") or 0)
        piece = body[start : start + 20_000]
        if asked or "unasked" in self.query:
            span = f"bytes {start}-{start + len(piece) - 1}/{len(body)}"
            return self.reply(206, piece, Content_Range=span, ETag='"a"')
        self.reply(200, piece, Content_Length=len(body), ETag='"a"')
        self.hang_up()

    def do_to(self) -> None:
        """/to?https://... leads there; without a query nowhere."""
        place = urlsplit(self.path).query
        self.reply(302, **({"Location": place} if place else {}))

    def do_circle(self) -> None:
        self.reply(302, Location="/circle/" + ("a" if self.rest == ["b"] else "b"))

    def do_deep(self) -> None:
        """/deep/3: leads to /deep/2 and so on to a file."""
        left = int(self.rest[0])
        self.reply(302, Location=f"/deep/{left - 1}") if left else self.do_fine()

    def do_late(self) -> None:
        """/late/3: as /deep/3, but each answer takes 0.2 s."""
        time.sleep(0.2)
        left = int(self.rest[0])
        self.reply(302, Location=f"/late/{left - 1}") if left else self.do_fine()

    def do_gzip(self) -> None:
        """/gzip: the body compressed; /gzip/100: so many megabytes of nothing; /gzip/cut: broken off."""
        packed = gzip.compress(self.server.body)
        if self.rest == ["cut"]:
            packed = packed[: len(packed) // 2]
        elif self.rest:
            packed = gzip.compress(bytes(int(self.rest[0]) * 10**6), 9)
        self.reply(200, packed, Content_Encoding=self.query.get("as", "gzip"))

    def do_packed(self) -> None:
        """The server's `packed`, under the name ?as=."""
        self.reply(200, self.server.packed, Content_Encoding=self.query["as"])

    def do_page(self) -> None:
        text = b"\xef\xbb\xbf \n<!DOCTYPE html><html><head><title>Sorry &amp; bye</title></head>" + b" " * 10**5
        self.reply(200, text, Content_Type="audio/wav")

    def do_hold(self) -> None:
        """Takes a moment, so that requests meet."""
        time.sleep(0.02)
        self.do_fine()

    def do_not_http(self) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        self.hang_up()

    def do_reset(self) -> None:
        self.hang_up()

    def log_message(self, *_: object) -> None: ...


@contextmanager
def serve(address: str = "127.0.0.1") -> Iterator[Server]:
    """Run a Server in a thread."""
    server = Server(address)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        with suppress(OSError):
            server.shutdown()
        server.server_close()
        thread.join()
