"""What a batch of pairs costs: the symmetric softmax of CLIP and LAION-CLAP and its rivals, in one process or many.

A loss is a function of similarities: `to_text` (n, N) of n audio against N texts, `to_audio` (n, N) of the n texts
against N audio, and `positive` (n, N), which of the N belong to a row (the relation is symmetric, so one matrix serves
both ways). In one process n = N. Over several, a row is a pair of this process and a column one of any.

All of them take several positives in a row; what each makes of those beside the own pair, its docstring says.
transformers' ClapModel computes text-to-audio twice and never audio-to-text; here every loss is both directions.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from clap.config import ConfigError, TrainConfig
from clap.model import Embeddings

TEMPERATURE = 0.07  # of NT-Xent, fixed: what ML-ACT's authors trained with


class Pairs(NamedTuple):
    """The pairs of a step as a loss sees them."""

    mine: Embeddings  # (n, d): a row each
    every: Embeddings  # (N, d): a column each
    own: Tensor  # (n,) the column of a row's own partner
    positive: Tensor  # (n, N) boolean, own partner included


def compute(config: TrainConfig, out: Embeddings, captions: Tensor, clips: Tensor) -> Tensor:
    """The loss that `config.loss` names, () float32; captions and clips (n,) are identities, see `positives`.

    Averaged over the processes of torch.distributed, as data-parallel training averages gradients, loss and gradients
    are those of one process with the whole batch. Only the softmax losses have a use for kappa.
    """
    with torch.autocast(out.audio.device.type, enabled=False):
        mine, every, own, positive = meet(out, captions, clips, config.targets, config.gather)
        sides = mine.audio @ every.text.T, mine.text @ every.audio.T
        scale_t = out.scale_t if config.scales == "two" else out.scale_a
        weights: tuple[Tensor | None, Tensor | None] = (None, None)  # audio's, texts'
        if config.kappa:
            weights = kappa_weights(every.audio, config.kappa)[own], kappa_weights(every.text, config.kappa)[own]
        losses = {
            "softmax": lambda: contrastive(*sides, out.scale_a, scale_t, positive, weights[1], weights[0]),
            "mlp": lambda: mlp(mine, every, positive, *weights),
            "sigmoid": lambda: sigmoid(sides[0], out.scale_a, given(out.bias), positive),
            "triplet-max": lambda: triplet_max(*sides, own, positive, config.margin),
            "triplet-weighted": lambda: triplet_weighted(*sides, own, positive, config.margin),
            "nt-xent": lambda: nt_xent(*sides, own, positive),
        }
        return losses[config.loss]()


def meet(out: Embeddings, captions: Tensor, clips: Tensor, targets: str, how: str) -> Pairs:
    """The pairs of all processes: own rows against every column (`how` local), or every row too (global).

    Local costs n x N products in each process and global N x N; loss and gradients, once averaged, are the same.
    """
    rows = {name: each for name, each in out._asdict().items() if each is not None and each.ndim == 2}
    every = out._replace(**{name: gather(each) for name, each in rows.items()})
    n, total = len(out.audio), len(every.audio)
    own = torch.arange(total, device=out.audio.device)
    if how == "local" and total > n:
        own = own[dist.get_rank() * n :][:n]
    mine = out if len(own) == n else every
    if targets == "plain":
        return Pairs(mine, every, own, own[:, None] == torch.arange(total, device=own.device))
    return Pairs(mine, every, own, positives(gather(captions), gather(clips))[own])


def positives(captions: Tensor, clips: Tensor) -> Tensor:
    """Which audio goes with which text, (batch, batch) boolean, the diagonal included.

    captions and clips (batch,) are identities: two rows with the same cleaned caption, or with the same
    clip, are not negatives of each other. Where they all differ this is the identity.
    """
    return (captions[:, None] == captions) | (clips[:, None] == clips)


def contrastive(
    to_text: Tensor,
    to_audio: Tensor,
    scale_a: Tensor,
    scale_t: Tensor,
    positive: Tensor,
    weight_a: Tensor | None = None,
    weight_t: Tensor | None = None,
) -> Tensor:
    """Mean of both directions' cross-entropy; the target is spread evenly over the positives of a row.

    scale_a multiplies audio-to-text logits, scale_t text-to-audio; the optional weights (n,) are of the rows of either
    direction. With one positive a row and one scale for both it is the loss of CLIP (arXiv:2103.00020, figure 3) and
    of LAION-CLAP (arXiv:2211.06687, section 2.2).
    """
    return (_towards(scale_a * to_text, positive, weight_a) + _towards(scale_t * to_audio, positive, weight_t)) / 2


def _towards(logits: Tensor, positive: Tensor, weight: Tensor | None) -> Tensor:
    target = positive / positive.sum(dim=1, keepdim=True)
    rows = cross_entropy(logits, target, reduction="none")
    return (rows if weight is None else rows * weight).mean()


def mlp(
    mine: Embeddings,
    every: Embeddings,
    positive: Tensor,
    weight_a: Tensor | None = None,
    weight_t: Tensor | None = None,
) -> Tensor:
    """LAION-CLAP's MLP loss (its loss.py, `mlp_loss`): audio against transformed texts, and the other way round.

    With A', T' the MLP transforms of the normalised A, T (not normalised again): the mean of four cross-entropies,
    over s_a A T'^T, s_a T' A^T, s_t A' T^T and s_t T A'^T. Weights: of the first two, and of the last two.
    """
    first = mine.audio @ given(every.text_mlp).T, given(mine.text_mlp) @ every.audio.T
    second = given(mine.audio_mlp) @ every.text.T, mine.text @ given(every.audio_mlp).T
    one = contrastive(*first, mine.scale_a, mine.scale_a, positive, weight_a, weight_a)
    two = contrastive(*second, mine.scale_t, mine.scale_t, positive, weight_t, weight_t)
    return (one + two) / 2


def given(part: Tensor | None) -> Tensor:
    """A part of the model that only some losses have."""
    if part is None:
        raise ConfigError("the model lacks heads that its loss needs: create it with config.for_loss(train_config)")
    return part


def kappa_weights(features: Tensor, kappa: float) -> Tensor:
    """LAION-CLAP's weights of pairs (its loss.py, `weight_loss_kappa`), (N,) without gradient, of mean 1.

    exp(sum_j <f_i, f_j> / (kappa N)): a pair counts for more the more it resembles the batch. The original weights a
    plain loss's audio-to-text rows by the texts' weights and the other way round, but an MLP loss's first half by the
    audio's and its second by the texts'; it divides by the sum of the weights, as a mean of 1 does.
    """
    features = features.detach()
    return (features @ features.mean(0) / kappa).softmax(0) * len(features)


def sigmoid(to_text: Tensor, scale: Tensor, bias: Tensor, positive: Tensor) -> Tensor:
    """SigLIP's loss (arXiv:2303.15343, section 3.2): every pair is a question of its own, is it a match or not.

    -1/n sum_ij log sigmoid(z_ij (scale <a_i, t_j> + bias)), z = 1 for each positive and -1 for the rest. It has no
    directions. The paper starts from a scale of 10 and a bias of -10, as nearly every pair is no match.
    """
    logits = scale * to_text + bias
    return -logsigmoid(torch.where(positive, logits, -logits)).sum(dim=1).mean()


def triplet_max(to_text: Tensor, to_audio: Tensor, own: Tensor, positive: Tensor, margin: float) -> Tensor:
    """Hinge on the hardest negative of the batch (VSE++, arXiv:1707.05612; "triplet-max" of ML-ACT, arXiv:2203.15537).

    Both directions' mean over i of max(0, margin + max_j s_ij - s_ii), added, j over the negatives of i; positives
    other than the own partner neither attract nor repel. A row without a negative costs nothing.
    """

    def hinge(similarity: Tensor) -> Tensor:
        pair, negative = pair_and_hardest(similarity, own, positive)
        return (margin + negative - pair).clamp(min=0).mean()

    return hinge(to_text) + hinge(to_audio)


def triplet_weighted(to_text: Tensor, to_audio: Tensor, own: Tensor, positive: Tensor, margin: float) -> Tensor:
    """Polynomials of the pair and of its hardest negative ("triplet-weighted" of ML-ACT, after Wei et al. 2020).

    A row counts only where s_in + margin > s_ii, n its hardest negative; then it costs
    max(0, 0.5 - 0.7 s_ii + 0.2 s_ii^2) + max(0, 0.03 - 0.4 s_in + 0.9 s_in^2), with the coefficients of ML-ACT's code.
    Both directions' means over all n rows, added. Other positives: as in triplet_max.
    """

    def weighted(similarity: Tensor) -> Tensor:
        pair, negative = pair_and_hardest(similarity, own, positive)
        counts = (negative + margin > pair) & (pair < 1 - 1e-5)
        negative = negative.where(counts, torch.zeros_like(negative))  # a row without negatives has -inf here
        attract = (0.5 - 0.7 * pair + 0.2 * pair**2).clamp(min=0)
        repel = (0.03 - 0.4 * negative + 0.9 * negative**2).clamp(min=0)
        return ((attract + repel) * counts).mean()

    return weighted(to_text) + weighted(to_audio)


def pair_and_hardest(similarity: Tensor, own: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Of every row the similarity to its own partner and the largest to a negative (-inf if there is none), (n,)."""
    pair = similarity.gather(1, own[:, None]).squeeze(1)
    return pair, similarity.masked_fill(positive, -torch.inf).amax(dim=1)


