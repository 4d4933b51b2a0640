"""Publishing on a Hub of our own: what must not be is refused, what was stopped goes on, what is there reads back."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, cli, write
from hub import TOKEN, hub, wait_for

from pipelines.disk import BuildError
from pipelines.push import push
from pipelines.verify import read_front

PUSH = """
import json, sys
from pathlib import Path
from pipelines.disk import BuildError
from pipelines.push import push
try:
    print(json.dumps(push(Path(sys.argv[1]), sys.argv[2], private="private" in sys.argv)))
except BuildError as error:
    sys.exit(f"Error: {error}")
"""
STREAM = """
import json, os, sys
from datasets import Audio, load_dataset
found = {}
for split, rows in load_dataset("user/name", streaming=True).items():
    rows = rows.cast_column("audio", Audio(decode=False))
    found[split] = [(row["id"], row["captions"], len(row["audio"]["bytes"])) for row in rows]
print(json.dumps(found), flush=True)
os._exit(0)  # pyarrow's threads, which datasets leaves behind, may abort a process that ends
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("push")
    lines = ["file_name,caption_1,split,license,author"]
    for number in range(9):
        write(folder / f"in/{number}.wav", 0.3, 16_000, 200 + 50 * number)
        lines.append(f"{number}.wav,Tone {number},{('train', 'validation', 'test')[number % 3]},CC-BY-4.0,Ann")
    (folder / "in/metadata.csv").write_text("\n".join(lines) + "\n")
    cli("build-dataset", "folder", "--input", folder / "in", "--out", folder / "out", "--workers", 0)
    return folder / "out"


@pytest.fixture
def out(built, tmp_path):
    """A copy to spoil, by links to the shards."""
    copy = tmp_path / "out"
    subprocess.run(["cp", "-r", built, copy], check=True)
    return copy


