"""Training: one straight loop over pairs of audio and caption, that goes on exactly where it was stopped.

    python cli.py train --data OUT/dataset --out RUN                            one process
    torchrun --nproc-per-node 8 cli.py train --data OUT/dataset --out RUN       eight, with the same batches

Every process runs this loop on its share of every batch; the first one alone writes, and evaluates while they wait.
"""

import math
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from torch import Tensor

from clap import cache, checkpoint, curves
from clap.config import ClapError, ConfigError, ModelConfig, TrainConfig, check, to_dict
from clap.data import Dataset, open_split
from clap.distributed import World, join
from clap.embed import waveforms
from clap.evaluate import validate
from clap.loader import Loader
from clap.log import Log
from clap.shards import splits
from clap.start import settle
from clap.state import State, create, remember, restore, save
from clap.step import update

CHANCE = 3.0  # a loss over so many times that of guessing has diverged


class TrainError(ClapError):
    """Training cannot go on; the message says what to do."""


def train(
    config: TrainConfig, data: str | Sequence[str], out: str | Path, given: Collection[str] = ()
) -> dict[str, float]:
    """Train on datasets (folders or Hub ids, each with ":WEIGHT" if wanted) into `out`; return its latest metrics.

    With `init` the model's settings are the checkpoint's: of `config.model` hold those that differ from ModelConfig's
    defaults, and those that are `given` by name; what the checkpoint cannot become is a ConfigError.

    A folder that holds a run continues it, with the same batches in any number of processes, and, on a CPU and in as
    many as before, the same weights as an uninterrupted one. Raises ConfigError for other settings or data than that
    run's, DataError, TrainError for a loss that diverges, and KeyboardInterrupt, after saving, on SIGINT or SIGTERM.
    """
    check(config)
    names, run = [data] if isinstance(data, str) else list(data), Path(out)
    with join(config.device) as world, checkpoint.lock(run) if world.first else nullcontext(True) as mine:
        if not mine:
            raise TrainError(f"another process trains in {run}: wait for it, or give another --out")
        asked, config = config, settle(config, checkpoint.newest(run), given)
        clips = open_split(names, config.split, config.folds, config.model.sample_rate)
        held_out = validation(config, names)
        if world.first:
            remember(run, asked, config.model, names, clips, held_out, world.device)
        if config.cache == "mel" and world.local == 0:
            cache.build(clips, config)  # on every machine, as its folder may be its own
        world.wait()
        if held_out and world.first:
            hear(held_out, config.model)
        state = restore(run, config, world) or create(config, clips, world)
        loader = Loader(clips, state.model.tokenizer, config, world.rank, world.size)
        begun, total = state.step, config.epochs * len(loader)
        with open_log(run, config, begun, total, world) as log:
            if held_out is None:
                log.say(f"no validation split ({config.validation_split!r}): no evaluation, best is last")
            if config.warmup >= total:
                log.say(f"the warm-up of {config.warmup} steps takes the whole run of {total}: lower --warmup")
            loop(state, config, loader, held_out, run, log, world)
        if world.first and (state.step > begun or not (run / "curves.png").exists()):
            curves.draw(run)
        return log.latest()


def loop(
    state: State, config: TrainConfig, loader: Loader, held_out: Dataset | None, run: Path, log: Log, world: World
) -> None:
    """Every step from `state` to the end, with its logs, evaluations and checkpoints."""
    total, measured = config.epochs * len(loader), Measured(state, log, config.batch_size)
    eval_every, save_every = config.eval_every or len(loader), config.save_every or len(loader)
    if weary(state, config):
        return None
    with stop_signals(patient=world.size > 1) as stopped, closing(loader.batches(state.step)) as batches:
        batch = measured.fetch(batches)
        while batch is not None:
            lr = learning_rate(state.step, total, config.warmup, config.lr)
            made = update(state.model, state.optimizer, batch, state.step, lr, config, world)
            if state.average:
                state.average.update_parameters(state.model)
            state.step += 1
            measured.after(made)
            batch = measured.fetch(batches)

            last, stop, better, enough = batch is None, world.any(stopped()), False, False
            if last or state.step % config.log_every == 0:
                measured.settle()
                log.write(state.step, summary(state, lr, measured, config, len(loader)))
            if held_out is not None and (last or state.step % eval_every == 0):
                measured.settle()
                with measured.paused():
                    better = world.first and evaluate(state, config, held_out, log)
                    enough = world.any(world.first and weary(state, config))
            if last or stop or better or enough or state.step % save_every == 0:
                measured.settle()
                if world.first:
                    with measured.paused():
                        save(state, run, config, held_out is not None)
            if enough and not last:
                return log.say(f"stopped early: no better one in {config.patience} evaluations")
            if stop and not last:
                world.wait()
                raise KeyboardInterrupt(f"stopped and saved at step {state.step}: the same command goes on")


def weary(state: State, config: TrainConfig) -> bool:
    """Whether so many evaluations went by without a better one that training ends."""
    return 0 < config.patience <= state.worse


