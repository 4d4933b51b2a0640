"""Embedding takes whatever people have, gives it back in order, and never depends on chance or company."""

import io
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pairs
import pytest
import soundfile
import torch
from conftest import ROOT

from clap.config import ConfigError
from clap.data import DataError, open_split
from clap.embed import embed_files, find, waveforms
from clap.evaluate import embed
from clap.model import CLAP, ModelError

CAPTIONS = ["The sound of a low tone.", "A buzz.", "The sound of a very, very, very high tone and of a buzz."]
FUSED = replace(pairs.SMALL.model, fusion="aff_2d", mel_scale="htk")


@pytest.fixture(scope="module", params=["plain", "fused"])
def model(request):
    torch.manual_seed(0)
    return CLAP.create(FUSED if request.param == "fused" else pairs.SMALL.model, CAPTIONS).eval()


def noise(seconds, seed=0, rate=48000):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(rate * seconds)).astype(np.float32)


def close(a, b, atol=2e-6):
    np.testing.assert_allclose(a, b, atol=atol)


def test_clips_of_any_length_keep_their_order_in_any_batch(model):
    clips = [noise(seconds, seed) for seed, seconds in enumerate((0.1, 1.3, 0.25, 0.6, 0.02, 3))]
    together = model.embed_audio(clips)
    close(together, np.concatenate([model.embed_audio([clip]) for clip in clips]))
    close(together, model.embed_audio(clips, batch_size=2))
    close(together, model.embed_audio(iter(clips), batch_size=5))


@pytest.mark.parametrize("mode", ["auto", "centre", "chunks"])
def test_fixed_modes_repeat_to_the_last_bit(model, mode):
    clip = noise(1.1)
    assert (model.embed_audio(clip, truncation=mode) == model.embed_audio(clip, truncation=mode)).all()