def environment(endpoint: str, home: Path, token: str = TOKEN, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    wanted = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1"}
    return kept | wanted | ({"HF_TOKEN": token} if token else {}) | more


def pushed(out: Path, it, home: Path, *flags: str, **more: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", PUSH, str(out), "user/name", *flags]
    return subprocess.run(line, env=environment(it.endpoint, home, **more), capture_output=True, text=True)


def relicense(out: Path, **fields: str) -> None:
    """Write another licence into the card."""
    front, path = read_front(out / "dataset"), out / "dataset/README.md"
    front = {name: value for name, value in front.items() if not name.startswith("license")} | fields
    path.write_text(f"---\n{yaml.safe_dump(front)}---\n# Text\n")


def local(dataset: Path) -> dict[str, list]:
    """What a reader of the dataset has to see."""
    found = {}
    for path in sorted(dataset.glob("data/*.parquet")):
        rows = pq.read_table(path, columns=["id", "captions", "audio"]).to_pylist()
        found[path.name.split("-")[0]] = [[r["id"], r["captions"], len(r["audio"]["bytes"])] for r in rows]
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_pushed_dataset_streams_back_equal_and_a_second_push_sends_nothing(built, tmp_path):
    with hub(tmp_path / "hub", part_bytes=10_000) as it:
        done = pushed(built, it, tmp_path)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["url"] == f"{it.endpoint}/datasets/user/name" and TOKEN not in done.stdout + done.stderr
        assert files(tmp_path / "hub/datasets/user/name") == files(built / "dataset")
        assert all("/" in name for name in it.puts)  # in parts
        puts, commits = len(it.puts), len(it.commits)
        assert pushed(built, it, tmp_path).returncode == 0
        assert len(it.puts) == puts and len(it.commits) == commits
        line = [sys.executable, "-c", STREAM]
        read = subprocess.run(line, env=environment(it.endpoint, tmp_path), capture_output=True, text=True)
    assert read.returncode == 0, read.stderr
    assert json.loads(read.stdout) == local(built / "dataset")


def test_a_push_killed_half_way_sends_only_what_is_missing_when_run_again(built, tmp_path):
    released = Event()
    with hub(tmp_path / "hub", hold=released) as it:
        line = [sys.executable, "-c", PUSH, str(built), "user/name"]
        with subprocess.Popen(line, env=environment(it.endpoint, tmp_path), stderr=subprocess.DEVNULL) as process:
            wait_for(lambda: len(it.objects) == 1)
            process.send_signal(signal.SIGKILL)
        assert not it.commits
        it.hold = None
        released.set()
        done = pushed(built, it, tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(it.puts) == len(set(it.puts)) == 3
    assert files(tmp_path / "hub/datasets/user/name") == files(built / "dataset")


def test_the_card_is_committed_last_and_alone(built, tmp_path):
    with hub(tmp_path / "hub") as it:
        assert pushed(built, it, tmp_path).returncode == 0
    assert it.commits[-1] == ["README.md"] and all("README.md" not in added for added in it.commits[:-1])


def test_hidden_files_stay_here_and_shards_of_an_earlier_push_go(built, out, tmp_path):
    for name in (".cache/huggingface/state", "data/.train.parquet.1.tmp", ".DS_Store"):
        (out / "dataset" / name).parent.mkdir(parents=True, exist_ok=True)
        (out / "dataset" / name).write_text("state")
    there = tmp_path / "hub/datasets/user/name"
    with hub(tmp_path / "hub") as it:
        (there / "data").mkdir(parents=True)
        (there / "data/train-00000-of-00002.parquet").write_bytes(b"old")
        (there / "notes.md").write_text("of the owner")
        (there / "data/more").mkdir()
        (there / "data/more/train-00000-of-00002.parquet").write_bytes(b"of the owner")
        it.repositories["datasets/user/name"] = there
        assert pushed(out, it, tmp_path).returncode == 0
    assert set(files(there)) == {*files(built / "dataset"), "notes.md", "data/more/train-00000-of-00002.parquet"}


def test_a_private_push_never_goes_to_a_public_repository(built, tmp_path):
    with hub(tmp_path / "hub") as it:
        it.repositories["datasets/user/name"] = tmp_path
        done = pushed(built, it, tmp_path / "home", "private")
        assert done.returncode == 1 and "exists and is public" in done.stderr
        assert not it.puts and not it.commits
        del it.repositories["datasets/user/name"]
        assert pushed(built, it, tmp_path / "home", "private").returncode == 0
        assert it.private == {"datasets/user/name"}


@pytest.mark.parametrize(
    ("token", "status", "sentence"),
    [("", 0, "no token for the Hub"), ("hf_wrong", 0, "does not know the token"), (TOKEN, 403, "may not write to"),
     (TOKEN, 404, "knows no user/name")],
)  # fmt: skip
def test_what_the_hub_refuses_is_said_in_a_sentence_without_the_token(built, tmp_path, token, status, sentence):
    with hub(tmp_path / "hub", deny=status) as it:
        done = pushed(built, it, tmp_path, token=token)
    assert done.returncode == 1 and sentence in done.stderr
    assert "Traceback" not in done.stderr and "hf_" not in done.stderr.replace("hf_hub", "")


def test_a_hub_that_refuses_xet_or_is_not_there_is_said_in_a_sentence(built, tmp_path):
    with hub(tmp_path / "hub") as it:
        refused = pushed(built, it, tmp_path, HF_HUB_DISABLE_XET="0")
    gone = pushed(built, it, tmp_path)
    for done in (refused, gone):
        assert done.returncode == 1 and "the upload to user/name stopped" in done.stderr.splitlines()[-1], done.stderr
    assert not it.commits


def test_a_dry_run_lists_files_and_bytes_and_opens_no_network(built):
    plan = push(built, "user/name", dry_run=True)
    assert {file["path"]: file["bytes"] for file in plan["files"]} == {
        name: len(data) for name, data in files(built / "dataset").items()
    }
    assert plan["bytes"] == sum(file["bytes"] for file in plan["files"])


def test_an_incomplete_dataset_is_refused(out):
    (out / "dataset/README.md").unlink()
    with pytest.raises(BuildError, match="is missing, so the dataset is not complete"):
        push(out, "user/name", dry_run=True)


def test_a_dataset_that_verify_finds_wrong_is_refused(out):
    report = json.loads((out / "report.json").read_text())
    (out / "report.json").write_text(json.dumps(report | {"rows": 12}))
    with pytest.raises(BuildError, match="says 12 rows, which is not 9 kept"):
        push(out, "user/name", dry_run=True)


@pytest.mark.parametrize(
    ("clips", "card"),
    [("CC-BY-NC-4.0", {"license": "cc-by-4.0"}), ("", {"license": "cc0-1.0"}), ("CC-BY-4.0", {"license": "cc0-1.0"}),
     ("CC-BY-NC-4.0", {"license": "other", "license_name": "mixed-attribution"}),
     ("CC-BY-NC-4.0", {"license": "other", "license_name": "cc-by"}), ("CC-BY-4.0", {}),
     ("CC-BY-NC-4.0", {"license": "odc-by"}), ("CC-BY-4.0", {"license": "unlicense"}), ("", {"license": "unlicense"}),
     ("CC-BY-NC-4.0", {"license": "other", "license_name": "free-for-all"}),
     ("CC-BY-4.0", {"license": ["unknown", "cc0-1.0"]})],
)  # fmt: skip
def test_a_card_more_permissive_than_a_single_clip_is_refused(out, clips, card):
    path = next((out / "dataset/data").glob("train-*"))
    table = pq.read_table(path)
    place = table.schema.get_field_index("license")
    spoiled = ["CC0-1.0"] * (len(table) - 1) + [clips]
    pq.write_table(table.set_column(place, table.schema.field(place), [spoiled]), path)
    relicense(out, **card)
    with pytest.raises(BuildError, match=r"under|states no licence"):
        push(out, "user/name", dry_run=True)


@pytest.mark.parametrize(
    "card",
    [{"license": "cc-by-4.0"}, {"license": "cc-by-nc-sa-4.0"}, {"license": ["cc0-1.0", "cc-by-4.0"]},
     {"license": "other", "license_name": "mixed-attribution-noncommercial"}, {"license": "unknown"}],
)  # fmt: skip
def test_a_card_as_strict_as_the_clips_or_stricter_passes(out, card):
    relicense(out, **card)
    assert push(out, "user/name", dry_run=True)["dry_run"]


def test_the_card_that_we_write_for_clips_of_an_unknown_licence_passes(tmp_path):
    write(tmp_path / "in/a.wav")
    (tmp_path / "in/t.csv").write_text("path,caption,license\na.wav,A tone,Pixabay Content License\n")
    cli("build-dataset", "csv", "--input", tmp_path / "in/t.csv", "--out", tmp_path / "out")
    assert push(tmp_path / "out", "user/name", dry_run=True)["dry_run"]


@pytest.mark.parametrize("name", ["name", "user/name/more", "https://hf.co/user/name", "user/", "../name"])
def test_a_name_that_is_no_repository_is_refused(built, name):
    with pytest.raises(BuildError, match="want user/name"):
        push(built, name, dry_run=True)
