"""Responses to removals (proximal, PBRF, linearised) against closed forms, dense float64 references, finite differences and SciPy."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal, getcontext
from functools import cache

import numpy as np
import pytest
import torch
from problems import (
    NOTHING_KEPT,
    BatchNormNet,
    DropoutNet,
    Prediction,
    affine,
    dense,
    experiment,
    flat_forward,
    ridge_solution,
    torch_loss,
    with_intercept,
)
from scipy.optimize import minimize
from torch import Tensor

from influx.errors import AccuracyWarning, InfluxError
from influx.experiment import Experiment, Trained
from influx.models.all_conv import AllConv
from influx.models.mlp import Mlp
from influx.objectives import CrossEntropy, Objective, SquaredError
from influx.objectives.reconstruction import Reconstruction
from influx.objectives.self_training import SelfTraining
from influx.quasi_newton import minimise
from influx.removals import Removals
from influx.responses.bregman import Bregman
from influx.responses.divergence import Anchor
from influx.responses.proximal import Proximal
from influx.retraining import Plan, Retraining
from influx.shards import Shard
from influx.solvers.cg import ConjugateGradient
from influx.solvers.datainf import DataInf
from influx.solvers.lissa import Lissa
from influx.store import Store
from influx.training.first_order import Sgd
from influx.truth import Truth

SGD = Sgd(lr=0.1, epochs=4, batch_size=16, momentum=0.9, weight_decay=0.02)  # far from any optimum
P = 0.3  # the proximal weight, where nothing else is said: with less the PBO of so few examples need not have a minimum
ROWS = np.array([0, 3, 4, 11, 20])
GROUPS = Removals((np.array([1, 5, 9]), np.array([2]), np.array([0, 7, 8, 10, 13])), "removed group")
CASES = ("ridge", "softmax", "mlp", "conv")  # rows of the table
SMOOTH = AllConv(width=2, activation="tanh")


def made(name: str, **changes) -> Experiment:
    """Row `name`, stopped early; convolutions without kinks."""
    own = {"model": SMOOTH} if name == "conv" else {"training": SGD}
    return experiment(name, **{**own, **changes})


@cache
def base(subject: Experiment) -> Trained:
    return subject.train(0, NOTHING_KEPT)


def respond(subject: Experiment, response: str = "pbrf", rows=ROWS, store: Store = NOTHING_KEPT, seed: int = 0, **options) -> Truth:
    sets = rows if isinstance(rows, Removals) else Removals.single(rows)
    plan = Retraining(**{"seeds": 1, "proximity": P, "keep": "responses", "response": response, **options})
    return plan.run(subject, base(subject) if seed == 0 else subject.train(seed, NOTHING_KEPT), sets, seed, store)


def moved(truth: Truth) -> Tensor:
    """θ − θ_s of each removal, [n_removed, P]."""
    assert truth.responses is not None
    return torch.from_numpy(truth.responses.parameters[..., 0] - truth.responses.full_parameters[..., 0])


def shard(subject: Experiment, rows=ROWS, **options) -> Shard:
    sets = rows if isinstance(rows, Removals) else Removals.single(rows)
    plan = Retraining(**{"seeds": 1, "proximity": P, "response": "pbrf", **options})
    return plan.shards(subject, [base(subject)], sets, 0, Plan(side_by_side=True, seconds_per_model=0.0))[0]


# ------------------------------------------------------------------------------------------- objectives from their formulas


def weights_of(task_sets: Removals, n: int, strength: float, divisor: str) -> Tensor:
    weights = torch.ones(len(task_sets) + 1, n, dtype=torch.float64)
    for k, rows in enumerate(task_sets.sets, start=1):
        weights[k, rows] -= strength
        if divisor == "n-1":
            weights[k] *= n / weights[k].sum()
    return weights


def reference(subject: Experiment, response: str, weights: Tensor, p: float = P):
    """The objective of one model as a function of all parameters, from the definition: labels, losses and their differences as they are."""
    fitted = subject.problem(base(subject), 0)
    forward, start = flat_forward(fitted)
    x, y, decay = fitted.train.inputs, fitted.train.targets, fitted.weight_decay
    f_s = forward(start, x).detach().requires_grad_(True)
    loss_s = torch_loss(f_s, y)
    slope = torch.autograd.grad(loss_s.sum(), f_s)[0]

    def objective(theta: Tensor) -> Tensor:
        f = forward(theta, x)
        loss = torch_loss(f, y)
        near = 0.5 * p * (theta - start).square().sum()
        if response == "proximal":
            return (weights * loss).mean() + 0.5 * decay * theta.square().sum() + near
        divergence = loss - loss_s.detach() - (slope * (f - f_s.detach())).sum(1)
        return divergence.mean() + ((weights - 1) * loss).mean() + 0.5 * decay * (theta - start).square().sum() + near

    return objective, start


def gradient_of(objective, theta: Tensor) -> Tensor:
    leaf = theta.clone().requires_grad_(True)
    return torch.autograd.grad(objective(leaf), leaf)[0]


@pytest.mark.parametrize("response", ["pbrf", "proximal"])
@pytest.mark.parametrize(
    ("name", "strength", "divisor"), [("ridge", 1.0, "n"), ("softmax", -0.3, "n"), ("mlp", 1.0, "n-1"), ("conv", 0.5, "n")]
)
def test_value_and_gradient_are_the_definitions_less_their_value_at_the_start(name, response, strength, divisor):
    subject = made(name)
    here = shard(subject, GROUPS, response=response, strength=strength, divisor=divisor)
    task = here.task()
    weights = weights_of(GROUPS, subject.data.n_train, strength, divisor)
    torch.testing.assert_close(task.weights, weights, rtol=1e-15, atol=0)
    fitted = subject.problem(base(subject), 0)
    anchor = Anchor(subject.objective, fitted.train.targets, fitted.outputs(fitted.theta, fitted.train.inputs).detach())
    near = (Bregman if response == "pbrf" else Proximal)(P).objective(task, anchor, subject.training.weight_decay)
    noise = torch.randn(task.models, fitted.n_params, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = near.evaluate(near.start + 0.1 * noise, torch.arange(task.models))
    for k in range(task.models):
        objective, start = reference(subject, response, weights[k])
        theta = start + 0.1 * noise[k]
        # values of order one in float64, summed in another order
        torch.testing.assert_close(found.value[k], objective(theta) - objective(start), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(found.gradient[k], gradient_of(objective, theta), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("response", ["pbrf", "proximal"])
@pytest.mark.parametrize("name", CASES)
def test_the_definitions_gradient_vanishes_at_the_response(name, response):
    subject = made(name)
    tolerance = 1e-8
    truth = respond(subject, response, GROUPS, tolerance=tolerance)
    weights = weights_of(GROUPS, subject.data.n_train, 1.0, "n")
    per_example = dense(subject.problem(base(subject), 0)).train_gradients
    for k, theta in enumerate(torch.from_numpy(truth.responses.parameters[..., 0])):
        objective, _ = reference(subject, response, weights[k + 1])
        taken = per_example[GROUPS.sets[k]].sum(0).norm() / subject.data.n_train
        left = gradient_of(objective, theta).norm() / taken
        assert left <= tolerance + 1e-12  # of the reference's own rounding, relative to 1e-3 and more
        assert truth.solves[k]["residual"] == pytest.approx(left.item(), abs=1e-11)
    assert all(row["converged"] for row in truth.solves)


# -------------------------------------------------------------------------------------------------------- nothing removed


@pytest.mark.parametrize("name", CASES)
def test_with_nothing_removed_the_pbrf_is_the_trained_model_converged_or_not(name):
    """By construction in a run; and as the minimum of the PBO, found again from a point beside it."""
    subject = made(name)
    assert subject.problem(base(subject), 0).theta.norm() > 0.1
    truth = respond(subject)
    assert truth.control.largest_parameter_change == 0
    assert truth.control.largest_measurement_change <= 1e-15  # the same model on two paths through the module
    task = replace(shard(subject), part=Removals(())).task()
    fitted = subject.problem(base(subject), 0)
    anchor = Anchor(subject.objective, fitted.train.targets, fitted.outputs(fitted.theta, fitted.train.inputs).detach())
    near = Bregman(P).objective(task, anchor, subject.training.weight_decay)
    noise = torch.randn(fitted.n_params, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = minimise(near, near.start + 1e-3 * noise, None, 1e-13, 2000, strict=True)
    torch.testing.assert_close(found.theta[0], fitted.theta, rtol=0, atol=1e-10)  # 1e-13 over λ + p = .05, at most 2e-12


def test_the_proximal_response_with_nothing_removed_goes_on_towards_the_minimum():
    """Away from a minimum it moves, is reported as drift, and is solved for to the same tolerance; at one it stays."""
    far, near = made("mlp"), experiment("mlp")
    assert respond(far, "proximal").control.largest_parameter_change > 1e-2
    assert respond(near, "proximal").control.largest_parameter_change < 1e-6  # ‖∇J‖ ≤ 1e-8, over λ + p = .05
    direct, drifting = respond(far, "proximal", subtract_drift=True), respond(far, "proximal")
    shift = drifting.change[..., 0] - direct.change[..., 0]
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), rtol=0, atol=1e-14)
    assert np.abs(shift).max() == pytest.approx(drifting.control.largest_measurement_change, rel=1e-3)


# -------------------------------------------------------------------------------------------------------- first order


@pytest.mark.parametrize("name", CASES)
def test_the_linear_response_is_the_dense_solve(name):
    subject = made(name)
    known = dense(subject.problem(base(subject), 0))
    solved = torch.linalg.solve(known.matrix("ggn", P), known.train_gradients[ROWS].T).T / subject.data.n_train
    torch.testing.assert_close(moved(respond(subject, "linear")), solved, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(moved(respond(subject, "linear", strength=-0.25)), -0.25 * solved, rtol=1e-10, atol=1e-13)
    sums = torch.stack([known.train_gradients[rows].sum(0) for rows in GROUPS.sets]) / subject.data.n_train
    torch.testing.assert_close(
        moved(respond(subject, "linear", GROUPS)), torch.linalg.solve(known.matrix("ggn", P), sums.T).T, rtol=1e-10, atol=1e-13
    )


@pytest.mark.parametrize("name", CASES)
def test_the_derivative_of_the_pbrf_is_the_linear_response(name):
    """Central differences in ε = strength/n: an error of the second order in a step of 1e-3."""
    subject = made(name)
    known = dense(subject.problem(base(subject), 0))
    solved = torch.linalg.solve(known.matrix("ggn", P), known.train_gradients[ROWS].T).T / subject.data.n_train
    step = 1e-3
    forward, back = (moved(respond(subject, strength=sign * step, tolerance=1e-10)) for sign in (1, -1))
    error = ((forward - back) / (2 * step) - solved).norm(dim=1) / solved.norm(dim=1)
    assert error.max() < 1e-4


@pytest.mark.parametrize("solver", [ConjugateGradient(tolerance=1e-12), Lissa(depth=400, batch_size=45)], ids=["cg", "lissa"])
def test_another_solver_gives_the_same_linear_response(solver):
    subject = made("softmax")
    exact, other = respond(subject, "linear"), respond(subject, "linear", solver=solver)
    torch.testing.assert_close(moved(other), moved(exact), rtol=1e-6, atol=1e-9)  # lissa: (1 − .32/σ)^400 of the answer is left, σ near 1
    assert [row["converged"] for row in other.solves] == [True] * len(ROWS)


def test_a_poor_solver_shows_in_account_and_response():
    subject = made("mlp")
    with pytest.warns(AccuracyWarning, match=r"5 of 5 linear responses were not solved for .* Try another retraining\.solver\."):
        poor = respond(subject, "linear", solver=Lissa(depth=3))
    assert not any(row["converged"] for row in poor.solves)
    known = dense(subject.problem(base(subject), 0))
    taken = known.train_gradients[ROWS] / subject.data.n_train
    left = (taken - moved(poor) @ known.matrix("ggn", P)).norm(dim=1) / taken.norm(dim=1)
    np.testing.assert_allclose([row["residual"] for row in poor.solves], left, rtol=1e-6)
    assert left.max() > 0.1


def test_what_a_solver_says_names_the_knobs_of_the_truth():
    with pytest.warns(
        AccuracyWarning, match=r"raise retraining\.solver\.depth .*, retraining\.proximity, or retraining\.solver\.batch_size"
    ):
        respond(made("mlp"), "linear", solver=Lissa(depth=3))
    subject = made("softmax", training=replace(SGD, weight_decay=0.0))  # a softmax layer's GGN is singular
    with pytest.raises(InfluxError, match=r"the ggn is singular .*Set retraining\.proximity above 0"):
        respond(subject, "linear", proximity=0.0)


# -------------------------------------------------------------------------------------------------------- closed forms


def test_linear_regression_has_a_closed_form_wherever_training_stopped():
    """(XᵀX/n + (λ + p) I − ε x xᵀ) Δ = ε (xᵀθ_s − y) x."""
    subject = made("ridge")
    data, lam = subject.data, subject.training.weight_decay
    x, y = with_intercept(data.train_inputs), data.train_targets.numpy()
    start = affine(base(subject).params)[0]
    assert np.abs(start - ridge_solution(x, y, lam)).max() > 1e-3  # not at the optimum
    matrix = x.T @ x / len(y) + (lam + P) * np.eye(x.shape[1])
    wanted = [np.linalg.solve(matrix - np.outer(x[i], x[i]) / len(y), (x[i] @ start - y[i]) * x[i] / len(y)) for i in ROWS]
    np.testing.assert_allclose(moved(respond(subject, tolerance=1e-11)), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("response", ["pbrf", "proximal"])
def test_at_its_optimum_linear_regressions_pbrf_is_its_proximal_response(response):
    """Both are the ridge solution without the example, held at θ_s by (p/2)‖θ − θ_s‖²: ridge of y − Xθ_s with λ → λ + p."""
    subject = experiment("ridge")
    data, lam = subject.data, subject.training.weight_decay
    x, y = with_intercept(data.train_inputs), data.train_targets.numpy()
    start = ridge_solution(x, y, lam)
    wanted = []
    for row in ROWS:
        left = np.ones(len(y))
        left[row] = 0
        matrix = (x * left[:, None]).T @ x / len(y) + (lam + P) * np.eye(x.shape[1])
        wanted.append(np.linalg.solve(matrix, (x * left[:, None]).T @ y / len(y) + P * start) - start)
    np.testing.assert_allclose(moved(respond(subject, response, tolerance=1e-9)), wanted, rtol=0, atol=1e-10)
    retrained = respond(subject, response, proximity=0.0, tolerance=1e-9).change
    full = Retraining(seeds=1).run(subject, base(subject), Removals.single(ROWS), 0, NOTHING_KEPT).change
    np.testing.assert_allclose(retrained, full, rtol=0, atol=1e-9)  # p = 0 at an optimum of a convex model: leave-one-out itself


@pytest.mark.parametrize("name", ["softmax", "mlp"])
def test_the_proximal_response_is_scipys(name):
    subject = made(name)
    truth = respond(subject, "proximal", ROWS[:2], tolerance=1e-9)
    weights = weights_of(Removals.single(ROWS[:2]), subject.data.n_train, 1.0, "n")
    for k in range(2):
        objective, start = reference(subject, "proximal", weights[k + 1])

        def both(v: np.ndarray, f=objective) -> tuple[float, np.ndarray]:
            return f(torch.from_numpy(v)).item(), gradient_of(f, torch.from_numpy(v)).numpy()

        found = minimize(both, start.numpy(), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 2000})
        # SciPy's gradient norm of 1e-9 (or the 1e-8 where it gives up) over λ + p = .05
        np.testing.assert_allclose(truth.responses.parameters[k, :, 0], found.x, rtol=0, atol=1e-6)


# -------------------------------------------------------------------------------------------------------- the divergence


def kl(f: list[Decimal], f_s: list[Decimal]) -> Decimal:
    """Σ p_s (log p_s − log p)."""
    log_z, log_z_s = (sum(v.exp() for v in values).ln() for values in (f, f_s))
    return sum((a - log_z_s).exp() * ((a - log_z_s) - (b - log_z)) for a, b in zip(f_s, f, strict=True))


@pytest.mark.parametrize("step", [1e-9, 1e-5, 0.1, 0.4, 0.6, 3.0, 60.0])
def test_small_divergences_keep_their_digits(step):
    """Against 60 decimal digits; the logits f are exact numbers, so nothing but our arithmetic is tested."""
    getcontext().prec = 60
    rng = np.random.default_rng(3)
    f_s = rng.normal(size=(8, 3)) * 4
    f = f_s + step * rng.normal(size=(8, 3))
    anchor = Anchor(CrossEntropy(), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]), torch.from_numpy(f_s))
    found = anchor.divergence(torch.from_numpy(f), torch.arange(8))
    wanted = [float(kl([Decimal(v) for v in a], [Decimal(v) for v in b])) for a, b in zip(f, f_s, strict=True)]
    # 1e-13: roundings of p_s and of f − f_s less its mean, which cancels at most tenfold here; large steps are sums of terms of their size
    np.testing.assert_allclose(found.value, wanted, rtol=1e-13, atol=0 if step < 1 else 4e-16 * step)
    p, p_s = torch.from_numpy(f).softmax(1), torch.from_numpy(f_s).softmax(1)
    np.testing.assert_allclose(found.slope, p - p_s, rtol=0, atol=1e-15 * max(1.0, step))
    assert found.slope.sum(1).abs().max() <= 1e-15


def test_the_slope_keeps_its_digits_too():
    f_s = torch.tensor([[12.0, -9.0, 0.0]], dtype=torch.float64)
    step = torch.tensor([[1e-8, 2e-8, -3e-8]], dtype=torch.float64)
    anchor = Anchor(CrossEntropy(), torch.tensor([0]), f_s)
    found = anchor.divergence(f_s + step, torch.tensor([0])).slope
    p, moved_by = f_s.softmax(1), (f_s + step) - f_s
    first_order = p * (moved_by - (p * moved_by).sum())  # to a relative 1e-8
    others = first_order[0, 1:]
    np.testing.assert_allclose(found[0, 1:], others, rtol=1e-7)
    np.testing.assert_allclose(found[0, 0], -others.sum(), rtol=1e-7)


@pytest.mark.parametrize(
    ("objective", "targets"),
    [
        (CrossEntropy(), torch.tensor([0, 2, 1, 1])),
        (SelfTraining(), torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.1, 0.1, 0.8], [0.4, 0.4, 0.2]], dtype=torch.float64)),
        (SquaredError(), torch.tensor([0.3, -2.0, 1.0, 0.1], dtype=torch.float64)),
        (Reconstruction(), torch.tensor([[0.3, -2.0, 1.0]] * 4, dtype=torch.float64)),
    ],
)
def test_the_divergence_is_its_definition_whatever_the_labels(objective: Objective, targets: Tensor):
    out = 1 if isinstance(objective, SquaredError) else 3
    draw = torch.Generator().manual_seed(0)
    f_s, f = (torch.randn(4, out, generator=draw, dtype=torch.float64) for _ in range(2))
    anchor, rows = Anchor(objective, targets, f_s), torch.arange(4)
    closed, defined = anchor.divergence(f, rows), anchor.defined(f, rows, targets)
    torch.testing.assert_close(closed.value, defined.value, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(closed.slope, defined.slope, rtol=1e-13, atol=1e-15)
    other = targets.roll(1, -1) if targets.dim() == 2 else targets + 5 if out == 1 else (targets + 1) % 3
    torch.testing.assert_close(anchor.defined(f, rows, other).value, defined.value, rtol=1e-12, atol=1e-14)
    assert anchor.label_dependence(f.expand(2, 4, out)) < 1e-15


class Asymmetric(Objective):
    """A user's loss whose curvature in the outputs depends on the label."""

    def loss(self, outputs, targets):
        return CrossEntropy().loss(outputs, targets) * (1.0 + targets)


