"""The contract of an estimator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from influx.problem import Problem
from influx.trajectory import Trajectory


@dataclass(frozen=True)
class Estimate:
    """What an estimator returns.

    `influence[i, t]` predicts `m_t(θ trained without i) − m_t(θ trained on all)` in the measurement's unit; `solves` has one row a
    linear solve (iterations, residual, converged, damping, ...), empty for methods that solve nothing.
    """

    influence: Float[Tensor, "n_train n_test"]
    solves: list[dict[str, Any]] = field(default_factory=list)


class Estimator(ABC):
    """Options only; the work happens in `estimate`.

    A method that is right only up to a factor sets `calibrated = False`: slope and RMSE are then not reported. One that needs the
    recorded training run sets `needs_trajectory = True`; the command line checks that the chosen training can record one before it
    trains. `params` is "all" or "last_layer", the parameters that the method lets move; `largest` is how many of them it can take.
    """

    calibrated: ClassVar[bool] = True
    needs_trajectory: ClassVar[bool] = False
    params: str = "all"
    largest: int | None = None

    @abstractmethod
    def estimate(self, problem: Problem, trajectory: Trajectory | None, seed: int) -> Estimate:
        """All training on all test examples. `seed` feeds whatever the method draws; the same seed gives the same bytes."""
