"""The text tower: any encoder of transformers, or a small one from scratch with its own tokenizer."""

import re
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class TextError(ValueError):
    """A text tower that cannot be had; the message says what to do."""


def clean(caption: str) -> str:
    """What two captions are compared by: lower case, single spaces, no full stop at the end."""
    return " ".join(caption.lower().split()).rstrip(" .!")


def noisy(caption: str, rate: float, rng: np.random.Generator) -> str:
    """Drop each word, and put random letters before each, with probability `rate`; never drops all.

    Word dropout (Iyyer et al. 2015, section 3.2) makes a tower robust to missing words; the random strings
    make it ignore unknown ones: a tower from scratch has no other way to know that "this is" in a prompt
    means nothing, and every byte of its tokenizer gets an embedding that training has seen.
    """
    words = []
    for word in caption.split():
        if rng.random() < rate:
            words.append("".join(rng.choice(list(string.ascii_lowercase), rng.integers(1, 7))))
        if rng.random() >= rate:
            words.append(word)
    return " ".join(words) or caption


class TextTower(nn.Module):
    """Tokens (batch, n) and attention mask (batch, n) > one vector per caption (batch, dim).

    `pooling` "pooler" takes BERT's and RoBERTa's trained pooler over the first token; "mean" averages the
    last hidden states of the tokens that are not padding, and serves every encoder.
    """

    def __init__(self, encoder: Any, pooling: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.dim: int = encoder.config.hidden_size
        self.pooling = pooling
        has_pooler = getattr(encoder, "pooler", None) is not None
        if pooling == "pooler" and not has_pooler:
            raise TextError(f"{type(encoder).__name__} has no pooler: use --text-pooling mean")
        if pooling == "mean" and has_pooler:
            encoder.pooler = None  # parameters without a gradient would break data-parallel training

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        if self.pooling == "pooler":
            return out.pooler_output
        mask = attention_mask.unsqueeze(-1).to(out.last_hidden_state.dtype)
        return (out.last_hidden_state * mask).sum(1) / mask.sum(1)


def tokenize(tokenizer: Any, captions: Sequence[str], context: int) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, (batch, n), padded to the longest caption and cut at `context` tokens."""
    tokens = tokenizer(list(captions), padding=True, truncation=True, max_length=context, return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"]


def scratch(captions: Iterable[str], vocab: int, width: int, layers: int, heads: int, context: int) -> tuple[Any, Any]:
    """A RoBERTa of these sizes with random weights, and a byte-level BPE tokenizer trained on the captions.

    Text is lower-cased; bytes are the last resort, so no word is ever unknown.
    """
    from transformers import RobertaConfig, RobertaModel

    tokenizer = train_tokenizer(captions, vocab)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=context + 2,  # RoBERTa counts positions from the padding id + 1
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        type_vocab_size=1,
    )
    return RobertaModel(config), tokenizer


def train_tokenizer(captions: Iterable[str], vocab: int) -> Any:
    """A lower-casing byte-level BPE tokenizer of at most `vocab` pieces, with RoBERTa's special tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    bpe.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=True)
    names = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **dict(zip(names, special, strict=True)))


def pretrained(name: str) -> tuple[Any, Any]:
    """Encoder and tokenizer of a Hub id or a folder; TextError where neither is within reach."""
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModel.from_pretrained(name, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise TextError(
            f"no text tower {name!r}: it is no folder of a transformers model, and the Hugging Face Hub did "
            "not give it (offline?). Give a folder that holds one, or --text scratch to train a small one"
        ) from error
    return _encoder(model), tokenizer


def save(tower: TextTower, tokenizer: Any, folder: Path) -> None:
    """Write the encoder's config and the tokenizer, enough to build the tower again without any network."""
    tower.encoder.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(folder: Path) -> tuple[Any, Any]:
    """Encoder (random weights) and tokenizer that `save` wrote."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.random.fork_rng(devices=[]):  # weights that are overwritten must not move the run's sequence
        model = AutoModel.from_config(config)
    return _encoder(model), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _encoder(model: Any) -> Any:
    return model.get_encoder() if model.config.is_encoder_decoder else model
