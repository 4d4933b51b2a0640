"""Models under one evaluation: ours, transformers' and LAION's, msclap, wav2clip, and anybody's in a few lines.

`--model package.module:function` is a system of a third party: function(device) returns an object such as this one,
and the module is found where Python looks for modules (PYTHONPATH=. for one beside you).

    class Mine:
        sample_rate = 32000                     # Hz of the audio that it takes
        seconds = 10.0                          # optional: longer clips come cut to this; else whole
        logit_scale = 100.0                     # optional: factor of the similarities, for probabilities
        digest = "mine-v3"                      # optional: names the weights; without, nothing is kept of a run

        def embed_audio(self, clips):           # list of mono float32 (samples,) > (clips, dim)
            return np.stack([self.net(clip) for clip in clips])

        def embed_text(self, texts):            # list of str > (texts, dim)
            return self.words(texts)

    def load(device):
        return Mine()

msclap asks for an older numpy and transformers than ours, wav2clip for a torchaudio that fits our torch: `pip install`
would break this environment. Give them one of their own that borrows what is in this one:

    python3.11 -m venv peers
    realpath .venv/lib/python3.11/site-packages > peers/lib/python3.11/site-packages/clapboard.pth
    peers/bin/pip install --no-deps msclap wav2clip torchlibrosa torchaudio
    peers/bin/python cli.py evaluate paper --model msclap:2023 --data-root DATA --out OUT
"""

import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from clap.config import ClapError, ModelConfig
from clap.data import Dataset
from clap.embed import checked, waveforms
from clap.fill import windows
from clap.model import CLAP, chunks

VERSION = 1  # one more when the same weights give other embeddings, or a setting another default: see `digest`
PUBLISHED_RATE = 48_000  # Hz of the datasets that build-dataset makes
THIRD_PARTY = re.compile(r"[\w.]+:\w+")
NEEDED = ("sample_rate", "embed_audio", "embed_text")


class ForeignError(ClapError):
    """A system that cannot be loaded, or that does not answer as it should; the message says what to do."""


class System(Protocol):
    """What evaluation needs of a model: L2-normalised float32 embeddings (n, dim) of sounds and of texts."""

    def embed_audio(
        self, clips: Any, *, batch_size: int = ..., truncation: str = ..., rng: np.random.Generator | None = ...
    ) -> Any:
        """(clips, dim) of files, of arrays or of a Dataset opened at `dataset_rate`; modes as CLAP.embed_audio."""

    def embed_text(self, texts: Sequence[str]) -> Any:
        """(texts, dim)."""


def open_model(name: str | Path, device: str | torch.device = "cpu") -> "CLAP | Foreign":
    """Whatever `--model` may name: what CLAP.from_pretrained takes, msclap:2023, wav2clip, package.module:function."""
    kind, _, version = str(name).partition(":")
    if Path(name).exists() or not (kind in ("msclap", "wav2clip") or THIRD_PARTY.fullmatch(str(name))):
        return CLAP.from_pretrained(name, device)
    if kind == "msclap":
        return Foreign(str(name), MsClap(version or "2023", str(device)))
    if kind == "wav2clip":
        return Foreign(str(name), Wav2Clip(str(device)))
    return Foreign(str(name), third_party(str(name), str(device)))


def third_party(name: str, device: str) -> Any:
    """What the function of "package.module:function" returns; ForeignError if it is not there or lacks a part."""
    module, _, function = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise ForeignError(f"{name}: {module} does not import ({error}): install it or set PYTHONPATH") from error
    if make is None:
        raise ForeignError(f"{name}: {module} has no {function}: name the function that returns your encoder")
    made = make(device)
    if missing := [part for part in NEEDED if not hasattr(made, part)]:
        raise ForeignError(f"{name} returned a {type(made).__name__} without {', '.join(missing)}: see clap/systems.py")
    return made


