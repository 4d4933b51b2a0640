"""One step of the optimiser, with the gradient of the whole batch however little of it fits into memory.

A contrastive loss compares every pair with every other one, so micro-batches can't just be added up. With
`micro_batch` the batch is embedded without a graph, the loss of all embeddings gives each of them its gradient, and
then each micro-batch is embedded once more, with a graph, to hand its gradient on (GradCache, Gao et al. 2021,
arXiv:2101.06983): a third more time, the memory of one micro-batch, and the same gradient, as both passes draw the
same random numbers. Batch norm alone sees micro-batches: it norms by the statistics of each, as it does by those of
each process's share where many train on CPUs (fusion's on GPUs, too); its running statistics move once for each
micro-batch, and after every step are the mean over the processes.

Random numbers (dropout, SpecAugment) follow from (seed, step, process, micro-batch): none need be saved to resume.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from clap.config import TrainConfig
from clap.distributed import World, average_gradients, average_statistics
from clap.heads import norms, train_mode
from clap.loader import Batch
from clap.loss import compute
from clap.model import CLAP


def update(
    model: CLAP, optimizer: torch.optim.Optimizer, batch: Batch, step: int, lr: float, config: TrainConfig, world: World
) -> Tensor:
    """One step from `step` on; returns (loss, length of the gradient), (2,) on the device, of all processes."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]
    train_mode(model, config)
    optimizer.zero_grad()
    loss = gradients(model, batch, config, seed=(config.seed, step, world.rank))
    average_gradients(model.parameters(), world)
    average_statistics(norms(model), world)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    model.clamp_scales()
    return torch.stack([world.mean(loss), norm])


def gradients(model: CLAP, batch: Batch, config: TrainConfig, seed: tuple[int, ...]) -> Tensor:
    """Add the gradient of the batch's loss to the parameters; returns the loss, () detached."""
    parts = [part.to(model.device) for part in batch.split(config.micro_batch or len(batch))]
    identities = batch.caption_ids.to(model.device), batch.clip_ids.to(model.device)
    if len(parts) == 1:
        return backward(model, embed(model, parts[0], config, (*seed, 0)), identities, config)
    with torch.no_grad(), still_norms(model):
        seen = [embed(model, part, config, (*seed, i)) for i, part in enumerate(parts)]
    audio, text = (torch.cat(side).requires_grad_() for side in zip(*seen, strict=True))
    reseed((*seed, len(parts)))  # of the dropout in the loss's own layers
    loss = backward(model, (audio, text), identities, config)
    sizes = [len(part) for part in parts]
    ends = [side.grad.split(sizes) for side in (audio, text) if side.grad is not None]
    for i, (part, *given) in enumerate(zip(parts, *ends, strict=True)):
        again = zip(embed(model, part, config, (*seed, i)), given, strict=True)
        for side, grad in again:
            if side.requires_grad:  # unless the tower and its projection are frozen
                side.backward(grad)
    return loss


def embed(model: CLAP, batch: Batch, config: TrainConfig, seed: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(batch, dim) of the audio and of the texts, L2-normalised, drawing from the generator that `seed` sets."""
    reseed(seed)
    device = model.device.type
    half = config.precision == "bf16" or (config.precision == "auto" and device == "cuda")
    with torch.autocast(device, torch.bfloat16, enabled=half):
        texts = [model.encode_text(*block) for block in batch.texts()]
        return model.encode_audio(batch.audio), torch.cat(texts)


def backward(
    model: CLAP, embeddings: tuple[Tensor, Tensor], identities: tuple[Tensor, Tensor], config: TrainConfig
) -> Tensor:
    """The loss of a batch's embeddings, () detached, whose gradient is added to all that led to them."""
    loss = compute(config, model.heads(*embeddings), *identities)
    loss.backward()
    return loss.detach()


def reseed(numbers: tuple[int, ...]) -> None:
    """Set torch's generators, on every device, by the numbers."""
    torch.manual_seed(int.from_bytes(blake2b(repr(numbers).encode(), digest_size=7).digest()))


@contextmanager
def still_norms(model: nn.Module) -> Iterator[None]:
    """Within, batch norms leave their running statistics alone: the second pass over the same clips moves them."""
    found: list[Any] = norms(model)
    usual = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in found]
    for norm, _, _ in usual:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, batches in usual:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)


def make_optimizer(model: CLAP, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the model's parameter groups."""
    groups = parameter_groups(model, config)
    return torch.optim.AdamW(groups, config.lr, (config.beta1, config.beta2), config.eps, fused=True)


def parameter_groups(model: CLAP, config: TrainConfig) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and scales do not. Each tower has its own factor on the rate of learning."""
    factors = {"audio": config.lr_audio, "text": config.lr_text}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            free = parameter.ndim < 2 or "bias" in name  # bias: HTSAT's position tables too
            key = factors.get(name.partition(".")[0], 1.0), 0.0 if free else config.weight_decay
            groups.setdefault(key, []).append(parameter)
    return [{"params": each, "factor": factor, "weight_decay": decay} for (factor, decay), each in groups.items()]


def prepare(model: CLAP, config: TrainConfig, world: World) -> None:
    """Make the towers recompute, compile, and norm over all processes, as the settings say and the device can."""
    if world.size > 1 and world.device.type == "cuda":
        synchronise(model.audio)
    if config.recompute:
        for block in [*blocks(model.audio), *blocks(model.text)]:
            again = partial(twice, block)
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=again)
    if config.compile:
        model.audio.compile()
        model.text.encoder.compile(dynamic=True)  # captions differ in length from batch to batch


def synchronise(module: nn.Module) -> None:
    """Let batch norms norm over all processes, but not fusion's.

    A process whose share has no longer clip never comes there, and the others would wait for it.
    """
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
        elif name not in ("fusion_model", "mel_conv1d", "mel_conv2d"):
            synchronise(child)


def twice(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What surrounds a block's first pass, and the one that computes its activations again."""
    return nullcontext(), still_norms(block)


def blocks(tower: Any) -> Iterator[nn.Module]:
    """The layers of a tower: HTSAT's blocks, PANN's, or those of transformers' encoders, which stand in one list."""
    if hasattr(tower, "layers"):
        yield from (block for stage in tower.layers for block in stage.blocks)
    elif hasattr(tower, "blocks"):
        yield from tower.blocks
    else:
        yield from next(module for module in tower.modules() if isinstance(module, nn.ModuleList))
