"""Training to a stated gradient norm: Newton's method for small convex models, L-BFGS for any smooth one, K models side by side.

Both are one batched quasi-Newton iteration (`influx.quasi_newton`); Newton starts it from the inverse Hessian of the unweighted problem,
which all K models share.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from influx import rules
from influx.curvature import Curvature
from influx.errors import InfluxError, NumericalError, warn_accuracy
from influx.measurements import Loss
from influx.problem import Problem
from influx.quasi_newton import MEMORY, Evaluated, Smooth, Solve, minimise, rounding
from influx.stacking import Stack, stack, unstack
from influx.training.backprop import Backprop
from influx.training.base import Fit, Task, Training, summarise

LARGEST = 10_000  # parameters of a dense Newton Hessian: 0.8 GB in float64
TRIAL_ITERATIONS = 5  # of the trial behind a prediction
AT_LIMIT = 1e-4  # a gradient norm below this that a fresh Hessian no longer halves is the number type's limit


@dataclass(frozen=True, kw_only=True)
class SecondOrder(Training):
    """Minimise each J_k until ‖∇J_k‖ ≤ `tolerance` over the trainable parameters.

    Args:
        tolerance: gradient norm to stop at (Euclidean, in the objective's unit per parameter); below what the number type can reach,
            training stops there and says so.
        max_iterations: at most; stopping there is reported too.
        weight_decay: λ.
    """

    weight_decay: float = 0.02
    tolerance: float = 1e-9
    max_iterations: int = 500

    most_at_once: ClassVar[int] = 512

    def __post_init__(self) -> None:
        rules.check_fields("training", self)

    @abstractmethod
    def minimise(self, task: Task) -> tuple[Stack, list[dict[str, float]]]:
        """The K solutions and, for K = 1, one history row an iteration."""

    def shuffles(self, n: int) -> bool:
        return False

    def memory(self, params: int, row: int, n: int) -> int:
        return 4 * params  # point, gradient, direction and trial; rows are taken in blocks

    def fit(self, task: Task) -> Fit:
        params, history = self.minimise(task)
        final, norms = summarise(task, params, task.buffers, self.weight_decay)
        if task.models == 1:
            history = [*history, {"epoch": len(history) + 1, **final}]
        worst = norms.max().item()
        if not worst <= self.tolerance:
            warn_accuracy(
                f"training stopped at a gradient norm of {worst:.1e}, above training.tolerance={self.tolerance:.0e}: "
                f"the limit of {norms.dtype} arithmetic, or training.max_iterations={self.max_iterations} is too few."
            )
        return Fit(params, task.buffers, norms, history)


@dataclass(frozen=True, kw_only=True)
class Newton(SecondOrder):
    """For convex models with few parameters (linear, logistic): a dense Hessian of the unweighted problem, P ≤ 10,000.

    All K models start at the unweighted optimum (the `reference`, found first when it is not given) and share its Cholesky factor. The
    optimum of a convex problem does not depend on the start: retraining from scratch and from the optimum agree to ‖∇J‖/λ.
    Cost: a few Hessians for the reference, then about 5-10 gradients and triangular solves a model.
    """

    def trial(self, iterations: int, seconds: float, models: int) -> tuple[Training, float]:
        return self, 1.0  # a stack takes less time than anything shorter that could stand for it

    def minimise(self, task: Task) -> tuple[Stack, list[dict[str, float]]]:
        size = sum(task.params[name][0].numel() for name in task.trainable)
        if size > LARGEST:
            raise InfluxError(
                f"training=newton forms a {size:,} x {size:,} Hessian; the limit is {LARGEST:,} parameters. "
                "Use training=lbfgs or training=sgd."
            )
        plain = task.models == 1 and bool((task.weights == 1).all())
        if plain and task.reference is None:
            return self._alone(task)
        reference = task.reference or unstack(self._alone(_unweighted(task))[0], 0)
        params = {**task.params, **{name: stack(reference, task.models)[name] for name in task.trainable}}
        objective = Flat(replace(task, params=params), self.weight_decay)
        solve = _inverse(task, reference, self.weight_decay)
        found = minimise(objective, objective.start(), solve, self.tolerance, self.max_iterations)
        return objective.params(found.theta), []

    def _alone(self, task: Task) -> tuple[Stack, list[dict[str, float]]]:
        """K = 1, unit weights, from the start: the Hessian is formed anew every `MEMORY` quasi-Newton steps."""
        objective = Flat(task, self.weight_decay)
        history: list[dict[str, float]] = []
        theta, left = objective.start(), self.max_iterations
        while left > 0:
            params = objective.params(theta)
            row, norms = summarise(task, params, task.buffers, self.weight_decay)
            at_limit = bool(history) and AT_LIMIT > norms.item() >= 0.5 * history[-1]["gradient_norm"]
            if norms.item() <= self.tolerance or at_limit:
                break
            history.append({"epoch": len(history) + 1, **row})
            solve = _inverse(task, unstack(params, 0), self.weight_decay)
            theta = minimise(objective, theta, solve, self.tolerance, min(MEMORY, left)).theta
            left -= MEMORY
        return objective.params(theta), history


@dataclass(frozen=True, kw_only=True)
class Lbfgs(SecondOrder):
    """Limited-memory BFGS from each model's own start: full-batch, matrix-free, for smooth models of any size."""

    weight_decay: float = 1e-3
    tolerance: float = 1e-6
    max_iterations: int = 2000

    def trial(self, iterations: int, seconds: float, models: int) -> tuple[Training, float]:
        few = min(TRIAL_ITERATIONS, iterations)
        return replace(self, max_iterations=few), few / max(1, iterations)

    def minimise(self, task: Task) -> tuple[Stack, list[dict[str, float]]]:
        objective = Flat(task, self.weight_decay)
        history: list[dict[str, float]] = []

        def note(theta: Tensor) -> None:
            row, _ = summarise(task, objective.params(theta), task.buffers, self.weight_decay)
            history.append({"epoch": len(history) + 1, **row})

        watch = note if task.models == 1 else None
        found = minimise(objective, objective.start(), None, self.tolerance, self.max_iterations, watch)
        return objective.params(found.theta), history


def _unweighted(task: Task) -> Task:
    """The first model's problem with w = 1."""
    params = {name: value[:1] for name, value in task.params.items()}
    buffers = {name: value[:1] for name, value in task.buffers.items()}
    return replace(task, params=params, buffers=buffers, weights=torch.ones_like(task.weights[:1]))


def _inverse(task: Task, params: dict[str, Tensor], weight_decay: float) -> Solve:
    """g ↦ H⁻¹g, H the Hessian of the unweighted objective at `params` over the trainable parameters.

    Raises:
        NumericalError: H is not positive definite, so the problem is not strictly convex.
    """
    buffers = {name: value[0] for name, value in task.buffers.items()}
    problem = Problem(task.module, params, buffers, task.examples, task.examples, task.objective, Loss(), weight_decay, task.trainable)
    factor, failed = torch.linalg.cholesky_ex(Curvature(problem, "hessian", 0.0).dense())
    if failed.item():
        raise NumericalError(
            "training=newton needs a strictly convex problem, and this Hessian is not positive definite. "
            "Set training.weight_decay above 0 (linear and logistic models), or use training=sgd, adam or lbfgs (networks)."
        )
    return lambda gradients: torch.cholesky_solve(gradients.T, factor).T


@dataclass(frozen=True)
class Flat(Smooth):
    """The K objectives of a task as functions of flat parameters [K, P]; `active` models of them can be evaluated alone."""

    task: Task
    weight_decay: float

    @cached_property
    def way(self) -> Backprop:
        return self.task.backprop(self.task.module)

    @cached_property
    def row_blocks(self) -> list[slice]:
        return self.task.blocks()

    def start(self) -> Float[Tensor, "k p"]:
        return torch.cat([self.task.params[name].flatten(1) for name in self.task.trainable], dim=1)

    def params(self, theta: Float[Tensor, "k p"], active: Tensor | None = None) -> Stack:
        """All parameters by name: the trainable ones from `theta`, the others as they were."""
        fixed = self.task.params if active is None else {name: value[active] for name, value in self.task.params.items()}
        shapes = {name: fixed[name].shape for name in self.task.trainable}
        parts = theta.split([shape[1:].numel() for shape in shapes.values()], dim=1)
        return {**fixed, **{name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}}

    def evaluate(self, theta: Float[Tensor, "k p"], active: Int[Tensor, " k"]) -> Evaluated:
        task, n = self.task, len(self.task.examples)
        params, weights = self.params(theta, active), task.weights[active] / n
        buffers = {name: value[active] for name, value in task.buffers.items()}
        value = 0.5 * self.weight_decay * theta.square().sum(1)
        gradient = self.weight_decay * theta
        for rows in self.row_blocks:
            batch = task.examples.take(rows)
            outputs, parts = self.way.gradients(params, buffers, batch, weights[:, rows])
            value += (task.objective.loss(outputs, batch.targets) * weights[:, rows]).sum(1)
            gradient += torch.cat([part.flatten(1) for part in parts.values()], dim=1)
        return Evaluated(value, gradient, rounding(value))
