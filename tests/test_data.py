"""Reading a dataset, here or remote: its rows, windows of its clips, and errors that name file, row and remedy."""

import io
from dataclasses import replace
from fractions import Fraction

import fsspec
import numpy as np
import pairs
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from fsspec.implementations.memory import MemoryFileSystem

from clap.data import DataError, decode, open_split
from clap.embed import waveforms
from clap.loader import Loader
from clap.shards import read_group, splits, weighted
from clap.text import train_tokenizer


def opened(name, split="train", folds=()):
    return open_split(name, split, folds, 48000)


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    return pairs.write(tmp_path_factory.mktemp("twenty"), pairs.tones(20), shards=2)


def ramp(n):
    """(n,) int16 whose values tell their position."""
    return np.arange(n, dtype=np.int16)


def ramp_flac(n):
    buffer = io.BytesIO()
    soundfile.write(buffer, ramp(n), 48000, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def heard(data):
    """The centre 0.1 s of every clip, (clips, 4800)."""
    return np.stack([each[(len(each) - 4800) // 2 :][:4800] for each in waveforms(data, 48000, 48000, 4800, "centre")])


def test_rows_keep_the_order_of_shards_and_groups(twenty):
    data = opened(twenty)
    assert data.rows["id"].to_pylist() == [f"test/{i}" for i in range(20)]
    assert len(data.groups) == 4 and data.offset.tolist() == list(range(5)) * 4


def test_folds_choose_rows_and_their_own_audio(twenty):
    data = opened(twenty, folds=[2, 3])
    assert set(data.rows["fold"].to_pylist()) == {2, 3} and len(data) == 10
    whole, some = heard(opened(twenty)), heard(data)
    assert (some == whole[[i for i in range(20) if i % 4 in (1, 2)]]).all()


def test_all_splits_and_several_datasets_are_concatenated(twenty, tmp_path):
    other = pairs.write(tmp_path, pairs.tones(6), split="test")
    pairs.write(tmp_path, pairs.tones(3), split="validation")
    assert splits(other) == {"test", "validation"}
    assert len(opened(other, "all")) == 9
    both = open_split([other, other], "test", (), 48000)
    assert len(heard(both)) == len(both) == 12


def test_generated_sentences_are_read_by_name(tmp_path):
    data = opened(pairs.write(tmp_path, [pairs.row("a/0", ramp_flac(999), ["own"], generated=["made"])]))
    assert [data.captions(0, texts) for texts in ("captions", "generated", "both")] == [
        ["own"],
        ["made"],
        ["own", "made"],
    ]


def test_windows_are_central_without_a_generator_and_short_clips_come_as_they_are():
    assert (decode(ramp_flac(1001), 48000, 100, "") == ramp(1001)[450:550]).all()
    assert (decode(ramp_flac(300), 48000, 700, "") == ramp(300)).all()
    assert (decode(ramp_flac(300), 48000, 0, "") == ramp(300)).all()


def test_a_random_window_can_be_any_window():
    rng = np.random.default_rng(0)
    starts = {int(decode(ramp_flac(103), 48000, 100, "", rng)[0]) for _ in range(60)}
    assert starts == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (pairs.flac(np.zeros(800), 44100), "44100 Hz, 1 channels, the model expects 48000 Hz mono: rebuild"),
        (pairs.flac(np.zeros((800, 2))), "48000 Hz, 2 channels"),
        (b"not audio", "does not decode"),
        (None, "does not decode"),
        (pairs.flac(np.zeros(0)), "ends early or is empty|does not decode"),
    ],
)
def test_audio_that_cannot_be_used_is_told_before_the_first_step(tmp_path, audio, message):
    name = pairs.write(tmp_path, [pairs.row("bad/7", audio, ["a sound"])])
    with pytest.raises(DataError, match=message) as error:
        opened(name)
    assert "bad/7" in str(error.value) and "train-00000-of-00001" in str(error.value)


def test_a_truncated_clip_does_not_pass_for_a_short_one():
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48000)
    with pytest.raises(DataError, match="here"):
        decode(pairs.flac(noise)[:40000], 48000, 48000, "here")


def test_a_clip_without_caption_is_named(tmp_path):
    rows = pairs.tones(4)
    rows[2]["captions"] = []
    with pytest.raises(DataError, match=r"row 2 \(test/2\) has no caption"):
        opened(pairs.write(tmp_path, rows))


def test_missing_columns_are_named(tmp_path):
    name = pairs.write(tmp_path, pairs.tones(2))
    path = tmp_path / "data/train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["captions"]), path)
    with pytest.raises(DataError, match="lacks captions: build it with build-dataset"):
        opened(name)


def test_only_id_audio_and_captions_are_needed(tmp_path):
    name = pairs.write(tmp_path, pairs.tones(2))
    path = tmp_path / "data/train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).select(["captions", "id", "audio"]), path)
    assert opened(name).rows["labels"].to_pylist() == [[], []]


def test_a_missing_shard_is_noticed(twenty, tmp_path):
    name = pairs.write(tmp_path, pairs.tones(8), shards=2)
    (tmp_path / "data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"not whole or not of one build .train-00001-of-00002"):
        opened(name)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [("nowhere/at/all", "train", "no dataset at"), (None, "dev", "no split 'dev': it has train")],
)
def test_what_is_not_there_is_said(twenty, name, split, message):
    with pytest.raises(DataError, match=message):
        opened(name or twenty, split)


def test_a_hub_dataset_out_of_reach_is_said(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="nobody/nothing is no folder here, and the Hugging Face Hub did not"):
        opened("nobody/nothing")


def test_folds_that_match_nothing_are_an_error(twenty):
    with pytest.raises(DataError, match=r"folds \[9\]: check --folds"):
        opened(twenty, folds=[9])


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    name = pairs.write(tmp_path, pairs.tones(2))
    (tmp_path / "data/train-00000-of-00001.parquet").write_bytes(b"half a file")
    with pytest.raises(DataError, match="no whole Parquet file"):
        opened(name)


# ---- weights, storage


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("out/dataset", ("out/dataset", 1)),
        ("out/dataset:2", ("out/dataset", 2)),
        ("user/name:.5", ("user/name", Fraction(1, 2))),
        ("hf://datasets/user/name", ("hf://datasets/user/name", 1)),
        ("s3://bucket/it:0.1", ("s3://bucket/it", Fraction(1, 10))),
        ("C:/data", ("C:/data", 1)),
    ],
)
def test_only_a_number_at_the_end_is_a_weight(name, expected):
    assert weighted(name) == expected


