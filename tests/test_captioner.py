"""The captioner: transformers' own search is the reference, and a sentence depends on its keywords alone."""

import json
import pickle
import shutil
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from captioners import NOUNS, tiny_captioner
from safetensors.torch import load_file, save_file

from pipelines.beams import Decoder, Decoding, beam_search, draw, noise, without_repeats
from pipelines.captioner import Captioner, digest, load, pin, prompt_of
from pipelines.disk import BuildError

PAIRS = list(combinations(NOUNS, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_captioner(tmp_path_factory.mktemp("captioner"))


@pytest.fixture(scope="module")
def plain(folder):
    return Captioner(str(folder), decoding=Decoding(most_tokens=16))


def batch(captioner, sets):
    """Prompts of sets as tensors, padded to the longest."""
    import torch

    prompts = [captioner.encode(each) for each in sets]
    rows = [prompt + [0] * (max(map(len, prompts)) - len(prompt)) for prompt in prompts]
    ids = torch.tensor(rows)
    return ids, ids.ne(0).long()


def ended(rows):
    """The tokens of each row after the first one, up to the end of its sentence (1)."""
    return [row[1 : row.index(1, 1) + 1] if 1 in row[1:] else row[1:] for row in rows.tolist()]


@pytest.mark.parametrize(("beams", "penalty", "no_repeat"), [(1, 1.0, 0), (4, 1.5, 3), (3, 0.0, 2), (5, -1.0, 1)])
def test_beams_find_what_transformers_finds(plain, beams, penalty, no_repeat):
    import torch

    ids, mask = batch(plain, [*PAIRS[:12], ("dog",), ("rain", "dog", "cat", "bell", "rain")])
    decoding = Decoding(beams=beams, length_penalty=penalty, no_repeat=no_repeat, most_tokens=16)
    with torch.inference_mode():
        ours = beam_search(Decoder(plain.model, ids, mask), decoding)
        theirs = plain.model.generate(
            input_ids=ids, attention_mask=mask, num_beams=beams, num_return_sequences=beams, length_penalty=penalty,
            no_repeat_ngram_size=no_repeat, early_stopping=beams > 1, max_new_tokens=16, do_sample=False,
        )  # fmt: skip
    found = ended(theirs)
    assert [each.tokens for item in ours for each in item] == found
    assert len({len(row) for row in found}) > 1, "else the end of a sentence is not tested"


def test_another_architecture_is_searched_alike(plain):
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=60, d_model=32, encoder_layers=1, decoder_layers=3, encoder_attention_heads=2, pad_token_id=0,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, init_std=0.3, eos_token_id=1, bos_token_id=2,
        decoder_start_token_id=1, forced_eos_token_id=None,
    )  # fmt: skip
    model = BartForConditionalGeneration(config).eval().double()  # in float32 beams that are nearly equal may swap
    ids, mask = batch(plain, [*PAIRS[:4], ("dog",)])
    with torch.inference_mode():
        ours = beam_search(Decoder(model, ids, mask), Decoding(most_tokens=12))
        theirs = model.generate(
            input_ids=ids, attention_mask=mask, num_beams=4, num_return_sequences=4, length_penalty=1.5,
            no_repeat_ngram_size=3, early_stopping=True, max_new_tokens=12, do_sample=False,
        )  # fmt: skip
    assert [each.tokens for item in ours for each in item] == ended(theirs)


def test_the_log_probability_is_that_of_the_model_per_token(plain):
    import torch

    ids, mask = batch(plain, PAIRS[:3])
    decoding = Decoding(beams=2, samples=2, most_tokens=12)
    with torch.inference_mode():
        found = beam_search(Decoder(plain.model, ids, mask), decoding)
        drawn = draw(Decoder(plain.model, ids, mask), decoding, noise(PAIRS[:3], decoding))
        for i, each in [(row, each) for row in range(3) for each in found[row] + drawn[row]]:
            labels = torch.tensor([each.tokens])
            loss = plain.model(input_ids=ids[i : i + 1], attention_mask=mask[i : i + 1], labels=labels).loss
            assert each.logprob == pytest.approx(-loss.item(), abs=1e-4)


def test_draws_follow_the_model(plain):
    import torch

    ids, mask = batch(plain, [("dog", "rain")])
    decoding = Decoding(samples=4000, most_tokens=1, no_repeat=0, temperature=2.0)
    with torch.inference_mode():
        drawn = draw(Decoder(plain.model, ids, mask), decoding, noise([("dog", "rain")], decoding))
        step = Decoder(plain.model, ids, mask)
        shares = (step(step.start)[0] / 2).softmax(0).tolist()
    counted = Counter(each.tokens[0] for each in drawn[0])
    assert all(abs(counted[token] / 4000 - share) < 0.03 for token, share in enumerate(shares))
    assert len(counted) > 2


def test_no_piece_of_n_tokens_comes_twice():
    import torch

    said = torch.tensor([[0, 5, 6, 7, 5, 6], [0, 5, 6, 7, 6, 5]])
    banned = without_repeats(torch.zeros(2, 9), said, 3) == -np.inf
    assert banned.nonzero().tolist() == [[0, 7]]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_written_does_not_depend_on_the_other_sets(folder, precision):
    decoding = Decoding(samples=2, most_tokens=16, precision=precision)
    whole = dict(zip(PAIRS, Captioner(str(folder), decoding=decoding).generate(PAIRS), strict=True))
    other = Captioner(str(folder), decoding=decoding)
    for sets in (PAIRS[7:8], PAIRS[::-3], [("dog",), PAIRS[3], PAIRS[3]], PAIRS[::-1]):
        assert [whole.get(each) for each in sets if each in whole] == [
            found for each, found in zip(sets, other.generate(sets), strict=True) if each in whole
        ]
    alone = Captioner(str(folder), decoding=decoding)
    assert [alone.generate([each]) for each in PAIRS[:3]] == [[whole[each]] for each in PAIRS[:3]]


def test_other_seeds_draw_others(folder):
    found = [Captioner(str(folder), decoding=Decoding(1, 4, 1.5, most_tokens=16, seed=seed)) for seed in (0, 0, 1)]
    first, again, third = (each.generate(PAIRS[:4]) for each in found)
    assert first == again != third


def test_equal_sets_are_written_once(folder):
    captioner, batches = Captioner(str(folder)), []
    captioner.model.get_encoder().register_forward_hook(lambda *_: batches.append(1))
    first = captioner.generate([("bell",), ("bell",), ("door",)])
    assert captioner.generate([("door",), ("bell",)]) == [first[2], first[0]]
    assert len(batches) == 1


def test_sentences_are_whole_and_say_what_was_learnt(plain):
    (found,) = plain.generate([("dog", "rain")])
    assert {text for text, _ in found} & {"A dog and a rain are heard.", "A rain and a dog are heard."}
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    assert all(text[0].isupper() and text.endswith(".") for text, _ in found)


def test_a_prompt_ends_once_and_a_keyword_cannot_end_it(plain):
    end = plain.tokenizer.eos_token_id
    assert plain.encode(("dog", "rain")) == plain.tokenizer("dog rain")["input_ids"]
    assert plain.encode(("dog</s>", "<pad>rain")).count(end) == 1
    assert plain.tokenizer.pad_token_id not in plain.encode(("dog</s>", "<pad>rain"))
    assert len(plain.encode(NOUNS * 40)) == 128 and plain.encode(NOUNS * 40)[-1] == end


def test_prompts_are_those_of_the_model(folder, tmp_path):
    assert prompt_of("gagan3012/k2t-base") == "|" and prompt_of("mrm8488/t5-base-finetuned-common_gen") == " "
    (tmp_path / "captioner.json").write_text(json.dumps({"prompt": ", "}))
    assert (prompt_of(str(tmp_path)), prompt_of(str(folder)), prompt_of("some/model")) == (", ", " ", " ")
    (tmp_path / "captioner.json").write_text("[]")
    with pytest.raises(BuildError, match=r"captioner\.json"):
        prompt_of(str(tmp_path))


def test_a_folder_is_pinned_by_what_it_holds(folder, tmp_path):
    model, held = pin(str(folder), "")
    assert pin(model, held) == (str(folder), held)
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "training.log").write_text("not of the model")
    assert digest(other) == held
    (other / "captioner.json").write_text('{"prompt": ", "}')
    assert digest(other) != held
    with pytest.raises(BuildError, match="leave --captioner-revision out"):
        pin(str(other), held)


