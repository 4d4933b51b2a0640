"""Resample: any recording becomes 48 kHz mono 16-bit FLAC with true facts."""

import errno
import gc
import hashlib
import io
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from conftest import ROOT, tone, write

from pipelines.clip import Clip, Rejected
from pipelines.decode import open_audio
from pipelines.disk import BuildError
from pipelines.fingerprint import fingerprint
from pipelines.local import to_location
from pipelines.resample import Resample, resample


def taken(path: Path, tmp_path: Path, **fields: float) -> tuple[Clip, np.ndarray]:
    """The clip of a file and its FLAC decoded, int16 (frames,)."""
    with (tmp_path / "part.pack").open("wb") as pack:
        clip = resample(Clip("x/1", "x", location=to_location(path), **fields), pack, tmp_path / "raw.pack")
    sound = io.BytesIO((tmp_path / "part.pack").read_bytes()[clip.audio_offset :])
    with soundfile.SoundFile(sound) as flac:
        assert (flac.format, flac.subtype, flac.samplerate, flac.channels) == ("FLAC", "PCM_16", 48_000, 1)
        return clip, flac.read(dtype="int16")


def decoded(path: Path, start: float | None = None, end: float | None = None) -> np.ndarray:
    """All blocks of a recording or its section, (frames, channels)."""
    with open_audio(path, start, end) as stream:
        return np.concatenate([np.zeros((0, stream.channels), np.float32), *stream.blocks])


def refused(path: Path, tmp_path: Path, **fields: float) -> str:
    """The reason for which a file is rejected."""
    with pytest.raises(Rejected) as caught:
        taken(path, tmp_path, **fields)
    return caught.value.reason


def pitch(waveform: np.ndarray, rate: int = 48_000) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(spectrum.argmax() * rate / len(waveform))


def libav(path: Path, codec: str, rate: int = 48_000, channels: int = 2, seconds: float = 1) -> Path:
    """440 Hz in a format that libsndfile cannot write."""
    layout = "stereo" if channels == 2 else "mono"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        wave = np.ascontiguousarray(tone(seconds, rate, channels=channels).T)
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(
            format=stream.format, layout=layout, rate=rate, frame_size=stream.frame_size or 1024
        )
        for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(stream.encode(piece))
    return path


@pytest.mark.parametrize("name", ["wav", "flac", "ogg", "mp3", "aiff", "au", "w64", "caf"])
def test_what_libsndfile_reads_comes_out_at_its_pitch_and_length(tmp_path, name):
    clip, waveform = taken(write(tmp_path / f"a.{name}", 1.5, 44_100, channels=2), tmp_path)
    assert abs(clip.duration - 1.5) < 0.06 and abs(len(waveform) / 48_000 - 1.5) < 0.06
    assert abs(pitch(waveform) - 440) < 2
    assert (clip.sample_rate, clip.channels) == (44_100, 2)


@pytest.mark.parametrize(
    ("name", "codec"), [("m4a", "aac"), ("mp4", "aac"), ("webm", "libopus"), ("mkv", "aac"), ("opus", "libopus")]
)
def test_what_libsndfile_cannot_read_comes_out_too(tmp_path, name, codec):
    clip, waveform = taken(libav(tmp_path / f"a.{name}", codec), tmp_path)
    assert abs(len(waveform) / 48_000 - 1) < 0.2
    assert abs(pitch(waveform) - 440) < 2
    assert clip.channels == 2


@pytest.mark.parametrize("name", ["wav", "flac", "mp3"])
def test_reading_block_by_block_gives_the_samples_of_reading_at_once(tmp_path, name):
    wave = 0.3 * np.random.default_rng(0).normal(0, 1, 5 * 22_050).cumsum() / 100
    soundfile.write(tmp_path / f"a.{name}", wave, 22_050)
    blocks = decoded(tmp_path / f"a.{name}")[:, 0]
    assert np.abs(blocks - soundfile.read(tmp_path / f"a.{name}")[0]).max() < 1e-4


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("wave", ["tone", "noise"])  # libav alone loses the last 128 frames of the tone
def test_a_vorbis_file_gives_every_frame_that_libsndfile_finds(tmp_path, wave, channels):
    samples = tone(1.3, 44_100, channels=channels)
    if wave == "noise":
        samples = np.random.default_rng(0).normal(0, 0.1, samples.shape)
    soundfile.write(tmp_path / "a.ogg", samples, 44_100)
    whole = soundfile.read(tmp_path / "a.ogg", always_2d=True)[0]
    blocks = decoded(tmp_path / "a.ogg")
    assert blocks.shape == whole.shape
    assert np.abs(blocks - whole).max() < 1e-5


