"""Stochastic first-order training of K models side by side, with torch.optim's own update rules on stacked parameters.

All updates are elementwise, so one update of tensors of shape [K, ...] takes exactly the K separate steps. The penalty is coupled:
λθ is added to the gradient, which is the gradient of (λ/2)‖θ‖². The rules are torch.optim's functions: its classes do the same
arithmetic, but constructing one imports torch's compiler, which takes longer than retraining two hundred small models.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from influx import rules
from influx.errors import NumericalError
from influx.problem import Examples
from influx.progress import progress
from influx.seeding import isolated, torch_generator
from influx.stacking import Stack
from influx.training import averaging
from influx.training.averaging import RunningMean
from influx.training.backprop import Backprop
from influx.training.base import Fit, Task, Training, summarise
from influx.trajectory import Descent, Snapshot, Step

TRIAL_SECONDS = 0.1  # at most about this for the trial behind a prediction, an epoch at least
EPSILON = 1e-8  # torch.optim's default in Adam's denominator
HISTORY_ROWS = 1000  # at most; a longer training is summarised every few epochs
CHECKS = 50  # how often a stack is looked at for divergence


class Update(NamedTuple):
    """An optimiser's update of stacked parameters in place: `step(gradients, learning rate)`, and what it remembers between steps."""

    step: Callable[[list[Tensor], float], None]
    memory: tuple[Tensor, ...]


class Batch(NamedTuple):
    """Rows of one step, and the example weights of K models over the number of rows, left-out ones included."""

    examples: Examples
    weights: Float[Tensor, "k batch"]
    rows: Int[Tensor, " batch"]


