"""Gradient similarity: the inner product of a training and a test example's gradients.

    influence[i, t] ∝ ∇m_t(θ)ᵀ ∇ℓ_i(θ)

To first order a gradient step on example i alone changes m_t by −lr ∇m_tᵀ∇ℓ_i; without i that change is missing, hence the sign, whatever
the measurement. The kernel is that of Charpiat, Girard, Felardos & Tarabalka 2019, "Input similarity from the neural network
perspective".

1. They compare gradients of the network's output; here it is the gradients of training loss and measurement, as in studies of influence.
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
class GradDot(Estimator):
    """∇m_t · ∇ℓ_i, in the measurement's unit only up to a factor (a step size).

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
        for rows, columns, block in products(problem, columns_of(problem)):
            influence[rows, columns] = block
        return Estimate(influence)
