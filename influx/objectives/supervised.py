"""Objectives that compare outputs with the data set's own answers: cross-entropy for labels, half squared error for numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import softplus

from influx.objectives.base import Objective, standing


def log_odds(outputs: Float[Tensor, " *k batch out"], labels: Int[Tensor, " batch"]) -> Float[Tensor, " *k batch"]:
    """log(p_y / (1 − p_y)) of the label's probability under softmax: `z_y − logsumexp_{j≠y} z_j`."""
    is_label = labels.unsqueeze(-1) == torch.arange(outputs.shape[-1], device=outputs.device)  # [batch, out]
    own = outputs.gather(-1, labels.expand(outputs.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return own - outputs.masked_fill(is_label, -math.inf).logsumexp(-1)


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Softmax cross-entropy on logits, in nats: ℓ = log(1 + exp(−log_odds)).

    Written through the label's log-odds because the usual form differentiates to `p_y − 1` for the label, which cancels in
    float32 on well-fitted rows (many become exactly 0); this one differentiates to minus the sum of the other probabilities.
    """

    def loss(self, outputs: Float[Tensor, " *k batch out"], targets: Int[Tensor, " batch"]) -> Float[Tensor, " *k batch"]:
        # softplus is exactly linear beyond its threshold: at 50 that is no error in either type. (logaddexp is NaN in its second
        # derivative on rows with p_y = 1.)
        return softplus(-log_odds(outputs, targets), threshold=50.0)


@dataclass(frozen=True)
class SquaredError(Objective):
    """ℓ = ½(ŷ − y)², in squared units of the (standardised) target; the model has one output."""

    def loss(self, outputs: Float[Tensor, " *k batch 1"], targets: Float[Tensor, " batch"]) -> Float[Tensor, " *k batch"]:
        return 0.5 * (outputs.squeeze(-1) - targets).square()


@dataclass(frozen=True)
class Supervised(Objective):
    """Cross-entropy when the targets are labels, half squared error when they are numbers."""

    def loss(self, outputs: Float[Tensor, " *k batch out"], targets: Shaped[Tensor, " batch"]) -> Float[Tensor, " *k batch"]:
        return self.chosen(targets).loss(outputs, targets)

    def chosen(self, targets: Shaped[Tensor, " batch"]) -> Objective:
        return SquaredError() if targets.is_floating_point() else CrossEntropy()


def weighted_slope(
    objective: Objective, outputs: Float[Tensor, "k out batch"], targets: Shaped[Tensor, " batch"], weights: Float[Tensor, "k batch"]
) -> Float[Tensor, "k out batch"]:
    """`w[k, b] ∂ℓ_b/∂f` of K models' outputs f, rows last: what back-propagation starts from.

    By autograd for any objective; `SLOPES` has closed forms, for speed alone.
    """
    known = type(objective.chosen(targets) if type(objective) is Supervised else objective)  # exactly: a subclass may have another loss
    if known in SLOPES:
        return SLOPES[known](outputs, targets, weights)
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_(True)
        total = (objective.loss(leaf.mT, standing(objective, leaf.mT, targets, weights)) * weights).sum()
        slope = torch.autograd.grad(total, leaf)[0]
        return slope.clone(memory_format=torch.contiguous_format)  # back-propagation overwrites it: it may be an expanded constant


def _residual(
    outputs: Float[Tensor, "k out batch"], labels: Int[Tensor, " batch"], weights: Float[Tensor, "k batch"]
) -> Float[Tensor, "k out batch"]:
    """w (p − onehot), the label's entry as minus the sum of the other probabilities."""
    classes = torch.arange(outputs.shape[1], device=labels.device)
    label = (classes.unsqueeze(1) == labels).to(outputs.dtype)  # [out, batch]
    slope = outputs.softmax(1).mul_(1 - label)
    slope.addcmul_(label, slope.sum(1, keepdim=True), value=-1)
    return slope.mul_(weights.unsqueeze(1))


def _difference(
    outputs: Float[Tensor, "k 1 batch"], targets: Float[Tensor, " batch"], weights: Float[Tensor, "k batch"]
) -> Float[Tensor, "k 1 batch"]:
    return (outputs - targets) * weights.unsqueeze(1)


SLOPES: dict[type[Objective], Callable[[Tensor, Tensor, Tensor], Tensor]] = {CrossEntropy: _residual, SquaredError: _difference}
