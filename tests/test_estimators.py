"""Influence functions against dense float64 algebra, closed forms, statsmodels, and retraining with other weights.

What every method owes is in test_conformance.
"""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from methods import METHODS, node
from problems import (
    NOTHING_KEPT,
    Prediction,
    affine,
    answers,
    dense,
    experiment,
    problem,
    ridge_solution,
    with_intercept,
)
from statsmodels.api import OLS
from statsmodels.stats.outliers_influence import OLSInfluence
from torch.testing import assert_close

from influx import stacking
from influx.errors import AccuracyWarning, InfluxError
from influx.estimators import Estimator
from influx.estimators.inverse_curvature import InverseCurvature
from influx.instantiate import build
from influx.measurements import LogProbability, Loss, Margin, MeanLoss
from influx.problem import Examples, Problem
from influx.solvers.cg import ConjugateGradient
from influx.solvers.exact import Exact
from influx.training.second_order import Newton

SEED = 4

pytestmark = pytest.mark.filterwarnings("ignore::influx.errors.AccuracyWarning")  # the quick solvers say that they are quick

INVERSES = ("exact", "cg", "lissa", "arnoldi", "nystrom")  # the last two keep 50 directions: all of a problem of up to 31 parameters
CAPS = {"lissa": 5e-2, "cg": 1e-6}  # relative Frobenius error at the shipped defaults; the others are dense algebra


def shipped(method: str, **changes: Any) -> Estimator:
    return build({**node(method), **changes}, Estimator, "method")


def influence(method: Estimator, fitted: Problem, **changes: Any) -> torch.Tensor:
    return method.estimate(replace(fitted, **changes), None, SEED).influence


@pytest.mark.parametrize("method", INVERSES)
def test_scores_are_linear_in_the_measurement(method):
    one, other = (influence(shipped(method), problem("ridge"), measurement=Prediction(factor=factor)) for factor in (-250.0, 1.0))
    assert_close(one, -250 * other, rtol=0, atol=1e-8 * one.abs().max().item())  # rounding of an iterative float64 method


@pytest.mark.parametrize("name", ["softmax", "mlp"])
@pytest.mark.parametrize("method", [method for method in METHODS if node(method)["_target_"].endswith(".InverseCurvature")])
def test_large_damping_leaves_gradient_dot_products(method, name):
    """A → δI: influence → (1/nδ) ∇ℓ_i · ∇m_t, whatever the curvature and its approximation."""
    known, fitted = answers(name), problem(name)
    wanted = known.train_gradients @ known.test_gradients.T / fitted.n_train / 1e7
    # the curvature's share of A is at most 1e-7; lissa's series has (1 − 1/1.1)^1000 left
    assert_close(influence(shipped(method, damping=1e7), fitted), wanted, rtol=0, atol=2e-7 * wanted.abs().max().item())


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
@pytest.mark.parametrize("name", ["ridge", "binary", "softmax", "mlp"])
@pytest.mark.parametrize("method", INVERSES)
def test_agreement_with_the_dense_reference(method, name, kind):
    """As shipped; and each column within what its own reported residual allows: ‖x − A⁻¹b‖ ≤ ‖r‖ / λ_min(A)."""
    if (method, name, kind) == ("nystrom", "mlp", "hessian"):
        pytest.skip("a sketch of a semi-definite matrix: the data part of this Hessian is none")
    result = shipped(method, curvature=kind).estimate(problem(name), None, SEED)
    known = answers(name)
    wanted = known.influence(kind)
    error = result.influence - wanted
    assert error.norm() / wanted.norm() < CAPS.get(method, 1e-9)
    lowest = torch.linalg.eigvalsh(known.matrix(kind))[0]
    residual = torch.tensor([solve["residual"] for solve in result.solves], dtype=torch.float64)
    allowed = known.train_gradients.norm(dim=1)[:, None] * (residual * known.test_gradients.norm(dim=1) / lowest)[None, :] / len(wanted)
    assert (error.abs() <= allowed + 1e-11 * wanted.abs().max()).all()  # and the rounding of the products around the solve


