"""The truth: leave-one-out retraining against closed forms, scikit-learn and hand-written loops; its options; its store."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from problems import (
    NOTHING_KEPT,
    BatchNormNet,
    DropoutNet,
    Prediction,
    experiment,
    ridge_solution,
    torch_loss,
    with_intercept,
)
from sklearn.linear_model import LogisticRegression

from influx import stacking
from influx.errors import InfluxError
from influx.experiment import Experiment, Trained
from influx.measurements import LogProbability, Margin, MeanLoss
from influx.models.mlp import Mlp
from influx.objectives import CrossEntropy
from influx.removals import Removals
from influx.retraining import Plan, Retraining, Truth
from influx.shards import Shard
from influx.statistics import compare
from influx.store import Store
from influx.training.first_order import Adam, Sgd
from influx.training.second_order import Lbfgs, Newton

SGD = Sgd(lr=0.1, epochs=4, batch_size=16, momentum=0.9, weight_decay=0.02)
ROWS = np.array([0, 3, 4, 11, 20, 30, 35])
SEED = 2
AMPLE = 2**30  # bytes that a trajectory may hold: all of these
ROUNDING = 1e-12  # float64 losses of size one after a few dozen steps


@dataclass(frozen=True)
class SometimesScaled(Prediction):
    """A user's measurement with an option."""


def made(name: str = "mlp", training=SGD, **changes) -> Experiment:
    return experiment(name, training=training, **changes)


@cache
def base(subject: Experiment, seed: int = SEED) -> Trained:
    return subject.train(seed, NOTHING_KEPT)


def retrain(subject: Experiment, rows=ROWS, seed: int = SEED, store: Store = NOTHING_KEPT, **options) -> Truth:
    """Each of `rows` left out on its own, or the sets of a `Removals`."""
    sets = rows if isinstance(rows, Removals) else Removals.single(rows)
    return Retraining(**{"seeds": 1, **options}).run(subject, subject.train(seed, NOTHING_KEPT), sets, seed, store)


def first_shard(subject: Experiment, **options) -> Shard:
    """The first stack of models that `retrain` would train."""
    plan = Retraining(**{"seeds": 1, **options})
    return plan.shards(subject, [base(subject)], Removals.single(ROWS), SEED, Plan(side_by_side=True, seconds_per_model=0.0))[0]


# ------------------------------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("start", ["scratch", "warm"])
def test_ridge_is_the_hat_matrix_formula(start):
    """ŷ_t changes by −x_tᵀA⁻¹x_i e_i / (n (1 − h_i)), A = XᵀX/n + λI, h_i = x_iᵀA⁻¹x_i / n; the loss is a square of it."""
    subject = experiment("ridge")
    data = subject.data
    x, x_test, n, lam = with_intercept(data.train_inputs), with_intercept(data.test_inputs), data.n_train, 0.05
    theta = ridge_solution(x, data.train_targets.numpy(), lam)
    inverse = np.linalg.inv(x.T @ x / n + lam * np.eye(x.shape[1]))
    leverage = np.einsum("ip,pq,iq->i", x, inverse, x) / n
    error, test_error = data.train_targets.numpy() - x @ theta, data.test_targets.numpy() - x_test @ theta
    moved = -(x @ inverse @ x_test.T) / n * (error / (1 - leverage))[:, None]  # [n, n_test]
    rows = np.arange(n)
    truth = retrain(replace(subject, measurement=Prediction()), rows, start=start)
    # ‖θ − optimum‖ ≤ 1e-12/λ_min on both sides; 1e-8 leaves room for rounding
    np.testing.assert_allclose(truth.change[..., 0], moved, rtol=0, atol=1e-8)
    loss = retrain(subject, rows, start=start)
    np.testing.assert_allclose(loss.change[..., 0], 0.5 * (test_error - moved) ** 2 - 0.5 * test_error**2, rtol=0, atol=1e-8)
    np.testing.assert_allclose(loss.full[:, 0], 0.5 * test_error**2, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["binary", "softmax"])
