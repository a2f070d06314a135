"""What is computed from several jobs of one grid point: estimates and truths against one another, across procedures or across seeds."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float

from influx.studies.folders import FEWEST, KINDS, Scores, correlations, estimate_correlations, places, truth_correlations, truths

Folders = Mapping[str, Mapping[int, Path]]  # arm -> seed -> the job's run folder


class Comparison(ABC):
    """Rows of the results that no job has alone."""

    @property
    @abstractmethod
    def arms(self) -> tuple[str, ...]:
        """The arms whose jobs it reads."""

    @final
    def seeds(self, folders: Folders) -> list[int]:
        """Those that all of its arms have."""
        return sorted(set.intersection(*(set(folders[arm]) for arm in self.arms)))

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
        both = self.seeds(folders)
        first, second = truths(folders[self.first], both), truths(folders[self.second], both)
        return rows_of({seed: truth_correlations(first[seed], second[seed]) for seed in both})


@dataclass(frozen=True)
class EstimateAgreement(Comparison):
    """How well does one arm's estimate follow another arm's truth? Pearson and Spearman over removals, mean over test examples.

    It saves the job that would have both: nothing is estimated or retrained again. Both must train the same model and select what is left
    out in a way that does not look at the estimate, for instance by training loss. The prediction for several examples left out together
    is the sum of their influences.
    """

    estimate: str
    truth: str

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.estimate, self.truth)

    def rows(self, folders: Folders) -> list[dict[str, Any]]:
        estimates = folders[self.estimate]
        both = self.seeds(folders)
        truth = truths(folders[self.truth], both)
        return rows_of({seed: estimate_correlations(estimates[seed], truth[seed]) for seed in both})


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
        truth = truths(folders[self.arm])
        pairs = {(a, b): truth_correlations(truth[a], truth[b]) for a, b in itertools.combinations(truth, 2)}
        made: dict[int, dict[str, float]] = {}
        for kind in KINDS:
            for seed, value in pseudo_values({pair: found[kind] for pair, found in pairs.items()}).items():
                made.setdefault(seed, {})[kind] = value
        return rows_of(made)


@dataclass(frozen=True)
class InfluenceAgreement(Comparison):
    """How near is one arm's estimate to another's? Over the training and test examples that both have scored, a row each of

    - `pearson`, `spearman`: over training examples, mean over test examples;
    - `sign_disagreement`: share of all scores whose signs differ (0.5 by chance);
    - `relative_distance`: ‖first − second‖ / ‖second‖ over all scores;
    - `relative_error_same_sign`: mean of |first − second| / |second| over the scores whose signs agree, as in the code that was released
      with Chen et al. 2021: the errors that change a sign are not in it.
    """

    first: str
    second: str

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.first, self.second)

    def rows(self, folders: Folders) -> list[dict[str, Any]]:
        return rows_of({seed: nearness(*self._aligned(*(folders[arm][seed] for arm in self.arms))) for seed in self.seeds(folders)})

    @staticmethod
    def _aligned(first: Path, second: Path) -> tuple[np.ndarray, np.ndarray]:
        one, other = Scores.read(first), Scores.read(second)
        rows, tests = np.intersect1d(one.train_index, other.train_index), np.intersect1d(one.tests, other.tests)
        a, b = (held.influence[np.ix_(places(held.train_index, rows), places(held.tests, tests))] for held in (one, other))
        return a, b


def nearness(first: Float[np.ndarray, "n m"], second: Float[np.ndarray, "n m"]) -> dict[str, float]:
    """The statistics of `InfluenceAgreement`; NaN where they have no meaning."""
    same = (np.sign(first) == np.sign(second)) & (second != 0)
    size, apart = np.linalg.norm(second), first - second
    return correlations(first, second) | {
        "sign_disagreement": float((np.sign(first) != np.sign(second)).mean()) if first.size else float("nan"),
        "relative_distance": float(np.linalg.norm(apart) / size) if size > 0 else float("nan"),
        "relative_error_same_sign": float((np.abs(apart[same]) / np.abs(second[same])).mean()) if same.any() else float("nan"),
    }


def rows_of(found: Mapping[int, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Seed -> statistic -> value as rows; a value that is not defined has none."""
    return [
        {"seed": seed, "statistic": name, "value": float(value)}
        for seed, values in found.items()
        for name, value in values.items()
        if np.isfinite(value)
    ]


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
