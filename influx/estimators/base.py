"""The contract of an estimator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from influx.cost import Cost
from influx.problem import Problem
from influx.record import Record


@dataclass(frozen=True)
class Estimate:
    """What an estimator returns.

    `influence[i, t]` predicts `m_t(θ trained without i) − m_t(θ trained on all)` in the measurement's unit; `solves` has one row a
    linear solve (iterations, residual, converged, damping, ...), empty for methods that solve nothing; `facts` are numbers worth knowing
    that belong to no solve (the approximation error of a hypergradient, an effective rank).
    """

    influence: Float[Tensor, "n_train n_test"]
    solves: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)


class Estimator(ABC):
    """Options only; the work happens in `estimate`.

    A method that is right only up to a factor sets `calibrated = False`: slope and RMSE are then not reported. One that follows the
    training run sets `needs_trajectory = True`, one that trains with masks of its own `needs_masked_training = True`; the command line
    checks that the chosen training allows it before anything is trained. `marks` is where a method puts examples that it suspects: "low",
    among the most harmful, or "high", for a method that knows how much an example matters and not whether it helps. `params` is "all",
    "last_layer" or a pattern of names: the parameters that the method lets move.
    """

    calibrated: ClassVar[bool] = True
    needs_trajectory: ClassVar[bool] = False
    needs_masked_training: ClassVar[bool] = False
    marks: ClassVar[str] = "low"
    params: str = "all"

    @abstractmethod
    def plan(self, problem: Problem, record: Record) -> Cost:
        """What `estimate` will take; called before training as well, on a problem with its initial parameters.

        Raises:
            InfluxError: the method cannot take this problem (a layer of an unknown kind, too little memory, ...); the message says what
                to do.
        """

    @abstractmethod
    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        """All training on all test examples. `seed` feeds whatever the method draws; the same seed gives the same bytes."""


class OnItself(ABC):
    """What a method adds that knows the influence of each training example on itself for less than that of all on all."""

    @abstractmethod
    def on_itself(self, problem: Problem, record: Record, seed: int) -> Estimate:
        """One column: `influence[i, 0]` is i's influence on its own training loss."""
