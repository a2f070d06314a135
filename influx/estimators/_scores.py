"""From scores that know nothing of the measurement to an influence matrix, and what targets such scores can compare."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from influx.measurements.base import Posing
from influx.problem import Examples, Problem


def signed(problem: Problem, scores: Float[Tensor, "n_train n_test"]) -> Float[Tensor, "n_train n_test"]:
    """Scores that are larger the more helpful an example is, as influences: removing a helpful example raises a measurement that should be
    low, and lowers one that should be high."""
    return scores if problem.measurement.lower_is_better else -scores


def for_every_test_example(problem: Problem, scores: Float[Tensor, " n_train"]) -> Float[Tensor, "n_train n_test"]:
    """One helpfulness a training example, the same in every column."""
    return signed(problem, scores).unsqueeze(1).expand(-1, problem.n_test).contiguous()


def judged(problem: Problem) -> Examples:
    """The training examples with the targets that the measurement reads: labels where it judges by labels a model that was trained without
    them."""
    return problem.train if problem.judged is None else problem.judged


def comparable(problem: Problem) -> bool:
    """Whether training and test examples have targets of one kind; the questions of a measurement's own need not."""
    train, test = judged(problem).targets, problem.test.targets
    if isinstance(problem.measurement, Posing):
        return False
    return train.is_floating_point() == test.is_floating_point() and train.shape[1:] == test.shape[1:]


def are_labels(problem: Problem) -> bool:
    """Whether those targets are one label each, in training and test examples alike."""
    targets = judged(problem).targets
    return comparable(problem) and not targets.is_floating_point() and targets.dim() == 1
