"""An index against brute force, and what becomes of it when its clips come, go and change, or it is killed."""

import json
import os
import signal
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pairs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import hostile, write

from clap.config import ClapError
from clap.data import open_split
from clap.model import CLAP
from clap.search import parts, vectors
from clap.search.index import Index, build_index, find
from clap.search.rows import complete, embed_some, schema
from clap.search.semantic import dedup, group
from clap.search.tag import read_labels, tag, write_csv

COLUMNS = pairs.SCHEMA | {"source": pa.string(), "license": pa.string(), "tags": pairs.TEXT, "sha256": pa.string()}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)  # so that it tells clip 14 from all others
    return CLAP.create(
        replace(pairs.SMALL.model, text_vocab=300), [row["captions"][0] for row in pairs.tones(3)]
    ).eval()


def described(rows):
    """Rows with what an index shows and knows them by."""
    for i, row in enumerate(rows):
        row |= {"source": "test", "license": ("CC0-1.0", "CC-BY-4.0", "CC-BY-NC-4.0")[i % 3], "sha256": f"{i:064x}"}
    return rows


def publish(folder, rows, split="train"):
    """Write rows with their licences as a dataset of one shard."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, pa.schema(COLUMNS))
    pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet", row_group_size=5)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("data"), described(pairs.tones(24)))


@pytest.fixture(scope="module")
def index(model, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("index")
    assert build_index(model, data, out, name=data)["embedded"] == 24
    return Index.open(out)


def sounds(folder, *hertz):
    for each in hertz:
        write(folder / f"{each}.wav", seconds=0.3, rate=48000, hertz=each)
    return folder


def ids(out):
    return set(Index.open(out).table["id"].to_pylist())


def test_a_search_is_that_of_brute_force(index, model, data):
    queries = np.vstack([model.embed_text(["a buzz", "the sound of a low tone"]), index.embeddings([3, 7])])
    scores = queries @ index.embeddings(range(24)).T
    for query, hits in zip(scores, index.search(queries, 5), strict=True):
        assert [hit.score for hit in hits] == pytest.approx(np.sort(query)[::-1][:5])
        assert [query[hit.row] for hit in hits] == pytest.approx([hit.score for hit in hits])
        assert [index.table["id"][hit.row].as_py() for hit in hits] == [hit.id for hit in hits]


def test_the_embeddings_are_those_of_the_model(index, model, data):
    expected = model.embed_audio(open_split(data, "all", (), 48000))
    assert index.table["id"].to_pylist() == [f"test/{i}" for i in range(24)]
    assert np.abs(index.embeddings(range(24)) - expected).max() < 5e-4  # kept as float16


def test_an_index_tells_what_it_was_made_of(index, data):
    assert index.table.schema == schema() and len(index) == index.config["n"] == 24
    assert (index.config["vectors"], index.config["dim"], index.config["model"]) == ("exact", 16, data)


def test_more_than_there_are_is_all_and_nothing_kept_is_nothing(index):
    query = index.embeddings([0])
    assert len(index.search(query, 100)[0]) == 24
    assert index.search(query, 3, np.zeros(24, bool)) == [[]]


def test_a_filter_gives_the_nearest_of_what_it_keeps(index):
    keep = index.mask(licenses=["cc-by"])
    assert index.table["license"].filter(pa.array(keep)).unique().to_pylist() == ["CC-BY-4.0"]
    query = index.embeddings([0])
    whole = [hit for hit in index.search(query, 24)[0] if keep[hit.row]]
    assert index.search(query, 4, keep)[0] == whole[:4]
    assert index.mask() is None and not index.mask(sources=["other"]).any()


def test_a_sound_is_most_like_itself_and_is_played_from_where_it_lies(index, model, tmp_path):
    sound, kind = index.audio(14)
    assert kind == "audio/flac" and sound == pairs.tones(15)[14]["audio"]["bytes"]
    (tmp_path / "buzz.flac").write_bytes(sound)
    first, second = find(index, model, like=tmp_path / "buzz.flac", k=2)
    assert first["id"] == "test/14" and first["score"] == pytest.approx(1, abs=1e-3) and second["score"] < 0.995
    assert first["captions"] == ["The sound of a buzz."] and first["license"] == "CC-BY-NC-4.0"


def test_wrong_questions_are_told_what_is_wrong(index, model, tmp_path):
    other = CLAP.create(pairs.SMALL.model, ["other words"])
    for question, message in (
        (lambda: find(index, other, "a buzz"), "is an index of the model"),
        (lambda: find(index, model), "a text or the path"),
        (lambda: index.search(np.ones((1, 3))), "give"),
        (lambda: index.audio(-1), "no row -1"),
        (lambda: Index.open(tmp_path), "no whole index"),
        (lambda: build_index(other, index.config["root"], index.path), "another model"),
        (lambda: build_index(model, index.config["root"], index.path, truncation="chunks"), "truncation"),
    ):
        with pytest.raises(ClapError, match=message):
            question()


def test_only_what_is_new_or_changed_is_embedded_and_what_is_gone_goes(model, tmp_path):
    folder, out = sounds(tmp_path / "sounds", 100, 200, 300), tmp_path / "index"
    assert build_index(model, folder, out)["embedded"] == 3
    first = Index.open(out)
    assert build_index(model, folder, out)["embedded"] == 0
    sounds(folder, 400)
    (folder / "100.wav").unlink()
    sounds(folder, 300)  # written anew: another time
    assert build_index(model, folder, out)["embedded"] == 2
    assert ids(out) == {"folder/200.wav", "folder/300.wav", "folder/400.wav"}
    assert len(list(out.glob("vectors-*"))) == 1
    assert len(first.search(first.embeddings([0]), 3)[0]) == 3, "who has it open can go on"


def test_new_captions_are_shown_and_nothing_is_embedded_for_them(model, tmp_path):
    rows, out = described(pairs.tones(6)), tmp_path / "index"
    data = publish(tmp_path / "data", rows)
    build_index(model, data, out)
    before = Index.open(out)
    rows[2]["captions"] = ["Something else."]
    publish(tmp_path / "data", [*rows[3:], *rows[:3]])
    assert build_index(model, data, out)["embedded"] == 0
    after = Index.open(out)
    row = after.table["id"].to_pylist().index("test/2")
    assert after.table["captions"][row].as_py() == ["Something else."]
    assert np.array_equal(after.embeddings([row]), before.embeddings([2]))
    assert after.audio(row) == (rows[2]["audio"]["bytes"], "audio/flac")


def build_and_be_killed(model, data, out):
    """Build in parts of four clips until two are there."""
    torch.set_num_threads(1)
    parts.PART, write_part = 4, parts.write_part

    def write_or_die(path, *given):
        if path.name == "part-00002.parquet":
            os.kill(os.getpid(), signal.SIGKILL)
        write_part(path, *given)

    parts.write_part = write_or_die
    build_index(model, data, out)


def test_a_killed_run_is_continued_from_its_last_part(model, data, tmp_path):
    out = tmp_path / "index"
    child = get_context("fork").Process(target=build_and_be_killed, args=(model, data, out))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with pytest.raises(ClapError, match="no whole index"):
        Index.open(out)
    (out / "rows/.part-00002.parquet.tmp").write_bytes(b"half")
    assert build_index(model, data, out)["embedded"] == 24 - 2 * 4
    assert ids(out) == {f"test/{i}" for i in range(24)} and not list(out.rglob(".*.tmp"))


def test_broken_and_oddly_named_files_are_skipped_with_a_reason_or_indexed(model, tmp_path):
    (tmp_path / "sounds").mkdir()
    expected = hostile(tmp_path / "sounds")
    for name in ("100%.wav", "a#1:2.wav", '雨 & "rain".wav', "<b>.wav"):
        write(tmp_path / "sounds" / name, seconds=0.3)
    done = build_index(model, tmp_path / "sounds", tmp_path / "index")
    index = Index.open(tmp_path / "index")
    found = {id.removeprefix("folder/") for id in index.table["id"].to_pylist()}
    good = {name for name, reason in expected.items() if not reason}
    assert good | {"100%25.wav", "a#1:2.wav", '雨 & "rain".wav', "<b>.wav"} <= found
    assert "empty.wav" not in found and done["skipped"] >= 4
    assert b"folder/text.wav," in (tmp_path / "index/skipped.csv").read_bytes()
    assert all(
        index.audio(row)[0].startswith(b"RIFF") and index.audio(row)[1] == "audio/wav" for row in range(len(index))
    )
    assert build_index(model, tmp_path / "sounds", tmp_path / "index")["embedded"] == 0


def test_a_folder_of_nothing_that_decodes_is_refused(model, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"nothing")
    with pytest.raises(ClapError, match="not one clip"):
        build_index(model, tmp_path, tmp_path / "index")


def clustered(n, dim, seed=0):
    """(n, dim) unit vectors, some hundred around each of n / 100 centres, and (100, dim) queries near some of them."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((n // 100, dim))
    found = centres[rng.integers(len(centres), size=n)] + rng.standard_normal((n, dim))
    queries = found[rng.integers(n, size=100)] + 0.5 * rng.standard_normal((100, dim))
    return [(each / np.linalg.norm(each, axis=1, keepdims=True)).astype(np.float32) for each in (found, queries)]


