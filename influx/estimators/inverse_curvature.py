"""Influence functions: test gradient x inverse curvature x training gradient (Koh & Liang 2017, section 2; Bae et al. 2022, section 2).

First-order effect of removing example i from `J(θ) = (1/n) Σ_i ℓ_i + (λ/2)‖θ‖²` at its minimum:
`θ₋ᵢ − θ ≈ (1/n) A⁻¹ ∇ℓ_i`, hence

    influence[i, t] = (1/n) ∇m_tᵀ A⁻¹ ∇ℓ_i,      A = curvature + (λ + δ) I.

With the GGN in place of the Hessian it predicts the proximal Bregman response instead of retraining (Bae et al. 2022, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from influx import rules
from influx.cost import Cost
from influx.curvature import Curvature
from influx.errors import InfluxError
from influx.estimators.base import Estimate, Estimator
from influx.kronecker import check_convex
from influx.problem import Problem
from influx.record import Record
from influx.solvers.base import Solution, Solver
from influx.solvers.factored import FactoredInverse, FactoredSolver
from influx.stacking import blocks


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

    @property
    def calibrated(self) -> bool:  # type: ignore[override]  # a property of the solver, elsewhere of the class
        return self.solver.calibrated

    def plan(self, problem: Problem, record: Record) -> Cost:
        return inverse_cost(self, problem.select(self.params))

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        problem = problem.select(self.params)
        curvature = Curvature(problem, self.curvature, self.damping)
        if isinstance(self.solver, FactoredSolver):
            return _in_eigenbasis(self.solver.inverse(curvature, seed), problem.columns(self.solver.copies), seed)
        influence = problem.empty()
        solves: list[dict[str, Any]] = []
        for columns in problem.columns(self.solver.copies):
            solution = self.solver.solve(curvature, problem.test_gradients(columns).T, seed)
            solves += account(solution)
            influence[:, columns] = problem.along(solution.x)
        return Estimate(influence / problem.n_train, solves)


def _in_eigenbasis(inverse: FactoredInverse, columns: list[slice], seed: int) -> Estimate:
    """The same product, with neither gradients nor right-hand sides formed where both are of rank one."""
    influence = inverse.problem.empty().zero_()
    for part in columns:
        inverse.influence(part, influence[:, part])
    return Estimate(influence.div_(inverse.problem.n_train), inverse.account(seed))


def inverse_cost(method: InverseCurvature, problem: Problem, columns: int | None = None) -> Cost:
    """What the solves for so many right-hand sides (n_test) and their products with all training gradients take.

    Raises:
        InfluxError: the solver cannot invert this curvature, or cannot take this problem.
    """
    solver, m = method.solver, problem.n_test if columns is None else columns
    if not isinstance(solver, Solver):
        raise InfluxError(f"method.solver={solver} is not possible: an option is chosen by solver@method.solver={solver}.")
    if method.curvature not in solver.kinds:
        raise InfluxError(
            f"{type(solver).__name__} inverts {' or '.join(solver.kinds)}, not {method.curvature}: set method.curvature={solver.kinds[0]}."
        )
    own = solver.work(problem, m)
    if isinstance(solver, FactoredSolver) and method.curvature == "ggn":
        check_convex(problem)
    each = solver.copies * problem.theta.nbytes
    held = min(m * each, max(each, problem.memory // 2))
    every = Cost(gradients=problem.n_train + m, flops=2.0 * problem.n_train * m * problem.n_params, nbytes=held + own.nbytes)
    return every + own


@dataclass(frozen=True)
class Solved:
    """A block of training examples: |g_i|, g_i/|g_i| (0 for a zero gradient), A⁻¹ g_i/|g_i|, and a row of diagnostics each.

    Unit right-hand sides, so that no product of small numbers vanishes in float32.
    """

    rows: slice
    norms: Float[Tensor, " rows"]
    unit: Float[Tensor, "rows p"]
    x: Float[Tensor, "p rows"]
    solves: list[dict[str, Any]]


def training_solves(method: InverseCurvature, problem: Problem, seed: int) -> Iterator[Solved]:
    """`A⁻¹ ∇ℓ_i` for every training example, as many at once as memory allows; `problem` has its parameters selected.

    A block is free to go when its consumer drops it, before the next one is made.
    """
    curvature = Curvature(problem, method.curvature, method.damping)
    for rows in blocks(problem.n_train, (method.solver.copies + 2) * problem.theta.nbytes, problem.memory // 2):
        yield _solved(method.solver, curvature, rows, seed)


def _solved(solver: Solver, curvature: Curvature, rows: slice, seed: int) -> Solved:
    gradients = curvature.problem.loss_gradients(curvature.problem.train.take(rows))
    norms = normalise(gradients)
    solution = solver.solve(curvature, gradients.T, seed)
    solves = [{**row, "name": "iHVP of a training gradient", "test_index": None} for row in account(solution)]
    return Solved(rows, norms, gradients, solution.x, solves)


def normalise(gradients: Float[Tensor, "rows p"]) -> Float[Tensor, " rows"]:
    """Scale each row to unit length, in place; zeros stay. Returns the lengths, right for rows whose squares would underflow."""
    peaks = torch.linalg.vector_norm(gradients, ord=torch.inf, dim=1)
    gradients /= torch.where(peaks > 0, peaks, 1.0).unsqueeze(1)
    lengths = gradients.norm(dim=1)
    gradients /= lengths.clamp_min(1.0).unsqueeze(1)
    return peaks * lengths


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
