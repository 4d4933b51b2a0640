"""An index against brute force, and what becomes of it when its clips come, go and change, or it is killed."""

import json
import os
import shutil
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
from typer.testing import CliRunner

import cli
from clap.config import ClapError
from clap.data import open_split
from clap.embed import embed_some
from clap.model import CLAP
from clap.search import parts, trial, vectors
from clap.search.build import build_index, source_name
from clap.search.clips import kept
from clap.search.index import Index, find
from clap.search.rows import complete, schema
from clap.search.semantic import dedup, group
from clap.search.tag import read_labels, tag, write_csv
from pipelines.build import STAGES, build_dataset
from pipelines.exclude import Exclude, read_ids
from pipelines.sources import source

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
    assert index.mask(sources=["test"], licenses=["CC0-1.0", "cc-by"]).sum() == 16


def test_on_the_page_a_licence_is_that_very_one_as_it_is_counted_there(index):
    assert index.mask(licenses=["CC0"]).sum() == kept(index, "test", "CC0-1.0").sum() == 8
    assert not kept(index, "", "CC0").any() and kept(index, "", "") is None


def test_a_filter_that_no_clip_passes_finds_nothing(index, model):
    assert find(index, model, "a buzz", keep=index.mask(licenses=["XX"])) == []


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
        (lambda: find(index, other, "a buzz"), "is an index of the model .* as it was then, .* trained on since"),
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


def test_a_clip_that_is_not_what_was_indexed_is_not_played(model, tmp_path):
    rows, folder = described(pairs.tones(6)), sounds(tmp_path / "sounds", 100)
    data = publish(tmp_path / "data", rows)
    build_index(model, data, tmp_path / "of data")
    build_index(model, folder, tmp_path / "of folder")
    publish(tmp_path / "data", rows[1:3])
    sounds(folder, 100)
    (folder / "100.wav").touch()
    for index, row, message in (
        (Index.open(tmp_path / "of data"), 0, "is not test/0: the dataset was built anew"),
        (Index.open(tmp_path / "of data"), 5, "is not test/5: the dataset was built anew"),
        (Index.open(tmp_path / "of folder"), 0, "has changed since it was indexed"),
    ):
        with pytest.raises(ClapError, match=message):
            index.audio(row)


def test_a_first_call_that_goes_wrong_leaves_nothing_that_hinders_the_second(model, data, tmp_path):
    for settings in ({"source": tmp_path / "typo"}, {"truncation": "random"}, {"truncation": "fixed-thirds"}):
        with pytest.raises(ClapError, match=r"typo|truncation"):
            build_index(model, **{"source": data, "out": tmp_path / "index"} | settings)
    assert build_index(model, data, tmp_path / "index", truncation="chunks")["embedded"] == 24


def test_another_source_or_split_is_refused_and_a_source_may_be_moved(model, data, tmp_path):
    folder, out = sounds(tmp_path / "sounds", 100), tmp_path / "index"
    build_index(model, folder, out)
    for settings in ({"source": data}, {"source": sounds(tmp_path / "others", 100)}, {"split": "train"}):
        with pytest.raises(ClapError, match="begun with another model, source, split"):
            build_index(model, **{"source": folder, "out": out} | settings)
    assert ids(out) == {"folder/100.wav"}
    (tmp_path / "moved").mkdir()
    assert build_index(model, folder.rename(tmp_path / "moved/sounds"), out)["embedded"] == 0
    assert Index.open(out).audio(0)[1] == "audio/wav"
    assert source_name("/a/esc10/dataset") == source_name("hf://datasets/b/esc10") == "esc10"


@pytest.mark.parametrize("suffix", ["npy", "faiss"])
def test_vectors_that_are_gone_are_told_and_made_again(model, data, index, tmp_path, suffix):
    pytest.importorskip("faiss")
    out = tmp_path / "index"
    build_index(model, data, out, exact=10)
    (out / f"vectors-0001.{suffix}").unlink()
    with pytest.raises(ClapError, match=r"lost a part .* run index again"):
        Index.open(out)
    assert build_index(model, data, out, exact=10)["embedded"] == 0
    assert np.array_equal(Index.open(out).embeddings(range(24)), index.embeddings(range(24)))


