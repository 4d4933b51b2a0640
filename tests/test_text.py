"""The text tower: unknown words say nothing, padding changes nothing, and encoders say what transformers' own say."""

import io
import json

import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import pad

from clap import text

CAPTIONS = ["The sound of a dog barking.", "The sound of rain.", "The sound of a dog howling."]
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
D16 = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2} | {
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 1}
MODELS = {
    "roberta": (transformers.RobertaModel, SMALL),
    "bert": (transformers.BertModel, SMALL),
    "bart": (transformers.BartModel, D16),
    "t5": (transformers.T5Model, T5),
    "modernbert": (transformers.ModernBertModel, {**SMALL, "num_hidden_layers": 2, "bos_token_id": 0}),
}


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    encoder, tokenizer = text.scratch(CAPTIONS, vocab=500, width=32, layers=1, heads=2, context=16)
    return text.TextTower(encoder, "mean").eval(), tokenizer


def save_folder(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_word_never_seen_changes_nothing(small):
    tower, tokenizer = small
    alone = tower(*text.tokenize(tokenizer, ["sound of rain"], 16))
    prompted = tower(*text.tokenize(tokenizer, ["Behold: zebra sound of 東京 rain"], 16))
    torch.testing.assert_close(alone, prompted)


def test_a_caption_of_unknown_words_only_still_has_a_vector(small):
    tower, tokenizer = small
    assert torch.isfinite(tower(*text.tokenize(tokenizer, ["zebra"], 16))).all()


def test_case_makes_no_difference(small):
    assert small[1]("A DOG Barking")["input_ids"] == small[1]("a dog barking")["input_ids"]


def test_captions_are_compared_without_case_space_and_full_stop():
    assert text.clean(" The  sound of RAIN. ") == text.clean("the sound of rain")
    assert text.clean("rain") != text.clean("train")


def test_padding_changes_nothing(small):
    tower, tokenizer = small
    alone = tower(*text.tokenize(tokenizer, CAPTIONS[1:2], 16))
    beside = tower(*text.tokenize(tokenizer, [CAPTIONS[1], " ".join(CAPTIONS)], 16))
    torch.testing.assert_close(alone[0], beside[0], atol=1e-5, rtol=1e-5)


def test_captions_are_cut_at_the_context(small):
    ids, mask = text.tokenize(small[1], ["dog " * 99], 16)
    assert ids.shape == mask.shape == (1, 16)


def test_words_are_dropped_by_the_generator_alone_and_never_all():
    said = [text.drop_words(CAPTIONS[0], 0.5, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2] and set(said[0].split()) < set(CAPTIONS[0].split())
    assert all(text.drop_words("dog", 0.9, np.random.default_rng(seed)) == "dog" for seed in range(20))
    assert text.drop_words(CAPTIONS[0], 0.0, np.random.default_rng(0)) == CAPTIONS[0]


def test_a_saved_tower_is_built_again_from_its_folder(small, tmp_path):
    tower, tokenizer = small
    text.save(tower, tokenizer, tmp_path)
    encoder, again = text.load(tmp_path)
    rebuilt = text.TextTower(encoder, "mean").eval()
    rebuilt.load_state_dict(tower.state_dict())
    tokens = text.tokenize(again, CAPTIONS, 16)
    assert torch.equal(rebuilt(*tokens), tower(*text.tokenize(tokenizer, CAPTIONS, 16)))


def clip_tokenizer():
    """As CLIP's: the end of text, which has the highest number, is also the padding."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = sorted({word for caption in CAPTIONS for word in text.clean(caption).split()})
    vocabulary = {word: i for i, word in enumerate([*words, ".", "<start>", "<end>"])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    ends = [(name, vocabulary[name]) for name in ("<start>", "<end>")]
    made.post_processor = processors.TemplateProcessing("<start> $A <end>", special_tokens=ends)
    special = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<end>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)


@pytest.fixture(scope="module")
def folders(small, tmp_path_factory):
    """A small model of each type with random weights, as a folder, and the same model of transformers'."""
    made = {}
    for name, (kind, sizes) in MODELS.items():
        config = kind.config_class(vocab_size=len(small[1]), pad_token_id=1, max_position_embeddings=90, **sizes)
        model = kind(config).eval()
        made[name] = save_folder(tmp_path_factory.mktemp(name), model, small[1]), model
    tokenizer = clip_tokenizer()
    numbers = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {**SMALL, **numbers, "pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer)}
    vision = {**SMALL, "image_size": 8, "patch_size": 4}
    clip = transformers.CLIPModel(transformers.CLIPConfig(text_config=sizes, vision_config=vision)).eval()
    made["clip"] = save_folder(tmp_path_factory.mktemp("clip"), clip, tokenizer), clip
    return made


def tower_of(folder, pooling="auto", context=77):
    encoder, tokenizer = text.pretrained(folder)
    pooling = text.choose_pooling(pooling, encoder, scratch=False)
    return text.TextTower(encoder, pooling, context).eval(), tokenizer


@pytest.mark.parametrize("name", ["roberta", "bert"])
def test_bert_and_roberta_are_read_by_their_pooler(folders, name):
    folder, model = folders[name]
    tower, tokenizer = tower_of(folder)
    ids, mask = text.tokenize(tokenizer, CAPTIONS, 77)
    types = {"token_type_ids": torch.zeros_like(ids)} if name == "bert" else {}  # as LAION-CLAP gives them to BERT
    expected = model(input_ids=ids, attention_mask=mask, **types).pooler_output
    assert tower.pooling == "pooler" and torch.equal(tower(ids, mask), expected)


def test_clip_is_read_at_the_end_of_its_text(folders):
    folder, model = folders["clip"]
    tower, tokenizer = tower_of(folder)
    ids, mask = text.tokenize(tokenizer, CAPTIONS, 77)
    own = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    expected = model.text_model(**own).pooler_output
    assert tower.pooling == "eos" and torch.equal(tower(ids, mask), expected)
    laions = model.text_model(**own).last_hidden_state[range(3), own["input_ids"].argmax(-1)]  # its rule
    assert torch.equal(expected, laions)
    assert type(tower.encoder).__name__ == "CLIPTextModel"  # without the tower for images


def test_a_cut_caption_keeps_its_end_of_text(folders):
    tower, tokenizer = tower_of(folders["clip"][0])
    ids, mask = text.tokenize(tokenizer, ["dog " * 99], 77)
    assert ids.shape == (1, 77) and ids[0, -1] == tokenizer.eos_token_id and torch.isfinite(tower(ids, mask)).all()


def test_bart_as_laion_averages_the_padding_to_77_and_runs_no_decoder(folders):
    folder, model = folders["bart"]
    tower, tokenizer = tower_of(folder, "mean-all")
    whole = tokenizer(CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    expected = model(**whole).encoder_last_hidden_state.mean(1)
    torch.testing.assert_close(tower(*text.tokenize(tokenizer, CAPTIONS, 77)), expected)
    assert not any("decoder" in name for name, _ in tower.named_parameters())


@pytest.mark.parametrize("name", ["bart", "t5", "modernbert"])
def test_other_encoders_are_read_by_the_mean_of_their_real_tokens(folders, name):
    folder, model = folders[name]
    tower, tokenizer = tower_of(folder)
    for caption, vector in zip(CAPTIONS, tower(*text.tokenize(tokenizer, CAPTIONS, 77)), strict=True):
        alone = dict(tokenizer([caption], return_tensors="pt"))
        alone = {key: alone[key] for key in ("input_ids", "attention_mask")}
        if name == "t5":
            alone["decoder_input_ids"] = alone["input_ids"]
        out = model(**alone)
        hidden = out.last_hidden_state if name == "modernbert" else out.encoder_last_hidden_state
        torch.testing.assert_close(vector, hidden[0].mean(0), atol=1e-5, rtol=1e-5)
    assert tower.pooling == "mean"


def test_cls_is_the_state_of_the_first_token(folders):
    folder, model = folders["modernbert"]
    tower, tokenizer = tower_of(folder, "cls")
    ids, mask = text.tokenize(tokenizer, CAPTIONS, 77)
    assert torch.equal(tower(ids, mask), model(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0])


@pytest.mark.parametrize("name", [*MODELS, "clip"])
def test_every_tower_is_built_again_from_what_it_saved_without_what_it_does_not_use(folders, name, tmp_path):
    tower, tokenizer = tower_of(folders[name][0])
    text.save(tower, tokenizer, tmp_path)
    encoder, again = text.load(tmp_path)
    rebuilt = text.TextTower(encoder, tower.pooling).eval()
    rebuilt.load_state_dict(tower.state_dict())
    tokens = text.tokenize(again, CAPTIONS, 77)
    assert torch.equal(rebuilt(*tokens), tower(*tokens))
    rebuilt(*tokens).sum().backward()
    assert all(p.grad is not None for p in rebuilt.parameters())


@pytest.mark.parametrize("name", [*MODELS, "clip"])
def test_neighbours_and_their_padding_change_no_tower(folders, name):
    tower, tokenizer = tower_of(folders[name][0])
    ids, mask = text.tokenize(tokenizer, [CAPTIONS[1], " ".join(CAPTIONS)], 77)
    more = pad(ids, (0, 9), value=tokenizer.pad_token_id), pad(mask, (0, 9))
    alone = tower(*text.tokenize(tokenizer, CAPTIONS[1:2], 77))[0]
    torch.testing.assert_close(alone, tower(ids, mask)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone, tower(*more)[0], atol=1e-5, rtol=1e-5)


def test_a_pooler_that_is_not_there_is_not_asked_for(folders):
    with pytest.raises(text.TextError, match="no pooler: use --text-pooling mean"):
        tower_of(folders["t5"][0], "pooler")


# ---- from scratch


@pytest.mark.parametrize("arch", ["roberta", "t5"])
def test_a_tower_from_scratch_of_pieces_reads_words_it_has_not_seen(arch, tmp_path):
    encoder, tokenizer = text.scratch(CAPTIONS, 32000, 32, 1, 2, context=32, arch=arch, tokens="unigram")
    tower = text.TextTower(encoder, text.choose_pooling("auto", encoder, scratch=True), 32).eval()
    ids, mask = text.tokenize(tokenizer, ["A barn.", "a bard"], 32)  # "bar" and the letters are in the captions
    known = ids[mask.bool()]
    assert (known != tokenizer.unk_token_id).all() and (ids[:, 1:] == tokenizer.eos_token_id).any(1).all()
    first, second = tower(ids, mask)
    assert torch.isfinite(first).all() and not torch.allclose(first, second)
    assert tower.pooling == "mean" and tokenizer.decode(ids[0], skip_special_tokens=True) == "a barn."
    text.save(tower, tokenizer, tmp_path)
    assert torch.equal(text.tokenize(text.load(tmp_path)[1], ["A barn.", "a bard"], 32)[0], ids)


def test_pieces_are_learned_the_same_every_time():
    letters = [" ".join(map(chr, range(97, 123))), "q j ~ } | ]"]  # that occur once: the trainer numbers them by chance
    captions = [
        f"{caption} {word}" for caption in CAPTIONS for word in ("rain", "howls", "barks", "sounding")
    ] + letters
    made = [text.train_tokenizer(captions, 60, "unigram") for _ in range(4)]
    assert len({each.backend_tokenizer.to_str() for each in made}) == 1 and len(made[0]) <= 60
    assert made[0].convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]
    assert made[0].unk_token_id not in made[0]("q ~ ]")["input_ids"]


# ---- frozen


@pytest.fixture
def frozen(small):
    encoder, tokenizer = text.scratch(CAPTIONS, vocab=500, width=32, layers=1, heads=2, context=16)
    tower = text.TextTower(encoder, "mean", 16)
    tower.freeze(cached=True)
    calls = []
    encoder.register_forward_pre_hook(lambda _, args, kwargs: calls.append(len(kwargs["input_ids"])), with_kwargs=True)
    return tower.train(), tokenizer, calls


def test_a_frozen_tower_has_neither_dropout_nor_gradient(frozen):
    tower, tokenizer, _ = frozen
    tokens = text.tokenize(tokenizer, CAPTIONS, 16)
    assert not any(module.training for module in tower.modules())
    assert not any(p.requires_grad for p in tower.parameters()) and not tower(*tokens).requires_grad


def test_a_frozen_tower_reads_a_caption_once(frozen):
    tower, tokenizer, calls = frozen
    first = tower(*text.tokenize(tokenizer, CAPTIONS[:2] * 2, 16))
    again = tower(*text.tokenize(tokenizer, CAPTIONS[1::-1], 16))
    assert torch.equal(first[:2], again.flip(0)) and torch.equal(first[:2], first[2:])
    assert calls == [1, 1]  # each alone, so that not a bit depends on the rest of the batch


def test_what_evaluation_reads_training_need_not_read_again(frozen):
    tower, tokenizer, calls = frozen
    tokens = text.tokenize(tokenizer, CAPTIONS, 16)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        evaluated = tower(*tokens).clone()
    head = torch.nn.Linear(32, 1)
    head(tower(*tokens)).sum().backward()
    assert torch.equal(tower(*tokens), evaluated) and evaluated.dtype == torch.float32
    assert calls == [1, 1, 1] and head.weight.grad.abs().sum() > 0


def test_vectors_made_together_are_those_made_alone(frozen):
    tower, tokenizer, _ = frozen
    keys = [tuple(ids) for ids in tokenizer(CAPTIONS)["input_ids"]]
    alone = torch.cat([tower._vectors([key], torch.device("cpu")) for key in keys])
    torch.testing.assert_close(tower._vectors(keys, torch.device("cpu")), alone)


def test_the_cache_does_not_grow_past_its_bound(frozen, monkeypatch):
    tower, tokenizer, calls = frozen
    monkeypatch.setattr(text, "CACHED", 2)
    for _ in range(2):
        assert len(tower(*text.tokenize(tokenizer, CAPTIONS, 16))) == 3
    assert len(tower.cache) == 2 and sum(calls) == 4


def test_a_context_that_the_tower_cannot_read_is_refused(small, folders, tmp_path):
    tokenizer = clip_tokenizer()
    tokenizer.model_max_length = 77
    save_folder(tmp_path, folders["clip"][1], tokenizer)
    with pytest.raises(text.TextError, match="reads 77 tokens, not 78: lower --text-context"):
        text.pretrained(str(tmp_path), 78)


def test_offline_without_weights_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(text.TextError, match=r"no text tower 'nobody/nothing'.*--text scratch"):
        text.pretrained("nobody/nothing")


def test_too_few_pieces_for_the_letters_of_the_captions_are_refused():
    with pytest.raises(text.TextError, match="raise --text-vocab"):
        text.train_tokenizer(CAPTIONS, 5, "unigram")


CODE = "raise SystemExit('code of a folder was run')"


def own_code(folder, monkeypatch):
    """A folder whose config and tokenizer name classes in a Python file beside them; stdin says yes to anything."""
    (folder / "own.py").write_text(CODE)
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    map_ = {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}, "tokenizer_class": "OwnTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(map_))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))


def test_code_in_a_folder_is_never_run(tmp_path, monkeypatch):
    own_code(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="custom code"):
        text.load(tmp_path)
    with pytest.raises(text.TextError, match="no text tower"):
        text.pretrained(str(tmp_path))
