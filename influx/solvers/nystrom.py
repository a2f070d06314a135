"""Nyström: a low-rank sketch of the curvature, inverted with its damping in closed form (Hataya & Yamada 2023, "Nyström method for accurate
and scalable implicit differentiation"; Frangella, Tropp & Udell 2023, "Randomized Nyström preconditioning", section 2).

With C the curvature without its shift μ = λ + δ, and a test matrix Ω [P, k],

    C ≈ (CΩ) (Ωᵀ C Ω)⁺ (CΩ)ᵀ = U Λ Uᵀ,      x = (1/μ) (b − U Λ (Λ + μ)⁻¹ Uᵀ b),

the best approximation of a positive semi-definite C that those k products allow, never above C.
"""

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
from influx.kronecker import convex
from influx.problem import GIBIBYTE, Problem
from influx.seeding import torch_generator
from influx.solvers.base import Solution, Solver, largest_eigenvalue, products, relative_residual

RESIDUAL = 0.05  # relative; above it the solve is reported as not converged
ROUNDING = 10.0  # times machine precision and the largest eigenvalue: eigenvalues below are noise
BOTTOM = 8 * 31  # products of the look for negative eigenvalues


@dataclass(frozen=True)
class Nystrom(Solver):
    """X by a randomised Nyström approximation of rank `rank`.

    Args:
        rank: k, products with the curvature; all of them are one block.
        sketch: "gaussian", orthonormalised normal columns; or "columns", k of C's own columns, drawn without replacement (Hataya & Yamada).

    Cost: k products with C and 6 P k² operations, once; then 4 P k a right-hand side. Memory: 3 P k numbers, then P k. With rank = P it is
    the dense inverse. C must be positive semi-definite: for a Hessian the bottom of the spectrum is looked at (248 more products), an
    eigenvalue of A below 0 is refused, and one of C alone is warned of. λ + δ must be above 0.

    Departures from the papers:
    1. Hataya & Yamada apply Woodbury's identity to the sketch itself; here its eigenvalues come first (Frangella et al., algorithm 2.1),
       which stays accurate for a small shift.
    2. Frangella et al. shift C by rounding to make the small matrix's Cholesky factor exist; here the eigenvalues of ΩᵀCΩ that are
       rounding are dropped.
    """

    copies: ClassVar[int] = 4

    rank: int = 100
    sketch: str = "gaussian"

    def __post_init__(self) -> None:
        rules.check_fields("method.solver", self)

    def work(self, problem: Problem, m: int) -> Cost:
        size, rank = problem.n_params, min(self.rank, problem.n_params)
        needed = 3 * rank * problem.theta.nbytes
        if needed > problem.memory:
            raise InfluxError(
                f"nystrom keeps {rank} vectors of {size:,} parameters, three of each, which takes {needed / GIBIBYTE:.1f} GiB, and memory "
                f"allows {problem.memory / GIBIBYTE:.1f}: lower method.solver.rank, or raise memory."
            )
        return Cost(flops=products(problem, rank + m) + 6.0 * size * rank**2 + 4.0 * size * m * rank, nbytes=needed)

    def solve(self, curvature: Curvature, rhs: Float[Tensor, "p m"], seed: int) -> Solution:
        shift = curvature.shift
        if not shift > 0:
            raise NumericalError(
                "nystrom divides by λ + damping, which is 0: set method.damping above 0, or train with training.weight_decay above 0."
            )
        key = f"{self}, seed {seed}"
        if key not in curvature.kept:
            curvature.kept[key] = self._eigenpairs(curvature, seed)
        values, vectors, smallest = curvature.kept[key]
        x = (rhs - vectors @ ((values / (values + shift)).unsqueeze(1) * (vectors.T @ rhs))) / shift
        residual = relative_residual(curvature, x, rhs)
        converged = residual <= RESIDUAL
        if not bool(converged.all()):
            warn_accuracy(
                f"nystrom's sketch of rank {len(values)} leaves a relative residual of {residual.median().item():.2g} (median; largest "
                f"{residual.max().item():.2g}): raise method.solver.rank or method.damping."
            )
        count = torch.full((rhs.shape[1],), min(self.rank, curvature.size))
        return Solution(x, count, residual, converged, shift, smallest)

    def _eigenpairs(self, curvature: Curvature, seed: int) -> tuple[Float[Tensor, " k"], Float[Tensor, "p k"], float]:
        """Λ and U of the approximation, and a bound of A's smallest eigenvalue (NaN where nothing can be negative)."""
        eps = torch.finfo(curvature.problem.theta.dtype).eps
        test = self._test_matrix(curvature, seed)
        image = curvature.matmat(test) - curvature.shift * test
        small = (test.T @ image).double()
        values, vectors = torch.linalg.eigh(0.5 * (small + small.T))
        kept = values > ROUNDING * len(values) * eps * (values.abs().max() + curvature.shift)
        half = image @ (vectors[:, kept] / values[kept].sqrt()).to(image)  # C ≈ half halfᵀ
        left, singular, _ = torch.linalg.svd(half, full_matrices=False)
        top = singular.square().max().item() if len(singular) else 0.0
        return singular.square(), left, _smallest(curvature, top) if _may_be_negative(curvature) else float("nan")

    def _test_matrix(self, curvature: Curvature, seed: int) -> Float[Tensor, "p k"]:
        size, theta = curvature.size, curvature.problem.theta
        rank, generator = min(self.rank, size), torch_generator(seed, "nystrom")
        if self.sketch == "gaussian":
            return torch.linalg.qr(torch.randn(size, rank, generator=generator, dtype=torch.float64).to(theta)).Q
        chosen = torch.randperm(size, generator=generator)[:rank].to(theta.device)
        test = theta.new_zeros(size, rank)
        test[chosen, torch.arange(rank, device=theta.device)] = 1.0
        return test


def _smallest(curvature: Curvature, top: float) -> float:
    """λ_min(A) from above, by subspace iteration on `top I − C`.

    Raises:
        NumericalError: it is below 0.
    """
    high = 1.1 * top + curvature.shift
    smallest = high - largest_eigenvalue(lambda v: high * v - curvature.matmat(v), curvature.problem.theta.unsqueeze(1))
    if smallest <= 0:
        raise NumericalError(
            f"nystrom needs a positive definite curvature, and the {curvature.kind} with method.damping={curvature.delta:g} has an "
            f"eigenvalue of at most {smallest:.2e}: use {curvature.definite}, or method.damping above {curvature.delta - smallest:.2g}."
        )
    negative = smallest - curvature.shift
    if negative < -1e3 * torch.finfo(curvature.problem.theta.dtype).eps * high:
        warn_accuracy(
            f"the {curvature.kind} has an eigenvalue of at most {negative:.2e} before its shift, and nystrom takes negative ones for 0: "
            f"{curvature.definite} avoids this."
        )
    return smallest


def _may_be_negative(curvature: Curvature) -> bool:
    return curvature.kind == "hessian" or (curvature.kind == "ggn" and not convex(curvature.problem))
