"""What an estimator may ask for beyond the fitted problem: how the model was trained, and more models of its kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from influx.masks import Masks
from influx.problem import Problem
from influx.trajectory import Descent, Trajectory


@dataclass(frozen=True)
class Facts:
    """What is known before training: steps of a run (0: it keeps none), rows a step, its kind of descent, training examples."""

    n_steps: int
    batch_size: int
    descent: Descent | None


class Record(ABC):
    """The training behind a problem. Everything is made when it is asked for and kept in the store, so that asking again costs nothing."""

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """Known before anything is trained."""

    @abstractmethod
    def check_trajectory(self) -> None:
        """Raise `InfluxError` when this training cannot be followed step by step."""

    @property
    @abstractmethod
    def trajectory(self) -> Trajectory:
        """The run that led to the problem's parameters."""

    @abstractmethod
    def recall(self, name: str, options: Mapping[str, Any], work: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """What `work` made of this run's training and these options, kept under `name` (one word) for whoever asks for the same again.

        It must depend on nothing else: not on test examples, nor on the measurement.
        """

    @abstractmethod
    def models(self, count: int) -> Iterator[Problem]:
        """The problem after so many trainings, from this run's seed and those that follow it; the first is the run's own model."""

    @abstractmethod
    def without(self, sets: Sequence[Int[np.ndarray, " rows"]], *, average: bool) -> Float[Tensor, "n_sets n_test"]:
        """The measurement after training from scratch without each set of rows (positions in the training part), with this run's seed.

        The divisor of the objective stays n, or is what is left when `average`.
        """

    @abstractmethod
    def masked(self, masks: Masks, count: int) -> Iterator[Problem]:
        """The problem of so many models trained with turn-over dropout, each example with a mask of its own (`influx.masking`)."""

    @property
    @abstractmethod
    def mislabelled(self) -> Int[np.ndarray, " rows"]:
        """Rows of the training part whose label was changed on purpose (dataset.label_noise): for diagnostics, never for an estimate."""
