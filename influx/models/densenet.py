"""DenseNet-BC for small images (Huang, Liu, van der Maaten & Weinberger 2017, section 4), with group normalisation by default."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from influx import rules
from influx.errors import InfluxError
from influx.models.base import ACTIVATIONS, Model, Shape

BLOCKS = 3
BOTTLENECK = 4  # times `growth`: the 1x1 convolution's filters (section 3, "Bottleneck layers")


@dataclass(frozen=True)
class DenseNet(Model):
    """Three dense blocks of (depth − 4) / 6 bottleneck layers; a 1x1 convolution halves the channels between blocks (θ = 0.5 in the paper).

    With depth 40, growth 12 and 10 classes: 176,122 parameters on colour images, 175,690 on grey ones.

    Args:
        depth: 4 more than a multiple of 6.
        growth: channels that each layer adds.
        norm: "group", groups of `growth` channels where they divide, so that no example sees another; or "batch" as in the paper, whose
            training mixes the examples of a batch, so that no method that follows the training takes it.
        activation: one of `ACTIVATIONS`; a smooth one where derivatives of the training are compared with retraining.
    """

    depth: int = 40
    growth: int = 12
    norm: str = "group"
    activation: str = "relu"

    def __post_init__(self) -> None:
        rules.check_fields("model", self)
        if self.depth < 10 or self.depth % 6 != 4:
            raise InfluxError(
                f"model.depth={self.depth} is not possible with model=densenet: it must be 10, 16, 22, ... (40 in the paper)."
            )

    def module(self, shape: Shape) -> nn.Module:
        channels = 2 * self.growth
        parts: list[nn.Module] = [nn.Conv2d(shape.require_images("densenet", smallest=8), channels, 3, padding=1, bias=False)]
        for block in range(BLOCKS):
            for _ in range((self.depth - 4) // (2 * BLOCKS)):
                parts.append(self._dense(channels))
                channels += self.growth
            if block + 1 < BLOCKS:
                parts.append(nn.Sequential(*self._normed(channels), nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)))
                channels //= 2
        parts += [*self._normed(channels), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, shape.n_outputs)]
        return _initialised(nn.Sequential(*parts))

    def _dense(self, channels: int) -> nn.Module:
        inner = BOTTLENECK * self.growth
        return Dense(
            *self._normed(channels), nn.Conv2d(channels, inner, 1, bias=False),
            *self._normed(inner), nn.Conv2d(inner, self.growth, 3, padding=1, bias=False),
        )  # fmt: skip

    def _normed(self, channels: int) -> list[nn.Module]:
        size = math.gcd(channels, self.growth)  # 1. of a group; the released group-norm variant of Chen et al. 2021 is not known to us
        norm = nn.BatchNorm2d(channels) if self.norm == "batch" else nn.GroupNorm(channels // size, channels)
        return [norm, ACTIVATIONS[self.activation]()]


class Dense(nn.Module):
    """x ↦ [x, f(x)] along the channels."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.added = nn.Sequential(*parts)

    def forward(self, x: Float[Tensor, "rows channels height width"]) -> Float[Tensor, "rows more height width"]:
        return torch.cat([x, self.added(x)], dim=1)


def _initialised(module: nn.Module) -> nn.Module:
    """As He et al. 2015, which the paper follows: normal with variance 2 / fan-in in convolutions; the output layer's bias is 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
        elif isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
    return module
