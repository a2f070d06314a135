"""Self-influence: an example's effect on its own loss when it is removed (Koh & Liang 2017, section 5.4, to find mislabelled data).

    influence[i, t] = (1/n) g_iᵀ A⁻¹ g_i   for every t,      g_i = ∇ℓ_i,  A = curvature + (λ + δ) I.

Large values mean that nothing else in the training set supports the example: a wrong label, an outlier, or a rare case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from influx import rules
from influx.cost import Cost
from influx.estimators.base import Estimate, Estimator
from influx.estimators.inverse_curvature import InverseCurvature, inverse_cost, training_solves
from influx.estimators.relatif import own
from influx.problem import Problem
from influx.record import Record
from influx.solvers.base import Solver


@dataclass(frozen=True)
class SelfInfluence(Estimator):
    """The same score for every test example, whatever is measured: it ranks training examples, and says nothing of a test example.

    Args:
        solver, curvature, damping, params: as for `InverseCurvature`.

    Each number is right in scale for the training example's own loss (its leave-one-out residual, to first order); as a prediction for a
    test example it is not, hence `calibrated = False`. It never is below 0; for a measurement of which higher is better it is given the
    other sign, that of its own log-probability or margin. Cost: solves with n_train right-hand sides. Memory: `solver.copies` x P numbers
    for each training example of a block.
    """

    calibrated: ClassVar[bool] = False
    marks: ClassVar[str] = "high"

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
        return inverse_cost(self.inverse, problem, problem.n_train)

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        problem = problem.select(self.params)
        influence = problem.empty()
        sign = 1.0 if problem.measurement.lower_is_better else -1.0
        solves: list[dict[str, Any]] = []
        for solved in training_solves(self.inverse, problem, seed):
            scores = sign * solved.norms.square() * own(solved) / problem.n_train
            influence[solved.rows] = scores.unsqueeze(1)
            solves += solved.solves
            del solved  # before the next block is made
        return Estimate(influence, solves)
