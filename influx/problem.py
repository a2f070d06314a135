"""A fitted problem: model, parameters, data, training objective and measurement, as functions of a flat parameter vector.

Everything an estimator needs and nothing else: no data set, no training, no configuration. The module is only ever run through
`torch.func.functional_call`, in evaluation mode; it is never changed.

Symbols: θ [P] the selected parameters (all of them, or the output layer's), n = n_train, λ = weight_decay,
`J(θ) = (1/n) Σ_i ℓ_i(θ) + (λ/2)‖θ‖²`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from influx import layered
from influx.measurements import Measurement
from influx.models.base import last_layer
from influx.objectives import Objective
from influx.stacking import blocks, bytes_per_row


@dataclass(frozen=True)
class Examples:
    """Inputs and their targets, on the device and in the type of the computation."""

    inputs: Shaped[Tensor, " n *shape"]
    targets: Shaped[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: slice | Tensor) -> Examples:
        return Examples(self.inputs[rows], self.targets[rows])


@dataclass(frozen=True)
class Problem:
    """One trained model with its data; `select` narrows the parameters that count to the output layer's."""

    module: nn.Module
    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    train: Examples
    test: Examples
    objective: Objective
    measurement: Measurement
    weight_decay: float
    selected: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.selected:
            object.__setattr__(self, "selected", tuple(self.params))

    def select(self, which: str) -> Problem:
        """`which` is "all" or "last_layer": the parameters that may move; the others stay where training left them."""
        return replace(self, selected=tuple(self.params) if which == "all" else last_layer(self.module))

    @property
    def n_train(self) -> int:
        return len(self.train)

    @property
    def n_test(self) -> int:
        """Columns of an influence matrix: 1 for a measurement of the whole test set."""
        return 1 if self.measurement.whole_set else len(self.test)

    @property
    def n_params(self) -> int:
        return sum(self.params[name].numel() for name in self.selected)

    @cached_property
    def theta(self) -> Float[Tensor, " p"]:
        return torch.cat([self.params[name].reshape(-1) for name in self.selected])

    def unflatten(self, theta: Float[Tensor, " p"]) -> dict[str, Tensor]:
        """The selected parameters by name, as views of a flat vector."""
        shapes = [self.params[name].shape for name in self.selected]
        parts = theta.split([math.prod(shape) for shape in shapes])
        return {name: part.view(shape) for name, part, shape in zip(self.selected, parts, shapes, strict=True)}

    def outputs(self, theta: Float[Tensor, " p"], inputs: Float[Tensor, " batch *shape"]) -> Float[Tensor, "batch out"]:
        state = {**self.params, **self.buffers, **self.unflatten(theta)}
        return functional_call(self.module, state, (inputs,))

    def losses(self, theta: Float[Tensor, " p"], examples: Examples) -> Float[Tensor, " batch"]:
        """ℓ_i(θ), without the regulariser."""
        return self.objective.loss(self.outputs(theta, examples.inputs), examples.targets)

    def measure(self, theta: Float[Tensor, " p"], examples: Examples) -> Float[Tensor, " batch"]:
        """m_t(θ) of each test example, before any mean over the set."""
        return self.measurement.value(self.outputs(theta, examples.inputs), examples.targets, self.objective)

    @cached_property
    def bytes_per_row(self) -> int:
        """Bytes of all layers' outputs for one example: what a forward pass of a row keeps."""
        return bytes_per_row(self.module, self.params, self.buffers, self.train.inputs)

    def train_gradients(self) -> Iterator[tuple[slice, Float[Tensor, "batch p"]]]:
        """∇ℓ_i for every training example, in blocks of rows. Cost: one forward and backward pass an example."""
        yield from self._gradients(self.objective.loss, self.train)

    def test_gradients(self) -> Float[Tensor, "n_test p"]:
        """∇m_t for every test example, or its mean when the measurement is of the whole set. Memory: n_test x P numbers."""

        def value(outputs: Tensor, targets: Tensor) -> Tensor:
            return self.measurement.value(outputs, targets, self.objective)

        made = (gradients for _, gradients in self._gradients(value, self.test))
        if self.measurement.whole_set:
            return torch.stack([gradients.sum(0) for gradients in made]).sum(0, keepdim=True) / len(self.test)
        return torch.cat(list(made))

    def _gradients(self, value: Callable[[Tensor, Tensor], Tensor], examples: Examples) -> Iterator[tuple[slice, Float[Tensor, "batch p"]]]:
        """Gradients of `value(outputs, targets)`, an example at a time: by layer products where the module allows, else by torch.func."""

        def one(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return value(self.outputs(theta, x.unsqueeze(0)), y.unsqueeze(0)).squeeze(0)

        chained = layered.fits(self.module)
        for rows in blocks(len(examples), 4 * self.bytes_per_row + 2 * self.theta.nbytes):
            block = examples.take(rows)
            if chained:
                yield rows, layered.gradients(self.module, self.params, self.selected, block.inputs, block.targets, value)
            else:
                yield rows, vmap(grad(one), in_dims=(None, 0, 0))(self.theta, block.inputs, block.targets)
