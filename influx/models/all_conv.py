"""The small all-convolution network of Koh & Liang 2017 (8 filters in each hidden layer)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from influx import rules
from influx.models.base import ACTIVATIONS, Model, Shape


@dataclass(frozen=True)
class AllConv(Model):
    """3x3 convolutions of `width` filters (the second and fourth with stride 2), one 1x1 convolution, mean over positions, linear output.

    With width 8, 28x28 grey images and 10 classes: 2,578 parameters.
    """

    width: int = 8
    activation: str = "tanh"

    def __post_init__(self) -> None:
        rules.check_fields("model", self)

    def module(self, shape: Shape) -> nn.Module:
        # 1. A last 1x1 convolution followed by the mean over positions is a linear layer after the mean: the same function, written
        #    so that "the last layer" means the same in every model.
        channels = shape.require_images("all_conv", smallest=4)
        layers: list[nn.Module] = []
        for size, stride in ((3, 1), (3, 2), (3, 1), (3, 2), (3, 1), (1, 1)):
            layers += [nn.Conv2d(channels, self.width, size, stride=stride, padding=size // 2), ACTIVATIONS[self.activation]()]
            channels = self.width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.width, shape.n_outputs))
