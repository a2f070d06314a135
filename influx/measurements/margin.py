"""Correct-class margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from influx.errors import InfluxError
from influx.measurements.base import Measurement
from influx.measurements.cluster_loss import scores_of
from influx.objectives import Objective, log_odds


@dataclass(frozen=True)
class Margin(Measurement):
    """Correct-class margin: the label's log-odds `z_y − logsumexp_{j≠y} z_j`, in nats (Park et al. 2023, TRAK, section 3.3).

    A cluster's logits are its log q.
    """

    unit: ClassVar[str] = "log-odds"
    lower_is_better: ClassVar[bool] = False
    reads: ClassVar[str] = "labels"

    def value(
        self, outputs: Float[Tensor, " *k batch out"], targets: Int[Tensor, " batch"], objective: Objective
    ) -> Float[Tensor, " *k batch"]:
        if targets.is_floating_point():
            raise InfluxError("measurement=margin needs class labels; on a regression data set use measurement=loss or mean_loss.")
        return log_odds(scores_of(objective, outputs, "margin"), targets)
