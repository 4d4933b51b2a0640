"""Models of others under the same evaluation: from a few lines of code, from transformers, or not at all."""

from dataclasses import asdict, dataclass, replace

import numpy as np
import pairs
import pytest
import soundfile
import torch
from test_convert import CAPTIONS

from clap import paper, systems
from clap.config import ConfigError, ModelConfig
from clap.data import open_split
from clap.evaluate import classify, retrieval, zero_shot
from clap.model import CLAP, ModelError
from clap.systems import Foreign, ForeignError, dataset_rate, digest, open_model, scale
from clap.text import train_tokenizer

TONES = '''"""Tells tones apart by the highest of three bands, at a rate of its own."""
import numpy as np

BANDS = {"low tone": (0, 1000), "high tone": (4000, 7900), "buzz": (1000, 4000)}


class Tones:
    sample_rate, seconds, logit_scale = 16_000, 0.25, 20.0

    def embed_audio(self, clips):
        return np.stack([self.loudness(clip) for clip in clips])

    def loudness(self, clip):
        assert clip.dtype == np.float32 and clip.ndim == 1 and 0 < len(clip) <= 4000
        power, hertz = np.abs(np.fft.rfft(clip)) ** 2, np.fft.rfftfreq(len(clip), 1 / self.sample_rate)
        low, high, middle = (power[(hertz >= a) & (hertz < b)].mean() for a, b in BANDS.values())
        return [low, high, 3 * middle]

    def embed_text(self, texts):
        return [[name in text for name in BANDS] for text in texts]


def load(device):
    return Tones()
'''
THEIRS = """import torch
from transformers import ClapModel, ClapProcessor


class Theirs:
    sample_rate, seconds, digest = 48_000, 10.0, "theirs"

    def __init__(self, device):
        self.model = ClapModel.from_pretrained(FOLDER).to(device).eval()
        self.processor = ClapProcessor.from_pretrained(FOLDER)

    @torch.no_grad()
    def embed_audio(self, clips):
        batch = self.processor(audio=list(clips), sampling_rate=48_000, return_tensors="pt")
        return self.model.get_audio_features(batch["input_features"]).pooler_output

    @torch.no_grad()
    def embed_text(self, texts):
        batch = self.processor(text=list(texts), padding=True, return_tensors="pt")
        return self.model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pairs.write(tmp_path_factory.mktemp("tones"), pairs.tones(12), split="test")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module of a name of its own and return that name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(code):
        name = f"m{abs(hash((str(tmp_path), code)))}"
        (tmp_path / f"{name}.py").write_text(code)
        return name

    return write


@pytest.fixture
def tones(module):
    return open_model(f"{module(TONES)}:load")


def test_a_system_of_a_few_lines_is_evaluated_as_ours_are(tones, data, tmp_path):
    scores = zero_shot(tones, data)
    assert (scores["accuracy"], scores["n"]) == (1.0, 12)
    found = retrieval(tones, data)
    assert found["text_to_audio"]["n"] == 12 and found["text_to_audio"]["R@10"] > 0.5
    soundfile.write(tmp_path / "a.wav", np.stack([pairs.sound("high_tone", 1, 2)] * 2, 1), 44_100)
    (shares,) = classify(tones, [tmp_path / "a.wav"], ["low_tone", "high_tone"], "{}")
    assert next(iter(shares)) == "high_tone" and scale(tones) == 20 and dataset_rate(tones) == 48_000


def test_a_third_party_gets_the_paper_too_and_keeps_nothing_without_a_digest(tones, tmp_path):
    pairs.write(tmp_path / "esc50", pairs.tones(12))
    got = paper.measure(tones, tmp_path, tmp_path / "out", name="tones")["corpora"]["esc50"]
    assert got["scores"]["accuracy"] == 1.0 and got["intervals"]["accuracy"] == [1.0, 1.0]
    assert not (tmp_path / "out/embeddings").exists() and digest(tones) is None


class Levels:
    """Embeds a clip as the number it is made of."""

    sample_rate, seconds = 1000, 1.0

    def embed_audio(self, clips):
        self.seen = [len(clip) for clip in clips]
        return np.array([[1.0, clip.mean()] for clip in clips])

    def embed_text(self, texts):
        return np.ones((len(texts), 2))


def test_long_clips_come_cut_the_same_way_every_time_unless_asked_for_at_random():
    steps = np.repeat(np.arange(5.0), 1000).astype(np.float32) / 10
    encoder = Levels()
    system = Foreign("levels", encoder)

    def level(mode, seed=None):
        a, b = system.embed_audio([steps], 1000, truncation=mode, rng=seed and np.random.default_rng(seed))[0]
        return b / a

    assert level("auto") == level("centre") == pytest.approx(0.2) and encoder.seen == [1000]
    assert 0.15 < level("chunks") < 0.2 and encoder.seen == [1000] * 5
    assert level("random", 1) == level("random", 1) != level("random", 2)
    with pytest.raises(ConfigError, match="truncation is 'fixed-thirds'"):
        level("fixed-thirds")
    system.embed_audio([steps[:300]], 1000)
    assert encoder.seen == [300]  # short ones are not filled


def test_embeddings_are_normalised_and_of_any_number_of_clips():
    system = Foreign("levels", Levels())
    found = system.embed_audio(
        [np.full(100, level, np.float32) for level in np.linspace(0.1, 1, 7)], 1000, batch_size=3
    )
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    assert found.dtype == np.float32 and found.shape == (7, 2) and np.argsort(found[:, 1]).tolist() == list(range(7))
    assert len(system.embed_audio([])) == 0 and system.embed_text("one").shape == (1, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A ClapModel of transformers with random weights, saved by transformers."""
    from transformers import AutoTokenizer, ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor

    torch.manual_seed(0)
    audio = {"patch_embeds_hidden_size": 8, "hidden_size": 64, "depths": [2] * 4, "num_attention_heads": [1, 2, 4, 8]}
    words = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    words |= {"intermediate_size": 64, "max_position_embeddings": 80}
    folder = tmp_path_factory.mktemp("transformers")
    ClapModel(ClapConfig(audio_config=audio, text_config=words, projection_dim=16)).save_pretrained(folder)
    known = [*CAPTIONS, "The sound of a low tone high buzz.", "This is"]  # a word not known is read as padding by ours
    train_tokenizer(known, 100).save_pretrained(folder)
    mels = {"feature_size": 64, "sampling_rate": 48_000, "hop_length": 480, "max_length_s": 10, "padding": "repeatpad"}
    mels |= {"fft_window_size": 1024, "frequency_min": 50, "frequency_max": 14_000, "truncation": "rand_trunc"}
    ClapProcessor(ClapFeatureExtractor(**mels), AutoTokenizer.from_pretrained(folder)).save_pretrained(folder)
    return folder