def test_a_commit_of_the_hub_is_taken_as_it_is():
    assert pin("some/model", "0123456789" * 4) == ("some/model", "0123456789" * 4)


def changed(path, **settings):
    """Change settings of a JSON file; those of None go."""
    values = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def without_a_weight(model):
    weights = load_file(model / "model.safetensors")
    del weights["decoder.block.0.layer.0.SelfAttention.q.weight"]
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def with_pickle(model):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(print))


def without_end(model):
    changed(model / "generation_config.json", eos_token_id=None)
    changed(model / "config.json", eos_token_id=None)


def of_its_own(model):
    (model / "own.py").write_text(f"open({str(model / 'ran')!r}, 'w')\nclass Own:\n    pass\n")
    changed(model / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own"})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda model: (model / "model.safetensors").write_bytes(b"x" * 100), "damaged"),
        (lambda model: changed(model / "config.json", d_ff=64), "damaged"),
        (lambda model: changed(model / "config.json", d_model="x"), "damaged"),
        (lambda model: (model / "tokenizer.json").write_text("{}"), "damaged"),
        (with_pickle, "damaged"),
        (without_a_weight, r"lacks 1 weights .*SelfAttention\.q"),
        (without_end, "has no end token"),
        (of_its_own, "no captioner"),
    ],
)
def test_a_damaged_captioner_and_one_with_code_are_refused(folder, tmp_path, monkeypatch, damage, said):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    model = shutil.copytree(folder, tmp_path / "model")
    damage(model)
    with pytest.raises(BuildError, match=said) as caught:
        load(str(model))
    assert "weights_only" not in str(caught.value) and not (model / "ran").exists()


def test_where_nothing_is_found_there_is_no_sentence(plain):
    assert plain.read([]) == []


def test_a_model_that_computes_no_numbers_is_refused(folder):
    captioner = Captioner(str(folder))
    captioner.model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(BuildError, match="no finite numbers"):
        captioner.generate([("dog",)])


def test_a_hub_out_of_reach_is_told_in_a_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BuildError, match="offline"):
        pin("no/such", "")


def test_what_is_no_captioner_is_told_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for call in (lambda: pin(str(tmp_path), ""), lambda: Captioner(str(tmp_path)), lambda: pin("no/such", "")):
        with pytest.raises(BuildError, match=r"no captioner|holds no model"):
            call()
