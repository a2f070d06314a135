"""torchvision's VGG-11 and VGG-13 (Simonyan & Zisserman 2015) with a head made for small images."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from influx import rules
from influx.models.base import Model, Shape
from influx.vision import torchvision

PUBLISHED = (4096, 4096, 1000)  # hidden units of the released head
DROPOUT = 0.4


@dataclass(frozen=True)
class Vgg(Model):
    """Random weights, `layers` of 11 or 13, convolutions with or without batch normalisation.

    `head` "linear" is one linear output layer; "published" is 512-4096-4096-1000-classes with dropout 0.4, as in the code released with
    Epifano et al. 2023: with 13 layers, 3 channels and 10 classes 32,404,306 parameters in place of 9,409,930...
    """

    layers: int = 11
    batch_norm: bool = False
    head: str = "linear"

    def __post_init__(self) -> None:
        rules.check_fields("model", self)

    def module(self, shape: Shape) -> nn.Module:
        # 1. Images under 224 pixels end in 512 numbers: with the linear head the two 4096-unit layers and their dropout go, as usual on
        #    CIFAR.
        channels = shape.require_images("vgg", smallest=32)
        name = f"vgg{self.layers}" + ("_bn" if self.batch_norm else "")
        net = getattr(torchvision().models, name)(weights=None)
        first = net.features[0]
        net.features[0] = nn.Conv2d(channels, first.out_channels, 3, padding=1)
        return nn.Sequential(net.features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *_head(self.head, shape.n_outputs))


def _head(kind: str, outputs: int) -> list[nn.Module]:
    """From 512 features to the outputs."""
    sizes = (512,) if kind == "linear" else (512, *PUBLISHED)
    hidden: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):  # 2. that ReLU and dropout stand behind every hidden layer, the last one too, is our reading
        hidden += [nn.Linear(fan_in, fan_out), nn.ReLU(inplace=True), nn.Dropout(DROPOUT)]
    return [*hidden, nn.Linear(sizes[-1], outputs)]