def test_an_mp3_without_a_length_is_read_to_its_end(tmp_path):
    loud = np.random.default_rng(0).normal(0, 0.2, 2 * 44_100)  # dear frames first: by them the file seems short
    wave = np.concatenate([loud, np.zeros(10 * 44_100)])
    soundfile.write(tmp_path / "a.mp3", wave, 44_100, bitrate_mode="VARIABLE", compression_level=0.2)
    content = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(content[content.index(b"\xff\xfb", content.index(b"Xing")) :])
    assert taken(tmp_path / "a.mp3", tmp_path)[0].duration == pytest.approx(12, abs=0.1)


def test_a_flac_that_does_not_say_how_long_it_is_is_kept(tmp_path):
    path = write(tmp_path / "a.flac", 2)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the total of samples: 36 bits
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert taken(path, tmp_path)[0].duration == 2
    assert taken(path, tmp_path, start=0.5, end=1.75)[0].duration == 1.25


def test_junk_after_an_mp3_costs_nothing(tmp_path):
    path = write(tmp_path / "a.mp3", 4, 44_100)
    path.write_bytes(path.read_bytes() + bytes(5_000) + np.random.default_rng(0).bytes(3_000))
    assert abs(taken(path, tmp_path)[0].duration - 4) < 0.1


def test_a_codec_that_nobody_knows_is_undecodable(tmp_path):
    path = libav(tmp_path / "a.webm", "libopus")
    path.write_bytes(path.read_bytes().replace(b"A_OPUS", b"A_XPUS"))
    assert refused(path, tmp_path) == "undecodable"


def test_an_mp3_without_a_length_is_not_held_to_a_guess(tmp_path):
    path = write(tmp_path / "a.mp3", 20, 44_100)
    content = path.read_bytes()
    start = content.index(b"\xff\xfb", content.index(b"Xing"))  # past the frame that states the length
    path.write_bytes(content[start : (start + len(content)) // 2])
    assert 8 < taken(path, tmp_path)[0].duration < 12


def test_a_48_khz_16_bit_mono_source_keeps_every_sample(tmp_path):
    samples = np.random.default_rng(0).integers(-32768, 32768, 96_001).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 48_000)
    assert np.array_equal(taken(tmp_path / "a.wav", tmp_path)[1], samples)


def test_the_flac_states_the_md5_of_its_samples(tmp_path):
    clip, samples = taken(write(tmp_path / "a.wav", 1.3, 44_100, channels=2), tmp_path)
    assert clip.pcm_md5 == hashlib.md5(samples.tobytes()).hexdigest()


@pytest.mark.parametrize("name", ["wav", "ogg", "m4a"])
def test_bytes_in_a_pack_give_what_the_file_gives(tmp_path, name):
    path = libav(tmp_path / "a.m4a", "aac") if name == "m4a" else write(tmp_path / f"a.{name}")
    clip, samples = taken(path, tmp_path)
    content = path.read_bytes()
    (tmp_path / "raw.pack").write_bytes(b"RIFF before" + content + b"OggS behind")
    packed, same = taken(tmp_path / "gone", tmp_path, raw_offset=11, raw_bytes=len(content))
    assert np.array_equal(same, samples)
    assert replace(packed, location=clip.location, raw_offset=0, raw_bytes=0) == clip


def test_a_pack_that_is_gone_or_too_short_ends_the_build(tmp_path):
    with pytest.raises(BuildError, match=r"raw.pack.*run again"):
        taken(tmp_path / "a.wav", tmp_path, raw_bytes=100)
    (tmp_path / "raw.pack").write_bytes(write(tmp_path / "a.wav").read_bytes())
    with pytest.raises(BuildError, match="shorter than its rows say"):
        taken(tmp_path / "a.wav", tmp_path, raw_offset=100, raw_bytes=(tmp_path / "a.wav").stat().st_size)


@pytest.mark.parametrize("name", ["wav", "mp3"])  # libsndfile, libav
def test_a_file_that_fails_while_it_is_read_is_missing_and_a_pack_ends_the_build(tmp_path, name, monkeypatch):
    path = write(tmp_path / f"a.{name}", 20, 44_100)
    (tmp_path / "raw.pack").write_bytes(path.read_bytes())
    read = os.preadv

    def broken(handle: int, buffers: list[memoryview], place: int) -> int:
        if place:
            raise OSError(errno.EIO, "a bad block")
        return read(handle, buffers, place)

    monkeypatch.setattr(os, "preadv", broken)
    assert refused(path, tmp_path) == "missing-file"
    with pytest.raises(BuildError, match="a bad block"):
        taken(path, tmp_path, raw_bytes=path.stat().st_size)


def test_a_disk_that_is_full_while_a_long_clip_is_encoded_ends_the_build(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", 5, 48_000)
    monkeypatch.setattr("pipelines.resample.SPOOL", 1_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            taken(path, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("name", ["wav", "flac", "ogg", "mp3", "m4a"])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.25, 2.5), (2.0, None), (None, 0.731), (0.731, 0.732)])
def test_a_section_has_exactly_the_frames_of_the_whole(tmp_path, name, start, end):
    path = tmp_path / f"a.{name}"
    if name == "m4a":
        libav(path, "aac", 44_100, seconds=3)
    else:
        soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 3 * 44_100), 44_100)
    last = None if end is None else round(end * 44_100)
    assert np.array_equal(decoded(path, start, end), decoded(path)[round((start or 0) * 44_100) : last])