def stored(out, embeddings, exact):
    """An index of embeddings that came from no model."""
    rows = complete(pa.table({"id": [f"test/{i}" for i in range(len(embeddings))]}))
    parts.write_part(out / "rows/part-00000.parquet", rows, embeddings)
    held = parts.gather([out / "rows/part-00000.parquet"], out / "vectors-0001.npy")
    about = {"parts": ["part-00000.parquet"], "number": 1, "dim": embeddings.shape[1], "vectors": "exact"}
    if len(embeddings) > exact:
        ivf = vectors.build_ivf(held, out / "vectors-0001.faiss", {"all": embeddings[:100]})
        about |= {"vectors": "ivf", "ivf": ivf}
    (out / "index.json").write_text(json.dumps(about))
    return Index.open(out)


def test_an_inverted_file_finds_what_brute_force_finds(tmp_path):
    pytest.importorskip("faiss")
    whole, queries = clustered(20_000, 48)
    kept = whole.astype(np.float16)
    how = vectors.build_ivf(kept, tmp_path / "ivf", {"a": queries[:50], "b": -queries[:50]})
    assert min(how["recall"].values()) >= vectors.RECALL
    ivf, held_out = vectors.open_ivf(tmp_path / "ivf"), queries[50:]
    scores, found = vectors.search_ivf(ivf, kept, held_out, 10, how["nprobe"])
    truth_scores, truth = vectors.top(whole, held_out, 10)
    assert vectors.recalled(found, truth) >= 0.95
    assert scores[found == truth] == pytest.approx(truth_scores[found == truth], abs=1e-3)
    keep = np.arange(len(whole)) % 10 == 0
    _, among = vectors.search_ivf(ivf, kept, held_out, 10, how["nprobe"], keep)
    assert (
        keep[among].all() and vectors.recalled(among, vectors.top(whole, held_out, 10, np.flatnonzero(keep))[1]) > 0.8
    )


