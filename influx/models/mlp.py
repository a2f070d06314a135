"""Multilayer perceptron: `depth` hidden layers of `width` units, each with dropout if asked for, then a linear output layer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from influx import rules
from influx.models.base import ACTIVATIONS, Model, Shape


@dataclass(frozen=True)
class Mlp(Model):
    """`depth` counts hidden layers (0 is a linear model). Layers keep PyTorch's default initialisation.

    `dropout` is the share of each hidden layer's units that a training step leaves out of an example (the others grow by
    1/(1 − dropout)); it is off at estimation. With 0 there are no dropout layers, which names and numbers would show.
    """

    depth: int = 1
    width: int = 32
    activation: str = "tanh"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        rules.check_fields("model", self)

    def module(self, shape: Shape) -> nn.Module:
        sizes = [shape.n_features, *[self.width] * self.depth]
        hidden: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            hidden += [nn.Linear(fan_in, fan_out), ACTIVATIONS[self.activation]()]
            if self.dropout > 0:
                hidden.append(nn.Dropout(self.dropout))
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], shape.n_outputs))
