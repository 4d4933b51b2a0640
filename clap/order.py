"""The order in which an epoch visits the rows of its datasets: a function of (seed, epoch) alone."""

from collections.abc import Iterator

import numpy as np

from clap.data import Dataset


def epoch_length(data: Dataset) -> int:
    """Rows that every epoch has: those of a weight that is no whole number may be one more."""
    return sum(int(size * weight) for size, weight in data.weights)


def visits(data: Dataset, seed: int, epoch: int) -> list[np.ndarray]:
    """The rows of an epoch by row group, each as often as the weight of its dataset says.

    Of a weight of 2.3 every row comes twice, and 0.3 of the rows once more: those that follow in a circle of all,
    whole row groups in random order. So no row is ever more than one visit ahead of another.
    """
    members = data.members()
    ends = np.cumsum([size for size, _ in data.weights])
    found: list[np.ndarray] = []
    for end, (size, weight) in zip(ends.tolist(), data.weights, strict=True):
        own = [rows for rows in members if end - size <= rows[0] < end]
        found += own * int(weight)
        part = weight - int(weight)
        taken = np.arange(int(epoch * part * size), int((epoch + 1) * part * size))
        if len(taken):
            rng = np.random.default_rng([seed, end])
            circle = np.concatenate([rng.permutation(own[index]) for index in rng.permutation(len(own))])
            rows = np.sort(circle[taken % size])
            found += np.split(rows, np.flatnonzero(np.diff(data.group[rows])) + 1)
    return found


def order(members: list[np.ndarray], pool: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Rows of an epoch in pools of at least `pool` rows: whole row groups in random order, shuffled together.

    members: the rows of every row group. Each row comes exactly once; (seed, epoch) fixes the order.
    """
    rng = np.random.default_rng([seed, epoch])
    held: list[np.ndarray] = []
    for index in rng.permutation(len(members)):
        held.append(members[index])
        if sum(map(len, held)) >= pool:
            yield rng.permutation(np.concatenate(held))
            held = []
    if held:
        yield rng.permutation(np.concatenate(held))
