"""Influence estimates: one conformance suite over every method in conf/method, and closed forms for those with a known answer.

A method passes by its YAML alone: the suite globs `conf/method/*.yaml`, so a new method is tested with no edit here.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from problems import (
    NAMES,
    NOTHING_KEPT,
    TABLE,
    Prediction,
    affine,
    answers,
    cast,
    dense,
    experiment,
    problem,
    ridge_solution,
    with_intercept,
)
from scipy.stats import spearmanr
from statsmodels.api import OLS
from statsmodels.stats.outliers_influence import OLSInfluence
from torch.testing import assert_close

from influx import stacking
from influx.errors import AccuracyWarning, InfluxError
from influx.estimators import Estimate, Estimator
from influx.estimators.inverse_curvature import InverseCurvature
from influx.instantiate import build
from influx.measurements import LogProbability, Loss, Margin, MeanLoss
from influx.problem import Examples, Problem
from influx.solvers.cg import ConjugateGradient
from influx.solvers.exact import Exact
from influx.training.first_order import Sgd
from influx.training.second_order import Newton
from influx.trajectory import Trajectory

CONF = Path(__file__).parents[1] / "conf"
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
QUICK = {"depth": 60}  # steps of iterative solvers where only an invariance is tested, which holds at any depth
SEED = 4

pytestmark = pytest.mark.filterwarnings("ignore::influx.errors.AccuracyWarning")  # the quick solvers say that they are quick


@cache
def node(method: str) -> dict[str, Any]:
    """The method's composed configuration."""
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("estimate", overrides=[f"method={method}"])
    return OmegaConf.to_container(config["method"])


def estimator(method: str, *, quick: bool = True, **changes: Any) -> Estimator:
    """The method as shipped, with `changes`; `quick` shortens iterations."""

    def shortened(part: dict[str, Any]) -> dict[str, Any]:
        quickly = {key: min(value, QUICK[key]) if key in QUICK else value for key, value in part.items()}
        return {key: shortened(value) if isinstance(value, dict) else value for key, value in quickly.items()}

    made = {**node(method), **changes}
    return build(shortened(made) if quick else made, Estimator, "method")


def having(key: str) -> list[str]:
    return [method for method in METHODS if key in node(method)]


@cache
def followed(name: str) -> tuple[Problem, Trajectory]:
    """Row `name` after 20 recorded full-batch steps, for methods that follow the training."""
    training = Sgd(lr=0.1, epochs=20, batch_size=None, momentum=0.0, weight_decay=TABLE[name].training.weight_decay)
    made = experiment(name, training=training)
    trained = made.train(SEED, NOTHING_KEPT, record=True)
    return made.problem(trained, SEED), trained.trajectory


def subject(method: Estimator, name: str) -> tuple[Problem, Trajectory | None]:
    """The fitted problem that `method` gets, with the record it needs."""
    return followed(name) if method.needs_trajectory else (problem(name), None)


def estimate(method: Estimator, name: str, seed: int = SEED, **changes: Any) -> torch.Tensor:
    fitted, trajectory = subject(method, name)
    return run(method, replace(fitted, **changes), trajectory, seed).influence


def run(method: Estimator, fitted: Problem, trajectory: Trajectory | None, seed: int = SEED) -> Estimate:
    return method.estimate(fitted, trajectory, seed)


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    """Equal to the rounding of an iterative float64 method, relative to the largest score."""
    assert_close(one, other, rtol=0, atol=1e-8 * other.abs().max().item())


# ------------------------------------------------------------------------------------------------------------ conformance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", METHODS)
def test_shape_type_and_numbers(method, name, dtype):
    made = estimator(method)
    fitted, trajectory = subject(made, name)
    fitted, trajectory = cast(fitted, dtype), trajectory and cast_trajectory(trajectory, dtype)
    result = run(made, fitted, trajectory)
    assert result.influence.shape == (TABLE[name].n, 6)
    assert result.influence.dtype == dtype
    assert torch.isfinite(result.influence).all()
    assert not result.influence.requires_grad
    assert (result.influence.abs().amax(0) > 0).all()


def cast_trajectory(trajectory: Trajectory, dtype: torch.dtype) -> Trajectory:
    return Trajectory(tuple(replace(s, params={key: value.to(dtype) for key, value in s.params.items()}) for s in trajectory.steps))


