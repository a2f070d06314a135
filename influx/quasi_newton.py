"""Minimising K functions side by side: limited-memory BFGS (Nocedal & Wright 2006, section 7.2), batched.

Each function has its own step by Armijo backtracking and its own end. An inverse of a matrix near the Hessian, shared by all K, can stand
in for the usual multiple of the identity that the iteration starts from: a few iterations then do the work of hundreds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from influx.errors import NumericalError

MEMORY = 10  # pairs of the history
BACKTRACKS = 30
NEGLIGIBLE = 1e-9  # share of the fall so far that is none: at the kinks of relu and selu networks gradients have no zero to go to
OVERSHOOT = 0.8  # 1 − 2δ with δ = 0.1
STALLED = 8  # iterations without a smaller objective or gradient: the number type's limit

Solve = Callable[[Float[Tensor, "k p"]], Float[Tensor, "k p"]]


class Evaluated(NamedTuple):
    """K functions at K points; `rounding` is how far two evaluations of a value may differ by rounding alone."""

    value: Float[Tensor, " k"]
    gradient: Float[Tensor, "k p"]
    rounding: Float[Tensor, " k"]

    def take(self, rows: Tensor) -> Evaluated:
        return Evaluated(*(part[rows] for part in self))


class Smooth(ABC):
    """K differentiable functions of P numbers each."""

    @abstractmethod
    def evaluate(self, theta: Float[Tensor, "k p"], active: Int[Tensor, " k"]) -> Evaluated:
        """Those functions that `active` numbers, each at its own point."""


@dataclass(frozen=True)
class Minimum:
    """Where each function's iteration ended: the point, the gradient's norm there and the iterations it took."""

    theta: Float[Tensor, "k p"]
    gradient_norm: Float[Tensor, " k"]
    iterations: Int[Tensor, " k"]


def rounding(size: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """The rounding of a value that is a sum of terms of this size together."""
    return 20 * torch.finfo(size.dtype).eps * size.abs()


def minimise(
    objective: Smooth,
    theta: Float[Tensor, "k p"],
    inverse: Solve | None,
    tolerance: float | Float[Tensor, " k"],
    iterations: int,
    watch: Callable[[Tensor], None] | None = None,
    strict: bool = False,
    reach: float = math.inf,
) -> Minimum:
    """Go down from `theta` until each gradient norm is at most its `tolerance`; what is done leaves the batch.

    `inverse` applies the first inverse Hessian of the iteration (null: the usual scalar one); `watch` sees the points after each
    iteration. A function that no longer falls, nor its gradient, is left where it is: its norm says so. That is at a gradient of about the
    root of the rounding, as values tell steps apart no further; `strict` also asks each step's slope, and goes on to the rounding itself
    (or to a kink).
    One that is more than `reach` times its first gradient away from its start has no minimum there, and is left as well.

    Cost: one or two evaluations an iteration. Memory: 2 x MEMORY + 5 vectors of P numbers a function.

    Raises:
        NumericalError: an objective is not finite.
    """
    theta, counts, norms = theta.clone(), torch.zeros(len(theta), dtype=torch.int64, device=theta.device), theta.new_zeros(len(theta))
    limit = torch.as_tensor(tolerance, dtype=theta.dtype, device=theta.device).expand(len(theta))
    active = torch.arange(len(theta), device=theta.device)
    point = theta.clone()
    now = objective.evaluate(point, active)
    history: deque[tuple[Tensor, Tensor]] = deque(maxlen=MEMORY)
    best, stalled = now.gradient.norm(dim=1), torch.zeros(len(theta), device=theta.device)
    begun, near, first = theta.clone(), reach * best, now.value
    for _ in range(iterations):
        going = ~(now.gradient.norm(dim=1) <= limit[active]) & (stalled < STALLED)  # NaN goes on, to the line search's refusal
        if reach < math.inf:
            going &= (point - begun[active]).norm(dim=1) <= near[active]
        if not bool(going.all()):
            theta[active], norms[active] = point, now.gradient.norm(dim=1)
            if not bool(going.any()):
                break
            active, point, best, stalled, now = active[going], point[going], best[going], stalled[going], now.take(going)
            history = deque(((s[going], y[going]) for s, y in history), maxlen=MEMORY)
        moved, then = _line_search(objective, active, point, now, _direction(now.gradient, history, inverse), strict)
        history.append((moved - point, then.gradient - now.gradient))
        noise = torch.maximum(now.rounding, NEGLIGIBLE * (first[active] - now.value)) if strict else now.rounding
        size, fell = then.gradient.norm(dim=1), now.value - then.value > noise
        point, now = moved, then
        stalled = torch.where(fell | (size < 0.9 * best), 0.0, stalled + 1)  # a network's gradient may grow while its objective falls
        best = torch.minimum(best, size)
        counts[active] += 1
        if watch is not None:
            watch(point)
    theta[active], norms[active] = point, now.gradient.norm(dim=1)
    return Minimum(theta, norms, counts)


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


def _line_search(
    objective: Smooth,
    active: Int[Tensor, " k"],
    point: Float[Tensor, "k p"],
    now: Evaluated,
    direction: Float[Tensor, "k p"],
    strict: bool,
) -> tuple[Float[Tensor, "k p"], Evaluated]:
    """Halve each step until its function falls enough; a rise within rounding error counts as none. Where values say nothing any more a
    step may be far too long: `strict` halves it until it ends no steeper uphill than OVERSHOOT times its beginning downhill (the
    approximate Wolfe condition of Hager & Zhang 2005, section 3).

    Raises:
        NumericalError: an objective is not finite at the current point.
    """
    slope = (now.gradient * direction).sum(1)
    size = torch.ones_like(now.value)
    waiting: Bool[Tensor, " k"] = torch.ones_like(now.value, dtype=torch.bool)
    moved, then = point.clone(), Evaluated(*(part.clone() for part in now))
    if not bool((torch.isfinite(now.value) & torch.isfinite(now.gradient.norm(dim=1))).all()):
        raise NumericalError("training diverged: the objective is not finite. Standardise the data (dataset.standardize=true).")
    for _ in range(BACKTRACKS):
        trial = point[waiting] + size[waiting, None] * direction[waiting]
        tried = objective.evaluate(trial, active[waiting])
        fine = tried.value <= now.value[waiting] + 1e-4 * size[waiting] * slope[waiting] + now.rounding[waiting]
        if strict:
            fine &= (tried.gradient * direction[waiting]).sum(1) <= OVERSHOOT * slope[waiting].abs()
        rows = waiting.nonzero().squeeze(1)[fine]
        moved[rows] = trial[fine]
        for part, new in zip(then, tried, strict=True):
            part[rows] = new[fine]
        waiting = waiting.clone()
        waiting[rows] = False
        if not bool(waiting.any()):
            break
        size = torch.where(waiting, 0.5 * size, size)
    return moved, then
