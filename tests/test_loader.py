"""Batches: every row once, the same batches whatever the processes, threads and interruptions, and broken clips."""

import logging
import threading
from collections import Counter
from contextlib import closing
from dataclasses import replace

import numpy as np
import pairs
import pytest
import torch

from clap import cache
from clap.config import ConfigError
from clap.data import DataError, decode, open_split
from clap.features import Mels, collate, front_end, fused_mels
from clap.loader import Loader
from clap.order import order, visits
from clap.shards import read_group
from clap.text import train_tokenizer

FUSED = replace(pairs.SMALL.model, fusion="aff_2d")


def opened(name, folds=()):
    return open_split(name, "train", folds, 48000)


def loader(data, rank=0, world=1, **changes):
    return Loader(data, train_tokenizer(data.all_captions(), 300), replace(pairs.SMALL, **changes), rank, world)


def batches(data, start=0, **changes):
    return list(loader(data, **changes).batches(start))


def tensors(value):
    return list(value) if isinstance(value, Mels) else [value]


def same(a, b):
    one, two = (
        [*tensors(batch.audio), batch.input_ids, batch.attention_mask, batch.caption_ids, batch.clip_ids]
        for batch in (a, b)
    )
    return (a.ids, a.failed) == (b.ids, b.failed) and all(map(torch.equal, one, two))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 clips of 0.2 to 0.5 s, of which the model sees 0.25; several captions of several lengths each."""
    rows = pairs.tones(24)
    for i, row in enumerate(rows):
        row["captions"] = [f"a {'very ' * (i % 5)}tall tone", f"{'la ' * (i % 3)}la"]
    return pairs.write(tmp_path_factory.mktemp("tones"), rows, shards=2)


@pytest.fixture(scope="module")
def data(folder):
    return opened(folder)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """300 short clips, two of them broken."""
    blip = pairs.flac(pairs.sound("buzz", 0, 0.02))
    rows = [pairs.row(f"blip/{i}", blip, ["A blip."]) for i in range(300)]
    for i in (37, 203):
        rows[i] = pairs.row(f"broken/{i}", b"fLaC" + bytes(99), ["A broken blip."])
    return opened(pairs.write(tmp_path_factory.mktemp("broken"), rows, group=20))


# ---- the order of an epoch


def test_an_epoch_holds_every_row_once_in_pools_of_whole_groups():
    members = np.split(np.arange(70), 10)
    pools = list(order(members, 20, seed=0, epoch=3))
    assert sorted(np.concatenate(pools)) == list(range(70))
    assert all(len(np.unique(pool // 7)) == 3 for pool in pools[:-1])


def test_every_epoch_has_its_own_order_and_a_seed_fixes_it():
    members = np.split(np.arange(70), 10)
    first, again, second = (np.concatenate(list(order(members, 30, 0, epoch))) for epoch in (0, 0, 1))
    assert (first == again).all() and (first != second).any()


def counted(data, epochs):
    """How often every row comes in each of the epochs, (epochs, rows)."""
    found = [np.concatenate(visits(data, 0, epoch)) for epoch in range(epochs)]
    return np.stack([np.bincount(rows, minlength=len(data)) for rows in found])


@pytest.mark.parametrize("weight", ["2", "0.5", "1.5", "0.3", "2.75"])
def test_a_weight_is_how_often_every_row_comes_exactly(folder, weight):
    counts = counted(opened([f"{folder}:{weight}"]), 20)
    assert np.ptp(counts, axis=1).max() <= 1 and np.ptp(counts.cumsum(0), axis=1).max() <= 1
    assert (counts.sum(0) == 20 * float(weight)).all()


def test_each_of_several_datasets_has_its_own_weight(folder, tmp_path):
    few = pairs.write(tmp_path, pairs.tones(6))
    both = opened([f"{folder}:0.5", f"{few}:3"])
    counts = counted(both, 2)
    assert (counts.sum(0) == [1] * 24 + [6] * 6).all()
    assert len(loader(both, batch_size=5)) == 6


def test_rows_that_come_twice_are_heard_twice_in_different_ways(folder):
    (batch,) = batches(opened([f"{folder}:2"]), batch_size=48, epochs=1)
    long = [i for i, id in enumerate(batch.ids) if id == "test/6"]
    assert len(long) == 2 and not torch.equal(*batch.audio[long])


# ---- the same batches


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_processes_of_an_epoch_hear_every_row_once(data, world):
    found = [batches(data, rank=rank, world=world, batch_size=12, epochs=1, pool=8) for rank in range(world)]
    assert Counter(id for each in found for batch in each for id in batch.ids) == Counter(
        f"test/{i}" for i in range(24)
    )
    assert all(len(batch) == 12 // world for each in found for batch in each)


@pytest.mark.parametrize("world", [2, 3])
def test_global_batches_do_not_depend_on_processes_or_threads(data, world):
    changes = {"batch_size": 12, "epochs": 2, "pool": 8, "roll": True, "word_dropout": 0.3}
    whole = batches(data, workers=1, **changes)
    slices = [batches(data, rank=rank, world=world, workers=3, **changes) for rank in range(world)]
    for batch, *parts in zip(whole, *slices, strict=True):
        rows = {
            id: (audio, caption) for id, audio, caption in zip(batch.ids, batch.audio, batch.caption_ids, strict=True)
        }
        assert sorted(id for part in parts for id in part.ids) == sorted(batch.ids)
        for part in parts:
            for id, audio, caption in zip(part.ids, part.audio, part.caption_ids, strict=True):
                assert torch.equal(audio, rows[id][0]) and caption == rows[id][1]


@pytest.mark.parametrize("changes", [{"roll": True}, {"model": FUSED, "roll": True}, {"cache": "mel"}])
def test_batches_from_the_middle_are_those_of_an_uninterrupted_run(data, changes, tmp_path):
    changes |= {"epochs": 3, "pool": 8, "batch_size": 5, "cache_dir": str(tmp_path)}
    cache.build(data, replace(pairs.SMALL, **changes))
    whole = batches(data, **changes)
    assert len(whole) == 12
    for start in (2, 4, 11):
        rest = batches(data, start, workers=1, **changes)
        assert len(rest) == 12 - start and all(map(same, rest, whole[start:]))


def test_crops_and_captions_change_from_epoch_to_epoch(tmp_path):
    ramp = np.arange(30000) / 32768
    name = pairs.write(tmp_path, [pairs.row("a/0", pairs.flac(ramp), [f"caption {i}" for i in range(9)])])
    found = batches(opened(name), batch_size=1, epochs=8)
    starts = [int(batch.audio[0, 0]) for batch in found]
    assert len(set(starts)) > 4 and set(starts) <= set(range(18001))
    assert all((np.diff(batch.audio[0].numpy()) == 1).all() for batch in found)
    assert len({int(batch.caption_ids[0]) for batch in found}) > 3


# ---- what a batch is


def test_rows_come_by_the_length_of_their_text_and_parts_are_cut_to_theirs(data):
    batch = next(loader(data, batch_size=24).batches())
    longest = batch.attention_mask.sum(1)
    assert longest.diff().min() >= 0 and longest[-1] == batch.input_ids.shape[1] > longest[0]
    parts = batch.split(7)
    assert [len(part) for part in parts] == [7, 7, 7, 3]
    assert parts[0].input_ids.shape[1] == longest[6] < parts[-1].input_ids.shape[1]
    assert torch.equal(torch.cat([part.audio for part in parts]), batch.audio)
    assert sum((part.ids for part in parts), ()) == batch.ids


def test_an_unknown_word_inside_a_caption_is_not_cut_off(folder):
    data = opened(folder)
    config = replace(pairs.SMALL, batch_size=24)
    batch = next(Loader(data, train_tokenizer(["tone"], 10), config).batches())  # it knows no other word
    ends = [row.split(1)[0].input_ids[0, -1] for row in batch.split(1)]
    assert len({int(end) for end in ends}) == 1  # the end of the text


def test_equal_captions_share_an_identity_and_clips_do_not(tmp_path):
    batch = next(loader(opened(pairs.write(tmp_path, pairs.tones(20))), batch_size=20).batches())
    assert len(batch.caption_ids.unique()) == 3 and len(batch.clip_ids.unique()) == 20


def test_a_fused_model_gets_the_mels_of_whole_clips(data):
    batch, log_mel, waves, parts = next(loader(data, batch_size=24, model=FUSED).batches()), front_end(FUSED), {}, []
    for row in range(24):
        shard, group = data.groups[data.group[row]]
        waves[f"test/{row}"] = decode(read_group(shard, group, [data.offset[row]])[0], 48000, 0, "")
    expected = collate([fused_mels(waves[id], FUSED, log_mel) for id in batch.ids])
    assert torch.equal(batch.audio.longer, expected.longer) and 0 < expected.longer.sum() < 24
    assert torch.equal(batch.audio.whole, expected.whole)
    for clip, crops in zip(batch.audio.longer.nonzero()[:, 0].tolist(), batch.audio.parts, strict=True):
        mel = log_mel(torch.from_numpy(waves[batch.ids[clip]])[None])[0, 0]
        windows = mel.unfold(0, crops.shape[1], 1).transpose(1, 2)
        parts += [(windows == crop).all((1, 2)).any() for crop in crops]
    assert len(parts) == 3 * expected.longer.sum() and all(parts)


def test_parts_of_longer_clips_go_with_their_rows(data):
    batch = next(loader(data, batch_size=24, model=FUSED).batches())
    again = collate([part.audio for part in batch.split(5)])
    assert all(map(torch.equal, again, batch.audio))
    assert all(len(part.audio.parts) == part.audio.longer.sum() for part in batch.split(5))


def test_mels_of_the_cache_become_float32_where_they_are_used(data, tmp_path):
    changes = {"cache": "mel", "cache_dir": str(tmp_path)}
    cache.build(data, replace(pairs.SMALL, **changes))
    batch = next(loader(data, **changes).batches())
    assert batch.audio.whole.dtype == torch.float16
    moved = batch.to(torch.device("cpu"))
    assert moved.audio.whole.dtype == torch.float32 and moved.audio.longer.dtype == torch.bool


# ---- clips that do not decode


@pytest.mark.parametrize("world", [1, 2])
def test_another_clip_takes_the_place_of_a_broken_one(broken, world, caplog):
    changes = {"batch_size": 10, "epochs": 1, "pool": 60, "world": world}
    found = [batches(broken, rank=rank, **changes) for rank in range(world)]
    assert [len(each) for each in found] == [30] * world
    assert all(len(batch) == 10 // world for each in found for batch in each)
    assert sum(batch.failed for each in found for batch in each) == 2
    assert not any("broken" in id for each in found for batch in each for id in batch.ids)
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 2 and "row 17 of row group 1 (broken/37)" in " ".join(told)


def test_the_stand_ins_are_the_same_after_a_resume(broken):
    changes = {"batch_size": 10, "epochs": 2, "pool": 60}
    whole = batches(broken, **changes)
    assert sum(batch.failed for batch in whole[10:]) >= 2
    assert all(map(same, batches(broken, 10, workers=1, **changes), whole[10:]))


def test_too_many_broken_clips_end_the_run(tmp_path):
    blip = pairs.flac(pairs.sound("buzz", 0, 0.02))
    rows = [pairs.row(f"a/{i}", blip if i % 12 else b"", ["A blip."]) for i in range(1, 140)]
    data = opened(pairs.write(tmp_path, rows))
    with pytest.raises(DataError, match="11 clips do not decode, more than 1% of 139"):
        batches(data, batch_size=1, epochs=1)


def test_one_broken_clip_of_a_few_does_not_end_the_run_however_often_it_comes(tmp_path):
    rows = [*pairs.tones(7), pairs.row("broken/7", b"fLaC" + bytes(99), ["A broken blip."])]
    found = batches(opened(pairs.write(tmp_path, rows)), batch_size=8, epochs=30, pool=8)
    assert [batch.failed for batch in found] == [1] * 30


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_one_good_clip_of_a_pool_is_found_and_no_clip_stands_in_for_itself(tmp_path, size):
    blip = pairs.flac(pairs.sound("buzz", 0, 0.02))
    name = pairs.write(tmp_path, [pairs.row(f"a/{i}", blip if i == 2 else b"", ["A blip."]) for i in range(4)])
    for batch in batches(opened(f"{name}:2"), batch_size=size, epochs=3, pool=4):
        assert set(batch.ids) == {"a/2"} and batch.failed <= 3 * size


def test_a_pool_of_broken_clips_ends_the_run(tmp_path):
    blip = pairs.flac(pairs.sound("buzz", 0, 0.02))
    rows = [pairs.row(f"a/{i}", blip if i < 5 else b"", ["A blip."]) for i in range(10)]
    with pytest.raises(DataError, match="all fail"):
        batches(opened(pairs.write(tmp_path, rows, group=5)), batch_size=5, pool=5)


def test_what_is_skipped_is_not_decoded(broken):
    changes = {"batch_size": 10, "epochs": 1, "pool": 60}
    bad = [i for i, batch in enumerate(batches(broken, **changes)) if batch.failed]
    assert not any(batch.failed for batch in batches(broken, bad[-1] + 1, **changes))


# ---- threads, and errors before the first batch


def test_batches_are_made_ahead_and_no_thread_stays_behind(data):
    before = set(threading.enumerate())
    with closing(loader(data, epochs=50).batches()) as made:
        next(made)
        assert set(threading.enumerate()) - before
    assert set(threading.enumerate()) <= before


def test_fewer_clips_than_a_batch_is_an_error(data):
    with pytest.raises(DataError, match="24 clips an epoch, which do not fill a batch of 64: lower --batch-size"):
        loader(data, batch_size=64)


def test_a_batch_that_does_not_part_among_the_processes_is_an_error(data):
    with pytest.raises(ConfigError, match="batch_size 8 is no multiple of 3"):
        loader(data, batch_size=8, world=3)


def test_a_cache_that_was_not_built_is_said(data, tmp_path):
    with pytest.raises(DataError, match="no log-mels of"):
        loader(data, cache="mel", cache_dir=str(tmp_path))


def test_a_cached_clip_that_did_not_decode_has_a_stand_in(broken, tmp_path):
    changes = {"batch_size": 10, "epochs": 1, "pool": 60, "cache": "mel", "cache_dir": str(tmp_path)}
    cache.build(broken, replace(pairs.SMALL, **changes))
    found = batches(broken, **changes)
    assert sum(batch.failed for batch in found) == 2 and {len(batch) for batch in found} == {10}
