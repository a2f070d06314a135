"""How far a truth agrees with itself, as a number that a claim can show beside its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from influx.studies.quantities import Quantity, Value


@dataclass(frozen=True)
class NoiseCeiling(Quantity):
    """The noise ceiling of an arm's own statistic at one point of the grid: the highest value that any estimate could reach against a truth
    of this reliability (`influx.reliability`). Seeds whose truth has none, with one retraining seed for instance, are absent."""

    arm: str
    statistic: str = "spearman"
    at: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm,)

    def per_seed(self, results: pd.DataFrame) -> pd.Series:
        """As `Value` has it."""
        return Value(self.arm, self.statistic, self.at).per_seed(results.assign(value=results["noise_ceiling"]))
