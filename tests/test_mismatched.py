"""Influence with curvature or gradients of the wrong loss, against dense float64 algebra from torch alone, in all four combinations."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from problems import NOTHING_KEPT, experiment, problem
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

from influx.datasets.gaussian_mixture import GaussianMixture
from influx.errors import InfluxError
from influx.estimators.inverse_curvature import InverseCurvature
from influx.estimators.mismatched import Mismatched
from influx.experiment import Experiment
from influx.measurements import LogProbability, Loss, Margin, Measurement
from influx.measurements.cluster_loss import ClusterLoss
from influx.measurements.displacement import Displacement
from influx.measurements.mean import Mean
from influx.measurements.reconstruction_error import ReconstructionError
from influx.models.dec import Dec
from influx.models.mlp import Mlp
from influx.objectives import Objective
from influx.objectives.reconstruction import Reconstruction
from influx.objectives.self_training import SelfTraining
from influx.problem import Problem
from influx.solvers.cg import ConjugateGradient
from influx.solvers.ekfac import Ekfac
from influx.solvers.exact import Exact
from influx.training.first_order import Sgd

SEED = 4
DAMPING = 3.0  # above minus the lowest eigenvalue of every matrix here; the solver refuses others
EXACT = {"rtol": 1e-7, "atol": 1e-10}  # two dense float64 solves of matrices with a condition number of some hundreds
CHOICES = list(itertools.product(("training", "measurement"), repeat=2))


POINTS = GaussianMixture(points=15).load()
LABELS = POINTS.train_targets


def clustering(measurement: Measurement, objective: Objective | None = None) -> Experiment:
    """45 points, 15 steps: nothing here needs an optimum."""
    training = Sgd(lr=0.1, epochs=15, batch_size=None, weight_decay=0.02)
    return Experiment(POINTS, Dec(width=4, embedding=3), training, objective or SelfTraining(), measurement)


@cache
def fitted(measurement: Measurement, objective: Objective | None = None) -> Problem:
    made = clustering(measurement, objective)
    if isinstance(objective, Reconstruction):
        made = replace(made, model=Mlp(depth=1, width=4, activation="tanh"))
    return made.problem(made.train(SEED, NOTHING_KEPT), SEED)


def nll(outputs: Tensor, rows: Tensor) -> Tensor:
    return F.cross_entropy(outputs, LABELS[rows], reduction="none")


def margin(outputs: Tensor, rows: Tensor) -> Tensor:
    p = outputs.softmax(1).gather(1, LABELS[rows, None])[:, 0]
    return p.log() - torch.log1p(-p)


def kl(outputs: Tensor, rows: Tensor) -> Tensor:
    p = fitted(ClusterLoss()).train.targets[rows]
    return (p * (p.log() - outputs.log_softmax(1))).sum(1)


def squared(outputs: Tensor, rows: Tensor) -> Tensor:
    return 0.5 * (outputs - POINTS.train_inputs[rows]).square().sum(1)


def mean_squared(outputs: Tensor, rows: Tensor) -> Tensor:
    return (outputs - POINTS.train_inputs[rows]).square().mean(1)


def moved(outputs: Tensor, rows: Tensor) -> Tensor:
    return (outputs - clustering(Displacement()).initial(SEED)(POINTS.train_inputs[rows]).detach()).square().mean(1)


Written = Callable[[Tensor, Tensor], Tensor]  # outputs [rows, out], which rows -> [rows]

PAIRS: dict[str, tuple[Objective, Measurement, Written, Written, Written]] = {  # ℓ, m, and what stands in for ℓ: m or minus m
    "clusters, labels": (SelfTraining(), ClusterLoss(), kl, nll, nll),
    "clusters, log-probability": (SelfTraining(), LogProbability(), kl, lambda o, r: -kl(o, r), kl),
    "clusters, margin": (SelfTraining(), Margin(), kl, margin, lambda o, r: -margin(o, r)),
    "clusters, themselves": (SelfTraining(), Loss(), kl, kl, kl),
    "clusters, displacement": (SelfTraining(), Displacement(), kl, moved, lambda o, r: -moved(o, r)),
    "autoencoder, mean squared error": (Reconstruction(), ReconstructionError(), squared, mean_squared, mean_squared),
}


def dense(made: Problem, written: Written) -> tuple[Tensor, Tensor]:
    """Gradients [n, p] on the training examples, and the Hessian of the mean with λ inside, by plain autograd."""
    rows = torch.arange(made.n_train)

    def losses(theta: Tensor) -> Tensor:
        outputs = functional_call(made.module, {**made.params, **made.unflatten(theta)}, (made.train.inputs,))
        return written(outputs, rows)

    gradients = torch.autograd.functional.jacobian(losses, made.theta)
    hessian = torch.autograd.functional.hessian(lambda theta: losses(theta).mean(), made.theta)
    return gradients, hessian + made.weight_decay * torch.eye(made.n_params).double()


@pytest.mark.parametrize(("curvature_of", "gradient_of"), CHOICES)
@pytest.mark.parametrize("pair", PAIRS)
def test_agreement_with_the_dense_reference(pair, curvature_of, gradient_of):
    """(1/n) ∇m_tᵀ (H + (λ + δ) I)⁻¹ g_i; the test points are the training points."""
    objective, measurement, trained, measured, judged = PAIRS[pair]
    made = fitted(measurement, objective)
    of = {"training": dense(made, trained), "measurement": dense(made, judged)}
    hessian = of[curvature_of][1]
    damping = 1 - min(0.0, torch.linalg.eigvalsh(hessian)[0].item())  # so that the matrix is positive definite, by 1
    wanted = torch.linalg.solve(hessian + damping * torch.eye(made.n_params).double(), dense(made, measured)[0].T)
    method = Mismatched(Exact(), curvature_of, gradient_of, "hessian", damping)
    assert_close(method.estimate(made, None, SEED).influence, of[gradient_of][0] @ wanted / made.n_train, **EXACT)


@pytest.mark.parametrize("curvature", ["hessian", "ggn", "fisher"])
@pytest.mark.parametrize("params", ["all", "last_layer"])
def test_both_of_the_training_are_the_influence_function(curvature, params):
    made = fitted(ClusterLoss())
    ours = Mismatched(Exact(), "training", "training", curvature, DAMPING, params).estimate(made, None, SEED).influence
    assert_close(ours, InverseCurvature(Exact(), curvature, DAMPING, params).estimate(made, None, SEED).influence, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("curvature_of", "gradient_of"), CHOICES)
@pytest.mark.parametrize("name", ["ridge", "softmax", "mlp", "conv"])
def test_nothing_is_mismatched_where_the_training_loss_measures(name, curvature_of, gradient_of):
    method = Mismatched(Exact(), curvature_of, gradient_of, "ggn", 0.1)
    wanted = InverseCurvature(Exact(), "ggn", 0.1).estimate(problem(name), None, SEED).influence
    assert_close(method.estimate(problem(name), None, SEED).influence, wanted, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("curvature_of", "gradient_of"), CHOICES)
def test_a_mean_over_the_test_set_is_the_mean_of_the_columns(curvature_of, gradient_of):
    method = Mismatched(Exact(), curvature_of, gradient_of, "hessian", DAMPING)
    each, mean = (method.estimate(fitted(m), None, SEED).influence for m in (ClusterLoss(), Mean(ClusterLoss())))
    assert_close(mean, each.mean(1, keepdim=True), **EXACT)


def test_an_iterative_solver_gives_the_same():
    made = fitted(ClusterLoss())
    exact, iterative = (
        Mismatched(solver, "measurement", "measurement", "ggn", 0.1).estimate(made, None, SEED)
        for solver in (Exact(), ConjugateGradient(tolerance=1e-10))
    )
    assert_close(iterative.influence, exact.influence, rtol=0, atol=1e-8 * exact.influence.abs().max().item())
    assert len(iterative.solves) == made.n_test


def test_solvers_of_single_layers_are_refused():
    with pytest.raises(InfluxError, match="takes solvers that work on the whole curvature, not "):
        Mismatched(Ekfac()).plan(fitted(ClusterLoss()), None)


def test_a_measurement_with_questions_of_its_own_is_refused():
    with pytest.raises(InfluxError, match=r"needs a measurement that training examples have as well, .*: use method=cg"):
        Mismatched(Exact()).plan(replace(fitted(ClusterLoss()), judged=None), None)


@pytest.mark.parametrize("knob", ["curvature_of", "gradient_of"])
def test_other_words_are_refused(knob):
    with pytest.raises(InfluxError, match=f"method.{knob}=test is not possible: it must be one of training, measurement"):
        Mismatched(Exact(), **{knob: "test"})


def test_the_cost_is_that_of_the_influence_function():
    made = experiment("mlp")
    lab = made.problem(made.train(SEED, NOTHING_KEPT), SEED)
    assert Mismatched(Exact()).plan(lab, None) == InverseCurvature(Exact()).plan(lab, None)
