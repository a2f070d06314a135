"""Gradients of K models side by side: for each, `Σ_b w[k, b] ∂ℓ_b/∂θ_k` over the rows b of one batch that all of them see.

Chains of linear and elementwise layers are differentiated by hand, with activations as [k, units, batch]: the first layer of all K
models is one matrix product forward and one backward, later layers are batched products, and no graph is kept. Anything else goes
through autograd, side by side or one by one. All give the same numbers to rounding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from influx import layered, stacking
from influx.errors import InfluxError
from influx.objectives import Objective, weighted_slope
from influx.objectives.base import standing
from influx.problem import Examples
from influx.seeding import SameDraws
from influx.stacking import Stack
from influx.training.kernels import product, swift, tanh_

aten = torch.ops.aten


@dataclass(frozen=True)
class Backprop(ABC):
    """Gradients of `objective` with respect to the `trainable` parameters of `module`."""

    module: nn.Module
    objective: Objective
    trainable: tuple[str, ...]

    @abstractmethod
    def gradients(
        self, params: Stack, buffers: Stack, batch: Examples, weights: Float[Tensor, "k batch"]
    ) -> tuple[Float[Tensor, "k batch out"], Stack]:
        """The outputs, detached, and the gradients by name, contiguous.

        Cost: a forward and a backward pass. Memory: the layer outputs of K x batch rows, twice by hand, some four times by autograd.
        """


def backprop(module: nn.Module, objective: Objective, trainable: tuple[str, ...], side_by_side: bool) -> Backprop:
    """The way for this module; `side_by_side` chooses between `torch.func.vmap` and a loop over the models where both are right."""
    if layered.fits(module):
        return ByHand(module, objective, trainable)
    way = SideBySide if side_by_side and not stacking.mixes_rows(module) else OneByOne
    return way(module, objective, trainable)


class SideBySide(Backprop):
    """Autograd through all K models at once: any module that `stacking.outputs` can run."""

    def gradients(
        self, params: Stack, buffers: Stack, batch: Examples, weights: Float[Tensor, "k batch"]
    ) -> tuple[Float[Tensor, "k batch out"], Stack]:
        leaves = {name: value.detach().requires_grad_(name in self.trainable) for name, value in params.items()}
        outputs = stacking.outputs(self.module, leaves, buffers, batch.inputs)
        aims = standing(self.objective, outputs, batch.targets, weights)
        total = (self.objective.loss(outputs, aims) * weights).sum()  # the K models share no parameter: one sum, K gradients
        found = torch.autograd.grad(total, [leaves[name] for name in self.trainable])
        return outputs.detach(), {name: value.contiguous() for name, value in zip(self.trainable, found, strict=True)}


class OneByOne(Backprop):
    """Autograd through one model after another, which convolutions on a CPU prefer.

    Rows of weight 0 are not fed to a module that mixes rows, so that they do not enter its batch statistics: a left-out example is then
    truly absent. Stochastic layers draw the same for every model, as they do side by side; in such a module the draws of a batch's later
    rows move up by one when a row is left out.
    """

    @cached_property
    def swift(self) -> nn.Module:
        return swift(self.module)

    def gradients(
        self, params: Stack, buffers: Stack, batch: Examples, weights: Float[Tensor, "k batch"]
    ) -> tuple[Float[Tensor, "k batch out"], Stack]:
        mixes = stacking.mixes_rows(self.module) and self.module.training
        found: Stack = {name: torch.empty_like(params[name]) for name in self.trainable}
        outputs: list[Tensor] = []
        with SameDraws(batch.inputs.device) as draws:
            for k in range(len(weights)):
                draws.again()
                rows = weights[k].nonzero().squeeze(1) if mixes else torch.arange(len(batch), device=weights.device)
                leaves = {name: value[k].detach().requires_grad_(name in self.trainable) for name, value in params.items()}
                own = {name: value[k] for name, value in buffers.items()}  # views: running statistics are updated in place
                result, gradients = self._alone(leaves, own, batch.take(rows) if mixes else batch, weights[k, rows])
                for name, value in gradients.items():
                    found[name][k] = value
                outputs.append(result.new_full((len(batch), result.shape[1]), torch.nan).index_copy(0, rows, result))
        widest = max(outputs, key=lambda result: result.shape[1])
        return torch.stack([result.expand_as(widest) for result in outputs]), found

    def _alone(
        self, leaves: dict[str, Tensor], buffers: dict[str, Tensor], batch: Examples, weights: Float[Tensor, " rows"]
    ) -> tuple[Float[Tensor, "rows out"], dict[str, Tensor]]:
        """Outputs and gradients of one model; an empty batch has none."""
        if not len(batch):
            return batch.inputs.new_empty(0, 1), {name: torch.zeros_like(leaves[name]) for name in self.trainable}
        try:
            result = functional_call(self.module if batch.inputs.is_cuda else self.swift, (leaves, buffers), (batch.inputs,))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise InfluxError(
                "what is left of a batch has one row, which batch normalisation cannot take: choose another training.batch_size."
            ) from error
        aims = standing(self.objective, result, batch.targets, weights)
        total = (self.objective.loss(result, aims) * weights).sum()
        found = torch.autograd.grad(total, [leaves[name] for name in self.trainable])
        return result.detach(), dict(zip(self.trainable, found, strict=True))


class ByHand(Backprop):
    """Chains of linear layers with at most one elementwise function behind each."""

    @torch.no_grad()
    def gradients(
        self, params: Stack, buffers: Stack, batch: Examples, weights: Float[Tensor, "k batch"]
    ) -> tuple[Float[Tensor, "k batch out"], Stack]:
        layers = _forward(self.module, params, batch.inputs)
        outputs = layers[-1].result
        above = weighted_slope(self.objective, outputs, batch.targets, weights)
        found: Stack = {}
        for layer in reversed(layers):
            delta = layer.backward(above)
            found |= {name: layer.gradient(name, delta) for name in layer.names if name in self.trainable}
            if len(found) == len(self.trainable):
                break
            above = torch.bmm(layer.weight.mT, delta)
        return outputs.mT, {name: found[name] for name in self.trainable}


class Layer(NamedTuple):
    """A linear layer and the function behind it, as they were on one batch; `kept` is what the function's derivative needs."""

    name: str
    weight: Float[Tensor, "k out in"]
    inputs: Float[Tensor, "*k in batch"]
    function: nn.Module | None
    kept: Float[Tensor, "k out batch"]
    result: Float[Tensor, "k out batch"]

    @property
    def names(self) -> tuple[str, str]:
        return f"{self.name}.weight", f"{self.name}.bias"

    def backward(self, above: Float[Tensor, "k out batch"]) -> Float[Tensor, "k out batch"]:
        """From the derivative by the result to δ, the one by what the linear layer gives; overwrites its argument."""
        return above if self.function is None else ELEMENTWISE[type(self.function)].backward(self.function, above, self.kept)

    def gradient(self, name: str, delta: Float[Tensor, "k out batch"]) -> Float[Tensor, "k out *in"]:
        """δ hᵀ for the weight, Σ_b δ for the bias."""
        if name == self.names[1]:
            return delta.sum(2)
        if self.inputs.dim() == 3:
            return torch.bmm(delta, self.inputs.mT)
        return product(delta.flatten(0, 1), self.inputs.T).view_as(self.weight)


