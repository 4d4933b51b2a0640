"""A local stand-in for the Hugging Face Hub: serves folders through the endpoints that downloads use."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40


@contextmanager
def serve(repositories: dict[str, Path]) -> Iterator[str]:
    """Serve {"datasets/user/name" or "user/name": folder}; yields the endpoint's address."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            for name, folder in repositories.items():
                api = f"api/{name}" if name.startswith("datasets/") else f"api/models/{name}"
                if path.startswith((f"{api}/revision/", f"{api}/tree/")) or path == api:
                    return self.reply(json.dumps(listing(folder, path)).encode(), "application/json")
                if path.startswith(f"{name}/resolve/"):
                    file = folder / path.split("/", 2 + name.count("/") + 1)[-1]
                    if file.is_file():
                        return self.reply(file.read_bytes(), "application/octet-stream")
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

        def reply(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def listing(folder: Path, path: str) -> object:
    """What the Hub's API says of a repository: its files, as a tree or inside its description."""
    files = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file()]
    if "/tree/" in path:
        sizes = {name: (folder / name).stat().st_size for name in files}
        return [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes.items()]
    return {"id": "user/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files], "private": False}
