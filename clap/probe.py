"""Probes: how much a classifier on a model's audio side can tell, by the dataset's own folds or splits.

Nothing is chosen on a clip that is tested: learning rate, weight decay and epoch are those that do best on a
validation split, on the fold that follows the one held out, or, in a corpus that publishes neither, on a share of
the training recordings (folds.py). In the latter two cases the head then learns anew from these clips too; a
fine-tuned tower does not, which would double its cost.

LAION-CLAP's probe sees projections before they are L2-normalised (features "projection"); ours, in addition, brings
every feature to deviation 1, which a linear layer could do itself, so that few learning rates are enough.
"""

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from clap import checkpoint, metrics
from clap.config import read_json
from clap.data import open_split
from clap.encoded import BATCH, encode, encoded, listen
from clap.fit import Classifier, Encoder, Examples, Fit, build_head, choose, predict, shares
from clap.folds import read_labels, rounds
from clap.model import chunks
from clap.probe_config import ProbeConfig, ProbeError, check
from clap.systems import dataset_rate, digest

SCORES = ("accuracy", "map", "mauc")


def probe(model: Any, data: str | Sequence[str], out: str | Path, config: ProbeConfig | None = None) -> dict[str, Any]:
    """Fit and test a classifier in every round; returns what it also writes to OUT/result.json.

    model: a CLAP, or any system that has embed_audio. What it makes of the clips is kept in OUT/features; OUT/probe
    is the classifier of the first round (`load_probe`). Raises ProbeError and DataError for what cannot be done.
    """
    config, out = config or ProbeConfig(), Path(out)
    check(config)
    rows = open_split(data, "all", (), dataset_rate(model))
    labels, relevant = read_labels(rows)
    several = bool((relevant.sum(axis=1) > 1).any())
    config = settle(config, several, rows.name)
    parts = [(seed, each) for seed in config.seeds for each in rounds(rows, config.folds, seed)]
    inputs = encoded(model, rows, "mels" if config.finetune else config.features, out / "features")
    examples = Examples(inputs, relevant, several, config.loss)
    make, tests = maker(model, examples, config), []
    (out / "result.json").unlink(missing_ok=True)  # it shall not stand beside the classifier of another run
    for seed, each in parts:
        found = choose(make, examples, each._replace(refit=each.refit and not config.finetune), config, seed)
        about = {"held_out": each.held_out, "chosen_by": each.chosen_by, "seed": seed}
        tests.append(about | test(found, examples, each.test, labels))
        if len(tests) == 1:
            save(out / "probe", found, labels, config, model, tests[0])
    result = {**summary(tests), "labels": labels, "settings": asdict(config), "rounds": tests}
    checkpoint.write_text(out / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def settle(config: ProbeConfig, several: bool, name: str) -> ProbeConfig:
    """The settings with a loss that fits the labels and, to fine-tune, one learning rate and one weight decay."""
    if config.loss == "ce" and several:
        raise ProbeError(f"{name} has clips of several labels, of which ce can learn only one: use --loss bce")
    loss = config.loss if config.loss != "auto" else "bce" if several else "ce"
    if config.finetune:
        return replace(config, loss=loss, lr=config.lr[:1], weight_decay=config.weight_decay[:1])
    return replace(config, loss=loss)


def maker(model: Any, examples: Examples, config: ProbeConfig) -> Callable[[np.ndarray], Classifier]:
    """What makes a new classifier for some training rows: on features, scaled by theirs, or with its own tower."""
    n_classes = examples.relevant.shape[1]

    def on_features(rows: np.ndarray) -> Classifier:
        head = build_head(config.head, examples.inputs.shape[1], n_classes)
        head[0].measure(examples.inputs[rows])  # type: ignore[operator]
        return Classifier(nn.Identity(), head).to(getattr(model, "device", "cpu"))

    def with_tower(rows: np.ndarray) -> Classifier:
        head = build_head(config.head, model.config.dim, n_classes)
        return Classifier(Encoder(model, config.features), head).to(model.device)

    return with_tower if config.finetune else on_features


def test(found: Fit, examples: Examples, rows: np.ndarray, labels: list[str]) -> dict[str, Any]:
    """How a fit does on rows that it never saw, and what it was chosen to be."""
    probabilities, relevant = shares(predict(found.classifier, examples, rows), examples.loss), examples.relevant[rows]
    return {
        **metrics.classification(probabilities, relevant, labels, examples.several),
        "map": metrics.mean_average_precision(probabilities, relevant),
        "mauc": metrics.mean_auc(probabilities, relevant),
        "epoch": found.epoch,
        "lr": found.config.lr[0],
        "weight_decay": found.config.weight_decay[0],
        "validation": found.score,
    }


def summary(tests: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over rounds; `std` over what was held out (means over seeds), `std_seeds` the other way round.

    per_class is the mean over the rounds that have the class.
    """
    held = {each["held_out"]: 0 for each in tests}
    seeds = {each["seed"]: 0 for each in tests}
    found: dict[str, Any] = {}
    for key in (key for key in SCORES if key in tests[0]):
        grid = np.array([each[key] for each in tests]).reshape(len(seeds), len(held))
        found[key] = float(grid.mean())
        found.setdefault("std", {})[key] = deviation(grid.mean(axis=0))
        found.setdefault("std_seeds", {})[key] = deviation(grid.mean(axis=1))
    names = sorted({name for each in tests for name in each["per_class"]})
    by_class = {n: [each["per_class"][n] for each in tests if n in each["per_class"]] for n in names}
    found["chance"] = float(np.mean([each["chance"] for each in tests]))
    found["n"] = sum(each["n"] for each in tests) // len(seeds)
    return found | {"per_class": {name: float(np.mean(values)) for name, values in by_class.items()}}


def deviation(values: np.ndarray) -> float:
    """Sample standard deviation of (n,), 0 of one."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Probe:
    """A fitted classifier: `labels`, and the head that names them from `features` of the model it was fitted on."""

    labels: list[str]
    head: nn.Sequential
    features: str
    loss: str
    model: str | None  # digest of that model
    whole: bool  # whether longer clips are heard whole by a fused model: a fine-tuned one knows their centre

    def predict(self, model: Any, clips: Any) -> list[dict[str, float]]:
        """For each file, or clip of a Dataset, label > probability, the likeliest first.

        With bce each label has a probability of its own, with ce they add up to 1. Raises ProbeError if the model is
        not the one that the probe was fitted on.
        """
        if digest(model) != self.model:
            raise ProbeError("the probe was fitted on another model: give that one (of a fine-tuned probe, its model/)")
        parts = chunks(listen(model, clips, self.whole), BATCH)
        features = [torch.from_numpy(encode(model, part, self.features)) for part in parts]
        with torch.no_grad():
            found = shares(self.head.eval().cpu()(torch.cat(features)), self.loss)
        return [{self.labels[i]: float(row[i]) for i in np.argsort(-row, kind="stable")} for row in found]


def save(folder: Path, found: Fit, labels: list[str], config: ProbeConfig, model: Any, score: dict[str, Any]) -> None:
    """Write head.safetensors and probe.json, and, if the tower was trained, model/ to use them with."""
    from safetensors.torch import save_file

    tuned, encoder = model, found.classifier.encoder
    if isinstance(encoder, Encoder):
        tuned = copy.deepcopy(model)
        tuned.audio, tuned.audio_projection = encoder.audio, encoder.audio_projection
    told: dict[str, Any] = {"labels": labels, "head": config.head, "features": config.features, "loss": config.loss}
    told |= {"model": digest(tuned), "whole": tuned is model, "score": score}

    def fill(temporary: Path) -> None:
        if tuned is not model:
            tuned.save_pretrained(temporary / "model")
        save_file(found.classifier.head.state_dict(), temporary / "head.safetensors")
        (temporary / "probe.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")

    shutil.rmtree(folder, ignore_errors=True)
    checkpoint.place(folder, fill)


def load_probe(folder: str | Path) -> Probe:
    """The probe that `probe` saved in OUT/probe."""
    from safetensors.torch import load_file

    folder = Path(folder)
    told = read_json(folder / "probe.json")
    state = load_file(folder / "head.safetensors")
    head = build_head(told["head"], len(state["0.running_mean"]), len(told["labels"]))
    head.load_state_dict(state)
    return Probe(told["labels"], head.eval(), told["features"], told["loss"], told["model"], told["whole"])
