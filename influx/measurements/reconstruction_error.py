"""How far the reconstruction of a test example is from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from influx.errors import InfluxError
from influx.measurements.base import Measurement
from influx.objectives.base import Decoding, Objective


@dataclass(frozen=True)
class ReconstructionError(Measurement):
    """Mean squared error over the features, `(1/d) Σ_j (x̂_j − x_j)²`, in squared units of the (standardised) inputs."""

    unit: ClassVar[str] = "mean squared error"
    lower_is_better: ClassVar[bool] = True

    def value(
        self, outputs: Float[Tensor, " *k batch out"], targets: Float[Tensor, " batch features"], objective: Objective
    ) -> Float[Tensor, " *k batch"]:
        if not isinstance(objective, Decoding):
            raise InfluxError(
                f"measurement=reconstruction_error needs a model that gives its inputs back, and one trained for "
                f"{type(objective).__name__} does not: use measurement=loss, or objective=reconstruction."
            )
        return (objective.decoded(outputs) - targets).square().mean(-1)
