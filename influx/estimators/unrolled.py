"""Unrolled differentiation: the exact derivative of the finished training run with respect to every example's weight.

    influence[i, t] = −∇m_t(θ_T)ᵀ dθ_T/dw_i,

with θ_T(w) the parameters after all T steps of SGD, momentum or Nesterov in the same batch order (`influx.estimators.adjoint` has the
recursion). No optimum is assumed and nothing is inverted: it is what retraining without i gives to first order, whatever the model, as far
as training depends smoothly on the weights. ReLU and max-pooling networks trained for long do not; smooth ones do (Hara, Nitanda &
Maehara 2019 and Bae, Lin, Lorraine & Grosse 2024 approximate this quantity; HYDRA, Chen et al. 2021, computes it forwards).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from influx import rules
from influx.cost import Cost
from influx.estimators.adjoint import refuse, reverse, reverse_cost
from influx.estimators.base import Estimate, Estimator
from influx.problem import Problem
from influx.record import Record


@dataclass(frozen=True)
class Unrolled(Estimator):
    """d m_t(θ_T) for dw_i = −1, by one reverse pass through the recorded training for all test examples at once.

    Args:
        params: "all" alone: all parameters moved in the run that is differentiated, so a part of them has no derivative of its own.

    Cost: the training once more, and for each step a product of its batch's Hessian with one vector a test example. Memory: 6 P numbers
    for each test example, or a slice of them (each slice follows the training anew), and the steps between two snapshots.

    Raises:
        InfluxError: the training cannot be followed, its optimiser is not gradient descent, or `params` is not "all".
    """

    needs_trajectory: ClassVar[bool] = True
    params: str = "all"

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    def plan(self, problem: Problem, record: Record) -> Cost:
        refuse("unrolled", self.params, record)
        return reverse_cost(problem, record)

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        return Estimate(reverse(problem, record.trajectory))
