"""Fitting a classifier on features, or with the tower below it: one loop, whose best epoch validation clips choose."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clap.encoded import shown
from clap.features import alone
from clap.folds import Round
from clap.metrics import correct, mean_average_precision
from clap.model import CLAP
from clap.probe_config import ProbeConfig, ProbeError

HIDDEN, DROPOUT = 1024, 0.1  # of LAION-CLAP's MLP head


class Scaled(nn.BatchNorm1d):
    """Features (batch, width) brought to mean 0 and deviation 1, so that learning rates fit any of them.

    By fixed statistics once they are measured; while a tower below moves them, by each batch's own. Between an
    encoder and a linear layer it adds nothing that this could not express.
    """

    fixed = False

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-12, affine=False)  # a normalised feature of many varies by 1e-4 or less

    def measure(self, features: np.ndarray) -> None:
        """Take the statistics of features (n, width) and keep them."""
        self.fixed = True
        self.running_mean.copy_(torch.from_numpy(features.mean(0)))  # type: ignore[union-attr]
        self.running_var.copy_(torch.from_numpy(features.var(0)))  # type: ignore[union-attr]
        self.eval()

    def train(self, mode: bool = True) -> "Scaled":
        return super().train(mode and not self.fixed)

    def forward(self, features: Tensor) -> Tensor:
        seen = int(self.num_batches_tracked)  # type: ignore[arg-type]
        self.momentum = max(0.1, 1 / (seen + 1))  # a mean at first, or 0 and 1, where it starts, would weigh for long
        return super().forward(features)


class Encoder(nn.Module):
    """A copy of a CLAP's audio side, to be trained: mels (batch, frames, mels) in dB > features (batch, dim)."""

    def __init__(self, model: CLAP, features: str) -> None:
        super().__init__()
        self.audio, self.audio_projection = copy.deepcopy(model.audio), copy.deepcopy(model.audio_projection)
        self.normalised = features == "normalised"

    def forward(self, mel: Tensor) -> Tensor:
        found = self.audio_projection(self.audio(alone(mel.unsqueeze(1))))
        return F.normalize(found, dim=-1) if self.normalised else found


class Classifier(nn.Module):
    """Inputs of the encoder (features themselves where it is nn.Identity) > logits (batch, classes)."""

    def __init__(self, encoder: nn.Module, head: nn.Sequential) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.encoder(inputs))


