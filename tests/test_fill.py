"""Clips of any length become windows and mels as the original's, and the same ones every time."""

import hashlib
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clap.config import ClapError, ConfigError, ModelConfig
from clap.features import collate, front_end, fuse, fused_mels, mels_for, quantise
from clap.fill import fill, thirds, windows

LENGTHS = {"s1": 48000, "s7": 336000, "s10": 480000, "s10p1": 480001, "s10p480": 480480, "s25": 1200000}
SMALL = ModelConfig(clip_seconds=0.5, fusion="aff_2d", mel_scale="htk")  # 51 frames


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden"
    facts = json.loads((folder / "b_audio_features.json").read_text())
    return facts, np.load(folder / "b_audio_features.npz"), np.load(folder / "b_mel_shrink.npz")


def signal(n):
    """The golden inputs: a noisy sweep of n samples, rounded to 16 bits."""
    t = np.arange(n) / 48000
    noise = 0.05 * np.random.default_rng(1234).standard_normal(n)
    wave = (0.3 * np.sin(2 * np.pi * (200 + 40 * t) * t) + noise).clip(-1, 1)
    return quantise(torch.from_numpy(wave.astype(np.float32))).numpy()


def noise(seconds, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * 48000)).astype(np.float32)


@pytest.mark.parametrize("filling", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("name", ["s1", "s7", "s10"])
def test_fillings_equal_the_original(golden, name, filling):
    filled = fill(signal(LENGTHS[name]), 480000, filling)
    pcm = (filled * 32767).round().astype(np.int16)
    assert hashlib.sha256(pcm.tobytes()).hexdigest() == golden[0][f"{name}.{filling}.rand_trunc"]["sha256_i16"]


@pytest.mark.parametrize("filling", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("name", ["s1", "s7", "s10", "s10p1"])
def test_mels_of_clips_that_are_not_longer_equal_the_original(golden, name, filling):
    mels = mels_for([signal(LENGTHS[name])], ModelConfig(fusion="aff_2d", mel_scale="htk", filling=filling))
    original = torch.from_numpy(golden[1][f"{name}.{filling}.fusion.mel_sub"])  # (4 alike, 101, 16)
    assert not mels.longer and not golden[0][f"{name}.{filling}.fusion"]["longer"] and not len(mels.parts)
    torch.testing.assert_close(mels.whole[0, 0, ::10, ::4], original[0], rtol=0, atol=1e-3)


def test_parts_of_a_longer_clip_equal_the_original(golden):
    config = ModelConfig(fusion="aff_2d", mel_scale="htk")
    mels = mels_for([signal(LENGTHS["s10p480"])], config)  # 1,002 frames: a part can only start at 0, 1 and 0
    original = torch.from_numpy(golden[1]["s10p480.repeatpad.fusion.mel_sub"])
    assert mels.longer and golden[0]["s10p480.repeatpad.fusion"]["longer"]
    torch.testing.assert_close(mels.parts[0, :, ::10, ::4], original[1:], rtol=0, atol=1e-3)


def test_a_longer_clip_is_shrunk_without_antialias_as_the_checkpoints_expect(golden):
    shrunk = {name: torch.from_numpy(golden[2][name]) for name in ("mel", "no_antialias", "default_antialias")}
    ours = fuse(shrunk["mel"].__getitem__, len(shrunk["mel"]), ModelConfig(fusion="aff_2d")).whole[0, 0]
    torch.testing.assert_close(ours, shrunk["no_antialias"], rtol=0, atol=1e-5)
    assert float((ours - shrunk["default_antialias"]).abs().mean()) > 1  # what today's torchvision makes of it


@pytest.mark.parametrize("n_frames", [52, 57, 101, 499, 3001, 100_000])
def test_the_shrunken_whole_is_torchs_bilinear_interpolation_of_all_frames(n_frames):
    mel = torch.from_numpy(np.random.default_rng(0).normal(-40, 20, (n_frames, 64)).astype(np.float32))
    expected = F.interpolate(mel[None, None], (51, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(fuse(mel.__getitem__, n_frames, SMALL).whole, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("seconds", [0.51, 2, 40])
def test_a_fused_model_hears_the_same_whether_all_frames_are_made_or_only_those_it_needs(seconds):
    log_mel, clip = front_end(SMALL), noise(seconds)
    mel = log_mel(torch.from_numpy(clip)[None])[0, 0]
    dense = fuse(mel.__getitem__, len(mel), SMALL)
    assert all(torch.equal(a, b) for a, b in zip(fused_mels(clip, SMALL, log_mel), dense, strict=True))


def test_thirds_are_the_originals_and_a_crop_starts_in_the_middle_of_each(golden):
    facts = golden[0]["s25.fusion_indices_seed0"]
    middles = [first + (last - first + 1) // 2 for first, last in facts["ranges"]]
    assert thirds(facts["total_frames"], facts["chunk_frames"]) == middles
    rng = np.random.default_rng(0)
    drawn = np.array([thirds(facts["total_frames"], facts["chunk_frames"], rng) for _ in range(2000)])
    assert np.all(abs(np.stack([drawn.min(0), drawn.max(0)], axis=1) - facts["ranges"]) <= 5)


@pytest.mark.parametrize(("places", "starts"), [(1, [0, 0, 0]), (2, [0, 1, 0]), (3, [0, 1, 2])])
def test_thirds_that_have_no_place_start_at_the_first(places, starts):
    assert thirds(50 + places, 51) == thirds(50 + places, 51, np.random.default_rng(0)) == starts


def test_centre_and_chunks_are_fixed_and_chunks_cover_the_clip():
    clip = np.arange(25, dtype=np.float32)
    assert windows(clip, 10)[:, 0].tolist() == [7]
    assert windows(clip, 10, "chunks")[:, 0].tolist() == [0, 8, 15]
    assert windows(clip[:20], 10, "chunks")[:, 0].tolist() == [0, 10]
    assert windows(clip[:10], 10, "chunks")[:, 0].tolist() == [0]


def test_random_windows_start_anywhere_in_the_clip_and_follow_the_generator():
    clip, rng = np.arange(13), np.random.default_rng(0)
    assert {int(windows(clip, 10, "random", rng=rng)[0, 0]) for _ in range(100)} == {0, 1, 2, 3}
    again = (windows(clip, 10, "random", rng=np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(*again)


@pytest.mark.parametrize("mode", ["centre", "random", "chunks"])
def test_a_short_clip_is_filled_whatever_the_mode(mode):
    assert windows(np.array([1, 2, 3]), 8, mode).tolist() == [[1, 2, 3, 1, 2, 3, 0, 0]]


def test_short_clips_bring_one_mel_and_longer_ones_three_more():
    mels = mels_for([noise(0.2), noise(1.7), noise(0.5), noise(3)], SMALL)
    assert mels.whole.shape == (4, 1, 51, 64) and mels.parts.shape == (2, 3, 51, 64)
    assert mels.longer.tolist() == [False, True, False, True]


def test_crops_of_a_longer_clip_are_cut_from_the_mel_of_the_whole():
    clip = noise(2)
    mel = mels_for([clip], ModelConfig(clip_seconds=2.0, mel_scale="htk")).whole[0, 0]  # (201, 64)
    parts = mels_for([clip], SMALL).parts[0]
    for part, start in zip(parts, thirds(201, 51), strict=True):
        assert torch.equal(part, mel[start : start + 51])


def test_fixed_modes_repeat_and_the_papers_random_one_follows_its_generator():
    clip = noise(2)
    fixed = mels_for([clip], SMALL), mels_for([clip], SMALL, "fixed-thirds")
    assert all(torch.equal(a, b) for a, b in zip(*fixed, strict=True))
    drawn = [mels_for([clip], SMALL, "random", np.random.default_rng(seed)).parts for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_a_fused_model_can_hear_the_centre_or_chunks_as_a_plain_one():
    clip = noise(1.2)
    centre, chunks = (mels_for([clip], SMALL, mode) for mode in ("centre", "chunks"))
    assert torch.equal(centre.whole, mels_for([clip[16800:40800]], SMALL).whole)
    assert len(chunks.whole) == 3 and not chunks.longer.any() and not len(chunks.parts)


def test_int16_and_float_clips_mix_and_agree():
    pcm = (noise(1) * 32767).astype(np.int16)
    mels = mels_for([pcm, pcm / np.float32(32768)], SMALL)
    assert torch.equal(mels.whole[0], mels.whole[1]) and torch.equal(mels.parts[0], mels.parts[1])


def test_batches_join_in_order():
    clips = [noise(seconds, seed=i) for i, seconds in enumerate((1, 0.3, 2))]
    joined = collate([mels_for([clip], SMALL) for clip in clips])
    assert all(torch.equal(a, b) for a, b in zip(joined, mels_for(clips, SMALL), strict=True))


def test_what_cannot_be_filled_or_cut_is_named():
    with pytest.raises(ConfigError, match="'loop': use repeatpad or repeat or pad"):
        fill(noise(0.1), 24000, "loop")
    with pytest.raises(ConfigError, match="'start': use auto or centre"):
        mels_for([noise(1)], SMALL, "start")
    with pytest.raises(ConfigError, match="the model is not fused: use centre"):
        mels_for([noise(1)], ModelConfig(clip_seconds=0.5), "fixed-thirds")
    with pytest.raises(ClapError, match="empty clip"):
        fill(noise(0), 24000)
