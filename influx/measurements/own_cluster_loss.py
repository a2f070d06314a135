"""How unlikely the model finds the cluster that a test example has been put in: why is it there?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from influx.errors import InfluxError
from influx.measurements.base import Measurement
from influx.objectives.base import Clustering, Objective
from influx.objectives.supervised import CrossEntropy


@dataclass(frozen=True)
class OwnClusterLoss(Measurement):
    """−log q(c | x; θ), in nats, with c = argmax_j q(j | x; θ₀) the example's most likely cluster where training started.

    θ₀ is the seed's own start (of `model=dec` and `vade`, after pretraining, centroids and warm-up), which no left-out example changes:
    estimates and retrained models are asked about one and the same cluster. No label is read, unlike by `ClusterLoss`, which asks about the
    cluster matched with the label. An example that training moved to another cluster is still asked about the first.
    """

    unit: ClassVar[str] = "nats"
    lower_is_better: ClassVar[bool] = True
    reads: ClassVar[str] = "start"

    def value(
        self, outputs: Float[Tensor, " *k batch out"], targets: Float[Tensor, " batch out"], objective: Objective
    ) -> Float[Tensor, " *k batch"]:
        if not isinstance(objective, Clustering):
            raise InfluxError(
                f"measurement=own_cluster_loss needs a model that makes clusters, and {type(objective).__name__} trains none: "
                "use objective=dec or vade."
            )
        return CrossEntropy().loss(objective.log_assignment(outputs), objective.log_assignment(targets).argmax(-1))
