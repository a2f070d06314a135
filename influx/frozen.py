"""Models whose output layer alone moves: what enters that layer is computed once, and the layer is then a small model on its own inputs.

A network f(x) = W φ(x) + b with φ frozen has the same losses, gradients, batches, example weights and weight decay as the linear model
(W, b) on the inputs φ(x), so that training it is training the other to rounding, at the cost of the output layer. Frozen layers are in
evaluation mode (dropout off, batch statistics fixed), hence φ is one function of an example for all models and steps.

Whether a module is of that form is decided by running it on two rows at two settings of its output layer, never by its looks alone.
Anything else is trained as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from influx import gradients, stacking
from influx.models.base import last_layer
from influx.problem import AGREEMENT, Examples, Problem
from influx.stacking import Stack, unstack
from influx.training import Task

ROWS = 2  # of the check


@dataclass(frozen=True)
class OutputLayer:
    """The linear output layer of `module` at the frozen parameters and buffers `state`; `names` are its parameters' in the module, weight
    first."""

    module: nn.Module
    state: dict[str, Tensor]
    layer: gradients.Layer
    names: tuple[str, ...]

    @property
    def own(self) -> dict[str, str]:
        """The module's names of the parameters by those that `alone` has for them."""
        return dict(zip(("0.weight", "0.bias"), self.names, strict=False))

    def alone(self) -> nn.Module:
        """The layer as a module."""
        weight = self.state[self.names[0]]
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=len(self.names) == 2, dtype=weight.dtype, device="meta")
        return nn.Sequential(linear.to_empty(device=weight.device)).eval()

    def features(self, inputs: Shaped[Tensor, " n *shape"]) -> Float[Tensor, "n features"]:
        """φ. Cost: one forward pass an example."""
        each = 4 * stacking.bytes_per_row(self.module, self.state, {}, inputs)
        made = [gradients.forward(self.module, (self.layer,), self.state, inputs[rows]) for rows in stacking.blocks(len(inputs), each)]
        return torch.cat([kept.inputs[0].squeeze(1) for kept in made])

    def own_part(self, params: Stack) -> Stack:
        return {name: params[whole] for name, whole in self.own.items()}


def find(module: nn.Module, state: dict[str, Tensor], inputs: Shaped[Tensor, " n *shape"]) -> OutputLayer | None:
    """The output layer, None when there are no layers below it or `f(x) = W φ(x) + b` does not hold for a fixed φ."""
    names = last_layer(module)
    found = gradients.find_layers(module, {name: state[name].shape for name in names})
    if found is None or found[0].kind != "linear" or len(names) == len(list(module.parameters())):
        return None
    layer = OutputLayer(module, state, replace(found[0], bias=None), names)
    few = inputs[:ROWS]
    moved = replace(layer, state={**state, **{name: (1.0 + state[name]).cos() for name in names}})
    first, second = (_features_if_linear(at, few) for at in (layer, moved))
    return layer if first is not None and second is not None and _close(first, second) else None


def _features_if_linear(at: OutputLayer, inputs: Shaped[Tensor, " rows *shape"]) -> Float[Tensor, "rows features"] | None:
    """φ of a few rows, None when the outputs are not W φ + b."""
    with torch.no_grad():
        kept = gradients.forward(at.module, (at.layer,), at.state, inputs)
        if len(kept.results[0]) != 1 or kept.inputs[0].shape[1] != 1:
            return None  # called twice, or at several places
        features, outputs = kept.inputs[0].squeeze(1), kept.outputs.detach()
        wanted = nn.functional.linear(features, *(at.state[name] for name in at.names))
    return features if wanted.shape == outputs.shape and _close(wanted, outputs) else None


def _close(one: Float[Tensor, "rows size"], other: Float[Tensor, "rows size"]) -> bool:
    """Equal to rounding."""
    return bool((one - other).norm() <= AGREEMENT * torch.finfo(one.dtype).eps * one.norm())


def narrowed(task: Task) -> Task:
    """The same K problems as problems of the output layer on its features; the task itself where that cannot be done.

    Cost: one forward pass an example, and K x P comparisons.
    """
    layer = _moving(task)
    if layer is None:
        return task
    examples = Examples(layer.features(task.examples.inputs), task.examples.targets, task.examples.index)
    reference = None if task.reference is None else {name: task.reference[whole] for name, whole in layer.own.items()}
    return replace(
        task, module=layer.alone(), params=layer.own_part(task.params), buffers={}, examples=examples, trainable=tuple(layer.own),
        reference=reference,
    )  # fmt: skip


def output_problem(problem: Problem) -> Problem:
    """The fitted problem of a `narrowed` task: the output layer on the features of training and test examples.

    Cost: one forward pass an example.
    """
    layer = find(problem.module, problem.state, problem.train.inputs)
    assert layer is not None
    train, test = (replace(part, inputs=layer.features(part.inputs)) for part in (problem.train, problem.test))
    params = {name: problem.params[whole] for name, whole in layer.own.items()}
    return replace(problem, module=layer.alone(), params=params, buffers={}, train=train, test=test, selected=tuple(params))


def widened(task: Task, params: Stack) -> Stack:
    """The whole network's parameters from those of its output layer, as a response to `narrowed(task)` gave them.

    Frozen parameters are views, shared by all K models.
    """
    moved = dict(zip(last_layer(task.module), params.values(), strict=True))
    return {name: moved.get(name, value[:1].expand_as(value)) for name, value in task.params.items()}


def reduced(
    module: nn.Module, params: Stack, buffers: Stack, inputs: Shaped[Tensor, " n *shape"]
) -> tuple[nn.Module, Stack, Stack, Shaped[Tensor, " n *features"]]:
    """What `stacking.outputs` takes, with the same result: by way of the features where K > 1 models share all but their output layer."""
    if len(next(iter(params.values()))) == 1 or not _shared(module, params, buffers):
        return module, params, buffers, inputs
    layer = find(module, {**unstack(params, 0), **unstack(buffers, 0)}, inputs)
    if layer is None:
        return module, params, buffers, inputs
    return layer.alone(), layer.own_part(params), {}, layer.features(inputs)


def _moving(task: Task) -> OutputLayer | None:
    frozen_alone = set(task.trainable) == set(last_layer(task.module)) and not task.all_trainable and not task.keep
    if not frozen_alone or not _shared(task.module, task.params, task.buffers):
        return None
    return find(task.module, {**unstack(task.params, 0), **unstack(task.buffers, 0)}, task.examples.inputs)


def _shared(module: nn.Module, params: Stack, buffers: Stack) -> bool:
    """Whether all models agree outside the output layer, to the bit."""
    own = last_layer(module)
    rest = [*(value for name, value in params.items() if name not in own), *buffers.values()]
    return all(value.stride(0) == 0 or bool((value == value[:1]).all()) for value in rest)