def test_transformers_own_code_and_ours_on_its_folder_give_the_same_evaluation(folder, module, tmp_path):
    data = pairs.write(tmp_path / "data", pairs.tones(6), split="test")
    ours, theirs = open_model(folder), open_model(f"{module(THEIRS.replace('FOLDER', repr(str(folder))))}:Theirs")
    assert isinstance(ours, CLAP) and dataset_rate(ours) == 48_000
    rows = open_split(data, "test", (), 48_000)
    np.testing.assert_allclose(ours.embed_audio(rows), theirs.embed_audio(rows), atol=1e-4)
    np.testing.assert_allclose(ours.embed_text(CAPTIONS), theirs.embed_text(CAPTIONS), atol=1e-6)
    a, b = (retrieval(each, data) for each in (ours, theirs))
    assert a == b and zero_shot(ours, data)["accuracy"] == zero_shot(theirs, data)["accuracy"]
    assert digest(theirs).endswith(":Theirs:theirs") and len(digest(ours)) == 64


def test_a_digest_names_the_version_weights_settings_and_vocabulary(folder, monkeypatch):
    model = CLAP.from_pretrained(folder)
    first, config = digest(model), model.config
    assert digest(CLAP.from_pretrained(folder)) == first
    monkeypatch.setattr(systems, "VERSION", 2)
    assert digest(model) != first
    monkeypatch.undo()
    model.config = replace(config, filling="pad")
    assert digest(model) != first
    model.config = config
    with torch.no_grad():
        model.log_scale_t += 1e-3
    assert digest(model) != first


def test_a_digest_is_the_same_after_a_release_with_a_new_setting(folder):
    @dataclass(frozen=True)
    class Newer(ModelConfig):
        another: int = 0

    model = CLAP.from_pretrained(folder)
    first, settings = digest(model), asdict(model.config)
    model.config = Newer(**settings)
    assert digest(model) == first
    model.config = Newer(**settings, another=1)
    assert digest(model) != first


@pytest.mark.parametrize("name", ["msclap:2023", "wav2clip"])
def test_a_package_that_is_not_installed_is_asked_for_in_an_environment_of_its_own(name):
    with pytest.raises(ForeignError, match=f"{name.partition(':')[0]} needs its package.* environment of its own"):
        open_model(name)


@pytest.mark.parametrize(
    ("code", "function", "message"),
    [
        ("import nowhere_at_all", "load", "does not import .*nowhere_at_all"),
        ("", "load", "has no load"),
        ("load = lambda device: 3", "load", "returned a int without sample_rate, embed_audio, embed_text"),
    ],
)
def test_a_third_party_that_is_not_as_it_should_be_is_told_what_it_lacks(module, code, function, message):
    with pytest.raises(ForeignError, match=message):
        open_model(f"{module(code)}:{function}")


def test_an_answer_of_another_shape_is_refused_and_other_names_are_models():
    class Wrong(Levels):
        def embed_text(self, texts):
            return np.ones(3)

    with pytest.raises(ForeignError, match=r"wrong gave embeddings of shape \(3,\) for 1 items: want \(1, dim\)"):
        Foreign("wrong", Wrong()).embed_text(["a"])
    with pytest.raises(ModelError, match="no model at a:b/c"):
        open_model("a:b/c")
