"""What comparisons read in run folders: truths, and what an estimate predicts for them."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from influx.errors import InfluxError
from influx.statistics import per_test_correlation

FEWEST = 3  # removed examples in common for a correlation, or seeds for their spread
KINDS = ("pearson", "spearman")


class Changes(NamedTuple):
    """A job's truth for one seed. Sets of several examples are known by their number, and `members` says who is in them."""

    removals: Int[np.ndarray, " n_removed"]
    tests: Int[np.ndarray, " n_test"]
    change: Float[np.ndarray, "n_removed n_test"]
    train_index: Int[np.ndarray, " n_train"]
    members: Float[np.ndarray, "n_removed n_train"]


class Scores(NamedTuple):
    """A job's estimate: `influence.npz`."""

    train_index: Int[np.ndarray, " n_train"]
    tests: Int[np.ndarray, " n_test"]
    influence: Float[np.ndarray, "n_train n_test"]

    @classmethod
    def read(cls, folder: Path) -> Scores:
        with np.load(folder / "influence.npz", allow_pickle=False) as held:
            return cls(held["train_index"], held["test_index"], held["influence"].astype(np.float64))

    def predicted(self, truth: Changes, folder: Path) -> Float[np.ndarray, "n_removed shared"]:
        """The predicted changes on the test examples that both have, in the truth's order: sums over those left out together.

        Raises:
            InfluxError: the truth leaves out an example without a score, or has no test example in common.
        """
        shared = truth.tests[np.isin(truth.tests, self.tests)]
        if not len(shared) or not np.isin(truth.train_index, self.train_index).all():
            raise InfluxError(
                f"{folder} and the truth that it is compared with are not about the same data: both need the same split and test examples."
            )
        chosen = self.influence[np.ix_(places(self.train_index, truth.train_index), places(self.tests, shared))]
        return truth.members @ chosen


def places(known: Int[np.ndarray, " n"], wanted: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
    """Where in `known`, in any order, each of `wanted` is; all are there."""
    order = np.argsort(known)
    return order[np.searchsorted(known, wanted, sorter=order)]


def truths(folders: Mapping[int, Path], wanted: Container[int] | None = None) -> dict[int, Changes]:
    """Seed (all, or those wanted) -> its truth. Of a folder that several seeds share each has its own column; a folder of its own is
    averaged over its seeds."""
    shared = {folder for folder in folders.values() if list(folders.values()).count(folder) > 1}
    chosen = {seed: folder for seed, folder in folders.items() if wanted is None or seed in wanted}
    return {seed: _truth(folder, seed if folder in shared else None) for seed, folder in chosen.items()}


def _truth(folder: Path, seed: int | None) -> Changes:
    with np.load(folder / "ground_truth.npz", allow_pickle=False) as held:
        every, rows = held["change"], held["train_index"]
        change = every.mean(2) if seed is None else every[:, :, held["seed"].tolist().index(seed)]
        if "removed" in held:
            return Changes(np.arange(len(change)), held["test_index"], change, rows, held["removed"].astype(float))
        return Changes(rows, held["test_index"], change, rows, np.eye(len(rows)))


def estimate_correlations(folder: Path, truth: Changes) -> dict[str, float]:
    """How well the estimate in a run folder follows a truth."""
    scores = Scores.read(folder)
    predicted = scores.predicted(truth, folder)
    return correlations(predicted, truth.change[:, np.isin(truth.tests, scores.tests)])


def truth_correlations(one: Changes, other: Changes) -> dict[str, float]:
    """How well two truths agree, over the removed examples and the test examples that both have."""
    _, in_one, in_other = np.intersect1d(one.removals, other.removals, return_indices=True)
    _, at_one, at_other = np.intersect1d(one.tests, other.tests, return_indices=True)
    return correlations(one.change[np.ix_(in_one, at_one)], other.change[np.ix_(in_other, at_other)])


def correlations(one: Float[np.ndarray, "n m"], other: Float[np.ndarray, "n m"]) -> dict[str, float]:
    """Pearson and Spearman, each column (test example) apart, then the mean of those that have one; NaN without any."""
    if len(one) < FEWEST or not one.shape[1]:
        return dict.fromkeys(KINDS, float("nan"))
    found = {kind: per_test_correlation(one, other, kind) for kind in KINDS}
    return {kind: float(np.nanmean(each)) if np.isfinite(each).any() else float("nan") for kind, each in found.items()}