def test_random_crops_are_had_by_name_and_follow_their_generator(model):
    first, same, other = (
        model.embed_audio(noise(1.1), truncation="random", rng=np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert (first == same).all() and (first != other).any()


def test_the_end_of_a_long_clip_is_heard_by_chunks_and_by_fused_models_only(model):
    a, b = noise(1.1), noise(1.1)
    b[-4800:] = 0
    for mode, differs in {"centre": False, "chunks": True, "auto": model.config.fusion != "none"}.items():
        moved = abs(model.embed_audio(a, truncation=mode) - model.embed_audio(b, truncation=mode)).max()
        assert (moved > 1e-6) == differs, mode


def test_tensors_come_out_where_asked_and_go_in_as_well(model):
    clips = [torch.from_numpy(noise(0.3)), torch.from_numpy(noise(0.7, 1))]
    audio, text = model.embed_audio(clips, tensor=True), model.embed_text(CAPTIONS, tensor=True)
    assert isinstance(audio, torch.Tensor) and not audio.requires_grad
    close(audio, model.embed_audio([clip.numpy() for clip in clips]))
    close(model.similarity(audio, text), model.similarity(model.embed_audio(clips), model.embed_text(CAPTIONS)))


def test_texts_of_any_length_keep_their_order(model):
    texts = CAPTIONS[::-1] * 3 + ["a"]
    alone = np.concatenate([model.embed_text(text) for text in texts])
    close(model.embed_text(texts, batch_size=3), alone)
    assert model.embed_text([]).shape == model.embed_audio([]).shape == (0, 16)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_a_long_file_gives_what_its_samples_give(model, tmp_path, kind):
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, np.stack([noise(2), noise(2, 1)], axis=1), 48000, format=kind)
    samples = soundfile.read(path, dtype="float32")[0].T
    for mode in ("auto", "centre", "chunks"):
        close(model.embed_audio([path], truncation=mode), model.embed_audio([samples], truncation=mode), atol=2e-5)


def test_files_at_another_rate_are_resampled_whole(model, tmp_path):
    slow = noise(1, rate=16000)
    soundfile.write(tmp_path / "a.wav", slow, 16000, subtype="FLOAT")
    close(model.embed_audio([tmp_path / "a.wav"]), model.embed_audio([slow], sample_rate=16000))


def test_a_dataset_gives_what_its_clips_give(model, tmp_path):
    rows = pairs.tones(7)
    rows += [pairs.row("long", pairs.flac(noise(1.5)), ["A buzz."])]
    data = open_split(pairs.write(tmp_path, rows, group=3), "train", (), 48000)
    sounds = [soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")[0] for row in rows]
    close(model.embed_audio(data), model.embed_audio(sounds))
    assert (embed(model, data) == model.embed_audio(data)).all()


def test_filling_is_the_models(tmp_path):
    torch.manual_seed(0)
    model, clip = CLAP.create(replace(pairs.SMALL.model, filling="pad"), CAPTIONS).eval(), noise(0.1)
    data = open_split(pairs.write(tmp_path, [pairs.row("a", pairs.flac(clip), ["A"])]), "train", (), 48000)
    padded = np.pad(clip, (0, 12000 - len(clip)))
    close(model.embed_audio(clip), model.embed_audio(padded))
    close(model.embed_audio(data), model.embed_audio(padded), atol=1e-2)  # of which FLAC keeps 16 bits


def test_bfloat16_is_near_and_still_float32_outside(model):
    half, full = (model.embed_audio([noise(0.5), noise(1.2)], precision=name) for name in ("bf16", "fp32"))
    assert half.dtype == np.float32 and (half != full).any() and (half * full).sum(1).min() > 0.999
    with pytest.raises(ConfigError, match="'fp16': use fp32 or bf16"):
        model.embed_text("a", precision="fp16")


def test_embedding_moves_no_global_random_state(model):
    np.random.seed(1)
    torch.manual_seed(1)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    model.embed_audio([noise(1)])
    assert before == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_a_broken_clip_is_named_and_nothing_hangs(model, tmp_path):
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"b\.wav does not decode"):
        model.embed_audio([noise(0.1)] * 40 + [tmp_path / "b.wav"] + [noise(0.1)] * 40)


def test_folders_are_embedded_into_one_file(model, tmp_path):
    for name in ("b.wav", "sub/a.FLAC", "notes.txt"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x") if name.endswith("txt") else soundfile.write(path, noise(0.3), 48000)
    sounds = find([tmp_path / "in"])
    (tmp_path / "in/broken.wav").write_text("no sound")
    assert embed_files(model, [tmp_path / "in"], tmp_path / "out/e.npz") == 2
    found = np.load(tmp_path / "out/e.npz")
    assert found["files"].tolist() == [str(path) for path in sounds]
    close(found["embeddings"], model.embed_audio(sounds))
    with pytest.raises(DataError, match=r"gone\.wav: no such file"):
        embed_files(model, [tmp_path / "in", tmp_path / "gone.wav"], tmp_path / "out/f.npz")
    with pytest.raises(DataError, match="not one"):
        embed_files(model, [tmp_path / "in/broken.wav"], tmp_path / "out/f.npz")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["e.npz"]
    with pytest.raises(DataError, match="no sounds in"):
        find([tmp_path / "out"])


@pytest.mark.parametrize("place", ["nothing/there/at/all", "a folder"])
def test_what_is_no_model_is_refused(tmp_path, place):
    (tmp_path / "a folder").mkdir()
    with pytest.raises(ModelError, match=r"no model at|holds no checkpoint"):
        CLAP.from_pretrained(tmp_path / place)


def test_importing_reaches_for_no_network():
    code = (
        "import socket, sys; sys.path.insert(0, sys.argv[1])\n"
        "def no(*a, **k): raise SystemExit('network')\n"
        "socket.socket.connect = socket.getaddrinfo = no\n"
        "import clap.model, clap.convert, clap.export, clap.laion, clap.embed"
    )
    assert subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True).returncode == 0


def test_a_dataset_of_another_rate_is_refused(model, tmp_path):
    rows = [pairs.row("a", pairs.flac(noise(0.5, rate=16000), 16000), ["A"])]
    data = open_split(pairs.write(tmp_path, rows), "train", (), 16000)
    with pytest.raises(DataError, match="opened at 16000 Hz, the model expects 48000"):
        model.embed_audio(data)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_nothing_is_refused(model, size):
    with pytest.raises(ConfigError, match=f"batch_size is {size}: it must be 1 or more"):
        model.embed_audio([noise(0.1)], batch_size=size)
    with pytest.raises(ConfigError, match="batch_size"):
        model.embed_text(CAPTIONS, batch_size=size)


@pytest.mark.parametrize("kind", ["int32", "uint8", "bool", "complex64"])
def test_numbers_of_no_known_scale_are_refused(model, kind):
    with pytest.raises(DataError, match=f"clip 1 is of {kind}: give floats"):
        model.embed_audio([noise(0.1), np.ones(4800, kind)])


def test_an_array_of_paths_is_a_list_of_clips(model, tmp_path):
    names = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for seed, name in enumerate(names):
        soundfile.write(name, noise(0.3, seed), 48000)
    close(model.embed_audio(np.array(list(map(str, names)))), model.embed_audio(names))
    close(model.embed_audio(np.array(names, dtype=object)), model.embed_audio(names))


def test_a_long_file_that_must_be_decoded_whole_leaves_only_its_window_in_memory(tmp_path):
    for name, rate in (("slow.wav", 16000), ("a.ogg", 48000)):
        soundfile.write(tmp_path / name, noise(2, rate=rate), rate)
    for item in (tmp_path / "slow.wav", tmp_path / "a.ogg", noise(2)):
        (heard,) = waveforms([item], 48000, 48000, 12000, "centre")
        (whole,) = waveforms([item], 48000, 48000, 12000, "chunks")
        assert heard.base is None and (heard == whole[(len(whole) - 12000) // 2 :][:12000]).all()


def test_sounds_of_kinds_that_do_not_open_are_left_out_aloud(tmp_path, caplog):
    for name in ("a.wav", "b.M4A", "c.webm", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert find([tmp_path]) == [tmp_path / "a.wav"]
    assert f"{tmp_path}: 2 files left out (.m4a, .webm)" in caplog.text
