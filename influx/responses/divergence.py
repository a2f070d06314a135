"""The Bregman divergence of a loss in the space of outputs, D(f, f_s) = ℓ(f) − ℓ(f_s) − ∇ℓ(f_s)ᵀ(f − f_s), with all of its digits.

The outputs f of a moved model are near those of θ_s, so D is a small difference of large terms. For half squared error it is ½(f − f_s)²,
for softmax cross-entropy KL(p_s ‖ p): the label drops out of both, and what is left is written below in f − f_s itself. So it is for a
reconstruction's targets and those of deep clustering, whose losses are these functions of the outputs. Any other loss takes the
definition, and loses the digits that the cancellation costs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from influx.gradients import slope
from influx.objectives import CrossEntropy, Objective, SquaredError, Supervised
from influx.objectives.reconstruction import Reconstruction
from influx.objectives.self_training import SelfTraining

NEAR = 0.5  # |x| up to which e^x − 1 − x is summed as a series
TERMS = 14  # of it: 0.5¹⁴/15! is far below float64's rounding


class Divergence(NamedTuple):
    """D of each row, ∂D/∂f, and the size of the terms that D was summed from."""

    value: Float[Tensor, " *k batch"]
    slope: Float[Tensor, " *k batch out"]
    size: Float[Tensor, " *k batch"]


@dataclass(frozen=True)
class Anchor:
    """What a trained model says of its own training rows: outputs f_s and ∇ℓ(f_s), which the divergence is taken at."""

    objective: Objective
    targets: Shaped[Tensor, " n *target"]
    outputs: Float[Tensor, "n out"]

    @cached_property
    def slopes(self) -> Float[Tensor, "n out"]:
        return slope(self.objective.loss, self.outputs, self.targets)

    def divergence(self, outputs: Float[Tensor, " *k batch out"], rows: Int[Tensor, " batch"]) -> Divergence:
        """D of each of these rows."""
        made = CLOSED.get(self._known)
        return self.defined(outputs, rows, self.targets) if made is None else made(outputs.detach(), self.outputs[rows])

    def defined(
        self, outputs: Float[Tensor, " *k batch out"], rows: Int[Tensor, " batch"], targets: Shaped[Tensor, " n *target"]
    ) -> Divergence:
        """D by its definition, for any objective and any targets, in the type of `outputs`."""
        targets = targets[rows]
        targets = targets.to(outputs.dtype) if targets.is_floating_point() else targets
        before, now = self.outputs[rows].to(outputs.dtype), outputs.detach()
        pull, pulled = slope(self.objective.loss, before, targets), slope(self.objective.loss, now, targets)
        was, is_now = self.objective.loss(before, targets), self.objective.loss(now, targets)
        along = (pull * (now - before)).sum(-1)
        return Divergence(is_now - was - along, pulled - pull, is_now.abs() + was.abs() + along.abs())

    def label_dependence(self, outputs: Float[Tensor, "k n out"]) -> float:
        """The largest |difference| of (1/n) Σ_i D_i as `divergence` has it from the definition, in float64, with every label shifted by one
        class (every number by 1, every vector taken for the next row's)."""
        shifted = self._shifted()
        rows = torch.arange(len(self.targets), device=self.targets.device)
        minimised, by_definition = self.divergence(outputs, rows).value.double(), self.defined(outputs.double(), rows, shifted).value
        return (minimised - by_definition).mean(-1).abs().max().item()

    def _shifted(self) -> Shaped[Tensor, " n *target"]:
        if self.targets.dim() > 1:
            return self.targets.roll(1, 0)
        return self.targets + 1 if self.targets.is_floating_point() else (self.targets + 1) % self.outputs.shape[1]

    @property
    def _known(self) -> type[Objective]:
        """Exactly this class: one derived from it may have another loss."""
        objective = self.objective
        return type(objective.chosen(self.targets) if type(objective) is Supervised else objective)


@dataclass(frozen=True)
class FromAnchor(Objective):
    """A loss whose targets are row numbers: D of the row (when `curved`), plus ∇ℓ(f_s)ᵀ(f − f_s) (when `linear`).

    Both together are ℓ(f) − ℓ(f_s), without the cancellation.
    """

    anchor: Anchor
    curved: bool
    linear: bool

    def loss(self, outputs: Float[Tensor, " *k batch out"], targets: Int[Tensor, " batch"]) -> Float[Tensor, " *k batch"]:
        return self.sized(outputs, targets)[0]

    def sized(
        self, outputs: Float[Tensor, " *k batch out"], targets: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, " *k batch"], Float[Tensor, " *k batch"]]:
        """The loss, and the size of the terms that it is summed from, the rounding of the outputs included."""
        value, size = outputs.new_zeros(()), outputs.new_zeros(())
        if self.linear:
            slopes = self.anchor.slopes[targets]
            value = value + (slopes * (outputs - self.anchor.outputs[targets])).sum(-1)
            size = size + (slopes * outputs.detach()).abs().sum(-1)
        if self.curved:
            made, still = self.anchor.divergence(outputs, targets), outputs.detach()
            value = value + made.value + (made.slope * (outputs - still)).sum(-1)  # the last a zero that carries the derivative
            size = size + made.size + (made.slope * still).abs().sum(-1)
        return value, size


def _softmax(outputs: Float[Tensor, " *k batch out"], before: Float[Tensor, "batch out"]) -> Divergence:
    """KL(p_s ‖ p) = log(1 + Σ p_s (e^d − 1 − d)) with d = f − f_s less its mean under p_s; ∂/∂f = p − p_s = p_s (e^d − 1 − S)/(1 + S).

    The entry of the most probable class is minus the sum of the others, which do not cancel.
    """
    log_p = before.log_softmax(-1)
    p = log_p.exp()
    d = outputs - before
    d = d - (p * d).sum(-1, keepdim=True)
    grown = torch.expm1(d)
    total = (p * _beyond_linear(d, grown)).sum(-1, keepdim=True)  # S
    value, slopes = torch.log1p(total), p * (grown - total) / (1 + total)
    far = d.amax(-1, keepdim=True) > 1  # nothing is small there, and e^d may overflow
    if bool(far.any()):
        total_log = (log_p + d).logsumexp(-1, keepdim=True)
        value, slopes = torch.where(far, total_log, value), torch.where(far, (log_p + d - total_log).exp() - p, slopes)
    top = p.argmax(-1, keepdim=True).expand(*slopes.shape[:-1], 1)
    others = slopes.scatter(-1, top, 0.0).sum(-1, keepdim=True)
    return Divergence(value.squeeze(-1), slopes.scatter(-1, top, -others), value.squeeze(-1))


def _beyond_linear(x: Tensor, grown: Tensor) -> Tensor:
    """e^x − 1 − x, given e^x − 1."""
    near = x.clamp(-NEAR, NEAR)
    series = torch.ones_like(x)
    for order in range(TERMS, 2, -1):
        series = 1 + near / order * series
    return torch.where(x.abs() <= NEAR, 0.5 * near.square() * series, grown - x)


def _squared(outputs: Float[Tensor, " *k batch out"], before: Float[Tensor, "batch out"]) -> Divergence:
    d = outputs - before
    value = 0.5 * d.square().sum(-1)
    return Divergence(value, d, value)


CLOSED: dict[type[Objective], Callable[[Tensor, Tensor], Divergence]] = {
    CrossEntropy: _softmax, SelfTraining: _softmax, SquaredError: _squared, Reconstruction: _squared,
}  # fmt: skip
