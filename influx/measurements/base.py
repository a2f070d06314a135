"""Measurements m_t(θ): the scalar of a test example, or of the whole test set, whose change is estimated and retrained for.

Sign and unit of every influence in `influx`: `influence[i, t]` predicts `m_t(θ trained without i) − m_t(θ trained on all)`, in the
measurement's unit. For a loss, positive means that removing `i` raises the test loss: `i` is helpful (a proponent).

A measurement need not have anything to do with the training objective: labels can judge a model that was trained without them (Silva et
al. 2022, cross-loss influence). All that it shares with the objective is the model's outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Shaped
from torch import Tensor

from influx.data import Data
from influx.objectives.base import Objective


@dataclass(frozen=True)
class Measurement(ABC):
    """One scalar per test example; a whole-set measurement is its mean over the test set. `lower_is_better` gives similarity scores,
    which know helpful from harmful but not the measurement, their sign.

    `reads` is what the outputs are compared with: "targets", those that the training objective would have for the example; "labels",
    the data set's own answers; or "start", the outputs of the model that training started from.
    """

    unit: ClassVar[str]
    lower_is_better: ClassVar[bool]
    whole_set: ClassVar[bool] = False
    reads: ClassVar[str] = "targets"

    @abstractmethod
    def value(
        self, outputs: Float[Tensor, " *k batch out"], targets: Shaped[Tensor, " *k batch *target"], objective: Objective
    ) -> Float[Tensor, " *k batch"]:
        """m_t for each test example of the batch.

        Raises:
            InfluxError: the outputs of a model trained for `objective` have not got what is measured; the message says what to use.
        """


class Posing(ABC):
    """What a measurement adds that asks questions of its own instead of the data set's test part."""

    @abstractmethod
    def pose(self, data: Data) -> Data:
        """The data with the questions as their test part; `test_names` say what each of them is.

        Raises:
            InfluxError: the data cannot answer them.
        """
