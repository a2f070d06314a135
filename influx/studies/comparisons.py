"""What is computed from several jobs of one grid point: truths against one another, across procedures or across seeds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from influx.statistics import per_test_correlation

Folders = Mapping[str, Mapping[int, Path]]  # arm -> seed -> the job's run folder
FEWEST = 3  # removed examples in common for a correlation


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
    """Does one way of retraining agree with itself? A seed's changes against every other seed's, mean over the others.

    What an estimate of one seed's model could be expected to reach at best against the retraining of an independent one.
    """

    arm: str

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm,)

    def rows(self, folders: Folders) -> list[dict[str, Any]]:
        by_seed = folders[self.arm]
        made = []
        for seed, folder in by_seed.items():
            found = [agreement(folder, other) for s, other in by_seed.items() if s != seed]
            for kind in ("pearson", "spearman"):
                values = np.array([one[kind] for one in found])
                if np.isfinite(values).any():
                    made.append({"seed": seed, "statistic": kind, "value": float(np.nanmean(values))})
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
