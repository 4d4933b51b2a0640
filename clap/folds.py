"""How a labelled dataset is parted for learning, choosing and testing: as published, by splits or by folds."""

from collections.abc import Sequence
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clap.data import SHARD, DataError, Dataset
from clap.probe_config import ProbeError
from clap.shards import read

if TYPE_CHECKING:
    import pyarrow.parquet as pq

SHARE = 0.15  # of the training recordings, to choose by, where no validation split is published


class Round(NamedTuple):
    """Rows to learn from, to choose by and to test on; `refit`: what was chosen may learn from both of the first."""

    held_out: str  # "test" or "fold 3"
    chosen_by: str  # what validates, for people
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    refit: bool


def read_labels(data: Dataset) -> tuple[list[str], np.ndarray]:
    """The labels of a dataset, sorted, and (clips, labels) bool."""
    own = data.rows["labels"].to_pylist()
    if not all(own):
        bare = next(row for row, labels in enumerate(own) if not labels)
        raise DataError(f"{data.where(bare)} has no label: a probe needs labels for every clip")
    labels = sorted({label for each in own for label in each})
    if len(labels) < 2:
        raise DataError(f"{data.name} has one label only ({labels[0]}): a probe needs two or more")
    place = {label: i for i, label in enumerate(labels)}
    relevant = np.zeros((len(own), len(labels)), bool)
    for row, each in enumerate(own):
        relevant[row, [place[label] for label in each]] = True
    return labels, relevant


def rounds(data: Dataset, folds: Sequence[int], seed: int) -> list[Round]:
    """The one round of a dataset (opened with split "all") that has a test split, else one for every fold or `folds`.

    Of folds, each is tested in turn and the following one chooses.
    """
    splits = [match["split"] for shard, _ in data.groups if (match := SHARD.fullmatch(PurePath(shard).name))]
    split = np.array(splits)[data.group]
    fold = data.rows["fold"].to_numpy()
    if "test" in split:
        if folds:
            raise ProbeError(f"{data.name} has a test split: leave --folds out")
        return [by_split(data, split, seed)]
    present = sorted(set(fold.tolist()))
    if len(present) < 3 or 0 in present:
        raise ProbeError(f"{data.name} has neither a test split nor three folds or more: build the whole corpus")
    if unknown := set(folds) - set(present):
        raise ProbeError(f"{data.name} has the folds {present}, not {sorted(unknown)}: see --folds")
    following = dict(zip(present, [*present[1:], present[0]], strict=True))
    return [by_fold(fold, test, following[test]) for test in folds or present]


def by_fold(fold: np.ndarray, test: int, validation: int) -> Round:
    """The round of two folds among those of all clips (clips,)."""
    rest = (fold != test) & (fold != validation)
    train, choosing, tested = (np.flatnonzero(each) for each in (rest, fold == validation, fold == test))
    return Round(f"fold {test}", f"fold {validation}", train, choosing, tested, True)


def by_split(data: Dataset, split: np.ndarray, seed: int) -> Round:
    """The round of official splits; without one for validation, some training recordings, drawn by seed, choose."""
    train, validation, test = (np.flatnonzero(split == name) for name in ("train", "validation", "test"))
    if not len(train):
        raise ProbeError(f"{data.name} has no split 'train' to learn from: build the whole corpus")
    if len(validation):
        return Round("test", "validation", train, validation, test, False)
    own = recordings(data)[train]
    there = np.unique(own)
    if len(there) < 2:
        raise ProbeError(f"{data.name} has one recording to learn from, none is left to choose by: build more of it")
    drawn = np.random.default_rng(seed).permutation(there)[: max(1, round(SHARE * len(there)))]
    apart = np.isin(own, drawn)
    chosen_by = f"{len(drawn)} of {len(there)} recordings in train"
    return Round("test", chosen_by, train[~apart], train[apart], test, True)


def recordings(data: Dataset) -> np.ndarray:
    """(clips,) a number for what each was cut from: the same for clips that have the same page (`url`)."""
    names: list[str] = []
    for rows in data.members():
        shard, group = data.groups[data.group[rows[0]]]
        pages = read(shard, partial(urls, group))
        names += [pages[data.offset[row]] or data.rows["id"][row].as_py() for row in rows]
    return np.unique(names, return_inverse=True)[1]


def urls(group: int, file: "pq.ParquetFile") -> list[str | None]:
    """The pages of a row group's clips; None where there are none."""
    if "url" not in file.schema_arrow.names:
        return [None] * file.metadata.row_group(group).num_rows
    return file.read_row_group(group, columns=["url"])["url"].to_pylist()
