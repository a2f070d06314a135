"""The training engine: K models at once against one after another, against plain torch.optim loops, and against closed forms."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from problems import (
    NOTHING_KEPT,
    BatchNormNet,
    DropoutNet,
    affine,
    answers,
    experiment,
    problem,
    ridge_solution,
    torch_loss,
    trained,
    with_intercept,
)
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from influx import stacking
from influx.datasets import Data
from influx.datasets.digits import Digits
from influx.errors import AccuracyWarning, InfluxError, NumericalError
from influx.experiment import Experiment
from influx.models import Model
from influx.models.mlp import Mlp
from influx.seeding import isolated
from influx.trained import HISTORY
from influx.training import Task, first_order
from influx.training.first_order import Adam, AdamW, Sgd
from influx.training.second_order import Lbfgs, Newton

AMPLE = 2**30  # bytes that a trajectory may hold: all of these
SHORT = {"epochs": 4, "batch_size": 16, "weight_decay": 0.02}
FIRST_ORDER = {
    "sgd": Sgd(lr=0.1, momentum=0.0, **SHORT),
    "momentum": Sgd(lr=0.1, momentum=0.9, **SHORT),
    "nesterov": Sgd(lr=0.1, momentum=0.9, nesterov=True, **SHORT),
    "full batch": Sgd(lr=0.1, momentum=0.9, epochs=4, batch_size=None, weight_decay=0.02),
    "linear": Sgd(lr=0.1, schedule="linear", **SHORT),
    "cosine": Sgd(lr=0.1, schedule="cosine", **SHORT),
    "step": Sgd(lr=0.1, schedule="step", **SHORT),
    "adam": Adam(lr=0.01, **SHORT),
    "amsgrad": Adam(lr=0.01, amsgrad=True, **SHORT),
    "adamw": AdamW(lr=0.01, decoupled_decay=0.1, **SHORT),
}
NETWORKS: dict[str, tuple[str, Model | None]] = {
    "softmax": ("softmax", None),
    "mlp": ("mlp", None),
    "conv": ("conv", None),
    "batch norm": ("conv", BatchNormNet()),
    "dropout": ("conv", DropoutNet()),
    "mlp with dropout": ("mlp", Mlp(depth=2, width=6, dropout=0.3)),
}


def network(name: str, training, dtype=torch.float64):
    row, model = NETWORKS[name]
    made = experiment(row, dtype, training=training)
    return made if model is None else replace(made, model=model)


def stacked(made, models: int, seed: int = 3, **changes) -> Task:
    """K models with starts of their own; model 0 keeps every example, model k leaves row 5k out."""
    n, dtype = made.data.n_train, made.data.train_inputs.dtype
    weights = torch.ones(models, n, dtype=dtype)
    for k in range(1, models):
        weights[k, 5 * k % n] = 0.0
    task = made.task(seed, weights)
    noise = torch.Generator().manual_seed(0)
    params = {
        name: value + 0.1 * torch.randn(value.shape, generator=noise, dtype=torch.float64).to(dtype) for name, value in task.params.items()
    }
    return replace(task, params=params, **changes)


def alone(task: Task, k: int) -> Task:
    def only(stack):
        return {name: value[k : k + 1].clone() for name, value in stack.items()}

    return replace(task, params=only(task.params), buffers=only(task.buffers), weights=task.weights[k : k + 1])


def assert_same_as_alone(task: Task, training, rtol: float, atol: float) -> None:
    together = training.fit(task)
    for k in range(task.models):
        one = training.fit(alone(task, k))
        for name in task.params:
            assert_close(together.params[name][k], one.params[name][0], rtol=rtol, atol=atol)
        for name in task.buffers:
            assert_close(together.buffers[name][k], one.buffers[name][0], rtol=rtol, atol=atol)


# ------------------------------------------------------------------------------------------------- K models side by side


@pytest.mark.parametrize("network_name", NETWORKS)
@pytest.mark.parametrize("optimiser", ["momentum", "adam"])
def test_k_models_at_once_are_k_models_one_after_another(network_name, optimiser):
    training = FIRST_ORDER[optimiser]
    # a dozen steps of float64 sums whose order depends on K: eps x steps x a small factor
    assert_same_as_alone(stacked(network(network_name, training), 3), training, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("optimiser", [name for name in FIRST_ORDER if name not in ("momentum", "adam")])
def test_every_first_order_rule_takes_k_separate_steps(optimiser):
    training = FIRST_ORDER[optimiser]
    assert_same_as_alone(stacked(network("mlp", training), 3), training, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("network_name", ["mlp", "conv", "batch norm"])
def test_k_models_at_once_in_float32(network_name):
    training = FIRST_ORDER["momentum"]
    # eps = 1.2e-7 a step, at most 12 steps, momentum adds up ten of them
    assert_same_as_alone(stacked(network(network_name, training, torch.float32), 3), training, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [Newton(weight_decay=0.02, tolerance=1e-12), Lbfgs(weight_decay=0.02, tolerance=1e-11)])
def test_k_convex_models_at_once(training):
    # both stop within tolerance/λ of the same optimum
    within = 2 * training.tolerance / training.weight_decay
    assert_same_as_alone(stacked(network("softmax", training), 4), training, rtol=0, atol=within)


@pytest.mark.parametrize("training", [FIRST_ORDER["momentum"], FIRST_ORDER["adamw"], Lbfgs(tolerance=1e-2)])
def test_the_memory_layout_of_the_start_changes_nothing(training):
    task = stacked(network("mlp", training), 2)
    turned = {name: value.transpose(0, -1).contiguous().transpose(0, -1) for name, value in task.params.items()}
    plain, other = training.fit(task), training.fit(replace(task, params=turned))
    for name in task.params:
        assert_close(other.params[name], plain.params[name], rtol=1e-12, atol=1e-12)  # a product may sum in another order


def test_weights_and_starts_matter():
    """The comparison above would be empty if the K models were one."""
    fit = FIRST_ORDER["momentum"].fit(stacked(network("mlp", FIRST_ORDER["momentum"]), 3))
    assert (fit.params["1.weight"][1:] - fit.params["1.weight"][0]).abs().amin() > 1e-6


@pytest.mark.parametrize("row", ["softmax", "mlp", "conv"])
def test_stacked_outputs_are_the_modules_own(row):
    made = experiment(row)
    task = stacked(made, 3)
    ours = stacking.outputs(task.module, task.params, task.buffers, made.data.test_inputs)
    module = copy.deepcopy(task.module)
    for k in range(3):
        module.load_state_dict(stacking.unstack(task.params, k))
        assert_close(ours[k], module(made.data.test_inputs), rtol=1e-12, atol=1e-12)  # rounding of sums of at most 25 terms


@pytest.mark.parametrize(("n", "each", "wanted"), [(10, 1, [10]), (10, 30, [3, 3, 3, 1]), (3, 1000, [1, 1, 1]), (0, 1, []), (4, 0, [4])])
def test_blocks_cover_every_row_once(n, each, wanted, monkeypatch):
    monkeypatch.setattr(stacking, "BLOCK_BYTES", 100)
    pieces = stacking.blocks(n, each)
    assert [len(range(n)[piece]) for piece in pieces] == wanted
    assert [i for piece in pieces for i in range(n)[piece]] == list(range(n))


# ----------------------------------------------------------------------------------------------------- plain torch.optim


def torch_optimiser(training, parameters) -> torch.optim.Optimizer:
    decay = training.weight_decay
    if isinstance(training, Sgd):
        return torch.optim.SGD(parameters, training.lr, training.momentum, nesterov=training.nesterov, weight_decay=decay, foreach=False)
    betas = (training.beta1, training.beta2)
    return torch.optim.Adam(parameters, training.lr, betas, weight_decay=decay, amsgrad=training.amsgrad, foreach=False)


def factors(schedule: str, steps: int) -> list[float]:
    done = np.arange(steps)
    rule = {
        "constant": np.ones(steps),
        "linear": 1 - done / steps,
        "cosine": (1 + np.cos(np.pi * done / steps)) / 2,
        "step": np.where(done < steps / 2, 1.0, np.where(done < 3 * steps / 4, 0.1, 0.01)),
    }
    return rule[schedule].tolist()


def batches_of(made, seed: int, weights=None) -> list[torch.Tensor]:
    """The rows of every step, of any network: one with dropout or batch statistics has no trajectory, but it has batches."""
    weights = torch.ones(1, made.data.n_train, dtype=made.data.train_inputs.dtype) if weights is None else weights
    task = made.task(seed, weights)
    return [step.rows for step in made.training.replay(task, made.training.initial(task), len(made.training.rates(made.data.n_train)))]


def torch_loop(made, seed: int, batches) -> nn.Module:
    """What anyone would write: an nn.Module, torch.optim, the mean loss of a batch."""
    module = made.module(seed).train()
    optimiser = torch_optimiser(made.training, list(module.parameters()))
    for rows, factor in zip(batches, factors(made.training.schedule, len(batches)), strict=True):
        for group in optimiser.param_groups:
            group["lr"] = made.training.lr * factor
        optimiser.zero_grad()
        torch_loss(module(made.data.train_inputs[rows]), made.data.train_targets[rows]).mean().backward()
        optimiser.step()
    return module


@pytest.mark.parametrize(
    ("network_name", "optimiser"),
    [("mlp", name) for name in FIRST_ORDER if name != "adamw"] + [("softmax", "momentum"), ("conv", "adam"), ("batch norm", "momentum")],
)
def test_training_is_the_plain_loop(network_name, optimiser):
    made = network(network_name, FIRST_ORDER[optimiser])
    fit = made.train(3, NOTHING_KEPT)
    module = torch_loop(made, 3, batches_of(made, 3))
    ours = {**fit.params, **fit.buffers}
    for name, value in module.state_dict().items():
        assert_close(ours[name], value, rtol=1e-11, atol=1e-12)  # the same float64 steps, sums in another order


def test_dropout_is_plain_dropout():
    made = network("dropout", FIRST_ORDER["momentum"])
    fit = made.train(3, NOTHING_KEPT)
    batches = batches_of(made, 3)
    with isolated(3, "stochastic layers"):
        module = torch_loop(made, 3, batches)
    for name, value in module.named_parameters():
        assert_close(fit.params[name], value, rtol=1e-11, atol=1e-12)
    without = replace(made, model=DropoutNet(0.0)).train(3, NOTHING_KEPT)
    assert (fit.params["1.weight"] - without.params["1.weight"]).abs().max() > 1e-3  # masks were drawn


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_a_row_left_out_by_hand(nesterov):
    """Momentum SGD on J written out: the left-out row is not there, its batch keeps its divisor, λ is coupled."""
    made = network("mlp", Sgd(lr=0.1, momentum=0.9, nesterov=nesterov, **SHORT))
    lam, lr, mu, out = 0.02, 0.1, 0.9, 7
    weights = torch.ones(1, made.data.n_train, dtype=torch.float64)
    weights[0, out] = 0.0
    fit = made.training.fit(made.task(3, weights))
    module = made.module(3)
    parameters = list(module.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    for rows in batches_of(made, 3, weights):
        kept = rows[rows != out]
        loss = torch_loss(module(made.data.train_inputs[kept]), made.data.train_targets[kept]).sum() / len(rows)
        objective = loss + lam / 2 * sum(p.square().sum() for p in parameters)
        for p, v, g in zip(parameters, velocity, torch.autograd.grad(objective, parameters), strict=True):
            v.mul_(mu).add_(g)
            p.data -= lr * (g + mu * v if nesterov else v)
    for name, value in module.named_parameters():
        assert_close(fit.params[name][0], value, rtol=1e-11, atol=1e-12)


def test_adamw_adds_the_coupled_penalty_and_then_shrinks():
    """Adam with bias correction on g + λθ, after θ ← (1 − lr·d)θ: Loshchilov & Hutter's algorithm 2 by hand."""
    training = FIRST_ORDER["adamw"]
    made = network("mlp", training)
    fit = made.train(3, NOTHING_KEPT)
    module = made.module(3)
    parameters = list(module.parameters())
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for t, rows in enumerate(batches_of(made, 3), 1):
        loss = torch_loss(module(made.data.train_inputs[rows]), made.data.train_targets[rows]).mean()
        objective = loss + training.weight_decay / 2 * sum(p.square().sum() for p in parameters)
        for p, m, v, g in zip(parameters, first, second, torch.autograd.grad(objective, parameters), strict=True):
            m.mul_(training.beta1).add_((1 - training.beta1) * g)
            v.mul_(training.beta2).add_((1 - training.beta2) * g * g)
            p.data *= 1 - training.lr * training.decoupled_decay
            unbiased = m / (1 - training.beta1**t), v / (1 - training.beta2**t)
            p.data -= training.lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    for name, value in module.named_parameters():
        assert_close(fit.params[name], value, rtol=1e-11, atol=1e-12)


