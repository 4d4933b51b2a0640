"""Inputs on the Hub and in object storage: read through fsspec against servers that speak their protocols."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from conftest import ROOT, cli, write
from hub import serve

from pipelines import remote
from pipelines.clip import Rejected
from pipelines.disk import BuildError
from pipelines.manifest import prepare
from pipelines.remote import is_remote, list_remote, open_remote, told
from pipelines.sources import Reading, source

# HF_ENDPOINT is read when huggingface_hub is imported, hence a process of its own.
SCRIPT = """
import json, sys
from pipelines.clip import Rejected
from pipelines.manifest import prepare
from pipelines.remote import open_remote
from pipelines.sources import Reading, source

found = {}
for clip in prepare(source("folder").clips(sys.argv[1], Reading())):
    try:
        with open_remote(clip.location) as handle:
            found[clip.id] = [clip.size, clip.captions, clip.location, len(handle.read())]
    except Rejected as why:
        found[clip.id] = [clip.size, clip.captions, clip.location, why.reason]
print(json.dumps(found))
"""


def sounds(folder: Path) -> Path:
    """A repository: a described sound with an odd name, another, and a row whose file is absent."""
    write(folder / "sub/a b#1 100%.wav")
    write(folder / "A cat.wav")
    (folder / "README.md").write_text("no sound")
    (folder / "sub/metadata.csv").write_text("file_name,text\na b#1 100%.wav,A dog\nabsent.wav,A cow\n")
    return folder


def listed(root: str, **environment: str) -> dict[str, list]:
    """What a process of its own finds and reads below a URL."""
    line = [sys.executable, "-c", SCRIPT, root]
    done = subprocess.run(line, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def expected(folder: Path, root: str) -> dict[str, list]:
    size = (folder / "A cat.wav").stat().st_size
    return {
        "folder/A cat.wav": [size, ["A cat"], f"{root}/A cat.wav", size],
        "folder/sub/a b#1 100%25.wav": [size, ["A dog"], f"{root}/sub/a b#1 100%.wav", size],
        "folder/sub/absent.wav": [None, ["A cow"], f"{root}/sub/absent.wav", "missing-file"],
    }


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    """fsspec's storage in memory, admitted for this test."""
    monkeypatch.setitem(remote.PROTOCOLS, "memory", ("fsspec", ""))
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()


def reason(url: str) -> str:
    with pytest.raises(Rejected) as why, open_remote(url) as handle:
        handle.read()
    return why.value.reason


@pytest.mark.parametrize("root", ["hf://datasets/user/sounds", "hf://datasets/user/sounds@main"])
def test_a_repository_of_the_hub_is_a_folder(tmp_path, root):
    folder = sounds(tmp_path / "in")
    with serve({"datasets/user/sounds": folder}) as endpoint:
        assert listed(root, HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "home")) == expected(folder, root)


def test_a_repository_that_is_not_there_is_an_error(tmp_path):
    with serve({}) as endpoint:
        home = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)}
        line = [sys.executable, "-c", SCRIPT, "hf://datasets/user/none"]
        done = subprocess.run(line, env=os.environ | home, cwd=ROOT, capture_output=True, text=True)
    assert "BuildError: cannot list hf://datasets/user/none: missing-file" in done.stderr


def test_a_bucket_is_a_folder(tmp_path, monkeypatch):
    moto, s3fs = pytest.importorskip("moto.server"), pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_ENDPOINT_URL": endpoint}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    folder = sounds(tmp_path / "in")
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    files.mkdir("bucket")
    files.put(f"{folder}/", "bucket/prefix/", recursive=True)
    try:
        assert listed("s3://bucket/prefix/", **keys) == expected(folder, "s3://bucket/prefix")
        assert (reason("s3://bucket/none.wav"), reason("s3://none/a.wav")) == ("missing-file", "missing-file")
        assert reason("s3://bucket") == "unsupported-url"
    finally:
        server.stop()


def test_every_file_below_a_url_is_listed_with_its_size(memory):
    for name in ("b/z.wav", "b/a//odd.wav", "b/a.txt", "other/x.wav"):
        memory.pipe(f"/{name}", b"12345")
    assert dict(list_remote("memory://b")) == {f"memory:///b/{name}": 5 for name in ("z.wav", "a//odd.wav", "a.txt")}


