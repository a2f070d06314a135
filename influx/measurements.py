"""Measurements m_t(θ): the scalar of a test example, or of the whole test set, whose change is estimated and retrained for.

Sign and unit of every influence in `influx`: `influence[i, t]` predicts `m_t(θ trained without i) − m_t(θ trained on all)`, in the
measurement's unit. For a loss, positive means that removing `i` raises the test loss: `i` is helpful (a proponent).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int, Shaped
from torch import Tensor

from influx.errors import InfluxError
from influx.objectives import Objective, log_odds


@dataclass(frozen=True)
class Measurement(ABC):
    """One scalar per test example; a whole-set measurement is its mean over the test set. `lower_is_better` gives similarity scores,
    which know helpful from harmful but not the measurement, their sign."""

    unit: ClassVar[str]
    lower_is_better: ClassVar[bool]
    whole_set: ClassVar[bool] = False

    @abstractmethod
    def value(
        self, outputs: Float[Tensor, " *k batch out"], targets: Shaped[Tensor, " batch"], objective: Objective
    ) -> Float[Tensor, " *k batch"]:
        """m_t for each test example of the batch."""


@dataclass(frozen=True)
class Loss(Measurement):
    """The training objective's loss at the test example (no regulariser)."""

    unit: ClassVar[str] = "loss"
    lower_is_better: ClassVar[bool] = True

    def value(
        self, outputs: Float[Tensor, " *k batch out"], targets: Shaped[Tensor, " batch"], objective: Objective
    ) -> Float[Tensor, " *k batch"]:
        return objective.loss(outputs, targets)


@dataclass(frozen=True)
class MeanLoss(Loss):
    """The mean loss over the whole test set: one scalar, so `n_test` is 1."""

    whole_set: ClassVar[bool] = True


@dataclass(frozen=True)
class Margin(Measurement):
    """Correct-class margin: the label's log-odds `z_y − logsumexp_{j≠y} z_j`, in nats (Park et al. 2023, TRAK, section 3.3)."""

    unit: ClassVar[str] = "log-odds"
    lower_is_better: ClassVar[bool] = False

    def value(
        self, outputs: Float[Tensor, " *k batch out"], targets: Int[Tensor, " batch"], objective: Objective
    ) -> Float[Tensor, " *k batch"]:
        if targets.is_floating_point():
            raise InfluxError("measurement=margin needs class labels; on a regression data set use measurement=loss or mean_loss.")
        return log_odds(outputs, targets)


@dataclass(frozen=True)
class LogProbability(Measurement):
    """Log-likelihood of the test target, up to a constant: minus the loss, in nats."""

    unit: ClassVar[str] = "log-probability"
    lower_is_better: ClassVar[bool] = False

    def value(
        self, outputs: Float[Tensor, " *k batch out"], targets: Shaped[Tensor, " batch"], objective: Objective
    ) -> Float[Tensor, " *k batch"]:
        return -objective.loss(outputs, targets)