@pytest.mark.parametrize("name", ["ridge", "softmax", "mlp"])
@pytest.mark.parametrize("method", METHODS)
def test_sign_removing_the_test_examples_own_copy_raises_its_loss(method, name):
    """A training example is helpful to itself: influence of its removal on its own loss is positive."""
    made = estimator(method)
    fitted, trajectory = subject(made, name)
    own = run(made, replace(fitted, test=fitted.train), trajectory).influence.diagonal()
    assert (own > 0).all()


@pytest.mark.parametrize("name", ["ridge", "softmax", "mlp"])
@pytest.mark.parametrize("method", METHODS)
def test_permuting_training_examples_permutes_rows(method, name):
    made = estimator(method)
    fitted, trajectory = subject(made, name)
    order = torch.randperm(fitted.n_train, generator=torch.Generator().manual_seed(0))
    shuffled = replace(fitted, train=fitted.train.take(order))
    if trajectory is not None:
        place = torch.argsort(order)
        trajectory = Trajectory(tuple(replace(step, rows=place[step.rows]) for step in trajectory.steps))
    close(run(made, shuffled, trajectory).influence, estimate(made, name)[order])


@pytest.mark.parametrize("method", METHODS)
def test_permuting_test_examples_permutes_columns(method):
    made = estimator(method)
    fitted, _ = subject(made, "softmax")
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    close(estimate(made, "softmax", test=fitted.test.take(order)), estimate(made, "softmax")[:, order])


@pytest.mark.parametrize("method", METHODS)
def test_a_test_examples_scores_do_not_depend_on_the_others(method):
    made = estimator(method, quick=False)
    fitted, _ = subject(made, "softmax")
    alone = estimate(made, "softmax", test=fitted.test.take(slice(2, 3)))
    whole = estimate(made, "softmax")[:, 2:3]
    # block solvers share a search space, to their tolerance (1e-8 for cg, here with condition 20); the series does not
    assert_close(alone, whole, rtol=0, atol=1e-6 * whole.abs().max().item())


@pytest.mark.parametrize("method", METHODS)
def test_duplicated_training_examples_score_alike(method):
    made = estimator(method)
    fitted, trajectory = subject(made, "softmax")
    rows = torch.cat([torch.arange(fitted.n_train), torch.tensor([0, 7])])
    if trajectory is not None:
        trajectory = Trajectory(tuple(replace(step, rows=torch.arange(len(rows))) for step in trajectory.steps))
    scores = run(made, replace(fitted, train=fitted.train.take(rows)), trajectory).influence
    close(scores[-2:], scores[[0, 7]])


@pytest.mark.parametrize("name", ["ridge", "softmax", "mlp"])
@pytest.mark.parametrize("method", METHODS)
def test_log_probability_is_minus_the_loss(method, name):
    made = estimator(method)
    close(estimate(made, name, measurement=LogProbability()), -estimate(made, name, measurement=Loss()))


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_linear_in_the_measurement(method):
    made = estimator(method)
    close(estimate(made, "ridge", measurement=Prediction(factor=-250.0)), -250 * estimate(made, "ridge", measurement=Prediction()))


@pytest.mark.parametrize("name", ["ridge", "softmax", "mlp"])
@pytest.mark.parametrize("method", METHODS)
def test_the_whole_sets_score_is_the_mean(method, name):
    made = estimator(method, quick=False) if method == "cg" else estimator(method)
    whole = estimate(made, name, measurement=MeanLoss())
    assert whole.shape == (TABLE[name].n, 1)
    mean = estimate(made, name).mean(1, keepdim=True)
    # linear in the right-hand side, up to the tolerance that cg stops at (1e-8 of each side, times a condition of 70)
    assert_close(whole, mean, rtol=0, atol=1e-6 * mean.abs().max().item())


@pytest.mark.parametrize("name", ["softmax", "mlp"])
@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bytes(method, name):
    made = estimator(method)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = estimate(made, name)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(estimate(made, name), one)


@pytest.mark.parametrize("name", ["ridge", "binary", "softmax", "mlp", "conv"])
@pytest.mark.parametrize("method", METHODS)
def test_float32_ranks_like_float64(method, name):
    made = estimator(method)
    fitted, trajectory = subject(made, name)
    single = run(made, cast(fitted, torch.float32), trajectory and cast_trajectory(trajectory, torch.float32)).influence
    double = run(made, fitted, trajectory).influence
    for one, other in zip(single.T, double.T, strict=True):
        assert spearmanr(one, other).statistic >= 0.999  # one swapped pair of neighbours among 24 costs 0.0009


