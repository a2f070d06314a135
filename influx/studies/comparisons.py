"""What is computed from several jobs of one grid point: truths against one another, across procedures or across seeds."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from influx.statistics import per_test_correlation

Folders = Mapping[str, Mapping[int, Path]]  # arm -> seed -> the job's run folder
FEWEST = 3  # removed examples in common for a correlation, or seeds for their spread
KINDS = ("pearson", "spearman")


class Comparison(ABC):
    """Rows of the results that no job has alone."""

    @property
    @abstractmethod
    def arms(self) -> tuple[str, ...]:
        """The arms whose jobs it reads."""

    @abstractmethod
    def rows(self, folders: Folders) -> list[dict[str, Any]]:
        """`seed, statistic, value` rows from the finished jobs at one grid point; a seed that lacks a job is left out."""


@dataclass(frozen=True)
class TruthAgreement(Comparison):
    """Do two ways of retraining agree? Pearson and Spearman over the removed examples that both have, mean over test examples."""

    first: str
    second: str

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.first, self.second)

    def rows(self, folders: Folders) -> list[dict[str, Any]]:
        both = sorted(set(folders[self.first]) & set(folders[self.second]))
        made = []
        for seed in both:
            found = agreement(folders[self.first][seed], folders[self.second][seed])
            made += [{"seed": seed, "statistic": kind, "value": value} for kind, value in found.items()]
        return made


@dataclass(frozen=True)
class SeedAgreement(Comparison):
    """Does one way of retraining agree with itself? The mean correlation over pairs of seeds, as a jackknife pseudo-value a seed.

    What an estimate of one seed's model could be expected to reach at best against the retraining of an independent one.
    """

    arm: str

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm,)

    def rows(self, folders: Folders) -> list[dict[str, Any]]:
        by_seed = folders[self.arm]
        pairs = {(a, b): agreement(by_seed[a], by_seed[b]) for a, b in itertools.combinations(by_seed, 2)}
        made = []
        for kind in KINDS:
            values = pseudo_values({pair: found[kind] for pair, found in pairs.items()})
            made += [{"seed": seed, "statistic": kind, "value": value} for seed, value in values.items()]
        return made


def pseudo_values(pairs: Mapping[tuple[int, int], float]) -> dict[int, float]:
    """Jackknife pseudo-values S·U − (S − 1)·U₋ₛ of the mean U over pairs of S seeds (Arvesen, Annals of Mathematical Statistics 40, 1969).

    Their mean is U, and their standard error is that of U, which the means over each seed's own pairs understate: those share pairs.
    None for S < 3.
    """
    defined = {pair: value for pair, value in pairs.items() if np.isfinite(value)}
    seeds = sorted({seed for pair in defined for seed in pair})
    if len(seeds) < FEWEST:
        return {}
    mean = float(np.mean(list(defined.values())))
    made = {}
    for seed in seeds:
        without = [value for pair, value in defined.items() if seed not in pair]
        if without:
            made[seed] = len(seeds) * mean - (len(seeds) - 1) * float(np.mean(without))
    return made


def agreement(first: Path, second: Path) -> dict[str, float]:
    """Correlations of two run folders' truths over the removed examples and test examples that both have."""
    (rows_a, tests_a, change_a), (rows_b, tests_b, change_b) = _truth(first), _truth(second)
    rows, in_a, in_b = np.intersect1d(rows_a, rows_b, return_indices=True)
    tests, at_a, at_b = np.intersect1d(tests_a, tests_b, return_indices=True)
    if len(rows) < FEWEST or not len(tests):
        return {"pearson": np.nan, "spearman": np.nan}
    one, other = change_a[np.ix_(in_a, at_a)], change_b[np.ix_(in_b, at_b)]
    found = {kind: per_test_correlation(one, other, kind) for kind in ("pearson", "spearman")}
    return {kind: float(np.nanmean(each)) if np.isfinite(each).any() else np.nan for kind, each in found.items()}


def _truth(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Removed examples, test examples, and changes averaged over the job's own seeds. Sets of several are known by their number."""
    with np.load(folder / "ground_truth.npz", allow_pickle=False) as held:
        rows = np.arange(len(held["change"])) if "removed" in held else held["train_index"]
        return rows, held["test_index"], held["change"].mean(2)
