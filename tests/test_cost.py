"""What work is said to take: counts that do not depend on the machine, and their forecast in seconds on this one."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import torch
from conftest import Run
from problems import answers, experiment, problem, trained

from influx.cost import Cost
from influx.errors import InfluxError
from influx.estimators import Estimate
from influx.estimators.inverse_curvature import InverseCurvature
from influx.pipelines import cost as pipeline
from influx.pipelines.cost import forecast, said
from influx.pipelines.estimate import _checked
from influx.solvers.base import products
from influx.solvers.cg import ConjugateGradient
from influx.solvers.exact import Exact


def test_one_after_the_other_adds_up_but_shares_its_memory():
    assert Cost(1, 2, 3, 4) + Cost(10, 20, 30, 1) == Cost(11, 22, 33, 4)
    assert sum((Cost(gradients=1, nbytes=n) for n in (5, 7, 6)), Cost()) == Cost(gradients=3, nbytes=7)


@pytest.mark.parametrize(
    ("cost", "wanted"),
    [
        (Cost(), "next to nothing"),
        (Cost(nbytes=1e9), "next to nothing"),
        (Cost(gradients=12345.0), "12,345 gradients"),
        (Cost(trainings=3, gradients=2, flops=1.26e9), "3 trainings, 2 gradients, 1.3e+09 operations"),
    ],
)
def test_counts_in_words(cost, wanted):
    assert said(cost) == wanted


@pytest.mark.parametrize(("name", "alone"), [("mlp", 2.0), ("conv", 40.0)])
def test_a_forecast_is_the_counts_at_their_rates(name, alone, monkeypatch):
    """One timed gradient of 32 rows, one timed product of 256-sided matrices, trainings at what theirs took: 40 of a plain chain, side by
    side, as long as two alone."""
    calls = iter([0.064, 2.0])
    monkeypatch.setattr(pipeline, "_seconds", lambda work: next(calls))
    rows = min(32, problem(name).n_train)
    fitted = replace(problem(name), train=problem(name).train.take(slice(0, rows)))
    seconds = forecast(fitted, Cost(gradients=100, flops=4.0 * 256**3, trainings=40), replace(trained("mlp"), seconds=0.5))
    assert seconds == pytest.approx(100 * 0.064 / rows + 2 * 2.0 + alone * 0.5)


def test_seconds_are_the_faster_of_two_runs():
    naps = iter([0.05, 0.01])
    assert 0.009 < pipeline._seconds(lambda: time.sleep(next(naps))) < 0.045


def test_curvature_products_are_counted_by_row_and_vector():
    """Forward, backward and its derivative: three passes, each a product and its sum for every weight; 31 parameters, one place each."""
    fitted = problem("mlp")
    assert fitted.flops_per_row == 2 * 31
    assert products(fitted, 5) == 6 * 5 * 36 * 62
    assert products(fitted, 5, 10) == 6 * 5 * 10 * 62


def test_an_inverse_costs_its_gradients_its_solves_and_its_blocks():
    fitted, n, m, p = problem("mlp"), 36, 6, 31
    cost = InverseCurvature(Exact()).plan(fitted, None)
    assert cost.gradients == n + m
    assert cost.flops == 2 * n * m * p + Exact().work(fitted, m).flops
    assert cost.nbytes == m * 2 * p * 8 + 3 * p * p * 8
    scarce = replace(fitted, memory=4 * 5 * p * 8)  # half of it: two columns of five copies
    assert InverseCurvature(ConjugateGradient()).plan(scarce, None).nbytes == pytest.approx(2 * 5 * p * 8)
    last = InverseCurvature(Exact(), params="last_layer").plan(fitted, None)
    assert last.nbytes == m * 2 * 15 * 8 + 3 * 15 * 15 * 8


def test_the_estimate_with_the_forecast_is_the_one_without():
    """Asking first changes nothing."""
    fitted = problem("softmax")
    method = InverseCurvature(Exact())
    cost = method.plan(experiment("softmax").untrained(0), None)
    assert cost == method.plan(fitted, None)
    torch.testing.assert_close(method.estimate(fitted, None, 0).influence, answers("softmax").influence("ggn"), rtol=1e-10, atol=1e-12)


def test_a_run_says_what_it_will_take_before_it_does(tiny: Run):
    ran = tiny("estimate", "method=exact", "model=logistic")
    cost = json.loads((ran.folder / "run.json").read_text())["cost"]
    assert cost["gradients"] == 60 + 8
    assert cost["trainings"] == 0
    before, after = ran.out.index("estimating: 68 gradients, "), ran.out.index("estimated 60 x 8 influences")
    assert before < after


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, r"Mine\.estimate must return an Estimate with a tensor of influences; it returned NoneType"),
        (Estimate(torch.zeros(36, 1)), r"Mine\.estimate returned influences of shape \(36, 1\); \[n_train, n_test\] is \(36, \d+\) here"),
    ],
)
def test_what_ones_own_estimator_returns_is_checked(made, message):
    with pytest.raises(InfluxError, match=message):
        _checked(made, problem("mlp"), "Mine")
