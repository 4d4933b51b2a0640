"""The search for sentences in a seq2seq model of transformers: beams, and draws whose randomness is each prompt's own.

What is found for a prompt does not depend on the others of its batch, as long as batches have one shape: no row is
dropped, cut or moved because of another one.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.disk import BuildError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

LIKELY = 50  # tokens to draw from

Keywords = tuple[str, ...]


@dataclass(frozen=True)
class Decoding:
    """How sentences are searched for; the defaults are keytotext's, with which LAION captioned."""

    beams: int = 4  # kept at each step, and as many sentences
    samples: int = 0  # sentences drawn on top
    temperature: float = 1.0  # of the draw
    length_penalty: float = 1.5  # power of the length by which a beam's log-probability is divided
    no_repeat: int = 3  # word pieces in a row that no sentence has twice
    most_tokens: int = 48  # of a sentence
    seed: int = 0
    precision: str = "auto"  # of the model: fp32, bf16, or what suits the device


class Found(NamedTuple):
    """A sentence as it was found: its tokens, and their mean log-probability (nats), its end included."""

    tokens: list[int]
    logprob: float


class Decoder:
    """The decoder over a batch of prompts, with what it remembers of the tokens so far."""

    def __init__(self, model: Any, ids: "Tensor", mask: "Tensor") -> None:
        self.model, self.mask, self.cache = model, mask, None
        self.encoded = model.get_encoder()(input_ids=ids, attention_mask=mask, return_dict=True)
        self.ends = ends_of(model)
        self.start = ids.new_full((len(ids), 1), start_of(model))

    def __call__(self, said: "Tensor") -> "Tensor":
        """Log-probabilities (rows, vocabulary) of the token after `said` (rows, tokens), one longer at each call.

        Raises BuildError where the model computes none: it would write anything.
        """
        out = self.model(
            encoder_outputs=self.encoded, attention_mask=self.mask, decoder_input_ids=said[:, -1:],
            past_key_values=self.cache, use_cache=True,
        )  # fmt: skip
        self.cache = out.past_key_values
        logprobs: Tensor = out.logits[:, -1].float().log_softmax(-1)
        if logprobs.isnan().any():  # of NaN or infinity
            raise BuildError("the captioner computes no finite numbers: its weights are damaged, or too large for bf16 "
                             "(then --precision fp32): train or download it anew")  # fmt: skip
        return logprobs

    def repeat(self, times: int) -> None:
        """Make `times` rows of each; what was computed for the first token serves all of them."""
        assert self.cache is not None, "a step comes first"
        self.cache.batch_repeat_interleave(times)
        self.mask = self.mask.repeat_interleave(times, 0)
        self.encoded.last_hidden_state = self.encoded.last_hidden_state.repeat_interleave(times, 0)

    def reorder(self, rows: "Tensor") -> None:
        """Go on from these rows; only among those of one prompt, whose cross-attention is the same."""
        assert self.cache is not None, "a step comes first"
        self.cache.self_attention_cache.reorder_cache(rows)


def ends_of(model: Any) -> list[Any]:
    """The tokens that end a model's sentence; [None] for a model that names none."""
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]


def start_of(model: Any) -> Any:
    """The token that a model's sentence starts from; None for a model that names none."""
    start = model.generation_config.decoder_start_token_id
    return getattr(model.config, "decoder_start_token_id", None) if start is None else start


def beam_search(step: Decoder, decoding: Decoding) -> list[list[Found]]:
    """The `beams` best sentences of each prompt, the best first: transformers' search with early_stopping=True.

    A sentence is worth its log-probability / its length ** length_penalty.
    """
    import torch

    beams, said = decoding.beams, step.start  # said: (prompts * running beams, tokens)
    scores = torch.zeros(len(said), 1, device=said.device)  # (prompts, running beams)
    prompts = torch.arange(len(said), device=said.device)[:, None]
    ends = torch.tensor(step.ends, device=said.device)
    done: list[list[tuple[float, Found]]] = [[] for _ in said]
    for length in range(1, decoding.most_tokens + 1):
        logprobs = without_repeats(step(said), said, decoding.no_repeat)
        total = (scores[:, :, None] + logprobs.view(*scores.shape, -1)).flatten(1)
        best, places = total.topk(beams * (1 + len(ends)))  # so many that `beams` of them go on
        rows, tokens = prompts * scores.shape[1] + places // logprobs.shape[1], places % logprobs.shape[1]
        ended = torch.isin(tokens, ends)
        collect(done, said, best, rows, tokens, ended | (length == decoding.most_tokens), decoding)
        if all(len(each) == beams for each in done):
            break
        going = best.masked_fill(ended, -torch.inf).topk(beams).indices
        scores, rows, tokens = (each.gather(1, going) for each in (best, rows, tokens))
        said = torch.cat([said[rows.flatten()], tokens.view(-1, 1)], 1)
        if length == 1:
            step.repeat(beams)
        else:
            step.reorder(rows.flatten())
    return [[found for _, found in each] for each in done]