def test_only_the_section_is_measured_and_encoded(tmp_path):
    samples = np.random.default_rng(0).integers(-1_000, 1_000, 3 * 48_000).astype(np.int16)
    samples[48_000:] *= 4
    soundfile.write(tmp_path / "a.wav", samples, 48_000)
    clip, section = taken(tmp_path / "a.wav", tmp_path, start=0.3, end=0.9)
    assert np.array_equal(section, samples[14_400:43_200])
    assert clip.duration == pytest.approx(0.6)
    assert clip.peak_dbfs == pytest.approx(20 * np.log10(1_000 / 32_768), abs=0.1)


@pytest.mark.parametrize("name", ["wav", "ogg", "mp3"])
def test_a_section_is_kept_as_far_as_the_recording_goes(tmp_path, name):
    path = write(tmp_path / f"a.{name}", 3, 44_100)
    assert taken(path, tmp_path, start=2, end=12)[0].duration == pytest.approx(1, abs=0.06)
    assert refused(path, tmp_path, start=5, end=12) == "empty"
    assert refused(path, tmp_path, start=2, end=1) == "empty"


def test_of_half_a_file_sections_in_that_half_are_kept(tmp_path):
    path = write(tmp_path / "a.wav", 4)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert taken(path, tmp_path, start=0.5, end=1.5)[0].duration == 1
    assert refused(path, tmp_path, start=1.5, end=2.5) == "truncated"
    assert refused(path, tmp_path, start=3, end=4) == "truncated"


def test_stereo_is_mixed_to_the_mean_of_its_channels(tmp_path):
    left = np.random.default_rng(0).integers(-1000, 1000, 48_000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", np.stack([left, 3 * left], 1), 48_000)
    assert np.array_equal(taken(tmp_path / "a.wav", tmp_path)[1], 2 * left)


def test_blocks_leave_no_seam_in_the_resampled_sound(tmp_path):
    import soxr

    wave = np.random.default_rng(0).normal(0, 0.1, 3 * 44_100 + 17).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 44_100, subtype="FLOAT")
    whole = soxr.resample(wave, 44_100, 48_000, quality="HQ")
    waveform = taken(tmp_path / "a.wav", tmp_path)[1]
    assert len(waveform) == len(whole)
    assert np.abs(waveform - whole * 32768).max() < 1


def test_facts_are_those_of_the_source(tmp_path):
    wave = np.zeros((4 * 22_050, 2), np.float32)
    wave[: 2 * 22_050] = tone(2, 22_050, 3_000, 2)  # half silent
    wave[:2205, 0] = 1.0  # 2,205 of 176,400 samples at full scale
    soundfile.write(tmp_path / "a.wav", wave, 22_050, subtype="FLOAT")
    clip, _ = taken(tmp_path / "a.wav", tmp_path)
    assert (clip.duration, clip.sample_rate, clip.channels) == (4.0, 22_050, 2)
    assert clip.peak_dbfs == 0.0
    assert clip.rms_dbfs == pytest.approx(20 * np.log10(np.sqrt(np.square(wave).mean())), abs=1e-3)
    assert clip.silence == pytest.approx(0.5, abs=0.02)
    assert clip.clipping == pytest.approx(2205 / 176_400)


