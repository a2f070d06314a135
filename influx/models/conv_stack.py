"""VGG's plan at the size of small images (Simonyan & Zisserman 2015, section 2.1): blocks of 3x3 convolutions, each halved by pooling."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from influx import rules
from influx.models.base import ACTIVATIONS, Model, Shape


@dataclass(frozen=True)
class ConvStack(Model):
    """`blocks` blocks of `convolutions` 3x3 convolutions with an activation behind each and a 2x2 maximum at the end; the first block has
    `width` filters, each later one twice those before it. Then a hidden layer of `units`, and the linear output layer.

    `dropout` is the share of the hidden layer's units that a training step leaves out, as in VGG's own (0.5 there); 0: no such layer.
    28x28 grey images and 10 classes give 218,490 parameters.
    """

    blocks: int = 2
    convolutions: int = 2
    width: int = 16
    units: int = 128
    activation: str = "relu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        rules.check_fields("model", self)

    def module(self, shape: Shape) -> nn.Module:
        # 1. VGG has five blocks, of 64 to 512 filters, and two hidden layers of 4096: images of 28x28 have room for two or three, and one.
        # 2. Weights keep PyTorch's default initialisation; no batch normalisation, as in VGG.
        channels = shape.require_images("conv_stack", smallest=2**self.blocks)
        layers: list[nn.Module] = []
        widths = [self.width * 2**block for block in range(self.blocks)]
        for given, width in pairwise([channels, *widths]):
            for fan_in in (given, *[width] * (self.convolutions - 1)):
                layers += [nn.Conv2d(fan_in, width, 3, padding=1), ACTIVATIONS[self.activation]()]
            layers.append(nn.MaxPool2d(2))
        height, breadth = (side // 2**self.blocks for side in shape.inputs[1:])
        layers += [nn.Flatten(), nn.Linear(widths[-1] * height * breadth, self.units), ACTIVATIONS[self.activation]()]
        if self.dropout > 0:
            layers.append(nn.Dropout(self.dropout))
        return nn.Sequential(*layers, nn.Linear(self.units, shape.n_outputs))