class Elementwise(NamedTuple):
    """`forward` may overwrite its argument when `of_result`: its derivative is then computed from its result, else from its argument."""

    forward: Callable[[nn.Module, Tensor], Tensor]
    backward: Callable[[nn.Module, Tensor, Tensor], Tensor]
    of_result: bool = True


SELU = (1.6732632423543772, 1.0507009873554805, 1.0)  # α, scale, input scale (Klambauer et al. 2017)

ELEMENTWISE: dict[type[nn.Module], Elementwise] = {
    nn.Tanh: Elementwise(lambda _, z: tanh_(z), lambda _, above, y: aten.tanh_backward.grad_input(above, y, grad_input=above)),
    nn.ReLU: Elementwise(lambda _, z: z.relu_(), lambda _, above, y: aten.threshold_backward.grad_input(above, y, 0, grad_input=above)),
    nn.Sigmoid: Elementwise(lambda _, z: z.sigmoid_(), lambda _, above, y: aten.sigmoid_backward.grad_input(above, y, grad_input=above)),
    nn.SELU: Elementwise(
        lambda _, z: torch.selu_(z), lambda _, above, y: aten.elu_backward.grad_input(above, *SELU, True, y, grad_input=above)
    ),
    nn.SiLU: Elementwise(lambda _, z: nn.functional.silu(z), lambda _, above, z: aten.silu_backward(above, z), of_result=False),
    nn.GELU: Elementwise(
        lambda f, z: f(z), lambda f, above, z: aten.gelu_backward(above, z, approximate=f.approximate), of_result=False
    ),
    nn.Identity: Elementwise(lambda _, z: z, lambda _, above, y: above),
}  # fmt: skip


def _forward(module: nn.Module, params: Stack, inputs: Float[Tensor, " batch *shape"]) -> list[Layer]:
    layers: list[Layer] = []
    below: Tensor = inputs.flatten(1).T  # [in, batch], shared by all models until the first linear layer
    for name, part in stacking.chain(module):
        if isinstance(part, nn.Linear):
            weight = params[f"{name}.weight"]
            z = _linear(weight, params.get(f"{name}.bias"), below)
            layers.append(Layer(name, weight, below, None, z, z))
        elif not isinstance(part, nn.Flatten):
            rule, last = ELEMENTWISE[type(part)], layers[-1]
            result = rule.forward(part, last.result)
            layers[-1] = last._replace(function=part, kept=result if rule.of_result else last.result, result=result)
        below = layers[-1].result if layers else below
    return layers


def _linear(weight: Float[Tensor, "k out in"], bias: Float[Tensor, "k out"] | None, below: Tensor) -> Float[Tensor, "k out batch"]:
    shared = below.dim() == 2
    z = product(weight.flatten(0, 1), below).view(*weight.shape[:2], -1) if shared else torch.bmm(weight, below)
    return z if bias is None else z.add_(bias.unsqueeze(2))
