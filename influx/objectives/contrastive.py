"""Contrastive learning: an example's embedding is to be nearer to that of a noisy copy of it than to those of other examples (InfoNCE)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from influx import rules
from influx.data import Data
from influx.errors import InfluxError
from influx.objectives.base import Coupled
from influx.seeding import torch_generator

SAME = 1e-6  # a key whose cosine with an example's own second view is nearer to 1 is that view, or its copy's
APART = 1e-3  # relative: what float32 may make of the same embedding


@dataclass(frozen=True)
class Contrastive(Coupled):
    """The softmax cross-entropy of finding an example's second view among keys (van den Oord et al. 2018, equation 4), in nats:

        ℓ_i = −log( exp(z_i·z'_i/T) / (exp(z_i·z'_i/T) + Σ_j exp(z_i·k_j/T)) ),

    z_i and z'_i the embeddings of example i and of its noisy copy, scaled to length 1, k_j the z' of other examples. The model reads both
    views, and its outputs are both embeddings, one behind the other (`model=views`).

    Args:
        embedding: dimensions of an embedding, half of the model's outputs.
        temperature: T.
        noise: standard deviation of the normal noise on the copy, in the unit of the (standardised) inputs.
        noise_seed: draws the noise.
        negatives: how many training examples give keys at most, evenly spaced among all (with recompute=true among the batch).
        recompute: true takes the keys anew at every step, from the batch as it stands; false keeps those of the start of training.

    1. Keys are held still, as in momentum contrast (He et al. 2020), where SimCLR (Chen et al. 2020) lets gradients through them.
    2. One view asks and the other answers; SimCLR adds both directions. The first view is the example itself, SimCLR alters both.
    3. The copies are drawn once and kept, so that the objective is a function of the parameters.
    4. A key that is the example's own second view is no negative.

    With recompute=false the objective is a sum over examples, and leaving one out is weight 0; but keys that stay where training started
    keep nobody apart: all embeddings can leave them for one place. recompute=true is contrastive learning as it is meant.

    Cost and memory: a row's targets are its keys, `negatives` x (embedding + 1) numbers.
    """

    embedding: int = 8
    temperature: float = 0.5
    noise: float = 0.3
    noise_seed: int = 0
    negatives: int = 64
    recompute: bool = False

    def __post_init__(self) -> None:
        rules.check_fields("objective", self)

    def prepare(self, data: Data) -> Data:
        if data.texts or not data.train_inputs.is_floating_point():
            raise InfluxError(
                f"objective=contrastive adds noise to numbers, and {data.name} has words: use a data set of images or of numbers."
            )
        train, test = (self._views(inputs, part) for inputs, part in ((data.train_inputs, "train"), (data.test_inputs, "test")))
        return replace(data, train_inputs=train, test_inputs=test, views=True)

    def n_outputs(self, data: Data) -> int:
        return 2 * self.embedding

    def loss(
        self, outputs: Float[Tensor, " *k batch out"], targets: Float[Tensor, " *k batch keys embedding1"]
    ) -> Float[Tensor, " *k batch"]:
        first, second = self._embeddings(outputs)
        found = (first * second).sum(-1) / self.temperature
        keys, counts = targets[..., :-1], targets[..., -1]
        others = (keys @ first.unsqueeze(-1)).squeeze(-1) / self.temperature + counts.log()  # −∞ for a key that does not count
        return torch.cat([found.unsqueeze(-1), others], dim=-1).logsumexp(-1) - found

    def reference(
        self, outputs: Float[Tensor, " *k batch out"], weights: Float[Tensor, " *k batch"]
    ) -> Float[Tensor, " *k keys embedding1"]:
        keys = torch.cat([self._embeddings(outputs)[1], (weights != 0).to(outputs).unsqueeze(-1)], dim=-1)
        if keys.shape[-2] <= self.negatives:
            return keys
        return keys[..., torch.linspace(0, keys.shape[-2] - 1, self.negatives, device=keys.device).round().long(), :]

    def aims(
        self, outputs: Float[Tensor, " *k batch out"], reference: Float[Tensor, " *k keys embedding1"]
    ) -> Float[Tensor, " *k batch keys embedding1"]:
        second, keys = self._embeddings(outputs)[1], reference[..., :-1]
        others = (second @ keys.mT < 1 - SAME).to(keys)  # [*k, batch, keys]
        counts = others * reference[..., -1].unsqueeze(-2)
        return torch.cat([keys.unsqueeze(-3).expand(*counts.shape, -1), counts.unsqueeze(-1)], dim=-1)

    def _embeddings(self, outputs: Float[Tensor, " *k batch out"]) -> tuple[Float[Tensor, " *k batch e"], Float[Tensor, " *k batch e"]]:
        first, second = outputs.unflatten(-1, (2, -1)).unbind(-2)
        return normalize(first, dim=-1), normalize(second, dim=-1)

    def _views(self, inputs: Float[Tensor, " n *shape"], part: str) -> Float[Tensor, " n 2 *shape"]:
        drawn = torch.randn(inputs.shape, generator=torch_generator(self.noise_seed, "views", part), dtype=torch.float64)
        return torch.stack([inputs, inputs + self.noise * drawn.to(inputs)], dim=1)


def check_views(module: nn.Module, inputs: Float[Tensor, " n 2 *shape"]) -> None:
    """
    Raises:
        InfluxError: the module does not embed each view on its own and both alike, so that exchanged views are not exchanged embeddings.
    """
    with torch.no_grad():
        ahead, back = module(inputs), module(inputs.flip(1))
    exchanged = back.unflatten(1, (2, -1)).flip(1).flatten(1)
    if not bool((ahead - exchanged).norm() <= APART * ahead.norm()):
        raise InfluxError(
            "objective=contrastive trains a model that embeds each view of an example on its own, and this one mixes them: use model=views "
            "(the model inside it is chosen with model@model.of=<name>)."
        )
