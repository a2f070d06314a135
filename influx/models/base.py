"""What a model is to the rest of `influx`: a frozen description that builds a module for a data set's shape."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from influx.data import Data
from influx.errors import InfluxError
from influx.seeding import isolated

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
}


@dataclass(frozen=True)
class Shape:
    """What a model must fit: one example's input shape, the number of outputs, what the outputs are compared with, and for words
    the size of the vocabulary."""

    inputs: tuple[int, ...]
    n_outputs: int
    task: str
    n_words: int = 0

    @property
    def n_features(self) -> int:
        return math.prod(self.inputs)

    def require_images(self, model: str, smallest: int) -> int:
        """The number of channels; `InfluxError` unless examples are images of at least `smallest` pixels a side."""
        if len(self.inputs) != 3:
            raise InfluxError(
                f"model={model} needs images; this data set has rows of {self.n_features} numbers. Use model=mlp, or an image data set."
            )
        if min(self.inputs[1:]) < smallest:
            height, width = self.inputs[1:]
            raise InfluxError(
                f"model={model} needs images of at least {smallest}x{smallest} pixels; these are {height}x{width}. Use model=mlp."
            )
        return self.inputs[0]

    def require_task(self, model: str, task: str, instead: str) -> None:
        if self.task != task:
            raise InfluxError(f"model={model} is for {task}; this data set is for {self.task}. Use model={instead}.")


class Model(ABC):
    """A description of an architecture; the module's linear output layer comes last."""

    @abstractmethod
    def module(self, shape: Shape) -> nn.Module:
        """A new module; parameters drawn from torch's global generator, which the caller isolates.

        Raises:
            InfluxError: the architecture cannot take this shape or task; the message says what to use instead.
        """


class Encoding(Model):
    """A model with frozen layers at the bottom, which reads texts: what those layers make of an example can be computed once, and the
    module be built for that instead."""

    @abstractmethod
    def encode(self, inputs: Float[Tensor, "n tokens"]) -> Float[Tensor, " n *shape"]:
        """What the frozen layers make of token ids, in the inputs' type and place.

        Raises:
            InfluxError: these are no token ids.
        """


class Placed(Model):
    """A model whose training starts from parameters that depend on the data: centroids where the data's clusters are."""

    @abstractmethod
    def place(self, module: nn.Module, data: Data, seed: int) -> None:
        """Set the module's parameters for the training part of `data`; whatever is drawn comes from the seed."""


def build(model: Model, shape: Shape, seed: int) -> nn.Module:
    """The module of `model` for `shape` in float32, initialised from (seed, "initialisation") alone.

    Raises:
        InfluxError: the module refuses an example of that shape, its output is not one row of `n_outputs` an example, or it uses a
            parameter twice.
    """
    with isolated(seed, "initialisation"):
        module = model.module(shape)
    module.eval()
    examples = torch.zeros(2, *shape.inputs, dtype=next((value.dtype for value in module.parameters()), torch.float32))
    try:
        with torch.no_grad():
            made = tuple(module(examples).shape)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InfluxError(f"{type(model).__name__} does not fit inputs of shape {shape.inputs}: {reason}") from error
    if made != (2, shape.n_outputs):
        raise InfluxError(f"{type(model).__name__} gives outputs of shape {made[1:]} an example; it must be ({shape.n_outputs},).")
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    if len(names) > len(list(module.parameters())):
        twice = sorted(set(names) - {name for name, _ in module.named_parameters()})[0]
        raise InfluxError(f"{type(model).__name__} uses a parameter twice ({twice}); tied weights are not supported.")
    return module


def last_layer(module: nn.Module) -> tuple[str, ...]:
    """Names of the output layer's parameters: those of the last submodule that has any of its own."""
    owner = ""
    for name, submodule in module.named_modules():
        if any(True for _ in submodule.parameters(recurse=False)):
            owner = name
    own = dict(module.get_submodule(owner).named_parameters(recurse=False))
    return tuple(f"{owner}.{name}" if owner else name for name in own)
