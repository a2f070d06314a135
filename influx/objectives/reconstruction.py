"""Reconstruction: the model is trained to give back its own input (an autoencoder)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from influx.data import Data
from influx.objectives.base import Decoding, Likely, SelfTargeted


@dataclass(frozen=True)
class Reconstruction(SelfTargeted, Decoding, Likely):
    """ℓ = ½‖x̂ − x‖², summed over the features, in squared units of the (standardised) inputs.

    Any model will do, given as many outputs as inputs: `model=mlp model.width=8` is an autoencoder with a code of 8 numbers,
    `model=linear` principal components with a penalty.
    """

    def prepare(self, data: Data) -> Data:
        return data

    def n_outputs(self, data: Data) -> int:
        return data.train_inputs[0].numel()

    def targets(self, inputs: Shaped[Tensor, " batch *shape"]) -> Float[Tensor, "batch features"]:
        return inputs.flatten(1)

    def loss(self, outputs: Float[Tensor, " *k batch out"], targets: Float[Tensor, " batch out"]) -> Float[Tensor, " *k batch"]:
        return 0.5 * (outputs - targets).square().sum(-1)

    def draw(self, outputs: Float[Tensor, "rows out"], uniform: Float[Tensor, "rows out"]) -> Float[Tensor, "rows out"]:
        """From the unit Gaussian around the reconstruction."""
        return outputs + torch.special.ndtri(uniform.clamp_min(torch.finfo(uniform.dtype).tiny)).to(outputs)

    def decoded(self, outputs: Float[Tensor, " *k batch out"]) -> Float[Tensor, " *k batch out"]:
        return outputs
