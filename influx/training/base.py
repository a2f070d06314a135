"""The contract of the training engine and what its optimisers share.

The objective of model k is `J_k(θ) = (1/n) Σ_i w[k, i] ℓ_i(θ) + (λ/2)‖θ‖²`. Leaving example i out is `w[k, i] = 0` with the divisor still
n, in the same batch order, so that a leave-one-out model differs from the full one in nothing else. Example weights of a batch are
divided by the batch's size, left-out rows included. (Modules that mix the rows of a batch are not fed rows of weight 0 at all.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from influx import stacking, word_products
from influx.objectives import Objective
from influx.objectives.base import Coupled, standing
from influx.problem import Examples
from influx.stacking import Stack
from influx.training.backprop import Backprop, backprop
from influx.training.by_word import ByWord
from influx.trajectory import Snapshot

IN_CACHE = 8  # times smaller blocks than memory would allow stay in a core's cache, and take half the time


@dataclass(frozen=True)
class Task:
    """K training problems over one data set.

    `params` and `buffers` are the starts, with a leading axis of K; `weights` is w; `trainable` names the parameters that move; `seed`
    fixes the batch order, which all K share; `keep` are the steps before which a snapshot of the first model is kept; `reference` is
    the solution for w = 1 from the same seed, when it is known; `side_by_side` false takes models that are no plain chains one by one,
    which is faster for convolutions on a CPU.
    """

    module: nn.Module
    params: Stack
    buffers: Stack
    examples: Examples
    weights: Float[Tensor, "k n"]
    objective: Objective
    trainable: tuple[str, ...]
    seed: int
    reference: dict[str, Tensor] | None = None
    keep: tuple[int, ...] = ()
    side_by_side: bool = True

    def backprop(self, module: nn.Module) -> Backprop:
        """How to get the K gradients; `module` is the task's own, in training or in evaluation mode."""
        if self.by_word:
            return ByWord(module, self.objective, self.trainable)
        return backprop(module, self.objective, self.trainable, self.side_by_side)

    @property
    def by_word(self) -> bool:
        """Whether the models are word vectors whose documents have losses of their own."""
        return word_products.fits(self.module) and not isinstance(self.objective, Coupled)

    @property
    def all_trainable(self) -> bool:
        return set(self.trainable) == set(self.params)

    @property
    def models(self) -> int:
        return len(self.weights)

    def losses(self, params: Stack, buffers: Stack, rows: Tensor | slice) -> Float[Tensor, "k batch"]:
        """ℓ_i of each model on the same rows."""
        batch = self.examples.take(rows)
        return self.objective.loss(stacking.outputs(self.module, params, buffers, batch.inputs), batch.targets)

    def blocks(self) -> list[slice]:
        """Rows in blocks that all K models pass at once, small enough for a core's cache."""
        first, buffers = stacking.unstack(self.params, 0), stacking.unstack(self.buffers, 0)
        if self.by_word:  # which cuts rows itself, and adds a gradient as large as the vocabulary only once a block
            return stacking.blocks(len(self.examples), 8 * self.models * self.examples.inputs[0].nbytes)
        each = stacking.bytes_per_row(self.module, first, buffers, self.examples.inputs)
        return stacking.blocks(len(self.examples), IN_CACHE * 4 * self.models * each)


@dataclass(frozen=True)
class Fit:
    """K trained models, and how far they got: gradient norms (None for a stack of stochastic trainings, where they say little), and for
    K = 1 a history with one row an epoch or iteration, and the snapshots that were asked for."""

    params: Stack
    buffers: Stack
    gradient_norm: Float[Tensor, " k"] | None
    history: list[dict[str, float]]
    snapshots: tuple[Snapshot, ...] = ()


class Training(ABC):
    """A way to train. Options only; `weight_decay` is λ, the coupled L2 term of the objective.

    `most_at_once` is how many models of a stack gain from one another's company.
    """

    weight_decay: float
    most_at_once: ClassVar[int] = 128

    @abstractmethod
    def fit(self, task: Task) -> Fit:
        """Train all K models of `task`.

        Raises:
            NumericalError: the loss or the gradient is no longer finite, or a convex method meets a problem that is not; the message
                names the step and the knob to turn.
        """

    @abstractmethod
    def trial(self, iterations: int, seconds: float, models: int) -> tuple[Training, float]:
        """A short training of `models` models to predict the time from, and its share of the whole (1: it is the whole), when the model
        trained on all examples took so many iterations and seconds."""

    @abstractmethod
    def memory(self, params: int, row: int, n: int) -> int:
        """Bytes that one more model in a stack keeps busy, with `params` bytes of parameters, `row` of layer outputs an example, and n
        training examples."""

    @abstractmethod
    def shuffles(self, n: int) -> bool:
        """Whether the order of n training examples matters: a batch holds fewer."""

    def shortened(self, epochs: int | None) -> Training:
        """The same training with another number of epochs (null: as it is)."""
        return self if epochs is None else replace(self, epochs=epochs)  # type: ignore[type-var]


def summarise(task: Task, params: Stack, buffers: Stack, weight_decay: float) -> tuple[dict[str, float], Float[Tensor, " k"]]:
    """Loss, accuracy and gradient norm of the full objective J of the first model; gradient norms of all K (over the trainable ones)."""
    n = len(task.examples)
    way = task.backprop(task.module)
    gradients = {name: weight_decay * params[name].detach() for name in task.trainable}
    loss, correct = 0.0, 0.0
    for rows in task.blocks():
        batch = task.examples.take(rows)
        outputs, part = way.gradients(params, buffers, batch, task.weights[:, rows] / n)
        for name, gradient in part.items():
            gradients[name] += gradient
        aims = standing(task.objective, outputs[0], batch.targets, task.weights[0, rows])
        loss += (task.objective.loss(outputs[0], aims) * task.weights[0, rows]).sum().item() / n
        if not batch.targets.is_floating_point():
            correct += (outputs[0].argmax(-1) == batch.targets).sum().item() / n
    norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0).sqrt()
    penalty = sum(0.5 * weight_decay * params[name][0].detach().square().sum().item() for name in task.trainable)
    accuracy = float("nan") if task.examples.targets.is_floating_point() else correct
    row = {"loss": loss, "objective": loss + penalty, "accuracy": accuracy, "gradient_norm": norms[0].item()}
    return row, norms
