"""Published weights give the original's embeddings, whatever the layout of their file; a wrong file is named."""

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from hub import serve
from safetensors.torch import load_file, save_file
from test_htsat import HTSAT, fill, golden_mel, golden_mels, load_golden

from clap import export
from clap.config import AUDIO_MODELS, ConfigError, ModelConfig
from clap.convert import UNUSED, fusion_of, init_audio, our_names, recognise
from clap.features import Mels, front_end
from clap.fusion import stack
from clap.model import CLAP, ModelError, audio_tower
from clap.text import train_tokenizer

CAPTIONS = ["A dog barks.", "Rain falls on a tin roof.", "An engine idles"]
SMALL = ModelConfig(htsat_width=8, htsat_depths=(2, 2, 2, 2), htsat_heads=(1, 2, 4, 8), int16_quantize=True, dim=16)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CAPTIONS, 100).save_pretrained(folder)
    return folder


def roberta(types=1, width=64):
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

    sizes = {
        "vocab_size": 100,
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": width // 64,
        "intermediate_size": 32,
        "max_position_embeddings": 80,
        "type_vocab_size": types,
    }
    torch.manual_seed(1)
    return BertModel(BertConfig(**sizes)) if types == 2 else RobertaModel(RobertaConfig(**sizes, layer_norm_eps=1e-5))


def laion_state(golden=None, text=None):
    """A state dict under LAION's names: the original's own small HTSAT with all its tables and heads, our heads."""
    text, generator = text or roberta(), torch.Generator().manual_seed(2)
    golden = golden if golden is not None else load_golden("d_htsat_small.safetensors")
    prefix = "sd.None."
    state = {f"audio_branch.{k.removeprefix(prefix)}": v for k, v in golden.items() if k.startswith(prefix)}
    state |= {f"text_branch.{k}": v for k, v in text.state_dict().items()}
    state["audio_branch.logmel_extractor.melW"] = front_end(ModelConfig()).filterbank.T
    state["audio_branch.spectrogram_extractor.stft.conv_real.weight"] = torch.ones(513, 1, 1024)
    state["text_branch.embeddings.position_ids"] = torch.arange(80)[None]
    for head, into in (("audio_projection.", 64), ("text_projection.", 64)):
        for layer, width in (("0", into), ("2", 16)):
            state[f"{head}{layer}.weight"] = torch.randn(16, width, generator=generator) / 4
            state[f"{head}{layer}.bias"] = torch.randn(16, generator=generator) / 4
    for side in ("audio", "text"):
        for layer in ("0", "3"):
            state[f"{side}_transform.sequential.{layer}.weight"] = torch.randn(16, 16, generator=generator)
            state[f"{side}_transform.sequential.{layer}.bias"] = torch.randn(16, generator=generator)
    state["logit_scale_a"], state["logit_scale_t"] = torch.tensor(2.5), torch.tensor(3.5)
    return state


