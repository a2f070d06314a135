"""TracIn against sums written out over the run's steps, and against what the steps truly did to the measurement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from problems import NOTHING_KEPT, TORCH_MEASURES, experiment, flat_forward, torch_loss
from torch.autograd.functional import jacobian
from torch.testing import assert_close

from influx.errors import InfluxError
from influx.estimators.hypergradient import Hypergradient
from influx.estimators.tracin import TracIn
from influx.experiment import Experiment
from influx.laboratory import Laboratory
from influx.measurements import Loss, Margin, MeanLoss
from influx.problem import Problem
from influx.training.first_order import Adam, FirstOrder, Sgd
from influx.training.second_order import Newton

SEED = 2
MEMORY = 2**30
SHORT = Sgd(lr=0.1, epochs=4, batch_size=10, momentum=0.0, weight_decay=0.0)
RUNS: dict[str, FirstOrder] = {
    "sgd": SHORT,
    "decay and schedule": replace(SHORT, weight_decay=0.05, schedule="cosine"),
    "momentum": replace(SHORT, momentum=0.9, nesterov=True, schedule="linear"),
    "adam": Adam(lr=0.01, epochs=4, batch_size=10),
    "full batch": replace(SHORT, batch_size=None),
}


def followed(training: FirstOrder, name: str = "mlp", **changes: object) -> tuple[Experiment, Problem, Laboratory]:
    made = experiment(name, training=training, **changes)
    trained = made.train(SEED, NOTHING_KEPT, checkpoints=4)
    return made, made.problem(trained, SEED, MEMORY), Laboratory(made, NOTHING_KEPT, SEED, MEMORY, 4, 1, trained)


def gradients(fitted: Problem, params: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """∇ℓ_i and ∇m_t at other parameters, from plain autograd."""
    forward, theta = flat_forward(replace(fitted, params=params))
    measure = TORCH_MEASURES[type(fitted.measurement).__name__]
    train = jacobian(lambda t: torch_loss(forward(t, fitted.train.inputs), fitted.train.targets), theta)
    test = jacobian(lambda t: measure(forward(t, fitted.test.inputs), fitted.test.targets), theta)
    return train, test.mean(0, keepdim=True) if fitted.measurement.whole_set else test


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    """Float64 rounding of sums in another order."""
    assert_close(one, other, rtol=1e-11, atol=1e-12 * other.abs().max().item())


# -------------------------------------------------------------------------------------------------------------- definitions


@pytest.mark.parametrize("params", ["all", "last_layer"])
@pytest.mark.parametrize("measurement", [Loss(), MeanLoss(), Margin()])
@pytest.mark.parametrize("run", RUNS)
def test_stored_checkpoints_by_definition(run, measurement, params):
    """Σ_k η_k ∇m(θ_k)·∇ℓ(θ_k) over the ends of the four epochs, η_k of the last step of each."""
    _, fitted, record = followed(RUNS[run], measurement=measurement)
    rates, per_epoch = record.experiment.training.rates(36), record.facts.n_steps // 4
    part, expected = fitted.select(params), 0
    ends = [*(snapshot.params for snapshot in record.trajectory.snapshots[1:]), fitted.params]
    for epoch, theta in enumerate(ends, 1):
        train, test = gradients(part, theta)
        expected = expected + rates[epoch * per_epoch - 1] * train @ test.T
    result = TracIn(params=params).estimate(fitted, record, 0)
    close(result.influence, expected)
    assert result.facts == {"checkpoints": 4}


@pytest.mark.parametrize("params", ["all", "last_layer"])
@pytest.mark.parametrize("measurement", [Loss(), MeanLoss(), Margin()])
@pytest.mark.parametrize("run", RUNS)
def test_every_step_by_definition(run, measurement, params):
    """Σ over the steps that saw i of (η/b) ∇m(θ)·∇ℓ_i(θ), θ before the step."""
    _, fitted, record = followed(RUNS[run], measurement=measurement)
    part, expected = fitted.select(params), torch.zeros(36, fitted.n_test, dtype=torch.float64)
    for step in record.trajectory.forward():
        train, test = gradients(part, step.params)
        expected[step.rows] += step.lr / len(step.rows) * (train @ test.T)[step.rows]
    close(TracIn("steps", params=params).estimate(fitted, record, 0).influence, expected)


def test_a_convolution_and_a_tight_memory():
    _, fitted, record = followed(replace(SHORT, batch_size=8, epochs=2), "conv")
    for method in (TracIn(), TracIn("steps")):
        whole = method.estimate(fitted, record, 0).influence
        close(method.estimate(replace(fitted, memory=2), record, 0).influence, whole)  # a test example at a time
        train, test = gradients(fitted, fitted.params)
        assert torch.corrcoef(torch.stack([whole.flatten(), (train @ test.T).flatten()]))[0, 1] > 0.3


def test_one_checkpoint_is_the_end():
    _, fitted, record = followed(SHORT)
    train, test = gradients(fitted, fitted.params)
    result = TracIn(count=1).estimate(fitted, record, 0)
    close(result.influence, 0.1 * train @ test.T)
    assert result.facts == {"checkpoints": 1}


@pytest.mark.parametrize(("count", "epochs"), [(2, (2, 4)), (3, (1, 3, 4)), (4, (1, 2, 3, 4)), (9, (1, 2, 3, 4))])
def test_a_count_of_checkpoints_is_spaced_evenly_and_holds_the_end(count, epochs):
    _, fitted, record = followed(SHORT)
    ends = {at: snapshot.params for at, snapshot in enumerate(record.trajectory.snapshots[1:], 1)} | {4: fitted.params}
    pairs = [gradients(fitted, ends[epoch]) for epoch in epochs]
    close(TracIn(count=count).estimate(fitted, record, 0).influence, sum(0.1 * train @ test.T for train, test in pairs))


# ----------------------------------------------------------------------------------------------------------------- meaning


@pytest.mark.parametrize("name", ["mlp", "softmax", "conv"])
def test_summed_over_examples_it_is_what_training_did_to_first_order(name):
    """Batches of one, no momentum, no decay: each step's change of m_t is −(its example's share) + O(lr²), so the shares of all examples
    add up to m(θ_0) − m(θ_T) with a relative error that halves with lr."""
    errors = []
    for lr in (2e-3, 1e-3, 5e-4):
        _, fitted, record = followed(replace(SHORT, lr=lr, batch_size=1, epochs=2), name)
        start = fitted.at(record.trajectory.snapshots[0].params)
        fell = start.measure(start.theta, start.test) - fitted.measure(fitted.theta, fitted.test)
        shares = TracIn("steps").estimate(fitted, record, 0).influence.sum(0)
        errors.append(((shares - fell).norm() / fell.norm()).item())
    assert errors[-1] < 0.02
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)  # first order: what is left is linear in lr
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


def test_each_step_gives_its_own_example_its_first_order_change():
    """Along the run, m(θ_k) − m(θ_{k+1}) of each step belongs to the one example of its batch."""
    _, fitted, record = followed(replace(SHORT, lr=1e-4, batch_size=1, epochs=1))
    steps = record.trajectory.steps
    ends = [*(step.params for step in steps[1:]), fitted.params]
    before, after = (
        torch.stack([fitted.measure(fitted.at(params).theta, fitted.test) for params in places])
        for places in ([step.params for step in steps], ends)
    )
    rows = torch.cat([step.rows for step in steps])  # one visit each
    result = TracIn("steps").estimate(fitted, record, 0).influence
    assert_close(result[rows], before - after, rtol=0, atol=5e-4 * result.abs().max().item())  # lr times a curvature of order 1


def test_with_the_test_gradient_of_the_end_it_is_hydra_without_hessians():
    """μ = 0 and λ = 0: HYDRA's approximation is (η/b) Σ ∇m(θ_T)·∇ℓ_i(θ_k) over the visits."""
    _, fitted, record = followed(replace(SHORT, schedule="step"))
    _, test = gradients(fitted, fitted.params)
    expected = torch.zeros(36, 6, dtype=torch.float64)
    for step in record.trajectory.forward():
        train, _ = gradients(fitted, step.params)
        expected[step.rows] += step.lr / len(step.rows) * train[step.rows] @ test.T
    for form in ("adjoint", "forward"):
        close(Hypergradient(hessian="none", form=form).estimate(fitted, record, 0).influence, expected)