@pytest.mark.parametrize("measurement", [Loss(), Margin(), LogProbability(), MeanLoss()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("name", ["binary", "softmax", "mlp", "conv"])
def test_the_formula_against_dense_algebra(name, measurement):
    """(1/n) ∇m_tᵀ (C + (λ + δ) I)⁻¹ ∇ℓ_i, for every measurement."""
    fitted = replace(problem(name), measurement=measurement)
    ours = InverseCurvature(Exact(), "ggn", 0.02).estimate(fitted, None, 0).influence
    # both are dense float64 solves of condition below 20
    assert_close(ours, dense(fitted).influence("ggn", 0.02), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
@pytest.mark.parametrize(("method", "name"), [*((method, "mlp") for method in INVERSES), ("exact", "conv"), ("cg", "conv")])
def test_last_layer_is_dense_block_algebra(method, name, kind):
    fitted = problem(name)
    block = dense(fitted.select("last_layer"))
    size = len(block.ggn)
    assert_close(block.train_gradients, answers(name).train_gradients[:, -size:], rtol=0, atol=1e-13)
    made = shipped(method, curvature=kind, params="last_layer", damping=0.05)
    wanted = block.influence(kind, 0.05)
    assert (influence(made, fitted) - wanted).norm() / wanted.norm() < CAPS.get(method, 1e-9)


def test_solves_say_what_they_did():
    fitted = problem("softmax")
    exact, cg = (InverseCurvature(solver, "ggn", 0.1).estimate(fitted, None, 0).solves for solver in (Exact(), ConjugateGradient()))
    assert len(exact) == len(cg) == fitted.n_test
    lowest = torch.linalg.eigvalsh(answers("softmax").matrix("ggn", 0.1))[0].item()
    for row in exact + cg:
        assert list(row) == ["iterations", "residual", "converged", "damping", "smallest_eigenvalue"]
        assert row["converged"] is True
        assert row["residual"] <= 1e-8
        assert row["damping"] == pytest.approx(0.12)
        assert row["smallest_eigenvalue"] >= lowest - 1e-12
    assert exact[0]["smallest_eigenvalue"] == pytest.approx(lowest, abs=1e-12)


def test_an_indefinite_hessian_is_solved_with_a_warning():
    with pytest.warns(AccuracyWarning, match="not positive definite"):
        ours = InverseCurvature(Exact(), "hessian").estimate(problem("conv"), None, 0).influence
    wanted = answers("conv").influence("hessian")
    condition = torch.linalg.cond(answers("conv").hessian).item()
    assert (ours - wanted).norm() / wanted.norm() < 1e-12 * condition  # the matrices agree to 1e-12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curvature": "fischer"}, r"method\.curvature=fischer .* one of hessian, ggn, fisher\. Did you mean 'fisher'"),
        ({"damping": -0.1}, r"method\.damping=-0\.1 is not possible: it must be a number of at least 0, or auto"),
        ({"params": "last_layers"}, r"method\.params=last_layers .*Did you mean 'last_layer'"),
    ],
)
def test_a_wrong_option_is_refused(changes, message):
    with pytest.raises(InfluxError, match=message):
        InverseCurvature(Exact(), **changes)


# --------------------------------------------------------------------------------- closed forms: ridge and least squares


def hat(fitted: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, test x, residuals y − xθ, leverages (1/n) x_iᵀA⁻¹x_i, and x_iᵀA⁻¹x_t / n, with A = XᵀX/n + λI."""
    x, x_test, y = with_intercept(fitted.train.inputs), with_intercept(fitted.test.inputs), fitted.train.targets.numpy()
    n, d = x.shape
    inverse = np.linalg.inv(x.T @ x / n + fitted.weight_decay * np.eye(d))
    residual = y - x @ ridge_solution(x, y, fitted.weight_decay)
    return x, x_test, residual, np.einsum("ip,pq,iq->i", x, inverse, x) / n, x @ inverse @ x_test.T / n


@cache
def least_squares() -> Problem:
    """Row `ridge` without a penalty: full rank, so still strictly convex."""
    made = experiment("ridge", training=Newton(weight_decay=0.0, tolerance=1e-12))
    return made.problem(made.train(0, NOTHING_KEPT), 0)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("penalised", [True, False])
def test_influence_is_the_first_order_part_of_the_hat_matrix_formula(kind, penalised):
    """θ₋ᵢ − θ = −A⁻¹x_i e_i / (n (1 − h_i)); the estimate leaves out 1/(1 − h_i). Predictions are linear, so nothing else is left out."""
    fitted = problem("ridge") if penalised else least_squares()
    _, _, residual, leverage, across = hat(fitted)
    ours = InverseCurvature(Exact(), kind).estimate(replace(fitted, measurement=Prediction()), None, 0).influence.numpy()
    np.testing.assert_allclose(ours, -across * residual[:, None], rtol=0, atol=1e-10)  # dense float64 algebra, gradient norm 1e-12
    x, y = with_intercept(fitted.train.inputs), fitted.train.targets.numpy()
    full = ridge_solution(x, y, fitted.weight_decay)
    x_test = with_intercept(fitted.test.inputs)
    refitted = []
    for i in range(len(y)):
        weights = np.ones(len(y))
        weights[i] = 0.0
        refitted.append(x_test @ (ridge_solution(x, y, fitted.weight_decay, weights) - full))
    np.testing.assert_allclose(ours / (1 - leverage)[:, None], np.array(refitted), rtol=0, atol=1e-8)


def test_influence_of_the_loss_is_its_chain_rule():
    fitted = problem("ridge")
    _, x_test, residual, _, across = hat(fitted)
    test_residual = fitted.test.targets.numpy() - x_test @ affine(fitted.params)[0]
    ours = InverseCurvature(Exact(), "hessian").estimate(fitted, None, 0).influence.numpy()
    np.testing.assert_allclose(ours, across * residual[:, None] * test_residual[None, :], rtol=0, atol=1e-10)  # as above


def test_least_squares_against_statsmodels():
    """Second oracle: OLS influence. DFFITS and leverage come from statsmodels' own code, leave-one-out parameters from its refits."""
    fitted = least_squares()
    x, y = with_intercept(fitted.train.inputs), fitted.train.targets.numpy()
    oracle = OLSInfluence(OLS(y, x).fit())
    _, x_test, _, leverage, _ = hat(fitted)
    np.testing.assert_allclose(leverage, oracle.hat_matrix_diag, rtol=0, atol=1e-12)
    ours = InverseCurvature(Exact(), "hessian").estimate(replace(fitted, measurement=Prediction()), None, 0).influence.numpy()
    changes = (oracle.params_not_obsi - oracle.results.params) @ x_test.T  # [n, n_test]
    np.testing.assert_allclose(ours / (1 - oracle.hat_matrix_diag)[:, None], changes, rtol=0, atol=1e-8)
    own = replace(fitted, measurement=Prediction(), test=Examples(fitted.train.inputs, fitted.train.targets))
    diagonal = InverseCurvature(Exact(), "hessian").estimate(own, None, 0).influence.diagonal().numpy()
    # the change of a point's own prediction: e_i − e_i/(1 − h_i)
    np.testing.assert_allclose(diagonal / (1 - leverage), oracle.resid - oracle.resid_press, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["binary", "softmax", "mlp"])
def test_influence_is_the_derivative_of_reweighting(name):
    """d m_t / d ε of the optimum with w_i = 1 − ε, by retraining with w_i = 1 ± h: no curvature formula on this side."""
    made, fitted = experiment(name), problem(name)
    rows, step = [0, 5, 11], 1e-3
    weights = torch.ones(6, fitted.n_train, dtype=torch.float64)
    for k, row in enumerate(rows):
        weights[2 * k, row], weights[2 * k + 1, row] = 1 - step, 1 + step
    start = made.task(0, weights)
    stacked = {key: stacking.stack(fitted.params, 6)[key] for key in start.params}
    training = replace(made.training, tolerance=1e-11)
    fit = training.fit(replace(start, params=stacked, reference=fitted.params))
    values = made.measure(0, start.module, fit.params, fit.buffers)
    slope = (values[0::2] - values[1::2]) / (2 * step)
    ours = InverseCurvature(Exact(), "hessian").estimate(fitted, None, 0).influence[rows]
    # truncation h²/6 of a curve with curvature (1/λ_min n)² ≈ 10; training error 1e-11/(λ_min h)
    assert_close(slope, ours, rtol=0, atol=2e-5 * ours.abs().max().item())


# -------------------------------------------------------------------------------------------------------- a method of one's own


def test_the_example_of_contributing_is_what_it_says():
    """The code block as it stands: ∇m_tᵀ sign(∇ℓ_i)."""
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    code, config = (text.split(f"```{language}\n")[1].split("```")[0] for language in ("python", "yaml"))
    module = types.ModuleType("sign_dot")
    sys.modules["sign_dot"] = module
    try:
        exec(code, module.__dict__)
        settings = yaml.safe_load(config)
        settings["_target_"] = settings["_target_"].removeprefix("influx.estimators.")
        method = build(settings, Estimator, "method")
    finally:
        del sys.modules["sign_dot"]
    known, fitted = answers("conv"), problem("conv")
    assert_close(influence(method, fitted), known.train_gradients.sign() @ known.test_gradients.T, rtol=0, atol=1e-12)
    assert method.plan(fitted, None).gradients == 24 + 6
