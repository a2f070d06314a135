"""Training to a stated gradient norm: Newton's method for small convex models, L-BFGS for any smooth one, K models side by side.

Both are one batched limited-memory quasi-Newton iteration (Nocedal & Wright 2006, section 7.2) with Armijo backtracking for each model
on its own; Newton starts it from the inverse Hessian of the unweighted problem, which all K models share.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from influx import rules
from influx.curvature import Curvature
from influx.errors import InfluxError, NumericalError, warn_accuracy
from influx.measurements import Loss
from influx.problem import Problem
from influx.stacking import Stack, stack, unstack
from influx.training.backprop import Backprop
from influx.training.base import Fit, Task, Training, summarise

MEMORY = 10  # pairs of the quasi-Newton history
LARGEST = 10_000  # parameters of a dense Newton Hessian: 0.8 GB in float64
TRIAL_ITERATIONS = 5  # of the trial behind a prediction
BACKTRACKS = 30
AT_LIMIT = 1e-4  # a gradient norm below this that a fresh Hessian no longer halves is the number type's limit
STALLED = 8  # iterations without a smaller objective or gradient: the number type's limit

Solve = Callable[[Float[Tensor, "k p"]], Float[Tensor, "k p"]]


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
        theta = _minimise(objective, objective.start(), _inverse(task, reference, self.weight_decay), self.tolerance, self.max_iterations)
        return objective.params(theta), []

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
            theta = _minimise(objective, theta, solve, self.tolerance, min(MEMORY, left))
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
        theta = _minimise(objective, objective.start(), None, self.tolerance, self.max_iterations, watch)
        return objective.params(theta), history


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
class Flat:
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

    def value_and_gradient(self, theta: Float[Tensor, "k p"], active: Tensor) -> tuple[Float[Tensor, " k"], Float[Tensor, "k p"]]:
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
        return value, gradient


def _minimise(
    objective: Flat,
    theta: Float[Tensor, "k p"],
    inverse: Solve | None,
    tolerance: float,
    iterations: int,
    watch: Callable[[Tensor], None] | None = None,
) -> Float[Tensor, "k p"]:
    """Batched L-BFGS with `inverse` as its initial inverse Hessian (or the usual scalar one); finished models leave the batch."""
    theta = theta.clone()
    active = torch.arange(len(theta), device=theta.device)
    point = theta.clone()
    value, gradient = objective.value_and_gradient(point, active)
    history: deque[tuple[Tensor, Tensor]] = deque(maxlen=MEMORY)
    best, stalled = gradient.norm(dim=1), torch.zeros(len(theta), device=theta.device)
    for _ in range(iterations):
        going = ~(gradient.norm(dim=1) <= tolerance) & (stalled < STALLED)  # NaN goes on, to the line search's refusal
        if not bool(going.all()):
            theta[active] = point
            if not bool(going.any()):
                break
            active, point, value, gradient, best, stalled = (t[going] for t in (active, point, value, gradient, best, stalled))
            history = deque(((s[going], y[going]) for s, y in history), maxlen=MEMORY)
        direction = _direction(gradient, history, inverse)
        moved, new_value, new_gradient = _line_search(objective, active, point, value, gradient, direction)
        history.append((moved - point, new_gradient - gradient))
        norms, fell = new_gradient.norm(dim=1), value - new_value > _rounding(value)
        point, value, gradient = moved, new_value, new_gradient
        stalled = torch.where(fell | (norms < 0.9 * best), 0.0, stalled + 1)  # a network's gradient may grow while its objective falls
        best = torch.minimum(best, norms)
        if watch is not None:
            watch(point)
    theta[active] = point
    return theta


def _direction(gradient: Float[Tensor, "k p"], history: deque[tuple[Tensor, Tensor]], inverse: Solve | None) -> Float[Tensor, "k p"]:
    """−H g by the two-loop recursion; pairs without positive curvature count for nothing."""
    q = gradient.clone()
    used = []
    for s, y in reversed(history):
        curved = (s * y).sum(1)
        good = curved > 1e-10 * s.norm(dim=1) * y.norm(dim=1)
        rho = torch.where(good, 1.0 / torch.where(good, curved, 1.0), 0.0)
        alpha = rho * (s * q).sum(1)
        q = q - alpha.unsqueeze(1) * y
        used.append((s, y, rho, alpha))
    q = inverse(q) if inverse is not None else _scaled(q, history)
    for s, y, rho, alpha in reversed(used):
        beta = rho * (y * q).sum(1)
        q = q + (alpha - beta).unsqueeze(1) * s
    descends = (q * gradient).sum(1) > 0
    return -torch.where(descends.unsqueeze(1), q, gradient)


def _scaled(q: Float[Tensor, "k p"], history: deque[tuple[Tensor, Tensor]]) -> Float[Tensor, "k p"]:
    if not history:
        return q / q.norm(dim=1, keepdim=True).clamp_min(1.0)
    s, y = history[-1]
    curved, norm = (s * y).sum(1), y.square().sum(1)
    gamma = torch.where((curved > 0) & (norm > 0), curved / norm.clamp_min(torch.finfo(q.dtype).tiny), 1.0)
    return gamma.unsqueeze(1) * q


def _rounding(value: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """How far two evaluations of the objective may differ by rounding alone."""
    return 20 * torch.finfo(value.dtype).eps * value.abs()


def _line_search(
    objective: Flat, active: Tensor, point: Tensor, value: Float[Tensor, " k"], gradient: Tensor, direction: Tensor
) -> tuple[Float[Tensor, "k p"], Float[Tensor, " k"], Float[Tensor, "k p"]]:
    """Halve each model's step until its objective falls enough; a rise within rounding error counts as none.

    Raises:
        NumericalError: the objective is not finite at the current point.
    """
    slope = (gradient * direction).sum(1)
    slack = _rounding(value)
    size = torch.ones_like(value)
    waiting: Bool[Tensor, " k"] = torch.ones_like(value, dtype=torch.bool)
    moved, new_value, new_gradient = point.clone(), value.clone(), gradient.clone()
    if not bool((torch.isfinite(value) & torch.isfinite(gradient.norm(dim=1))).all()):
        raise NumericalError("training diverged: the objective is not finite. Standardise the data (dataset.standardize=true).")
    for _ in range(BACKTRACKS):
        trial = point[waiting] + size[waiting, None] * direction[waiting]
        tried, slopes = objective.value_and_gradient(trial, active[waiting])
        fine = tried <= value[waiting] + 1e-4 * size[waiting] * slope[waiting] + slack[waiting]
        rows = waiting.nonzero().squeeze(1)[fine]
        moved[rows], new_value[rows], new_gradient[rows] = trial[fine], tried[fine], slopes[fine]
        waiting = waiting.clone()
        waiting[rows] = False
        if not bool(waiting.any()):
            break
        size = torch.where(waiting, 0.5 * size, size)
    return moved, new_value, new_gradient