class Measured:
    """What a run has done since the last line of its log: losses, read one step late, and where the time went."""

    def __init__(self, state: State, log: Log, batch_size: int) -> None:
        self.state, self.log, self.batch_size = state, log, batch_size
        self.pending: Tensor | None = None  # loss and length of the gradient of the latest step
        self.norm, self.waited = 0.0, 0.0
        self.start, self.began = time.monotonic(), state.step

    def after(self, made: Tensor) -> None:
        """A step was begun: read what came of the one before, so that the device is never waited for."""
        self.settle()
        self.pending = made
        self.log.tick(self.state.step, self.batch_size, self.state.recent[-1] if self.state.recent else None)

    def settle(self) -> None:
        """Read the latest loss from the device; TrainError if it or the gradient is not finite."""
        if self.pending is not None:
            loss, self.norm = self.pending.tolist()
            self.state.recent.append(finite(loss, self.norm))
            self.pending = None

    def fetch(self, batches: Iterator[Any]) -> Any:
        """The next batch, None at the end; the time it takes is time that the device may have to wait."""
        asked = time.monotonic()
        batch = next(batches, None)
        self.waited += time.monotonic() - asked
        return batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, the clock stands still: what evaluates or saves does not train."""
        began = time.monotonic()
        yield
        self.start += time.monotonic() - began

    def rates(self) -> dict[str, float]:
        """Clips a second and the share of the time that went by waiting for data; the clock starts again."""
        passed = max(1e-9, time.monotonic() - self.start)
        clips = (self.state.step - self.began) * self.batch_size
        found = {"clips_per_second": clips / passed, "data_wait": self.waited / passed}
        self.waited, self.start, self.began = 0.0, time.monotonic(), self.state.step
        return found


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Linear up to `peak` over `warmup` steps, then a cosine down to 0 at `total` (LAION-CLAP's schedule)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def evaluate(state: State, config: TrainConfig, held_out: Dataset, log: Log) -> bool:
    """Log scores on the validation clips; True if this is among the best checkpoints so far."""
    scores = validate(state.used, held_out)
    log.write(state.step, {f"validation/{name}": value for name, value in scores.items()})
    recall, best = scores["mean_recall"], state.bests[:1]
    state.worse = 0 if not best or recall > best[0][0] else state.worse + 1
    state.bests = checkpoint.top(state.bests, recall, state.step, config.keep_best)
    return any(step == state.step for _, step in state.bests)


def summary(state: State, lr: float, measured: Measured, config: TrainConfig, per_epoch: int) -> dict[str, float]:
    """A line of the log; the loss is the mean since the last one. TrainError if it is far over that of guessing."""
    loss = sum(state.recent) / len(state.recent)
    state.recent.clear()
    guessable = config.loss in ("softmax", "mlp") and state.step > config.warmup
    if guessable and (advice := against_guessing(loss, config.batch_size)):
        measured.log.say(advice)
    return {
        "epoch": state.step / per_epoch,
        "loss": loss,
        "lr": lr,
        "grad_norm": measured.norm,
        "scale_a": state.model.log_scale_a.exp().item(),
        "scale_t": state.model.log_scale_t.exp().item(),
        **measured.rates(),
    }


def against_guessing(loss: float, batch_size: int) -> str:
    """Advice where a softmax loss is that of guessing, ln(batch), "" where it is less; TrainError far over it."""
    guess = math.log(max(2, batch_size))
    if loss > CHANCE * guess:
        raise TrainError(f"loss {loss:.3g}, where guessing costs {guess:.3g}: {ADVICE}")
    if loss < 0.995 * guess:
        return ""
    return f"loss {loss:.3g} is that of guessing: if it stays there, start again with a lower --lr or longer --warmup"


ADVICE = (
    "training has diverged. Start again in another folder with a lower --lr or a longer --warmup, or with "
    "--precision fp32"
)


def finite(loss: float, norm: float) -> float:
    """The loss; TrainError if it or the gradient is not finite, for no step after it would be of use."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainError(f"loss {loss}, gradient {norm}: {ADVICE}")
    return loss


def open_log(run: Path, config: TrainConfig, step: int, total: int, world: World) -> Log:
    """The log of a run, which only the first process writes."""
    return Log(
        run,
        step,
        total,
        tensorboard=config.tensorboard,
        wandb=config.wandb,
        settings=to_dict(config),
        quiet=not world.first,
    )


def validation(config: TrainConfig, names: list[str]) -> Dataset | None:
    """The validation clips of those datasets that have such a split; None where none has."""
    having = [name for name in names if config.validation_split in (*splits(name), "all")]
    asked = config.validation_folds or config.validation_split != TrainConfig.validation_split
    if asked and not having:
        raise ConfigError(f"no dataset has a split {config.validation_split!r} to validate on: see --validation-split")
    if not having or (config.split == "all" and not asked):
        return None
    # A dataset without such folds is trained on alone.
    return open_split(having, config.validation_split, config.validation_folds, config.model.sample_rate, every=False)


def hear(held_out: Dataset, model: ModelConfig) -> None:
    """Decode every validation clip: one that fails is told now, and not after an epoch, which would be lost."""
    mode = "centre" if model.fusion == "none" else "fixed-thirds"
    for _ in waveforms(held_out, model.sample_rate, model.sample_rate, model.n_samples, mode):
        pass


@contextmanager
def stop_signals(patient: bool) -> Iterator[Callable[[], bool]]:
    """Within, SIGINT and SIGTERM only make the yielded function true; a second one acts as usual, unless `patient`.

    torchrun sends several, and kills what does not end by itself.
    """
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM) if current_thread() is main_thread() else ()  # Python's rule
    usual = {number: signal.getsignal(number) for number in numbers}

    def on_signal(number: int, _: object) -> None:
        received.append(number)
        if not patient:
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
