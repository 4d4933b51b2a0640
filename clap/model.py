"""CLAP: an audio and a text tower, projected into one space (LAION-CLAP, arXiv:2211.06687, section 2)."""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from clap import checkpoint
from clap import text as towers
from clap.config import ClapError, ConfigError, ModelConfig, check_model, read, to_dict
from clap.embed import waveforms
from clap.features import ROWS, Mels, SpecAugment, alone, front_end, mels_for
from clap.fill import n_chunks
from clap.heads import projection, transform
from clap.htsat import HTSAT
from clap.pann import PANN

LARGEST_SCALE = math.log(100)  # as CLIP: a scale past 100 makes training unstable
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# What building a model raises where its settings are wrong or its files are missing.
UNFIT = (
    OSError, LookupError, ValueError, TypeError, RuntimeError, ArithmeticError, AttributeError, StrictDataclassError,
)  # fmt: skip


class ModelError(ClapError):
    """A checkpoint that is not there or not whole; the message says what to do."""


class Embeddings(NamedTuple):
    """L2-normalised float32 embeddings of a batch and the factors their similarities are multiplied by."""

    audio: Tensor  # (batch, dim)
    text: Tensor  # (batch, dim)
    scale_a: Tensor  # () audio to text
    scale_t: Tensor  # () text to audio
    audio_mlp: Tensor | None = None  # (batch, dim), of config.transforms; not normalised
    text_mlp: Tensor | None = None  # (batch, dim)
    bias: Tensor | None = None  # () of config.logit_bias


