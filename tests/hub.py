"""A local stand-in for the Hugging Face Hub: serves folders through the endpoints that downloads and pushes use.

    with serve({"datasets/user/name": folder}) as endpoint: ...     # to read
    with hub(folder) as it: ...                                     # to push to it.endpoint, and read that back

Files go through git-lfs as on the Hub, those over `part_bytes` in parts; the xet protocol is refused (404).
"""

import base64
import hashlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40
TOKEN = "hf_secret"


@dataclass
class Hub:
    """What the stand-in holds, how it behaves, and what was sent to it."""

    repositories: dict[str, Path]  # "datasets/user/name" or "user/name": folder
    root: Path | None = None  # where created repositories go; without it none can be created
    part_bytes: int = 2**30  # a larger file goes in parts of this size
    deny: int = 0  # the status that every write gets
    hold: Event | None = None  # after the first object, the others wait for this
    private: set[str] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)  # sha256: content
    parts: dict[str, bytes] = field(default_factory=dict)  # "sha256/number": content
    puts: list[str] = field(default_factory=list)  # paths below /lfs/ that took bytes, in order
    commits: list[list[str]] = field(default_factory=list)  # paths that each commit added
    endpoint: str = ""
    lock: Lock = field(default_factory=Lock)


@contextmanager
def serve(repositories: dict[str, Path]) -> Iterator[str]:
    """Serve {"datasets/user/name" or "user/name": folder}; yields the endpoint's address."""
    with running(Hub(repositories)) as it:
        yield it.endpoint


@contextmanager
def hub(root: Path, **behaviour: object) -> Iterator[Hub]:
    """A hub without repositories that takes pushes into `root`."""
    with running(Hub({}, root, **behaviour)) as it:  # type: ignore[arg-type]
        yield it


@contextmanager
def running(state: Hub) -> Iterator[Hub]:
    class Handler(Answers):
        hub = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()


