"""From scores that know nothing of the measurement to an influence matrix."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from influx.problem import Problem


def signed(problem: Problem, scores: Float[Tensor, "n_train n_test"]) -> Float[Tensor, "n_train n_test"]:
    """Scores that are larger the more helpful an example is, as influences: removing a helpful example raises a measurement that should be
    low, and lowers one that should be high."""
    return scores if problem.measurement.lower_is_better else -scores


def for_every_test_example(problem: Problem, scores: Float[Tensor, " n_train"]) -> Float[Tensor, "n_train n_test"]:
    """One helpfulness a training example, the same in every column."""
    return signed(problem, scores).unsqueeze(1).expand(-1, problem.n_test).contiguous()
