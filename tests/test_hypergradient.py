"""The derivative of a finished training run, against central finite differences of retraining with one example's weight changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from problems import NOTHING_KEPT, cast, experiment
from scipy.stats import spearmanr
from torch.testing import assert_close

from influx.errors import InfluxError
from influx.estimators import Estimate, Estimator
from influx.estimators.hypergradient import Hypergradient
from influx.estimators.unrolled import Unrolled
from influx.experiment import Experiment
from influx.laboratory import Laboratory
from influx.measurements import Loss, Margin, MeanLoss, Measurement
from influx.objectives import Objective
from influx.problem import Problem
from influx.training.first_order import Adam, AdamW, FirstOrder, Sgd
from influx.training.second_order import Newton

SEED = 1
MEMORY = 2**30
EPS = 1e-5  # of a weight: truncation eps², rounding 1e-16 / eps of the measurement
SHORT = {"lr": 0.1, "epochs": 5, "batch_size": 8}  # 36 and 45 rows: last batches of 4 and 5
RUNS: dict[str, Sgd] = {
    "sgd": Sgd(momentum=0.0, weight_decay=0.0, **SHORT),
    "decay": Sgd(momentum=0.0, weight_decay=0.05, **SHORT),
    "momentum": Sgd(momentum=0.9, weight_decay=0.0, **SHORT),
    "momentum and decay": Sgd(momentum=0.8, weight_decay=0.05, **SHORT),
    "nesterov": Sgd(momentum=0.9, nesterov=True, weight_decay=0.05, **SHORT),
    "linear": Sgd(momentum=0.9, weight_decay=0.02, schedule="linear", **SHORT),
    "cosine": Sgd(momentum=0.9, nesterov=True, weight_decay=0.02, schedule="cosine", **SHORT),
    "step": Sgd(momentum=0.9, weight_decay=0.02, schedule="step", **SHORT),
    "full batch": Sgd(lr=0.2, epochs=20, batch_size=None, momentum=0.9, weight_decay=0.02),
    "one row a step": Sgd(lr=0.02, epochs=2, batch_size=1, momentum=0.5, nesterov=True, weight_decay=0.02),
}
EXACT: dict[str, Estimator] = {"unrolled": Unrolled(), "adjoint": Hypergradient(), "forward": Hypergradient(form="forward")}


@dataclass(frozen=True)
class Run:
    """A trained experiment with its record."""

    made: Experiment
    fitted: Problem
    record: Laboratory

    def estimate(self, method: Estimator, **changes: object) -> Estimate:
        return method.estimate(replace(self.fitted, **changes), self.record, 0)


def run(training: FirstOrder, name: str = "mlp", checkpoints: int = 1, **changes: object) -> Run:
    made = experiment(name, training=training, **changes)
    trained = made.train(SEED, NOTHING_KEPT, checkpoints=checkpoints)
    return Run(made, made.problem(trained, SEED, MEMORY), Laboratory(made, NOTHING_KEPT, SEED, MEMORY, checkpoints, 1, trained))


@cache
def known(name: str, training: str) -> Run:
    return run(RUNS[training], name)


def retrained(made: Experiment, weights: torch.Tensor) -> torch.Tensor:
    """m_t after training with each row of example weights, same start and order."""
    fit = made.training.fit(made.task(SEED, weights))
    return made.measure(SEED, made.module(SEED), fit.params, fit.buffers)


def differences(made: Experiment, eps: float = EPS) -> torch.Tensor:
    """−dm_t/dw_i by retraining with w_i = 1 ± eps, both sides of every example in one stack."""
    n = made.data.n_train
    moved = eps * torch.eye(n, dtype=torch.float64)
    values = retrained(made, torch.cat([1 - moved, 1 + moved]))
    return (values[:n] - values[n:]) / (2 * eps)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


# ---------------------------------------------------------------------------------------------------------------- the truth


@pytest.mark.parametrize("training", RUNS)
@pytest.mark.parametrize("name", ["mlp", "softmax"])
def test_the_exact_derivative_is_that_of_retraining(name, training):
    """A tanh network and softmax regression; 1e-8 is eps² and rounding / eps together, with room."""
    case = known(name, training)
    expected = differences(case.made)
    for form, method in EXACT.items():
        assert distance(case.estimate(method).influence, expected) < 1e-8, form


@pytest.mark.parametrize("measurement", [MeanLoss(), Margin()])
def test_other_measurements(measurement):
    case = run(RUNS["nesterov"], measurement=measurement)
    expected = differences(case.made)
    assert expected.shape == (36, case.fitted.n_test)
    for method in EXACT.values():
        assert distance(case.estimate(method).influence, expected) < 1e-8


def test_regression_and_a_smooth_convolution():
    for name, changes in (("ridge", {}), ("conv", {"model": replace(experiment("conv").model, activation="tanh")})):
        case = run(Sgd(lr=0.05, epochs=3, batch_size=8, momentum=0.9, weight_decay=0.02), name, **changes)
        expected = differences(case.made)
        for method in EXACT.values():
            assert distance(case.estimate(method).influence, expected) < 1e-7  # 187 parameters, larger third derivatives


def test_leaving_one_out_is_close_to_the_derivative():
    """w_i = 0 is a whole step of 1 away, not eps: the same ranks and scale, not the same digits."""
    case = known("mlp", "momentum and decay")
    left_out = retrained(case.made, torch.cat([torch.ones(1, 36, dtype=torch.float64), 1 - torch.eye(36, dtype=torch.float64)]))
    truth = (left_out[1:] - left_out[0]).numpy()
    estimate = case.estimate(Unrolled()).influence.numpy()
    correlations = [spearmanr(estimate[:, t], truth[:, t]).statistic for t in range(6)]
    assert np.mean(correlations) > 0.95
    assert (estimate * truth).sum() / (truth * truth).sum() == pytest.approx(1, abs=0.2)


# -------------------------------------------------------------------------------------------------------- forms and Hessians


@pytest.mark.parametrize("hessian", ["exact", "none"])
@pytest.mark.parametrize("training", RUNS)
def test_forward_and_adjoint_are_the_same_numbers(training, hessian):
    case = known("mlp", training)
    forward, adjoint = (case.estimate(Hypergradient(hessian, form)) for form in ("forward", "adjoint"))
    assert distance(forward.influence, adjoint.influence) < 1e-12  # rounding of two orders of the same sums
    assert forward.facts == pytest.approx(adjoint.facts, rel=1e-9)


@pytest.mark.parametrize("training", ["momentum and decay", "nesterov"])
def test_without_hessians_it_is_the_recursion_written_out(training):
    """d ← μd + λh + [i in batch] ∇ℓ_i/b, an example at a time, in plain numpy."""
    case, options = known("softmax", training), RUNS[training]
    h, d = np.zeros((2, 45, 15))
    for step in case.record.trajectory.forward():
        g = options.weight_decay * h
        made = case.fitted.at(dict(step.params))
        g[step.rows] += made.loss_gradients(made.train)[step.rows].numpy() / len(step.rows)
        d = options.momentum * d + g
        h = h - step.lr * (g + options.momentum * d if options.nesterov else d)
    expected = -h @ case.fitted.test_gradients().numpy().T
    assert distance(case.estimate(Hypergradient("none")).influence, torch.from_numpy(expected)) < 1e-12


@dataclass(frozen=True)
class LinearLoss(Objective):
    """A user's objective that is linear in the outputs: −(output of the label); with a linear model its Hessian is zero."""

    def loss(self, outputs, targets):
        return -outputs.gather(-1, targets.expand(outputs.shape[:-1]).unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("training", ["sgd", "momentum and decay", "nesterov"])
def test_hessians_do_not_matter_where_the_loss_is_linear_in_the_parameters(training):
    case = run(RUNS[training], "softmax", objective=LinearLoss())
    kept, left_out = (case.estimate(Hypergradient(hessian, "forward")).influence for hessian in ("exact", "none"))
    assert distance(kept, left_out) < 1e-14  # the same recursion with an H of zeros; several steps are taken at once without H
    exact = case.estimate(Hypergradient())
    assert exact.facts["relative_error_without_hessian"] < 1e-14  # rounding: the approximation has a shorter way to the same numbers
    assert exact.facts["spearman_without_hessian"] == pytest.approx(1)
    assert distance(exact.influence, differences(case.made)) < 1e-8


@pytest.mark.parametrize("form", ["adjoint", "forward"])
def test_the_error_of_the_approximation_is_reported_beside_the_exact_one(form):
    case = known("mlp", "nesterov")
    exact, free = (case.estimate(Hypergradient(hessian, form)) for hessian in ("exact", "none"))
    ranks = [spearmanr(free.influence[:, t], exact.influence[:, t]).statistic for t in range(6)]
    assert exact.facts["relative_error_without_hessian"] == pytest.approx(distance(free.influence, exact.influence), rel=1e-9)
    assert exact.facts["spearman_without_hessian"] == pytest.approx(np.mean(ranks), rel=1e-9)
    assert exact.facts["relative_error_without_hessian"] > 0.1  # here it is large, and it is said
    differ = (np.sign(free.influence.numpy()) != np.sign(exact.influence.numpy())).mean()
    assert exact.facts["sign_disagreement_without_hessian"] == pytest.approx(differ, abs=1e-12)
    assert set(free.facts) == {"memory_steps"}


# -------------------------------------------------------------------------------------------------------- memory and numbers


@pytest.mark.parametrize("checkpoints", [1, 3])
@pytest.mark.parametrize("method", list(EXACT.values()))
def test_memory_and_snapshots_change_no_number(method, checkpoints):
    case = known("mlp", "nesterov")
    other = run(RUNS["nesterov"], checkpoints=checkpoints)
    record = replace(other.record, memory=2)  # one test example at a time, two steps at a time
    tight = method.estimate(replace(other.fitted, memory=2), record, 0).influence
    assert distance(tight, case.estimate(method).influence) < 1e-13


def test_float32_is_close_to_float64():
    training = RUNS["nesterov"]
    case = known("mlp", "nesterov")
    made = experiment("mlp", torch.float32, training=training)
    trained = made.train(SEED, NOTHING_KEPT)
    record = Laboratory(made, NOTHING_KEPT, SEED, MEMORY, 1, 1, trained)
    for method in EXACT.values():
        single = method.estimate(made.problem(trained, SEED), record, 0).influence
        assert single.dtype == torch.float32
        assert distance(single.double(), case.estimate(method).influence) < 1e-4  # 25 steps of float32 rounding
    assert cast(case.fitted, torch.float32).theta.dtype == torch.float32


def test_an_example_that_no_step_saw_has_no_influence():
    """Forgotten by weight 0 is not forgotten by the derivative; a row outside every batch is: an epoch cut short by hand."""
    case = known("mlp", "sgd")
    whole = case.record.trajectory
    cut = replace(whole, rates=whole.rates[:2], final=whole.steps[2].params)
    record = case.record.after(case.record.trained)
    record.__dict__["trajectory"] = cut
    seen = torch.cat([step.rows for step in whole.steps[:2]])
    fitted = case.fitted.at(cut.final)
    for method in EXACT.values():
        influence = method.estimate(fitted, record, 0).influence
        assert (influence[seen].abs().max(1).values > 0).all()
        assert (influence.index_fill(0, seen, 0.0) == 0).all()


# ---------------------------------------------------------------------------------------------------------------- the rules


@pytest.mark.parametrize("training", [Adam(epochs=2), AdamW(epochs=2)])
@pytest.mark.parametrize(("method", "name"), [(Unrolled(), "unrolled"), (Hypergradient(), "hypergradient")])
def test_adam_is_refused_before_training(method, name, training):
    made = experiment("mlp", training=training)
    message = f"method={name} differentiates gradient descent with or without momentum.*use training=sgd, or method=tracin"
    with pytest.raises(InfluxError, match=message):
        method.plan(made.untrained(0), Laboratory(made, NOTHING_KEPT, 0, MEMORY))


@pytest.mark.parametrize("method", [Unrolled(params="last_layer"), Hypergradient(params="*.weight")])
def test_a_part_of_the_parameters_is_refused(method):
    made = experiment("mlp", training=RUNS["sgd"])
    with pytest.raises(InfluxError, match=r"in which all parameters moved.*leave method\.params=all \(now"):
        method.plan(made.untrained(0), Laboratory(made, NOTHING_KEPT, 0, MEMORY))


@pytest.mark.parametrize("method", [Unrolled(), Hypergradient()])
def test_a_training_without_steps_is_refused(method):
    made = experiment("softmax", training=Newton(weight_decay=0.02))
    with pytest.raises(InfluxError, match="Newton keeps no such record: use training=sgd"):
        method.plan(made.untrained(0), Laboratory(made, NOTHING_KEPT, 0, MEMORY))


def test_the_forward_form_is_refused_where_it_does_not_fit():
    made = experiment("mlp", training=RUNS["sgd"])
    needed = 2 * 36 * 31 * 8  # h and d of 36 examples, 31 parameters, float64
    record = Laboratory(made, NOTHING_KEPT, 0, MEMORY)
    for hessian in ("exact", "none"):
        method = Hypergradient(hessian, "forward")
        with pytest.raises(InfluxError, match=r"keeps 2 x 31 numbers.*use method\.state=disk, method\.form=adjoint, or raise memory"):
            method.plan(made.untrained(0, needed - 1), record)
        assert method.plan(made.untrained(0, needed), record).nbytes >= needed
    assert Hypergradient().plan(made.untrained(0, needed - 1), record).flops > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hessian": "ggn"}, r"method\.hessian=ggn is not possible.* one of exact, none"),
        ({"form": "lean"}, r"method\.form=lean is not possible.* one of forward, adjoint"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InfluxError, match=message):
        Hypergradient(**options)


def test_measurements_other_than_a_loss_are_differentiated_themselves():
    @dataclass(frozen=True)
    class Twice(Loss):
        def value(self, outputs, targets, objective):
            return 2 * objective.loss(outputs, targets)

    case = known("softmax", "momentum")
    doubled: Measurement = Twice()
    assert_close(case.estimate(Unrolled(), measurement=doubled).influence, 2 * case.estimate(Unrolled()).influence)
