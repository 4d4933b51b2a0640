"""A run and its folder: what moves while it trains, how that is saved and taken up again.

RUN/config.json holds every setting, RUN/checkpoints/step-00001000/ the model and trainer.pt (see checkpoint.py).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from clap import checkpoint, lora
from clap.config import FREE, ConfigError, ModelConfig, TrainConfig, to_dict
from clap.data import Dataset
from clap.distributed import World
from clap.heads import freeze
from clap.model import CLAP
from clap.start import start
from clap.step import make_optimizer, prepare


@dataclass
class State:
    """All that moves while training; a checkpoint holds it whole. Random numbers follow from the step (step.py)."""

    model: CLAP
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None = None  # of the weights, where config.ema asks for it
    step: int = 0
    bests: list[tuple[float, int]] = field(default_factory=list)  # (mean recall, step) of the best checkpoints
    worse: int = 0  # evaluations since the best one
    recent: list[float] = field(default_factory=list)  # losses since the last line of the log

    @property
    def used(self) -> CLAP:
        """The model that is evaluated and kept: the average of the weights, if there is one."""
        return cast(CLAP, self.average.module) if self.average else self.model


def create(config: TrainConfig, clips: Dataset, world: World) -> State:
    """A run at its first step, the same in every process."""
    torch.manual_seed(config.seed)
    model = start(config, clips).to(world.device)
    world.share(model)
    return begin(model, config, world)


def begin(model: CLAP, config: TrainConfig, world: World, adapters: dict[str, Tensor] | None = None) -> State:
    """What training needs around a model; `adapters` of LoRA as they were saved."""
    freeze(model, config)
    if config.lora:
        lora.apply(model, config.lora, adapters)
    average = None
    if config.ema:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=False)
    prepare(model, config, world)
    return State(model, make_optimizer(model, config), average)


def save(state: State, run: Path, config: TrainConfig, validated: bool) -> None:
    """Write a checkpoint, point last and best to theirs, delete old ones."""

    def fill(folder: Path) -> None:
        (lora.merged(state.model) if config.lora else state.used).fill(folder)
        own = {key: getattr(state, key) for key in ("step", "bests", "worse", "recent")}
        raw = {"model": state.model.state_dict(), "averaged": state.average.n_averaged} if state.average else {}
        raw |= {"adapters": lora.adapters(state.model)} if config.lora else {}
        torch.save({"state": own, "optimizer": state.optimizer.state_dict(), **raw}, folder / "trainer.pt")

    checkpoint.write(run, state.step, fill)
    point(state, run, config, validated)


def point(state: State, run: Path, config: TrainConfig, validated: bool) -> None:
    """Let last and best name their checkpoints and delete old ones."""
    best = [step for _, step in state.bests[: config.keep_best]] if validated else []
    checkpoint.link(run, "last", state.step)
    checkpoint.link(run, "best", best[0] if best else state.step)
    checkpoint.prune(run, config.keep, best)


def restore(run: Path, config: TrainConfig, world: World) -> State | None:
    """The state of the newest checkpoint of a run; None if it has none."""
    folder = checkpoint.newest(run)
    if folder is None:
        return None
    saved = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True)
    state = begin(CLAP.from_pretrained(folder, world.device), config, world, saved.get("adapters"))
    if state.average:
        state.model.load_state_dict(saved["model"])
        state.average.n_averaged.copy_(saved["averaged"])
    state.optimizer.load_state_dict(saved["optimizer"])
    for name, value in saved["state"].items():
        setattr(state, name, value)
    if world.first:
        point(state, run, config, bool(state.bests))  # a kill may have come before the links
    return state


def remember(
    run: Path,
    config: TrainConfig,
    model: ModelConfig,
    names: list[str],
    clips: Dataset,
    held_out: Dataset | None,
    device: torch.device,
) -> None:
    """Write RUN/config.json: what was asked for, and the model that is trained.

    Once the run has a checkpoint, raise ConfigError unless the file says the same.
    """
    path = run / "config.json"
    now: dict[str, Any] = {
        "train": to_dict(config),
        "model": to_dict(model),
        "data": names,
        "rows": len(clips),
        "fingerprint": clips.fingerprint() + (held_out.fingerprint() if held_out else ""),
        "device": device.type,
    }
    if checkpoint.newest(run) is None:
        return checkpoint.write_text(path, json.dumps(now, indent=2) + "\n")
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): restore it, or give another --out") from error
    before, after = (flat(each["train"]) for each in (old, now))
    usual = flat(to_dict(TrainConfig()))  # of a setting that the run's version did not have yet
    before = usual | before
    changed = [key for key in after if before[key] != after[key] and key not in FREE]
    if changed:
        what = ", ".join(f"{key} was {before[key]}, is now {after[key]}" for key in changed)
        raise ConfigError(f"{run} holds a run with other settings ({what}): repeat them, or give another --out")
    if old["device"] != now["device"]:
        raise ConfigError(
            f"{run} was begun on {old['device']}, this is {now['device']}, where numbers differ: "
            f"give --device {old['device']}, or another --out"
        )
    if old["fingerprint"] != now["fingerprint"]:
        raise ConfigError(
            f"{run} holds a run on other data ({old['rows']} clips of {', '.join(old['data'])}; now "
            f"{len(clips)} of {', '.join(names)}): give the same data, or another --out"
        )
    return None


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of training and of the model side by side."""
    return {**settings, **settings["model"]} | {"model": None}
