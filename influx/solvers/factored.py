"""Inverting a Kronecker-factored curvature in its eigenbasis: a rotation, a division and a rotation back, layer by layer.

Grosse et al. 2023, section 2.2, with the inverse `(Q_S ⊗ Q_A) diag(1/(Λ + λ + δ)) (Q_S ⊗ Q_A)ᵀ` of `influx.kronecker`'s form.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from influx.cost import Cost
from influx.curvature import AUTO_SHARE, Curvature
from influx.errors import NumericalError
from influx.gradients import Rows, numbers_per_row, slope
from influx.kronecker import HELD, Eigenbasis, check_draws, eigenbases
from influx.pairing import Pairing, add_rows, plan
from influx.problem import Problem
from influx.seeding import torch_generator
from influx.solvers.base import Solution, Solver

WORTH = 2e9  # multiply-adds of a layer's scores from which a plan for them pays
VALUES = 200  # how many times a matrix's smaller side its singular values cost, in multiply-adds an entry
ROUNDING = 8.0  # times machine precision: how much of a score a plan may leave out

Sizes = tuple[Float[Tensor, " out"], Float[Tensor, " in"]]


@dataclass(frozen=True)
class FactoredInverse:
    """`A⁻¹ = (C + λ + δ)⁻¹` of every layer. δ "auto" is each layer's own: 0.1 x its mean eigenvalue."""

    problem: Problem
    bases: list[Eigenbasis]
    damping: float | str

    @cached_property
    def shifts(self) -> list[float]:
        """λ + δ of each layer."""
        deltas = [AUTO_SHARE * basis.values.mean().item() if self.damping == "auto" else float(self.damping) for basis in self.bases]
        return [self.problem.weight_decay + delta for delta in deltas]

    @cached_property
    def weights(self) -> list[Float[Tensor, "out in"]]:
        """1/(Λ + λ + δ) of each layer.

        Raises:
            NumericalError: a layer's factored curvature is singular to working precision.
        """
        for basis, shift in zip(self.bases, self.shifts, strict=True):
            smallest, largest = basis.values.min().item() + shift, basis.values.max().item() + shift
            if not smallest > sum(basis.values.shape) * torch.finfo(basis.values.dtype).eps * largest:
                raise NumericalError(
                    f"the factored curvature of layer {basis.layer.name or 'whole'} is singular (eigenvalues from {smallest:.1e} to "
                    f"{largest:.1e}): set method.damping=auto, or train with training.weight_decay above 0."
                )
        return [1.0 / (basis.values + shift) for basis, shift in zip(self.bases, self.shifts, strict=True)]

    def solve(self, rhs: Float[Tensor, "p m"]) -> Float[Tensor, "p m"]:
        x = torch.empty_like(rhs.T)
        for basis, weights in zip(self.bases, self.weights, strict=True):
            basis.layer.scatter(basis.scale(basis.layer.gather(rhs.T), weights), x)
        return x.T

    def influence(self, columns: slice, out: Float[Tensor, "n_train m"]) -> None:
        """Add `∇ℓ_iᵀ A⁻¹ ∇m_t` of every training example and the test examples in `columns` to `out`.

        No gradient of a linear layer is formed: where there are many pairs the sum over a layer's entries is planned (`influx.pairing`),
        to rounding error.
        """
        tests = self.problem.test_rows(columns)
        ready = [self._ready(*parts) for parts in zip(self.bases, self.weights, tests, self._sizes, strict=True)]
        for rows, layers in self._train_rows():
            for basis, train, test in zip(self.bases, layers, ready, strict=True):
                if isinstance(test, Pairing):
                    assert train.deltas is not None
                    assert train.inputs is not None
                    test.add(train.deltas @ basis.outputs, train.inputs @ basis.inputs, out[rows])
                else:
                    add_rows(train, test, out[rows])

    def _ready(self, basis: Eigenbasis, weights: Tensor, test: Rows, train_sizes: Sizes | None) -> Pairing | Float[Tensor, "m outin"]:
        """One layer's test side: A⁻¹ times its gradients, or a plan with their factors."""
        if test.deltas is None or test.inputs is None or train_sizes is None:
            return basis.scale(test.matrices, weights).flatten(1)
        pairs = len(test.deltas) * self.problem.n_train
        if pairs * weights.numel() < WORTH or pairs < VALUES * min(weights.shape):
            return basis.scale(test.matrices, weights).flatten(1)
        c, b = test.deltas @ basis.outputs, test.inputs @ basis.inputs
        blocks = plan(weights, train_sizes, (_sizes(c), _sizes(b)), ROUNDING * torch.finfo(weights.dtype).eps)
        return Pairing(weights, c, b, blocks)

    @cached_property
    def _sizes(self) -> list[Sizes | None]:
        """Root mean squares of all training gradients' factors in the eigenbasis: a direction that few rows have is no rounding error. None
        for a layer whose rows have none."""
        n = self.problem.n_train
        squares: list[Sizes | None] = [None] * len(self.bases)
        for _, layers in self.problem.train_rows():
            for at, (basis, rows) in enumerate(zip(self.bases, layers, strict=True)):
                if rows.deltas is not None and rows.inputs is not None:
                    own = ((rows.deltas @ basis.outputs).square().sum(0), (rows.inputs @ basis.inputs).square().sum(0))
                    before = squares[at]
                    squares[at] = own if before is None else (before[0] + own[0], before[1] + own[1])
        return [None if pair is None else ((pair[0] / n).sqrt(), (pair[1] / n).sqrt()) for pair in squares]

    def _train_rows(self) -> Iterator[tuple[slice, list[Rows]]]:
        """As `Problem.train_rows`, in larger blocks, as rows with factors are small."""
        problem = self.problem
        each = 2 * sum(basis.values.nbytes for basis, sizes in zip(self.bases, self._sizes, strict=True) if sizes is None)
        for rows, kept in problem.passes(problem.train, each):
            yield rows, kept.rows(slope(problem.objective.loss, kept.outputs, problem.train.targets[rows]))

    def account(self, seed: int) -> list[dict[str, Any]]:
        """A row of diagnostics for each layer; the residual is that of a random right-hand side, against the factored matrix itself."""
        made = []
        for basis, weights, shift in zip(self.bases, self.weights, self.shifts, strict=True):
            draw = torch.randn(1, *basis.values.shape, generator=torch_generator(seed, "probe"), dtype=torch.float64).to(basis.values)
            back = basis.scale(basis.scale(draw, weights), 1.0 / weights)
            made.append(
                {
                    "name": f"inverse of layer {basis.layer.name or 'whole'}",
                    "test_index": None,
                    "iterations": 0,
                    "residual": ((back - draw).norm() / draw.norm()).item(),
                    "converged": True,
                    "damping": shift,
                    "smallest_eigenvalue": basis.values.min().item() + shift,
                }
            )
        return made


