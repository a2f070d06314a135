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
from influx.solvers.base import Solution, Solver, largest_eigenvalue, products

ALL_EIGENVALUES = 1000  # parameters up to which all of them are computed; beyond, the extreme ones to a per cent or so


@dataclass(frozen=True)
class Exact(Solver):
    """X = A⁻¹B by Cholesky, or by LU with a warning when A is indefinite.

    Cost: P products with A (n P²/2 multiply-adds when only a linear output layer moves), then P³/3; memory about 3P² numbers. An
    indefinite A (a Hessian away from a minimum) still has an inverse, and the estimate is then that of a saddle; a numerically singular A
    has none, and is refused. The residual is against the matrix as it was formed.
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
        made = curvature.kept.get("exact")
        if made is None:
            made = curvature.kept["exact"] = _factorise(curvature)
        x = made.solve(rhs)
        norms = rhs.norm(dim=0)
        residual = torch.where(norms > 0, (rhs - made.matrix @ x).norm(dim=0) / norms.clamp_min(torch.finfo(rhs.dtype).tiny), 0.0)
        count = torch.full((rhs.shape[1],), curvature.size)
        return Solution(x, count, residual, residual <= made.limit, curvature.shift, made.smallest)


@dataclass(frozen=True)
class Factorised:
    """A with its Cholesky factor (None: indefinite, LU instead), smallest eigenvalue, and the relative residual that rounding explains."""

    matrix: Float[Tensor, "p p"]
    cholesky: Float[Tensor, "p p"] | None
    lu: tuple[Tensor, Tensor] | None
    smallest: float
    limit: float

    def solve(self, rhs: Float[Tensor, "p m"]) -> Float[Tensor, "p m"]:
        if self.cholesky is not None:
            return torch.cholesky_solve(rhs, self.cholesky)
        assert self.lu is not None
        return torch.linalg.lu_solve(*self.lu, rhs)


def _factorise(curvature: Curvature) -> Factorised:
    """
    Raises:
        NumericalError: A is singular to working precision.
    """
    matrix = curvature.dense()
    cholesky, failed = torch.linalg.cholesky_ex(matrix)
    if curvature.size <= ALL_EIGENVALUES or int(failed):
        eigenvalues = torch.linalg.eigvalsh(matrix)
        smallest, largest, least = eigenvalues[0].item(), eigenvalues.abs().max().item(), eigenvalues.abs().min().item()
    else:  # a tenth of the time
        largest = largest_eigenvalue(lambda v: matrix @ v, matrix)
        least = smallest = 1.0 / largest_eigenvalue(lambda v: torch.cholesky_solve(v, cholesky), matrix)
    if not least > curvature.size * torch.finfo(matrix.dtype).eps * largest:
        raise NumericalError(
            f"the {curvature.kind} is singular (smallest eigenvalue {smallest:.1e}, largest {largest:.1e}): its inverse means nothing. "
            "Set method.damping above 0, or train with training.weight_decay above 0."
        )
    limit = 1e4 * torch.finfo(matrix.dtype).eps * largest / least
    if smallest > 0 and not int(failed):
        return Factorised(matrix, cholesky, None, smallest, limit)
    warn_accuracy(
        f"the {curvature.kind} is not positive definite (smallest eigenvalue {smallest:.2e} with "
        f"method.damping={curvature.delta:g}): the estimate describes a saddle. {curvature.definite}, or method.damping above "
        f"{curvature.delta - smallest:.2g}, avoids this."
    )
    lu = torch.linalg.lu_factor(matrix)
    return Factorised(matrix, None, (lu[0], lu[1]), smallest, limit)