def test_a_folder_whose_name_ends_in_a_number_is_found(tmp_path):
    name = pairs.write(tmp_path / "take:2", pairs.tones(3))
    assert opened(name).weights == ((3, 1),) and opened(f"{name}:0.5").weights == ((3, Fraction(1, 2)),)


def test_a_weight_of_nothing_is_an_error(twenty):
    with pytest.raises(DataError, match="has the weight 0: leave the dataset out"):
        opened(f"{twenty}:0.0")


class Flaky(MemoryFileSystem):
    """Storage whose next readings fail."""

    protocol = "flaky"
    failing, read = 0, 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def _open(self, path, mode="rb", **named):
        if mode == "rb":
            Flaky.read += 1
            if Flaky.failing:
                Flaky.failing -= 1
                raise TimeoutError("no answer")
        return super()._open(path, mode, **named)


@pytest.fixture
def stored(twenty, monkeypatch):
    """The same dataset in storage."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr("clap.shards.PAUSE", 0)
    monkeypatch.setattr(Flaky, "failing", 0)
    fsspec.filesystem("flaky").put(f"{twenty}/data", "/sounds/data", recursive=True)
    yield "flaky://sounds"
    fsspec.filesystem("flaky").rm("/sounds", recursive=True)


def test_a_dataset_in_storage_is_the_one_that_was_put_there(twenty, stored):
    here, there = opened(twenty, folds=[1, 2]), opened(stored, folds=[1, 2])
    assert splits(stored) == {"train"} and there.fingerprint() == here.fingerprint()
    assert (heard(there) == heard(here)).all()
    assert there.where(3).startswith("flaky://sounds/data/train-00000-of-00002.parquet, row 0 of row group 1")


def test_batches_that_are_streamed_are_those_of_the_folder(twenty, stored):
    tokenizer = train_tokenizer(opened(twenty).all_captions(), 300)
    config = replace(pairs.SMALL, epochs=2, pool=8)
    here, there = (list(Loader(opened(name), tokenizer, config).batches()) for name in (twenty, stored))
    assert len(here) == 10 and [batch.ids for batch in here] == [batch.ids for batch in there]
    assert all(torch.equal(a.audio, b.audio) for a, b in zip(here, there, strict=True))


def test_storage_that_fails_for_a_moment_is_asked_again(stored):
    data = opened(stored)
    Flaky.failing = 3
    assert len(read_group(*data.groups[0])) == 5


def test_storage_that_stays_away_ends_with_advice(stored):
    data = opened(stored)
    Flaky.failing, Flaky.read = 100, 0
    with pytest.raises(DataError, match=r"cannot be read .TimeoutError: no answer.: when it can, start again"):
        read_group(*data.groups[0])
    assert Flaky.read == 4


def test_storage_without_the_dataset_is_said(stored):
    with pytest.raises(DataError, match="flaky://nothing has no split 'train': it has no shards"):
        opened("flaky://nothing")
    with pytest.raises(DataError, match="storage did not give it"):
        opened("nosuch://bucket/data")


def test_a_shard_whose_first_clip_is_broken_can_be_trained_on(tmp_path):
    rows = [pairs.row("bad/0", b"fLaC" + bytes(99), ["broken"]), *pairs.tones(8)]
    assert len(opened(pairs.write(tmp_path, rows))) == 9