def training_file(path, state):
    """A checkpoint as LAION's trainer writes it: replicas' prefix, an optimiser, and scalars of numpy."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    extra = {"epoch": np.int64(45), "best": np.float64(0.5), "curve": np.arange(3.0), "optimizer": optimizer}
    extra["optimizer"] = optimizer.state_dict()
    torch.save({"name": "run", "state_dict": {f"module.{k}": v for k, v in state.items()}, **extra}, path)
    return path


# ---- LAION-CLAP


@pytest.mark.parametrize("layout", ["module. and state_dict", "bare", "before zip"])
@torch.no_grad()
def test_a_laion_checkpoint_of_any_layout_gives_the_originals_embedding(tokenizer, tmp_path, layout):
    path, golden = tmp_path / "a.pt", load_golden("d_htsat_small.safetensors")
    if layout == "bare":
        torch.save(laion_state(golden), path)
    elif layout == "before zip":
        scalars = {"epoch": np.int64(3), "loss": np.float32(0.5)}
        whole = {"state_dict": laion_state(golden), **scalars}
        torch.save(whole, path, _use_new_zipfile_serialization=False)
    else:
        training_file(path, laion_state(golden))
    model = CLAP.from_pretrained(path, tokenizer=tokenizer)
    torch.testing.assert_close(model.audio(golden_mel()), golden["None.longer_none.embedding"], rtol=0, atol=5e-6)
    assert model.config == replace(SMALL, transforms=True) and not model.training
    assert (model.log_scale_a, model.log_scale_t) == (2.5, 3.5)
    ids = torch.tensor([[0, 7, 8, 2]])
    text = roberta().eval()(ids, attention_mask=torch.ones_like(ids)).pooler_output
    torch.testing.assert_close(model.text(ids, torch.ones_like(ids)), text)
    model.save_pretrained(tmp_path / "imported")
    again = CLAP.from_pretrained(tmp_path / "imported")
    assert again.config == model.config and (again.embed_text(CAPTIONS) == model.embed_text(CAPTIONS)).all()


@pytest.mark.parametrize("kind", ["unfused", "fused"])
def test_every_key_of_the_published_models_is_one_of_ours_or_left_out_on_purpose(shared, kind):
    table = json.loads((shared / f"golden/g_key_table_{kind}.json").read_text())
    with torch.device("meta"):
        config = ModelConfig(fusion="aff_2d" if kind == "fused" else "none", transforms=True)
        model = CLAP(config, big_roberta(), None)
    kept = our_names(dict.fromkeys(table, torch.empty(0)))
    assert set(kept) == set(model.state_dict())
    left = {name for name in table if UNUSED.search(name)}
    assert len(kept) + len(left) == len(table) and not any("transform" in name for name in left)


@pytest.mark.parametrize("kind", ["unfused", "fused"])
def test_transformers_names_are_those_that_the_originals_have_there(shared, kind):
    table = json.loads((shared / f"golden/g_key_table_{kind}.json").read_text())
    for laion, theirs in table.items():
        if theirs and not UNUSED.search(laion):
            (ours,) = our_names({laion: torch.zeros(3, 1)})
            there = export.split_qkv({export.their_name(ours): torch.zeros(3, 1)})
            assert sorted(there) == sorted(theirs)
            joined = export.join_qkv(there)
            assert [export.our_name(name) for name in joined] == [ours]


def big_roberta():
    from transformers import RobertaConfig, RobertaModel

    return RobertaModel(RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1))


@pytest.mark.parametrize("name", AUDIO_MODELS)
@pytest.mark.parametrize("fusion", ["none", "aff_2d"])
def test_the_audio_models_of_the_paper_are_recognised(name, fusion):
    config = ModelConfig(**AUDIO_MODELS[name], fusion=fusion)
    with torch.device("meta"):
        tower, text = audio_tower(config), roberta()
    state = {f"audio.{k}": v for k, v in tower.state_dict().items()}
    state |= {f"text.encoder.{k}": v for k, v in text.state_dict().items()} | {"audio_projection.2.bias": torch.ones(9)}
    table = {"audio_branch.logmel_extractor.melW": front_end(config).filterbank.T}
    found = recognise(table, state)
    scale = "slaney" if fusion == "none" else "htk"
    assert found == replace(config, dim=9, int16_quantize=True, mel_scale=scale)


@pytest.mark.parametrize(
    "fusion", ["daf_1d", "aff_1d", "iaff_1d", "daf_2d", "aff_2d", "iaff_2d", "channel_map", "none"]
)
@pytest.mark.parametrize("audio", ["htsat", "pann"])
def test_fusions_are_recognised(audio, fusion):
    with torch.device("meta"):
        tower = audio_tower(ModelConfig(audio=audio, fusion=fusion))
    assert fusion_of({f"audio.{name}": v for name, v in tower.state_dict().items()}) == fusion


def test_a_fused_pann_under_laions_names_is_whole(tokenizer, tmp_path):
    config = ModelConfig(audio="pann", pann_widths=(8, 16), fusion="iaff_2d", mel_scale="htk", int16_quantize=True)
    torch.manual_seed(0)
    made, state = audio_tower(config), laion_state()
    state = {k: v for k, v in state.items() if not k.startswith("audio_branch.")}
    state |= {f"audio_branch.{k.removeprefix('blocks.')}": v for k, v in made.state_dict().items()}
    state["audio_branch.fusion_model.global_att2.1.weight"] = torch.ones(1)  # the original's dead branch
    state["audio_branch.fc_audioset.weight"] = torch.ones(527, 16)
    state["audio_projection.0.weight"] = torch.ones(16, 16)
    torch.save(state, tmp_path / "p.pt")
    model = CLAP.from_pretrained(tmp_path / "p.pt", tokenizer=tokenizer)
    assert model.config == replace(config, dim=16, transforms=True)
    assert all(torch.equal(v, made.state_dict()[k]) for k, v in model.audio.state_dict().items())


@torch.no_grad()
def test_bert_and_bart_come_with_the_pooling_they_were_trained_with(tokenizer, tmp_path):
    from transformers import BartConfig, BartModel

    bart = BartModel(
        BartConfig(
            vocab_size=100,
            d_model=64,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=1,
            decoder_attention_heads=1,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            max_position_embeddings=80,
        )
    ).eval()
    ids = torch.tensor([[0, 7, 8, 2] + [1] * 73])
    mask = ids.ne(1).long()
    for tower, pooled in (
        (roberta(types=2).eval(), lambda tower: tower(ids, attention_mask=mask).pooler_output),
        (bart, lambda tower: tower(ids, attention_mask=mask).encoder_last_hidden_state.mean(1)),
    ):
        torch.save(laion_state(text=tower), tmp_path / "t.pt")
        model = CLAP.from_pretrained(tmp_path / "t.pt", tokenizer=tokenizer)
        torch.testing.assert_close(model.text(ids, mask), pooled(tower), rtol=1e-5, atol=1e-5)


# ---- wrong files


class Trap:
    """What a pickle could do to us: run a function as it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_nothing_in_a_checkpoint_is_run(tokenizer, tmp_path):
    torch.save({"state_dict": laion_state(), "trap": Trap(str(tmp_path / "ran"))}, tmp_path / "a.pt")
    CLAP.from_pretrained(tmp_path / "a.pt", tokenizer=tokenizer)
    assert not (tmp_path / "ran").exists()


