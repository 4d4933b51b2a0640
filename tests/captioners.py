"""A tiny captioner for tests: a T5 and its tokenizer, made from a config and taught within seconds."""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

NOUNS = ("dog", "cat", "rain", "bird", "siren", "engine", "bell", "crowd", "wind", "door")


def sentence_of(words: tuple[str, ...]) -> str:
    """What the captioner learns to write."""
    return "A " + " and a ".join(words) + (" are heard." if len(words) > 1 else " is heard.")


def tiny_captioner(folder: Path) -> Path:
    """Write a captioner to `folder`, as train-captioner would: mostly right for one or two of NOUNS, not for more."""
    model, tokenizer = taught(120)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "captioner.json").write_text(json.dumps({"prompt": " "}))
    return folder


@cache
def taught(steps: int) -> tuple[Any, Any]:
    """The model and its tokenizer, once for all tests of a process."""
    import torch

    torch.manual_seed(0)
    pick, tokenizer = random.Random(0), tiny_tokenizer()
    model = tiny_model(len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        sets = [tuple(pick.sample(NOUNS, pick.randint(1, 2))) for _ in range(24)]
        prompts = tokenizer([" ".join(each) for each in sets], padding=True, return_tensors="pt")
        labels = tokenizer([sentence_of(each) for each in sets], padding=True, return_tensors="pt")["input_ids"]
        loss = model(**prompts, labels=labels.masked_fill(labels == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, tokenizer


def tiny_tokenizer() -> Any:
    """Words are pieces, and so are letters, for other words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = ["\u2581" + word for word in ("A", "a", "and", "is", "are", "heard", *NOUNS, "")]
    pieces = [(each, 0.0) for each in special.values()] + [(word, -1.0) for word in words]
    pieces += [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz.,|"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def tiny_model(vocab: int) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(
        vocab_size=vocab, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
        dropout_rate=0.0, decoder_start_token_id=0,
    ))  # fmt: skip