def nt_xent(
    to_text: Tensor, to_audio: Tensor, own: Tensor, positive: Tensor, temperature: float = TEMPERATURE
) -> Tensor:
    """Normalised temperature-scaled cross-entropy (SimCLR, arXiv:2002.05709), over audio and text as in ML-ACT.

    The mean of both directions' -log(exp(s_ii / t) / sum_j exp(s_ij / t)), t fixed. Positives other than the own
    partner are left out of the sum, so that they do not repel (in ML-ACT's code they stay in it).
    """
    others = positive.scatter(1, own[:, None], False)

    def towards(similarity: Tensor) -> Tensor:
        return cross_entropy((similarity / temperature).masked_fill(others, -torch.inf), own)

    return (towards(to_text) + towards(to_audio)) / 2


def gather(rows: Tensor) -> Tensor:
    """(n, ...) of every process, in the order of their ranks: (N, ...), through which gradients flow back.

    A loss of gathered rows whose gradient stops at the network is LAION-CLAP's `gather_with_grad=False`: it halves the
    gradient of two processes and, with its `local_loss`, turns it elsewhere; there is no such option here.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    return _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    """All-gather, whose gradient is what every process has to say about the own rows, added up."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous().clone()
        dist.all_reduce(whole)
        return whole.chunk(dist.get_world_size())[dist.get_rank()]
