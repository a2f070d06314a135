"""RelatIF: influence relative to what the training example does to the model as a whole (Barshan, Brunet & Dziugaite 2020, "RelatIF:
identifying explanatory training samples via relative influence").

Influence functions rank outliers first for most test examples, because removing those changes the model most. With the influence's own
symbols (`influx.estimators.inverse_curvature`) and g_i = ∇ℓ_i, each training example's row is divided by a measure of that change:

    θ-RelatIF   influence[i, t] = (1/n) ∇m_tᵀ A⁻¹ g_i / |A⁻¹ g_i|             (change of the parameters),
    ℓ-RelatIF   influence[i, t] = (1/n) ∇m_tᵀ A⁻¹ g_i / √(g_iᵀ A⁻¹ g_i)       (expected squared change of the training losses).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from influx import rules
from influx.cost import Cost
from influx.errors import NumericalError
from influx.estimators.base import Estimate, Estimator
from influx.estimators.inverse_curvature import InverseCurvature, Solved, inverse_cost, training_solves
from influx.problem import Problem
from influx.record import Record
from influx.solvers.base import Solver


@dataclass(frozen=True)
class RelatIF(Estimator):
    """Influence of each training example divided by its own effect: right up to a factor that differs from row to row.

    Args:
        solver, curvature, damping, params: as for `InverseCurvature`.
        kind: "theta" or "loss", what an example's effect is measured by.

    Both are unchanged when g_i is scaled. An example without a gradient scores 0. The estimated change of the measurement itself is lost,
    so only ranks within a test example's column are meant to be right. Cost: solves with n_train right-hand sides, from which the
    numerators follow without another solve. Memory: `solver.copies` x P numbers for each training example of a block.

    Departure from the paper: 1. the factor 1/n of the influence is kept, in both kinds.
    """

    calibrated: ClassVar[bool] = False

    solver: Solver
    curvature: str = "ggn"
    damping: float | str = 0.0
    params: str = "all"
    kind: str = "theta"

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
        solves: list[dict[str, Any]] = []
        for solved in training_solves(self.inverse, problem, seed):
            lengths = solved.x.norm(dim=0) if self.kind == "theta" else own(solved).sqrt()
            relative = solved.x * torch.where(lengths > 0, 1.0 / lengths, 0.0)
            for columns in problem.columns(2):
                influence[solved.rows, columns] = (problem.test_gradients(columns) @ relative).T
            solves += solved.solves
            del solved, relative  # before the next block is made
        return Estimate(influence / problem.n_train, solves)


def own(solved: Solved) -> Float[Tensor, " rows"]:
    """ĝ_iᵀ A⁻¹ ĝ_i of each example, with its gradient of unit length.

    Raises:
        NumericalError: one of them is below 0 by more than rounding, as happens when A is indefinite or badly inverted.
    """
    values = torch.linalg.vecdot(solved.unit, solved.x.T)
    if bool((values < -1e3 * torch.finfo(values.dtype).eps * solved.x.norm(dim=0)).any()):
        raise NumericalError(
            f"a training example has the self-influence {values.min().item():.1e}, and only an inverse that is positive definite gives "
            "each a positive one: use another method.curvature (fisher, or ggn), or raise method.damping."
        )
    return values.clamp_min(0.0)