def test_a_large_index_is_searched_through_its_inverted_file(model, data, index, tmp_path):
    pytest.importorskip("faiss")
    done = build_index(model, data, tmp_path / "index", exact=10)
    large = Index.open(tmp_path / "index")
    assert done["vectors"] == "ivf" and set(done["recall"]) == {"clips", "captions"} and large.ivf is not None
    large.config["ivf"]["nprobe"] = large.config["ivf"]["cells"]  # every cell: the same as every row
    query, keep = index.embeddings([5]), np.arange(24) % 2 == 0
    assert large.search(query, 5) == index.search(query, 5)
    assert large.search(query, 100) == index.search(query, 100)
    assert large.search(query, 5, keep) == index.search(query, 5, keep)


def test_near_duplicates_leave_the_one_with_most_captions(model, tmp_path):
    rows = described(pairs.tones(6))
    twins = [dict(rows[2], id="test/zz", captions=["One.", "Two."]), dict(rows[2], id="test/aa")]
    build_index(model, publish(tmp_path / "data", [*rows, *twins]), tmp_path / "index")
    done = dedup(Index.open(tmp_path / "index"), tmp_path / "out", 0.999)
    groups = pq.read_table(tmp_path / "out/groups.parquet").to_pylist()
    group = next(row["group"] for row in groups if row["id"] == "test/zz")
    members = [row for row in groups if row["group"] == group]
    assert {"test/2", "test/aa", "test/zz"} <= {row["id"] for row in members}
    assert [row["id"] for row in members if row["keep"]] == ["test/zz"]
    dropped = (tmp_path / "out/drop.txt").read_text().split()
    assert {"2", "aa"} <= set(dropped) and "zz" not in dropped and done["dropped"] == len(dropped)


def test_groups_are_those_of_all_pairs_by_either_way(tmp_path):
    pytest.importorskip("faiss")
    from scipy.cluster.hierarchy import fcluster, linkage

    whole, _ = clustered(1200, 32)
    truth = fcluster(linkage(whole, "single", "cosine"), 0.3, "distance")

    for exact in (len(whole), 10):
        found = group(stored(tmp_path / str(exact), whole, exact), 0.7)
        assert len(np.unique(found)) == len(np.unique(truth)) == len(np.unique([found, truth], axis=1).T) < 1200


def test_tags_are_those_of_the_cosines_and_a_broken_file_has_its_reason(model, tmp_path):
    folder = sounds(tmp_path / "sounds", 200, 6000)
    (folder / "broken.wav").write_bytes(b"nothing")
    (tmp_path / "labels.txt").write_text("low_tone\n\nbuzz\nhigh_tone\n")
    labels = read_labels(tmp_path / "labels.txt")
    found = list(tag(model, [folder], labels, "The sound of a {}.", most=2))
    assert [each.file.name for each in found] == ["200.wav", "6000.wav", "broken.wav"]
    cosines = (
        model.embed_audio([folder / "200.wav"])[0]
        @ model.embed_text([f"The sound of a {label.replace('_', ' ')}." for label in labels]).T
    )
    assert list(found[0].labels.values()) == pytest.approx(np.sort(cosines)[::-1][:2], abs=1e-5)
    assert not found[2].labels and "does not decode" in found[2].error
    assert not next(tag(model, [folder], labels, threshold=1.0)).labels
    write_csv(tmp_path / "tags.csv", found)
    assert len((tmp_path / "tags.csv").read_text().splitlines()) == 1 + 2 + 2 + 1


def test_a_broken_clip_of_a_dataset_is_left_out_alone(model, tmp_path):
    rows = pairs.tones(7)
    rows[4]["audio"]["bytes"] = rows[4]["audio"]["bytes"][:60]
    data = open_split(pairs.write(tmp_path, rows), "train", (), 48000)
    found, broken = embed_some(model, data)
    assert list(broken) == [4] and "test/4" in broken[4] and found.shape == (6, 16)
