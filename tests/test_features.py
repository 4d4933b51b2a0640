"""The front end gives the original's numbers, and its masks stay where they belong."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clap.config import AUDIO_MODELS, ModelConfig
from clap.features import ROWS, LogMel, SizeError, SpecAugment, alone, front_end, mels_for, quantise

GOLDEN = Path(__file__).resolve().parents[1].parent / "shared" / "golden" / "a_frontend.npz"
KEYS = {"slaney": "logmel_torchlibrosa", "htk": "get_mel"}


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.exists():
        pytest.skip("no golden values of the original front end (shared/golden/a_frontend.npz)")
    return {name: torch.from_numpy(value) for name, value in np.load(GOLDEN).items()}


def both_mels(golden, clip, scale):
    """Ours and the original's (frames, mels); the original scaled its int16 clips by 1/32767."""
    waveform = golden[f"{clip}.int16"].float()[None] / 32767
    return LogMel(scale=scale)(waveform)[0, 0], golden[f"{clip}.{KEYS[scale]}"]


@pytest.mark.parametrize("scale", KEYS)
@pytest.mark.parametrize("clip", ["noise", "click", "esc10"])
def test_mel_equals_the_original_to_a_thousandth_of_a_decibel(golden, clip, scale):
    ours, original = both_mels(golden, clip, scale)
    heard = original > -80
    torch.testing.assert_close(ours[heard], original[heard], rtol=0, atol=1e-3)


@pytest.mark.parametrize("scale", KEYS)
def test_mel_of_a_sweep_equals_the_original_up_to_float32_rounding_of_its_peak(golden, scale):
    # Far from the sweep both are as far from a float64 computation as from each other: 0.02 dB at -80 dB.
    ours, original = (10 ** (mel / 20) for mel in both_mels(golden, "sweep", scale))
    thousandth_db = 10 ** (0.001 / 20) - 1
    torch.testing.assert_close(ours, original, rtol=thousandth_db, atol=1e-7 * float(original.max()))


@pytest.mark.parametrize("scale", KEYS)
def test_silence_is_minus_100_db(golden, scale):
    ours, original = both_mels(golden, "silence", scale)
    assert torch.equal(ours, original) and bool((ours == -100).all())


def test_quantise_equals_the_original(golden):
    assert torch.equal(quantise(golden["int16rt.in"]), golden["int16rt.torch_float"])


def test_quantise_lowers_each_sample_of_decoded_16_bit_audio_by_one_step():
    pcm = torch.arange(-32768, 32768)
    steps = (quantise(pcm / 32768) * 32767).round().long()
    assert torch.equal(steps, pcm - pcm.sign())


def test_int16_and_float_waveforms_give_the_same_mel():
    pcm = torch.randint(-20000, 20000, (2, 4800), dtype=torch.int16)
    assert torch.equal(LogMel()(pcm), LogMel()(pcm.float() / 32768))


def test_five_seconds_are_501_frames_of_64_mels():
    assert LogMel()(torch.zeros(2, 240000)).shape == (2, 1, 501, 64)


def test_mel_is_computed_in_float32_under_autocast():
    waveform = torch.randn(1, 9600)
    with torch.autocast("cpu", torch.bfloat16):
        mel = LogMel()(waveform)
    assert torch.equal(mel, LogMel()(waveform))


def test_front_end_adds_nothing_to_a_checkpoint():
    assert LogMel().state_dict() == {}


def test_a_clip_shorter_than_half_a_window_is_refused_with_its_length():
    with pytest.raises(SizeError, match="512 samples"):
        LogMel()(torch.zeros(1, 512))
    assert LogMel()(torch.zeros(1, 513)).shape == (1, 1, 2, 64)


