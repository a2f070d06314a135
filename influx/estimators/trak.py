"""TRAK: influence in a random projection of the gradients, after linearising the model output (Park et al. 2023, section 3).

The model output f is the label's log-odds `log(p_y / (1 − p_y))`, or the prediction itself in regression; the loss is a function of it,
so that `∇ℓ_i = q_i ∇f_i` with `q_i = ∂ℓ_i/∂f`, which is −(1 − p_y) for cross-entropy and ŷ − y for squared error. With a random projection
R of the P parameters to k dimensions,

    φ_i = R ∇f_i,    ψ_t = R ∇m_t,    influence[i, t] = q̄_i · mean over models of ψ_tᵀ ((1/n) Φᵀ Φ + δ I)⁻¹ φ_i / n.

For m_t = f_t and δ = 0 that is minus the paper's τ, whose Q is −q: this score says what removal does, τ what presence does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from influx import rules
from influx.cost import Cost
from influx.curvature import AUTO_SHARE
from influx.errors import InfluxError, NumericalError
from influx.estimators.base import Estimate, Estimator
from influx.gradients import Rows, slope
from influx.objectives import Objective, log_odds
from influx.objectives.base import Unlabelled
from influx.problem import Problem
from influx.progress import progress
from influx.record import Record
from influx.seeding import numpy_generator
from influx.stacking import blocks

TILE = 2**14  # parameters whose signs are drawn and used together
ROWS_BYTES = 2**24  # of the gradients that are multiplied at once with a tile's signs


Piece = tuple[list[Rows], Tensor]  # gradients of a block of examples, a layer at a time, and the rows of the projection they go to


@dataclass(frozen=True)
class Output(Objective):
    """The model output f that TRAK linearises, in an objective's clothes: what `Problem` differentiates."""

    of: Objective

    def loss(self, outputs: Float[Tensor, " *k batch out"], targets: Shaped[Tensor, " batch *target"]) -> Float[Tensor, " *k batch"]:
        if isinstance(self.of, Unlabelled) or (targets.is_floating_point() and outputs.shape[-1] > 1):
            return self.of.loss(outputs, targets)  # departure 5
        return outputs[..., 0] if targets.is_floating_point() else log_odds(outputs, targets)


