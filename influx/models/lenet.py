"""LeNet-5 (LeCun et al. 1998, section II): two 5x5 convolutions with pooling, then 120 and 84 units."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from influx import rules
from influx.models.base import ACTIVATIONS, Model, Shape


@dataclass(frozen=True)
class LeNet(Model):
    """28x28 grey images and 10 classes give 61,706 parameters (the first convolution pads by 2, as 28x28 stands in for 32x32)."""

    activation: str = "tanh"

    def __post_init__(self) -> None:
        rules.check_fields("model", self)

    def module(self, shape: Shape) -> nn.Module:
        # 1. Average pooling without trainable coefficients, full connection between feature maps, and a linear output layer
        #    instead of radial basis functions: the common modern form of the 1998 network.
        # 2. The paper's third convolution, 120 maps of 5x5, sees maps of 5x5 and so is the first linear layer here, weight for weight, in
        #    initialisation too; the fragility study of Epifano et al. 2023 writes it as a convolution. On 28x28 images that study's network
        #    is this one (it pads the images, this the convolution); on 32x32 it pads nothing and this one does (6x6 maps, 576 to 120).
        channels = shape.require_images("lenet", smallest=14)
        height, width = ((side // 2 - 4) // 2 for side in shape.inputs[1:])
        act = ACTIVATIONS[self.activation]
        return nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=2), act(), nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5), act(), nn.AvgPool2d(2), nn.Flatten(),
            nn.Linear(16 * height * width, 120), act(), nn.Linear(120, 84), act(), nn.Linear(84, shape.n_outputs),
        )  # fmt: skip
