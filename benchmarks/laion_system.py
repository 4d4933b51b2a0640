"""laion_clap itself under our evaluation, as a third party's system (clap/systems.py), in an environment of its own.

    HF_HUB_OFFLINE=1 PYTHONPATH=../shared/tools:. peers/bin/python cli.py evaluate paper --data-root DATA --out OUT \\
        --model benchmarks.laion_system:plain        (or :fused)

benchmarks/laion_loader.py describes the environment. LAION_CHECKPOINT names a .pt (else the weights are random) and
LAION_TOKENIZER the folder of a tokenizer (else laion_clap's own, which comes from the Hub).
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch


class Laion:
    """CLAP_Module with the parts that an evaluation needs; clips of a plain model come cut, or it would draw crops."""

    sample_rate = 48_000

    def __init__(self, device: str, fused: bool) -> None:
        if find_spec("laion_clap_offline"):
            import laion_clap_offline  # noqa: F401 - before laion_clap, where there is no hub
        import laion_clap

        torch.manual_seed(0)
        self.seconds = None if fused else 10.0
        self.model = laion_clap.CLAP_Module(enable_fusion=fused, device=device)
        if path := os.environ.get("LAION_CHECKPOINT"):
            self.model.load_ckpt(path)
        self.model.eval()
        self.tokenizer = tokenizer(os.environ.get("LAION_TOKENIZER"))

    @torch.no_grad()
    def embed_audio(self, clips: Sequence[np.ndarray]) -> Any:
        """(clips, 512)."""
        return self.model.get_audio_embedding_from_data(x=list(clips), use_tensor=False)

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Any:
        """(texts, 512)."""
        return self.model.get_text_embedding(list(texts), tokenizer=self.tokenizer)


def tokenizer(folder: str | None) -> Any:
    """What get_text_embedding takes as `tokenizer`: None for its own."""
    if folder is None:
        return None
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(folder)
    return lambda texts: own(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")


def plain(device: str) -> Laion:
    """Without fusion."""
    return Laion(device, fused=False)


def fused(device: str) -> Laion:
    """With fusion."""
    return Laion(device, fused=True)
