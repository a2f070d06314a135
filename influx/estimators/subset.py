"""Influence from models trained on random subsets of the training examples (Feldman & Zhang 2020; Ilyas et al. 2022).

Every training example is in some of the subsets and not in the others. What their models' measurements v(S) owe to it is

- `difference`: the mean of v over subsets without i minus the mean over those with i (V. Feldman & C. Zhang, "What neural networks
  memorize and why", NeurIPS 2020: their influence estimator);
- `lasso`, `ridge`: −a_i of the additive model v(S) ≈ c + Σ_{i in S} a_i, its penalty chosen on models that it is not fitted to
  (A. Ilyas et al., "Datamodels: predicting predictions from training data", ICML 2022: the lasso).

Departures from the papers:

1. They draw subsets of one size; here each example is kept on its own, with probability `fraction`. With one size, leaving i out of a
   subset means that another takes its place: only differences between examples could be known, and a test example's influences would sum
   to about 0, whatever the truth. A draw that keeps nothing is drawn again.
2. All models share the run's initialisation and batch order (the papers draw them anew): v differs by the subset alone. As in the papers,
   a model's loss is averaged over what is left, not divided by n.
3. One measurement of any kind takes the place of correctness (Feldman & Zhang) and of the margin (Ilyas et al.).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool

from influx import rules
from influx.cost import Cost
from influx.errors import InfluxError
from influx.estimators._fits import Fitted, difference, lasso, ridge
from influx.estimators.base import Estimate, Estimator
from influx.problem import Problem
from influx.record import Record
from influx.seeding import numpy_generator

FITS = {"difference": difference, "ridge": ridge, "lasso": lasso}
RISK = 1e-3  # expected examples that are in all subsets or in none, at most


@dataclass(frozen=True)
class Subset(Estimator):
    """influence[i, t] = mean change of m_t when i is left out of a random subset of the training examples.

    Its unit is the measurement's, its scale that of models trained on `fraction` of the examples: there one example weighs more than among
    all n (about 1/fraction as much, to first order), so it is right for leave-one-out up to a factor only. It makes no assumption on the
    model or its training: with enough subsets it is the truth about random subsets, with few it is mostly noise, and
    `facts` in run.json say which.

    The subsets are drawn for a purpose of their own, never those of truth=subset: an estimate does not see its own truth.

    Cost: `subsets` trainings, side by side. Memory: 3 x subsets x n_train numbers and some matrices of the influence's size.

    Args:
        fraction: probability that a subset keeps an example.
        subsets: how many models are trained.
        fit: "difference", "ridge" or "lasso".

    Raises:
        InfluxError: so few subsets that some example may be in all of them or in none.
    """

    calibrated: ClassVar[bool] = False
    fraction: float = 0.5
    subsets: int = 1000
    fit: str = "difference"

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    def plan(self, problem: Problem, record: Record) -> Cost:
        n, m = problem.n_train, self.subsets
        if n < 2:
            raise InfluxError("subsets of one training example are empty or the whole: raise dataset.train_size.")
        needed = self._needed(n)
        if m < needed:
            raise InfluxError(
                f"method.subsets={m} that keep {self.fraction:g} of {n} training examples may leave one in all of them or in none: "
                f"set method.subsets to {needed} at least, some hundreds for an estimate worth having."
            )
        square = m**3 if self.fit == "ridge" else 0.0
        return Cost(flops=4.0 * m * n * problem.n_test + 10 * square, trainings=m, nbytes=8.0 * (3 * m * n + 4 * n * problem.n_test))

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        kept = self.draw(problem.n_train, seed)
        values = record.without([np.flatnonzero(~row) for row in kept], average=True).double()
        fitted: Fitted = FITS[self.fit](torch.from_numpy(kept).to(values), values)
        return Estimate(-fitted.coefficients.to(problem.theta), facts=fitted.facts)

    def draw(self, n: int, seed: int) -> Bool[np.ndarray, "subsets n"]:
        """Which examples each subset keeps."""
        rng = numpy_generator(seed, "subsets of an estimate")
        kept = rng.random((self.subsets, n)) < self.fraction
        while not kept.any(1).all():
            empty = ~kept.any(1)
            kept[empty] = rng.random((int(empty.sum()), n)) < self.fraction
        if kept.all(0).any() or not kept.any(0).all():
            raise InfluxError(f"of method.subsets={self.subsets} all or none keep one of {n} training examples: raise method.subsets.")
        return kept

    def _needed(self, n: int) -> int:
        """The smallest number of subsets with n (p^m + (1 − p)^m) ≤ RISK, or little more."""
        return math.ceil(math.log(RISK / (2 * n)) / math.log(max(self.fraction, 1 - self.fraction)))
