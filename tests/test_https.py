"""https: a certificate that is trusted is, and one that is not costs its row only."""

import http.server
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Thread

import pyarrow.parquet as pq
import pytest
from conftest import cli, write


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """The address of an https server that holds a.wav, and the certificate that it shows."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("site")
    write(folder / "files/a.wav")
    line = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [*line.split(), "-keyout", folder / "key.pem", "-out", folder / "cert.pem"], check=True, capture_output=True
    )
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder / "files"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}/a.wav", folder / "cert.pem"
    server.shutdown()


def build(address: str, folder: Path) -> list[dict]:
    """The rows of a build of one clip: the published ones, else the rejected ones."""
    (folder / "t.csv").write_text(f"url,caption\n{address},A dog barks\n")
    cli("build-dataset", "csv", "--input", folder / "t.csv", "--out", folder / "out", "--allow-private-addresses",
        "--attempts", 1)  # fmt: skip
    data = folder / "out/dataset/data"
    return pq.read_table(data if data.exists() else folder / "out/rejected.parquet").to_pylist()


def test_a_trusted_certificate_is_taken(site, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(site[1]))
    (row,) = build(site[0], tmp_path)
    assert row["audio"]["bytes"].startswith(b"fLaC")


def test_another_one_is_a_connection_that_was_never_made(site, tmp_path):
    (row,) = build(site[0], tmp_path)
    assert row["reason"] == "connection" and "certificate" in row["detail"].lower()