def test_a_divergence_that_depends_on_labels_is_noticed_and_still_minimised():
    subject = made("mlp", objective=Asymmetric())
    truth = respond(subject)
    assert truth.facts["label_dependence"] > 1e-9
    assert respond(made("mlp")).facts["label_dependence"] < 1e-16
    fitted = subject.problem(base(subject), 0)
    forward, start = flat_forward(fitted)
    y, x, n = fitted.train.targets, fitted.train.inputs, fitted.n_train

    def losses(f: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(f, y, reduction="none") * (1 + y)

    f_s = forward(start, x).detach().requires_grad_(True)
    slope = torch.autograd.grad(losses(f_s).sum(), f_s)[0]

    def pbo(theta: Tensor, row: int) -> Tensor:
        f = forward(theta, x)
        divergence = (losses(f) - losses(f_s).detach() - (slope * (f - f_s.detach())).sum(1)).mean()
        return divergence - losses(f)[row] / n + 0.5 * (P + fitted.weight_decay) * (theta - start).square().sum()

    for k, row in enumerate(ROWS):
        theta = torch.from_numpy(truth.responses.parameters[k, :, 0])
        scale = gradient_of(lambda t, row=row: losses(forward(t, x))[row] / n, start).norm()
        assert gradient_of(lambda t, row=row: pbo(t, row), theta).norm() <= 2e-6 * scale


# ------------------------------------------------------------------------------------------- what moves, and which models


@pytest.mark.parametrize("response", ["pbrf", "proximal", "linear"])
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_only_the_last_layer_moves_when_asked(name, response):
    subject = made(name)
    fitted = subject.problem(base(subject), 0).select("last_layer")
    truth = respond(subject, response, trainable="last_layer")
    change = {
        key: value
        for key, value in zip(
            base(subject).params, moved(truth).split([v.numel() for v in base(subject).params.values()], dim=1), strict=True
        )
    }
    assert all(bool((value == 0).all()) == (key not in fitted.selected) for key, value in change.items())
    if response != "proximal":  # a small step of the PBRF is the solve with the last layer's GGN
        known, step = dense(fitted), 1e-3
        solved = torch.linalg.solve(known.matrix("ggn", P), known.train_gradients[ROWS].T).T / subject.data.n_train
        small = moved(respond(subject, response, trainable="last_layer", strength=step)) / step
        own = torch.cat(
            [
                part
                for key, part in zip(change, small.split([v.numel() for v in base(subject).params.values()], dim=1), strict=True)
                if key in fitted.selected
            ],
            dim=1,
        )
        torch.testing.assert_close(own, solved, rtol=1e-3, atol=1e-6)  # of the second order in the step


@pytest.mark.parametrize("response", ["pbrf", "proximal", "linear"])
def test_what_is_measured_is_the_model_that_is_kept(response):
    subject = made("mlp")
    truth = respond(subject, response)
    kept = truth.responses
    data, n_params = subject.data, moved(truth).shape[1]
    assert kept.outputs.shape == (len(ROWS), data.n_train, 3, 1)
    assert (kept.full_outputs.shape, kept.parameters.shape, kept.full_parameters.shape) == (
        (data.n_train, 3, 1),
        (len(ROWS), n_params, 1),
        (n_params, 1),
    )
    forward, start = flat_forward(subject.problem(base(subject), 0))
    assert torch.equal(start, torch.from_numpy(kept.full_parameters[:, 0]))
    np.testing.assert_allclose(kept.full_outputs[..., 0], forward(start, data.train_inputs), rtol=0, atol=1e-14)
    for k in range(len(ROWS)):
        theta = torch.from_numpy(kept.parameters[k, :, 0])
        np.testing.assert_allclose(kept.outputs[k, ..., 0], forward(theta, data.train_inputs), rtol=0, atol=1e-14)
        loss = torch_loss(forward(theta, data.test_inputs), data.test_targets).numpy()
        np.testing.assert_allclose(truth.full[:, 0] + truth.change[k, :, 0], loss, rtol=0, atol=1e-14)


@pytest.mark.parametrize("start", ["scratch", "warm"])
def test_retrained_models_are_kept_as_well(start):
    subject = made("mlp")
    truth = respond(subject, "retrain", start=start)
    forward, _ = flat_forward(subject.problem(base(subject), 0))
    for full, theta in [(True, truth.responses.full_parameters[:, 0]), (False, truth.responses.parameters[2, :, 0])]:
        loss = torch_loss(forward(torch.from_numpy(theta), subject.data.test_inputs), subject.data.test_targets).numpy()
        np.testing.assert_allclose(truth.full[:, 0] + (0 if full else truth.change[2, :, 0]), loss, rtol=0, atol=1e-14)
    assert truth.solves == []


@pytest.mark.parametrize("model", [DropoutNet(), BatchNormNet()], ids=["dropout", "batch norm"])
def test_layers_behave_as_in_evaluation(model):
    """No draws and no batch statistics: with nothing removed nothing moves, and the small response is the dense solve."""
    subject = made("conv" if isinstance(model, BatchNormNet) else "mlp", model=model)
    truth = respond(subject, strength=1e-3)
    assert truth.control.largest_parameter_change == 0
    known = dense(subject.problem(base(subject), 0))
    solved = torch.linalg.solve(known.matrix("ggn", P), known.train_gradients[ROWS].T).T / subject.data.n_train
    torch.testing.assert_close(moved(truth) / 1e-3, solved, rtol=1e-2, atol=1e-5)


def test_strength_takes_away_a_share_of_the_weight():
    """Ridge regression with one weight at 1 − s, by its normal equations."""
    subject = experiment("ridge", measurement=Prediction())
    data, lam = subject.data, subject.training.weight_decay
    x, y, x_test = with_intercept(data.train_inputs), data.train_targets.numpy(), with_intercept(data.test_inputs)
    for strength, divisor in [(0.25, "n"), (-0.5, "n"), (0.25, "n-1")]:
        truth = Retraining(seeds=1, strength=strength, divisor=divisor).run(subject, base(subject), Removals.single(ROWS), 0, NOTHING_KEPT)
        for change, row in zip(truth.change[..., 0], ROWS, strict=True):
            weights = np.ones(len(y))
            weights[row] = 1 - strength
            if divisor == "n-1":
                weights *= len(y) / weights.sum()
            wanted = x_test @ (ridge_solution(x, y, lam, weights) - ridge_solution(x, y, lam))
            np.testing.assert_allclose(change, wanted, rtol=0, atol=1e-9)


# ------------------------------------------------------------------------------------- shards, store, seeds, number types


@pytest.mark.parametrize("response", ["pbrf", "proximal", "linear"])
def test_how_many_at_once_does_not_show(response):
    subject = made("mlp")
    alone, together = respond(subject, response, models_at_once=1), respond(subject, response, models_at_once=512)
    assert (alone.shards, together.shards) == (len(ROWS), 1)
    np.testing.assert_allclose(alone.change, together.change, rtol=0, atol=1e-8)  # relative 1e-6 of changes below 1e-2
    np.testing.assert_allclose(alone.full, together.full, rtol=0, atol=1e-15)
    names = [row["name"] for row in together.solves]
    assert names == [row["name"] for row in alone.solves]
    assert names[0] == f"{response} without {subject.data.train_index[ROWS[0]]}, seed 0"


def test_one_by_one_and_side_by_side_are_one():
    subject = made("conv")
    plan = Retraining(seeds=1, proximity=P, response="pbrf", tolerance=1e-9)
    both = [plan.run(subject, base(subject), Removals.single(ROWS), 0, NOTHING_KEPT, Plan(way, 0.0)).change for way in (True, False)]
    np.testing.assert_allclose(*both, rtol=0, atol=1e-11)


def test_a_second_run_takes_all_from_the_store_with_its_account(tmp_path):
    subject, store = made("mlp"), Store(tmp_path)
    options = {"models_at_once": 2, "seeds": 2}
    first, again = (respond(subject, store=store, **options) for _ in range(2))
    assert (first.reused, again.reused, again.shards) == (0, 6, 6)
    assert np.array_equal(first.change, again.change)
    assert np.array_equal(first.responses.outputs, again.responses.outputs)
    assert first.solves == again.solves
    assert len(first.solves) == 2 * len(ROWS)
    assert first.facts == again.facts
    next((tmp_path / "retrained").rglob("*.safetensors")).unlink()
    lost = respond(subject, store=store, **options)
    assert lost.reused == 5
    assert np.array_equal(first.change, lost.change)
    assert respond(subject, store=store, **options, start="warm", epochs=9).reused == 6  # which mean nothing here


@pytest.mark.parametrize(
    "other",
    [
        {"response": "proximal"}, {"response": "linear"}, {"proximity": 0.04}, {"tolerance": 1e-5}, {"max_iterations": 200},
        {"strength": 0.5}, {"keep": "measurements"}, {"trainable": "last_layer"}, {"divisor": "n-1"},
    ],
    ids=str,
)  # fmt: skip
def test_another_question_is_another_entry(other):
    subject = made("mlp")
    assert shard(subject, keep="responses").key != shard(subject, **{"keep": "responses", **other}).key


def test_the_solver_is_part_of_the_question():
    subject = made("mlp")
    keys = [shard(subject, response="linear", solver=solver).key for solver in (Lissa(), Lissa(depth=9), ConjugateGradient())]
    assert keys[0] != keys[1] != keys[2]
    assert shard(subject, solver=Lissa()).key == shard(subject).key  # PBRF has none


@pytest.mark.slow
def test_two_workers_find_what_one_finds():
    subject = made("mlp", training=replace(SGD, epochs=1))
    one, two = (respond(subject, rows=ROWS[:2], models_at_once=1, workers=workers) for workers in (1, 2))
    np.testing.assert_allclose(one.change, two.change, rtol=0, atol=1e-15)
    assert one.solves == two.solves


@pytest.mark.parametrize("vary", ["both", "init", "order"])
def test_each_seed_answers_for_its_own_model(vary):
    subject = made("mlp")
    both = respond(subject, seeds=2, vary=vary)
    second = {"both": (1, 1), "init": (1, 0), "order": (0, 1)}[vary]
    alone = subject.train(second[0], NOTHING_KEPT, order=second[1])
    plan = Retraining(seeds=1, proximity=P, response="pbrf", keep="responses")
    of_second = plan.run(subject, alone, Removals.single(ROWS), second[0], NOTHING_KEPT)
    np.testing.assert_allclose(both.change[..., 1], of_second.change[..., 0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(both.full[:, 1], of_second.full[:, 0], rtol=0, atol=1e-14)
    assert np.array_equal(both.responses.full_parameters[:, 1], of_second.responses.full_parameters[:, 0])
    np.testing.assert_allclose(both.responses.outputs[..., 1], of_second.responses.outputs[..., 0], rtol=0, atol=1e-12)


def test_float32_says_how_far_it_came():
    """Its outputs are rounded at 1e-7, its changes of them are about 1e-3: a relative gradient norm of 1e-6 is out of reach."""
    subject, single = made("mlp"), made("mlp", dtype=torch.float32)
    exact = respond(subject)
    with pytest.warns(
        AccuracyWarning, match=r"of 5 pbrf responses were not solved for .*a larger retraining\.max_iterations or dtype=float64 \(neither"
    ):
        blurred = respond(single)
    residuals = np.array([row["residual"] for row in blurred.solves])
    assert residuals.max() < 1e-3
    assert [row["converged"] for row in blurred.solves] == list(residuals <= 1e-6)
    # the start differs by float32 training: per cent, not digits
    np.testing.assert_allclose(blurred.change, exact.change, rtol=0, atol=0.02 * np.abs(exact.change).max())


def test_too_few_iterations_are_counted_and_said():
    subject = made("mlp")
    with pytest.warns(
        AccuracyWarning, match=r"5 of 5 pbrf responses were not solved for \(largest relative residual .* diagnostics\.csv has each\)"
    ):
        truth = respond(subject, max_iterations=1, tolerance=1e-9)
    assert [(row["iterations"], row["converged"]) for row in truth.solves] == [(1, False)] * len(ROWS)


def test_an_objective_without_a_minimum_is_left_and_said():
    """Half of the examples away from a deep network that is not bounded: the PBO's loss term outgrows the rest, and falls without end."""
    subject = made("mlp", model=Mlp(depth=4, width=6, activation="silu"))
    with pytest.warns(
        AccuracyWarning, match=r"Try a larger retraining\.proximity, or leaving out fewer: their objectives fall without end\."
    ):
        truth = respond(subject, rows=Removals((np.arange(18), np.arange(2)), "removed subset"), proximity=0.01)
    lost, found = truth.solves
    assert found["converged"]
    assert lost["residual"] > 1
    assert lost["iterations"] < 50
    assert np.isfinite(truth.change).all()


def test_at_a_kink_it_stops_near_the_minimum_and_says_so():
    """SELU's slope jumps at 0, so a minimum may lie where no gradient vanishes. Its value is right all the same: it is that of the tightest
    solution, to the square of what the steps still moved."""
    subject = experiment("conv")
    with pytest.warns(AccuracyWarning, match=r"1 of 5 pbrf responses were not solved for"):
        truth = respond(subject)
    ((k, row),) = [(k, row) for k, row in enumerate(truth.solves) if not row["converged"]]
    assert 1e-6 < row["residual"] < 1e-2
    assert row["iterations"] < 60
    objective, _ = reference(subject, "pbrf", weights_of(Removals.single(ROWS), subject.data.n_train, 1.0, "n")[k + 1])
    theta = torch.from_numpy(truth.responses.parameters[k, :, 0])
    draw = torch.Generator().manual_seed(0)
    for size in (1e-2, 1e-3, 1e-4, 1e-5):
        beside = size * torch.randn(20, len(theta), generator=draw, dtype=torch.float64)
        assert min(objective(theta + step) for step in beside) > objective(theta)


def test_a_large_model_is_solved_with_layerwise_curvature():
    """Above 4,000 parameters, in a number of iterations near that of a dense factor."""
    subject = made("mlp", model=Mlp(depth=2, width=80, activation="tanh"))
    assert subject.problem(base(subject), 0).n_params > 4000
    truth = respond(subject, rows=ROWS[:2])
    assert all(row["converged"] for row in truth.solves)
    assert max(row["iterations"] for row in truth.solves) < 100


@pytest.mark.parametrize("response", ["pbrf", "proximal", "linear"])
def test_the_time_ahead_is_known_before(response, tmp_path):
    subject, sets, store = made("conv"), Removals.single(ROWS), Store(tmp_path)
    retraining = Retraining(seeds=2, proximity=P, response=response)
    plan = retraining.plan(subject, base(subject), sets, 0, store)
    ahead = retraining.seconds(plan, subject, base(subject), sets, 0, store)
    assert 0 < ahead < 60
    retraining.run(subject, base(subject), sets, 0, store, plan)
    assert retraining.seconds(plan, subject, base(subject), sets, 0, store) == 0


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"response": "pbrf"}, r"^retraining\.response=pbrf needs a number: set retraining\.proximity, the proximal weight p\.$"),
        ({"response": "proximal", "proximity": 0}, r"^retraining\.response=proximal has no single minimum with .* above 0\.$"),
        ({"response": "linear", "proximity": 0.1, "solver": DataInf()}, r"takes the GGN, and DataInf inverts fisher: use solver@"),
    ],
)  # fmt: skip
def test_what_has_no_answer_is_refused_before_training(options, message):
    subject = made("mlp", training=replace(SGD, weight_decay=0.0))
    with pytest.raises(InfluxError, match=message):
        Retraining(**{"removed": 3, **options}).check("loo", subject)