@dataclass(frozen=True, kw_only=True)
class FirstOrder(Training):
    """Minibatch training for a fixed number of epochs.

    Args:
        lr: peak step size.
        epochs: passes over the training set.
        batch_size: rows a step, reshuffled each epoch by the seed; null takes all rows in order.
        weight_decay: λ.
        schedule: "constant", "linear" or "cosine" to zero over all steps, or "step" (x 0.1 at 1/2 and at 3/4 of them).
        average_from: share of the epochs after which the ends of epochs are averaged (`influx.training.averaging`): the trained parameters
            are their mean; null: the last ones.
    """

    lr: float = 0.05
    epochs: int = 30
    batch_size: int | None = 64
    weight_decay: float = 1e-3
    schedule: str = "constant"
    average_from: float | None = None

    def __post_init__(self) -> None:
        rules.check_fields("training", self)

    @abstractmethod
    def rule(self, params: list[Tensor]) -> Update:
        """The update of the stacked parameters in place, with coupled weight decay; it owns what the optimiser remembers."""

    @property
    @abstractmethod
    def descent(self) -> Descent | None:
        """The update as gradient descent with momentum, when it is that."""

    def fit(self, task: Task) -> Fit:
        params, buffers, update, way = self._begin(task)
        rates = self.rates(len(task.examples))
        every = math.ceil(self.epochs / (HISTORY_ROWS if task.models == 1 else CHECKS))
        history: list[dict[str, float]] = []
        snapshots: list[Snapshot] = []
        done = 0
        epochs, average = self._epochs(task), RunningMean(self.average_from, self.epochs)
        with isolated(task.seed, "stochastic layers"):
            for epoch in progress(range(1, self.epochs + 1), "training, epochs"):
                for batch, weights, _ in next(epochs):
                    if done in task.keep:
                        snapshots.append(_snapshot(done, params, update).kept())
                    update.step(list(way.gradients(params, buffers, batch, weights)[1].values()), rates[done])
                    done += 1
                average.add(epoch, params, task.trainable)
                if epoch % every and epoch != self.epochs:
                    continue
                self._check_finite(params, epoch)
                if epoch == self.epochs:
                    params |= average.mean
                if task.models == 1:
                    history.append({"epoch": epoch, **summarise(task, params, buffers, self.weight_decay)[0]})
        params = {name: value.detach() for name, value in params.items()}
        norm = torch.tensor([history[-1]["gradient_norm"]], dtype=task.weights.dtype) if history else None
        return Fit(params, buffers, norm, history, tuple(snapshots))

    def carried(self, task: Task, memory: tuple[Tensor, ...]) -> tuple[Stack, Stack, tuple[Tensor, ...]]:
        """Parameters, buffers and the optimiser's memory after training with a memory that is not empty ("()": it is)."""
        params, buffers, update, way = self._begin(task)
        for value, kept in zip(update.memory, memory, strict=bool(memory)):
            value.copy_(kept)
        rates, epochs, done = self.rates(len(task.examples)), self._epochs(task), 0
        with isolated(task.seed, "stochastic layers"):
            for epoch in range(1, self.epochs + 1):
                for batch, weights, _ in next(epochs):
                    update.step(list(way.gradients(params, buffers, batch, weights)[1].values()), rates[done])
                    done += 1
                self._check_finite(params, epoch)
        return {name: value.detach() for name, value in params.items()}, buffers, update.memory

    def replay(self, task: Task, start: Snapshot, stop: int) -> Iterator[Step]:
        """The steps of a training from a snapshot of it up to `stop`, trained again; each is valid until the next is asked for.

        Only for modules without stochastic layers or batch statistics: those draw from, and write to, what no snapshot holds.
        """
        params, buffers, update, way = self._begin(task)
        for value, kept in zip([*params.values(), *update.memory], [*start.params.values(), *start.memory], strict=True):
            value.copy_(kept)
        rates = self.rates(len(task.examples))
        per_epoch = len(rates) // self.epochs
        epochs, done = self._epochs(task), 0
        while done < stop:
            batches = next(epochs)
            if done + per_epoch <= start.step:
                done += per_epoch
                continue
            for batch, weights, rows in batches:
                if done == stop:
                    return
                if done >= start.step:
                    yield Step(_snapshot(done, params, update), rows, rates[done])
                    update.step(list(way.gradients(params, buffers, batch, weights)[1].values()), rates[done])
                done += 1

    def initial(self, task: Task) -> Snapshot:
        """Where the first model of the task starts."""
        params, _, update, _ = self._begin(task)
        return _snapshot(0, params, update)

    def marks(self, n: int, count: int) -> tuple[int, ...]:
        """The steps before which `count` − 1 snapshots are kept: ends of epochs, evenly spaced; the trained model is the last."""
        per_epoch = self._steps_per_epoch(n)
        count = min(count, self.epochs) if self.average_from is None else 1  # a mean is the end of no step
        return tuple(per_epoch * round(self.epochs * c / count) for c in range(1, count))

    def rates(self, n: int) -> tuple[float, ...]:
        """The learning rate of every step on n training examples."""
        steps = self._steps_per_epoch(n) * self.epochs
        factor = self._factor(steps)
        return tuple(self.lr * factor(done) for done in range(steps))

    def _begin(self, task: Task) -> tuple[Stack, Stack, Update, Backprop]:
        module = copy.deepcopy(task.module).train(mode=task.all_trainable)  # frozen features stay as they are used: in evaluation mode
        if task.all_trainable:
            averaging.check(self.average_from, module)
        params, buffers = _start(task)
        return params, buffers, self.rule([params[name] for name in task.trainable]), task.backprop(module)

    def shuffles(self, n: int) -> bool:
        return self.batch_size is not None and self.batch_size < n

    def trial(self, iterations: int, seconds: float, models: int) -> tuple[Training, float]:
        few = math.ceil(TRIAL_SECONDS * self.epochs / max(seconds * models, 1e-3))  # an upper bound: models gain from company
        few = min(few, self.epochs)
        return replace(self, epochs=few), few / self.epochs

    def memory(self, params: int, row: int, n: int) -> int:
        copies = 4 if self.average_from is None else 5  # parameters, gradients, two moments; their mean
        return copies * params + 4 * min(n, self.batch_size or n) * row  # outputs, and gradients of them

    def _steps_per_epoch(self, n: int) -> int:
        return 1 if self.batch_size is None else math.ceil(n / self.batch_size)

    def _epochs(self, task: Task) -> Iterator[Iterable[Batch]]:
        """The batches of each epoch in turn; their rows are a function of (seed, n, batch size) alone, hence the same for every model."""
        n, device = len(task.examples), task.weights.device
        if not self.shuffles(n):
            whole = [Batch(task.examples, task.weights / n, torch.arange(n, device=device))]
            while True:
                yield whole
        generator = torch_generator(task.seed, "batch order")
        while True:
            yield _batches(task, torch.randperm(n, generator=generator).to(device), self.batch_size or n)

    def _factor(self, steps: int) -> Callable[[int], float]:
        """The learning rate's factor after so many steps."""
        shapes: dict[str, Callable[[int], float]] = {
            "constant": lambda done: 1.0,
            "linear": lambda done: 1.0 - done / steps,
            "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done / steps)),
            "step": lambda done: 0.1 ** ((done >= steps / 2) + (done >= 3 * steps / 4)),
        }
        return shapes[self.schedule]

    def _check_finite(self, params: Stack, epoch: int) -> None:
        for name, value in params.items():
            if not bool(torch.isfinite(value.detach()).all()):
                model = int((~torch.isfinite(value.detach().flatten(1)).all(1)).nonzero()[0])
                raise NumericalError(
                    f"training diverged by epoch {epoch}: {name} of model {model} is no longer finite. Lower training.lr (now {self.lr:g})."
                )