@pytest.mark.parametrize("divisor", ["n", "n-1"])
def test_logistic_regression_is_scikit_learns_refits(name, divisor):
    subject = experiment(name)
    data, lam = subject.data, subject.training.weight_decay
    x, x_test, y = with_intercept(data.train_inputs), with_intercept(data.test_inputs), data.train_targets.numpy()
    penalty = lam / 2 if name == "binary" else lam  # see models/logistic.py

    def test_losses(keep: np.ndarray, n: int) -> np.ndarray:
        model = LogisticRegression(C=1 / (n * penalty), fit_intercept=False, solver="newton-cholesky", tol=1e-12, max_iter=1000)
        p = model.fit(x[keep], y[keep]).predict_proba(x_test)
        return -np.log(p[np.arange(len(p)), data.test_targets.numpy()])

    rows = np.array([0, 7, 31])
    truth = retrain(subject, rows, divisor=divisor)
    everything = np.arange(len(y))
    full = test_losses(everything, len(y))
    wanted = np.stack([test_losses(np.delete(everything, i), len(y) - (divisor == "n-1")) - full for i in rows])
    np.testing.assert_allclose(truth.full[:, 0], full, rtol=0, atol=1e-6)  # scikit-learn's stopping rule, in its own scale
    np.testing.assert_allclose(truth.change[..., 0], wanted, rtol=0, atol=1e-6)
    assert np.abs(wanted).max() > 1e-3


@pytest.mark.parametrize("name", ["ridge", "softmax"])
def test_divisor_n_minus_1_is_training_on_the_reduced_data_set(name):
    subject = experiment(name)
    data = subject.data
    truth = retrain(subject, ROWS[:4], divisor="n-1")
    for change, row in zip(truth.change[..., 0], ROWS[:4], strict=True):
        keep = np.delete(np.arange(data.n_train), row)
        less = replace(
            data, train_inputs=data.train_inputs[keep], train_targets=data.train_targets[keep], train_index=data.train_index[keep]
        )
        smaller = replace(subject, data=less)
        trained = base(smaller)
        values = smaller.measure(0, smaller.module(0), stacking.stack(trained.params, 1), {})[0].numpy()
        np.testing.assert_allclose(change, values - truth.full[:, 0], rtol=0, atol=1e-9)  # both within 1e-12/λ, times ‖∇m‖ up to 10


# ------------------------------------------------------------------------------------------------------ hand-written loops


