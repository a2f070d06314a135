"""Shapley values of the training examples for a K-nearest-neighbour predictor, exactly (Jia et al. 2019, theorem 1).

For one test example (x, y), with the training examples sorted by their distance to x as 1, 2, ..., n, the utility of a subset S is

    labels    v(S) = (1/K) Σ_{k ≤ min(K, |S|)} 1[y_k(S) = y],          the share of the K nearest in S that have its label,
    numbers   v(S) = −((1/K) Σ_{k ≤ min(K, |S|)} y_k(S) − y)²,         minus the squared error of their mean,

y_k(S) being the target of the k-th nearest in S: what the measurement reads, so labels where labels judge a model that was trained without
them. Of targets that are vectors (reconstructions, assignments to clusters) the numbers' utility is summed over the coordinates.

The Shapley value s_i is i's mean marginal contribution over all orders of arrival. Two neighbours in the ranking differ by what swapping
them does, so that s follows from a recursion from the farthest to the nearest, with s_{n+1} = 0 and a target of 0 (no hit)
there. With a_i = min(K, i)/i, the chance that fewer than K of the i − 1 nearer ones came before,

    labels    s_i − s_{i+1} = (1/K) a_i (1[y_i = y] − 1[y_{i+1} = y])
    numbers   s_i − s_{i+1} = (1/K) (y_{i+1} − y_i) [a_i ((y_i + y_{i+1})/K − 2y) + (b_i Σ_{l<i} y_l + Σ_{l>i+1} b_{l−1} y_l)/K],
              b_i = min(K, i) (min(K, i) − 1) / (i (i − 1)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from influx import rules
from influx.cost import Cost
from influx.errors import InfluxError
from influx.estimators._scores import are_labels, comparable, judged, signed
from influx.estimators.base import Estimate, Estimator
from influx.problem import Examples, Problem
from influx.progress import progress
from influx.record import Record
from influx.stacking import blocks

COPIES = 8  # of n float64 numbers for each test example of a block


@dataclass(frozen=True)
class KnnShapley(Estimator):
    """influence[i, t] = s_i for test example t, with the sign of the measurement: positive = helpful when a lower measurement is better.

    The value is of the neighbours' vote, not of the trained model's measurement, and it shares out v(all) − v(none) instead of leaving
    one out: right in sign and rank at best, in units of the utility.

    Args:
        neighbors: K ≥ 1; more than n counts as all of them, divided by K.
        space: where distances (Euclidean) are taken: "features", what enters the trained model's output layer, or "inputs".

    1. Ties in distance keep the order of the training set (the paper leaves them open).
    2. Theorem 1 has s_n = 1[y_n = y]/n; min(K, n)/(nK) times the hit is the same for K ≤ n and right beyond.
    3. The recursion for numbers is derived for this utility in the same way and agrees with enumeration over all subsets.

    Cost: n x n_test distances and as many sorted keys; one forward pass an example for features. Memory: blocks of test examples.
    """

    calibrated: ClassVar[bool] = False
    neighbors: int = 10
    space: str = "features"

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    def plan(self, problem: Problem, record: Record) -> Cost:
        """
        Raises:
            InfluxError: the model's output layer is not linear, so that there are no features; or the neighbours' targets are not what the
                measurement compares with.
        """
        if not comparable(problem) or not (are_labels(problem) or judged(problem).targets.is_floating_point()):
            raise InfluxError(
                "method=knn_shapley lets training examples vote on what the measurement reads, and "
                f"{type(problem.measurement).__name__} asks what they have no answer to: use method=nearest, or another method."
            )
        width = self._points(problem, problem.train.take(slice(0, 1))).shape[1]
        n, m = problem.n_train, len(problem.test)
        passes = (n + m) / 3 if self.space == "features" else 0.0
        block = _columns(problem, m)[0]
        held = 8 * (n + m) * width + 8 * COPIES * n * (block.stop - block.start)
        return Cost(gradients=passes, flops=3.0 * n * m * width + 50.0 * n * m, nbytes=held)

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        train, test = self._points(problem, problem.train), self._points(problem, problem.test)
        value, targets = shapley_of_labels if are_labels(problem) else shapley_of_vectors, judged(problem).targets
        influence = problem.empty().zero_()
        for columns in progress(_columns(problem, len(test)), "neighbours, blocks of test examples"):
            order = nearest_first(train, test[columns])
            made = value(targets[order], problem.test.targets[columns], self.neighbors)
            values = torch.empty_like(made).scatter_(0, order, made)
            if problem.measurement.whole_set:
                influence += values.sum(1, keepdim=True) / len(test)
            else:
                influence[:, columns] = values.to(influence.dtype)
        return Estimate(signed(problem, influence))

    def _points(self, problem: Problem, examples: Examples) -> Float[Tensor, "n width"]:
        made = problem.features(examples) if self.space == "features" else examples.inputs.flatten(1)
        return made.detach().double()


def _columns(problem: Problem, count: int) -> list[slice]:
    return blocks(count, 8 * COPIES * problem.n_train, problem.memory // 4)


def nearest_first(train: Float[Tensor, "n width"], test: Float[Tensor, "m width"]) -> Int[Tensor, "n m"]:
    """Training rows by their distance to each test example, ties in their own order. Differences, not inner products: copies of a row are
    then equally far to the bit, and a test example's order does not depend on the others."""
    distances = torch.cdist(train, test, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.argsort(dim=0, stable=True)


def shapley_of_labels(labels: Int[Tensor, "n m"], wanted: Int[Tensor, " m"], neighbors: int) -> Float[Tensor, "n m"]:
    """s by rank, nearest first, in float64."""
    hits = _then_zero((labels == wanted).double())
    share = _nearer(len(labels), neighbors, hits)[0] / neighbors
    return _from_the_far_end(share * (hits[:-1] - hits[1:]))


def shapley_of_vectors(numbers: Float[Tensor, "n m *target"], wanted: Float[Tensor, " m *target"], neighbors: int) -> Float[Tensor, "n m"]:
    """The utilities of the coordinates added up, and so their values."""
    parts = zip(numbers.reshape(*numbers.shape[:2], -1).unbind(2), wanted.reshape(len(wanted), -1).unbind(1), strict=True)
    return torch.stack([shapley_of_numbers(column, aim, neighbors) for column, aim in parts]).sum(0)


def shapley_of_numbers(numbers: Float[Tensor, "n m"], wanted: Float[Tensor, " m"], neighbors: int) -> Float[Tensor, "n m"]:
    """s by rank, nearest first, in float64 and squared target units."""
    y = _then_zero(numbers.double())
    one, two = _nearer(len(numbers), neighbors, y)
    here, beyond = y[:-1], y[1:]
    nearer = here.cumsum(0) - here  # Σ_{l<i} y_l
    farther = _from_the_far_end(two * beyond) - two * beyond  # Σ_{l>i+1} b_{l−1} y_l
    inner = one * ((here + beyond) / neighbors - 2 * wanted.double()) + (two * nearer + farther) / neighbors
    return _from_the_far_end((beyond - here) / neighbors * inner)


def _then_zero(sorted_: Float[Tensor, "n m"]) -> Float[Tensor, "n+1 m"]:
    """A null player farther than all."""
    return torch.cat([sorted_, sorted_.new_zeros(1, sorted_.shape[1])])


def _nearer(n: int, neighbors: int, like: Tensor) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "n 1"]]:
    """a_i and b_i for i = 1, ..., n."""
    rank = torch.arange(1, n + 1, dtype=like.dtype, device=like.device).unsqueeze(1)
    k = rank.clamp_max(neighbors)
    return k / rank, k * (k - 1) / (rank * (rank - 1).clamp_min(1))


def _from_the_far_end(steps: Shaped[Tensor, "n m"]) -> Shaped[Tensor, "n m"]:
    """Σ_{l ≥ i} of the steps."""
    return steps.flip(0).cumsum(0).flip(0)
