"""The text tower: any encoder of transformers, or a small one from scratch with its own tokenizer."""

import json
import re
from collections import ChainMap
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from clap.config import ClapError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
UNSEEN = -1  # stands for a token that the mask hides
CACHED = 65536  # captions of which a frozen tower keeps the vector: 200 MB of RoBERTa-base's


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

    `pooling` (see `POOL`) reads the last hidden states. "mean-all" is what LAION-CLAP does with BART, for parity alone:
    captions are padded to `context` tokens, and the padding is averaged too.
    """

    def __init__(self, encoder: Any, pooling: str, context: int = 77) -> None:
        super().__init__()
        self.encoder, self.pooling, self.context = encoder, pooling, context
        self.dim: int = encoder.config.hidden_size
        self.frozen = False
        self.cache: dict[tuple[int, ...], Tensor] | None = None
        has_pooler = getattr(encoder, "pooler", None) is not None
        if pooling == "pooler" and not has_pooler:
            raise TextError(f"{type(encoder).__name__} has no pooler: use --text-pooling mean")
        if pooling != "pooler" and has_pooler:
            encoder.pooler = None  # parameters without a gradient would break data-parallel training

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if not self.frozen:
            return self._pooled(input_ids, attention_mask)
        if self.cache is not None:
            return self._cached(self.cache, input_ids, attention_mask)
        with torch.no_grad():
            return self._pooled(input_ids, attention_mask)

    def freeze(self, cached: bool) -> None:
        """No gradient and no dropout from now on; `cached`: keep the vectors of captions for when they come again."""
        self.frozen = True
        self.cache = {} if cached else None
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "TextTower":
        """As every module, but a frozen tower stays as it is in evaluation."""
        return super().train(mode and not self.frozen)

    def _pooled(self, ids: Tensor, mask: Tensor) -> Tensor:
        if self.pooling == "mean-all":
            room = (0, self.context - ids.shape[1])
            ids, mask = functional.pad(ids, room, value=self.encoder.config.pad_token_id), functional.pad(mask, room)
        return POOL[self.pooling](self.encoder(input_ids=ids, attention_mask=mask), mask)

    @torch.inference_mode(False)  # whose tensors no gradient may pass
    @torch.no_grad()
    def _cached(self, cache: dict[tuple[int, ...], Tensor], ids: Tensor, mask: Tensor) -> Tensor:
        rows = ids.where(mask.bool(), UNSEEN).tolist()
        keys = [strip(row) for row in rows]  # padding behind a caption is not seen, so it is not part of a key
        new = [key for key in dict.fromkeys(keys) if key not in cache]
        # On a CPU one by one: no bit of a vector may depend on batch mates, which differ where a run is resumed.
        size = 1 if ids.device.type == "cpu" else max(1, len(new))
        made: dict[tuple[int, ...], Tensor] = {}
        for part in (new[i : i + size] for i in range(0, len(new), size)):
            made |= zip(part, self._vectors(part, ids.device), strict=True)
        cache.update(islice(made.items(), CACHED - len(cache)))
        known = ChainMap(made, cache)
        return torch.stack([known[key] for key in keys])

    def _vectors(self, keys: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
        """(keys, dim) of keys, in full precision: what training and evaluation share is the same for both."""
        lists = [torch.tensor(key, device=device) for key in keys]
        ids = pad_sequence(lists, batch_first=True, padding_value=UNSEEN)
        real = ids != UNSEEN
        with torch.autocast(device.type, enabled=False):
            return self._pooled(ids.where(real, self.encoder.config.pad_token_id), real.long())


def strip(row: list[int]) -> tuple[int, ...]:
    """Tokens up to the last one that is seen; the unseen before it keep the others' positions."""
    while row and row[-1] == UNSEEN:
        row.pop()
    return tuple(row)


def _mean(out: Any, mask: Tensor) -> Tensor:
    real = mask.unsqueeze(-1).to(out.last_hidden_state.dtype)
    return (out.last_hidden_state * real).sum(1) / real.sum(1).clamp(min=1)


def _eos(out: Any, mask: Tensor) -> Tensor:
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
    return out.last_hidden_state[torch.arange(len(mask), device=mask.device), last]


POOL: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "pooler": lambda out, mask: out.pooler_output,  # BERT, RoBERTa: a trained tanh layer over the first token
    "mean": _mean,  # of the tokens that are not padding: serves every encoder
    "eos": _eos,  # CLIP: the state of the last token, which its tokenizer makes the end of text
    "cls": lambda out, mask: out.last_hidden_state[:, 0],
    "mean-all": lambda out, mask: out.last_hidden_state.mean(1),
}


def choose_pooling(pooling: str, encoder: Any, scratch: bool) -> str:
    """What "auto" means for an encoder: as LAION-CLAP for BERT, RoBERTa and CLIP, the mean for any other.

    A tower from scratch has no trained pooler: the mean. LAION averaged BART's padding with its tokens ("mean-all").
    """
    usual = {} if scratch else {"bert": "pooler", "roberta": "pooler", "clip_text_model": "eos"}
    return usual.get(encoder.config.model_type, "mean") if pooling == "auto" else pooling


