"""Representer points: the decomposition itself, kernel ridge regression as its closed form, and SciPy's optimum of the same objective."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import NOTHING_KEPT, TORCH_MEASURES, cast, experiment, problem, torch_loss
from scipy.optimize import minimize
from sklearn.kernel_ridge import KernelRidge
from torch.testing import assert_close

from influx.errors import AccuracyWarning, InfluxError
from influx.estimators import representer
from influx.estimators.representer import Representer, output_layer, refitted
from influx.measurements import LogProbability, Loss, Margin, MeanLoss
from influx.models.logistic import Logistic
from influx.problem import Problem
from influx.training.second_order import Newton

NAMES = ("ridge", "binary", "softmax", "mlp", "conv")


def kernel_features(fitted: Problem) -> list[torch.Tensor]:
    """Features of training and test examples with a constant 1 for the bias, by running the network up to its last module."""
    net = fitted.module
    net.load_state_dict(fitted.state)
    with torch.no_grad():
        hidden = [torch.nn.Sequential(*list(net)[:-1])(part.inputs) for part in (fitted.train, fitted.test)]
    return [torch.cat([h, torch.ones(len(h), 1, dtype=h.dtype)], 1) for h in hidden] if net[-1].bias is not None else hidden


def slopes(values, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    leaf = outputs.detach().requires_grad_(True)
    return torch.autograd.grad(values(leaf, targets).sum(), leaf)[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_sum_reproduces_the_outputs(name):
    """Σ_i α_i k(x_i, x) = f(x) on training and test examples, α_i = −(1/(λn)) ∂ℓ_i/∂f."""
    fitted = problem(name)
    layer, norm, _ = refitted(output_layer(fitted), 1e-10, 0)
    assert norm <= 1e-10
    features = kernel_features(fitted)
    outputs = layer.outputs(layer.theta, layer.train.inputs)
    alpha = -slopes(torch_loss, outputs, fitted.train.targets) / (fitted.weight_decay * fitted.n_train)
    for points, part in zip(features, (layer.train, layer.test), strict=True):
        wanted = layer.outputs(layer.theta, part.inputs)
        # the sum misses by the gradient over λ, times a feature vector's norm of at most 10
        assert_close(points @ features[0].T @ alpha, wanted, rtol=0, atol=10 * norm / fitted.weight_decay + 1e-12)


@pytest.mark.parametrize("measurement", [Loss(), Margin(), LogProbability(), MeanLoss()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("name", NAMES)
def test_influence_is_the_chain_rule_at_scipy_s_optimum(name, measurement):
    """The same objective minimised by SciPy's trust-region Newton from zero, then the formula entry by entry."""
    fitted = problem(name)
    if name == "ridge" and isinstance(measurement, Margin):
        pytest.skip("a margin needs labels")
    features, targets, lam, n = kernel_features(fitted), fitted.train.targets, fitted.weight_decay, fitted.n_train
    classes = fitted.module[-1].out_features

    def objective(flat: torch.Tensor) -> torch.Tensor:
        return torch_loss(features[0] @ flat.view(classes, -1).T, targets).mean() + 0.5 * lam * flat.square().sum()

    def numpy(function):
        return lambda flat: function(torch.from_numpy(flat)).numpy()

    derivative = {"jac": numpy(torch.func.grad(objective)), "hess": numpy(torch.func.hessian(objective))}
    found = minimize(
        numpy(objective), np.zeros(classes * features[0].shape[1]), method="trust-exact", options={"gtol": 1e-10}, **derivative
    )
    weight = torch.from_numpy(found.x).view(classes, -1)
    value = TORCH_MEASURES[type(measurement).__name__]
    above = slopes(torch_loss, features[0] @ weight.T, targets)
    below = slopes(value, features[1] @ weight.T, fitted.test.targets)
    wanted = torch.empty(n, len(fitted.test), dtype=torch.float64)
    for i in range(n):
        for t in range(len(fitted.test)):
            wanted[i, t] = (below[t] @ above[i]) * (features[0][i] @ features[1][t]) / (lam * n)
    if measurement.whole_set:
        wanted = wanted.mean(1, keepdim=True)
    ours = Representer().estimate(replace(fitted, measurement=measurement), None, 0).influence
    # two stationary points with gradients below 1e-10, a distance of 1e-10/λ apart
    assert_close(ours, wanted, rtol=0, atol=1e-7 * wanted.abs().max().item())


