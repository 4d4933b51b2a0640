"""Training: one straight loop over pairs of audio and caption, that goes on exactly where it was stopped."""

import json
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import torch
from torch import Tensor

from clap import checkpoint
from clap.config import FREE, ClapError, ConfigError, TrainConfig, check, for_loss, to_dict
from clap.convert import init_audio
from clap.data import Dataset, open_split, splits
from clap.evaluate import score_retrieval
from clap.heads import freeze
from clap.loader import Batch, Loader
from clap.log import Log
from clap.loss import compute
from clap.metrics import mean_recall
from clap.model import CLAP


class TrainError(ClapError):
    """Training cannot go on; the message says what to do."""


@dataclass
class State:
    """All that moves while training; a checkpoint holds it, and torch's random state, whole."""

    model: CLAP
    optimizer: torch.optim.Optimizer
    step: int = 0
    best: float = -1.0  # mean recall of the best checkpoint
    best_step: int = 0
    recent: list[float] = field(default_factory=list)  # losses since the last line of the log


def train(config: TrainConfig, data: str | Sequence[str], out: str | Path) -> dict[str, float]:
    """Train on datasets (folders or Hub ids) into the run folder `out`; return its latest metrics.

    A folder that holds a run continues it, with the same batches and, on a CPU, the same weights as an
    uninterrupted one. Raises ConfigError for other settings or data than that run's, DataError, TrainError for a
    loss that is not finite, and KeyboardInterrupt, after saving a checkpoint, on SIGINT or SIGTERM.
    """
    check(config)
    names, run = [data] if isinstance(data, str) else list(data), Path(out)
    with checkpoint.lock(run) as mine:
        if not mine:
            raise TrainError(f"another process trains in {run}: wait for it, or give another --out")
        clips = open_split(names, config.split, config.folds, config.model.sample_rate)
        held_out = validation(config, names)
        device = choose_device(config.device)
        remember(run, config, names, clips, held_out, device)
        state = restore(run, config, device) or create(config, clips, device)
        if state.step:
            point(state, run, config.keep, held_out is not None)  # a kill may have come before the links
        loader = Loader(clips, state.model.tokenizer, config)
        with Log(run, state.step, config.epochs * len(loader)) as log:
            if held_out is None:
                log.say(f"no validation split ({config.validation_split!r}): no evaluation, best is last")
            loop(state, config, loader, held_out, run, log)
            return log.latest()


def loop(state: State, config: TrainConfig, loader: Loader, held_out: Dataset | None, run: Path, log: Log) -> None:
    """Every step from `state` to the end, with its logs, evaluations and checkpoints."""
    device, total = state.model.device, config.epochs * len(loader)
    eval_every, save_every = config.eval_every or len(loader), config.save_every or len(loader)
    with stop_signals() as stopped, closing(loader.batches(state.step)) as batches:
        batch = next(batches, None)
        while batch is not None:
            lr = learning_rate(state.step, total, config.warmup, config.lr)
            loss, norm = update(state, batch.to(device), lr, config)
            batch = next(batches, None)  # collected while the device computes
            state.step += 1
            state.recent.append(finite(loss.item(), norm.item(), state.step))
            log.tick(state.step, state.recent[-1], config.batch_size)

            last, better = state.step == total, False
            if state.step % config.log_every == 0 or last:
                log.write(state.step, summary(state, lr, norm.item(), len(loader), log.rate))
            if held_out is not None and (state.step % eval_every == 0 or last):
                better = evaluate(state, held_out, log)
            stop = stopped()
            if state.step % save_every == 0 or last or better or stop:
                save(state, run, config.keep, held_out is not None)
            if stop and not last:
                raise KeyboardInterrupt(f"stopped and saved at step {state.step}: the same command goes on")


