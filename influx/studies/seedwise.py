"""Agreement seed by seed with truths whose jobs hold all seeds: an estimate with any of them, and such a truth with itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from influx.statistics import per_test_correlation
from influx.studies.comparisons import FEWEST, Comparison, Folders

KINDS = ("pearson", "spearman")


class Changes(NamedTuple):
    """One seed's column of a job's `ground_truth.npz`; groups are known by their number, and `members` says who is in them."""

    removals: Int[np.ndarray, " n_removed"]
    tests: Int[np.ndarray, " n_test"]
    change: Float[np.ndarray, "n_removed n_test"]
    train_index: Int[np.ndarray, " n_train"]
    members: Float[np.ndarray, "n_removed n_train"]

    @classmethod
    def read(cls, folder: Path, seed: int) -> Changes:
        with np.load(folder / "ground_truth.npz", allow_pickle=False) as held:
            change, rows = held["change"][:, :, held["seed"].tolist().index(seed)], held["train_index"]
            if "removed" in held:
                return cls(np.arange(len(change)), held["test_index"], change, rows, held["removed"].astype(float))
            return cls(rows, held["test_index"], change, rows, np.eye(len(rows)))


@dataclass(frozen=True)
class EstimateAgreement(Comparison):
    """How well does one arm's estimate follow another arm's truth? Pearson and Spearman over removals, mean over test examples.

    The prediction for several examples left out together is the sum of their influences.

    Args:
        estimate: arm with a job a seed, which hold the estimates.
        truth: arm with the truths of the same seeds, and the same examples left out.
    """

    estimate: str
    truth: str

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.estimate, self.truth)

    def rows(self, folders: Folders) -> list[dict[str, Any]]:
        made = []
        for seed in sorted(set(folders[self.estimate]) & set(folders[self.truth])):
            truth = Changes.read(folders[self.truth][seed], seed)
            predicted, tests = _predicted(folders[self.estimate][seed], truth)
            shared, here, there = np.intersect1d(truth.tests, tests, return_indices=True)
            if len(truth.removals) >= FEWEST and len(shared):
                made += _correlated(seed, [(predicted[:, there], truth.change[:, here])])
        return made


def _predicted(folder: Path, truth: Changes) -> tuple[Float[np.ndarray, "n_removed n_test"], Int[np.ndarray, " n_test"]]:
    with np.load(folder / "influence.npz", allow_pickle=False) as held:
        rows, influence = held["train_index"], held["influence"]
        order = np.argsort(rows)
        place = order[np.searchsorted(rows, truth.train_index, sorter=order)]
        return truth.members @ influence[place], held["test_index"]


@dataclass(frozen=True)
class ColumnAgreement(Comparison):
    """Does a truth agree with itself across seeds? A seed's changes against every other seed's, mean over the others.

    What an estimate of one seed's model can be expected to reach against the retraining of an independent one.

    Args:
        arm: whose jobs hold the truths, of the same examples left out for every seed.
    """

    arm: str

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm,)

    def rows(self, folders: Folders) -> list[dict[str, Any]]:
        columns = {seed: Changes.read(folder, seed) for seed, folder in folders[self.arm].items()}
        made = []
        for seed, mine in columns.items():
            others = [other for s, other in columns.items() if s != seed and np.array_equal(mine.removals, other.removals)]
            pairs = [(mine.change, other.change) for other in others]
            if pairs and len(mine.removals) >= FEWEST:
                made += _correlated(seed, pairs)
        return made


def _correlated(seed: int, pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
    """A row a kind: mean over test examples and pairs, of what is defined."""
    made = []
    for kind in KINDS:
        found = np.array([np.nanmean(each) for a, b in pairs if np.isfinite(each := per_test_correlation(a, b, kind)).any()])
        if len(found):
            made.append({"seed": seed, "statistic": kind, "value": float(found.mean())})
    return made
