"""Minimising an objective that holds a model near θ_s, for K sets of changed weights side by side.

With w_ki the weight of example i in model k, Δ = θ − θ_s, D_i ≥ 0 the Bregman divergence of example i's loss in the outputs, and
s_i = ∇ℓ_i(f_s), so that ℓ_i(f) − ℓ_i(f_s) = D_i + s_iᵀ(f − f_s):

    PBO       (1/n) Σ_i D_i + (1/n) Σ_i (w_ki − 1) (D_i + s_iᵀ(f − f_s)) + ((λ + p)/2) ‖Δ‖²
    proximal  (1/n) Σ_i w_ki (D_i + s_iᵀ(f − f_s)) + ((λ + p)/2) ‖Δ‖² + λ θ_sᵀΔ

are both objectives less their values at θ_s. Removals move the parameters by about 1/n, so these are numbers of about 1/n²: written so,
every term is itself small, and none is a difference of losses of size one.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from influx.curvature import Curvature
from influx.errors import InfluxError
from influx.problem import Examples, Problem
from influx.quasi_newton import MEMORY, Evaluated, Minimum, Smooth, Solve, minimise, rounding
from influx.responses.base import Account, Moved, Response, only, taken_away, train_outputs
from influx.responses.divergence import Anchor, FromAnchor
from influx.stacking import blocks, unstack
from influx.training import Task, Training
from influx.training.backprop import Backprop, backprop
from influx.training.second_order import Flat

FAR = 10.0  # times the longest that a first-order response can be: an objective that falls on beyond has no minimum near θ_s
DENSE = 4000  # parameters up to which G + (λ + p) I is factorised; beyond, it is approximated layer by layer


class Term(NamedTuple):
    """Σ_{i in rows} weights[k, i] loss_i, one loss for all rows."""

    loss: FromAnchor
    rows: Int[Tensor, " rows"]
    weights: Float[Tensor, "k rows"]


@dataclass(frozen=True)
class Near(Smooth):
    """Σ of the terms + (weight/2) ‖Δ‖² + pullᵀΔ as K functions of the flat trainable parameters."""

    task: Task
    terms: tuple[Term, ...]
    weight: float
    pull: Float[Tensor, " p"]

    @cached_property
    def flat(self) -> Flat:
        return Flat(self.task, 0.0)

    @cached_property
    def start(self) -> Float[Tensor, "k p"]:
        return self.flat.start()

    @cached_property
    def ways(self) -> list[Backprop]:
        task = self.task
        return [backprop(task.module, term.loss, task.trainable, task.side_by_side) for term in self.terms]

    def only(self, models: Bool[Tensor, " k"]) -> Near:
        """Some of the K functions."""
        terms = tuple(term._replace(weights=term.weights[models]) for term in self.terms)
        return replace(self, task=only(self.task, models), terms=terms)

    def evaluate(self, theta: Float[Tensor, "k p"], active: Int[Tensor, " k"]) -> Evaluated:
        moved = theta - self.start[active]
        params = self.flat.params(theta, active)
        buffers = {name: value[active] for name, value in self.task.buffers.items()}
        value = 0.5 * self.weight * moved.square().sum(1) + moved @ self.pull
        size = 0.5 * self.weight * moved.square().sum(1) + moved.abs() @ self.pull.abs()
        gradient = self.weight * moved + self.pull
        for term, way in zip(self.terms, self.ways, strict=True):
            weights = term.weights[active]
            for part in self._blocks(len(term.rows)):
                rows, w = term.rows[part], weights[:, part]
                outputs, found = way.gradients(params, buffers, Examples(self.task.examples.inputs[rows], rows), w)
                losses, sizes = term.loss.sized(outputs, rows)
                value += (losses * w).sum(1)
                size += (sizes * w.abs()).sum(1)
                gradient += torch.cat([piece.flatten(1) for piece in found.values()], dim=1)
        return Evaluated(value, gradient, rounding(size))

    def _blocks(self, rows: int) -> list[slice]:
        first = self.task.blocks()[0]
        return blocks(rows, 1, first.stop - first.start)


@dataclass(frozen=True)
class Anchored(Response):
    """argmin of a `Near` for each model, by quasi-Newton iterations from θ_s.

    They begin with (G + (λ + p) I)⁻¹ at θ_s, by Cholesky up to `DENSE` parameters and in EK-FAC's form beyond where the model allows it;
    the PBO's own Hessian at θ_s is that matrix but for the removed examples, so a few iterations do.

    Args:
        proximity: p ≥ 0, in the objective's unit per squared parameter.
        tolerance: gradient norm to stop at, relative to that of what is taken away, ‖(1/n) Σ_i (w_ki − 1) ∇ℓ_i(θ_s)‖.
        max_iterations: at most.
        strength: share of weights that is taken away, for what gradients are relative to where nothing is.

    An anchored one notes two facts that are 0 to rounding when theory and arithmetic agree: `gradient_with_nothing_removed`, the norm of
    the objective's gradient at θ_s for the stack's first model (which is therefore not looked for); and `label_dependence`, the largest
    difference over the stack's solutions between (1/n) Σ_i D_i as minimised and by its definition with every label shifted by one class
    (every number by 1).

    Cost: P products with G and P³/3 multiply-adds a stack, then one or two full-batch gradients of K models an iteration.
    Memory: 25 P numbers a model and, below `DENSE`, 2 P² for the stack.
    """

    vectors: ClassVar[int | None] = 2 * MEMORY + 5

    proximity: float = 0.0
    tolerance: float = 1e-6
    max_iterations: int = 300
    strength: float = 1.0

    @abstractmethod
    def objective(self, task: Task, anchor: Anchor, weight_decay: float) -> Near:
        """What is minimised."""

    def move(self, task: Task, training: Training, problem: Problem) -> Moved:
        first = only(task, slice(0, 1))
        anchor = Anchor(task.objective, task.examples.targets, train_outputs(first, first.params)[0])
        near = self.objective(task, anchor, problem.weight_decay)
        scale, moves = self._scale(problem, taken_away(task).norm(dim=1))
        found = Minimum(near.start.clone(), torch.zeros_like(scale), torch.zeros(task.models, dtype=torch.int64, device=scale.device))
        begun = ready = time.perf_counter()
        if bool(moves.any()):
            inverse, ready = preconditioner(problem, self.proximity), time.perf_counter()
            made = self._minimise(near.only(moves), problem, inverse, self.tolerance * scale[moves])
            found.theta[moves], found.gradient_norm[moves], found.iterations[moves] = made.theta, made.gradient_norm, made.iterations
        residual = found.gradient_norm / scale
        account = Account(found.iterations, residual, residual <= self.tolerance)
        params = near.flat.params(found.theta)
        facts = self._facts(near, anchor, train_outputs(task, params)) if self.anchored else {}
        return Moved(params, task.buffers, account, facts, ready - begun)

    def _facts(self, near: Near, anchor: Anchor, outputs: Float[Tensor, "k n out"]) -> dict[str, float]:
        still = near.evaluate(near.start[:1], torch.zeros(1, dtype=torch.int64, device=near.start.device))
        return {
            "label_dependence": anchor.label_dependence(outputs),
            "gradient_with_nothing_removed": still.gradient.norm().item(),
        }

    def _minimise(self, near: Near, problem: Problem, inverse: Solve | None, tolerance: Float[Tensor, " k"]) -> Minimum:
        reach = FAR / near.weight  # gradient over the least curvature: an upper bound of the first-order response
        if self.anchored:
            return minimise(near, near.start, inverse, tolerance, self.max_iterations, strict=True, reach=reach)
        first = torch.arange(len(tolerance), device=tolerance.device) == 0  # with nothing taken away: a way that all have in common
        alone = near.only(first)
        common = minimise(alone, alone.start, inverse, tolerance[first], self.max_iterations, strict=True, reach=reach)
        params = unstack(near.flat.params(common.theta, first.nonzero().squeeze(1)), 0)
        inverse = preconditioner(problem.at(params), self.proximity)
        start = common.theta.expand_as(near.start).contiguous()
        made = minimise(near, start, inverse, tolerance, self.max_iterations, strict=True, reach=reach)
        made.iterations[first] += common.iterations
        return made

    def _scale(self, problem: Problem, taken: Float[Tensor, " k"]) -> tuple[Float[Tensor, " k"], Tensor]:
        """What gradient norms are relative to, and which models move at all: an anchored one with nothing taken away stays where it is.

        Another with nothing taken away is measured by a typical example's gradient.
        """
        if self.anchored or bool((taken > 0).all()):
            return torch.where(taken > 0, taken, 1.0), taken > 0
        typical = torch.cat([gradients.square().sum(1) for _, gradients in problem.train_gradients()]).mean().sqrt()
        typical *= abs(self.strength) / problem.n_train
        return torch.where(taken > 0, taken, typical.clamp_min(torch.finfo(taken.dtype).tiny)), torch.ones_like(taken, dtype=torch.bool)


def everything(task: Task, anchor: Anchor, weights: Float[Tensor, "k n"], *, linear: bool) -> Term:
    """A term over all training rows."""
    rows = torch.arange(len(task.examples), device=weights.device)
    return Term(FromAnchor(anchor, curved=True, linear=linear), rows, weights / len(rows))


def removed(task: Task, anchor: Anchor) -> Term:
    """(1/n) Σ_i (w_ki − 1) (ℓ_i − ℓ_i(θ_s)) over the rows whose weight differs from 1 in any model."""
    change = (task.weights - 1.0) / len(task.examples)
    rows = (change != 0).any(0).nonzero().squeeze(1)
    return Term(FromAnchor(anchor, curved=True, linear=True), rows, change[:, rows])


def preconditioner(problem: Problem, proximity: float) -> Solve | None:
    """g ↦ (G + (λ + p) I)⁻¹ g, exactly or layer by layer; None where neither can be had."""
    curvature = Curvature(problem, "ggn", proximity)
    if problem.n_params <= DENSE:
        factor, failed = torch.linalg.cholesky_ex(curvature.dense())
        return None if failed.item() else lambda gradients: torch.cholesky_solve(gradients.T, factor).T
    return _layerwise(curvature)


def _layerwise(curvature: Curvature) -> Solve | None:
    from influx.solvers.ekfac import Ekfac

    try:
        inverse = Ekfac().inverse(curvature, 0)
        _ = inverse.weights  # refuses what is singular
    except InfluxError:
        return None
    made: Callable[[Tensor], Tensor] = inverse.solve
    return lambda gradients: made(gradients.T).T.contiguous()
