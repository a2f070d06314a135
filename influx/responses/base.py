"""The contract of a response: what becomes of a trained model θ_s when the weights of some training examples change.

The chain of Bae et al. 2022 from leaving one out to an influence function is a chain of responses, each the answer to its own question.
With ε = strength/n, m the examples that are left out, λ the weight decay and p the proximal weight:

* `retrained`   train on J − ε Σ ℓ_m, from scratch or from θ_s                                  (cold and warm leave-one-out)
* `proximal`    argmin J − ε Σ ℓ_m + (p/2)‖θ − θ_s‖², from θ_s
* `bregman`     argmin of the proximal Bregman objective, from θ_s                              (PBRF)
* `linearised`  θ_s + ε (G + (λ + p) I)⁻¹ Σ ∇ℓ_m(θ_s), G the GGN; with another solver the practical estimate

All K models of a `Task` respond side by side; its example weights say who is left out of which, and by how much.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from influx import stacking
from influx.problem import Problem
from influx.stacking import Stack
from influx.training import Task, Training
from influx.training.second_order import Flat


@dataclass(frozen=True)
class Account:
    """How well each of K models was solved for: iterations, relative residual, and whether it converged."""

    iterations: Int[Tensor, " k"]
    residual: Float[Tensor, " k"]
    converged: Bool[Tensor, " k"]


@dataclass(frozen=True)
class Moved:
    """K models, the account of what was solved for them (None: a training), facts about the stack, and the seconds that went into what its
    models share."""

    params: Stack
    buffers: Stack
    account: Account | None = None
    facts: dict[str, float] = field(default_factory=dict)
    shared_seconds: float = 0.0


class Response(ABC):
    """Options only.

    `begins` is where it starts when that is not the user's to choose; one that is `anchored` stays at θ_s exactly when nothing is left out;
    `vectors` are the P-vectors that one more model in a stack keeps busy (None: as the training says); `proximity` is p.
    """

    name: ClassVar[str]
    begins: ClassVar[str | None] = "warm"
    anchored: ClassVar[bool] = False
    vectors: ClassVar[int | None] = None
    proximity: float = 0.0

    @abstractmethod
    def move(self, task: Task, training: Training, problem: Problem) -> Moved:
        """All K models of `task`, whose starts are θ_s; only its trainable parameters move, which are those that `problem` has selected. It
        is fitted at θ_s too.

        Raises:
            NumericalError: an iteration diverges or a curvature is singular; the message names the knob to turn.
        """


def only(task: Task, models: Tensor | slice) -> Task:
    """Some of the K models."""
    params, buffers = ({name: value[models] for name, value in part.items()} for part in (task.params, task.buffers))
    return replace(task, params=params, buffers=buffers, weights=task.weights[models])


def taken_away(task: Task) -> Float[Tensor, "k p"]:
    """(1/n) Σ_i (1 − w_ki) ∇ℓ_i(θ_s) over the trainable parameters."""
    rows = (task.weights != 1).any(0).nonzero().squeeze(1)
    weights = (1.0 - task.weights[:, rows]) / len(task.examples)
    way, total = task.backprop(task.module), torch.zeros_like(Flat(task, 0.0).start())
    size = task.blocks()[0].stop
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        _, found = way.gradients(task.params, task.buffers, task.examples.take(rows[part]), weights[:, part])
        total += torch.cat([piece.flatten(1) for piece in found.values()], dim=1)
    return total


@torch.no_grad()
def train_outputs(task: Task, params: Stack) -> Float[Tensor, "k n out"]:
    """What K models say of all training rows, in evaluation mode."""
    inputs = task.examples.inputs
    return torch.cat([stacking.outputs(task.module, params, task.buffers, inputs[rows]) for rows in task.blocks()], dim=1)