def test_missing_unknown_and_misshapen_weights_are_named(tokenizer, tmp_path):
    state = laion_state()
    del state["audio_branch.norm.weight"], state["text_branch.pooler.dense.bias"]
    state["audio_branch.extra.weight"] = torch.ones(1)
    state["text_projection.0.bias"] = torch.ones(7)
    torch.save(state, tmp_path / "a.pt")
    said = r"lacks audio.norm.weight, text.encoder.pooler.dense.bias; has no place for audio.extra.weight; has other "
    with pytest.raises(ModelError, match=said + r"shapes in text_projection.0.bias \(7,\) not \(16,\)"):
        CLAP.from_pretrained(tmp_path / "a.pt", tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            {"a.weight": torch.ones(1), "b.weight": torch.ones(1)},
            "is no checkpoint of LAION-CLAP: it holds a.weight, b",
        ),
        ([1, 2], "holds a list"),
        (b"this is not a checkpoint", "no file of weights that torch can read"),
    ],
)
def test_another_file_is_refused_with_what_it_holds(tmp_path, content, complaint):
    path = tmp_path / "x.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ModelError, match=complaint):
        CLAP.from_pretrained(path)


def test_an_unknown_table_of_mels_is_refused(tokenizer, tmp_path):
    state = laion_state()
    state["audio_branch.logmel_extractor.melW"] *= 2
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ModelError, match="its front end is unknown"):
        CLAP.from_pretrained(tmp_path / "a.pt", tokenizer=tokenizer)


def test_without_a_tokenizer_in_reach_the_message_asks_for_one(tmp_path, tokenizer):
    torch.save(laion_state(), tmp_path / "a.pt")
    (tmp_path / "none").mkdir()
    with pytest.raises(ModelError, match=r"has no tokenizer, and .*none gave none"):
        CLAP.from_pretrained(tmp_path / "a.pt", tokenizer=tmp_path / "none")
    train_tokenizer([" ".join(f"w{i}" for i in range(300))], 300).save_pretrained(tmp_path / "large")
    with pytest.raises(ModelError, match="300 pieces, the text tower 100"):
        CLAP.from_pretrained(tmp_path / "a.pt", tokenizer=tmp_path / "large")