def test_what_others_keep_beside_an_index_stays(model, tmp_path):
    folder, out = sounds(tmp_path / "sounds", 100), tmp_path / "index"
    names = (".notes.tmp", "vectors-of-mine.npy", "part-00007.parquet", "sub/.x.npy.tmp", "rows/vectors-0009.npy")
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"mine")
    build_index(model, folder, out)
    sounds(folder, 200)
    build_index(model, folder, out)
    assert [(out / name).read_bytes() for name in names] == [b"mine"] * 5
    assert len(list(out.glob("vectors-0*"))) == 1


def test_many_small_parts_become_one_and_nothing_is_embedded_for_it(model, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "MANY", 2)
    for hertz in (100, 200, 300):
        assert build_index(model, sounds(tmp_path / "sounds", hertz), tmp_path / "index")["embedded"] == 1
    before = Index.open(tmp_path / "index")
    assert len(before.config["parts"]) == 3
    assert build_index(model, tmp_path / "sounds", tmp_path / "index")["embedded"] == 0
    after = Index.open(tmp_path / "index")
    assert after.config["parts"] == ["part-00003.parquet"] and after.table.equals(before.table)
    assert np.array_equal(after.vectors, before.vectors)


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


def test_a_killed_update_leaves_the_old_index_and_the_next_run_ends_it(model, tmp_path):
    rows, out = described(pairs.tones(14)), tmp_path / "index"
    build_index(model, publish(tmp_path / "data", rows[:8]), out)
    rows[2]["captions"] = ["Something else."]
    data = publish(tmp_path / "data", rows)
    child = get_context("fork").Process(target=build_and_be_killed, args=(model, data, out))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and ids(out) == {f"test/{i}" for i in range(8)}
    assert build_index(model, data, out)["embedded"] == 6  # the four of the part that was written were known
    assert ids(out) == {f"test/{i}" for i in range(14)} and len(list((out / "rows").iterdir())) == 2


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
        ivf = vectors.build_ivf(held, out / "vectors-0001.faiss", {})
        about |= {"vectors": "ivf", "ivf": ivf}
    (out / "index.json").write_text(json.dumps(about))
    return Index.open(out)


def test_an_inverted_file_finds_what_brute_force_finds(tmp_path):
    pytest.importorskip("faiss")
    whole, queries = clustered(20_000, 48)
    kept = whole.astype(np.float16)
    how = vectors.build_ivf(kept, tmp_path / "ivf", {"a": queries[:50], "b": -queries[:50]})
    assert min(how["recall"].values()) >= vectors.RECALL - 0.02
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


def test_recall_is_that_of_queries_which_chose_nothing_and_did_not_find_themselves():
    pytest.importorskip("faiss")
    whole, near = clustered(4000, 32)
    far = np.random.default_rng(1).standard_normal((100, 32)).astype(np.float32)
    far[::2] = near[::2]  # these choose the number of cells, the others lie elsewhere
    ivf = vectors.library().index_factory(32, "IVF64,SQ8", vectors.library().METRIC_INNER_PRODUCT)
    ivf.train(whole)
    ivf.add(whole)
    rows = np.arange(0, 4000, 40)
    how = vectors.tune(ivf, whole, {"texts": far}, rows)
    found, truth = (
        vectors.search_ivf(ivf, whole, far[1::2], 10, how["nprobe"])[1],
        vectors.top(whole, far[1::2], 10)[1],
    )
    assert how["recall"]["texts"] == pytest.approx(vectors.recalled(found, truth)) and how["recall"]["texts"] < 0.9
    scores = whole[rows[1::2]] @ whole.T
    scores[np.arange(50), rows[1::2]] = -1
    found = vectors.search_ivf(ivf, whole, whole[rows[1::2]], 11, how["nprobe"])[1][:, 1:]
    assert how["recall"]["clips"] == pytest.approx(vectors.recalled(found, np.argsort(-scores)[:, :10]))


