"""The text tower: unknown words say nothing, padding changes nothing, and any encoder of transformers serves."""

import numpy as np
import pytest
import torch

from clap import text

CAPTIONS = ["The sound of a dog barking.", "The sound of rain.", "The sound of a dog howling."]


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


def test_the_pooler_of_a_pretrained_bert_is_used(small, tmp_path):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertModel(BertConfig(vocab_size=len(small[1]), **sizes)).eval()
    encoder, tokenizer = text.pretrained(save_folder(tmp_path, bert, small[1]))
    tokens = text.tokenize(tokenizer, CAPTIONS, 16)
    expected = bert(input_ids=tokens[0], attention_mask=tokens[1]).pooler_output
    torch.testing.assert_close(text.TextTower(encoder, "pooler").eval()(*tokens), expected)


def test_of_an_encoder_and_decoder_only_the_encoder_runs(small, tmp_path):
    from transformers import T5Config, T5Model

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    t5 = T5Model(T5Config(vocab_size=len(small[1]), **sizes))
    encoder, tokenizer = text.pretrained(save_folder(tmp_path, t5, small[1]))
    tower = text.TextTower(encoder, "mean").eval()
    assert tower(*text.tokenize(tokenizer, CAPTIONS, 16)).shape == (3, 16)
    with pytest.raises(text.TextError, match="no pooler: use --text-pooling mean"):
        text.TextTower(encoder, "pooler")


def test_offline_without_weights_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(text.TextError, match=r"no text tower 'nobody/nothing'.*--text scratch"):
        text.pretrained("nobody/nothing")
