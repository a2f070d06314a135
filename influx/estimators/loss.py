"""Each training example's own loss, as a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from influx import rules
from influx.cost import Cost
from influx.estimators._scores import for_every_test_example
from influx.estimators.base import Estimate, Estimator
from influx.problem import Problem
from influx.record import Record
from influx.stacking import blocks


@dataclass(frozen=True)
class Loss(Estimator):
    """influence[i, t] = ℓ_i(θ) for every t (its negative when a high measurement is good): hard examples matter.

    Good for: which examples matter at all, at the price of a forward pass; a method that does not beat it for this question has found
    hard examples, not influence. It cannot know which test example is affected, nor whether an example helps or harms: a wrong label has
    a high loss, and is called the most helpful.
    Unit: the training loss's, no change of anything; only ranks mean something.
    Cost: one forward pass a training example. Memory: one block of them.
    """

    calibrated: ClassVar[bool] = False
    marks: ClassVar[str] = "high"

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    def plan(self, problem: Problem, record: Record) -> Cost:
        return Cost(flops=problem.n_train * problem.flops_per_row)

    @torch.no_grad()
    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        made = problem.theta.new_empty(problem.n_train)
        for rows in blocks(problem.n_train, 4 * problem.bytes_per_row):
            made[rows] = problem.losses(problem.theta, problem.train.take(rows))
        return Estimate(for_every_test_example(problem, made))
