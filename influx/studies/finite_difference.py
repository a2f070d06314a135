"""Is an estimate the derivative of training, as a finite difference of retrained models has it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from influx.errors import InfluxError
from influx.studies.comparisons import Comparison, Folders, rows_of
from influx.studies.folders import Scores, truths


@dataclass(frozen=True)
class FiniteDifference(Comparison):
    """Row `derivative_error`: over all removals and test examples of a seed

        ‖(Δ(s) − Δ(−s)) / 2s − influence‖ / ‖influence‖,

    Δ(s) the change when the share s of the removed example's weight is taken away and all is trained again: a central difference, whose own
    error is of second order in s, and rounding over s.

    Args:
        plus: arm with retraining.strength = s and the estimate.
        minus: arm with −s and the same removals.
        strength: s.

    Raises:
        InfluxError: the two arms have left out different examples.
    """

    plus: str
    minus: str
    strength: float

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.plus, self.minus)

    def rows(self, folders: Folders) -> list[dict[str, Any]]:
        both = self.seeds(folders)
        up, down = truths(folders[self.plus], both), truths(folders[self.minus], both)
        made = {}
        for seed in both:
            if not np.array_equal(up[seed].train_index, down[seed].train_index):
                raise InfluxError(f"arms {self.plus} and {self.minus} have left out different examples: give both the same selection.")
            folder = folders[self.plus][seed]
            influence = Scores.read(folder).predicted(up[seed], folder)
            wrong = (up[seed].change - down[seed].change) / (2 * self.strength) - influence
            made[seed] = {"derivative_error": float(np.linalg.norm(wrong) / np.linalg.norm(influence))}
        return rows_of(made)
