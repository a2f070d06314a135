"""One encoder for both views of an example, for contrastive learning."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from influx.errors import InfluxError
from influx.models.base import Model, Shape


class TwoViews(nn.Module):
    """What `encoder` makes of the first view of each example, and behind it what it makes of the second."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs: Float[Tensor, " n 2 *shape"]) -> Float[Tensor, "n out"]:
        return torch.cat([self.encoder(inputs[:, view]) for view in (0, 1)], dim=1)


@dataclass(frozen=True)
class Views(Model):
    """Any model `of` the views, each of which it embeds in half of the outputs: `model=views model@model.of=mlp model.of.width=16`."""

    of: Model

    def module(self, shape: Shape) -> nn.Module:
        if len(shape.inputs) < 2 or shape.inputs[0] != 2 or shape.n_outputs % 2:
            raise InfluxError("model=views reads two views of each example, and these have one: use it with objective=contrastive.")
        return TwoViews(self.of.module(replace(shape, inputs=shape.inputs[1:], n_outputs=shape.n_outputs // 2)))
