"""laion_clap's interface over our model: old scripts run with `from clap.laion import CLAP_Module`.

Different on purpose: nothing is loaded from a network before `load_ckpt`, no gradient is recorded unless tensors are
asked for, and clips longer than the model's window give the same embedding every time (their centre or, in a fused
model, crops at fixed places), where laion_clap draws crops at random.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clap.config import AUDIO_MODELS, ConfigError, ModelConfig
from clap.features import alone, front_end
from clap.fill import windows
from clap.model import CLAP, ModelError
from clap.text import tokenize

HUB = "lukewys/laion_clap"
PUBLISHED = ("630k-best.pt", "630k-audioset-best.pt", "630k-fusion-best.pt", "630k-audioset-fusion-best.pt")
TEXTS = ("roberta", "bert", "bart")
AUDIO = ("audio", "n_fft", "hop", "fmax", "clip_seconds", "htsat_width", "htsat_depths", "pann_widths", "pann_kernel")


class CLAP_Module(nn.Module):
    """A model, made before it has weights, under laion_clap's name; every method but load_ckpt needs them."""

    def __init__(
        self,
        enable_fusion: bool = False,
        device: str | torch.device | None = None,
        amodel: str = "HTSAT-tiny",
        tmodel: str = "roberta",
    ) -> None:
        super().__init__()
        for what, name, known in (("amodel", amodel, AUDIO_MODELS), ("tmodel", tmodel, TEXTS)):
            if name not in known:
                raise ConfigError(f"{what} is {name!r}: use {' or '.join(known)}")
        self.enable_fusion, self.amodel, self.tmodel = enable_fusion, amodel, tmodel
        self.device = torch.device(device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
        self.loaded: CLAP | None = None

    @property
    def model(self) -> CLAP:
        """The model; ModelError before `load_ckpt`."""
        if self.loaded is None:
            raise ModelError("no weights yet: call load_ckpt() first")
        return self.loaded

    def load_ckpt(
        self,
        ckpt: str | Path | None = None,
        model_id: int = -1,
        verbose: bool = True,
        tokenizer: str | Path | None = None,
    ) -> None:
        """Load a .pt file of LAION's, or, without one, download a published one (0 to 3; by default 1, fused 3).

        `tokenizer` is a folder or Hub id, needed offline: a .pt has none. `verbose` prints what was loaded. Any
        other model that CLAP.from_pretrained takes will do too, if it is what the module was made for.
        """
        model = CLAP.from_pretrained(ckpt or published(model_id, self.enable_fusion), "cpu", tokenizer)
        self._check(model)
        self.loaded = model.to(self.device)
        if verbose:
            print(f"Loaded {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million weights")

    def tokenizer(self, text: Sequence[str] | str) -> dict[str, Tensor]:
        """input_ids and attention_mask (texts, tokens of the longest): no padding to 77, which changes nothing."""
        ids, mask = tokenize(self.model.tokenizer, [text] if isinstance(text, str) else text, self._context)
        return {"input_ids": ids, "attention_mask": mask}

    def get_audio_embedding_from_filelist(self, x: Sequence[str | Path], use_tensor: bool = False) -> Any:
        """(files, dim) of audio files, averaged over their channels; a tensor if `use_tensor`."""
        return self.model.embed_audio(list(x), tensor=use_tensor)

    def get_audio_embedding_from_data(self, x: Any, use_tensor: bool = False) -> Any:
        """(clips, dim) of mono clips (clips, samples), or a list of (samples,), at the model's rate.

        With `use_tensor` the clips are tensors, are not rounded to 16 bits, and the embeddings know their gradient.
        A fused model that gets any clip longer than its window gives, for the whole batch, only that to its weights.
        """
        if not use_tensor:
            return self.model.embed_audio(list(x), self.model.config.sample_rate)
        model = self.model.eval()
        exact = front_end(replace(model.config, int16_quantize=False)).to(self.device)
        fused = model.config.fusion != "none"
        if fused and any(len(clip) > model.config.n_samples for clip in x):
            return self._unrounded(exact, [clip.detach().cpu().numpy() for clip in x])
        cut = torch.stack([window(clip.to(self.device).float(), model.config) for clip in x])
        return model.encode_audio(alone(exact(cut)))

    def get_text_embedding(
        self,
        x: Sequence[str],
        tokenizer: Callable[[Any], dict[str, Tensor]] | None = None,
        use_tensor: bool = False,
    ) -> Any:
        """(texts, dim); `tokenizer` gives input_ids and attention_mask of the texts."""
        model, tokens = self.model.eval(), (tokenizer or self.tokenizer)(x)
        ids, mask = tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device)
        with torch.set_grad_enabled(use_tensor):
            embedding = model.encode_text(ids, mask)
        return embedding if use_tensor else embedding.cpu().numpy()

    @property
    def _context(self) -> int:
        return self.model.config.text_context

    def _unrounded(self, exact: nn.Module, clips: list[np.ndarray]) -> Tensor:
        """Embeddings of whole clips without the int16 quantiser."""
        model, rounded = self.model, self.model.log_mel
        model.log_mel = exact  # type: ignore[assignment]
        try:
            return model.encode_waveforms(clips)
        finally:
            model.log_mel = rounded

    def _check(self, model: CLAP) -> None:
        """Raise ModelError unless the model is what the module was made for."""
        config, wanted = model.config, ModelConfig(**AUDIO_MODELS[self.amodel])
        kind = model.text.encoder.config.model_type
        faults = [f"{key} {getattr(config, key)}" for key in AUDIO if getattr(config, key) != getattr(wanted, key)]
        faults += [f"fusion {config.fusion}"] if (config.fusion != "none") != self.enable_fusion else []
        faults += [f"a {kind} text tower"] if kind != self.tmodel else []
        if faults:
            raise ModelError(
                f"the checkpoint is no {self.amodel} with {self.tmodel} and enable_fusion={self.enable_fusion}: it has "
                f"{', '.join(faults)}: make the CLAP_Module for it"
            )


def window(clip: Tensor, config: ModelConfig) -> Tensor:
    """The window (n_samples,) of a mono clip (samples,), filled or centred, with its gradient."""
    places = windows(np.arange(1, len(clip) + 1), config.n_samples, "centre", config.filling)[0]
    padded = nn.functional.pad(clip, (1, 0))  # place 0 is silence
    return padded[torch.from_numpy(places).to(clip.device)]


def published(model_id: int, fused: bool) -> Path:
    """The file of a checkpoint that LAION published, downloaded once."""
    from huggingface_hub import hf_hub_download

    if model_id not in range(-1, len(PUBLISHED)):
        raise ConfigError(f"model_id is {model_id}: use 0 to {len(PUBLISHED) - 1} ({', '.join(PUBLISHED)})")
    name = PUBLISHED[model_id if model_id >= 0 else 3 if fused else 1]
    try:
        return Path(hf_hub_download(HUB, name))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the Hugging Face Hub did not give {name} of {HUB} ({error}): give the file as ckpt"
        ) from error
