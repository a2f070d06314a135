"""What is left out of training: one example at a time, random subsets, or groups.

Each retrained model lacks one *set* of training rows (positions within the training part). Its predicted change is the sum of its rows'
influences, which is first order in the example weights: for single examples the estimate itself; for groups Koh, Ang, Teo & Liang,
"On the accuracy of influence functions for measuring group effects", NeurIPS 2019; for random subsets the additive prediction whose
Spearman correlation with the truth, for each test example, is the linear datamodelling score (LDS; Park et al., "TRAK", ICML 2023).

1. Departure from Park et al.: they train on the subset alone. Here left-out rows keep their place in a batch with weight 0 and the
   objective keeps its divisor n, as everywhere, so that the sum of influences predicts the change; retraining.divisor=n-1 averages over
   the subset as they do (but for the composition of batches).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

from influx.errors import InfluxError
from influx.seeding import numpy_generator

Rows = Int[np.ndarray, " rows"]


@dataclass(frozen=True)
class Removals:
    """`sets[j]` are the rows, ascending, that model j is trained without; `unit` is what one set is called in tables."""

    sets: tuple[Rows, ...]
    unit: str = "removed example"

    @classmethod
    def single(cls, rows: Sequence[int] | Rows) -> Removals:
        """Each row on its own."""
        return cls(tuple(np.array([row]) for row in rows))

    def __len__(self) -> int:
        return len(self.sets)

    @property
    def rows(self) -> Int[np.ndarray, " n_removed"] | None:
        """The rows of sets of one; None when sets are larger."""
        return np.concatenate(self.sets) if self.unit == "removed example" else None

    def predicted(self, influence: Float[np.ndarray, "n_train n_test"]) -> Float[np.ndarray, "n_removed n_test"]:
        """Σ_{i in set} influence[i, t]."""
        return np.stack([influence[rows].sum(0) for rows in self.sets])

    def mask(self, n_train: int) -> Bool[np.ndarray, "n_removed n_train"]:
        """True where a row is left out."""
        mask = np.zeros((len(self.sets), n_train), bool)
        for out, rows in zip(mask, self.sets, strict=True):
            out[rows] = True
        return mask

    def batches(self, size: int) -> list[Removals]:
        """Cut into as few parts of at most `size` sets as possible, nearly equal: a function of the numbers alone."""
        edges = np.linspace(0, len(self.sets), -(-len(self.sets) // size) + 1).round().astype(int)
        return [Removals(self.sets[low:high], self.unit) for low, high in pairwise(edges)]


def ranked_rows(
    selection: str,
    count: int,
    influence: Float[np.ndarray, "n_train n_test"],
    losses: Float[np.ndarray, " n_train"],
    seed: int,
    percentile: float = 100.0,
) -> Rows:
    """`count` rows by "random", "top" (mean |influence| over the test examples, largest first), "percentile" (those whose rank by it is
    nearest that percentile, 100 being the largest), "loss" (highest first) or "stratified" (evenly spaced ranks of the mean influence)."""
    n = len(influence)
    if selection == "random":
        return numpy_generator(seed, "removed examples").choice(n, count, replace=False)
    if selection == "stratified":
        return np.argsort(influence.mean(1), kind="stable")[np.linspace(0, n - 1, count).round().astype(int)]
    if selection == "percentile":
        away = np.abs(np.arange(n) - percentile / 100 * (n - 1))
        return np.argsort(np.abs(influence).mean(1), kind="stable")[np.argsort(away, kind="stable")[:count]]
    rank = losses if selection == "loss" else np.abs(influence).mean(1)
    return np.argsort(-rank, kind="stable")[:count]


def subsets(n_train: int, fraction: float, count: int, seed: int) -> Removals:
    """`count` random subsets that keep round(fraction · n_train) rows each, drawn independently; the others are left out."""
    kept = round(fraction * n_train)
    if not 0 < kept < n_train:
        raise InfluxError(f"retraining.fraction={fraction} keeps {kept} of {n_train} training examples: choose one that leaves some out.")
    rng = numpy_generator(seed, "subsets")
    return Removals(tuple(np.sort(rng.choice(n_train, n_train - kept, replace=False)) for _ in range(count)), "removed subset")


def groups(ranked: Rows, size: int, count: int) -> Removals:
    """`count` disjoint groups of `size` rows, in the order of `ranked`: the first is the top `size`, the next those that follow."""
    n = len(ranked)
    if size * count > n or size == n:
        raise InfluxError(
            f"retraining.groups={count} groups of retraining.group_size={size} need {size * count} training examples, "
            f"and some must be left: there are {n}."
        )
    return Removals(tuple(np.sort(ranked[g * size : (g + 1) * size]) for g in range(count)), "removed group")


def class_groups(labels: Int[np.ndarray, " n_train"], size: int | None, count: int, seed: int) -> Removals:
    """Groups of rows of one class: each class whole (`size` null), or `count` disjoint random groups of `size`, the classes in turn."""
    classes = np.unique(labels)
    if len(classes) < 2:
        raise InfluxError("retraining.selection=class needs training examples of two classes at least: nothing would be left.")
    rng = numpy_generator(seed, "class groups")
    members = [rng.permutation(np.flatnonzero(labels == label)) for label in classes]
    if size is None:
        return Removals(tuple(np.sort(rows) for rows in members), "removed group")
    sets = []
    for g in range(count):
        turn, c = divmod(g, len(classes))
        rows = members[c][turn * size : (turn + 1) * size]
        if len(rows) < size:
            raise InfluxError(
                f"retraining.groups={count} groups of retraining.group_size={size} need {(turn + 1) * size} training examples of class "
                f"{classes[c]}; there are {len(members[c])}."
            )
        sets.append(np.sort(rows))
    return Removals(tuple(sets), "removed group")