def _start(task: Task) -> tuple[Stack, Stack]:
    """Parameters and buffers of the run's own; contiguous, as torch's fused updates pair numbers by their place in memory, whatever the
    strides say."""
    params = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in task.params.items()}
    return params, {name: value.clone() for name, value in task.buffers.items()}


def _batches(task: Task, order: Int[Tensor, " n"], size: int) -> Iterator[Batch]:
    """Examples and weights are put in order once an epoch; batches are views."""
    examples, weights = task.examples.take(order), task.weights.index_select(1, order)
    for start in range(0, len(order), size):
        rows = slice(start, start + size)
        yield Batch(examples.take(rows), weights[:, rows] / len(order[rows]), order[rows])


def _snapshot(done: int, params: Stack, update: Update) -> Snapshot:
    """Of the first model; views, valid until the next step."""
    memory = tuple(part[0] if part.dim() else part for part in update.memory)
    return Snapshot(done, {name: value[0] for name, value in params.items()}, memory)


@dataclass(frozen=True, kw_only=True)
class Sgd(FirstOrder):
    """v ← μv + g + λθ; θ ← θ − lr·v (or Nesterov's form), no dampening: torch.optim.SGD.

    Example: `training=sgd training.lr=0.05 training.momentum=0.9`.
    """

    momentum: float = 0.9
    nesterov: bool = False

    @property
    def descent(self) -> Descent:
        return Descent(self.momentum, self.nesterov and self.momentum > 0, self.weight_decay)

    def rule(self, params: list[Tensor]) -> Update:
        velocity: list[Tensor | None] = [torch.zeros_like(value) if self.momentum > 0 else None for value in params]
        nesterov = self.descent.nesterov

        def step(gradients: list[Tensor], lr: float) -> None:
            sgd(
                params, gradients, velocity, has_sparse_grad=False, foreach=False, fused=True, weight_decay=self.weight_decay,
                momentum=self.momentum, lr=lr, dampening=0.0, nesterov=nesterov, maximize=False,
            )  # fmt: skip

        return Update(step, tuple(v for v in velocity if v is not None))


@dataclass(frozen=True, kw_only=True)
class Adam(FirstOrder):
    """Adam (Kingma & Ba 2015) on g + λθ, optionally AMSGrad: torch.optim.Adam."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    amsgrad: bool = False

    @property
    def descent(self) -> None:
        return None

    def rule(self, params: list[Tensor]) -> Update:
        means, squares, largest, counts = _moments(params, self.amsgrad)

        def step(gradients: list[Tensor], lr: float) -> None:
            adam(
                params, gradients, means, squares, largest, counts, fused=True, amsgrad=self.amsgrad, beta1=self.beta1, beta2=self.beta2,
                lr=lr, weight_decay=self.weight_decay, eps=EPSILON, maximize=False,
            )  # fmt: skip

        return Update(step, (*means, *squares, *largest, *counts))


@dataclass(frozen=True, kw_only=True)
class AdamW(FirstOrder):
    """Adam on g + λθ, then θ ← θ − lr·decoupled_decay·θ (Loshchilov & Hutter 2019).

    Only λ is part of the objective J, hence of its curvature; the decoupled shrinkage belongs to no objective.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    decoupled_decay: float = 1e-2
    weight_decay: float = 0.0

    @property
    def descent(self) -> None:
        return None

    def rule(self, params: list[Tensor]) -> Update:
        means, squares, largest, counts = _moments(params, amsgrad=False)

        def step(gradients: list[Tensor], lr: float) -> None:
            for gradient, value in zip(gradients, params, strict=True):
                gradient.add_(value, alpha=self.weight_decay)
            adamw(
                params, gradients, means, squares, largest, counts, fused=True, amsgrad=False, beta1=self.beta1, beta2=self.beta2, lr=lr,
                weight_decay=self.decoupled_decay, eps=EPSILON, maximize=False,
            )  # fmt: skip

        return Update(step, (*means, *squares, *largest, *counts))


def _moments(params: list[Tensor], amsgrad: bool) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Adam's running means of the gradient and of its square, their largest (AMSGrad only), and its step counts."""
    zeros = [[torch.zeros_like(value) for value in params] for _ in range(3 if amsgrad else 2)]
    counts = [torch.zeros((), device=value.device) for value in params]
    return zeros[0], zeros[1], zeros[2] if amsgrad else [], counts
