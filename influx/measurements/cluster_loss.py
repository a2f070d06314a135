"""How unlikely the model finds a test example's class or cluster, whatever it was trained for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from influx.errors import InfluxError
from influx.measurements.base import Measurement
from influx.objectives.base import Objective, class_scores
from influx.objectives.supervised import CrossEntropy


@dataclass(frozen=True)
class ClusterLoss(Measurement):
    """Negative log-likelihood of the label, −log q(y | x), in nats.

    Of a clustering, q is the assignment and cluster y is the one that was matched with class y before training (`influx.models.base`);
    of a classifier, it is the cross-entropy. The labels have no part in training a clustering: this is the measurement of Silva et al.
    (2022) for deep embedded clustering.
    """

    unit: ClassVar[str] = "nats"
    lower_is_better: ClassVar[bool] = True
    reads: ClassVar[str] = "labels"

    def value(
        self, outputs: Float[Tensor, " *k batch out"], targets: Int[Tensor, " batch"], objective: Objective
    ) -> Float[Tensor, " *k batch"]:
        if targets.is_floating_point():
            raise InfluxError("measurement=cluster_loss needs class labels, and this data set has numbers: use measurement=loss.")
        return CrossEntropy().loss(scores_of(objective, outputs, "cluster_loss"), targets)


def scores_of(objective: Objective, outputs: Float[Tensor, " *k batch out"], measurement: str) -> Float[Tensor, " *k batch classes"]:
    """Logits of the classes or clusters.

    Raises:
        InfluxError: the outputs have none.
    """
    scores = class_scores(objective, outputs)
    if scores is None:
        raise InfluxError(
            f"measurement={measurement} needs scores of classes or clusters, and a model trained for {type(objective).__name__} gives "
            "none: use measurement=loss, or objective=dec or supervised."
        )
    return scores
