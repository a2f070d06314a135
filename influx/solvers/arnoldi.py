"""Arnoldi: the inverse restricted to the dominant eigenvectors that a Krylov space finds (Schioppa et al. 2022, "Scaling up influence
functions"; Arnoldi 1951).

Orthonormal q_1, q_2, ... span b_0, A b_0, A² b_0, ... for one random b_0. The eigenpairs of the small matrix `H = Qᵀ A Q` give Ritz pairs
(λ_k, u_k) of A; those of largest |λ| converge first. With the `rank` of them that are largest in absolute value,

    x = Σ_k u_k (u_kᵀ b) / λ_k,

and what is outside their span is dropped: an influence of low rank, whose eigenvectors are computed once for all right-hand sides.
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
from influx.problem import GIBIBYTE, Problem
from influx.progress import progress
from influx.seeding import torch_generator
from influx.solvers.base import Solution, Solver, products, relative_residual

RESIDUAL = 0.05  # relative; above it the solve is reported as not converged
BREAKDOWN = 1e2  # times machine precision and ‖A‖: a next direction shorter than this is rounding


@dataclass(frozen=True)
class Arnoldi(Solver):
    """X from the `rank` Ritz pairs of largest |eigenvalue| of A.

    Args:
        rank: eigenpairs that are kept.
        steps: dimension of the Krylov space that they are taken from, at least `rank`; "auto" is twice the rank.
        complement: what is outside the span of the kept pairs; false drops it (the paper), true solves it with 1/(λ + δ), as if the
            curvature vanished there.

    Cost: `steps` products with A, one vector at a time, and 8 P steps² operations of orthogonalisation, once; then 6 P rank a right-hand
    side, and with `complement` a product with A for its residual. Memory: 2 P x steps numbers, then 2 P x rank. With steps = P it is the
    dense inverse.

    Departures from the paper and its release:
    1. λ + δ is inside A, so that damping means the same in every solver.
    2. A is symmetric and H is treated so; every direction is orthogonalised again, against all earlier ones, after it is normalised.
    3. When the Krylov space is exhausted (b_0 lacks some eigenvectors, or eigenvalues repeat) a fresh random direction goes on.
    4. Products are over all training examples; none is sampled.
    5. `complement=true` keeps the components that the paper projects away.
    """

    copies: ClassVar[int] = 4

    rank: int = 100
    steps: int | str = "auto"
    complement: bool = False

    def __post_init__(self) -> None:
        rules.check_fields("method.solver", self)
        if self.steps != "auto" and int(self.steps) < self.rank:
            raise InfluxError(
                f"method.solver.rank={self.rank} is more than the {self.steps} eigenpairs that method.solver.steps={self.steps} can give: "
                "lower rank, or set steps=auto."
            )

    def work(self, problem: Problem, m: int) -> Cost:
        size, steps = problem.n_params, self._steps(problem.n_params)
        needed = 2 * problem.theta.nbytes * (steps + min(self.rank, steps))
        if needed > problem.memory:
            raise InfluxError(
                f"arnoldi keeps {steps} vectors of {size:,} parameters and their images, which takes {needed / GIBIBYTE:.1f} GiB, and "
                f"memory allows {problem.memory / GIBIBYTE:.1f}: lower method.solver.rank or method.solver.steps, or raise memory."
            )
        dense = 8.0 * size * steps**2 + 6.0 * size * m * min(self.rank, size)
        return Cost(flops=products(problem, steps + m * self.complement) + dense, nbytes=needed)

    def solve(self, curvature: Curvature, rhs: Float[Tensor, "p m"], seed: int) -> Solution:
        if self.complement and not curvature.shift > 0:
            raise NumericalError(
                "arnoldi divides what its eigenvectors miss by λ + damping, which is 0: set method.damping above 0, or "
                "method.solver.complement=false."
            )
        key = f"{self}, seed {seed}"
        if key not in curvature.kept:
            curvature.kept[key] = self._eigenpairs(curvature, seed)
        found: Eigenpairs = curvature.kept[key]
        x, residual = self._inverted(curvature, found, rhs)
        converged = residual <= RESIDUAL
        if not bool(converged.all()):
            warn_accuracy(
                f"arnoldi's {len(found.values)} eigenpairs leave a relative residual of {residual.median().item():.2g} (median; largest "
                f"{residual.max().item():.2g}): raise method.solver.rank or method.damping"
                + ("." if self.complement else ", or set method.solver.complement=true.")
            )
        steps = torch.full((rhs.shape[1],), self._steps(curvature.size))
        return Solution(x, steps, residual, converged, curvature.shift, found.smallest)

    def _inverted(
        self, curvature: Curvature, found: Eigenpairs, rhs: Float[Tensor, "p m"]
    ) -> tuple[Float[Tensor, "p m"], Float[Tensor, " m"]]:
        """X and its true relative residual, which takes no product with A as long as X stays in the span."""
        inside = found.vectors @ rhs  # [rank, m]
        scaled = inside / found.values.unsqueeze(1)
        x = found.vectors.T @ scaled
        if self.complement:
            x += (rhs - found.vectors.T @ inside) / curvature.shift
            return x, relative_residual(curvature, x, rhs)
        norms = rhs.norm(dim=0)
        return x, torch.where(norms > 0, (rhs - found.images.T @ scaled).norm(dim=0) / norms.clamp_min(torch.finfo(rhs.dtype).tiny), 0.0)

    def _steps(self, size: int) -> int:
        return min(size, 2 * self.rank if self.steps == "auto" else int(self.steps))

    def _eigenpairs(self, curvature: Curvature, seed: int) -> Eigenpairs:
        basis, images, projected = krylov(curvature, self._steps(curvature.size), torch_generator(seed, "arnoldi"))
        values, vectors = torch.linalg.eigh(projected, UPLO="U")
        kept = values.abs().argsort(descending=True, stable=True)[: self.rank]
        largest, least = values[kept[0]].abs().item(), values[kept[-1]].abs().item()
        if not least > len(kept) * torch.finfo(basis.dtype).eps * largest:
            raise NumericalError(
                f"the {len(kept)} largest eigenvalues of the {curvature.kind} go down to {values[kept[-1]].item():.1e}, which is rounding: "
                "lower method.solver.rank, or set method.damping above 0."
            )
        smallest = values[0].item()
        if smallest < 0:
            warn_accuracy(
                f"the {curvature.kind} is not positive definite (an eigenvalue of at most {smallest:.2e} with "
                f"method.damping={curvature.delta:g}): the estimate describes a saddle. {curvature.definite}, or method.damping above "
                f"{curvature.delta - smallest:.2g}, avoids this."
            )
        mixed = vectors[:, kept].T.to(basis)
        return Eigenpairs(values[kept].to(basis), mixed @ basis, mixed @ images, smallest)


@dataclass(frozen=True)
class Eigenpairs:
    """The kept Ritz values λ_k and vectors u_k, the images A u_k, and the smallest Ritz value of all (an upper bound of λ_min(A))."""

    values: Float[Tensor, " rank"]
    vectors: Float[Tensor, "rank p"]
    images: Float[Tensor, "rank p"]
    smallest: float


def krylov(
    curvature: Curvature, steps: int, generator: torch.Generator
) -> tuple[Float[Tensor, "steps p"], Float[Tensor, "steps p"], Float[Tensor, "steps steps"]]:
    """Orthonormal rows Q of a Krylov space of A, their images under A, and the upper triangle of `Q A Qᵀ` in float64."""
    theta = curvature.problem.theta
    basis, images = theta.new_zeros(steps, curvature.size), theta.new_zeros(steps, curvature.size)
    projected = torch.zeros(steps, steps, dtype=torch.float64, device=theta.device)
    candidate, negligible = torch.zeros_like(theta), 0.0
    for step in progress(range(steps), "arnoldi"):
        basis[step] = _direction(candidate, basis[:step], negligible, generator)
        image = images[step] = curvature.matmat(basis[step].unsqueeze(1)).squeeze(1)
        coefficients = basis[: step + 1] @ image
        projected[: step + 1, step] = coefficients.double()
        candidate = image - coefficients @ basis[: step + 1]
        negligible = max(negligible, BREAKDOWN * torch.finfo(theta.dtype).eps * image.norm().item())
    return basis, images, projected


def _direction(candidate: Float[Tensor, " p"], basis: Float[Tensor, "k p"], negligible: float, generator: torch.Generator) -> Tensor:
    """A unit vector orthogonal to the rows of `basis`: along `candidate`, or random when that is rounding alone."""
    if not candidate.norm().item() > negligible:
        candidate = torch.randn(len(candidate), generator=generator, dtype=torch.float64).to(candidate)
    for _ in range(2):  # twice is enough (Giraud et al. 2005)
        candidate = candidate / candidate.norm()
        candidate = candidate - (basis @ candidate) @ basis
    return candidate / candidate.norm()
