"""Linear regression: one affine map to one output. With squared error and λ > 0 it is ridge regression."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from influx import rules
from influx.models.base import Model, Shape


@dataclass(frozen=True)
class Linear(Model):
    """f(x) = Wx + b with d + 1 parameters. The penalty (λ/2)‖θ‖² covers the bias too."""

    bias: bool = True

    def __post_init__(self) -> None:
        rules.check_fields("model", self)

    def module(self, shape: Shape) -> nn.Module:
        shape.require_task("linear", "regression", instead="logistic")
        return nn.Sequential(nn.Flatten(), nn.Linear(shape.n_features, shape.n_outputs, bias=self.bias))
