"""Undoing a bias by a few more steps of training on the documents that influence names (Silva et al., AISTATS 2022, their released code).

Of the documents that push a measurement away from zero, and of those that push it towards zero, the first N:

    undo       steps up the mean loss of the former: what they taught is forgotten
    amplify    steps down the mean loss of the latter: what they taught is repeated
    both       both at each step

1. The release goes on with the optimiser's state of the training; here Adam starts afresh, so that a result depends on the trained model
   alone. No weight decay: nothing but the documents moves the model.
2. Its mode "both" never loads the second list, which makes it "undo"; here it is both.
3. It takes the documents that raise the effect size whatever its sign; here those that push it away from zero, because a trained model's
   effect may be negative, and undoing is about zero.
4. It picks the best of 48 settings on the effect that it reports; here settings are chosen on a held-out word list (`choose`).

A step passes all N documents (2N for both) forwards and backwards; the path of a setting with K steps holds those with fewer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from influx.problem import Problem
from influx.stacking import blocks
from influx.training.first_order import Adam

UNDO, AMPLIFY, BOTH = "undo", "amplify", "both"
Rows = Int[np.ndarray, " rows"]


@dataclass(frozen=True)
class Setting:
    """`documents` is N, `steps` K, `rate` Adam's step size."""

    mode: str
    documents: int
    rate: float
    steps: int

    def __str__(self) -> str:
        return f"{self.mode}, {self.documents} documents, {self.steps} steps of {self.rate:g}"


@dataclass(frozen=True)
class Tried:
    """A setting with what it led to: `effect`, a measurement that should be zero, and the mean training loss."""

    setting: Setting
    effect: float
    loss: float


def sides(influence: Float[np.ndarray, " n_train"], effect: float) -> tuple[Rows, Rows]:
    """All rows, those first that push `effect` furthest from zero, and those first that push it furthest towards zero.

    Influence predicts the effect without a row less the effect with it: a row without which a positive effect would be smaller pushes it
    away from zero.
    """
    pushes = -influence * (1.0 if effect >= 0 else -1.0)
    return np.argsort(-pushes, kind="stable"), np.argsort(pushes, kind="stable")


def grid(modes: Sequence[str], documents: Sequence[int], rates: Sequence[float], steps: Sequence[int]) -> list[list[Setting]]:
    """All settings, in lists of those that lie on one path, in the order of their steps."""
    return [[Setting(mode, n, rate, k) for k in sorted(steps)] for mode in modes for n in documents for rate in rates]


def path(problem: Problem, settings: Sequence[Setting], away: Rows, towards: Rows) -> Iterator[tuple[Setting, Float[Tensor, " p"]]]:
    """The parameters after each of `settings`, which differ in their steps alone, and those ascend; `away` and `towards` are as `sides`
    gives them."""
    first = settings[0]
    theta = problem.theta.clone().unsqueeze(0)  # [1, p]: a stack of one
    update = Adam(lr=first.rate, weight_decay=0.0).rule([theta])
    up = away[: first.documents] if first.mode in (UNDO, BOTH) else away[:0]
    down = towards[: first.documents] if first.mode in (AMPLIFY, BOTH) else towards[:0]
    done = 0
    for setting in settings:
        while done < setting.steps:
            step = mean_gradient(problem, theta[0], down) - mean_gradient(problem, theta[0], up)
            update.step([step.unsqueeze(0)], first.rate)
            done += 1
        yield setting, theta[0].clone()


def mean_gradient(problem: Problem, theta: Float[Tensor, " p"], rows: Rows) -> Float[Tensor, " p"]:
    """∇ of the mean loss of some training examples, without the regulariser; 0 of none."""
    total = torch.zeros_like(theta)
    chosen = problem.train.take(torch.as_tensor(rows.copy(), device=theta.device))
    for part in blocks(len(rows), 4 * problem.bytes_per_row):
        with torch.enable_grad():
            leaf = theta.detach().clone().requires_grad_(True)
            loss = problem.losses(leaf, chosen.take(part)).sum() / len(rows)
            total += torch.autograd.grad(loss, leaf)[0]
    return total


def choose(tried: Iterable[Tried], loss: float, damage: float) -> Tried:
    """Of what was tried the effect nearest zero, among those whose mean loss is at most (1 + damage) x `loss`; if none is, the least loss.

    An effect or a loss that is not finite is never chosen while another is.
    """

    def worth(one: Tried) -> tuple[bool, bool, float]:
        finite = math.isfinite(one.effect) and math.isfinite(one.loss)
        bounded = finite and one.loss <= loss + damage * abs(loss)
        return not finite, not bounded, abs(one.effect) if bounded else one.loss

    return min(tried, key=worth)
