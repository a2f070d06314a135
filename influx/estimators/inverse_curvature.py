"""Influence functions: test gradient x inverse curvature x training gradient (Koh & Liang 2017, section 2; Bae et al. 2022, section 2).

First-order effect of removing example i from `J(θ) = (1/n) Σ_i ℓ_i + (λ/2)‖θ‖²` at its minimum:
`θ₋ᵢ − θ ≈ (1/n) A⁻¹ ∇ℓ_i`, hence

    influence[i, t] = (1/n) ∇m_tᵀ A⁻¹ ∇ℓ_i,      A = curvature + (λ + δ) I.

With the GGN in place of the Hessian it predicts the proximal Bregman response instead of retraining (Bae et al. 2022, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from influx import rules
from influx.cost import Cost
from influx.curvature import Curvature
from influx.errors import InfluxError
from influx.estimators.base import Estimate, Estimator
from influx.problem import Problem
from influx.record import Record
from influx.solvers.base import Solution, Solver


@dataclass(frozen=True)
class InverseCurvature(Estimator):
    """gradients x inverse(curvature, damping, solver).

    Args:
        solver: how `A⁻¹` is applied, to as many test gradients at once as memory allows.
        curvature: "hessian"; "ggn", which is never indefinite; or "fisher", the empirical one.
        damping: δ ≥ 0, added to the diagonal beside λ; "auto" is 0.1 x the mean eigenvalue of the curvature (of each layer's, for
            solvers that work a layer at a time).
        params: "all", "last_layer", or a pattern of names: the parameters that may move.

    Cost: solves with n_test right-hand sides and one gradient a training example. Memory: `solver.copies` x P numbers for each test
    example of a block, the solver's own, and one block of per-example gradients.
    """

    solver: Solver
    curvature: str = "ggn"
    damping: float | str = 0.0
    params: str = "all"

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    def plan(self, problem: Problem, record: Record) -> Cost:
        return inverse_cost(self, problem.select(self.params))

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        problem = problem.select(self.params)
        curvature = Curvature(problem, self.curvature, self.damping)
        influence = problem.empty()
        solves: list[dict[str, Any]] = []
        for columns in problem.columns(self.solver.copies):
            solution = self.solver.solve(curvature, problem.test_gradients(columns).T, seed)
            solves += account(solution)
            for rows, gradients in problem.train_gradients():
                influence[rows, columns] = gradients @ solution.x
        return Estimate(influence / problem.n_train, solves)


def inverse_cost(method: InverseCurvature, problem: Problem, columns: int | None = None) -> Cost:
    """What the solves for so many right-hand sides (n_test) and their products with all training gradients take.

    Raises:
        InfluxError: the solver cannot invert this curvature, or cannot take this problem.
    """
    solver, m = method.solver, problem.n_test if columns is None else columns
    if method.curvature not in solver.kinds:
        raise InfluxError(
            f"{type(solver).__name__} inverts {' or '.join(solver.kinds)}, not {method.curvature}: set method.curvature={solver.kinds[0]}."
        )
    block = problem.columns(solver.copies)[0]
    own = solver.work(problem, m)
    held = solver.copies * problem.theta.nbytes * (block.stop - block.start)
    every = Cost(gradients=problem.n_train + m, flops=2.0 * problem.n_train * m * problem.n_params, nbytes=held + own.nbytes)
    return every + own


def account(solution: Solution) -> list[dict[str, Any]]:
    """A row of `diagnostics.csv` for each right-hand side."""
    columns: tuple[Float[Tensor, " m"], ...] = (solution.iterations, solution.residual, solution.converged)
    return [
        {
            "iterations": iterations,
            "residual": residual,
            "converged": converged,
            "damping": solution.effective_damping,
            "smallest_eigenvalue": solution.smallest_eigenvalue,
        }
        for iterations, residual, converged in zip(*(column.tolist() for column in columns), strict=True)
    ]