def by_hand(subject: Experiment, start: dict[str, torch.Tensor], left_out: int | None, epochs: int, names: tuple[str, ...], seed: int):
    """Test losses after momentum SGD written out, with the engine's recorded batches and without row `left_out`."""
    data, training = subject.data, subject.training
    module = subject.module(seed)
    module.load_state_dict(start)
    steps = subject.trajectory(seed, NOTHING_KEPT, subject.train(seed, NOTHING_KEPT), AMPLE).steps
    moving = [dict(module.named_parameters())[name] for name in names]
    velocity = [torch.zeros_like(p) for p in moving]
    for step in steps[: epochs * len(steps) // training.epochs]:
        kept = step.rows if left_out is None else step.rows[step.rows != left_out]
        loss = torch_loss(module(data.train_inputs[kept]), data.train_targets[kept]).sum() / len(step.rows)
        for p, v, g in zip(moving, velocity, torch.autograd.grad(loss, moving), strict=True):
            v.mul_(training.momentum).add_(g + training.weight_decay * p.data)
            p.data -= training.lr * v
    with torch.no_grad():
        return torch_loss(module(data.test_inputs), data.test_targets).numpy()


def hand_changes(subject, start, reference, epochs, names, seed=SEED):
    return np.stack([by_hand(subject, start, int(row), epochs, names, seed) - reference for row in ROWS])


@pytest.mark.parametrize("name", ["softmax", "mlp"])
def test_from_scratch_is_the_plain_loop(name):
    subject = made(name)
    start = subject.module(SEED).state_dict()
    names = tuple(start)
    full = by_hand(subject, start, None, 4, names, SEED)
    truth = retrain(subject)
    np.testing.assert_allclose(truth.full[:, 0], full, rtol=0, atol=1e-11)  # the same float64 steps, sums in another order
    np.testing.assert_allclose(truth.change[..., 0], hand_changes(subject, start, full, 4, names), rtol=0, atol=1e-11)
    assert np.abs(truth.change).max() > 1e-3


@pytest.mark.parametrize("trainable", ["all", "last_layer"])
@pytest.mark.parametrize("subtract_drift", [False, True])
def test_warm_is_the_plain_loop_from_the_trained_model(trainable, subtract_drift):
    subject = made("mlp")
    trained = base(subject)
    names = tuple(trained.params) if trainable == "all" else ("3.weight", "3.bias")
    untouched, drifted = (by_hand(subject, trained.params, None, epochs, names, SEED) for epochs in (0, 2))
    truth = retrain(subject, start="warm", trainable=trainable, epochs=2, subtract_drift=subtract_drift)
    reference = drifted if subtract_drift else untouched
    np.testing.assert_allclose(truth.full[:, 0], reference, rtol=0, atol=1e-11)  # as above
    np.testing.assert_allclose(truth.change[..., 0], hand_changes(subject, trained.params, reference, 2, names), rtol=0, atol=1e-11)
    drift = drifted - untouched
    assert truth.control.largest_measurement_change == pytest.approx(np.abs(drift).max(), abs=1e-11)
    assert truth.control.mean_measurement_change == pytest.approx(drift.mean(), abs=1e-11)
    assert truth.control.largest_parameter_change > 1e-4


def test_subtracting_the_drift_shifts_every_change_alike():
    subject = made("mlp")
    plain, subtracted = (retrain(subject, start="warm", subtract_drift=subtract) for subtract in (False, True))
    drift = subtracted.full - plain.full
    np.testing.assert_allclose(plain.change - drift, subtracted.change, rtol=0, atol=ROUNDING)
    assert np.abs(drift).max() > 1e-3


def test_last_layer_retraining_leaves_the_other_layers_bitwise():
    subject = made("mlp")
    task = first_shard(subject, start="warm", trainable="last_layer").task()
    fit = subject.training.fit(task)
    for name, value in base(subject).params.items():
        still = [torch.equal(model, value) for model in fit.params[name]]
        assert all(still) if name.startswith("1.") else not any(still)


def test_newton_from_the_optimum_of_the_last_layer_has_no_drift():
    """A convex last layer: warm retraining ends at its optimum, whatever removal; the removed row's own loss rises."""
    subject = made("mlp", Lbfgs(weight_decay=0.02, tolerance=1e-10))
    trained = base(subject)
    data = subject.data
    own = replace(subject, data=replace(data, test_inputs=data.train_inputs[ROWS], test_targets=data.train_targets[ROWS]))
    truth = retrain(own, start="warm", trainable="last_layer")
    assert truth.control.largest_parameter_change == 0  # already within tolerance: not one step
    assert (truth.change[..., 0].diagonal() > 0).all()
    assert trained.gradient_norm <= 1e-10


# ---------------------------------------------------------------------------------------------------------------- control


CONTROLS = {
    "sgd": made("mlp"),
    "adam": made("mlp", Adam(epochs=3, batch_size=16)),
    "newton": experiment("softmax"),
    "lbfgs": experiment("mlp"),
    "conv": made("conv", Sgd(epochs=2, batch_size=8)),
    "batch norm": made("conv", Sgd(epochs=2, batch_size=8), model=BatchNormNet()),
    "dropout": made("conv", Sgd(epochs=2, batch_size=8), model=DropoutNet()),
    "float32": experiment("mlp", torch.float32, training=SGD),
}


@pytest.mark.parametrize("case", CONTROLS)
def test_removing_nothing_from_scratch_changes_exactly_nothing(case):
    control = retrain(CONTROLS[case], np.array([1])).control
    assert (control.largest_parameter_change, control.largest_measurement_change, control.mean_measurement_change) == (0.0, 0.0, 0.0)


def test_the_trained_model_is_the_reference_inside_a_newton_stack():
    """Row 0 of a stack starts at the optimum and stays there."""
    subject = experiment("softmax")
    task = first_shard(subject).task()
    fit = subject.training.fit(task)
    for name, value in base(subject).params.items():
        assert torch.equal(fit.params[name][0], value)
        assert not torch.equal(fit.params[name][1], value)


# -------------------------------------------------------------------------------------------------- stacks, workers, seeds


@pytest.mark.parametrize("name", ["mlp", "conv"])
@pytest.mark.parametrize("models_at_once", [1, 2, 7])
def test_the_size_of_a_stack_changes_nothing(name, models_at_once):
    subject = made(name, replace(SGD, epochs=2))
    rows = ROWS[:5]
    alone = retrain(subject, rows, models_at_once=3)
    cut = retrain(subject, rows, models_at_once=models_at_once)
    assert cut.shards == -(-5 // models_at_once)
    np.testing.assert_allclose(cut.change, alone.change, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(cut.full, alone.full, rtol=0, atol=ROUNDING)


def test_the_size_of_a_newton_stack_changes_nothing():
    subject = experiment("softmax")
    whole, cut = (retrain(subject, models_at_once=models) for models in (7, 2))
    np.testing.assert_allclose(cut.change, whole.change, rtol=0, atol=1e-9)  # both within 1e-12/λ = 5e-11 of the optimum, ‖∇m‖ up to 10


def test_two_workers_give_the_same_bytes_as_one():
    subject = made("mlp")
    one, two = (retrain(subject, models_at_once=2, seeds=2, workers=workers) for workers in (1, 2))
    assert np.array_equal(one.change, two.change)
    assert np.array_equal(one.full, two.full)


@pytest.mark.parametrize("start", ["scratch", "warm"])
def test_a_seed_of_the_axis_is_a_run_with_that_seed(start):
    subject = made("mlp")
    axis = retrain(subject, seeds=3, seed=5, start=start)
    assert axis.change.shape == (7, 6, 3)
    assert axis.seeds.tolist() == [5, 6, 7]
    for s, seed in enumerate(axis.seeds.tolist()):
        single = retrain(subject, seed=seed, start=start)
        assert np.array_equal(axis.change[..., s], single.change[..., 0])
        assert np.array_equal(axis.full[:, s], single.full[:, 0])
    assert np.abs(axis.change[..., 0] - axis.change[..., 1]).max() > 1e-4


@pytest.mark.parametrize("start", ["scratch", "warm"])
def test_what_varies_between_seeds_and_what_is_held(start):
    """`init` column s: initialisation s, batch order 0; `order` the other way round; the first column is the estimate's own model."""
    subject = made("mlp")
    both, init, order = (retrain(subject, seeds=3, start=start, vary=vary) for vary in ("both", "init", "order"))
    for other in (init, order):
        assert np.array_equal(other.change[..., 0], both.change[..., 0])
        assert np.array_equal(other.full[:, 0], both.full[:, 0])
        assert other.seeds.tolist() == both.seeds.tolist()
    assert [Retraining(seeds=2, vary=vary).draws(5) for vary in ("both", "init", "order")] == [
        [(5, 5), (6, 6)], [(5, 5), (6, 5)], [(5, 5), (5, 6)],
    ]  # fmt: skip
    later = [truth.change[..., s] for truth in (both, init, order) for s in (1, 2)]
    for one in range(6):
        assert all(np.abs(later[one] - later[two]).max() > 1e-4 for two in range(one))


@pytest.mark.parametrize(("vary", "init", "order"), [("init", SEED + 1, SEED), ("order", SEED, SEED + 1)])
def test_a_varied_seed_is_the_plain_loop(vary, init, order):
    subject = made("mlp")
    steps = subject.trajectory(SEED, NOTHING_KEPT, subject.train(SEED, NOTHING_KEPT, order=order), AMPLE, order=order).steps
    truth = retrain(subject, [4], seeds=2, vary=vary)
    losses = []
    for left_out in (None, 4):
        module = subject.module(init)
        moving, velocity = list(module.parameters()), [torch.zeros_like(p) for p in module.parameters()]
        for step in steps:
            kept = step.rows if left_out is None else step.rows[step.rows != left_out]
            loss = torch_loss(module(subject.data.train_inputs[kept]), subject.data.train_targets[kept]).sum() / len(step.rows)
            for p, v, g in zip(moving, velocity, torch.autograd.grad(loss, moving), strict=True):
                v.mul_(SGD.momentum).add_(g + SGD.weight_decay * p.data)
                p.data -= SGD.lr * v
        losses.append(torch_loss(module(subject.data.test_inputs), subject.data.test_targets).detach().numpy())
    np.testing.assert_allclose(truth.full[:, 1], losses[0], rtol=0, atol=1e-11)  # the same float64 steps, sums in another order
    np.testing.assert_allclose(truth.change[0, :, 1], losses[1] - losses[0], rtol=0, atol=1e-11)


def test_another_order_of_full_batches_is_no_noise():
    truth = retrain(made("mlp", Sgd(lr=0.1, epochs=4, batch_size=None)), seeds=3, vary="order")
    assert np.array_equal(truth.change[..., 0], truth.change[..., 1])
    assert np.array_equal(truth.change[..., 0], truth.change[..., 2])
    table = compare(truth.change[..., 0], truth.change, calibrated=True, resamples=10).set_index("statistic")
    assert table.noise_ceiling["spearman"] == pytest.approx(1.0, abs=1e-12)


def test_another_start_of_a_convex_model_is_no_noise():
    truth = retrain(experiment("softmax"), seeds=2, vary="init")
    np.testing.assert_allclose(truth.change[..., 0], truth.change[..., 1], rtol=0, atol=1e-9)  # both within 1e-12/λ, ‖∇m‖ up to 10
    assert np.abs(truth.change).max() > 1e-3


def test_rows_of_the_truth_are_the_rows_removed():
    subject = made("mlp")
    truth = retrain(subject)
    assert truth.removals.rows.tolist() == ROWS.tolist()
    for k in (0, 4):
        np.testing.assert_allclose(truth.change[k], retrain(subject, ROWS[k : k + 1]).change[0], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("measurement", [Margin(), LogProbability(), MeanLoss()])
def test_the_truth_measures_what_it_is_asked(measurement):
    subject = made("mlp")
    plain, other = retrain(subject), retrain(replace(subject, measurement=measurement))
    if isinstance(measurement, MeanLoss):
        assert other.change.shape == (7, 1, 1)
        np.testing.assert_allclose(other.change[:, 0], plain.change.mean(1), rtol=0, atol=ROUNDING)
    elif isinstance(measurement, LogProbability):
        np.testing.assert_allclose(other.change, -plain.change, rtol=0, atol=ROUNDING)
    else:  # loss = log(1 + exp(−margin))
        np.testing.assert_allclose(np.logaddexp(0, -other.full), plain.full, rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(np.logaddexp(0, -other.full - other.change[0]), plain.full + plain.change[0], rtol=0, atol=ROUNDING)


def test_float32_is_near_float64():
    single, double = (retrain(experiment("mlp", dtype, training=SGD)).change for dtype in (torch.float32, torch.float64))
    # losses of size one are known to 1e-7 times some ten roundings
    np.testing.assert_allclose(single, double, rtol=0, atol=3e-6)
    assert np.abs(double).max() > 1e-3


# -------------------------------------------------------------------------------------------------------------- the store


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A store that holds one warm run, and that run."""
    store = Store(tmp_path_factory.mktemp("store"))
    subject = made("mlp")
    return store, subject, retrain(subject, store=store, start="warm", models_at_once=3, seeds=2)


def test_a_second_run_reads_identical_arrays(filled):
    store, subject, first = filled
    again = retrain(subject, store=store, start="warm", models_at_once=3, seeds=2)
    assert (first.reused, again.reused, again.shards) == (0, 6, 6)
    assert np.array_equal(first.change, again.change)
    assert np.array_equal(first.full, again.full)


def test_a_lost_stack_is_trained_again(filled):
    store, subject, first = filled
    next((store.root / "retrained").rglob("*.safetensors")).unlink()
    again = retrain(subject, store=store, start="warm", models_at_once=3, seeds=2)
    assert again.reused == 5
    assert np.array_equal(first.change, again.change)


def test_whichever_stack_is_lost_the_arrays_are_the_same(tmp_path, monkeypatch):
    """Stacks of other sizes may round otherwise, made visible here; the lost one comes last."""
    exact = Shard.retrain
    monkeypatch.setattr(Shard, "retrain", lambda shard: {"values": exact(shard)["values"] + 1e-13 * shard.part.sets[0][0]})
    store, subject = Store(tmp_path), made("mlp", replace(SGD, epochs=2))
    first = retrain(subject, store=store, seeds=2, models_at_once=3)
    for entry in (tmp_path / "retrained").rglob("*.safetensors"):
        entry.unlink()
        again = retrain(subject, store=store, seeds=2, models_at_once=3)
        assert (first.shards, again.reused) == (6, 5)
        assert np.array_equal(first.full, again.full)
        assert np.array_equal(first.change, again.change)


@pytest.mark.parametrize(("vary", "shared"), [("init", 1), ("order", 1), ("both", 2)])
def test_seeds_are_reused_when_start_and_order_are_the_same(tmp_path, vary, shared):
    store, subject = Store(tmp_path), made("mlp", replace(SGD, epochs=1))
    retrain(subject, store=store, seeds=2)
    assert retrain(subject, store=store, seeds=2, vary=vary).reused == shared


def test_who_filled_the_store_does_not_show(tmp_path):
    """A Newton stack starts near its own seed's optimum, whichever run asks for it."""
    subject, store = experiment("softmax"), Store(tmp_path)
    retrain(subject, ROWS[:2], seed=SEED + 1, store=store)
    mixed, fresh = (retrain(subject, ROWS[:2], seeds=2, store=kept) for kept in (store, NOTHING_KEPT))
    assert (mixed.reused, fresh.reused) == (1, 0)
    assert np.array_equal(mixed.change, fresh.change)


def test_workers_and_drift_read_the_same_stacks(filled):
    store, subject, _ = filled
    assert retrain(subject, store=store, start="warm", models_at_once=3, seeds=2, subtract_drift=True).reused == 6
    assert retrain(subject, store=store, start="warm", models_at_once=3, seeds=1).reused == 3


CHANGED = {
    "start": ({"start": "scratch"}, {}),
    "trainable": ({"trainable": "last_layer"}, {}),
    "epochs": ({"epochs": 2}, {}),
    "divisor": ({"divisor": "n-1"}, {}),
    "measurement": ({}, {"measurement": Margin()}),
    "objective": ({}, {"objective": CrossEntropy()}),
    "model": ({}, {"model": Mlp(depth=1, width=4, activation="selu")}),
    "learning rate": ({}, {"training": replace(SGD, lr=0.05)}),
    "weight decay": ({}, {"training": replace(SGD, weight_decay=0.03)}),
    "optimiser": ({}, {"training": Adam(lr=0.1, epochs=4, batch_size=16, weight_decay=0.02)}),
    "data": ({}, {"data": replace(made("mlp").data, train_targets=made("mlp").data.train_targets.flip(0))}),
    "test data": ({}, {"data": replace(made("mlp").data, test_targets=made("mlp").data.test_targets.flip(0))}),
    "number type": ({}, {"data": made("mlp").data.to(torch.float32, "cpu")}),
}


@pytest.mark.parametrize("case", CHANGED)
def test_nothing_is_reused_when_an_option_changes(filled, case):
    store, subject, _ = filled
    options, changes = CHANGED[case]
    options = {"start": "warm", "models_at_once": 3, **options}
    other = replace(subject, **changes)
    rows = ROWS[:2]  # seven rows in stacks of at most three: two, three, two
    assert retrain(subject, rows, store=store, start="warm", models_at_once=3).reused == 1
    assert retrain(other, rows, store=store, **options).reused == 0


def test_nothing_is_reused_for_other_rows_or_seeds(filled):
    store, subject, _ = filled
    assert retrain(subject, ROWS[:3] + 1, store=store, start="warm", models_at_once=3).reused == 0
    assert retrain(subject, ROWS[:3], seed=77, store=store, start="warm", models_at_once=3).reused == 0


def test_options_of_a_users_measurement_are_part_of_the_key(tmp_path):
    store = Store(tmp_path)
    one, ten = (replace(made("ridge"), measurement=SometimesScaled(factor=factor)) for factor in (1.0, 10.0))
    first = retrain(one, ROWS[:2], store=store).change
    np.testing.assert_allclose(retrain(ten, ROWS[:2], store=store).change, 10 * first, rtol=1e-12, atol=0)


# ----------------------------------------------------------------------------------------------------- cost and refusals


@pytest.mark.parametrize("name", ["sgd", "newton"])
def test_the_prediction_is_a_time(name):
    subject, options = CONTROLS[name], Retraining()
    given = subject, base(subject), Removals.single(ROWS), SEED, NOTHING_KEPT
    assert 0 < options.seconds(options.plan(*given), *given) < 60


def test_what_the_store_holds_takes_no_time(filled):
    store, subject, _ = filled
    options = Retraining(start="warm", models_at_once=3, seeds=2)
    given = subject, base(subject), Removals.single(ROWS), SEED, store
    assert options.seconds(options.plan(*given), *given) == 0


@pytest.mark.parametrize(
    ("options", "training", "message"),
    [
        ({"epochs": 3}, Newton(), r"retraining\.epochs needs a training with epochs \(sgd, adam, adamw\)"),
        ({"epochs": 3}, Lbfgs(), r"retraining\.epochs needs a training with epochs"),
        ({"vary": "order"}, Newton(), r"retraining\.vary=order needs a training in batches \(training=sgd, adam or adamw with a "),
        ({"vary": "order"}, Lbfgs(), r"retraining\.vary=order needs a training in batches"),
        ({"vary": "order"}, Sgd(batch_size=None), r"retraining\.vary=order needs a training in batches"),
        ({"vary": "order"}, Sgd(batch_size=36), r"retraining\.vary=order needs a training in batches"),  # of 36 examples
    ],
)
def test_a_plan_that_does_not_fit_the_training_is_refused(options, training, message):
    with pytest.raises(InfluxError, match=message):
        Retraining(removed=5, **options).check("loo", made("mlp", training))


def test_the_only_example_cannot_be_left_out():
    data = made("mlp").data
    one = replace(data, train_inputs=data.train_inputs[:1], train_targets=data.train_targets[:1], train_index=data.train_index[:1])
    with pytest.raises(InfluxError, match=r"leaving one training example out of 1 leaves none: raise dataset\.train_size"):
        Retraining(removed=1).check("loo", made("mlp", data=one))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainable": "last_layer"}, r"retraining\.trainable=last_layer needs retraining\.start=warm"),
        ({"subtract_drift": True}, r"retraining\.subtract_drift=true needs retraining\.start=warm"),
        ({"start": "cold"}, r"retraining\.start=cold is not possible: it must be one of scratch, warm"),
        ({"removed": 0}, r"retraining\.removed=0"),
        ({"selection": "stratfied"}, r"retraining\.selection=stratfied .*Did you mean 'stratified'"),
        ({"divisor": "n+1"}, r"retraining\.divisor=n\+1"),
        ({"vary": "none"}, r"retraining\.vary=none is not possible: it must be one of both, init, order"),
        ({"seeds": 0}, r"retraining\.seeds=0"),
        ({"workers": 0}, r"retraining\.workers=0"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(InfluxError, match=message):
        Retraining(**options)


def test_names_of_truths():
    assert Retraining().name == "scratch"
    assert Retraining(start="warm").name == "warm"
    assert Retraining(start="warm", trainable="last_layer").name == "warm_last_layer"


# ---------------------------------------------------------------------------------------------------- batch normalisation


BATCH_NORM = made("conv", Sgd(lr=0.1, epochs=1, batch_size=None, momentum=0.0, weight_decay=0.0), model=BatchNormNet())


def test_a_left_out_row_is_absent_from_batch_statistics():
    """Full batches, one step: with the row gone from the batch, mean and variance are those of the other rows."""
    data, row = BATCH_NORM.data, 5
    weights = torch.ones(2, data.n_train, dtype=torch.float64)
    weights[1, row] = 0.0
    fit = BATCH_NORM.training.fit(BATCH_NORM.task(SEED, weights))
    for k, kept in enumerate([np.arange(data.n_train), np.delete(np.arange(data.n_train), row)]):
        module = BATCH_NORM.module(SEED).train()
        (torch_loss(module(data.train_inputs[kept]), data.train_targets[kept]).sum() / data.n_train).backward()
        for name, value in module.named_parameters():
            torch.testing.assert_close(fit.params[name][k], value - 0.1 * value.grad, rtol=1e-11, atol=1e-12)  # one float64 step
        for name, value in module.named_buffers():
            torch.testing.assert_close(fit.buffers[name][k], value, rtol=1e-11, atol=1e-12)


def test_a_left_out_row_may_hold_anything():
    """What is truly absent cannot matter: the left-out row's pixels are replaced by large ones."""
    data, row = BATCH_NORM.data, 5
    spoiled = data.train_inputs.clone()
    spoiled[row] = 1e6
    other = replace(BATCH_NORM, data=replace(data, train_inputs=spoiled))
    weights = torch.ones(1, data.n_train, dtype=torch.float64)
    weights[0, row] = 0.0
    one, two = (subject.training.fit(subject.task(SEED, weights)) for subject in (BATCH_NORM, other))
    assert all(torch.equal(one.params[name], two.params[name]) for name in one.params)
    assert all(torch.equal(one.buffers[name], two.buffers[name]) for name in one.buffers)


def test_batch_normalisation_is_no_longer_warned_of(recwarn):
    retrain(BATCH_NORM, [5])
    assert not recwarn.list
