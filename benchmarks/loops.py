"""Leave-one-out as one writes it in PyTorch: one model after another, the left-out example with weight 0. The benchmarks' plain ways.

Both take the batches that `influx` takes, so that their parameters can be compared number by number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Sampler, TensorDataset

from influx.experiment import Experiment
from influx.seeding import torch_generator
from influx.training.first_order import Sgd

Parameters = dict[str, Tensor]
SEED = 0


class Shuffle(Sampler[int]):
    """What `shuffle=True` does, with the generator of influx's batch order."""

    def __init__(self, size: int) -> None:
        self.size, self.generator = size, torch_generator(SEED, "batch order")

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(self.size, generator=self.generator).tolist()

    def __len__(self) -> int:
        return self.size


def with_loader(experiment: Experiment, left_out: int) -> Parameters:
    """The tutorial's way: `DataLoader`, `nn.Module`, `optimizer.step()`."""
    module, step, training = _start(experiment)
    data = TensorDataset(experiment.data.train_inputs, experiment.data.train_targets, _weights(experiment, left_out))
    loader = DataLoader(data, batch_size=training.batch_size, sampler=Shuffle(len(data)))
    for _ in range(training.epochs):
        for x, y, w in loader:
            step(x, y, w)
    return {name: value.detach() for name, value in module.named_parameters()}


def with_slices(experiment: Experiment, left_out: int) -> Parameters:
    """A tighter loop: batches are `x[rows]`."""
    module, step, training = _start(experiment)
    x, y, w = experiment.data.train_inputs, experiment.data.train_targets, _weights(experiment, left_out)
    generator = torch_generator(SEED, "batch order")
    for _ in range(training.epochs):
        for rows in torch.randperm(len(x), generator=generator).split(training.batch_size):
            step(x[rows], y[rows], w[rows])
    return {name: value.detach() for name, value in module.named_parameters()}


def warm_up(experiment: Experiment) -> None:
    """An epoch of each: what torch imports and chooses once belongs to no model."""
    short = replace(experiment, training=experiment.training.shortened(1))
    with_loader(short, 0)
    with_slices(short, 0)


def _start(experiment: Experiment) -> tuple[nn.Module, Callable[[Tensor, Tensor, Tensor], None], Sgd]:
    training = experiment.training
    assert isinstance(training, Sgd)
    module = experiment.module(SEED).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay)

    def step(x: Tensor, y: Tensor, w: Tensor) -> None:
        loss = (cross_entropy(module(x), y, reduction="none") * w).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return module, step, training


def _weights(experiment: Experiment, left_out: int) -> Tensor:
    inputs = experiment.data.train_inputs
    weights = torch.ones(len(inputs), dtype=inputs.dtype)
    weights[left_out] = 0
    return weights
