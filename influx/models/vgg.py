"""torchvision's VGG-11 and VGG-13 (Simonyan & Zisserman 2015) with a head made for small images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from influx import rules
from influx.models.base import Model, Shape
from influx.vision import torchvision


@dataclass(frozen=True)
class Vgg(Model):
    """Random weights, `layers` of 11 or 13, convolutions with or without batch normalisation, one linear output layer."""

    layers: int = 11
    batch_norm: bool = False

    def __post_init__(self) -> None:
        rules.check_fields("model", self)

    def module(self, shape: Shape) -> nn.Module:
        # 1. Images under 224 pixels end in 512 numbers: the two 4096-unit layers and their dropout go, as usual on CIFAR.
        channels = shape.require_images("vgg", smallest=32)
        name = f"vgg{self.layers}" + ("_bn" if self.batch_norm else "")
        net = getattr(torchvision().models, name)(weights=None)
        first = net.features[0]
        net.features[0] = nn.Conv2d(channels, first.out_channels, 3, padding=1)
        return nn.Sequential(net.features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, shape.n_outputs))
