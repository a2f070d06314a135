"""Stochastic first-order training of K models side by side, with torch.optim's own update rules on stacked parameters.

All updates are elementwise, so one optimiser over tensors of shape [K, ...] takes exactly the K separate steps. The penalty is coupled:
λθ is added to the gradient, which is the gradient of (λ/2)‖θ‖².
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from influx import rules
from influx.errors import NumericalError
from influx.progress import progress
from influx.seeding import isolated, torch_generator
from influx.stacking import Stack
from influx.training.base import Fit, Task, Training, summarise
from influx.trajectory import Step, Trajectory

TRIAL_EPOCHS = 100  # model-epochs of the trial behind a prediction
HISTORY_ROWS = 1000  # at most; a longer training is summarised every few epochs


@dataclass(frozen=True, kw_only=True)
class FirstOrder(Training):
    """Minibatch training for a fixed number of epochs.

    Args:
        lr: peak step size.
        epochs: passes over the training set.
        batch_size: rows a step, reshuffled each epoch by the seed; null takes all rows in order.
        weight_decay: λ.
        schedule: "constant", "linear" or "cosine" to zero over all steps, or "step" (x 0.1 at 1/2 and at 3/4 of them).
    """

    lr: float = 0.05
    epochs: int = 30
    batch_size: int | None = 64
    weight_decay: float = 1e-3
    schedule: str = "constant"

    records_trajectory = True

    def __post_init__(self) -> None:
        rules.check_fields("training", self)

    @abstractmethod
    def optimizer(self, params: list[Tensor]) -> torch.optim.Optimizer:
        """torch.optim's optimiser over the stacked parameters, with coupled weight decay."""

    def fit(self, task: Task) -> Fit:
        module = copy.deepcopy(task.module).train(mode=task.all_trainable)  # frozen features stay as they are used: in evaluation mode
        params, buffers = _start(task)
        optimizer = self.optimizer([params[name] for name in task.trainable])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor(self._steps_per_epoch(task) * self.epochs))
        every = math.ceil(self.epochs / HISTORY_ROWS)
        history: list[dict[str, float]] = []
        steps: list[Step] = []
        running = replace(task, module=module)
        order = self._batches(task)
        with isolated(task.seed, "stochastic layers"):
            for epoch in progress(range(1, self.epochs + 1), "training, epochs"):
                for rows in next(order):
                    if task.record:
                        steps.append(_before(params, rows, schedule))
                    _step(running, params, buffers, rows, optimizer)
                    schedule.step()
                if epoch % every and epoch != self.epochs:
                    continue
                self._check_finite(params, epoch)
                if task.models == 1:
                    history.append({"epoch": epoch, **summarise(task, params, buffers, self.weight_decay)[0]})
        params = {name: value.detach() for name, value in params.items()}
        norms = summarise(task, params, buffers, self.weight_decay)[1]
        return Fit(params, buffers, norms, history, Trajectory(tuple(steps)) if task.record else None)

    def trial(self, iterations: int, models: int) -> tuple[Training, float]:
        few = min(self.epochs, 1 + math.ceil(TRIAL_EPOCHS / models))
        return replace(self, epochs=few), few / self.epochs

    def _steps_per_epoch(self, task: Task) -> int:
        n = len(task.examples)
        return 1 if self.batch_size is None else math.ceil(n / self.batch_size)

    def _batches(self, task: Task) -> Iterator[tuple[Int[Tensor, " batch"], ...]]:
        """The rows of each epoch's batches: a function of (seed, n, batch size) alone, hence the same for every model."""
        n = len(task.examples)
        generator = torch_generator(task.seed, "batch order")
        device = task.weights.device
        while True:
            if self.batch_size is None or self.batch_size >= n:
                yield (torch.arange(n, device=device),)
            else:
                yield torch.randperm(n, generator=generator).to(device).split(self.batch_size)

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
    """Parameters and buffers of the run's own, the trainable ones as leaves; contiguous, as torch's fused updates want them."""
    params = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in task.params.items()}
    buffers = {name: value.clone() for name, value in task.buffers.items()}
    for name in task.trainable:
        params[name].requires_grad_(True)
    return params, buffers


def _before(params: Stack, rows: Tensor, schedule: torch.optim.lr_scheduler.LRScheduler) -> Step:
    """The record of the step that is about to be taken, of the first model."""
    return Step({name: value[0].detach().clone() for name, value in params.items()}, rows, float(schedule.get_last_lr()[0]))


def _step(task: Task, params: Stack, buffers: Stack, rows: Tensor, optimizer: torch.optim.Optimizer) -> None:
    losses = task.losses(params, buffers, rows)
    total = (losses * task.weights[:, rows]).sum() / len(rows)  # the K objectives share no parameter: one sum, K gradients
    moving = [params[name] for name in task.trainable]
    for leaf, gradient in zip(moving, torch.autograd.grad(total, moving), strict=True):
        leaf.grad = gradient.contiguous()  # torch's fused updates pair numbers by their place in memory, whatever the strides say
    optimizer.step()


@dataclass(frozen=True, kw_only=True)
class Sgd(FirstOrder):
    """v ← μv + g + λθ; θ ← θ − lr·v (or Nesterov's form), no dampening: torch.optim.SGD.

    Example: `training=sgd training.lr=0.05 training.momentum=0.9`.
    """

    momentum: float = 0.9
    nesterov: bool = False

    def optimizer(self, params: list[Tensor]) -> torch.optim.Optimizer:
        nesterov = self.nesterov and self.momentum > 0
        return torch.optim.SGD(params, lr=self.lr, momentum=self.momentum, nesterov=nesterov, weight_decay=self.weight_decay, fused=True)


@dataclass(frozen=True, kw_only=True)
class Adam(FirstOrder):
    """Adam (Kingma & Ba 2015) on g + λθ, optionally AMSGrad: torch.optim.Adam."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    amsgrad: bool = False

    def optimizer(self, params: list[Tensor]) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.Adam(params, lr=self.lr, betas=betas, weight_decay=self.weight_decay, amsgrad=self.amsgrad, fused=True)


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

    def optimizer(self, params: list[Tensor]) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(params, lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.decoupled_decay, fused=True)
        optimizer.register_step_pre_hook(lambda *_: self._add_penalty(params))
        return optimizer

    def _add_penalty(self, params: list[Tensor]) -> None:
        with torch.no_grad():
            for leaf in params:
                if leaf.grad is not None:
                    leaf.grad.add_(leaf, alpha=self.weight_decay)