# ---------------------------------------------------------------------------------------------- the promise, on real data


PROMISED = {
    "sgd": Sgd(lr=0.1, momentum=0.0),
    "momentum": Sgd(lr=0.05, momentum=0.9, weight_decay=0.01, schedule="cosine"),
    "nesterov": Sgd(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01, schedule="step"),
    "adam": Adam(lr=0.003, beta1=0.8, beta2=0.99, weight_decay=0.01),
    "amsgrad": Adam(lr=0.003, amsgrad=True, weight_decay=0.01, schedule="linear"),
    "adamw": AdamW(lr=0.003, decoupled_decay=0.1, schedule="cosine"),
    "adamw with both decays": AdamW(lr=0.003, decoupled_decay=0.1, weight_decay=0.01),
}


@cache
def digits(dtype: torch.dtype) -> Data:
    return Digits(train_size=400, test_size=50).load().to(dtype, "cpu")


def tensor_loop(made: Experiment, seed: int, kept: torch.Tensor, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """One model, `x[rows]` and torch.optim; rows that are not `kept` are not fed, their batch keeps its divisor."""
    training, module = made.training, made.module(seed)
    coupled = training.weight_decay
    if isinstance(training, AdamW):
        settings = {"betas": (training.beta1, training.beta2), "weight_decay": training.decoupled_decay}
        optimiser: torch.optim.Optimizer = torch.optim.AdamW(module.parameters(), training.lr, **settings, foreach=False)
    else:
        optimiser, coupled = torch_optimiser(training, list(module.parameters())), 0.0  # torch.optim adds it
    for rows, factor in zip(batches, factors(training.schedule, len(batches)), strict=True):
        for group in optimiser.param_groups:
            group["lr"] = training.lr * factor
        left = rows[kept[rows]]
        losses = F.cross_entropy(module(made.data.train_inputs[left]), made.data.train_targets[left], reduction="sum")
        penalty = coupled / 2 * sum(p.square().sum() for p in module.parameters())
        optimiser.zero_grad()
        (losses / len(rows) + penalty).backward()
        optimiser.step()
    return {name: value.detach() for name, value in module.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", PROMISED)
def test_k_networks_on_digits_are_k_plain_torch_loops(name, dtype):
    """MLP 64-32-10, 42 steps of at most 64 rows, the seventh of 16; nothing, one row, half the rows and a whole class left out."""
    made = experiment("mlp", data=digits(dtype), model=Mlp(depth=1, width=32), training=replace(PROMISED[name], epochs=6, batch_size=64))
    weights = torch.ones(4, 400, dtype=dtype)
    weights[1, 17] = 0.0
    weights[2, torch.randperm(400, generator=torch.Generator().manual_seed(0))[:200]] = 0.0
    weights[3, made.data.train_targets == 8] = 0.0
    batches = batches_of(made, 3)
    assert [len(rows) for rows in batches] == 6 * [64, 64, 64, 64, 64, 64, 16]
    fit = made.training.fit(made.task(3, weights))
    for k in range(4):
        within = 1e-4 if dtype == torch.float32 else 1e-10  # what is promised
        assert_close(stacking.unstack(fit.params, k), tensor_loop(made, 3, weights[k] > 0, batches), rtol=0, atol=within)
    assert (fit.params["1.weight"][1:] - fit.params["1.weight"][0]).abs().flatten(1).amax(1).min() > 1e-3


# -------------------------------------------------------------------------------------------------- batches and records


def recorded_rows(made, seed: int, weights=None) -> list[list[int]]:
    return [rows.tolist() for rows in batches_of(made, seed, weights)]


def test_batch_order_is_a_function_of_the_seed():
    made = network("mlp", FIRST_ORDER["sgd"])
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    order = recorded_rows(made, 0)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    leaving_out = torch.ones(3, 36, dtype=torch.float64)
    leaving_out[:, 4] = 0.0
    assert recorded_rows(made, 0, leaving_out) == order  # not of weights, K, or the global state
    assert recorded_rows(network("mlp", FIRST_ORDER["adam"], torch.float32), 0) == order  # nor of optimiser and number type
    assert recorded_rows(made, 1) != order
    epochs = [order[start] + order[start + 1] + order[start + 2] for start in range(0, len(order), 3)]
    assert [len(rows) for rows in order[:3]] == [16, 16, 4]
    assert all(sorted(epoch) == list(range(36)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_full_batch_takes_all_rows_in_order():
    assert recorded_rows(network("mlp", FIRST_ORDER["full batch"]), 0) == [list(range(36))] * 4
    assert recorded_rows(network("mlp", Sgd(epochs=2, batch_size=500)), 0) == [list(range(36))] * 2


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "step"])
def test_a_recorded_trajectory_replays(schedule):
    made = network("mlp", Sgd(lr=0.1, momentum=0.0, schedule=schedule, **SHORT))
    fit = made.train(3, NOTHING_KEPT)
    steps = made.trajectory(3, NOTHING_KEPT, fit, AMPLE).steps
    assert len(steps) == 4 * 3
    assert_close([s.lr for s in steps], [0.1 * f for f in factors(schedule, 12)], rtol=1e-14, atol=1e-16)
    start = dict(made.module(3).named_parameters())
    assert all(torch.equal(steps[0].params[name], start[name]) for name in start)
    after = [*(s.params for s in steps[1:]), fit.params]
    module = made.module(3)
    for step, wanted in zip(steps, after, strict=True):
        module.load_state_dict(step.params)
        loss = torch_loss(module(made.data.train_inputs[step.rows]), made.data.train_targets[step.rows]).mean()
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        for (name, value), g in zip(step.params.items(), gradients, strict=True):
            assert_close(value - step.lr * (g + 0.02 * value), wanted[name], rtol=1e-12, atol=1e-13)  # one float64 step


@pytest.mark.parametrize("optimiser", ["momentum", "adam"])
def test_checkpoints_change_nothing_and_are_steps_of_the_run(optimiser):
    made = network("mlp", FIRST_ORDER[optimiser])
    plain, marked = (made.train(3, NOTHING_KEPT, checkpoints=count) for count in (1, 4))
    assert all(torch.equal(plain.params[name], marked.params[name]) for name in plain.params)
    trajectory = made.trajectory(3, NOTHING_KEPT, plain, AMPLE, checkpoints=4)
    steps = trajectory.steps
    assert [snapshot.step for snapshot in trajectory.snapshots] == [0, 3, 6, 9]  # four epochs of three steps
    for snapshot in trajectory.snapshots:
        assert all(torch.equal(value, steps[snapshot.step].params[name]) for name, value in snapshot.params.items())
    assert [rate for _, rate in trajectory.checkpoints] == [made.training.lr] * 4
    assert all(torch.equal(trajectory.checkpoints[-1][0][name], plain.params[name]) for name in plain.params)
    assert not any(torch.equal(steps[-1].params[name], plain.params[name]) for name in plain.params)


@pytest.mark.parametrize("network_name", ["mlp", "batch norm", "dropout"])
@pytest.mark.parametrize("training", [*(FIRST_ORDER[name] for name in ("momentum", "adamw")), Lbfgs(tolerance=1e-3)])
def test_the_same_fit_twice_is_the_same_bytes_and_leaves_the_template_alone(network_name, training):
    task = stacked(network(network_name, training), 2)
    before = copy.deepcopy((task.module.state_dict(), task.params, task.buffers, task.module.training))
    state = torch.random.get_rng_state()
    first = training.fit(task)
    torch.manual_seed(12345)
    second = training.fit(task)
    for name in task.params:
        assert torch.equal(first.params[name], second.params[name])
    for name in task.buffers:
        assert torch.equal(first.buffers[name], second.buffers[name])
    after = (task.module.state_dict(), task.params, task.buffers, task.module.training)
    for one, other in zip(before[:3], after[:3], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert before[3] == after[3]
    torch.random.set_rng_state(state)


@pytest.mark.parametrize("training", [Newton(tolerance=1e-9), Lbfgs(tolerance=1e-6), FIRST_ORDER["momentum"]])
def test_the_same_convex_fit_twice_is_the_same_bytes(training):
    made = network("softmax", training)
    one, other = made.train(0, NOTHING_KEPT), made.train(0, NOTHING_KEPT)
    assert all(torch.equal(one.params[name], other.params[name]) for name in one.params)


@pytest.mark.parametrize("training", [FIRST_ORDER["momentum"], Lbfgs(tolerance=1e-2), Newton(weight_decay=1.0)])
def test_only_trainable_parameters_move(training):
    made = network("mlp", training)
    task = stacked(made, 3, trainable=("3.weight", "3.bias"))
    fit = training.fit(task)
    for name in task.params:
        assert torch.equal(fit.params[name], task.params[name]) == (name not in task.trainable)


def test_history_has_its_columns_and_is_right():
    made = network("mlp", FIRST_ORDER["momentum"])
    fit = made.train(3, NOTHING_KEPT)
    assert [tuple(row) for row in fit.history] == [HISTORY] * 4
    assert [row["epoch"] for row in fit.history] == [1, 2, 3, 4]
    module = made.module(3)
    module.load_state_dict(fit.params)
    outputs = module(made.data.train_inputs)
    loss = torch_loss(outputs, made.data.train_targets).mean()
    objective = loss + 0.01 * sum(p.square().sum() for p in module.parameters())
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(objective, list(module.parameters()))]).norm()
    last = fit.history[-1]
    assert last["loss"] == pytest.approx(loss.item(), rel=1e-12)
    assert last["objective"] == pytest.approx(objective.item(), rel=1e-12)
    assert last["accuracy"] == pytest.approx((outputs.argmax(1) == made.data.train_targets).double().mean().item(), rel=1e-12)
    assert last["gradient_norm"] == pytest.approx(norm.item(), rel=1e-10)
    assert fit.gradient_norm == pytest.approx(norm.item(), rel=1e-10)


def test_history_of_a_long_training_is_thinned(monkeypatch):
    monkeypatch.setattr(first_order, "HISTORY_ROWS", 5)
    made = network("softmax", Sgd(epochs=13, batch_size=None, lr=0.1))
    assert [row["epoch"] for row in made.train(0, NOTHING_KEPT).history] == [3, 6, 9, 12, 13]


def test_history_of_a_regression_has_no_accuracy():
    history = trained("ridge").history
    assert all(math.isnan(row["accuracy"]) for row in history)
    assert history[-1]["gradient_norm"] <= 1e-12


def test_blocks_of_rows_change_nothing(monkeypatch):
    training = Newton(weight_decay=0.02, tolerance=1e-12)
    task = stacked(network("softmax", training), 3)
    whole = training.fit(task)
    monkeypatch.setattr(stacking, "BLOCK_BYTES", 3000)
    assert len(task.blocks()) > 2
    cut = training.fit(task)
    for name in whole.params:
        assert_close(cut.params[name], whole.params[name], rtol=0, atol=2e-12 / 0.02)  # both within tolerance/λ of the optimum
    assert cut.gradient_norm.max() <= 1.1e-12  # rounding of the check itself is some 1e-16


# ----------------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("training", [Newton(weight_decay=0.05, tolerance=1e-12), Lbfgs(weight_decay=0.05, tolerance=1e-11)])
def test_ridge_is_its_normal_equations(training):
    made = experiment("ridge", training=training)
    x, y = with_intercept(made.data.train_inputs), made.data.train_targets.numpy()
    fit = made.train(0, NOTHING_KEPT)
    # ‖∇J‖ / λ_min bounds the distance to the optimum
    np.testing.assert_allclose(affine(fit.params)[0], ridge_solution(x, y, 0.05), rtol=0, atol=training.tolerance / 0.05)
    assert fit.gradient_norm <= training.tolerance


@pytest.mark.parametrize("training", [Newton(weight_decay=0.05, tolerance=1e-12), Lbfgs(weight_decay=0.05, tolerance=1e-11)])
def test_weighted_ridge_is_its_normal_equations(training):
    made = experiment("ridge", training=training)
    weights = torch.rand(4, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights[1:, :10] = 0.0
    fit = training.fit(made.task(0, weights))
    x, y = with_intercept(made.data.train_inputs), made.data.train_targets.numpy()
    for k in range(4):
        wanted = ridge_solution(x, y, 0.05, weights[k].numpy())
        np.testing.assert_allclose(affine(stacking.unstack(fit.params, k))[0], wanted, rtol=0, atol=training.tolerance / 0.05)


def scikit_learn(x, y, penalty: float, weights=None) -> np.ndarray:
    """argmin (1/n) Σ w_i ℓ_i + (penalty/2)‖θ‖²; scikit-learn multiplies the sum of losses by C instead."""
    model = LogisticRegression(C=1 / (len(y) * penalty), fit_intercept=False, tol=1e-12, max_iter=10_000)
    return model.fit(x, y, sample_weight=weights).coef_


@pytest.mark.parametrize(
    "training", [Newton(weight_decay=0.02, tolerance=1e-10), Lbfgs(weight_decay=0.02, tolerance=1e-10)], ids=["newton", "lbfgs"]
)
@pytest.mark.parametrize("left_out", [None, 4])
def test_softmax_regression_is_scikit_learns(training, left_out):
    made = experiment("softmax", training=training)
    x, y = with_intercept(made.data.train_inputs), made.data.train_targets.numpy()
    weights = torch.ones(1, 45, dtype=torch.float64)
    if left_out is not None:
        weights[0, left_out] = 0.0
    ours = affine(stacking.unstack(training.fit(made.task(0, weights)).params, 0))
    # scikit-learn's lbfgs stops at about 1e-8 of its own scale
    np.testing.assert_allclose(ours, scikit_learn(x, y, 0.02, weights[0].numpy()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [Newton(weight_decay=0.03, tolerance=1e-10), Lbfgs(weight_decay=0.03, tolerance=1e-10)])
def test_two_class_softmax_is_logistic_regression_with_half_the_penalty(training):
    made = experiment("binary", training=training)
    x, y = with_intercept(made.data.train_inputs), made.data.train_targets.numpy()
    rows = affine(made.train(0, NOTHING_KEPT).params)
    np.testing.assert_allclose(rows[1] - rows[0], scikit_learn(x, y, 0.03 / 2)[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(rows[0], -rows[1], rtol=0, atol=1e-8)  # tolerance/λ


@pytest.mark.parametrize("row", ["ridge", "binary", "softmax", "mlp"])
def test_trained_to_the_stated_gradient_norm(row):
    made = experiment(row)
    assert trained(row).gradient_norm <= made.training.tolerance
    mean = answers(row).train_gradients.mean(0)
    assert (mean + made.training.weight_decay * problem(row).theta).norm() <= 1.1 * made.training.tolerance + 1e-14


def test_newton_and_lbfgs_agree_from_any_start():
    newton, lbfgs = Newton(weight_decay=0.02, tolerance=1e-11), Lbfgs(weight_decay=0.02, tolerance=1e-11)
    made = experiment("softmax", training=newton)
    fits = [training.fit(stacked(made, 3, seed)) for training in (newton, lbfgs) for seed in (0, 9)]
    for fit in fits[1:]:
        for name in fit.params:
            assert_close(fit.params[name], fits[0].params[name], rtol=0, atol=2e-11 / 0.02)  # tolerance/λ from each side


def test_lbfgs_does_not_stop_on_a_plateau_of_the_gradient():
    """Found by this suite: a gradient norm may stop shrinking for some steps while the objective still falls."""
    made = experiment("mlp", training=Lbfgs(weight_decay=1e-3, tolerance=1e-7))
    for seed in range(3):
        assert made.train(seed, NOTHING_KEPT).gradient_norm <= 1e-7


def test_float32_stops_at_its_limit_and_says_so():
    made = experiment("softmax", torch.float32, training=Newton(weight_decay=0.02, tolerance=1e-12))
    with pytest.warns(AccuracyWarning, match=r"training stopped at a gradient norm of .*tolerance=1e-12: the limit of torch\.float32"):
        fit = made.train(0, NOTHING_KEPT)
    assert fit.gradient_norm < 1e-6  # a few float32 roundings of a mean of 45 gradients of size one


def test_too_few_iterations_are_reported():
    made = experiment("softmax", training=Lbfgs(weight_decay=0.02, tolerance=1e-10, max_iterations=3))
    with pytest.warns(AccuracyWarning, match=r"training\.max_iterations=3 is too few"):
        made.train(0, NOTHING_KEPT)


# --------------------------------------------------------------------------------------------------------------- refusals


@dataclass(frozen=True)
class Spoiled(Model):
    """A user's model that starts with a NaN."""

    def module(self, shape):
        module = Mlp(depth=1, width=2).module(shape)
        nn.init.constant_(module[1].bias, math.nan)
        return module


def test_divergence_names_epoch_and_learning_rate():
    made = experiment("ridge", training=Sgd(lr=1e6, epochs=50, batch_size=None, momentum=0.0))
    with pytest.raises(NumericalError, match=r"training diverged by epoch \d+: 1\.\w+ of model 0 .*Lower training\.lr \(now 1e\+06\)"):
        made.train(0, NOTHING_KEPT)


def test_divergence_names_the_model():
    training = Sgd(lr=0.1, epochs=2)
    task = stacked(network("mlp", training), 3)
    task.params["1.weight"][2, 0, 0] = math.inf
    with pytest.raises(NumericalError, match=r"diverged by epoch 1: .* of model 2"):
        training.fit(task)


@pytest.mark.parametrize("training", [Lbfgs(), Sgd(epochs=1)])
def test_a_start_that_is_not_finite_is_refused(training):
    with pytest.raises(NumericalError, match="training diverged"):
        experiment("mlp", model=Spoiled(), training=training).train(0, NOTHING_KEPT)


def test_newton_refuses_a_problem_that_is_not_convex():
    made = experiment("mlp", training=Newton(weight_decay=0.0))
    with pytest.raises(NumericalError, match=r"training=newton needs a strictly convex problem.*weight_decay above 0.*sgd, adam or lbfgs"):
        made.train(0, NOTHING_KEPT)


def test_newton_refuses_large_models():
    made = experiment("mlp", model=Mlp(depth=1, width=2000), training=Newton())
    with pytest.raises(InfluxError, match=r"training=newton forms a 14,003 x 14,003 Hessian; the limit is 10,000.*Use training=lbfgs"):
        made.train(0, NOTHING_KEPT)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sgd(lr=0.0), r"training\.lr=0\.0 is not possible: it must be a number above 0"),
        (lambda: Sgd(epochs=0), r"training\.epochs=0"),
        (lambda: Sgd(momentum=1.0), r"training\.momentum=1\.0"),
        (lambda: Sgd(schedule="cosin"), r"training\.schedule=cosin .*Did you mean 'cosine'"),
        (lambda: Adam(beta1=1.5), r"training\.beta1=1\.5"),
        (lambda: AdamW(decoupled_decay=-1), r"training\.decoupled_decay=-1"),
        (lambda: Newton(weight_decay=-0.1), r"training\.weight_decay=-0\.1"),
        (lambda: Lbfgs(tolerance=0), r"training\.tolerance=0"),
    ],
)
def test_a_wrong_option_is_refused(make, message):
    with pytest.raises(InfluxError, match=message):
        make()