def update(state: State, batch: Batch, lr: float, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """One step of the optimiser; returns the loss and the gradient's length, () tensors on the device."""
    model, device = state.model.train(), batch.waveform.device
    half = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        out = model(batch.waveform, batch.input_ids, batch.attention_mask)
    loss = compute(config, out, batch.caption_ids, batch.clip_ids)
    state.optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    state.optimizer.step()
    model.clamp_scales()
    return loss.detach(), norm


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Linear up to `peak` over `warmup` steps, then a cosine down to 0 at `total` (LAION-CLAP's schedule)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and scales do not."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    free = [p for name, p in named if p.ndim < 2 or "bias" in name]  # bias: HTSAT's position tables too
    decay = [p for name, p in named if not (p.ndim < 2 or "bias" in name)]
    return [{"params": decay, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def evaluate(state: State, held_out: Dataset, log: Log) -> bool:
    """Log retrieval on the validation clips; True if it is the best so far."""
    scores = score_retrieval(state.model, held_out)
    recall = mean_recall(scores)
    flat = {f"validation/{way}/{key}": value for way, each in scores.items() for key, value in each.items()}
    log.write(state.step, {"validation/mean_recall": recall, **flat})
    if recall <= state.best:
        return False
    state.best, state.best_step = recall, state.step
    return True


def summary(state: State, lr: float, norm: float, per_epoch: int, rate: float) -> dict[str, float]:
    """A line of the log; the loss is the mean since the last one."""
    loss = sum(state.recent) / len(state.recent)
    state.recent.clear()
    return {
        "epoch": state.step / per_epoch,
        "loss": loss,
        "lr": lr,
        "grad_norm": norm,
        "scale_a": state.model.log_scale_a.exp().item(),
        "scale_t": state.model.log_scale_t.exp().item(),
        "clips_per_second": rate,
    }


def finite(loss: float, norm: float, step: int) -> float:
    """The loss; TrainError if it or the gradient is not finite, for no step after it would be of use."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainError(
            f"loss {loss}, gradient {norm} at step {step}: training has diverged. Start again in another "
            "folder with a lower --lr or a longer --warmup, or with --precision fp32"
        )
    return loss


def create(config: TrainConfig, clips: Dataset, device: torch.device) -> State:
    """A run at its first step."""
    torch.manual_seed(config.seed)
    model = CLAP.create(for_loss(config), clips.all_captions(config.texts))
    if config.init_audio:
        init_audio(model.audio, config.init_audio)
    freeze(model.to(device), config)
    return State(model, optimizer(model, config))


def optimizer(model: CLAP, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the model's parameter groups."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, config.lr, (config.beta1, config.beta2), config.eps)


def save(state: State, run: Path, keep: int, validated: bool) -> None:
    """Write a checkpoint, point last and best to theirs, delete old ones."""

    def fill(folder: Path) -> None:
        state.model.fill(folder)
        cuda = torch.cuda.get_rng_state(state.model.device) if state.model.device.type == "cuda" else None
        own = {key: getattr(state, key) for key in ("step", "best", "best_step", "recent")}
        random = {"cpu": torch.get_rng_state(), "cuda": cuda}
        torch.save({"state": own, "optimizer": state.optimizer.state_dict(), "random": random}, folder / "trainer.pt")

    checkpoint.write(run, state.step, fill)
    point(state, run, keep, validated)


def point(state: State, run: Path, keep: int, validated: bool) -> None:
    """Let last and best name their checkpoints and delete old ones."""
    checkpoint.link(run, "last", state.step)
    checkpoint.link(run, "best", state.best_step if validated and state.best_step else state.step)
    checkpoint.prune(run, keep)


def restore(run: Path, config: TrainConfig, device: torch.device) -> State | None:
    """The state of the newest checkpoint of a run, random numbers included; None if it has none."""
    folder = checkpoint.newest(run)
    if folder is None:
        return None
    saved = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True)
    model = CLAP.from_pretrained(folder, device)
    freeze(model, config)
    state = State(model, optimizer(model, config), **saved["state"])
    state.optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["random"]["cpu"])
    if device.type == "cuda" and saved["random"]["cuda"] is not None:
        torch.cuda.set_rng_state(saved["random"]["cuda"], device)
    return state


def remember(
    run: Path, config: TrainConfig, names: list[str], clips: Dataset, held_out: Dataset | None, device: torch.device
) -> None:
    """Write RUN/config.json, or, once the run has a checkpoint, raise ConfigError unless it says the same."""
    path = run / "config.json"
    now: dict[str, Any] = {
        "train": to_dict(config),
        "data": names,
        "rows": len(clips),
        "fingerprint": clips.fingerprint() + (held_out.fingerprint() if held_out else ""),
        "device": device.type,
    }
    if checkpoint.newest(run) is None:
        return checkpoint.write_text(path, json.dumps(now, indent=2) + "\n")
    old = json.loads(path.read_text(encoding="utf-8"))
    before, after = (flat(each["train"]) for each in (old, now))
    changed = [key for key in after if before.get(key) != after[key] and key not in FREE]
    if changed:
        what = ", ".join(f"{key} was {before.get(key)}, is now {after[key]}" for key in changed)
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


def validation(config: TrainConfig, names: list[str]) -> Dataset | None:
    """The validation clips of those datasets that have such a split; None where none has."""
    having = [name for name in names if config.validation_split in (*splits(name), "all")]
    asked = config.validation_folds or config.validation_split != TrainConfig.validation_split
    if asked and not having:
        raise ConfigError(f"no dataset has a split {config.validation_split!r} to validate on: see --validation-split")
    if not having or (config.split == "all" and not asked):
        return None
    return open_split(having, config.validation_split, config.validation_folds, config.model.sample_rate)


def choose_device(name: str) -> torch.device:
    """The device of that name; auto is a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device is {name!r}, but torch sees no GPU: use --device cpu or auto")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}: use cpu, cuda, cuda:1 or auto") from error


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Within, SIGINT and SIGTERM only make the yielded function true; a second one acts as usual."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM) if current_thread() is main_thread() else ()  # Python's rule
    usual = {number: signal.getsignal(number) for number in numbers}

    def on_signal(number: int, _: object) -> None:
        received.append(number)
        restore_usual()

    def restore_usual() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    for number in usual:
        signal.signal(number, on_signal)
    try:
        yield lambda: bool(received)
    finally:
        restore_usual()
