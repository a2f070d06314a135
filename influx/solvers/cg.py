"""Block conjugate gradients: one search space shared by all right-hand sides.

O'Leary 1980, "The block conjugate gradient algorithm and related methods"; dependent directions are dropped by a rank-revealing
factorisation at each step, as in Ji & Li 2017, "A breakdown-free block conjugate gradient method".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from influx import rules
from influx.cost import Cost
from influx.curvature import Curvature
from influx.errors import NumericalError, warn_accuracy
from influx.problem import Problem
from influx.solvers.base import Solution, Solver, products

TYPICAL = 8  # block steps, for the forecast alone
MOST_ROUNDING = 1e-3  # of a direction's size: sums of P terms round far better than their bound
BROKEN = 1e2  # a relative residual from which the answer is worse than none


@dataclass(frozen=True)
class ConjugateGradient(Solver):
    """X with ‖b − Ax‖/‖b‖ ≤ `tolerance` for every column, each scaled to unit norm, or after `max_iterations` block steps.

    A block step multiplies A with at most m vectors; because every column gains from every direction, tens of steps shrink to a few.
    Memory: 5 P x m numbers. A must be positive definite: a direction of negative curvature stops the solve with its eigenvalue bound.
    """

    tolerance: float = 1e-8
    max_iterations: int = 500

    def __post_init__(self) -> None:
        rules.check_fields("method.solver", self)

    def work(self, problem: Problem, m: int) -> Cost:
        return Cost(flops=TYPICAL * (products(problem, m) + 8.0 * problem.n_params * m * m))

    def solve(self, curvature: Curvature, rhs: Float[Tensor, "p m"], seed: int) -> Solution:
        # 1. The tolerance cannot be below what the number type can represent after P-term sums.
        tolerance = max(self.tolerance, 100 * torch.finfo(rhs.dtype).eps)
        norms = rhs.norm(dim=0)
        scaled = rhs / torch.where(norms > 0, norms, 1.0)
        x, residual = torch.zeros_like(rhs), scaled
        iterations, smallest = 0, float("inf")
        # 2. The residual recursion drifts from the true residual; the search starts afresh from the true one until they agree.
        while residual.norm(dim=0).max().item() > tolerance and iterations < self.max_iterations:
            step, used, ritz = _search(curvature, residual, tolerance, self.max_iterations - iterations)
            x += step
            iterations += used
            smallest = min(smallest, ritz)
            residual = scaled - curvature.matmat(x)
        residuals = residual.norm(dim=0)
        converged = residuals <= tolerance
        if not residuals.max().item() < BROKEN:
            raise NumericalError(
                f"cg broke down with a relative residual of {residuals.max().item():.0e}: the {curvature.kind} is numerically singular. "
                "Set method.damping above 0, or train with training.weight_decay above 0."
            )
        if not bool(converged.all()):
            warn_accuracy(
                f"cg stopped after {iterations} steps with a largest relative residual of {residuals.max().item():.1e} "
                f"(wanted {tolerance:.0e}): raise method.solver.max_iterations or method.damping."
            )
        counts = torch.full((rhs.shape[1],), iterations)
        return Solution(x * norms, counts, residuals, converged, curvature.shift, smallest if iterations else float("nan"))


def _search(curvature: Curvature, residual: Float[Tensor, "p m"], tolerance: float, budget: int) -> tuple[Float[Tensor, "p m"], int, float]:
    """Block CG on `A D = residual` from zero: the step D, block steps used, and the smallest Ritz value seen (a bound on λ_min(A))."""
    step = torch.zeros_like(residual)
    directions = _orthonormal(residual)
    smallest, used = float("inf"), 0
    start = residual.norm()
    while used < budget:
        image = curvature.matmat(directions)
        gram = directions.T @ image  # [q, q]
        gram = 0.5 * (gram + gram.T)
        ritz = torch.linalg.eigvalsh(gram)[0].item()
        if ritz <= 0:
            raise NumericalError(
                f"cg met negative curvature: the {curvature.kind} with method.damping={curvature.delta:g} has an eigenvalue "
                f"of at most {ritz:.2e}. Use {curvature.definite}, method.damping above {curvature.delta - ritz:.2g}, or method=exact."
            )
        smallest, used = min(smallest, ritz), used + 1
        factor = torch.linalg.cholesky(gram)
        coefficients = torch.cholesky_solve(directions.T @ residual, factor)
        step += directions @ coefficients
        residual = residual - image @ coefficients
        largest = residual.norm(dim=0).max().item()
        if largest <= 0.5 * tolerance or residual.norm() > 10 * start:
            break
        conjugate = residual - directions @ torch.cholesky_solve(image.T @ residual, factor)
        directions = _orthonormal(conjugate)
        if directions.shape[1] == 0:
            break
    return step, used, smallest


def _orthonormal(vectors: Float[Tensor, "p m"]) -> Float[Tensor, "p q"]:
    """An orthonormal basis of the columns' span, q ≤ min(p, m): directions below rounding error are dropped."""
    left, singular, _ = torch.linalg.svd(vectors, full_matrices=False)
    rounding = 10 * max(vectors.shape) * torch.finfo(vectors.dtype).eps  # its bound: with a million parameters in float32 it is above 1
    keep = singular > singular[0] * min(rounding, MOST_ROUNDING)
    return left[:, keep]
