"""Sentences from keywords by a seq2seq model of transformers (T5 and its like), a batch at a time.

    captioner = Captioner("mrm8488/t5-base-finetuned-common_gen", revision)
    captioner.generate([("dog", "bark"), ("rain",)])  # > [[("A dog barks.", -0.41), ...], [...]]

What is written for a set of keywords depends on nothing else: not on the other sets of a batch, their order, or what
was written before. Floating-point sums change with the shape of a batch, so all batches of a length have one shape, are
filled up where sets are few, and on a CPU run in one thread; every sample draws from a random stream of its own. The
same machine and versions thus give the same bytes, in whatever process and parts; another machine may not.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from pipelines.beams import Decoder, Decoding, Found, Keywords, beam_search, draw, ends_of, noise, start_of
from pipelines.disk import BuildError
from pipelines.english import sentence

# What stands between two keywords in a model's prompt. A folder of ours says so itself, in captioner.json.
PROMPTS = {"mrm8488/t5-base-finetuned-common_gen": " ", "gagan3012/k2t": "|", "gagan3012/k2t-base": "|"}
PROMPT = " "
BATCH = {"cpu": 32, "cuda": 256}  # sets of keywords
STEP = 16  # tokens by which the length of a batch's prompts grows
PROMPT_TOKENS = 128  # of a prompt, its end included; the rest is cut off
KNOWN = 1 << 16  # sets of keywords whose sentences are kept in memory
MODEL_FILES = (".json", ".safetensors", ".bin", ".model", ".txt")


class Captioner:
    """A model, its tokenizer and its prompt, on a GPU if there is one."""

    def __init__(self, model: str, revision: str = "", decoding: Decoding | None = None) -> None:
        import torch

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.decoding = decoding or Decoding()
        loaded, self.tokenizer = load(model, revision)
        self.model = loaded.eval().to(self.device, dtype_of(self.decoding.precision, self.device))
        self.prompt = prompt_of(model)
        self.known: dict[Keywords, list[tuple[str, float]]] = {}

    def generate(self, sets: Iterable[Keywords]) -> list[list[tuple[str, float]]]:
        """For each set of keywords its sentences with their mean log-probability per token, the likeliest first.

        No sentence comes twice; there may be none. Equal sets are written once.
        """
        sets = list(sets)
        new = [each for each in dict.fromkeys(sets) if each not in self.known]
        found = {each: self.known[each] for each in sets if each in self.known} | dict(self.write(new))
        self.known |= found
        for each in list(self.known)[: max(0, len(self.known) - KNOWN)]:
            del self.known[each]
        return [found[each] for each in sets]

    def write(self, sets: list[Keywords]) -> Iterator[tuple[Keywords, list[tuple[str, float]]]]:
        """(keywords, sentences) of each set, in batches of prompts of about the same length."""
        prompts = [self.encode(each) for each in sets]
        lengths = sorted({room(prompt) for prompt in prompts})
        for length in lengths:
            alike = [i for i, prompt in enumerate(prompts) if room(prompt) == length]
            for start in range(0, len(alike), BATCH[self.device]):
                group = alike[start : start + BATCH[self.device]]
                found = self.search([prompts[i] for i in group], [sets[i] for i in group], length)
                yield from ((sets[i], self.read(each)) for i, each in zip(group, found, strict=True))

    def encode(self, keywords: Keywords) -> list[int]:
        """The tokens of a prompt, with one end token; what looks like a special token in a keyword is none."""
        text = self.prompt.join(word.replace("<", " ").replace(">", " ") for word in keywords)
        tokens = self.tokenizer(text, truncation=False, verbose=False)["input_ids"]
        end = self.tokenizer.eos_token_id
        while tokens and tokens[-1] == end:
            tokens.pop()
        return [*tokens[: PROMPT_TOKENS - 1], end]

    def search(self, prompts: list[list[int]], sets: list[Keywords], length: int) -> list[list[Found]]:
        """What is found for prompts of at most `length` tokens, those of beams before those that were drawn."""
        import torch

        ids = torch.full((BATCH[self.device], length), self.tokenizer.pad_token_id)  # (batch, length)
        mask = torch.zeros_like(ids)
        for i in range(len(ids)):
            prompt = prompts[min(i, len(prompts) - 1)]  # those that fill up are the last one again
            ids[i, : len(prompt)], mask[i, : len(prompt)] = torch.tensor(prompt), 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        with torch.inference_mode(), one_thread():
            found = beam_search(Decoder(self.model, ids, mask), self.decoding)
            if self.decoding.samples:
                filled = [*sets, *[sets[-1]] * (len(ids) - len(sets))]
                drawn = draw(Decoder(self.model, ids, mask), self.decoding, noise(filled, self.decoding))
                found = [ours + theirs for ours, theirs in zip(found, drawn, strict=True)]
        return found[: len(prompts)]

    def read(self, found: list[Found]) -> list[tuple[str, float]]:
        """The sentences in plain text, the likeliest first, none twice and none without a word."""
        if not found:
            return []
        found = sorted(found, key=lambda each: -each.logprob)
        texts = self.tokenizer.batch_decode([each.tokens for each in found], skip_special_tokens=True)
        best: dict[str, float] = {}
        for text, each in zip(texts, found, strict=True):
            if line := sentence(text):
                best.setdefault(line[0].upper() + line[1:], each.logprob)
        return list(best.items())


@cache
def captioner(model: str, revision: str, decoding: Decoding) -> Captioner:
    """The captioner of these settings, loaded once in a process."""
    return Captioner(model, revision, decoding)


def load(model: str, revision: str = "") -> tuple[Any, Any]:
    """Model and tokenizer of a folder or a Hub id, fp32 on the CPU; for training too.

    No pickle and no Python of theirs is executed. Raises BuildError where they are out of reach, damaged, or lack
    weights or special tokens.
    """
    from transformers import AutoModelForSeq2SeqLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # the build shows its own
    tokenizer = look(model, revision)
    with told(model):
        loaded, notes = AutoModelForSeq2SeqLM.from_pretrained(
            model, weights_only=True, dtype="float32", output_loading_info=True, **origin(model, revision)
        )
    if lacking := sorted(map(str, {*notes["missing_keys"], *notes["mismatched_keys"]})):
        raise BuildError(f"captioner {model!r} lacks {len(lacking)} weights ({', '.join(lacking[:3])}): it is no whole "
                         "seq2seq model; train or download it anew")  # fmt: skip
    tokens = {"end": ends_of(loaded), "start": [start_of(loaded)], "padding": [tokenizer.pad_token_id],
              "tokenizer's end": [tokenizer.eos_token_id]}  # fmt: skip
    size = loaded.get_input_embeddings().num_embeddings
    for name, ids in tokens.items():
        if not ids or not all(type(token) is int and 0 <= token < size for token in ids):
            raise BuildError(f"captioner {model!r} has no {name} token: mend its config or its tokenizer's")
    return loaded, tokenizer


def look(model: str, revision: str = "") -> Any:
    """The tokenizer of a captioner, and a look at its configuration: quick, before anything long is begun."""
    from transformers import AutoConfig, AutoTokenizer

    with told(model):
        AutoConfig.from_pretrained(model, **origin(model, revision))
        return AutoTokenizer.from_pretrained(model, **origin(model, revision))


def origin(model: str, revision: str) -> dict[str, Any]:
    """How transformers should read a folder or a Hub id: never by running the Python that lies beside a model."""
    at: dict[str, Any] = {} if Path(model).is_dir() else {"revision": revision or None}
    return at | {"trust_remote_code": False}


@contextmanager
def told(model: str) -> Iterator[None]:
    """What transformers raises for a model that is out of reach or damaged, as a BuildError."""
    from huggingface_hub.errors import HTTPError, StrictDataclassError
    from safetensors import SafetensorError

    damaged = (SafetensorError, UnpicklingError, StrictDataclassError, RuntimeError, LookupError, TypeError,
               AttributeError, ImportError, EOFError)  # fmt: skip
    try:
        yield
    except (OSError, ValueError, HTTPError) as error:
        raise BuildError(
            f"no captioner {model!r}: it is no folder of a transformers seq2seq model, and the Hugging Face Hub did "
            f"not give it (offline?): {brief(error)}. Train one with train-captioner, or give a folder that holds one"
        ) from error
    except damaged as error:
        raise BuildError(f"captioner {model!r} is damaged or not whole ({type(error).__name__}: "
                         f"{brief(error)}): train or download it anew") from error  # fmt: skip


def brief(error: Exception) -> str:
    """What a library says first; further on it may advise to load without care."""
    return re.split(r"\.\s|\n", str(error).strip())[0][:200]


def dtype_of(precision: str, device: str) -> Any:
    """The type in which a model computes; by default bf16 on a GPU, and fp32 elsewhere."""
    import torch

    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and device == "cuda") else torch.float32


def prompt_of(model: str) -> str:
    """What stands between two keywords in a model's prompt; of a model on the Hub its captioner.json is not read."""
    path = Path(model) / "captioner.json"
    if not path.is_file():
        return PROMPTS.get(model, PROMPT)
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["prompt"])
    except (ValueError, KeyError, TypeError) as error:
        raise BuildError(f'{path} is not {{"prompt": what stands between two keywords}}: mend or remove it') from error


