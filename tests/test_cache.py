"""The cache of log-mels: what it holds is what the model would compute, and it is whole whatever happens."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pairs
import pytest
import torch
from conftest import ROOT
from hub import wait_for
from test_data import claiming

from clap import cache
from clap.cache import Cache, crop
from clap.config import to_dict
from clap.data import DataError, Undecodable, open_split
from clap.features import front_end, fuse, fused_mels, mels_for
from clap.fill import fill

PLAIN = pairs.SMALL.model
FUSED = replace(PLAIN, fusion="aff_2d")
SECONDS = {"short": 0.1, "exact": 0.25, "a little longer": 0.255, "long": 1.3, "click": 0.001}


def sounds():
    """int16 (samples,) of every kind of clip."""
    return {
        name: (pairs.sound("buzz", i, seconds) * 32768).round().astype(np.int16)
        for i, (name, seconds) in enumerate(SECONDS.items())
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rows = [pairs.row(name, pairs.flac(wave), ["A sound."]) for name, wave in sounds().items()]
    rows.insert(2, pairs.row("empty", pairs.flac(np.zeros(0)), ["Nothing."]))
    name = pairs.write(tmp_path_factory.mktemp("sounds"), rows, shards=2, group=2)
    return open_split(name, "train", (), 48000)


def settings(folder, model=PLAIN):
    return replace(pairs.SMALL, model=model, cache="mel", cache_dir=str(folder))


def built(data, folder, model=PLAIN):
    cache.build(data, settings(folder, model))
    return Cache(data, settings(folder, model))


def shard_folders(folder):
    return sorted(path for path in folder.iterdir() if path.is_dir())


@pytest.mark.parametrize("changes", [{}, {"int16_quantize": True}, {"filling": "pad"}, {"mel_scale": "htk"}])
def test_it_holds_what_the_front_end_computes_of_the_filled_clip(data, tmp_path, changes):
    model = replace(PLAIN, **changes)
    found, log_mel = built(data, tmp_path, model), front_end(model)
    ids = data.rows["id"].to_pylist()
    for name, wave in sounds().items():
        expected = log_mel(torch.from_numpy(fill(wave, model.n_samples, model.filling))[None])[0, 0].numpy()
        mel = found[ids.index(name)]
        assert mel.dtype == np.float16 and mel.shape == expected.shape
        assert np.abs(mel - expected).max() < 0.04  # half a step of float16 from 64 dB up


def test_an_empty_clip_has_no_mel(data, tmp_path):
    row = data.rows["id"].to_pylist().index("empty")
    with pytest.raises(DataError, match=r"\(empty\): audio did not decode when it was cached"):
        built(data, tmp_path)[row]


def test_a_clip_whose_header_claims_days_has_no_mel_and_the_others_do(tmp_path):
    rows = [pairs.row("days/0", claiming(2**36 - 1), ["A sound."]), *pairs.tones(4)]
    found = built(open_split(pairs.write(tmp_path / "data", rows), "train", (), 48000), tmp_path / "cache")
    with pytest.raises(Undecodable, match=r"\(days/0\)"):
        found[0]
    assert [len(found[row]) for row in range(1, 5)] == [26, 26, 31, 36]


def n_open():
    """Files that this process has open."""
    return len(list(Path("/dev/fd").iterdir()))


def test_no_file_stays_open_and_one_that_is_gone_is_said(data, tmp_path):
    found, before = built(data, tmp_path), n_open()
    mels = [found[row] for row in (0, 1, 3, 4, 5)]
    del mels
    assert n_open() == before
    shutil.rmtree(tmp_path)
    with pytest.raises(DataError, match=r"log-mels cannot be read .* start again"):
        found[0]


def test_a_clip_that_is_not_longer_is_heard_as_without_the_cache(data, tmp_path):
    found, ids = built(data, tmp_path), data.rows["id"].to_pylist()
    for name in ("short", "exact", "click"):
        heard = crop(found[ids.index(name)], PLAIN, np.random.default_rng(0))
        expected = mels_for([sounds()[name]], PLAIN)
        assert heard.whole.dtype == torch.float16 and not heard.longer.any()
        assert torch.allclose(heard.whole.float(), expected.whole, atol=0.04)


def test_a_window_differs_from_that_of_the_waveform_only_at_its_ends(data, tmp_path):
    found, wave = built(data, tmp_path)[data.rows["id"].to_pylist().index("long")], sounds()["long"]
    heard = crop(found, PLAIN, np.random.default_rng(3)).whole[0, 0].float()
    start = np.random.default_rng(3).integers(len(found) - len(heard) + 1)
    window = wave[start * PLAIN.hop : start * PLAIN.hop + PLAIN.n_samples]
    inside = slice(2, -2)  # n_fft // 2 reaches over the edge for two frames
    difference = (heard - mels_for([window], PLAIN).whole[0, 0]).abs()
    assert start > 0 and difference[inside].max() < 0.04 and difference.max() > 1


def test_windows_are_anywhere_in_the_clip_and_roll_turns_them():
    mel = np.arange(40, dtype=np.float16)[:, None].repeat(PLAIN.n_mels, 1)
    rng = np.random.default_rng(0)
    frames = [crop(mel, PLAIN, rng).whole[0, 0, :, 0] for _ in range(200)]
    assert {int(each[0]) for each in frames} == set(range(40 - 26 + 1))
    rolled = crop(mel[:26], PLAIN, rng, roll=True).whole[0, 0, :, 0]
    assert rolled[0] != 0 and sorted(rolled.tolist()) == list(range(26))


def test_a_fused_model_hears_the_same_whole_and_parts(data, tmp_path):
    found, ids, log_mel = built(data, tmp_path, FUSED), data.rows["id"].to_pylist(), front_end(FUSED)
    for name, wave in sounds().items():
        heard = crop(found[ids.index(name)], FUSED, np.random.default_rng(5))
        expected = fused_mels(wave, FUSED, log_mel, np.random.default_rng(5))
        assert torch.equal(heard.longer, expected.longer) and bool(heard.longer) == (name == "long")
        for a, b in ((heard.whole, expected.whole), (heard.parts, expected.parts)):
            assert a.dtype == torch.float16 and torch.allclose(a.float(), b, atol=0.08)


def test_a_transform_of_odd_length_has_as_many_frames_in_the_cache_as_in_the_model(data, tmp_path):
    for model in (replace(PLAIN, n_fft=1023), replace(FUSED, n_fft=1023)):
        found, log_mel = built(data, tmp_path, model), front_end(model)
        for row, id in enumerate(data.rows["id"].to_pylist()):
            if id != "empty":
                heard = crop(found[row], model, np.random.default_rng(5))
                assert heard.whole.shape == mels_for([sounds()[id]], model, log_mel=log_mel).whole.shape


def test_a_fused_model_hears_a_clip_rolled_as_a_whole(data, tmp_path):
    found, ids = built(data, tmp_path, FUSED), data.rows["id"].to_pylist()
    mel = np.array(found[ids.index("long")])
    rng = np.random.default_rng(5)
    rolled = torch.from_numpy(np.roll(mel, rng.integers(len(mel)), axis=0)).float()
    expected = fuse(rolled.__getitem__, len(mel), FUSED, rng)
    heard = crop(mel, FUSED, np.random.default_rng(5), roll=True)
    assert torch.equal(heard.whole, expected.whole.half()) and torch.equal(heard.parts, expected.parts.half())


def test_a_dataset_that_is_there_is_not_made_again_and_other_settings_are(data, tmp_path):
    built(data, tmp_path)
    first = {path: path.stat().st_mtime_ns for path in shard_folders(tmp_path)}
    built(data, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in shard_folders(tmp_path)} == first and len(first) == 2
    built(data, tmp_path, replace(PLAIN, hop=240))
    assert len(shard_folders(tmp_path)) == 4
    about = json.loads((shard_folders(tmp_path)[0] / "about.json").read_text())
    assert about["shard"].endswith(".parquet") and about["sample_rate"] == 48000


def test_a_moved_dataset_is_known_and_a_changed_one_is_not(data, tmp_path):
    rows = pairs.tones(6)
    here, moved = (open_split(pairs.write(tmp_path / name, rows), "train", (), 48000) for name in "ab")
    built(here, tmp_path / "cache")
    Cache(moved, settings(tmp_path / "cache"))
    rows[0]["audio"]["bytes"] = pairs.flac(pairs.sound("buzz", 9, 0.3))
    changed = open_split(pairs.write(tmp_path / "b", rows), "train", (), 48000)
    with pytest.raises(DataError, match="no log-mels of"):
        Cache(changed, settings(tmp_path / "cache"))


SCRIPT = """
import sys, time
from clap import cache, data
from clap.config import TrainConfig, from_dict
usual = cache.decode
cache.decode = lambda *all: time.sleep(0.1) or usual(*all)
cache.build(data.open_split(sys.argv[1], "train", (), 48000), from_dict(TrainConfig, eval(sys.argv[2])))
"""


def files(folder):
    """The whole files of a cache."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.glob("[0-9a-f]*/*")}


def test_it_is_whole_after_a_kill_and_after_two_at_once(tmp_path):
    name = pairs.write(tmp_path / "data", pairs.tones(24), shards=4)
    data, config = open_split(name, "train", (), 48000), settings(tmp_path / "cache")
    built(data, tmp_path / "expected")
    line = [sys.executable, "-c", SCRIPT, name, repr(to_dict(config))]
    with subprocess.Popen(line, env=os.environ | {"PYTHONPATH": str(ROOT)}) as slow:
        wait_for(lambda: files(tmp_path / "cache"), 60)
        slow.kill()
    assert 4 <= len(files(tmp_path / "cache")) < 16
    with ThreadPoolExecutor(2) as both:  # a lock is of an open file, so they see each other as processes do
        list(both.map(lambda _: cache.build(data, config), range(2)))
    assert files(tmp_path / "cache") == files(tmp_path / "expected")
    assert not list((tmp_path / "cache").glob(".*.tmp"))


def test_a_disk_with_too_little_room_is_said_before_anything_is_decoded(data, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match=r"need about 0.0 GB \(64 KB for 10 s\), .* give --cache-dir on a larger disk"):
        built(data, tmp_path)
    assert not shard_folders(tmp_path)


def test_the_room_that_is_needed_is_estimated_well(data, tmp_path, monkeypatch):
    built(data, tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.f16"))
    shards = [*cache.located(data, settings(tmp_path))]
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=round(1.25 * size)))
    cache.check_room(shards, settings(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=round(0.8 * size)))
    with pytest.raises(DataError, match="larger disk"):
        cache.check_room(shards, settings(tmp_path))


def test_a_folder_that_cannot_be_written_is_said(data, tmp_path):
    (first, *_) = cache.located(data, settings(tmp_path)).values()
    first.with_name(f".{first.name}.tmp").write_text("in the way")
    with pytest.raises(DataError, match=r"log-mels cannot be written to .* give another --cache-dir"):
        built(data, tmp_path)
    assert not shard_folders(tmp_path)


def test_clips_that_fail_too_often_end_the_build(tmp_path):
    good = pairs.flac(pairs.sound("buzz", 0, 0.02))
    rows = [pairs.row(f"a/{i}", good if i % 12 else b"", ["A blip."]) for i in range(1, 140)]
    data = open_split(pairs.write(tmp_path / "data", rows), "train", (), 48000)
    with pytest.raises(DataError, match="11 clips do not decode, more than 1% of 139"):
        built(data, tmp_path)