def collect(
    done: list[list[tuple[float, Found]]], said: "Tensor", best: "Tensor", rows: "Tensor", tokens: "Tensor",
    ended: "Tensor", decoding: Decoding,
) -> None:  # fmt: skip
    """Add to `done` the sentences that ended among the first `beams`, unless their prompt has as many already."""
    places = ended[:, : decoding.beams].nonzero().tolist()
    if not places:
        return
    length, full = said.shape[1], [len(each) == decoding.beams for each in done]
    before, logprobs, origins, last = (each.tolist() for each in (said, best, rows, tokens))
    for i, rank in places:
        if not full[i] and logprobs[i][rank] > float("-inf"):
            found = Found([*before[origins[i][rank]][1:], last[i][rank]], logprobs[i][rank] / length)
            done[i].append((logprobs[i][rank] / length**decoding.length_penalty, found))
    for each in done:
        each.sort(key=lambda found: -found[0])
        del each[decoding.beams :]


def draw(step: Decoder, decoding: Decoding, noise: "np.ndarray") -> list[list[Found]]:
    """`samples` sentences of each prompt, each token drawn among the 50 likeliest ones (Fan et al. 2018).

    `noise` (prompts, samples, tokens, 50) is Gumbel's: the largest of log-probability + noise is a draw.
    """
    import torch

    said, ends = step.start, torch.tensor(step.ends, device=step.start.device)
    shifts = torch.from_numpy(noise).to(said.device).flatten(0, 1)
    total = torch.zeros(len(shifts), device=said.device)
    lengths = torch.zeros_like(total)
    going = torch.ones_like(total, dtype=torch.bool)
    for length in range(decoding.most_tokens):
        logprobs = without_repeats(step(said), said, decoding.no_repeat)
        if length == 0:
            step.repeat(decoding.samples)
            said, logprobs = (each.repeat_interleave(decoding.samples, 0) for each in (said, logprobs))
        best = logprobs.topk(min(LIKELY, logprobs.shape[1]))
        pick = (best.values / decoding.temperature + shifts[:, length, : best.values.shape[1]]).argmax(1, keepdim=True)
        total += torch.where(going, best.values.gather(1, pick)[:, 0], 0.0)
        lengths += going
        token = best.indices.gather(1, pick)
        said, going = torch.cat([said, token], 1), going & ~torch.isin(token[:, 0], ends)
        if not going.any():
            break
    rows = zip(said[:, 1:].tolist(), lengths.int().tolist(), (total / lengths).tolist(), strict=True)
    found = [Found(tokens[:length], logprob) for tokens, length, logprob in rows]
    return [found[i : i + decoding.samples] for i in range(0, len(found), decoding.samples)]


def noise(sets: Sequence[Keywords], decoding: Decoding) -> "np.ndarray":
    """Gumbel noise (sets, samples, tokens, 50), float32: each set's is its own, whatever the others are."""
    import numpy as np

    def of(keywords: Keywords) -> "np.ndarray":
        name = hashlib.sha256(json.dumps([decoding.seed, *keywords]).encode()).digest()
        shape = (decoding.samples, decoding.most_tokens, LIKELY)
        return np.random.default_rng(list(name)).gumbel(size=shape).astype(np.float32)

    return np.stack([of(keywords) for keywords in sets])


def without_repeats(logprobs: "Tensor", said: "Tensor", n: int) -> "Tensor":
    """Log-probabilities with -inf for each token that would repeat `n` tokens in a row of `said` (rows, tokens)."""
    if not n or said.shape[1] < n:
        return logprobs
    grams = said.unfold(1, n, 1)  # (rows, places, n)
    same = (grams[:, :, :-1] == said[:, None, said.shape[1] - n + 1 :]).all(2)
    rows, places = same.nonzero(as_tuple=True)
    logprobs[rows, grams[rows, places, -1]] = float("-inf")
    return logprobs