# ---- audio towers pretrained on AudioSet


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["sed_model.", "audio_branch.", "module.audio_branch."])
def test_an_audioset_htsat_starts_a_tower_fused_or_not(tmp_path, prefix):
    golden, name = load_golden("d_htsat_small.safetensors"), "sd.None."
    state = {prefix + k.removeprefix(name): v for k, v in golden.items() if k.startswith(name)}
    torch.save({"state_dict": state, "callbacks": {Trap: 1}, "pytorch-lightning_version": "1.5.9"}, tmp_path / "h.ckpt")
    sizes = {"width": 8, "depths": (2, 2, 2, 2), "heads": (1, 2, 4, 8)}
    tower, fused = HTSAT(**sizes).eval(), HTSAT(**sizes, fusion="aff_2d").eval()
    assert init_audio(tower, tmp_path / "h.ckpt") == []
    assert {name.split(".")[1] for name in init_audio(fused, tmp_path / "h.ckpt")} == {"mel_conv2d", "fusion_model"}
    for each in (tower, fused):
        embedding = each(golden_mel())
        torch.testing.assert_close(embedding, golden["None.longer_none.embedding"], rtol=0, atol=5e-6)


@torch.no_grad()
def test_an_audioset_pann_starts_a_tower(tmp_path):
    config = ModelConfig(audio="pann", pann_widths=(8, 16))
    there, here = fill(audio_tower(config)), audio_tower(config).eval()
    state = {name.removeprefix("blocks."): v for name, v in there.state_dict().items()}
    state |= {"fc_audioset.weight": torch.ones(527, 16), "spectrogram_extractor.stft.conv_real.weight": torch.ones(1)}
    torch.save({"iteration": 1, "model": state}, tmp_path / "Cnn.pth", _use_new_zipfile_serialization=False)
    assert init_audio(here, tmp_path / "Cnn.pth") == []
    torch.testing.assert_close(here(golden_mel()), there(golden_mel()))


def test_an_audio_tower_of_other_sizes_is_refused(tmp_path):
    torch.save({"model": {"conv_block1.conv1.weight": torch.ones(3, 1, 3, 3)}}, tmp_path / "c.pth")
    with pytest.raises(ModelError, match=r"lacks .*\(18 in all\).*other shapes in blocks.conv_block1.conv1.weight"):
        init_audio(audio_tower(ModelConfig(audio="pann", pann_widths=(8,))), tmp_path / "c.pth")


# ---- transformers


@pytest.fixture(scope="module", params=["none", "aff_2d"])
def ours(request, tokenizer):
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    config = replace(SMALL, fusion=request.param, mel_scale="slaney" if request.param == "none" else "htk")
    model = CLAP(config, roberta(), AutoTokenizer.from_pretrained(tokenizer)).eval()
    fill(model.audio)
    return model