# ---------------------------------------------------------------------------------------------------------------- the rules


def test_what_it_says_it_takes():
    _, fitted, record = followed(SHORT)
    made = Laboratory(record.experiment, NOTHING_KEPT, SEED, MEMORY, 4)  # nothing is trained: plan asks for facts alone
    assert TracIn("steps").plan(fitted, made).gradients == 16 * (10 + 6) + 16 * 10
    assert TracIn(count=3).plan(fitted, made).gradients == 3 * (36 + 6)
    assert not TracIn.calibrated
    assert TracIn.needs_trajectory


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoints": "step"}, r"method\.checkpoints=step is not possible.* one of stored, steps"),
        ({"count": 0}, r"method\.count=0 is not possible.* at least 1, or null"),
        ({"checkpoints": "steps", "count": 3}, r"method\.count chooses among stored checkpoints.*leave method\.count=null"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(InfluxError, match=message):
        TracIn(**options)


def test_a_training_without_steps_is_refused():
    made = experiment("softmax", training=Newton(weight_decay=0.02))
    with pytest.raises(InfluxError, match="follows the training run step by step, and Newton keeps no such record: use training=sgd"):
        TracIn().plan(made.untrained(0), Laboratory(made, NOTHING_KEPT, 0, MEMORY))


def test_from_the_command_line(tiny, tmp_path: Path):
    ran = tiny("estimate", "method=tracin", "method.checkpoints=steps", "method.params=last_layer", "training.momentum=0")
    assert ran.status == 0, ran.err