@dataclass(frozen=True)
class Examples:
    """Inputs of a classifier and what it shall say, by row."""

    inputs: np.ndarray  # (n, ...) features or mels, memory-mapped
    relevant: np.ndarray  # (n, classes) bool
    several: bool  # whether a clip may have several labels: mAP judges, else accuracy
    loss: str  # ce or bce

    def at(self, rows: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets (rows, classes), float32."""
        targets = torch.from_numpy(self.relevant[rows]).float()
        return torch.from_numpy(self.inputs[rows]).to(device), targets.to(device)

    def cost(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss () of logits (rows, classes)."""
        criterion = F.cross_entropy if self.loss == "ce" else F.binary_cross_entropy_with_logits
        return criterion(logits, targets)

    def judge(self, logits: Tensor, rows: np.ndarray) -> tuple[float, float]:
        """Accuracy or mAP, and the loss, of logits (rows, classes) on the CPU."""
        scores, relevant = logits.numpy(), self.relevant[rows]
        score = mean_average_precision(scores, relevant) if self.several else float(correct(scores, relevant).mean())
        return score, self.cost(logits, torch.from_numpy(relevant).float()).item()


@dataclass(frozen=True)
class Fit:
    """A classifier and how it came about; score and cost are those of its epoch on the validation clips."""

    classifier: Classifier
    config: ProbeConfig  # of one learning rate and one weight decay
    epoch: int
    score: float
    cost: float


def build_head(kind: str, width: int, n_classes: int) -> nn.Sequential:
    """Features (batch, width) > logits (batch, classes): linear, or LAION-CLAP's MLP. Nothing is favoured at first."""
    if kind == "linear":
        layers: list[nn.Module] = [nn.Linear(width, n_classes)]
    else:
        layers = [nn.Linear(width, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, n_classes)]
    for parameter in layers[-1].parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(Scaled(width), *layers)


def choose(
    make: Callable[[np.ndarray], Classifier], examples: Examples, rows: Round, config: ProbeConfig, seed: int
) -> Fit:
    """The fit of the learning rate, weight decay and epoch that do best on a round's validation rows.

    make(rows): a new classifier for these training rows. If the round says so, what was chosen learns anew from the
    validation rows too.
    """

    def once(learned: np.ndarray, validation: np.ndarray, config: ProbeConfig) -> Fit:
        torch.manual_seed(seed)
        return fit(make(learned), examples, learned, validation, config, seed)

    grid = [replace(config, lr=(a,), weight_decay=(b,)) for a, b in product(config.lr, config.weight_decay)]
    trials = [once(rows.train, rows.validation, each) for each in grid]
    best = max(trials, key=lambda trial: (trial.score, -trial.cost))
    if not rows.refit:
        return best
    both = np.concatenate([rows.train, rows.validation])
    again = once(both, both[:0], replace(best.config, epochs=best.epoch))
    return replace(best, classifier=again.classifier)


def fit(
    classifier: Classifier,
    examples: Examples,
    train: np.ndarray,
    validation: np.ndarray,
    config: ProbeConfig,
    seed: int,
) -> Fit:
    """Train at the config's first lr and weight decay; with validation rows, up to the best epoch (see `patience`)."""
    device = next(classifier.parameters()).device
    optimizer = torch.optim.AdamW(groups(classifier, config), fused=True)
    rng = np.random.default_rng(seed)
    best = Fit(classifier, config, 0, -1.0, 0.0)  # of no epoch yet
    kept, rose = classifier.state_dict(), 0
    for epoch in shown(range(1, config.epochs + 1), config.epochs, "fitting"):
        classifier.train()
        for rows in batches(train, config.batch_size, rng):
            inputs, targets = examples.at(rows, device)
            loss = examples.cost(classifier(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not loss.isfinite():
            raise ProbeError(f"loss {loss.item()} in epoch {epoch}: the fit has diverged, give a lower --lr")
        if not len(validation):
            continue
        now = Fit(classifier, config, epoch, *examples.judge(predict(classifier, examples, validation), validation))
        rose = epoch if now.score > best.score else rose
        if (now.score, -now.cost) > (best.score, -best.cost):
            best, kept = now, copy.deepcopy(classifier.state_dict())
        if epoch - rose >= config.patience:
            break
    classifier.load_state_dict(kept)
    classifier.eval()
    return best


def groups(classifier: Classifier, config: ProbeConfig) -> list[dict[str, Any]]:
    """AdamW's parameter groups: the head learns at `lr`, what is below it at `lr_tower`; only matrices decay."""
    return [
        {
            "params": [p],
            "lr": config.lr[0] if name.startswith("head.") else config.lr_tower,
            "weight_decay": config.weight_decay[0] if p.ndim > 1 else 0.0,
        }
        for name, p in classifier.named_parameters()
    ]


def batches(rows: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """All rows once, shuffled, in parts of about equal size: a last one of one clip would break batch norms."""
    return iter(np.array_split(rng.permutation(rows), -(-len(rows) // size)))


@torch.no_grad()
def predict(classifier: Classifier, examples: Examples, rows: np.ndarray, size: int = 256) -> Tensor:
    """Logits (rows, classes), on the CPU."""
    classifier.eval()
    device = next(classifier.parameters()).device
    parts = np.split(rows, range(size, len(rows), size))
    return torch.cat([classifier(examples.at(part, device)[0]).cpu() for part in parts])


def shares(logits: Tensor, loss: str) -> np.ndarray:
    """Probabilities (rows, classes) as the loss reads logits: of one label, or of each by itself."""
    return (logits.softmax(dim=1) if loss == "ce" else logits.sigmoid()).numpy()