@dataclass(frozen=True)
class Trak(Estimator):
    """The formula above, right up to a factor: the loss's curvature is left out of the inverse.

    Args:
        dim: k, dimensions of the projection.
        models: independently trained models that are averaged: q and the rest separately, each model with a projection of its own.
        damping: δ ≥ 0 on the diagonal of (1/n) Φᵀ Φ, or "auto": 0.1 x its mean eigenvalue.
        params: "all", "last_layer", or a pattern of names: the parameters whose gradients are projected.

    1. R has entries ±1/√k (Rademacher); the paper's are Gaussian. Both keep inner products in expectation (Achlioptas 2003).
    2. The paper inverts Φᵀ Φ as it is; that is damping=0, and needs dim ≤ n and dim ≤ P. When dim ≥ P nothing is projected.
    3. The paper's models are trained on random subsets of the training set; these are trained on all of it, from other seeds.
    4. No soft-thresholding of the scores (the paper's last step, with a threshold found by cross-validation).
    5. Of a model that is trained without labels, or to predict several numbers, f is the loss itself, and q = 1.

    Cost: a gradient for every example and model, and 2·P·dim operations to project each; models − 1 trainings.
    Memory: (n + n_test) x dim numbers, a tile of signs (never P x dim), and up to a quarter of `memory` of gradients, as factors
    where they have any.
    """

    calibrated: ClassVar[bool] = False
    dim: int = 512
    models: int = 1
    damping: float | str = "auto"
    params: str = "all"

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    def plan(self, problem: Problem, record: Record) -> Cost:
        """
        Raises:
            InfluxError: without damping, Φᵀ Φ would be singular.
        """
        problem = problem.select(self.params)
        n, m, size, each = problem.n_train, len(problem.test), problem.n_params, problem.theta.element_size()
        k = min(self.dim, size)
        if self.damping == 0 and self.dim > min(n, size):
            raise InfluxError(
                f"method.dim={self.dim} dimensions of {n} gradients of {size} parameters make a singular matrix: set method.dim to at most "
                f"{min(n, size)}, or method.damping=auto."
            )
        projecting = 2.0 * (n + m) * size * k * (k < size)
        solving = 2.0 * n * k**2 + k**3 + 2.0 * (n + k) * m * k
        gradients = min(problem.memory // 4, 2 * (n + m) * size * each)
        held = (n + m) * k * each + (8 + each) * min(TILE, size) * k + 24 * k**2 + gradients
        return Cost((n + m) * self.models, (projecting + solving) * self.models, self.models - 1, held)

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        problem = problem.select(self.params)
        influence, weights = problem.empty().zero_(), problem.theta.new_zeros(problem.n_train)
        conditions = []
        for number, model in enumerate(self._fitted(problem, record)):
            train, test = projected(model, self.dim, seed, number)
            solved, condition = self._solve(train, test)
            influence += train @ solved.T
            weights += slopes(model)
            conditions.append(condition)
        influence *= (weights / (self.models**2 * problem.n_train)).unsqueeze(1)
        return Estimate(influence, facts={"condition_number": max(conditions)})

    def _fitted(self, problem: Problem, record: Record) -> Iterator[Problem]:
        """The problem at each model's parameters; a single one is the problem's own."""
        if self.models == 1:
            yield problem
            return
        for other in record.models(self.models):
            yield replace(problem, params=other.params, buffers=other.buffers)

    def _solve(self, train: Float[Tensor, "n k"], test: Float[Tensor, "m k"]) -> tuple[Float[Tensor, "m k"], float]:
        """Ψ ((1/n) Φᵀ Φ + δ I)⁻¹, in float64, and that matrix's condition number.

        Raises:
            NumericalError: it is singular to working precision.
        """
        gram = train.new_zeros(train.shape[1], train.shape[1], dtype=torch.float64)
        for rows in blocks(len(train), 8 * train.shape[1]):
            part = train[rows].double()
            gram.addmm_(part.T, part, alpha=1 / len(train))
        delta = AUTO_SHARE * gram.diagonal().mean().item() if self.damping == "auto" else float(self.damping)
        gram.diagonal().add_(delta)
        eigenvalues, vectors = torch.linalg.eigh(gram)
        low, high = eigenvalues[0].item(), eigenvalues[-1].item()
        if not low > len(gram) * torch.finfo(train.dtype).eps * high:
            raise NumericalError(
                f"the projected gradients do not span {len(gram)} dimensions (eigenvalues of their matrix from {low:.1e} to {high:.1e}): "
                "set method.damping=auto, or a smaller method.dim."
            )
        return ((test.double() @ vectors / eigenvalues) @ vectors.T).to(train.dtype), high / low


def slopes(problem: Problem) -> Float[Tensor, " n"]:
    """q_i = ∂ℓ_i/∂f: the loss's gradient by the outputs, along the model output's. Both are stable where p_y is near 1."""
    if isinstance(problem.objective, Unlabelled):
        return problem.theta.new_ones(problem.n_train)
    made = []
    for rows in blocks(problem.n_train, 4 * problem.bytes_per_row):
        part = problem.train.take(rows)
        outputs = problem.outputs(problem.theta, part.inputs).detach()
        along = slope(Output(problem.objective).loss, outputs, part.targets)
        made.append((slope(problem.objective.loss, outputs, part.targets) * along).sum(1) / along.square().sum(1))
    return torch.cat(made)


def projected(problem: Problem, dim: int, seed: int, model: int) -> tuple[Float[Tensor, "n k"], Float[Tensor, "m k"]]:
    """φ of every training example and ψ of every test example (or of the set), k = min(dim, P). The signs are a function of (seed, model)
    and of sizes alone."""
    output = replace(problem, objective=Output(problem.objective))
    if dim >= problem.n_params:
        return torch.cat([made for _, made in output.train_gradients()]), problem.test_gradients()
    train, test = (problem.theta.new_zeros(count, dim) for count in (problem.n_train, problem.n_test))
    waiting: list[Piece] = []
    held = 0
    for parts, place in _gradients(output, problem, train, test):
        waiting.append((parts, place))
        held += sum(tensor.nbytes for part in parts for tensor in (part.inputs, part.deltas, part.dense) if tensor is not None)
        if held > problem.memory // 8:
            _project(waiting, seed, model)
            waiting, held = [], 0
    if waiting:
        _project(waiting, seed, model)
    return train.div_(dim**0.5), test.div_(dim**0.5)


def _gradients(output: Problem, problem: Problem, train: Float[Tensor, "n k"], test: Float[Tensor, "m k"]) -> Iterator[Piece]:
    """Blocks of gradients, each with the rows of the projection that it goes to."""
    for rows, parts in output.train_rows():
        yield parts, train[rows]
    for columns in problem.columns(4):
        yield problem.test_rows(columns), test[columns]


def _project(waiting: list[Piece], seed: int, model: int) -> None:
    """Add each block's projection to its place, a layer at a time; a tile's signs are drawn once for all rows."""
    for at, factored in [(at, factored) for at in range(len(waiting[0][0])) for factored in (True, False)]:
        pieces = [(parts[at], place) for parts, place in waiting if (parts[at].inputs is not None) == factored]
        if not pieces:
            continue
        whole = _joined([part for part, _ in pieces])
        made = pieces[0][1].new_zeros(sum(len(place) for _, place in pieces), pieces[0][1].shape[1])
        for number, (outs, ins) in enumerate(progress(_tiles(*whole.layer.shape), "projection, tiles of parameters")):
            size = (outs.stop - outs.start) * (ins.stop - ins.start)
            drawn = signs(made, size, seed, model, at, number)
            for rows in blocks(len(made), size * made.element_size(), ROWS_BYTES):
                made[rows].addmm_(_part(whole, rows, outs, ins), drawn)
        for (_, place), own in zip(pieces, made.split([len(place) for _, place in pieces]), strict=True):
            place += own


def _joined(parts: list[Rows]) -> Rows:
    """Blocks of rows of one layer as one."""
    layer = parts[0].layer
    if parts[0].inputs is None or parts[0].deltas is None:
        return Rows(layer, None, None, torch.cat([part.matrices for part in parts]))
    return Rows(layer, *(torch.cat([getattr(part, name) for part in parts]) for name in ("inputs", "deltas")))


def _tiles(out: int, width: int) -> list[tuple[slice, slice]]:
    """A layer's matrix in rectangles of about `TILE` parameters."""
    return [(outs, ins) for outs in blocks(out, width, TILE) for ins in blocks(width, 1, TILE)]


def _part(whole: Rows, rows: slice, outs: slice, ins: slice) -> Float[Tensor, "rows size"]:
    """The gradients of some rows by the parameters of one tile."""
    if whole.inputs is None or whole.deltas is None:
        return whole.matrices[rows, outs, ins].flatten(1)
    return (whole.deltas[rows, outs].unsqueeze(2) * whole.inputs[rows, ins].unsqueeze(1)).flatten(1)


def signs(like: Float[Tensor, "n k"], size: int, seed: int, *purpose: int) -> Float[Tensor, "size k"]:
    """Rademacher entries, one random bit each, the same on every device and in every type."""
    dim = like.shape[1]
    drawn = numpy_generator(seed, "projection", *purpose).bytes(-(-size * dim // 8))
    bits = np.unpackbits(np.frombuffer(drawn, dtype=np.uint8), count=size * dim)
    return torch.from_numpy(bits).to(like.device).to(like.dtype).view(size, dim).mul_(2).sub_(1)
