"""The contract of a solver: all right-hand sides at once, and an honest account of how well each was solved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from influx.curvature import Curvature


@dataclass(frozen=True)
class Solution:
    """X with what it took, one entry a column: products with A, *true* relative residual ‖b − Ax‖/‖b‖, whether it converged.

    `smallest_eigenvalue` is that of A with its damping, when the solver learns it (cg: an upper bound of it, its smallest Ritz value;
    NaN otherwise); `effective_damping` is the δ + λ whose exact solution the solver aims at, truncation included.
    """

    x: Float[Tensor, "p m"]
    iterations: Int[Tensor, " m"]
    residual: Float[Tensor, " m"]
    converged: Bool[Tensor, " m"]
    effective_damping: float
    smallest_eigenvalue: float = float("nan")


class Solver(ABC):
    """Options only; all state lives in `solve`. `largest` is the most parameters that it can take, when there is a limit."""

    largest: ClassVar[int | None] = None

    @abstractmethod
    def solve(self, curvature: Curvature, rhs: Float[Tensor, "p m"], seed: int) -> Solution:
        """X ≈ A⁻¹ B.

        Raises:
            NumericalError: A is singular, or the iteration diverges; the message names the option to change.
        """


def relative_residual(curvature: Curvature, x: Float[Tensor, "p m"], rhs: Float[Tensor, "p m"]) -> Float[Tensor, " m"]:
    """‖b − Ax‖/‖b‖ by one more product with A; 0 for a zero right-hand side."""
    norms = rhs.norm(dim=0)
    return torch.where(norms > 0, (rhs - curvature.matmat(x)).norm(dim=0) / norms.clamp_min(torch.finfo(rhs.dtype).tiny), 0.0)
