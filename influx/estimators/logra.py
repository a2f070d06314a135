"""LoGra: influence with low-rank projections of each layer's inputs and output gradients (Choe et al. 2024, "What is your data worth to
GPT? LLM-scale data valuation with influence functions", section 3.1).

For a layer's gradient `G = Σ_p δ_p h_pᵀ` [out, in] (`influx.kronecker`), with P_out [out, k_out] and P_in [in, k_in],

    g = vec(P_outᵀ G P_in) = vec(Σ_p (P_outᵀ δ_p)(P_inᵀ h_p)ᵀ),
    influence[i, t] = (1/n) Σ_layers g_tᵀ (C + (λ + δ) I)⁻¹ g_i,      C = (1/n) Σ g gᵀ over the pseudo-gradients of the training examples.

No gradient of full size is formed for a training example, whatever the layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from influx import rules
from influx.cost import Cost
from influx.curvature import AUTO_SHARE
from influx.errors import InfluxError, NumericalError
from influx.estimators.base import Estimate, Estimator
from influx.kronecker import Signals, check_convex, eigenbases, signals
from influx.problem import GIBIBYTE, Problem
from influx.record import Record
from influx.seeding import torch_generator


class Projection(NamedTuple):
    """One layer's, both with orthonormal columns."""

    of_outputs: Float[Tensor, "out k_out"]
    of_inputs: Float[Tensor, "in k_in"]

    @property
    def size(self) -> int:
        return self.of_outputs.shape[1] * self.of_inputs.shape[1]

    def signals(self, part: Signals) -> Float[Tensor, "rows copies kk"]:
        """Projected pseudo-gradients of a block."""
        inputs = part.inputs @ self.of_inputs  # [rows, places, k_in]
        deltas = self.of_outputs.T @ part.deltas  # [rows, copies, k_out, places]
        return (deltas.flatten(1, 2) @ inputs).unflatten(1, deltas.shape[1:3]).flatten(2)

    def matrices(self, gradients: Float[Tensor, "rows out in"]) -> Float[Tensor, "rows kk"]:
        return (self.of_outputs.T @ (gradients @ self.of_inputs)).flatten(1)