class Answers(BaseHTTPRequestHandler):
    """One request."""

    hub: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.take()

    def do_POST(self) -> None:
        body = self.body()
        path = self.where()
        if path == "api/repos/create":
            return self.create(json.loads(body))
        if path == "api/validate-yaml":
            return self.say({"errors": [], "warnings": []})
        if path.startswith("lfs/"):
            return self.complete(path, json.loads(body))
        for name, folder in self.hub.repositories.items():
            if path.startswith(f"api/{name}/paths-info/"):
                return self.say([each for each in tree(folder) if each["path"] in wanted(body)])
            if path.startswith(f"api/{name}/preupload/"):
                return self.say({"files": [self.mode(folder, file) for file in json.loads(body)["files"]]})
            if path == f"{name}.git/info/lfs/objects/batch":
                objects = [self.transfer(each) for each in json.loads(body)["objects"]]
                return self.say({"transfer": "basic", "objects": objects})
            if path.startswith(f"api/{name}/commit/"):
                return self.commit(name, folder, [json.loads(line) for line in body.splitlines()])
        self.fail(404, "RepoNotFound")

    # ---- reading

    def answer(self) -> None:
        path = self.where()
        for name, folder in self.hub.repositories.items():
            api = f"api/{name}" if name.startswith("datasets/") else f"api/models/{name}"
            if path.startswith(f"{api}/tree/"):
                return self.say(tree(folder))
            if path.startswith(f"{api}/revision/") or path == api:
                return self.say(described(name, folder, name in self.hub.private))
            if path.startswith(f"{name}/resolve/"):
                file = folder / path.split("/", 2 + name.count("/") + 1)[-1]
                if file.is_file():
                    return self.reply(file.read_bytes(), "application/octet-stream")
                return self.fail(404, "EntryNotFound")
        self.fail(404, "RepoNotFound")

    def reply(self, body: bytes, kind: str, status: int = 200) -> None:
        etag, total = hashlib.sha256(body).hexdigest(), len(body)
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span and kind == "application/octet-stream":
            first, last = int(span[1]), min(int(span[2] or total - 1), total - 1)
            body, status = body[first : last + 1], 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def say(self, answer: object, status: int = 200) -> None:
        self.reply(json.dumps(answer).encode(), "application/json", status)

    def fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.end_headers()

    # ---- writing

    def create(self, asked: dict[str, str]) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.fail(401, "")
        if self.hub.deny or self.hub.root is None:
            return self.fail(self.hub.deny or 403, "")
        name = f"{asked['type']}s/{asked['organization']}/{asked['name']}"
        url = f"{self.hub.endpoint}/{name}"
        if name in self.hub.repositories:
            return self.say({"error": "You already created this repo", "url": url}, 409)
        self.hub.repositories[name] = self.hub.root / name
        self.hub.repositories[name].mkdir(parents=True, exist_ok=True)
        if asked.get("visibility") == "private":
            self.hub.private.add(name)
        self.say({"url": url, "id": name.partition("/")[2]})

    def mode(self, folder: Path, file: dict[str, str]) -> dict[str, object]:
        """Whether a file goes through git-lfs, and the id of what is there under its name."""
        large, there = file["path"].endswith(".parquet"), folder / file["path"]
        oid = None
        if there.is_file():
            data = there.read_bytes()
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            oid = hashlib.sha256(data).hexdigest() if large else git
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def transfer(self, each: dict[str, object]) -> dict[str, object]:
        """Where an object's bytes go; nowhere, if they are here."""
        oid, size = str(each["oid"]), int(str(each["size"]))
        if oid in self.hub.objects:
            return each
        url = f"{self.hub.endpoint}/lfs/{oid}"
        header = {}
        if size > self.hub.part_bytes:
            numbers = range(1, -(-size // self.hub.part_bytes) + 1)
            header = {f"{n:05d}": f"{url}/{n}" for n in numbers} | {"chunk_size": str(self.hub.part_bytes)}
        return each | {"actions": {"upload": {"href": url, "header": header}, "verify": {"href": f"{url}/verify"}}}

    def take(self) -> None:
        body, name = self.body(), self.where().removeprefix("lfs/")
        with self.hub.lock:
            first = not self.hub.puts
            self.hub.puts.append(name)
        if self.hub.hold and not first:
            self.hub.puts.remove(name)
            self.hub.hold.wait(60)
            return
        (self.hub.parts if "/" in name else self.hub.objects)[name] = body
        self.reply(b"", "text/plain")

    def complete(self, path: str, asked: dict[str, object]) -> None:
        oid = path.split("/")[1]
        if not path.endswith("/verify"):
            numbers = [part["partNumber"] for part in asked["parts"]]  # type: ignore[attr-defined]
            self.hub.objects[oid] = b"".join(self.hub.parts[f"{oid}/{number}"] for number in numbers)
        good = hashlib.sha256(self.hub.objects.get(oid, b"")).hexdigest() == oid
        self.say({}, 200 if good else 422)

    def commit(self, name: str, folder: Path, lines: list[dict[str, dict[str, str]]]) -> None:
        added = []
        for line in lines:
            kind, value = str(line["key"]), line["value"]
            if kind == "header":
                continue
            path = folder / value["path"]
            if kind == "deletedFile":
                path.unlink()
                continue
            added.append(value["path"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(value["content"]) if kind == "file" else self.hub.objects[value["oid"]])
        self.hub.commits.append(added)
        url = f"{self.hub.endpoint}/{name}/commit/{COMMIT}"
        self.say({"success": True, "commitOid": COMMIT, "commitUrl": url})

    # ---- the request

    def where(self) -> str:
        return unquote(urlsplit(self.path).path).strip("/")

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def log_message(self, *_: object) -> None: ...


def wanted(body: bytes) -> list[str]:
    """The paths that a request about some files names, as JSON or as a form."""
    asked = json.loads(body)
    return asked["paths"] if isinstance(asked["paths"], list) else [asked["paths"]]


def tree(folder: Path) -> list[dict[str, object]]:
    """Files and folders of a repository, as the Hub lists them."""
    found: list[dict[str, object]] = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found.append({"type": "directory", "path": name, "size": 0, "oid": COMMIT})
        else:
            found.append({"type": "file", "path": name, "size": path.stat().st_size, "oid": COMMIT})
    return found


def described(name: str, folder: Path, private: bool) -> dict[str, object]:
    """What the Hub's API says of a repository."""
    files = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file()]
    siblings = [{"rfilename": file} for file in files]
    return {"id": "/".join(name.split("/")[-2:]), "sha": COMMIT, "siblings": siblings, "private": private}


def wait_for(true: object, seconds: float = 30) -> None:
    """Wait until a function of no argument says yes; fails after that time."""
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
