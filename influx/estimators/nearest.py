"""Similarity of inputs or of the model's features, as a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from influx import rules
from influx.cost import Cost
from influx.estimators._scores import are_labels, judged, signed
from influx.estimators.base import Estimate, Estimator
from influx.problem import Examples, Problem
from influx.record import Record
from influx.stacking import blocks


@dataclass(frozen=True)
class Nearest(Estimator):
    """influence[i, t] = s_it cos(φ_i, φ_t), φ the inputs or what enters the output layer; s = +1 for the same label and −1 for another
    (1 throughout when labels are ignored, and where the measurement reads none: numbers, reconstructions and places where training
    started are not compared). Its negative when a high measurement is good. A zero φ has similarity 0; a whole-set measurement gets the
    mean over the test set.

    Good for: how far looking alike goes: in the space of inputs it does not use the model at all. It cannot know how much an example moves
    the model: of two that look alike, one that is fitted with ease and one that is not score the same.
    Unit: none. Cost: a forward pass an example for features, and n_train x n_test inner products. Memory: both sets of φ.

    Args:
        space: "inputs" or "features".
        labels: "signed" or "ignored".

    Raises:
        InfluxError: features of a model whose output layer is not linear.
    """

    calibrated: ClassVar[bool] = False
    space: str = "features"
    labels: str = "signed"

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    def plan(self, problem: Problem, record: Record) -> Cost:
        n, m = len(problem.train), len(problem.test)
        width = self._vectors(problem, problem.train.take(slice(0, 1))).shape[1]
        passes = (n + m) * problem.flops_per_row if self.space == "features" else 0.0
        return Cost(flops=passes + 2.0 * n * m * width, nbytes=2.0 * (n + m) * width * problem.theta.element_size())

    @torch.no_grad()
    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        train, test = (normalize(self._vectors(problem, part), dim=1, eps=0.0).nan_to_num(0.0) for part in (problem.train, problem.test))
        influence, labels = problem.empty(), judged(problem).targets
        signs = self.labels == "signed" and are_labels(problem)
        for rows in blocks(problem.n_train, 2 * len(test) * test.element_size()):
            alike = train[rows] @ test.T  # [rows, test examples]
            if signs:
                same = labels[rows].unsqueeze(1) == problem.test.targets
                alike = torch.where(same, alike, -alike)
            influence[rows] = alike.mean(1, keepdim=True) if problem.measurement.whole_set else alike
        return Estimate(signed(problem, influence))

    def _vectors(self, problem: Problem, examples: Examples) -> Float[Tensor, "n width"]:
        return examples.inputs.flatten(1) if self.space == "inputs" else problem.features(examples)
