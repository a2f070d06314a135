"""Renormalised influence: training gradients of unit length (Hammoudeh & Lowd 2022, "Identifying a training-set attack's target using
renormalized influence estimation").

    influence[i, t] = (1/n) ∇m_tᵀ A⁻¹ g_i / |g_i|,      g_i = ∇ℓ_i,  A = curvature + (λ + δ) I.

Examples with a small loss have small gradients, so influence overlooks them however well they are aligned with the test example; a model
that has learnt a poisoned example gives it such a small loss. The renormalised score compares directions alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from influx import rules
from influx.cost import Cost
from influx.estimators.base import Estimate, Estimator
from influx.estimators.inverse_curvature import InverseCurvature, inverse_cost, normalise
from influx.problem import Problem
from influx.record import Record
from influx.solvers.base import Solver


@dataclass(frozen=True)
class Renormalized(Estimator):
    """`InverseCurvature` with each training example's row divided by its gradient's length; 0 where that is 0.

    Args:
        solver, curvature, damping, params: as for `InverseCurvature`.

    Right up to a factor that differs from row to row. Cost and memory: those of `InverseCurvature`,
    and another gradient a training example.
    """

    calibrated: ClassVar[bool] = False

    solver: Solver
    curvature: str = "ggn"
    damping: float | str = 0.0
    params: str = "all"

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    @property
    def inverse(self) -> InverseCurvature:
        return InverseCurvature(self.solver, self.curvature, self.damping, self.params)

    def plan(self, problem: Problem, record: Record) -> Cost:
        problem = problem.select(self.params)
        return inverse_cost(self.inverse, problem) + Cost(gradients=problem.n_train)

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        made = self.inverse.estimate(problem, record, seed)
        norms = torch.cat([normalise(gradients) for _, gradients in problem.select(self.params).train_gradients()])
        nothing = (norms == 0).unsqueeze(1)
        return replace(made, influence=(made.influence / norms.unsqueeze(1)).masked_fill(nothing, 0.0))
