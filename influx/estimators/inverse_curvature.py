"""Influence functions: test gradient x inverse curvature x training gradient (Koh & Liang 2017, section 2; Bae et al. 2022, section 2).

First-order effect of removing example i from `J(θ) = (1/n) Σ_i ℓ_i + (λ/2)‖θ‖²` at its minimum:
`θ₋ᵢ − θ ≈ (1/n) A⁻¹ ∇ℓ_i`, hence

    influence[i, t] = (1/n) ∇m_tᵀ A⁻¹ ∇ℓ_i,      A = curvature + (λ + δ) I.

With the GGN in place of the Hessian it predicts the proximal Bregman response instead of retraining (Bae et al. 2022, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from influx import rules
from influx.curvature import Curvature
from influx.estimators.base import Estimate, Estimator
from influx.problem import Problem
from influx.solvers.base import Solution, Solver
from influx.trajectory import Trajectory


@dataclass(frozen=True)
class InverseCurvature(Estimator):
    """gradients x inverse(curvature, damping, solver).

    Args:
        solver: how `A⁻¹` is applied, to all test gradients at once.
        curvature: "hessian", or "ggn", which is never indefinite.
        damping: δ ≥ 0, added to the diagonal beside λ.
        params: "all", or "last_layer": the parameters that may move.

    Cost: one solve with n_test right-hand sides and one gradient a training example. Memory: about 3 P x n_test numbers, the solver's
    own, and one block of per-example gradients.
    """

    solver: Solver
    curvature: str = "ggn"
    damping: float = 0.0
    params: str = "all"

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    @property
    def largest(self) -> int | None:  # type: ignore[override]
        return self.solver.largest

    def estimate(self, problem: Problem, trajectory: Trajectory | None, seed: int) -> Estimate:
        problem = problem.select(self.params)
        curvature = Curvature(problem, self.curvature, self.damping)
        solution = self.solver.solve(curvature, problem.test_gradients().T, seed)
        influence = torch.empty(problem.n_train, problem.n_test, dtype=problem.theta.dtype, device=problem.theta.device)
        for rows, gradients in problem.train_gradients():
            torch.matmul(gradients, solution.x, out=influence[rows])
        return Estimate(influence / problem.n_train, _account(solution))


def _account(solution: Solution) -> list[dict[str, object]]:
    columns = zip(solution.iterations.tolist(), solution.residual.tolist(), solution.converged.tolist(), strict=True)
    return [
        {
            "iterations": iterations,
            "residual": residual,
            "converged": converged,
            "damping": solution.effective_damping,
            "smallest_eigenvalue": solution.smallest_eigenvalue,
        }
        for iterations, residual, converged in columns
    ]
