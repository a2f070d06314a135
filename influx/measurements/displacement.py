"""How far training has moved what the model says of a test example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from influx.measurements.base import Measurement
from influx.objectives.base import Objective


@dataclass(frozen=True)
class Displacement(Measurement):
    """Mean squared difference `(1/out) Σ_j (f_j(x_t; θ) − f_j(x_t; θ₀))²` between the outputs and those that training started from.

    For embeddings it is the question of Silva et al. (2022), why an embedding moved where it is; θ₀ is the seed's own start.
    """

    unit: ClassVar[str] = "mean squared displacement"
    lower_is_better: ClassVar[bool] = False
    reads: ClassVar[str] = "start"

    def value(
        self, outputs: Float[Tensor, " *k batch out"], targets: Float[Tensor, " batch out"], objective: Objective
    ) -> Float[Tensor, " *k batch"]:
        return (outputs - targets).square().mean(-1)
