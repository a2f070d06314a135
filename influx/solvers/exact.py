"""Dense solve: form A, factorise it, report its smallest eigenvalue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from influx import rules
from influx.cost import Cost
from influx.curvature import Curvature
from influx.errors import InfluxError, NumericalError, warn_accuracy
from influx.problem import GIBIBYTE, Problem
from influx.solvers.base import Solution, Solver, products, relative_residual


@dataclass(frozen=True)
class Exact(Solver):
    """X = A⁻¹B by Cholesky, or by LU with a warning when A is indefinite.

    Cost: P products with A, then O(P³); memory about 3P² numbers. An indefinite A (a Hessian away from a minimum) still has an
    inverse, and the estimate is then that of a saddle; a numerically singular A has none, and is refused.
    """

    copies: ClassVar[int] = 2

    def __post_init__(self) -> None:
        rules.check_fields("method.solver", self)

    def work(self, problem: Problem, m: int) -> Cost:
        size, each = problem.n_params, problem.theta.element_size()
        needed = 3 * each * size**2
        if needed > problem.memory:
            raise InfluxError(
                f"method=exact works on a {size:,} x {size:,} matrix, which takes {needed / GIBIBYTE:.1f} GiB, and memory allows "
                f"{problem.memory / GIBIBYTE:.1f}: use method=cg or method=ekfac, method.params=last_layer, or raise memory."
            )
        return Cost(flops=products(problem, size) + size**3 + 2.0 * m * size**2, nbytes=needed)

    def solve(self, curvature: Curvature, rhs: Float[Tensor, "p m"], seed: int) -> Solution:
        matrix = curvature.dense()
        eigenvalues = torch.linalg.eigvalsh(matrix)
        smallest, largest = eigenvalues[0].item(), eigenvalues.abs().max().item()
        if eigenvalues.abs().min().item() <= curvature.size * torch.finfo(matrix.dtype).eps * largest:
            raise NumericalError(
                f"the {curvature.kind} is singular (smallest eigenvalue {smallest:.1e}, largest {largest:.1e}): its inverse means nothing. "
                "Set method.damping above 0, or train with training.weight_decay above 0."
            )
        if smallest > 0:
            x = torch.cholesky_solve(rhs, torch.linalg.cholesky(matrix))
        else:
            warn_accuracy(
                f"the {curvature.kind} is not positive definite (smallest eigenvalue {smallest:.2e} with "
                f"method.damping={curvature.delta:g}): the estimate describes a saddle. method.curvature=ggn, or method.damping above "
                f"{curvature.delta - smallest:.2g}, avoids this."
            )
            x = torch.linalg.solve(matrix, rhs)
        residual = relative_residual(curvature, x, rhs)
        products = torch.full((rhs.shape[1],), curvature.size)
        limit = 1e4 * torch.finfo(matrix.dtype).eps * largest / eigenvalues.abs().min().item()
        return Solution(x, products, residual, residual <= limit, curvature.shift, smallest)