def test_a_key_that_is_no_plain_path_is_a_clip_too(memory):
    memory.pipe("/b/x//odd.wav", b"12345")
    memory.pipe("/b/x/odd.wav", b"123")
    clips = list(prepare(source("folder").clips("memory:///b", Reading())))
    assert sorted(clip.location for clip in clips) == ["memory:///b/x//odd.wav", "memory:///b/x/odd.wav"]
    assert len({clip.id for clip in clips}) == 2


@pytest.mark.parametrize("url", [
    "file:///etc/passwd", "local:///etc/passwd", "/etc/passwd", "http://e.org/a.wav", "ftp://e.org/a.wav",
    "zip://a.wav::s3://bucket/a.zip", "s3://bucket/a::file:///etc/passwd", "memory://a", "s3://", "S3:/b/x", "hf://x",
    "",
])  # fmt: skip
def test_other_schemes_and_chains_are_refused(url):
    assert reason(url) == "unsupported-url"


def test_what_is_remote_shows_in_its_scheme():
    assert is_remote("s3://bucket/x") and is_remote("hf://datasets/u/r")
    assert not any(map(is_remote, ("s3", "s3:/bucket", "file:///x", "https://e.org/x", "a/s3://x", "memory://x")))


def test_a_scheme_whose_package_is_absent_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    with pytest.raises(BuildError, match=r"needs gcsfs: pip install 'clapboard\[gs\]'"):
        reason("gs://bucket/a.wav")


def test_the_libraries_errors_become_reasons():
    import aiohttp
    import httpx2

    with socket.socket() as closed, socket.socket() as silent:
        closed.bind(("127.0.0.1", 0))
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        nobody, mute = (f"http://127.0.0.1:{each.getsockname()[1]}" for each in (closed, silent))

        async def ask(url: str) -> None:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(0.1)) as session, session.get(url):
                pass

        asks = {
            "connection": (lambda: httpx2.get(nobody), lambda: asyncio.run(ask(nobody))),
            "timeout": (lambda: httpx2.get(mute, timeout=0.1), lambda: asyncio.run(ask(mute))),
        }
        for wanted, calls in asks.items():
            for call in calls:
                with pytest.raises(Rejected) as why, told():
                    call()
                assert why.value.reason == wanted


@pytest.mark.parametrize(("status", "wanted"), [(404, "missing-file"), (403, "missing-file"), (503, "http-503")])
def test_a_status_becomes_its_reason(status, wanted):
    import httpx2

    def fail() -> None:
        httpx2.Response(status, request=httpx2.Request("GET", "http://e.org")).raise_for_status()

    with pytest.raises(Rejected) as why, told():
        fail()
    assert why.value.reason == wanted


def test_errors_of_the_reader_and_of_the_machine_stay_their_own(memory):
    memory.pipe("/a.wav", b"x")
    with pytest.raises(FileNotFoundError), open_remote("memory://a.wav"):
        Path("/none/target").read_bytes()
    with pytest.raises(OSError, match="no space"), told():
        raise OSError(28, "no space left")


def test_a_dataset_is_copied_to_storage_with_its_card_last_and_without_shards_of_another_build(tmp_path, monkeypatch):
    monkeypatch.setitem(remote.PROTOCOLS, "memory", ("fsspec", ""))
    write(tmp_path / "in/dog.wav")
    cli("build-dataset", "folder", "--input", tmp_path / "in", "--out", tmp_path / "out")
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/dataset/data/train-00000-of-00009.parquet", b"of an earlier build")
    remote.upload(tmp_path / "out", "memory://bucket")
    there = [name.removeprefix("/bucket/") for name in files.store]
    shard = "dataset/data/train-00000-of-00001.parquet"
    beside = ["dataset/ATTRIBUTION.csv", "rejected.parquet", "report.json", "report.html"]
    assert there == [shard, *beside, "dataset/README.md"]
    assert files.cat_file(f"/bucket/{shard}") == (tmp_path / "out" / shard).read_bytes()
    done = cli("build-dataset", "folder", "--input", tmp_path / "in", "--out", "s3://bucket/x", check=False)
    assert done.returncode == 1 and "--work" in done.stderr