@pytest.mark.parametrize("name", ["softmax", "mlp"])
@pytest.mark.parametrize("method", METHODS)
def test_blocks_of_rows_change_nothing(method, name, monkeypatch):
    made = estimator(method)
    fitted, trajectory = subject(made, name)
    fitted = replace(fitted, test=fitted.test.take(slice(0, 2)))
    whole = run(made, fitted, trajectory).influence
    monkeypatch.setattr(stacking, "BLOCK_BYTES", fitted.n_train * (fitted.bytes_per_row + fitted.theta.nbytes) // 2)
    assert len(list(fitted.train_gradients())) > 1
    close(run(made, fitted, trajectory).influence, whole)


@pytest.mark.parametrize("method", METHODS)
def test_the_problem_is_left_alone(method):
    made = estimator(method)
    fitted, trajectory = subject(made, "conv")
    before = {key: value.clone() for key, value in {**fitted.params, **fitted.buffers, **fitted.module.state_dict()}.items()}
    run(made, fitted, trajectory)
    after = {**fitted.params, **fitted.buffers, **fitted.module.state_dict()}
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not fitted.module.training


@pytest.mark.parametrize("name", ["softmax", "mlp", "conv"])
@pytest.mark.parametrize("method", having("damping"))
def test_large_damping_leaves_gradient_dot_products(method, name):
    """A → δI: influence → (1/nδ) ∇ℓ_i · ∇m_t."""
    made = estimator(method, damping=1e7)
    fitted, trajectory = subject(made, name)
    known = dense(fitted)
    wanted = known.train_gradients @ known.test_gradients.T / fitted.n_train / 1e7
    # the curvature's share of A is at most 1e-7; lissa's series has (1 − 1/1.1)^60 = 3e-63 left, or 5e-10 with a scale of twice that
    assert_close(run(made, fitted, trajectory).influence, wanted, rtol=0, atol=2e-7 * wanted.abs().max().item())


# --------------------------------------------------------------------------------------- methods that invert a curvature


INVERSES = [method for method in METHODS if isinstance(estimator(method), InverseCurvature)]
CAPS = {"exact": 1e-9, "cg": 1e-6, "lissa": 5e-2}  # issue 2: relative Frobenius error at the shipped defaults; exact is dense algebra


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
@pytest.mark.parametrize("name", ["ridge", "binary", "softmax", "mlp"])
@pytest.mark.parametrize("method", INVERSES)
def test_agreement_with_the_dense_reference(method, name, kind):
    """As shipped; and each column within what its own reported residual allows: ‖x − A⁻¹b‖ ≤ ‖r‖ / λ_min(A)."""
    made = estimator(method, quick=False, curvature=kind)
    result = run(made, problem(name), None)
    known = answers(name)
    wanted = known.influence(kind)
    error = result.influence - wanted
    assert error.norm() / wanted.norm() < CAPS.get(method, 5e-2)
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
@pytest.mark.parametrize(
    ("method", "name"), [(method, "mlp") for method in having("params") if method in INVERSES] + [("exact", "conv"), ("cg", "conv")]
)
def test_last_layer_is_dense_block_algebra(method, name, kind):
    fitted = problem(name)
    block = dense(fitted.select("last_layer"))
    size = len(block.ggn)
    assert_close(block.train_gradients, answers(name).train_gradients[:, -size:], rtol=0, atol=1e-13)
    made = estimator(method, quick=False, curvature=kind, params="last_layer", damping=0.05)
    wanted = block.influence(kind, 0.05)
    assert (run(made, fitted, None).influence - wanted).norm() / wanted.norm() < CAPS.get(method, 5e-2)


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
        ({"curvature": "fisher"}, r"method\.curvature=fisher is not possible: it must be one of hessian, ggn"),
        ({"damping": -0.1}, r"method\.damping=-0\.1 is not possible: it must be a number of at least 0"),
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
    values = made.measure(start.module, fit.params, fit.buffers)
    slope = (values[0::2] - values[1::2]) / (2 * step)
    ours = InverseCurvature(Exact(), "hessian").estimate(fitted, None, 0).influence[rows]
    # truncation h²/6 of a curve with curvature (1/λ_min n)² ≈ 10; training error 1e-11/(λ_min h)
    assert_close(slope, ours, rtol=0, atol=2e-5 * ours.abs().max().item())


def test_the_suite_finds_the_methods():
    assert {"exact", "cg", "lissa"} <= set(METHODS)
    assert set(CAPS) <= set(INVERSES)