@pytest.fixture(scope="module")
def exported(ours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export.to_transformers(ours, folder)
    return folder


def their_audio(model, mels):
    """transformers' embeddings of our mels, told which clips are longer."""
    features = stack(mels) if model.config.audio_config.enable_fusion else mels.whole
    return model.get_audio_features(input_features=features, is_longer=mels.longer[:, None]).pooler_output


@torch.no_grad()
def test_transformers_gives_our_embeddings_from_an_export(ours, exported):
    from transformers import ClapModel

    theirs = ClapModel.from_pretrained(exported).eval()
    mels = (
        golden_mels(False, True) if ours.config.fusion != "none" else Mels(golden_mel(), *golden_mels(False, False)[1:])
    )
    torch.testing.assert_close(ours.encode_audio(mels), their_audio(theirs, mels), rtol=0, atol=1e-6)
    ids, mask = torch.tensor([[0, 7, 8, 9, 2], [0, 5, 2, 1, 1]]), torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    text = theirs.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    torch.testing.assert_close(ours.encode_text(ids, mask), text, rtol=0, atol=1e-6)
    assert theirs.logit_scale_a == ours.log_scale_a and theirs.logit_scale_t == ours.log_scale_t


@torch.no_grad()
def test_transformers_processor_hears_what_our_front_end_hears(ours, exported):
    from transformers import ClapModel, ClapProcessor

    processor, wave = ClapProcessor.from_pretrained(exported), 0.2 * np.random.default_rng(0).standard_normal(100_000)
    batch = processor(audio=wave, sampling_rate=48000, text=CAPTIONS, padding=True, return_tensors="pt")
    features = batch["input_features"][:, :1]
    unrounded = replace(ours.config, int16_quantize=False)  # transformers does not round audio to 16 bits
    short = front_end(unrounded)(torch.from_numpy(np.tile(wave, 5)[:480000].astype(np.float32))[None])
    heard = short[:, :, :800]  # repeatpad fills what 4 turns leave with zeros
    torch.testing.assert_close(features[:, :, :800].float(), heard, rtol=0, atol=2e-3)
    text = ClapModel.from_pretrained(exported).eval().get_text_features(batch["input_ids"], batch["attention_mask"])
    np.testing.assert_allclose(text.pooler_output.numpy(), ours.embed_text(CAPTIONS), atol=1e-6)


@torch.no_grad()
def test_a_round_trip_through_transformers_changes_no_bit(ours, exported, tmp_path):
    again = CLAP.from_pretrained(exported)
    assert again.config == ours.config
    kept, back = ours.state_dict(), again.state_dict()
    assert kept.keys() == back.keys() and all(torch.equal(kept[name], back[name]) for name in kept)
    export.to_transformers(again, tmp_path)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / name).read_bytes() == (exported / name).read_bytes()
    wave = [np.random.default_rng(0).uniform(-0.5, 0.5, 30_000).astype(np.float32)]
    assert (again.embed_audio(wave) == ours.embed_audio(wave)).all()
    assert (again.embed_text(CAPTIONS) == ours.embed_text(CAPTIONS)).all()


def golden_clap(which, folder):
    """transformers' small golden model, saved by it with a tokenizer; LayerNorm's eps is not RoBERTa's."""
    from transformers import ClapConfig, ClapModel

    golden, prefix = load_golden("g_hf_clap.safetensors"), f"sd.{which}."
    fused = {"enable_fusion": True, "fusion_type": "aff_2d"} if which == "fused1" else {}
    audio = {"patch_embeds_hidden_size": 8, "hidden_size": 64, "depths": [2] * 4, "num_attention_heads": [1, 2, 4, 8]}
    words = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    words |= {"intermediate_size": 64, "max_position_embeddings": 80, "layer_norm_eps": 1e-3}
    theirs = ClapModel(ClapConfig(audio_config={**audio, **fused}, text_config=words, projection_dim=16)).eval()
    state = {k.removeprefix("sd.fused0."): v for k, v in golden.items() if k.startswith("sd.fused0.")}
    theirs.load_state_dict(state | {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)})
    theirs.save_pretrained(folder)
    train_tokenizer(CAPTIONS, 100).save_pretrained(folder)
    return theirs


@torch.no_grad()
@pytest.mark.parametrize("which", ["fused0", "fused1"])
def test_a_folder_that_transformers_saved_gives_its_embeddings(tmp_path, which):
    theirs, golden, fused = golden_clap(which, tmp_path), load_golden("g_hf_clap.safetensors"), which == "fused1"
    ours = CLAP.from_pretrained(tmp_path)
    for name, longer in {"none": False, **({"one": True} if fused else {})}.items():
        mels, expected = golden_mels(False, longer), golden[f"{which}.{name}.audio_embeds"]
        torch.testing.assert_close(ours.encode_audio(mels), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(their_audio(theirs, mels), expected, rtol=0, atol=1e-6)
    ids = torch.tensor([[0, 7, 8, 9, 2]])
    text = theirs.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids)).pooler_output
    torch.testing.assert_close(ours.encode_text(ids, torch.ones_like(ids)), text, rtol=0, atol=1e-6)
    assert ours.text.encoder.config.layer_norm_eps == 1e-3
    assert (ours.config.mel_scale, ours.config.fmin) == ("htk" if fused else "slaney", 50)