def test_a_window_shorter_than_the_transform_is_centred_in_it():
    waveform = torch.randn(1, 9600)
    spectrum = torch.stft(waveform, 2048, 480, 1200, torch.hann_window(1200), pad_mode="reflect", return_complex=True)
    front = LogMel(n_fft=2048, win=1200)
    mel = 10 * (front.filterbank @ spectrum.abs().square()).clamp(min=1e-10).log10()
    torch.testing.assert_close(front(waveform)[0, 0], mel[0].T, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rate", [16000, 32000, 44100, 48000])
def test_the_blogs_25_ms_windows_every_10_ms_fit_every_rate(rate):
    front = LogMel(rate, n_fft=2048, win=round(0.025 * rate), hop=rate // 100, fmax=min(14000, rate / 2))
    tone = 0.5 * torch.sin(2 * torch.pi * 1000 * torch.arange(rate) / rate)
    mel = front(tone[None])[0, 0]
    assert mel.shape == (101, 64)
    loudest = int(mel[50].argmax())
    assert front.filterbank[loudest].argmax().item() * rate / 2048 == pytest.approx(1000, rel=0.05)


@pytest.mark.parametrize("name", AUDIO_MODELS)
def test_front_ends_of_the_papers_models_have_their_windows_steps_and_bands(name):
    config = ModelConfig(**AUDIO_MODELS[name])
    front = front_end(config)
    heard = front.filterbank.any(dim=0).nonzero()[:, 0] * config.sample_rate / config.n_fft
    assert front.window.count_nonzero() == (1535 if "1536" in name else 1023)  # Hann's first value is 0
    assert config.fmin < heard.min() < 100 and 0 < config.fmax - heard.max() < 50
    assert front(torch.zeros(1, config.n_samples)).shape == (1, 1, 2667 if "20s" in name else 1001, 64)


def test_int16_quantising_is_an_option_of_the_front_end():
    quiet = 1e-4 * torch.randn(2, 9600)
    plain, coarse = LogMel()(quiet), LogMel(int16_quantize=True)(quiet)
    assert torch.equal(coarse, LogMel()(quantise(quiet))) and float((plain - coarse).abs().max()) > 0.1


@pytest.mark.parametrize(("settings", "complaint"), [({"win": 2048}, "n_fft 1024 must hold"), ({"fmax": 9000}, "9000")])
def test_sizes_that_do_not_fit_together_are_refused(settings, complaint):
    with pytest.raises(SizeError, match=complaint):
        LogMel(sample_rate=16000, **{"fmax": 8000, **settings})


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="'bark'"):
        LogMel(scale="bark")


def longest_runs(hit):
    """The longest run of true values in each row of (batch, size)."""
    runs = torch.zeros(len(hit), dtype=torch.long)
    longest = runs.clone()
    for column in hit.T:
        runs = (runs + 1) * column
        longest = torch.maximum(longest, runs)
    return longest


def test_spec_augment_leaves_evaluation_alone():
    mel = torch.randn(2, 1, 501, 64)
    assert torch.equal(SpecAugment().eval()(alone(mel)).whole, mel)


def test_spec_augment_masks_stripes_within_their_widths():
    masked = SpecAugment(time_masks=1, freq_masks=1)(alone(torch.ones(200, 1, 501, 64))).whole[:, 0] == 0
    time, freq = longest_runs(masked.all(dim=2)), longest_runs(masked.all(dim=1))
    assert 50 < int(time.max()) < 64 and int(freq.max()) == 7
    assert torch.equal(masked, masked.all(dim=2, keepdim=True) | masked.all(dim=1, keepdim=True))


def test_spec_augment_draws_other_stripes_for_each_clip():
    masked = SpecAugment()(alone(torch.ones(8, 1, 501, 64))).whole == 0
    assert len({row.numpy().tobytes() for row in masked}) == 8


def test_spec_augment_keeps_at_least_a_frame_of_a_clip_shorter_than_its_stripes():
    masked = SpecAugment(time_masks=1, freq_masks=0)(alone(torch.ones(100, 1, 10, 64))).whole
    assert bool(masked.any(dim=2).all())


def test_spec_augment_repeats_under_a_seed():
    mel = torch.randn(4, 1, 501, 64)
    torch.manual_seed(7)
    first, second = SpecAugment()(alone(mel)).whole, SpecAugment()(alone(mel)).whole
    torch.manual_seed(7)
    assert torch.equal(SpecAugment()(alone(mel)).whole, first) and not torch.equal(first, second)


@pytest.mark.parametrize("n_fft", [1024, 1023])
def test_a_long_spectrum_is_made_in_blocks_and_is_the_same(monkeypatch, n_fft):
    wave, sizes, transform = torch.rand(2, 48000 * 3 + 7), [], torch.fft.rfft
    log_mel = LogMel(n_fft=n_fft)
    whole = log_mel(wave)
    monkeypatch.setattr("clap.features.CPU_FRAMES", 64)
    monkeypatch.setattr("torch.fft.rfft", lambda windows: sizes.append(windows.shape[:2]) or transform(windows))
    torch.testing.assert_close(log_mel(wave), whole, rtol=0, atol=5e-6)
    assert len(sizes) == 10 and max(sizes) == (1, 64)


def test_chunks_of_a_long_clip_are_never_all_in_memory():
    config, seen = ModelConfig(clip_seconds=0.1), []
    log_mel = front_end(config)
    log_mel.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    mels = mels_for([np.ones(4800 * (ROWS + 3), np.float32)], config, "chunks", log_mel=log_mel)
    assert len(mels.whole) == ROWS + 3 and seen == [ROWS, 3]
