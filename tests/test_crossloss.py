"""Cross-loss influence where everything has a closed form: a quadratic training loss, judged by any smooth function of the outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from problems import NOTHING_KEPT, experiment
from torch import Tensor
from torch.testing import assert_close

from influx.estimators.inverse_curvature import InverseCurvature
from influx.measurements import Measurement
from influx.models.linear import Linear
from influx.problem import Problem
from influx.solvers.exact import Exact

DECAY = 0.05  # of the ridge problem


@dataclass(frozen=True)
class Wave(Measurement):
    """sin(3ŷ) + ŷ³: nothing that a training would minimise, and no label in it."""

    unit: ClassVar[str] = "none"
    lower_is_better: ClassVar[bool] = True

    def value(self, outputs, targets, objective):
        return torch.sin(3 * outputs[..., 0]) + outputs[..., 0] ** 3


def fitted() -> Problem:
    made = experiment("ridge", model=Linear(bias=False), measurement=Wave())
    return made.problem(made.train(0, NOTHING_KEPT), 0)


def optimum(problem: Problem, weights: Tensor) -> Tensor:
    """θ(w) = (Xᵀ W X/n + λI)⁻¹ Xᵀ W y/n."""
    x, y, n = problem.train.inputs, problem.train.targets, problem.n_train
    return torch.linalg.solve(x.T @ (weights[:, None] * x) / n + DECAY * torch.eye(x.shape[1]).double(), x.T @ (weights * y) / n)


def wave(problem: Problem, theta: Tensor) -> Tensor:
    predicted = problem.test.inputs @ theta
    return torch.sin(3 * predicted) + predicted**3


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_influence_is_the_analytic_derivative_of_the_measurement_in_the_weights(curvature):
    """influence[i, t] = −∂m_t/∂w_i at w = 1, by autograd through the closed-form optimum."""
    problem = fitted()
    ours = InverseCurvature(Exact(), curvature, 0.0).estimate(problem, None, 0).influence
    derivative = torch.autograd.functional.jacobian(lambda w: wave(problem, optimum(problem, w)), torch.ones(problem.n_train).double())
    assert_close(ours, -derivative.T, rtol=1e-8, atol=1e-10)  # the training stopped at a gradient norm of 1e-12


def test_removing_a_small_part_of_an_example_does_what_is_predicted():
    problem, part = fitted(), 1e-5
    ours = InverseCurvature(Exact(), "hessian", 0.0).estimate(problem, None, 0).influence
    ones = torch.ones(problem.n_train).double()
    full = wave(problem, optimum(problem, ones))
    less = torch.stack([wave(problem, optimum(problem, ones - part * row)) for row in torch.eye(problem.n_train).double()])
    assert_close((less - full) / part, ours, rtol=0, atol=1e-4 * ours.abs().max().item())  # the next order is some 1e-5


def test_the_test_examples_targets_are_not_looked_at():
    problem = fitted()
    others = replace(problem, test=replace(problem.test, targets=torch.full_like(problem.test.targets, torch.nan)))
    one, other = (InverseCurvature(Exact(), "hessian", 0.0).estimate(each, None, 0).influence for each in (problem, others))
    assert torch.equal(one, other)