class FactoredSolver(Solver):
    """A Kronecker-factored approximation of the curvature, inverted without error.

    The curvature is "ggn" or "fisher" (with `labels`: "empirical", or "sampled" from the model's own prediction), layer by layer and
    without what couples layers. The residual is against this approximation, where it is rounding error: it says nothing of how near the
    approximation is to the curvature. The effective damping is the mean of the layers' λ + δ, weighted by their parameters.

    Cost: for the GGN a forward pass and n_out backward passes a training example (for a Fisher matrix one), then in³ + out³ for a layer's
    eigenvectors, then in + out multiply-adds for each entry of a right-hand side. Memory: a few times in² + out² numbers a layer, and up to
    half of `Problem.memory` for what went through the layers.
    """

    copies: ClassVar[int] = 2
    kinds: ClassVar[tuple[str, ...]] = ("ggn", "fisher")
    corrected: ClassVar[bool]
    labels: str

    def work(self, problem: Problem, m: int) -> Cost:
        if self.labels == "sampled":
            check_draws(problem)
        out = problem.outputs(problem.theta, problem.train.inputs[:1]).shape[1]
        sides = [layer.shape for layer in problem.matrix_layers]
        vectors = sum(20.0 * (out**3 + wide**3) for out, wide in sides)
        moments = 4.0 * problem.n_train * sum(out**2 + wide**2 + out * wide for out, wide in sides)
        rotations = 4.0 * m * sum(out * wide * (out + wide) for out, wide in sides)
        held = problem.theta.element_size() * sum(4 * (out**2 + wide**2) + 3 * out * wide for out, wide in sides)
        number = numbers_per_row(problem.module, problem.matrix_layers, problem.state, problem.train.inputs)
        through = problem.n_train * (number * problem.theta.element_size() + out * problem.bytes_per_row)
        nbytes = held + min(through, HELD * problem.memory)
        return Cost(gradients=0.5 * problem.n_train * (out + 1), flops=vectors + moments + rotations, nbytes=nbytes)

    def solve(self, curvature: Curvature, rhs: Float[Tensor, "p m"], seed: int) -> Solution:
        inverse = self.inverse(curvature, seed)
        layers = inverse.account(seed)
        m, sizes = rhs.shape[1], [basis.layer.size for basis in inverse.bases]
        shift = sum(size * row["damping"] for size, row in zip(sizes, layers, strict=True)) / sum(sizes)
        residual = rhs.new_full((m,), max(row["residual"] for row in layers))
        converged = torch.ones(m, dtype=torch.bool)
        smallest = min(row["smallest_eigenvalue"] for row in layers)
        return Solution(inverse.solve(rhs), torch.zeros(m, dtype=torch.int64), residual, converged, shift, smallest)

    def inverse(self, curvature: Curvature, seed: int) -> FactoredInverse:
        """The factored inverse, made once for a curvature.

        Raises:
            InfluxError: the curvature is the Hessian, or the objective has no Gauss-Newton matrix.
        """
        key = f"{type(self).__name__} {self.labels} {seed}"
        if key not in curvature.kept:
            bases = eigenbases([curvature.problem], curvature.kind, labels=self.labels, corrected=self.corrected, seed=seed)
            curvature.kept[key] = FactoredInverse(curvature.problem, bases, curvature.damping)
        made: FactoredInverse = curvature.kept[key]
        return made


def _sizes(factors: Float[Tensor, "rows size"]) -> Float[Tensor, " size"]:
    return factors.square().mean(0).sqrt()
