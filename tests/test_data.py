"""Reading and loading a dataset: order, windows, resumption, and errors that name file, row and remedy."""

import io
from dataclasses import replace

import numpy as np
import pairs
import pyarrow.parquet as pq
import pytest
import soundfile

from clap.data import DataError, decode, open_split, splits
from clap.embed import waveforms
from clap.loader import Loader, order
from clap.text import train_tokenizer


def opened(name, split="train", folds=()):
    return open_split(name, split, folds, 48000)


def loader(data, **changes):
    return Loader(data, train_tokenizer(data.all_captions(), 300), replace(pairs.SMALL, **changes))


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


def test_an_epoch_holds_every_row_once_in_pools_of_whole_groups():
    members = np.split(np.arange(70), 10)
    pools = list(order(members, 20, seed=0, epoch=3))
    assert sorted(np.concatenate(pools)) == list(range(70))
    assert all(len(np.unique(pool // 7)) == 3 for pool in pools[:-1])


def test_every_epoch_has_its_own_order_and_a_seed_fixes_it():
    members = np.split(np.arange(70), 10)
    first, again, second = (np.concatenate(list(order(members, 30, 0, epoch))) for epoch in (0, 0, 1))
    assert (first == again).all() and (first != second).any()


def same(a, b):
    return all((getattr(a, k) == getattr(b, k)).all() for k in ("waveform", "input_ids", "attention_mask", "clip_ids"))


def test_batches_from_the_middle_are_those_of_an_uninterrupted_run(twenty):
    changes = {"epochs": 3, "pool": 8, "roll": True}
    whole = list(loader(opened(twenty), **changes).batches())
    assert len(whole) == 15
    for start in (2, 5, 13):
        rest = list(loader(opened(twenty), workers=1, **changes).batches(start))
        assert len(rest) == 15 - start and all(map(same, rest, whole[start:]))


def test_crops_and_captions_change_from_epoch_to_epoch(tmp_path):
    name = pairs.write(tmp_path, [pairs.row("a/0", ramp_flac(30000), [f"caption {i}" for i in range(9)])])
    batches = list(loader(opened(name), batch_size=1, epochs=8).batches())
    starts = [int(batch.waveform[0, 0]) for batch in batches]
    assert len(set(starts)) > 4 and set(starts) <= set(range(18001))
    assert all((np.diff(batch.waveform[0].numpy()) == 1).all() for batch in batches)
    assert len({int(batch.caption_ids[0]) for batch in batches}) > 3


def test_what_is_skipped_is_not_decoded(tmp_path):
    rows = [pairs.row("bad/0", b"fLaC" + bytes(99), ["broken"]), *pairs.tones(11)]
    rows[0], rows[1] = rows[1], rows[0]  # the first clip is looked at when the dataset is opened
    data = opened(pairs.write(tmp_path, rows))
    first = np.concatenate(list(order(data.members(), 2048, 0, 0)))
    bad = int(np.flatnonzero(first == 1)[0]) // 4
    assert len(list(loader(data, epochs=1).batches(bad + 1))) == 2 - bad
    with pytest.raises(DataError, match=r"row 1 of row group 0 \(bad/0\)"):
        list(loader(data, epochs=1).batches(bad))


def test_equal_captions_share_an_identity_and_clips_do_not(twenty):
    batch = next(loader(opened(twenty), batch_size=20).batches())
    assert len(batch.caption_ids.unique()) == 3 and len(batch.clip_ids.unique()) == 20


def test_generated_sentences_are_read_by_name(tmp_path):
    data = opened(pairs.write(tmp_path, [pairs.row("a/0", ramp_flac(999), ["own"], generated=["made"])]))
    assert [data.captions(0, texts) for texts in ("captions", "generated", "both")] == [
        ["own"],
        ["made"],
        ["own", "made"],
    ]


def test_windows_are_central_without_a_generator_and_short_clips_are_repeated():
    assert (decode(ramp_flac(1001), 48000, 100, "") == ramp(1001)[450:550]).all()
    expected = np.concatenate([ramp(300), ramp(300), np.zeros(100)])
    assert (decode(ramp_flac(300), 48000, 700, "") == expected).all()


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


def test_fewer_clips_than_a_batch_is_an_error(twenty):
    with pytest.raises(DataError, match="20 clips, which do not fill a batch of 64: lower --batch-size"):
        loader(opened(twenty), batch_size=64)


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    name = pairs.write(tmp_path, pairs.tones(2))
    (tmp_path / "data/train-00000-of-00001.parquet").write_bytes(b"half a file")
    with pytest.raises(DataError, match="no whole Parquet file"):
        opened(name)
