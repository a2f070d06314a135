"""The training objective's own loss at test examples, or minus it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Shaped
from torch import Tensor

from influx.measurements.base import Measurement
from influx.objectives.base import Objective


@dataclass(frozen=True)
class Loss(Measurement):
    """The training objective's loss at the test example (no regulariser)."""

    unit: ClassVar[str] = "loss"
    lower_is_better: ClassVar[bool] = True

    def value(
        self, outputs: Float[Tensor, " *k batch out"], targets: Shaped[Tensor, " *k batch *target"], objective: Objective
    ) -> Float[Tensor, " *k batch"]:
        return objective.loss(outputs, targets)


@dataclass(frozen=True)
class MeanLoss(Loss):
    """The mean loss over the whole test set: one scalar, so `n_test` is 1."""

    whole_set: ClassVar[bool] = True


@dataclass(frozen=True)
class LogProbability(Measurement):
    """Log-likelihood of the test target, up to a constant: minus the loss, in nats."""

    unit: ClassVar[str] = "log-probability"
    lower_is_better: ClassVar[bool] = False

    def value(
        self, outputs: Float[Tensor, " *k batch out"], targets: Shaped[Tensor, " *k batch *target"], objective: Objective
    ) -> Float[Tensor, " *k batch"]:
        return -objective.loss(outputs, targets)
