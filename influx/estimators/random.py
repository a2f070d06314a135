"""Random scores: what a method that knows nothing scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from influx import rules
from influx.cost import Cost
from influx.estimators.base import Estimate, Estimator
from influx.problem import Problem
from influx.record import Record
from influx.seeding import torch_generator


@dataclass(frozen=True)
class Random(Estimator):
    """influence[i, t] ~ N(0, 1), independent, a function of the run's seed alone.

    Good for: the floor of every statistic, its interval included (overlaps and sign agreement are not 0 by chance), and a check of the
    comparison itself: its correlations must be 0 within their intervals. It knows nothing, not even the sign of the measurement.
    Cost: none. Memory: none but the influence's own.
    """

    calibrated: ClassVar[bool] = False

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    def plan(self, problem: Problem, record: Record) -> Cost:
        return Cost()

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        draw = torch.randn(problem.n_train, problem.n_test, generator=torch_generator(seed, "random scores"), dtype=torch.float64)
        return Estimate(draw.to(problem.theta))
