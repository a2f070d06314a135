"""Softmax (multinomial logistic) regression: one affine map to one logit a class."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from influx import rules
from influx.models.base import Model, Shape


@dataclass(frozen=True)
class Logistic(Model):
    """Logits Wx + b with C(d + 1) parameters, also for two classes.

    With C = 2 the optimum is that of binary logistic regression on the difference of the two rows, with penalty λ/2 in place of λ.
    The penalty (λ/2)‖θ‖² covers the bias too; it also makes the otherwise singular softmax Hessian definite.
    """

    bias: bool = True

    def __post_init__(self) -> None:
        rules.check_fields("model", self)

    def module(self, shape: Shape) -> nn.Module:
        shape.require_task("logistic", "classification", instead="linear")
        return nn.Sequential(nn.Flatten(), nn.Linear(shape.n_features, shape.n_outputs, bias=self.bias))
