"""Gradient similarity: the cosine of the angle between a training and a test example's gradients.

    influence[i, t] ∝ ∇m_t(θ)ᵀ ∇ℓ_i(θ) / (‖∇m_t(θ)‖ ‖∇ℓ_i(θ)‖)

The normalised kernel of Charpiat, Girard, Felardos & Tarabalka 2019, "Input similarity from the neural network perspective": unlike
`grad_dot` it does not favour training examples with large gradients (mislabelled ones, outliers). Same sign, same departure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from influx import rules
from influx.cost import Cost
from influx.estimators.base import Estimate, Estimator
from influx.estimators.similarity import columns_of, products, similarity_cost
from influx.problem import Problem
from influx.record import Record


@dataclass(frozen=True)
class GradCos(Estimator):
    """cos(∇m_t, ∇ℓ_i) in [−1, 1]; 0 for an example whose gradient is zero.

    Args:
        params: "all", "last_layer", or a pattern of names: the parameters whose gradients are compared.

    Cost: one gradient an example, and a product a pair. Memory: the test gradients as factors, or a slice of them.
    """

    calibrated: ClassVar[bool] = False
    params: str = "all"

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    def plan(self, problem: Problem, record: Record) -> Cost:
        return similarity_cost(problem.select(self.params), problem.n_train)

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        problem = problem.select(self.params)
        influence = problem.empty()
        for rows, columns, block in products(problem, columns_of(problem), cosine=True):
            influence[rows, columns] = block
        return Estimate(influence)
