"""The norm of each training example's gradient, as a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from influx import rules
from influx.cost import Cost
from influx.estimators._scores import for_every_test_example
from influx.estimators.base import Estimate, Estimator
from influx.problem import Problem
from influx.record import Record


@dataclass(frozen=True)
class GradientNorm(Estimator):
    """influence[i, t] = ‖∇ℓ_i(θ)‖ for every t (its negative when a high measurement is good).

    Good for: which examples move the parameters at all; every first-order influence is a product with ∇ℓ_i, so this is the part of it
    that does not depend on the test example. It cannot know which test example is affected, nor whether an example helps or harms.
    Unit: loss a unit of θ; only ranks mean something.
    Cost: one gradient a training example, as factors for linear layers. Memory: one block of them.

    Args:
        params: "all", "last_layer", or a pattern of names: the parameters whose gradient is taken.
    """

    calibrated: ClassVar[bool] = False
    marks: ClassVar[str] = "high"
    params: str = "all"

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    def plan(self, problem: Problem, record: Record) -> Cost:
        return Cost(gradients=problem.select(self.params).n_train)

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        problem = problem.select(self.params)
        made = problem.theta.new_empty(problem.n_train)
        for rows, layers in problem.train_rows():
            made[rows] = sum(layer.squared_norms() for layer in layers).sqrt()  # type: ignore[union-attr]
        return Estimate(for_every_test_example(problem, made))
