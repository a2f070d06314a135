"""TracInCP by the library captum (Pruthi et al. 2020, section 3), as it is, in the same table as this package's own.

    influence[i, t] = Σ_{checkpoints k} η_k ∇m_t(θ_k)ᵀ ∇ℓ_i(θ_k),       η_k: learning rate of the step that led there,

over the checkpoints that the run kept, which is `method=tracin`; with `fast` (the paper's section 4) over the output layer's weight alone.
Checked against 0.9.0.

1. Its fast form leaves the output layer's bias out; `method=tracin method.params=last_layer` has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from influx import rules
from influx.cost import Cost
from influx.errors import InfluxError
from influx.estimators._neighbours import PREFIX, batch_rows, loaded, loader, quiet, require, returned, whole_layers
from influx.estimators.base import Estimate, Estimator
from influx.problem import Problem
from influx.progress import progress
from influx.record import Record
from influx.seeding import isolated
from influx.stacking import blocks

TYPICAL = 10  # checkpoints, for the forecast alone

Checkpoint = tuple[dict[str, Tensor], float]


@dataclass(frozen=True)
class Captum(Estimator):
    """Gradient products along training, in the measurement's unit but not on retraining's scale.

    Args:
        fast: TracInCPFast, the output layer's weight alone; else TracInCP.
        params: of TracInCP: "all", "last_layer", or a pattern of names that selects whole layers.

    Linear layers and convolutions alone (the output layer alone when fast). Cost: a gradient an example and checkpoint, and a product of
    length P a pair. Memory: the dense gradients of a block of test examples at all checkpoints at once, and of a batch of training rows.

    Raises:
        InfluxError: the package is missing, the training cannot be followed, a layer of another kind or a part of one is selected, or
            params are chosen for the fast form.
    """

    calibrated: ClassVar[bool] = False
    needs_trajectory: ClassVar[bool] = True
    fast: bool = False
    params: str = "all"

    def __post_init__(self) -> None:
        rules.check_fields("method", self)
        if self.fast and self.params != "all":
            raise InfluxError("method.fast=true is about the output layer's weight, no other choice: leave method.params=all.")

    def plan(self, problem: Problem, record: Record) -> Cost:
        require("captum")
        record.check_trajectory()
        problem = self._selected(problem)
        n, m, p = problem.n_train, len(problem.test), problem.n_params
        each = problem.theta.nbytes
        held = min(m * (TYPICAL + 1) * each, problem.memory // 2) + 3 * batch_rows(problem, "auto") * each
        return Cost(gradients=TYPICAL * (n + m), flops=2.0 * TYPICAL * n * m * p, nbytes=held)

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        require("captum")
        problem = self._selected(problem)
        checkpoints = record.trajectory.checkpoints
        method = self._method(problem, checkpoints)
        parts = []
        for columns in progress(_columns(problem, len(checkpoints)), "captum, blocks of test examples"):
            test = problem.test.take(columns)
            with isolated(seed, "captum"), quiet("captum"):
                parts.append(method.influence((test.inputs, test.targets)).detach().T)  # [n_train, columns]
        return Estimate(returned(torch.cat(parts, dim=1), problem), facts={"checkpoints": len(checkpoints)})

    def _selected(self, problem: Problem) -> Problem:
        if not self.fast:
            problem = problem.select(self.params)
            whole_layers(problem, "captum")
            return problem
        problem = problem.select("last_layer")
        if any(layer.kind != "linear" for layer in problem.matrix_layers):
            raise InfluxError("captum's fast form needs a linear output layer, and this model's is a convolution: set method.fast=false.")
        return problem

    def _method(self, problem: Problem, checkpoints: list[Checkpoint]) -> Any:
        from captum.influence import TracInCP, TracInCPFast

        layers = whole_layers(problem, "captum")
        loss, measured = summed(problem.objective.loss), summed(problem.measured)
        rows = loader(batch_rows(problem, "auto"), problem.train.inputs, problem.train.targets)
        if self.fast:
            return TracInCPFast(loaded(problem), layers[0], rows, checkpoints, load, loss_fn=loss, test_loss_fn=measured)
        return TracInCP(
            loaded(problem), rows, checkpoints, load, layers=layers, loss_fn=loss, test_loss_fn=measured, sample_wise_grads_per_batch=True
        )


def load(model: nn.Module, checkpoint: Checkpoint) -> float:
    """Put a checkpoint into the library's model; returns its learning rate."""
    params, rate = checkpoint
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(params[name.removeprefix(PREFIX)])
    return rate


def summed(value: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A value of each row as the library wants it: one sum, which says that it is one."""

    def total(outputs: Tensor, targets: Tensor) -> Tensor:
        return value(outputs, targets).sum()

    total.reduction = "sum"  # type: ignore[attr-defined]
    return total


def _columns(problem: Problem, checkpoints: int) -> list[slice]:
    return blocks(len(problem.test), (checkpoints + 1) * problem.theta.nbytes, problem.memory // 2)
