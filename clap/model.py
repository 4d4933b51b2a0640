"""CLAP: an audio and a text tower, projected into one space (LAION-CLAP, arXiv:2211.06687, section 2)."""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from clap import text as towers
from clap.config import ClapError, ModelConfig, read, to_dict
from clap.data import DataError, fill
from clap.features import LogMel, SpecAugment
from clap.htsat import HTSAT
from clap.pann import PANN

LARGEST_SCALE = math.log(100)  # as CLIP: a scale past 100 makes training unstable


class ModelError(ClapError):
    """A checkpoint that is not there or not whole; the message says what to do."""


class Embeddings(NamedTuple):
    """L2-normalised float32 embeddings of a batch and the factors their similarities are multiplied by."""

    audio: Tensor  # (batch, dim)
    text: Tensor  # (batch, dim)
    scale_a: Tensor  # () audio to text
    scale_t: Tensor  # () text to audio


class CLAP(nn.Module):
    """Log-mel front end, two towers, two projections (Linear, ReLU, Linear) and two learned scales."""

    def __init__(self, config: ModelConfig, encoder: Any, tokenizer: Any) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.log_mel = LogMel(config.sample_rate, config.n_fft, config.hop, config.n_mels, config.fmin, config.fmax)
        self.audio = audio_tower(config)
        self.text = towers.TextTower(encoder, config.text_pooling)
        self.audio_projection = projection(self.audio.dim, config.dim)
        self.text_projection = projection(self.text.dim, config.dim)
        self.log_scale_a = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.log_scale_t = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @classmethod
    def create(cls, config: ModelConfig, captions: Iterable[str]) -> "CLAP":
        """A model to train; a text tower from scratch learns its tokenizer from the captions."""
        if config.text == "scratch":
            sizes = (config.text_vocab, config.text_width, config.text_layers, config.text_heads)
            return cls(config, *towers.scratch(captions, *sizes, config.text_context))
        return cls(config, *towers.pretrained(config.text))

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, device: str | torch.device = "cpu") -> "CLAP":
        """The model of a run folder (its best checkpoint), a checkpoint folder or a Hub id, to evaluate."""
        from safetensors.torch import load_model

        folder = locate(path_or_id)
        config = read(ModelConfig, folder / "config.json")
        model = cls(config, *towers.load(folder / "text"))
        load_model(model, folder / "model.safetensors")
        return model.to(device).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and text/ (the encoder's config, the tokenizer)."""
        from safetensors.torch import save_model

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        towers.save(self.text, self.tokenizer, folder / "text")
        (folder / "config.json").write_text(json.dumps(to_dict(self.config), indent=2) + "\n")
        save_model(self, str(folder / "model.safetensors"))

    @property
    def device(self) -> torch.device:
        return self.log_scale_a.device

    def forward(self, waveform: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Embeddings:
        """waveform (batch, n_samples) int16 or float32; tokens and mask (batch, n)."""
        return Embeddings(
            self.encode_audio(waveform),
            self.encode_text(input_ids, attention_mask),
            self.log_scale_a.exp(),
            self.log_scale_t.exp(),
        )

    def encode_audio(self, waveform: Tensor) -> Tensor:
        """(batch, n_samples) > (batch, dim), L2-normalised."""
        embedding = self.audio_projection(self.audio(self.log_mel(waveform)))
        return nn.functional.normalize(embedding.float(), dim=-1)

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
        files_or_arrays: "Sequence[str | Path | np.ndarray] | str | Path | np.ndarray",
        sample_rate: int = 48000,
        batch_size: int = 32,
    ) -> np.ndarray:
        """(n, dim) float32, L2-normalised, of files or of arrays at `sample_rate` Hz.

        One array is (samples,); in a list, also (channels, samples); float in [-1, 1] or int16. Channels are
        averaged; of a longer clip the centre is taken, a shorter one is repeated. Raises DataError for a clip
        that is empty, not finite or does not decode. The result depends on neither batch size nor neighbours.
        """
        clips: Any = files_or_arrays
        if isinstance(clips, str | Path) or getattr(clips, "ndim", 2) == 1:
            clips = [clips]
        windows = (self._window(clip, sample_rate, i) for i, clip in enumerate(clips))
        return self.embed_windows(map(np.stack, chunks(windows, batch_size)), batch_size)

    def embed_windows(self, windows: Iterable[np.ndarray], batch_size: int = 32) -> np.ndarray:
        """(n, dim) float32 of arrays (any number, n_samples), int16 or float32, of the model's length."""
        parts = (torch.from_numpy(array).split(batch_size) for array in windows)
        return self._embed(self.encode_audio(part.to(self.device)) for array in parts for part in array)

    def embed_text(self, texts: Sequence[str] | str, batch_size: int = 256) -> np.ndarray:
        """(n, dim) float32, L2-normalised."""
        texts = [texts] if isinstance(texts, str) else texts
        tokens = (towers.tokenize(self.tokenizer, part, self.config.text_context) for part in chunks(texts, batch_size))
        return self._embed(self.encode_text(ids.to(self.device), mask.to(self.device)) for ids, mask in tokens)

    def similarity(self, audio: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Cosine similarity (clips, texts) of embeddings."""
        return audio @ text.T

    def _embed(self, batches: Iterator[Tensor]) -> np.ndarray:
        """Run an iterator of embeddings in evaluation mode, without gradients."""
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                parts = [part.cpu().numpy() for part in batches]
        finally:
            self.train(was_training)
        return np.concatenate(parts) if parts else np.empty((0, self.config.dim), np.float32)

    def _window(self, clip: "str | Path | np.ndarray", sample_rate: int, index: int) -> np.ndarray:
        """The centre window of one clip: (n_samples,) float32."""
        where = f"clip {index}" if isinstance(clip, np.ndarray) else str(clip)
        waveform, rate = (clip, sample_rate) if isinstance(clip, np.ndarray) else read_audio(clip)
        waveform = mono(waveform)
        if rate != self.config.sample_rate:
            import soxr

            waveform = soxr.resample(waveform, rate, self.config.sample_rate)
        if not len(waveform):
            raise DataError(f"{where} is empty: leave it out")
        if not np.isfinite(waveform).all():
            raise DataError(f"{where} holds NaN or infinity: leave it out, or decode it again")
        n_samples = self.config.n_samples
        start = max(0, len(waveform) - n_samples) // 2
        return fill(waveform[start : start + n_samples], n_samples)


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
        )
    else:
        tower = PANN(
            n_mels=config.n_mels,
            widths=config.pann_widths,
            kernel=config.pann_kernel,
            convs=config.pann_convs,
            dropout=config.pann_dropout,
            head_dropout=config.pann_head_dropout,
        )
    tower.augment = SpecAugment(time_width=config.time_mask, freq_width=config.freq_mask)
    return tower


def projection(into: int, dim: int) -> nn.Sequential:
    """Linear, ReLU, Linear: (batch, into) > (batch, dim)."""
    return nn.Sequential(nn.Linear(into, dim), nn.ReLU(), nn.Linear(dim, dim))


def locate(path_or_id: str | Path) -> Path:
    """The checkpoint folder behind a run folder, a checkpoint folder or a Hub id."""
    folder = Path(path_or_id)
    for found in (folder, folder / "best", folder / "last"):
        if (found / "model.safetensors").exists():
            return found.resolve()
    if folder.exists():
        raise ModelError(f"{folder} holds no checkpoint: give a run folder (with best/) or a checkpoint in it")
    if not towers.HUB_ID.fullmatch(str(path_or_id)):
        raise ModelError(f"no model at {path_or_id}: give a run folder, a checkpoint folder or a Hub id")
    from huggingface_hub import snapshot_download

    try:
        files = ["config.json", "model.safetensors", "text/*"]
        return Path(snapshot_download(str(path_or_id), allow_patterns=files))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path_or_id} is no folder here, and the Hub did not give it: {error}") from error


def read_audio(path: str | Path) -> tuple[np.ndarray, int]:
    """(channels, samples) float32 and the rate of a file that libsndfile opens."""
    import soundfile

    if not Path(path).is_file():
        raise DataError(f"{path} is not a file: give the path of a sound")
    try:
        waveform, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise DataError(f"{path} does not decode ({error}): give wav, flac, ogg or mp3") from error
    return waveform.T, rate


def mono(waveform: np.ndarray) -> np.ndarray:
    """(channels, samples) or (samples,), float or int16 > (samples,) float32, the mean of the channels."""
    if waveform.ndim > 2 or (waveform.ndim == 2 and len(waveform) > waveform.shape[1] > 0):
        raise DataError(f"an array of shape {waveform.shape}: give (samples,) or (channels, samples)")
    if waveform.dtype == np.int16:
        waveform = waveform / np.float32(32768)
    return np.ascontiguousarray(np.atleast_2d(waveform).mean(axis=0), dtype=np.float32)


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while part := list(itertools.islice(iterator, size)):
        yield part