def test_the_extractor_of_a_folder_is_the_front_end(exported, ours, tmp_path):
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    path = next(p for p in (tmp_path / "preprocessor_config.json", tmp_path / "processor_config.json") if p.exists())
    whole = json.loads(path.read_text())
    stated = whole.get("feature_extractor", whole)
    stated.update(frequency_min=0, hop_length=320, sampling_rate=32000, padding="pad", truncation="rand_trunc")
    path.write_text(json.dumps(whole))
    config = CLAP.from_pretrained(tmp_path).config
    assert (config.fmin, config.hop, config.sample_rate, config.filling) == (0, 320, 32000, "pad")
    assert config.mel_scale == "slaney"


def test_what_transformers_has_no_place_for_is_refused_by_name(ours, tmp_path):
    for changed, complaint in (
        ({"fusion": "iaff_2d"}, "no iaff_2d fusion"),
        ({"logit_bias": True}, "no a logit bias|no logit bias"),
        ({"audio": "pann"}, "pann audio tower"),
    ):
        other = CLAP.__new__(CLAP)
        other.__dict__ = {**ours.__dict__, "config": replace(ours.config, **changed)}
        with pytest.raises(ConfigError, match=complaint):
            export.to_transformers(other, tmp_path)


def test_an_audio_tower_that_ours_cannot_be_is_refused(exported, tmp_path):
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["audio_config"]["mlp_ratio"] = 2.0
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"mlp_ratio 2\.0, ours only 4\.0"):
        CLAP.from_pretrained(tmp_path)


SCRIPT = """
import sys, torch
from clap import CLAP
model = CLAP.from_pretrained(sys.argv[1])
print(model.config.fusion, sum(p.sum().item() for p in model.parameters()))
"""


def test_a_clap_of_transformers_comes_from_the_hub_even_without_safetensors(tmp_path):
    folder = tmp_path / "hub"
    golden_clap("fused1", folder)
    ours = CLAP.from_pretrained(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with serve({"user/clap": folder}) as endpoint:
        home = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
        line = [sys.executable, "-c", SCRIPT, "user/clap"]
        done = subprocess.run(line, env=os.environ | home, capture_output=True, text=True)
    fusion, total = done.stdout.split() or (done.stderr, "")
    assert (fusion, float(total)) == (ours.config.fusion, sum(p.sum().item() for p in ours.parameters()))


# ---- where transformers errs, and we do not follow


@torch.no_grad()
def test_transformers_takes_a_random_short_clip_for_a_longer_one_and_ours_does_not(tmp_path):
    from transformers import ClapFeatureExtractor

    theirs, clip = golden_clap("fused1", tmp_path), 0.2 * np.random.default_rng(0).standard_normal(96_000)
    heard = ClapFeatureExtractor()([clip, clip], sampling_rate=48000, return_tensors="pt")
    twice = theirs.get_audio_features(**heard).pooler_output
    assert heard["is_longer"].sum() == 1 and (twice[0] - twice[1]).abs().max() > 1e-3  # of one clip, two embeddings
    ours = CLAP.from_pretrained(tmp_path)
    np.testing.assert_allclose(*ours.embed_audio([clip, clip]), atol=1e-6)


@torch.no_grad()
def test_transformers_loss_is_of_one_direction_and_ours_of_both(tmp_path):
    from clap.config import TrainConfig
    from clap.loss import compute
    from clap.model import Embeddings

    theirs, ids = golden_clap("fused0", tmp_path), torch.tensor([[0, 7, 8, 2], [0, 9, 5, 2]])
    theirs.logit_scale_a.fill_(4.6)  # the golden clips and texts are much alike
    theirs.logit_scale_t.fill_(4.6)
    out = theirs(input_ids=ids, input_features=golden_mels(False, False).whole, return_loss=True)
    pair = out.logits_per_text, out.logits_per_audio
    to_audio, to_text = (torch.nn.functional.cross_entropy(logits, torch.arange(2)) for logits in pair)
    assert abs(out.loss - to_audio) < 1e-6 and abs(to_audio - to_text) > 1e-3
    scale = theirs.logit_scale_a.exp()
    ours = compute(TrainConfig(), Embeddings(out.audio_embeds, out.text_embeds, scale, scale), *[torch.arange(2)] * 2)
    torch.testing.assert_close(ours, (to_audio + to_text) / 2)


# ---- damaged files


@pytest.mark.parametrize(
    "name",
    [
        "audio_branch.bn0.weight",
        "audio_projection.2.bias",
        "audio_branch.layers.0.blocks.0.attn.relative_position_bias_table",
        "text_branch.embeddings.word_embeddings.weight",
        "text_branch.embeddings.position_embeddings.weight",
        "text_branch.encoder.layer.0.intermediate.dense.weight",
    ],
)
def test_a_checkpoint_that_lacks_what_tells_its_sizes_names_it(tokenizer, tmp_path, name):
    state = laion_state()
    del state[name]
    torch.save(state, tmp_path / "a.pt")
    tail = name.split("_branch.")[-1].split("embeddings.", 1)[-1]
    with pytest.raises(ModelError, match=rf"a\.pt .*lacks .*{tail}"):
        CLAP.from_pretrained(tmp_path / "a.pt", tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("audio_branch.bn0.weight", torch.tensor(1.0)),
        ("audio_branch.bn0.weight", torch.ones(0)),
        ("text_branch.embeddings.word_embeddings.weight", torch.ones(10)),
        ("text_branch.embeddings.word_embeddings.weight", torch.ones(10, 3)),
        ("text_branch.embeddings.word_embeddings.weight", torch.ones(1).expand(10**12, 64)),
    ],
)
def test_a_checkpoint_of_shapes_that_make_no_model_is_refused(tokenizer, tmp_path, name, value):
    torch.save(laion_state() | {name: value}, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"a\.pt (is a damaged checkpoint|holds less than it claims|does not fit)"):
        CLAP.from_pretrained(tmp_path / "a.pt", tokenizer=tokenizer)


