"""The mean of any measurement over the whole test set, as one scalar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Shaped
from torch import Tensor

from influx.errors import InfluxError
from influx.measurements.base import Measurement, Posing
from influx.objectives.base import Objective


@dataclass(frozen=True)
class Mean(Measurement):
    """`(1/n_test) Σ_t m_t(θ)`, so that `n_test` is 1: `measurement=mean measurement@measurement.of=margin`."""

    of: Measurement

    whole_set: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.of.whole_set or isinstance(self.of, Posing):
            raise InfluxError(
                f"measurement.of={type(self.of).__name__} is of a whole set already, or asks questions of its own: use it without mean."
            )

    @property
    def unit(self) -> str:  # type: ignore[override]  # of the measurement that it is the mean of, elsewhere of the class
        return self.of.unit

    @property
    def lower_is_better(self) -> bool:  # type: ignore[override]
        return self.of.lower_is_better

    @property
    def reads(self) -> str:  # type: ignore[override]
        return self.of.reads

    def value(
        self, outputs: Float[Tensor, " *k batch out"], targets: Shaped[Tensor, " *k batch *target"], objective: Objective
    ) -> Float[Tensor, " *k batch"]:
        return self.of.value(outputs, targets, objective)
