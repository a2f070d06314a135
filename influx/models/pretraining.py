"""Short trainings that find a start: an autoencoder before clusters are looked for, clusters before their targets are fixed.

They belong to a model's start and not to its training: no example has a weight in them, and nothing of them is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.adam import adam

from influx.models.base import ACTIVATIONS
from influx.objectives.reconstruction import Reconstruction
from influx.progress import progress
from influx.seeding import isolated, torch_generator

RATE = 1e-3  # Adam's step size (Kingma & Ba 2015, its default)
ROWS = 256  # examples a step (Xie et al. 2016, section 4.3)


def perceptron(sizes: list[int], activation: str) -> list[nn.Module]:
    """Linear layers from each size to the next with a nonlinearity between any two."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
    return layers[:-1]


def autoencode(encoder: nn.Module, sizes: list[int], activation: str, inputs: Float[Tensor, " n *shape"], epochs: int, seed: int) -> None:
    """Train `encoder` with a decoder of layer sizes `sizes` (the code's first), which is then dropped, to give back its inputs.

    Departure from Xie et al. 2016, section 3.2: all layers at once for a fixed number of epochs of Adam, in place of one pair of layers
    after another with dropout before all of them together.
    """
    with isolated(seed, "decoder"):
        decoder = nn.Sequential(*perceptron(sizes, activation)).to(inputs)
    objective = Reconstruction()

    def loss(rows: Int[Tensor, " rows"]) -> Float[Tensor, ""]:
        return objective.loss(decoder(encoder(inputs[rows])), objective.targets(inputs[rows])).mean()

    descend([*encoder.parameters(), *decoder.parameters()], loss, len(inputs), epochs, torch_generator(seed, "pretraining"))


def descend(
    params: list[nn.Parameter],
    loss: Callable[[Int[Tensor, " rows"]], Float[Tensor, ""]],
    n: int,
    epochs: int,
    generator: torch.Generator,
    each: Callable[[], None] = lambda: None,
) -> None:
    """Minimise the mean `loss` over rows 0 to n − 1 by `epochs` epochs of Adam in batches of 256, in place; `each` is called before every
    epoch. Parameters that the loss does not depend on stay as they are.

    Cost: a forward and a backward pass a row and epoch. Memory: three copies of the parameters and a batch's graph.
    """
    means, squares = ([torch.zeros_like(value) for value in params] for _ in range(2))
    counts = [torch.zeros((), device=value.device) for value in params]
    for _ in progress(range(epochs), "pretraining, epochs"):
        each()
        for rows in torch.randperm(n, generator=generator).to(params[0].device).split(ROWS):
            with torch.enable_grad():
                gradients = list(torch.autograd.grad(loss(rows), params))
            with torch.no_grad():
                adam(
                    list(params), gradients, means, squares, [], counts, fused=True, amsgrad=False, beta1=0.9, beta2=0.999, lr=RATE,
                    weight_decay=0.0, eps=1e-8, maximize=False,
                )  # fmt: skip
