"""The text tower: any encoder of transformers, or a small one from scratch with its own tokenizer."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clap.config import ClapError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class TextError(ClapError):
    """A text tower that cannot be had; the message says what to do."""


def clean(caption: str) -> str:
    """What two captions are compared by: lower case, single spaces, no full stop at the end."""
    return " ".join(caption.lower().split()).rstrip(" .!")


def drop_words(caption: str, rate: float, rng: np.random.Generator) -> str:
    """Leave out each word with probability `rate`, but never all (Iyyer et al. 2015, section 3.2).

    A small tower from scratch has read its captions in one wording only; this lets it understand another one, such
    as the prompt around a label.
    """
    words = caption.split()
    return " ".join(word for word in words if rng.random() >= rate) or caption


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
    return tokens["input_ids"], tokens["input_ids"].ne(tokenizer.pad_token_id).long()


def scratch(captions: Iterable[str], vocab: int, width: int, layers: int, heads: int, context: int) -> tuple[Any, Any]:
    """A RoBERTa of these sizes with random weights, and a tokenizer of the captions' words."""
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
    """A lower-casing tokenizer of the `vocab` most frequent words, with RoBERTa's special tokens.

    A word that training has not seen counts as padding: a tower from scratch cannot know what it means, and the
    random vector of "this is" in a prompt would move all that follows.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "mask_token": "<mask>"}
    words = Tokenizer(models.WordLevel(unk_token="<pad>"))
    words.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=vocab, special_tokens=list(special.values()), show_progress=False)
    words.train_from_iterator(captions, trainer)
    words.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def pretrained(name: str) -> tuple[Any, Any]:
    """Encoder and tokenizer of a Hub id or a folder; TextError where neither is within reach."""
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32)
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
    model = AutoModel.from_config(config, dtype=torch.float32)
    return _encoder(model), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _encoder(model: Any) -> Any:
    return model.get_encoder() if model.config.is_encoder_decoder else model
