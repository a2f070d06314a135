"""Dense solve: form A, factorise it, report its smallest eigenvalue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from influx import rules
from influx.curvature import Curvature
from influx.errors import NumericalError, warn_accuracy
from influx.solvers.base import Solution, Solver, relative_residual


@dataclass(frozen=True)
class Exact(Solver):
    """X = A⁻¹B by Cholesky, or by LU with a warning when A is indefinite.

    Cost: P products with A, then O(P³); memory about 3P² numbers. An indefinite A (a Hessian away from a minimum) still has an
    inverse, and the estimate is then that of a saddle; a numerically singular A has none, and is refused.
    """

    largest: ClassVar[int | None] = 20_000  # A alone is then 3.2 GB in float64

    def __post_init__(self) -> None:
        rules.check_fields("method.solver", self)

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
                f"method.damping={curvature.damping:g}): the estimate describes a saddle. method.curvature=ggn, or method.damping above "
                f"{curvature.damping - smallest:.2g}, avoids this."
            )
            x = torch.linalg.solve(matrix, rhs)
        residual = relative_residual(curvature, x, rhs)
        products = torch.full((rhs.shape[1],), curvature.size)
        limit = 1e4 * torch.finfo(matrix.dtype).eps * largest / eigenvalues.abs().min().item()
        return Solution(x, products, residual, residual <= limit, curvature.shift, smallest)