class AttributeDict(dict):
    """As Lightning saves hyper-parameters."""


def test_a_checkpoint_beside_subclasses_of_dict_is_read(tokenizer, tmp_path):
    extra = {"hparams": AttributeDict(lr=1e-3, sizes=AttributeDict(a=1)), "counts": defaultdict(int, a=2)}
    torch.save({"state_dict": laion_state(), **extra}, tmp_path / "a.pt")
    assert CLAP.from_pretrained(tmp_path / "a.pt", tokenizer=tokenizer).config.dim == 16


class Curve(list):
    """What torch fills no stand-in for."""


def test_why_a_file_cannot_be_read_is_said_and_no_unsafe_way_out(tmp_path):
    torch.save({"state_dict": laion_state(), "curve": Curve([1])}, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=r"read safely: Can only (append|extend)") as caught:
        CLAP.from_pretrained(tmp_path / "a.pt")
    assert "weights_only" not in str(caught.value)


def test_an_attention_without_its_keys_is_named(exported, tmp_path):
    whole = load_file(exported / "model.safetensors")
    (key,) = sorted(name for name in whole if name.endswith("self.key.weight") and "audio" in name)[:1]
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    others = {name: value for name, value in whole.items() if name != key}
    for damaged in (others, others | {key: torch.ones(3, 5)}, others | {key: torch.tensor(1.0)}):
        save_file(damaged, tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match=r"does not fit the model .* lacks .*qkv\.weight"):
            CLAP.from_pretrained(tmp_path)


def test_a_partial_extractor_and_cut_weights_of_transformers_are_named(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "a")
    (tmp_path / "a" / "preprocessor_config.json").write_text('{"hop_length": 480}')
    with pytest.raises(ModelError, match="lacks 'sampling_rate'"):
        CLAP.from_pretrained(tmp_path / "a")
    shutil.copytree(exported, tmp_path / "b")
    os.truncate(tmp_path / "b" / "model.safetensors", 2000)
    with pytest.raises(ModelError, match=r"model\.safetensors is no whole file"):
        CLAP.from_pretrained(tmp_path / "b")


def test_settings_that_transformers_lacks_survive_a_round_trip(ours, tmp_path):
    kept = {"text_context": 40, "time_mask": 16, "freq_mask": 3}
    other = CLAP(replace(ours.config, **kept), roberta(), ours.tokenizer).eval()
    export.to_transformers(other, tmp_path / "m")
    assert CLAP.from_pretrained(tmp_path / "m").config == other.config