def test_regression_is_kernel_ridge():
    """scikit-learn's dual coefficients with a linear kernel on [x, 1] and penalty λn are α."""
    fitted = problem("ridge")
    features = [part.numpy() for part in kernel_features(fitted)]
    oracle = KernelRidge(alpha=fitted.weight_decay * fitted.n_train, kernel="linear").fit(features[0], fitted.train.targets.numpy())
    residual = oracle.predict(features[1]) - fitted.test.targets.numpy()
    ours = Representer().estimate(fitted, None, 0).influence.numpy()
    wanted = -oracle.dual_coef_[:, None] * (features[0] @ features[1].T) * residual[None, :]
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())  # dense float64 solves of condition below 100


def test_terms_taken_away_move_a_linear_measurement_by_exactly_their_score():
    """Σ over all training examples of the loss's scores is the chain rule on all of f: −∂m/∂f · f."""
    fitted = problem("mlp")
    layer, *_ = refitted(output_layer(fitted), 1e-10, 0)
    outputs = layer.outputs(layer.theta, layer.test.inputs)
    wanted = -(slopes(torch_loss, outputs, fitted.test.targets) * outputs).sum(1)
    assert_close(Representer().estimate(fitted, None, 0).influence.sum(0), wanted, rtol=0, atol=1e-9)


def test_a_layer_without_a_bias_has_no_constant_feature():
    made = experiment("softmax", model=Logistic(bias=False), training=Newton(weight_decay=0.02, tolerance=1e-12))
    fitted = made.problem(made.train(0, NOTHING_KEPT), 0)
    x, x_test = fitted.train.inputs, fitted.test.inputs
    weight = fitted.params["1.weight"]
    above = slopes(torch_loss, x @ weight.T, fitted.train.targets)
    below = slopes(torch_loss, x_test @ weight.T, fitted.test.targets)
    wanted = (above @ below.T) * (x @ x_test.T) / (0.02 * fitted.n_train)
    assert_close(Representer().estimate(fitted, None, 0).influence, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["softmax", "conv"])
def test_the_iterative_refit_of_wide_layers_finds_the_same_point(name, monkeypatch):
    whole = Representer().estimate(problem(name), None, 0)
    monkeypatch.setattr(representer, "DENSE", 0)
    ours = Representer().estimate(problem(name), None, 0)
    assert ours.facts["refit_gradient_norm"] <= 1e-10
    assert_close(ours.influence, whole.influence, rtol=0, atol=1e-7 * whole.influence.abs().max().item())


def test_float32_refits_in_float64():
    fitted = problem("mlp")
    single = Representer().estimate(cast(fitted, torch.float32), None, 0)
    assert single.influence.dtype == torch.float32
    assert single.facts["refit_gradient_norm"] <= 1e-10
    whole = Representer().estimate(fitted, None, 0).influence
    assert_close(single.influence.double(), whole, rtol=0, atol=1e-5 * whole.abs().max().item())  # features rounded to 1e-7


def test_a_refit_that_stops_early_says_so():
    with pytest.warns(AccuracyWarning, match=r"gradient norm of .* only \(method\.tolerance=1e-30\)"):
        Representer(tolerance=1e-30).estimate(problem("softmax"), None, 0)


def test_no_weight_decay_is_refused_before_training():
    made = experiment("softmax", training=Newton(weight_decay=0.0))
    with pytest.raises(InfluxError, match=r"divides by the weight decay, which is 0: set training\.weight_decay above 0"):
        Representer().plan(made.untrained(0), None)


def test_the_problem_is_left_alone_and_the_plan_is_cheap():
    fitted = problem("mlp")
    before = {name: value.clone() for name, value in fitted.state.items()}
    Representer().estimate(fitted, None, 0)
    assert all(torch.equal(fitted.state[name], value) for name, value in before.items())
    cost = Representer().plan(experiment("mlp").untrained(0), None)
    assert (cost.gradients, cost.trainings) == (14, 0)