def test_sounds_without_captions_are_tried_with_their_titles_and_with_sentences(model, index, tmp_path):
    pytest.importorskip("faiss")
    captions = {row["captions"][0] for row in pairs.tones(3)}
    assert set(trial.texts(index.table, np.random.default_rng(0))) == captions | set(trial.SENTENCES)
    folder = sounds(tmp_path / "sounds", *range(100, 900, 100))
    (folder / "100.wav").rename(folder / "a_dog-barks.wav")
    done = build_index(model, folder, tmp_path / "index", exact=5)
    asked = trial.texts(Index.open(tmp_path / "index").table, np.random.default_rng(0))
    assert asked[:8] == [*map(str, range(200, 900, 100)), "a dog barks"] and asked[8:] == list(trial.SENTENCES)
    assert set(done["recall"]) == {"clips", "texts"} and done["recall"]["texts"] >= 0.9


def test_a_large_index_is_searched_through_its_inverted_file(model, data, index, tmp_path):
    pytest.importorskip("faiss")
    done = build_index(model, data, tmp_path / "index", exact=10)
    large = Index.open(tmp_path / "index")
    assert done["vectors"] == "ivf" and set(done["recall"]) == {"clips", "texts"} and large.ivf is not None
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
    assert {"test/2", "test/aa"} <= set(dropped) and "test/zz" not in dropped and done["dropped"] == len(dropped)
    same = dedup(Index.open(tmp_path / "index"), tmp_path / "same", 1.0)
    assert (same["groups"], same["dropped"]) == (1, 2), "copies are alike to the last bit of their embeddings"


def test_a_build_drops_the_clip_that_is_named_and_not_that_of_the_same_name_in_another_source(model, tmp_path):
    for name, hertz in (("dogs", 300), ("effects", 310)):
        write(tmp_path / name / "Dog Barks.wav", hertz=hertz, rate=48000)
    (tmp_path / "two.toml").write_text(
        'title = "Two"\n[[source]]\nname = "folder"\ninput = "dogs"\n[[source]]\nname = "sonniss"\ninput = "effects"\n'
    )
    build_dataset(source("recipe"), tmp_path / "two.toml", tmp_path / "out", workers=0)
    build_index(model, tmp_path / "out/dataset", tmp_path / "index")
    assert ids(tmp_path / "index") == {"folder/Dog Barks.wav", "sonniss/Dog Barks.wav"}
    assert dedup(Index.open(tmp_path / "index"), tmp_path / "twins", 0.01)["dropped"] == 1
    drop = Exclude(exclude_ids=read_ids(tmp_path / "twins/drop.txt"))
    build_dataset(source("recipe"), tmp_path / "two.toml", tmp_path / "out", workers=0, stages=[drop, *STAGES[1:]])
    (left,) = open_split(str(tmp_path / "out/dataset"), "all", (), 48000).rows["id"].to_pylist()
    assert left not in drop.exclude_ids and left.endswith("/Dog Barks.wav")


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
    write_csv(tmp_path / "new/tags.csv", found)
    assert len((tmp_path / "new/tags.csv").read_text().splitlines()) == 1 + 2 + 2 + 1


def test_a_broken_clip_of_a_dataset_is_left_out_alone(model, tmp_path):
    rows = pairs.tones(7)
    rows[4]["audio"]["bytes"] = rows[4]["audio"]["bytes"][:60]
    data = open_split(pairs.write(tmp_path, rows), "train", (), 48000)
    found, broken = embed_some(model, data)
    assert list(broken) == [4] and "test/4" in broken[4] and found.shape == (6, 16)


@pytest.mark.parametrize("line", [["search", "INDEX", "a dog"], ["serve", "INDEX", "--port", "0"]])
def test_no_function_that_an_index_names_is_run(index, tmp_path, line, monkeypatch):
    shutil.copytree(index.path, tmp_path / "INDEX")
    (tmp_path / "INDEX/index.json").write_text(json.dumps(index.config | {"model": "theirs:load"}))
    (tmp_path / "theirs.py").write_text("open('ran', 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, line)
    assert done.exit_code == 1 and "give it by --model" in done.stderr and not (tmp_path / "ran").exists()
    opened = Index.open(tmp_path / "INDEX")
    assert opened.model_name("theirs:load") == "theirs:load" and index.model_name() == index.config["model"]