@dataclass(frozen=True)
class Foreign:
    """Another's encoder as a System: audio at its rate, cut to its length, embeddings checked and normalised."""

    name: str
    encoder: Any

    def embed_audio(
        self,
        clips: Any,
        sample_rate: int = PUBLISHED_RATE,
        batch_size: int = 32,
        truncation: str = "auto",
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """As CLAP.embed_audio. Clips come whole and unfilled unless they are longer than `seconds`.

        Of longer ones "auto" and "centre" take the middle, "random" a place drawn from `rng`, "chunks" all.
        """
        sounds = at_rate(clips, sample_rate, self.encoder.sample_rate)
        return concatenate([self._embed(part, truncation, rng) for part in chunks(sounds, batch_size)])

    def _embed(self, clips: Sequence[np.ndarray], truncation: str, rng: np.random.Generator | None) -> np.ndarray:
        longest = round((getattr(self.encoder, "seconds", None) or 0) * self.encoder.sample_rate)
        mode = "centre" if truncation == "auto" else truncation
        parts = [
            windows(clip, longest, mode, rng=rng) if 0 < longest < len(clip) else clip[None]
            for clip in clips
        ]  # fmt: skip
        flat = [window for part in parts for window in part]
        found = self._checked(self.encoder.embed_audio(flat), len(flat))
        ends = np.cumsum([len(part) for part in parts])[:-1]
        return normalise(np.stack([each.mean(axis=0) for each in np.split(found, ends)]))

    def embed_text(self, texts: Sequence[str] | str, batch_size: int = 256) -> np.ndarray:
        """As CLAP.embed_text."""
        texts = [texts] if isinstance(texts, str) else texts
        parts = [self._checked(self.encoder.embed_text(part), len(part)) for part in chunks(texts, batch_size)]
        return concatenate(parts)

    def _checked(self, found: Any, n: int) -> np.ndarray:
        """Normalised float32 (n, dim) of what the encoder returned, numpy's or torch's."""
        array = np.asarray(found.detach().cpu() if hasattr(found, "detach") else found, np.float32)
        if array.ndim != 2 or len(array) != n:
            raise ForeignError(f"{self.name} gave embeddings of shape {array.shape} for {n} items: want ({n}, dim)")
        return normalise(array)


class MsClap:
    """Microsoft's CLAP (arXiv:2206.04769, 2309.05767) through its package msclap; not run by our tests.

    Its own reading of clips and texts is not used: it takes files only, through a torchaudio that wants torchcodec,
    crops them at random, and calls a method of tokenizers that transformers 5 no longer has.
    """

    def __init__(self, version: str, device: str) -> None:
        self.model = package("msclap").CLAP(version=version, use_cuda=device.startswith("cuda"))
        self.sample_rate, self.seconds = int(self.model.args.sampling_rate), float(self.model.args.duration)
        self.logit_scale = self.model.clap.logit_scale.exp().item()
        self.digest = weights_digest(self.model.clap, version)
        self.device = self.model.clap.logit_scale.device

    @torch.no_grad()
    def embed_audio(self, clips: Sequence[np.ndarray]) -> Any:
        """(clips, dim), not normalised; shorter clips are repeated, as msclap does."""
        n_samples = round(self.seconds * self.sample_rate)
        batch = torch.from_numpy(np.stack([np.resize(clip, n_samples) for clip in clips]))
        return self.model.clap.audio_encoder(batch.to(self.device))[0]

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Any:
        """(texts, dim), not normalised; GPT-2, the text tower of 2023, gets the end of text that it expects."""
        end = " <|endoftext|>" if "gpt" in self.model.args.text_model else ""
        tokens = self.model.tokenizer(
            [text + end for text in texts],
            padding="max_length",
            truncation=True,
            max_length=self.model.args.text_len,
            return_tensors="pt",
        )
        return self.model.clap.caption_encoder({key: tokens[key].to(self.device) for key in self.model.token_keys})


class Wav2Clip:
    """Wav2CLIP (arXiv:2110.11499): its audio encoder and the texts of CLIP ViT-B/32; not run by our tests."""

    sample_rate = 16_000  # of its training

    def __init__(self, device: str) -> None:
        from transformers import AutoTokenizer, CLIPTextModelWithProjection

        self.package, clip = package("wav2clip"), "openai/clip-vit-base-patch32"
        self.audio = self.package.get_model(device=device)
        text: Any = CLIPTextModelWithProjection.from_pretrained(clip)
        self.text = text.to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(clip)
        self.digest = weights_digest(nn.ModuleList([self.audio, self.text]), clip)

    def embed_audio(self, clips: Sequence[np.ndarray]) -> Any:
        """(clips, dim), not normalised; one by one, for a batch of it has one length."""
        return np.concatenate([self.package.embed_audio(clip[None], self.audio) for clip in clips])

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Any:
        """(texts, dim), not normalised."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return self.text(**tokens.to(self.text.device)).text_embeds


def package(name: str) -> Any:
    """Another's package; ForeignError, which says how to come by it, where it does not import."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ForeignError(
            f"--model {name} needs its package, which does not import ({error}): install it in an environment of its "
            "own, as the head of clap/systems.py says, for here it would replace packages that we need"
        ) from error


def dataset_rate(model: System) -> int:
    """Rate, Hz, at which a dataset has to be opened for the model; what a foreign system hears is resampled."""
    return model.config.sample_rate if isinstance(model, CLAP) else PUBLISHED_RATE


def scale(model: System) -> float:
    """What similarities are multiplied by before a softmax; 100, as of CLIP, for a system that does not say."""
    if isinstance(model, CLAP):
        return model.log_scale_a.exp().item()
    return float(getattr(getattr(model, "encoder", model), "logit_scale", 100.0))


def digest(model: System) -> str | None:
    """Names all that embeddings follow from: VERSION, weights, settings and vocabulary.

    None for a foreign system that does not name its weights. What is kept of a model, an index or a probe is known by
    this name.
    """
    if isinstance(model, CLAP):
        words = sorted(model.tokenizer.get_vocab().items()) if model.tokenizer is not None else []
        return weights_digest(model, f"{VERSION}{changed(model.config)}{words}")
    named = getattr(getattr(model, "encoder", model), "digest", None)
    return f"{VERSION}:{getattr(model, 'name', '')}:{named}" if named else None


def changed(config: ModelConfig) -> dict[str, Any]:
    """The settings that are not the default ones, by name: the same after a release that has a new setting."""
    known = {each.name: (getattr(config, each.name), each.default) for each in fields(config)}
    return {name: value for name, (value, default) in sorted(known.items()) if value != default}


def weights_digest(module: nn.Module, also: str) -> str:
    """Hash of a module's tensors with their names, and of `also`."""
    hashed = sha256(also.encode())
    for name, tensor in sorted(module.state_dict().items()):
        hashed.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def at_rate(clips: Any, sample_rate: int, wanted: int) -> Iterator[np.ndarray]:
    """Whole clips, mono float32 (samples,) at `wanted` Hz, of files, of arrays at `sample_rate` or of a Dataset."""
    if not isinstance(clips, Dataset):
        return waveforms(clips, sample_rate, wanted, 0, "whole")
    own = clips.sample_rate
    return (checked(clip, own, wanted, clips.name) for clip in waveforms(clips, own, own, 0, "whole"))


def normalise(embeddings: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros becomes not-a-number, which metrics refuse."""
    with np.errstate(invalid="ignore"):
        return embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)


def concatenate(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Parts (n, dim) as one, also where there are none."""
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
