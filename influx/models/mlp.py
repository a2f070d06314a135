"""Multilayer perceptron: `depth` hidden layers of `width` units, then a linear output layer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from influx import rules
from influx.models.base import ACTIVATIONS, Model, Shape


@dataclass(frozen=True)
class Mlp(Model):
    """`depth` counts hidden layers (0 is a linear model). Layers keep PyTorch's default initialisation."""

    depth: int = 1
    width: int = 32
    activation: str = "tanh"

    def __post_init__(self) -> None:
        rules.check_fields("model", self)

    def module(self, shape: Shape) -> nn.Module:
        sizes = [shape.n_features, *[self.width] * self.depth]
        hidden: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            hidden += [nn.Linear(fan_in, fan_out), ACTIVATIONS[self.activation]()]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], shape.n_outputs))