class CLAP(nn.Module):
    """Log-mel front end, two towers, two projections, two learned scales, and what heads the loss needs."""

    def __init__(self, config: ModelConfig, encoder: Any, tokenizer: Any) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.log_mel = front_end(config)
        self.audio = audio_tower(config)
        pooling = towers.choose_pooling(config.text_pooling, encoder, config.text == "scratch")
        self.text = towers.TextTower(encoder, pooling, config.text_context)
        self.audio_projection = projection(self.audio.dim, config.dim, config.activation)
        self.text_projection = projection(self.text.dim, config.dim, config.activation)
        self.audio_transform = transform(config.dim) if config.transforms else None
        self.text_transform = transform(config.dim) if config.transforms else None
        start = 10.0 if config.logit_bias else 1 / 0.07  # as SigLIP (arXiv:2303.15343), as CLIP
        self.log_scale_a = nn.Parameter(torch.tensor(math.log(start)))
        self.log_scale_t = nn.Parameter(torch.tensor(math.log(start)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if config.logit_bias else None

    @classmethod
    def create(cls, config: ModelConfig, captions: Iterable[str]) -> "CLAP":
        """A model to train; a text tower from scratch learns its tokenizer from the captions."""
        if config.text == "scratch":
            sizes = (config.text_vocab, config.text_width, config.text_layers, config.text_heads)
            kind = (config.text_arch, config.text_tokens)
            return cls(config, *towers.scratch(captions, *sizes, config.text_context, *kind))
        return cls(config, *towers.pretrained(config.text, config.text_context))

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | Path, device: str | torch.device = "cpu", tokenizer: str | Path | None = None
    ) -> "CLAP":
        """The model, to evaluate, of a run folder (its best checkpoint), a checkpoint folder or a Hub id.

        Also of a folder or Hub id of transformers' ClapModel, or a .pt file of LAION-CLAP, which has no
        `tokenizer`: give a folder or Hub id that has, or it is looked for on the Hub.
        """
        from clap import convert, export

        folder = locate(path_or_id)
        if folder.is_file():
            return convert.from_laion(folder, tokenizer).to(device)
        if export.is_transformers(folder):
            return export.from_transformers(folder, tokenizer).to(device)
        return cls._from_folder(folder).to(device).eval()

    @classmethod
    def _from_folder(cls, folder: Path) -> "CLAP":
        """The model that `fill` wrote; ModelError or ConfigError if it is not whole."""
        from clap import convert

        config = read(ModelConfig, folder / "config.json")
        try:
            check_model(config)
            model = cls(config, *towers.load(folder / "text"))
        except UNFIT as error:
            raise ModelError(f"{folder} is no whole model, or config.json or text/ is not its own: {error}") from error
        tensors = convert.read_safetensors(folder / "model.safetensors")
        convert.load(model, tensors, folder, tied(model, tensors))
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and text/ (the encoder's config, the tokenizer), whole or not at all."""
        checkpoint.place(Path(folder), self.fill)

    def fill(self, folder: Path) -> None:
        """What `save_pretrained` writes, into a folder that nobody reads yet."""
        from safetensors.torch import save_model

        towers.save(self.text, self.tokenizer, folder / "text")
        (folder / "config.json").write_text(json.dumps(to_dict(self.config), indent=2) + "\n")
        save_model(self, str(folder / "model.safetensors"))

    @property
    def device(self) -> torch.device:
        return self.log_scale_a.device

    def forward(self, audio: Tensor | Mels, input_ids: Tensor, attention_mask: Tensor) -> Embeddings:
        """Waveforms (batch, n_samples), int16 or float32, or mels; tokens and mask (batch, n)."""
        return self.heads(self.encode_audio(audio), self.encode_text(input_ids, attention_mask))

    def heads(self, audio: Tensor, text: Tensor) -> Embeddings:
        """What a loss is given beside the embeddings (batch, dim) of both sides."""
        out = Embeddings(audio, text, self.log_scale_a.exp(), self.log_scale_t.exp(), bias=self.logit_bias)
        if self.audio_transform is None or self.text_transform is None:
            return out
        return out._replace(audio_mlp=self.audio_transform(audio).float(), text_mlp=self.text_transform(text).float())

    def encode_audio(self, audio: Tensor | Mels) -> Tensor:
        """Waveforms (batch, n_samples) or mels > (batch, dim), L2-normalised."""
        mels = audio if isinstance(audio, Mels) else alone(self.log_mel(audio))
        embedding = self.audio_projection(self.audio(mels))
        return nn.functional.normalize(embedding.float(), dim=-1)

    def encode_waveforms(
        self, waveforms: Sequence[np.ndarray], mode: str = "auto", rng: np.random.Generator | None = None
    ) -> Tensor:
        """Mono clips (samples,) of any length > (clips, dim), L2-normalised; `mode` as features.mels_for.

        "chunks" gives a clip the direction of the mean of its chunks' embeddings.
        """
        mels = mels_for(waveforms, self.config, mode, rng, self.log_mel)
        if mode != "chunks":
            return self.encode_audio(mels)
        embedding = torch.cat([self.encode_audio(alone(some)) for some in mels.whole.split(ROWS)])
        counts = [n_chunks(len(waveform), self.config.n_samples) for waveform in waveforms]
        means = [chunk.mean(dim=0) for chunk in embedding.split(counts)]
        return nn.functional.normalize(torch.stack(means), dim=-1)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, n) > (batch, dim), L2-normalised."""
        embedding = self.text_projection(self.text(input_ids, attention_mask))
        return nn.functional.normalize(embedding.float(), dim=-1)

    @torch.no_grad()
    def clamp_scales(self) -> None:
        """Keep both scales between 1 and 100; call after every step."""
        for scale in (self.log_scale_a, self.log_scale_t):
            scale.clamp_(0, LARGEST_SCALE)

    def embed_audio(
        self,
        clips: Any,
        sample_rate: int = 48000,
        batch_size: int = 32,
        truncation: str = "auto",
        tensor: bool = False,
        precision: str = "fp32",
        rng: np.random.Generator | None = None,
    ) -> Any:
        """(clips, dim) float32, L2-normalised, of files, of arrays or tensors at `sample_rate` Hz, or of a Dataset.

        One array is (samples,); in a list, also (channels, samples); float in [-1, 1] or int16. Channels are
        averaged; shorter clips are filled, of longer ones "auto" takes the centre or, if the model is fused, the
        whole and three crops at fixed places (`truncation` as features.mels_for; "random" draws from `rng`). The
        result depends on neither batch size nor neighbours; `tensor`: torch's, on the model's device, not numpy's.
        Raises DataError for a clip that is empty, not finite or does not decode.
        """
        fused = self.config.fusion != "none"
        mode = "centre" if truncation == "auto" and not fused else truncation
        sounds = waveforms(clips, sample_rate, self.config.sample_rate, self.config.n_samples, mode)
        batches = (self.encode_waveforms(part, mode, rng) for part in chunks(sounds, batch_size))
        return self._embed(batches, tensor, precision)

    def embed_text(
        self, texts: Sequence[str] | str, batch_size: int = 256, tensor: bool = False, precision: str = "fp32"
    ) -> Any:
        """(texts, dim) float32, L2-normalised; texts of about the same length share a batch, to pad little."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        sets = ([texts[i] for i in part] for part in chunks(order, batch_size))
        tokens = (towers.tokenize(self.tokenizer, part, self.config.text_context) for part in sets)
        batches = (self.encode_text(ids.to(self.device), mask.to(self.device)) for ids, mask in tokens)
        found = self._embed(batches, tensor, precision)
        return found[np.argsort(order, kind="stable")] if texts else found

    def similarity(self, audio: Any, text: Any) -> Any:
        """Cosine similarity (clips, texts) of embeddings, both numpy's or both torch's."""
        return audio @ text.T

    def _embed(self, batches: Iterator[Tensor], tensor: bool, precision: str) -> Any:
        """Run an iterator of embeddings in evaluation mode, without gradients."""
        if precision not in ("fp32", "bf16"):
            raise ConfigError(f"precision is {precision!r}: use fp32 or bf16")
        was_training, device = self.training, self.device
        half = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        self.eval()
        try:
            with torch.no_grad(), half:
                parts = [part if tensor else part.cpu() for part in batches]
        finally:
            self.train(was_training)
        found = torch.cat(parts) if parts else torch.empty(0, self.config.dim, device=device)
        return found if tensor else found.numpy()


def audio_tower(config: ModelConfig) -> Any:
    """HTSAT or PANN of the config's sizes."""
    tower: Any
    if config.audio == "htsat":
        tower = HTSAT(
            n_mels=config.n_mels,
            spec_size=config.htsat_spec,
            width=config.htsat_width,
            depths=config.htsat_depths,
            heads=config.htsat_heads,
            window=config.htsat_window,
            drop_path=config.htsat_drop_path,
            fusion=config.fusion,
        )
    else:
        tower = PANN(
            n_mels=config.n_mels,
            widths=config.pann_widths,
            kernel=config.pann_kernel,
            convs=config.pann_convs,
            dropout=config.pann_dropout,
            head_dropout=config.pann_head_dropout,
            fusion=config.fusion,
        )
    tower.augment = SpecAugment(time_width=config.time_mask, freq_width=config.freq_mask)
    return tower


def locate(path_or_id: str | Path) -> Path:
    """The checkpoint folder behind a run folder, a checkpoint folder or a Hub id; a file is itself."""
    folder = Path(path_or_id)
    if folder.is_file():
        return folder
    for found in (folder, folder / "best", folder / "last"):
        if any((found / name).exists() for name in WEIGHTS):
            return found.resolve()
    if folder.exists():
        raise ModelError(f"{folder} holds no checkpoint: give a run folder (with best/) or a checkpoint in it")
    if not towers.HUB_ID.fullmatch(str(path_or_id)):
        raise ModelError(f"no model at {path_or_id}: give a run folder, a checkpoint folder or file, or a Hub id")
    return download(str(path_or_id))


def download(hub_id: str) -> Path:
    """The folder of a model from the Hub: ours, or transformers', whose weights may be no safetensors."""
    from huggingface_hub import snapshot_download

    safe, pickled = WEIGHTS
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=[safe, "*.json", "*.txt", "text/*"]))
        if not (folder / safe).exists():
            folder = Path(snapshot_download(hub_id, allow_patterns=[pickled, "*.json", "*.txt"]))
    except (OSError, ValueError) as error:
        raise ModelError(f"{hub_id} is no folder here, and the Hugging Face Hub did not give it: {error}") from error
    if not any((folder / name).exists() for name in WEIGHTS):
        raise ModelError(f"{hub_id} on the Hugging Face Hub holds no {' or '.join(WEIGHTS)}: is it a CLAP model?")
    return folder


def tied(model: nn.Module, tensors: dict[str, Tensor]) -> list[str]:
    """Names of a model's tensors that share their memory with one in `tensors`, and so need not be there."""
    state = model.state_dict()
    there = {state[name].data_ptr() for name in tensors if name in state}
    return [name for name, value in state.items() if value.data_ptr() in there]


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last one shorter."""
    if size < 1:
        raise ConfigError(f"batch_size is {size}: it must be 1 or more")
    iterator = iter(items)
    while part := list(itertools.islice(iterator, size)):
        yield part
