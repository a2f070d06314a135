"""What a claim is about: a number for each seed, computed from the study's results.

Results are a long table, a row an arm x grid point x seed x statistic: columns `arm`, one a grid axis, `seed`, `statistic`, `value`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from influx.errors import InfluxError


class Quantity(ABC):
    """A number a seed."""

    @property
    @abstractmethod
    def arms(self) -> tuple[str, ...]:
        """The arms and comparisons that it is computed from."""

    @abstractmethod
    def per_seed(self, results: pd.DataFrame) -> pd.Series:
        """Values indexed by seed; seeds whose jobs are missing or undefined are absent.

        Raises:
            InfluxError: the results hold several values for a seed, because the grid point is not said fully.
        """


@dataclass(frozen=True)
class Value(Quantity):
    """A statistic of an arm (or comparison) at one point of the grid; `at` needs the axes with several levels only.

    `statistic` is a row of the job's table (spearman, roc_auc, ...), a fact that it noted, or what a comparison computes. `column` is
    "value", or "noise_ceiling": the highest that any estimate could reach against a truth of that reliability (`influx.reliability`).
    """

    arm: str
    statistic: str = "spearman"
    at: Mapping[str, Any] = field(default_factory=dict)
    column: str = "value"

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm,)

    def per_seed(self, results: pd.DataFrame) -> pd.Series:
        chosen = (results["arm"] == self.arm) & (results["statistic"] == self.statistic)
        for axis, level in self.at.items():
            if axis not in results:
                raise InfluxError(f"there is no axis '{axis}' in the study's grid.")
            chosen &= results[axis].astype(str) == str(level)
        values = results[chosen].dropna(subset=[self.column]).set_index("seed")[self.column]
        if values.index.has_duplicates:
            raise InfluxError(f"arm {self.arm} has several values of {self.statistic} for a seed at {dict(self.at)}: say more under `at`.")
        return values.sort_index()


@dataclass(frozen=True)
class Difference(Quantity):
    """first − second, of the seeds that have both."""

    first: Quantity
    second: Quantity

    @property
    def arms(self) -> tuple[str, ...]:
        return (*self.first.arms, *self.second.arms)

    def per_seed(self, results: pd.DataFrame) -> pd.Series:
        return (self.first.per_seed(results) - self.second.per_seed(results)).dropna()


@dataclass(frozen=True)
class Magnitude(Quantity):
    """|of|, seed by seed: what a plot of absolute correlations averages. It hides the sign, so stand it beside the signed value."""

    of: Quantity

    @property
    def arms(self) -> tuple[str, ...]:
        return self.of.arms

    def per_seed(self, results: pd.DataFrame) -> pd.Series:
        return self.of.per_seed(results).abs()


@dataclass(frozen=True)
class Mean(Quantity):
    """The mean of several, seed by seed, of the seeds that have all: one number for cases that a claim is about together."""

    of: Sequence[Quantity]

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(arm for quantity in self.of for arm in quantity.arms)

    def per_seed(self, results: pd.DataFrame) -> pd.Series:
        return pd.concat([quantity.per_seed(results) for quantity in self.of], axis=1).dropna().mean(axis=1)


@dataclass(frozen=True)
class Spread(Quantity):
    """Largest − smallest of several, seed by seed. At least 0 whatever they are: it has a level under pure noise too."""

    of: Sequence[Quantity]

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(arm for quantity in self.of for arm in quantity.arms)

    def per_seed(self, results: pd.DataFrame) -> pd.Series:
        table = pd.concat([quantity.per_seed(results) for quantity in self.of], axis=1).dropna()
        return table.max(axis=1) - table.min(axis=1)


@dataclass(frozen=True)
class Contrast(Quantity):
    """Σ weight × quantity, of the seeds that have all of them: what several parts of a whole make together, against a part of the whole.

    Raises:
        InfluxError: there are not as many weights as quantities.
    """

    of: Sequence[Quantity]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.of) != len(self.weights):
            raise InfluxError(f"a contrast of {len(self.of)} quantities has {len(self.weights)} weights: give one a quantity.")

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(arm for quantity in self.of for arm in quantity.arms)

    def per_seed(self, results: pd.DataFrame) -> pd.Series:
        table = pd.concat([weight * quantity.per_seed(results) for quantity, weight in zip(self.of, self.weights, strict=True)], axis=1)
        return table.dropna().sum(axis=1)