@pytest.mark.parametrize("cutoff", [4_000, 12_000])
def test_bandwidth_is_where_the_spectrum_ends(tmp_path, cutoff):
    spectrum = np.fft.rfft(np.random.default_rng(0).normal(0, 0.1, 2 * 44_100))
    spectrum[2 * cutoff :] = 0  # bins of half a hertz
    soundfile.write(tmp_path / "a.wav", np.fft.irfft(spectrum), 44_100, subtype="FLOAT")
    assert taken(tmp_path / "a.wav", tmp_path)[0].bandwidth_hz == pytest.approx(cutoff, rel=0.03)


def distance(a: bytes, b: bytes) -> float:
    """Share of bits that differ, over the length of both."""
    size = min(len(a), len(b))
    bits = np.bitwise_xor(np.frombuffer(a[:size], np.uint8), np.frombuffer(b[:size], np.uint8))
    return float(np.unpackbits(bits).mean())


def test_a_fingerprint_survives_another_format_rate_and_gain_and_tells_sounds_apart(tmp_path, shared):
    path = shared / "data/librosa/sorohanro_-_solo-trumpet-06.ogg"
    wave, rate = soundfile.read(path)
    soundfile.write(tmp_path / "copy.mp3", 0.5 * wave, rate)
    original, copy = (taken(p, tmp_path)[0].fingerprint for p in (path, tmp_path / "copy.mp3"))
    other = taken(shared / "data/librosa/pibble.ogg", tmp_path)[0].fingerprint
    assert distance(original, copy) < 0.2
    assert distance(original, other) > 0.4


def test_a_clip_shorter_than_a_fingerprint_window_still_has_one():
    assert len(fingerprint(np.ones(10, np.float32))) == 4


def test_a_fingerprint_of_doubles_is_that_of_floats():
    wave = np.random.default_rng(0).normal(0, 0.1, 40_000).astype(np.float32)
    assert fingerprint(wave.astype(np.float64)) == fingerprint(wave) != bytes(len(fingerprint(wave)))


def test_a_start_of_120_seconds_is_the_fingerprint_of_a_longer_clip(tmp_path):
    wave = np.random.default_rng(0).normal(0, 0.1, 122 * 8_000)
    for name, length in {"whole": 122, "start": 120}.items():
        soundfile.write(tmp_path / f"{name}.wav", wave[: length * 8_000], 8_000)
    whole, start = (taken(tmp_path / f"{name}.wav", tmp_path)[0].fingerprint for name in ("whole", "start"))
    assert len(whole) == len(start) and distance(whole, start) < 0.001


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_memory_that_runs_out_behind_the_encoder_leaves_nothing_open(tmp_path, monkeypatch):
    def starved(waveform):
        raise MemoryError

    monkeypatch.setattr("pipelines.resample.fingerprint", starved)
    monkeypatch.setattr("pipelines.resample.PRINT_SECONDS", 1)
    path = write(tmp_path / "a.wav", 3.0)
    with (tmp_path / "a.pack").open("wb") as pack:
        (clip,) = Resample()([Clip("a/1", "a", to_location(path))], pack, tmp_path / "raw")
    gc.collect()  # what is open still would write into a closed file
    assert clip.reason == "decoder-crashed"


@pytest.mark.parametrize("name", ["flac", "wav"])
def test_half_a_file_is_truncated(tmp_path, name):
    path = write(tmp_path / f"a.{name}", 4)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refused(path, tmp_path) == "truncated"


def test_a_video_without_sound_is_not_audio(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, width=32, height=32, pix_fmt="yuv420p")
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    assert refused(tmp_path / "a.mp4", tmp_path) == "not-audio"


@pytest.mark.slow
def test_two_hours_pass_in_the_memory_of_a_short_clip(tmp_path):
    second = (tone(1, 48_000, channels=2) * 32767).astype(np.int16)
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 48_000, 2) as sound:
        for _ in range(7200):
            sound.write(second)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path;"
        "from pipelines.clip import Clip; from pipelines.local import to_location;"
        "from pipelines.resample import resample; clip = Clip('x/1', 'x', location=to_location(Path(sys.argv[2])));"
        "print(resample(clip, open(sys.argv[3], 'wb'), Path()).duration);"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    line = [sys.executable, "-c", code, str(ROOT), str(tmp_path / "long.wav"), str(tmp_path / "part.pack")]
    duration, kilobytes = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    assert float(duration) == 7200
    assert int(kilobytes) < 300_000
