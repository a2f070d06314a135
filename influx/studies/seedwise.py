"""Agreement seed by seed with truths whose jobs hold all seeds: an estimate with any of them, and such a truth with itself."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from influx.errors import InfluxError
from influx.statistics import per_test_correlation
from influx.studies.comparisons import FEWEST, KINDS, Comparison, Folders, pseudo_values


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
                found = {kind: _mean(predicted[:, there], truth.change[:, here], kind) for kind in KINDS}
                made += [{"seed": seed, "statistic": kind, "value": value} for kind, value in found.items() if np.isfinite(value)]
        return made


def _predicted(folder: Path, truth: Changes) -> tuple[Float[np.ndarray, "n_removed n_test"], Int[np.ndarray, " n_test"]]:
    with np.load(folder / "influence.npz", allow_pickle=False) as held:
        rows, influence = held["train_index"], held["influence"]
        if not np.isin(truth.train_index, rows).all():
            raise InfluxError(f"{folder} has not scored every example that the truth leaves out: estimate and truth need the same split.")
        order = np.argsort(rows)
        place = order[np.searchsorted(rows, truth.train_index, sorter=order)]
        return truth.members @ influence[place], held["test_index"]


@dataclass(frozen=True)
class ColumnAgreement(Comparison):
    """Does a truth agree with itself across seeds? The mean correlation over pairs of seeds, as a jackknife pseudo-value a seed.

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
        alike = [
            (a, b)
            for a, b in itertools.combinations(columns, 2)
            if len(columns[a].removals) >= FEWEST and np.array_equal(columns[a].removals, columns[b].removals)
        ]
        made = []
        for kind in KINDS:
            values = pseudo_values({(a, b): _mean(columns[a].change, columns[b].change, kind) for a, b in alike})
            made += [{"seed": seed, "statistic": kind, "value": value} for seed, value in values.items()]
        return made


def _mean(one: np.ndarray, other: np.ndarray, kind: str) -> float:
    """The correlation, mean over the test examples that have one."""
    each = per_test_correlation(one, other, kind)
    return float(np.nanmean(each)) if np.isfinite(each).any() else float("nan")
