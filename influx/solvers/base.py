"""The contract of a solver: all right-hand sides at once, and an honest account of how well each was solved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from influx.cost import Cost
from influx.curvature import Curvature
from influx.problem import Problem
from influx.seeding import torch_generator

VECTORS = 8  # of a subspace iteration


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
    """Options only; all state lives in `solve`. `copies` is how many P-vectors it holds for each right-hand side, itself included;
    `kinds` are the curvatures that it can invert; `calibrated` is false when its answers claim no scale."""

    copies: ClassVar[int] = 5
    calibrated: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("hessian", "ggn", "fisher")

    @abstractmethod
    def work(self, problem: Problem, m: int) -> Cost:
        """What a solve with m right-hand sides takes, beside `copies`.

        Raises:
            InfluxError: it cannot take this problem; the message says what to do.
        """

    @abstractmethod
    def solve(self, curvature: Curvature, rhs: Float[Tensor, "p m"], seed: int) -> Solution:
        """X ≈ A⁻¹ B.

        Raises:
            NumericalError: A is singular, or the iteration diverges; the message names the option to change.
        """


def largest_eigenvalue(apply: Callable[[Tensor], Tensor], like: Shaped[Tensor, " p *columns"], steps: int = 30) -> float:
    """max |λ_j| of a symmetric matrix by subspace iteration on a few fixed vectors; `like` has P rows, the type and the device."""
    width = min(len(like), VECTORS)
    start = torch.randn(len(like), width, generator=torch_generator(0, "subspace"), dtype=torch.float64).to(like)
    basis = torch.linalg.qr(start).Q
    for _ in range(steps):
        basis = torch.linalg.qr(apply(basis)).Q
    projected = basis.T @ apply(basis)
    return torch.linalg.eigvalsh(0.5 * (projected + projected.T)).abs().max().item()


def products(problem: Problem, vectors: float, rows: int | None = None) -> float:
    """Floating-point operations of so many curvature products over all training rows, or over `rows` of them."""
    return 6.0 * vectors * (problem.n_train if rows is None else rows) * problem.flops_per_row


def relative_residual(curvature: Curvature, x: Float[Tensor, "p m"], rhs: Float[Tensor, "p m"]) -> Float[Tensor, " m"]:
    """‖b − Ax‖/‖b‖ by one more product with A; 0 for a zero right-hand side."""
    norms = rhs.norm(dim=0)
    return torch.where(norms > 0, (rhs - curvature.matmat(x)).norm(dim=0) / norms.clamp_min(torch.finfo(rhs.dtype).tiny), 0.0)