@dataclass(frozen=True)
class LoGra(Estimator):
    """gradients x inverse curvature, both projected.

    Args:
        rank: k_in and k_out; a side with no more dimensions than that is not projected.
        init: "random" directions, drawn by the seed; or "pca", the leading eigenvectors of the layer's A and S.
        curvature: "ggn" or "fisher" (empirical, as in the paper).
        damping: δ ≥ 0, or "auto": 0.1 x the mean eigenvalue of each layer's projected curvature.
        params: the parameters that may move.

    What a projection drops is taken as no effect at all, so scores shrink with the rank: right up to a factor (`calibrated` is False),
    though with nothing projected and one layer they are the influence function itself. Cost: passes over the training set as EK-FAC's,
    and n k⁴ multiply-adds a layer. Memory: a few times k⁴ numbers a layer, k² for each test example.

    Departure from the paper: 1. projections have orthonormal columns, so that λ + δ means what it means in the whole space.
    """

    calibrated: ClassVar[bool] = False

    rank: int = 16
    init: str = "pca"
    curvature: str = "ggn"
    damping: float | str = "auto"
    params: str = "all"

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    def plan(self, problem: Problem, record: Record) -> Cost:
        problem = problem.select(self.params)
        if self.curvature == "hessian":
            raise InfluxError("method=logra inverts ggn or fisher, not hessian: set method.curvature=ggn.")
        if self.curvature == "ggn":
            check_convex(problem)
        sizes = [min(self.rank, out) * min(self.rank, wide) for out, wide in (layer.shape for layer in problem.matrix_layers)]
        out = problem.outputs(problem.theta, problem.train.inputs[:1]).shape[1] if self.curvature == "ggn" else 1
        needed = problem.theta.element_size() * (3.0 * sum(size**2 for size in sizes) + sum(sizes) * problem.n_test)
        if needed > problem.memory:
            raise InfluxError(
                f"method.rank={self.rank} takes {needed / GIBIBYTE:.1f} GiB, and memory allows {problem.memory / GIBIBYTE:.1f}: lower "
                "method.rank, or raise memory."
            )
        n, m = problem.n_train, problem.n_test
        passes = 1.0 + 0.5 * (out + 1) * (2 if self.init == "pca" else 1)
        return Cost(passes * n + m, sum(2.0 * n * out * size**2 + size**3 + 2.0 * n * m * size for size in sizes), 0.0, needed)

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        problem = problem.select(self.params)
        projections = self._projections(problem, seed)
        curvatures = self._curvatures(problem, projections, seed)
        tests = [p.matrices(rows.matrices) for p, rows in zip(projections, problem.test_rows(), strict=True)]
        solved = [self._solve(c, test, problem.weight_decay) for c, test in zip(curvatures, tests, strict=True)]  # [kk, m]
        influence = problem.empty().zero_()
        for rows, parts in _rows(problem, "fisher", seed):
            for projection, part, x in zip(projections, parts, solved, strict=True):
                influence[rows].addmm_(projection.signals(part).squeeze(1), x)
        return Estimate(influence.div_(problem.n_train), facts={"projected_dimensions": float(sum(p.size for p in projections))})

    def _projections(self, problem: Problem, seed: int) -> list[Projection]:
        like = problem.theta
        if self.init == "pca":
            bases = eigenbases([problem], self.curvature, labels="empirical", corrected=False, seed=seed)
            return [Projection(basis.outputs[:, -self.rank :], basis.inputs[:, -self.rank :]) for basis in bases]
        draw = torch_generator(seed, "projections")

        def directions(size: int) -> Float[Tensor, "size k"]:
            if size <= self.rank:
                return torch.eye(size).to(like)
            return torch.linalg.qr(torch.randn(size, self.rank, generator=draw, dtype=torch.float64)).Q.to(like)

        return [Projection(*map(directions, layer.shape)) for layer in problem.matrix_layers]

    def _curvatures(self, problem: Problem, projections: list[Projection], seed: int) -> list[Float[Tensor, "kk kk"]]:
        """C of every layer."""
        totals = [problem.theta.new_zeros(projection.size, projection.size) for projection in projections]
        for _, parts in _rows(problem, self.curvature, seed):
            for projection, part, total in zip(projections, parts, totals, strict=True):
                flat = projection.signals(part).flatten(0, 1)
                total.addmm_(flat.T, flat)
        return [total / problem.n_train for total in totals]

    def _solve(self, curvature: Float[Tensor, "kk kk"], test: Float[Tensor, "m kk"], weight_decay: float) -> Float[Tensor, "kk m"]:
        """`(C + (λ + δ) I)⁻¹ g_t`.

        Raises:
            NumericalError: nothing is added to a singular C.
        """
        delta = AUTO_SHARE * curvature.diagonal().mean() if self.damping == "auto" else float(self.damping)
        shifted = curvature.clone()
        shifted.diagonal().add_(weight_decay + delta)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        pivots = factor.diagonal().square()
        if int(failed) or not bool(pivots.min() > len(pivots) * torch.finfo(pivots.dtype).eps * pivots.max()):
            raise NumericalError("a layer's projected curvature is singular: set method.damping above 0, or lower method.rank.")
        return torch.cholesky_solve(test.T, factor)


def _rows(problem: Problem, kind: str, seed: int) -> Iterator[tuple[slice, list[Signals]]]:
    """Blocks of pseudo-gradients with their rows; "fisher" are the training gradients themselves."""
    start = 0
    for parts in signals(problem, kind, labels="empirical", seed=seed):
        count = len(parts[0].inputs)
        yield slice(start, start + count), parts
        start += count
