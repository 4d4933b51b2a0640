"""Processes that train together, as torchrun or Ray Train starts them: who is who, and what they tell each other.

Gradients are averaged here, after backward, and not by DistributedDataParallel: a loss of embeddings that were computed
in micro-batches (step.py) has no single forward pass to hook into, and parts without a gradient need no search.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clap.config import ConfigError

PATIENCE = timedelta(hours=6)  # that the others wait while the first evaluates or fills a cache


@dataclass(frozen=True)
class World:
    """This process among `size` that train together, and its device."""

    device: torch.device
    rank: int = 0
    size: int = 1
    local: int = 0  # among those of this machine

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        flags = torch.tensor([int(flag)])  # gloo's, on the CPU: the devices do not stop for it
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags.item())

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes, on its device."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def share(self, module: nn.Module) -> None:
        """Give every process the first one's parameters and buffers of a module."""
        for tensor in [*module.parameters(), *module.buffers()] if self.size > 1 else ():
            dist.broadcast(tensor.data, 0)


@contextmanager
def join(device: str) -> Iterator[World]:
    """This process's world: that of torchrun or of Ray Train, which has made the group already, or it alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(choose_device(device))
        return
    if "LOCAL_RANK" not in os.environ:
        raise ConfigError("WORLD_SIZE is set, LOCAL_RANK is not: start several processes by torchrun, or unset it")
    local = int(os.environ["LOCAL_RANK"])
    chosen = choose_device(f"cuda:{local}" if device in ("auto", "cuda") and torch.cuda.is_available() else device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    made = not dist.is_initialized()
    if made:
        dist.init_process_group(backend, timeout=PATIENCE)
    elif "cpu:" not in dist.get_backend_config():
        raise ConfigError(f"the processes' group cannot exchange what lies on the CPU: make it with {backend!r}")
    try:
        yield World(chosen, dist.get_rank(), size, local)
    finally:
        if made:
            dist.destroy_process_group()


def average_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Replace every gradient by its mean over the processes, in one exchange for each type of number.

    A parameter that had none here, such as a fusion's where no clip was longer, counts as zero, also in one process:
    AdamW moves it by its momentum then, whether or not another process had such a clip.
    """
    trained = [each for each in parameters if each.requires_grad]
    for each in trained:
        if each.grad is None:
            each.grad = torch.zeros_like(each)
    if world.size == 1:
        return
    for kind in sorted({each.dtype for each in trained}, key=str):
        average([each.grad for each in trained if each.dtype == kind and each.grad is not None], world)


def average_statistics(norms: Iterable[nn.Module], world: World) -> None:
    """Replace what batch norms learned of this process's share by the mean over the processes, in one exchange.

    Those that stand still, or are synchronised, are left as they are.
    """
    moved = [norm for norm in norms if norm.training and not isinstance(norm, nn.SyncBatchNorm)]
    if moved and world.size > 1:
        average([cast(Tensor, each) for norm in moved for each in (norm.running_mean, norm.running_var)], world)


def average(tensors: Sequence[Tensor], world: World) -> None:
    """Replace tensors of one type by their means over the processes, in one exchange."""
    flat = world.mean(torch.cat([each.reshape(-1) for each in tensors]))
    for tensor, mean in zip(tensors, flat.split([each.numel() for each in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


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