def test_what_does_not_fit_is_refused_before_training():
    subject = made("mlp")
    with pytest.raises(
        InfluxError, match=r"^retraining\.keep=responses would hold .*KiB of outputs and parameters, and memory allows 1 KiB: "
    ):
        Retraining(removed=3, keep="responses").check("loo", subject, 1024)
    with pytest.raises(InfluxError, match=r"^solver@retraining\.solver=exact works on a .* use solver@retraining\.solver=cg or"):
        Retraining(removed=3, response="linear", proximity=0.1).check("loo", subject, 1024)
    Retraining(removed=3, response="linear", proximity=0.1, solver=ConjugateGradient()).check("loo", subject, 1024)


@pytest.mark.parametrize(
    ("damping", "message"),
    [
        (None, r"^method=random has no damping: retraining\.response=pbrf needs retraining\.proximity=<number>, say 0\.01\.$"),
        ("auto", r"^method=random has method\.damping=auto, which is no number yet: retraining\.response=pbrf needs"),
    ],
)
def test_a_proximal_weight_comes_from_the_method_or_is_asked_for(damping, message):
    plan = Retraining(response="pbrf")
    assert plan.after("exact", 0.2).proximity == 0.2
    assert replace(plan, proximity=0.5).after("random", None).proximity == 0.5
    assert Retraining().after("random", None).proximity is None
    with pytest.raises(InfluxError, match=message):
        plan.after("random", damping)


def test_a_solver_is_chosen_as_a_group():
    with pytest.raises(InfluxError, match=r"retraining\.solver=cg is not possible: an option is chosen by solver@retraining\.solver=cg"):
        Retraining(solver="cg")  # type: ignore[arg-type]