def pin(model: str, revision: str) -> tuple[str, str]:
    """A model and a revision that name its weights for good: a commit of the Hub, or a digest of a folder's files.

    Raises BuildError where that cannot be told, or where a folder is not of the revision that was asked for.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        held = digest(folder)
        if revision not in ("", held):
            raise BuildError(f"{folder} holds revision {held} and not {revision}: leave --captioner-revision out")
        return str(folder.absolute()), held
    if len(revision) == 40 and set(revision) <= set("0123456789abcdef"):
        return model, revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # offline, which is no OSError

    try:
        return model, str(HfApi().model_info(model, revision=revision or None).sha)
    except (OSError, ValueError, HTTPError) as error:
        raise BuildError(
            f"no captioner {model!r}: it is no folder, and the Hugging Face Hub did not tell its revision "
            "(offline?). Give a folder, or the commit of a model that was fetched before as --captioner-revision"
        ) from error


def digest(folder: Path) -> str:
    """12 digits that stand for what a model's folder holds, whatever else (logs, checkpoints) lies in it."""
    names = sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILES and path.is_file())
    if not any(path.name == "config.json" for path in names):
        raise BuildError(f"{folder} holds no model: it has no config.json. Is its training finished?")
    total = hashlib.sha256()
    for path in names:
        with path.open("rb") as handle:
            total.update(f"{path.name} {hashlib.file_digest(handle, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()[:12]


def room(prompt: list[int]) -> int:
    """The length of the batches that a prompt goes into."""
    return -(-len(prompt) // STEP) * STEP


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch computes in one thread, whose sums do not depend on how many cores there are."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