def tokenize(tokenizer: Any, captions: Sequence[str], context: int) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, (batch, n), padded to the longest caption and cut at `context` tokens."""
    tokens = tokenizer(list(captions), padding=True, truncation=True, max_length=context, return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    if tokenizer.pad_token_id != tokenizer.eos_token_id:  # CLIP pads with its end of text, of which the first is real
        mask = mask * ids.ne(tokenizer.pad_token_id)  # a word that a tower from scratch does not know is padding too
    return ids, mask


def scratch(
    captions: Iterable[str],
    vocab: int,
    width: int,
    layers: int,
    heads: int,
    context: int,
    arch: str = "roberta",
    tokens: str = "words",
) -> tuple[Any, Any]:
    """A RoBERTa or a T5 encoder of these sizes with random weights, and a tokenizer learned from the captions."""
    tokenizer = train_tokenizer(captions, vocab, tokens)
    return (_t5 if arch == "t5" else _roberta)(tokenizer, width, layers, heads, context), tokenizer


def _roberta(tokenizer: Any, width: int, layers: int, heads: int, context: int) -> Any:
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=context + 1 + tokenizer.pad_token_id,  # positions count from the padding id + 1
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        type_vocab_size=1,
    )
    return RobertaModel(config)


def _t5(tokenizer: Any, width: int, layers: int, heads: int, _: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // heads,
        d_ff=4 * width,
        num_layers=layers,
        num_heads=heads,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return T5EncoderModel(config)  # its positions are relative: any context


def train_tokenizer(captions: Iterable[str], vocab: int, tokens: str = "words") -> Any:
    """A lower-casing tokenizer of at most `vocab` words, or unigram pieces, learned from the captions."""
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerFast

    made, trainer, special = _words(vocab) if tokens == "words" else _pieces(vocab)
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    try:
        made.train_from_iterator(captions, trainer)
    except Exception as error:  # tokenizers has no narrower class
        raise TextError(f"no tokenizer of {vocab} {tokens} can be learned ({error}): raise --text-vocab") from error
    if tokens == "unigram":
        made.model = _settled(made, len(special))
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def _words(vocab: int) -> tuple[Any, Any, dict[str, str]]:
    """The most frequent words, with RoBERTa's special tokens.

    A word that training has not seen counts as padding: a tower from scratch cannot know what it means, and the
    random vector of "this is" in a prompt would move all that follows.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "mask_token": "<mask>"}
    words = Tokenizer(models.WordLevel(unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    trainer = trainers.WordLevelTrainer(vocab_size=vocab, special_tokens=[*special.values()], show_progress=False)
    return words, trainer, special


def _pieces(vocab: int) -> tuple[Any, Any, dict[str, str]]:
    """Unigram pieces as SentencePiece makes them (arXiv:1804.10959), which spell any word; T5's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}  # in this order: 0, 1, 2
    pieces = Tokenizer(models.Unigram())
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    pieces.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    known: dict[str, Any] = {"special_tokens": [*special.values()], "unk_token": "<unk>"}
    return pieces, trainers.UnigramTrainer(vocab_size=vocab, show_progress=False, **known), special


def _settled(made: Any, n_special: int) -> Any:
    """The learned pieces, numbered and scored the same whenever they are learned from the same captions.

    The trainer keeps letters that it has no score for; those it spaces 1e-4 apart above the lowest score in an order
    that changes from run to run. Sums in threads move the other scores in their last bits.
    """
    from tokenizers import models

    vocabulary = json.loads(made.to_str())["model"]["vocab"]
    learned = dict(vocabulary[n_special:])
    low = min(learned.values())
    steps = {piece: (score - low) / 1e-4 for piece, score in learned.items() if len(piece) == 1}
    spaced = [piece for piece, step in steps.items() if step < len(steps) and abs(step - round(step)) < 1e-6]
    learned |= zip(sorted(spaced), sorted(learned[piece] for piece in spaced), strict=True)
    pieces = sorted(
        ((piece, round(score, 5)) for piece, score in learned.items()), key=lambda each: (-each[1], each[0])
    )
    return models.Unigram([*map(tuple, vocabulary[:n_special]), *pieces], unk_id=n_special - 1)


def pretrained(name: str, context: int = 0) -> tuple[Any, Any]:
    """Encoder and tokenizer of a Hub id or a folder; TextError if out of reach or too short for `context` tokens."""
    from transformers import AutoConfig, AutoTokenizer, CLIPTextModel

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        kind = CLIPTextModel if config.model_type == "clip" else _kind(config)
        model = kind.from_pretrained(name, use_safetensors=True, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise TextError(
            f"no text tower {name!r}: it is no folder of a transformers model, and the Hugging Face Hub did "
            "not give it (offline?). Give a folder that holds one, or --text scratch to train a small one"
        ) from error
    if tokenizer.pad_token_id is None:
        raise TextError(
            f"the tokenizer of {name!r} has no padding: take a text encoder, such as FacebookAI/roberta-base"
        )
    if context > tokenizer.model_max_length:
        raise TextError(f"{name!r} reads {tokenizer.model_max_length} tokens, not {context}: lower --text-context")
    return _encoder(model), tokenizer


def save(tower: TextTower, tokenizer: Any, folder: Path) -> None:
    """Write the encoder's config and the tokenizer, enough to build the tower again without any network."""
    tower.encoder.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(folder: Path) -> tuple[Any, Any]:
    """Encoder (random weights) and tokenizer that `save` wrote; code that the folder may hold is never run."""
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model = _kind(config).from_config(config, dtype=torch.float32, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return _encoder(model), tokenizer


def _kind(config: Any) -> Any:
    """transformers' class for the text side alone where it has one (T5's encoder without its decoder)."""
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoModel, AutoModelForTextEncoding

    return AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel


def _encoder(model: Any) -> Any:
    return model.get_encoder() if model.config.is_encoder_decoder else model
