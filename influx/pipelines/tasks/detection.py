"""How well suspicion finds wrong labels. Examples of equal suspicion are inspected in random order: every number is the expected one.

Symbols: n training examples, w of them with a wrong label; `suspicion` [n], high = inspected first; `wrong` [n].

- `roc_auc`: probability that a wrong label is more suspicious than a right one, ties counting half; 0.5 by chance;
- `average_precision`: mean over wrong labels of the precision when it is found (scikit-learn's, groups of ties taken as one step); about
  w/n by chance;
- `recall_at_<share>`: share of the wrong labels among the round(share x n) most suspicious examples; `share` by chance, and at best
  min(1, share x n / w), as no more can be found than are inspected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from sklearn.metrics import average_precision_score, roc_auc_score

from influx.pipelines.tasks.suspicion import Suspicion

POINTS = 101  # of a curve


class Measured(NamedTuple):
    """A statistic, and what an unrelated and a perfect score would have."""

    value: float
    chance: float
    best: float


def measures(suspicion: Suspicion, wrong: Bool[np.ndarray, " n_train"], budgets: Sequence[float]) -> dict[str, Measured]:
    """The statistics above by name; `budgets` are shares of the training set that are inspected."""
    n, w = len(wrong), int(wrong.sum())
    made = {
        "roc_auc": Measured(float(roc_auc_score(wrong, suspicion)), 0.5, 1.0),
        "average_precision": Measured(float(average_precision_score(wrong, suspicion)), w / n, 1.0),
    }
    for budget in budgets:
        count = inspected(budget, n)
        recall = float(found(suspicion, wrong, np.array([count]))[0]) / w
        made[f"recall_at_{budget:g}"] = Measured(recall, count / n, min(1.0, count / w))
    return made


def inspected(budget: float, n: int) -> int:
    """How many of n examples a share is: at least one."""
    return max(1, round(budget * n))


def curve(suspicion: Suspicion, wrong: Bool[np.ndarray, " n_train"]) -> Float[np.ndarray, " points"]:
    """Share of the wrong labels found when 0, 1, ... 100 % of the examples are inspected."""
    return found(suspicion, wrong, shares() * len(wrong)) / wrong.sum()


def shares() -> Float[np.ndarray, " points"]:
    return np.linspace(0.0, 1.0, POINTS)


def found(suspicion: Suspicion, wrong: Bool[np.ndarray, " n_train"], counts: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Expected number of wrong labels among the `counts` most suspicious examples: a straight line through each group of ties."""
    _, group = np.unique(-suspicion, return_inverse=True)
    sizes, hits = np.bincount(group), np.bincount(group, weights=wrong)
    return np.interp(counts, np.append(0, np.cumsum(sizes)), np.append(0, np.cumsum(hits)))
