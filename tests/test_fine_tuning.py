"""Undoing by a few steps on some documents: which they are, where the steps lead, and which setting is chosen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import problem
from torch import Tensor

from influx.pipelines.tasks.fine_tuning import Setting, Tried, choose, grid, mean_gradient, path, sides

AWAY, TOWARDS = np.array([3, 1, 4, 0, 2]), np.array([2, 0, 4, 1, 3])


def test_what_pushes_the_effect_away_from_zero_comes_first() -> None:
    """Without row 1 a positive effect would be smaller by 2: it pushes it up. Of a negative effect it is the other way round."""
    influence = np.array([0.5, -2.0, 1.0])
    assert [part.tolist() for part in sides(influence, 0.3)] == [[1, 0, 2], [2, 0, 1]]
    assert [part.tolist() for part in sides(influence, -0.3)] == [[2, 0, 1], [1, 0, 2]]


def test_settings_of_one_path_differ_in_their_steps_and_ascend() -> None:
    made = grid(["undo", "both"], [5, 10], [0.1], [20, 3])
    assert [str(setting) for setting in made[0]] == ["undo, 5 documents, 3 steps of 0.1", "undo, 5 documents, 20 steps of 0.1"]
    assert len(made) == 4
    assert all([setting.steps for setting in part] == [3, 20] for part in made)


def test_the_gradient_of_a_mean_is_the_mean_of_the_gradients() -> None:
    fitted, rows = problem("mlp"), np.array([7, 2, 11])
    wanted = fitted.loss_gradients(fitted.train.take(torch.from_numpy(rows))).mean(0)
    torch.testing.assert_close(mean_gradient(fitted, fitted.theta, rows), wanted, rtol=1e-12, atol=1e-14)
    assert not mean_gradient(fitted, fitted.theta, rows[:0]).any()


def by_torch(mode: str, documents: int, rate: float, steps: int) -> Tensor:
    """The same with torch.optim.Adam and one plain loss: up on the ones, down on the others."""
    fitted = problem("mlp")
    theta = fitted.theta.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([theta], lr=rate)

    def mean(rows: np.ndarray) -> Tensor:
        return fitted.losses(theta, fitted.train.take(torch.from_numpy(rows[:documents].copy()))).mean()

    for _ in range(steps):
        optimiser.zero_grad()
        loss = {"undo": lambda: -mean(AWAY), "amplify": lambda: mean(TOWARDS), "both": lambda: mean(TOWARDS) - mean(AWAY)}[mode]()
        loss.backward()
        optimiser.step()
    return theta.detach()


@pytest.mark.parametrize("mode", ["undo", "amplify", "both"])
def test_steps_are_adams_without_weight_decay(mode: str) -> None:
    """After 2 and after 5 steps; the problem's own weight decay (0.02) has no part. Tolerance: float64 rounding in another order of sums,
    which Adam divides by its root of squared gradients."""
    settings = [Setting(mode, 2, 0.05, steps) for steps in (2, 5)]
    for setting, theta in path(problem("mlp"), settings, AWAY, TOWARDS):
        torch.testing.assert_close(theta, by_torch(mode, 2, 0.05, setting.steps), rtol=1e-9, atol=1e-11)


def test_undoing_raises_the_loss_of_its_documents_and_amplifying_lowers_it() -> None:
    fitted = problem("mlp")

    def loss(theta: Tensor, rows: np.ndarray) -> float:
        return float(fitted.losses(theta, fitted.train.take(torch.from_numpy(rows.copy()))).mean())

    ((_, undone),) = path(fitted, [Setting("undo", 2, 0.01, 10)], AWAY, TOWARDS)
    ((_, amplified),) = path(fitted, [Setting("amplify", 2, 0.01, 10)], AWAY, TOWARDS)
    assert loss(undone, AWAY[:2]) > loss(fitted.theta, AWAY[:2])
    assert loss(amplified, TOWARDS[:2]) < loss(fitted.theta, TOWARDS[:2])


def test_a_path_leaves_the_problem_as_it_is() -> None:
    fitted = problem("mlp")
    before = fitted.theta.clone()
    list(path(fitted, [Setting("both", 2, 0.5, 3)], AWAY, TOWARDS))
    assert torch.equal(fitted.theta, before)
    assert torch.equal(torch.cat([value.flatten() for value in fitted.params.values()]), before)


def tried(effect: float, loss: float, steps: int = 1) -> Tried:
    return Tried(Setting("undo", 1, 0.1, steps), effect, loss)


def test_the_effect_nearest_zero_is_chosen_among_those_that_do_little_damage() -> None:
    found = [tried(0.5, 1.0), tried(-0.2, 1.05), tried(0.01, 1.2)]
    assert choose(found, 1.0, 0.1).effect == -0.2
    assert choose(found, 1.0, 0.3).effect == 0.01
    assert choose(found, 0.5, 0.1).loss == 1.0  # none is near 0.5: the least damage
    assert choose([tried(math.nan, 1.0), tried(0.9, 9.0), tried(0.0, math.inf)], 1.0, 0.1).effect == 0.9
