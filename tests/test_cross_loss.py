"""Trained on one loss, judged by another: `I = (1/n) ∇m_tᵀ H⁻¹ ∇ℓ_i` against derivatives that know nothing of it.

A linear autoencoder's optimum is a formula of the example weights, which torch differentiates; elsewhere models are retrained with an
example's weight a little up and a little down.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from methods import SEED
from pairs import N_TRAIN, blobs, paired
from problems import NOTHING_KEPT, affine, flat_forward, with_intercept
from torch import Tensor
from torch.func import hessian, jacrev
from torch.nn import functional as F
from torch.testing import assert_close

from influx.estimators.hypergradient import Hypergradient
from influx.estimators.inverse_curvature import InverseCurvature
from influx.experiment import Experiment, Trained
from influx.laboratory import Laboratory
from influx.measurements import Measurement
from influx.models.dec import Dec
from influx.models.linear import Linear
from influx.models.logistic import Logistic
from influx.models.mlp import Mlp
from influx.removals import Removals
from influx.retraining import Retraining
from influx.solvers.exact import Exact
from influx.stacking import stack
from influx.training.first_order import Sgd
from influx.training.second_order import Lbfgs, Newton

DECAY = 0.05
TIGHT = Lbfgs(weight_decay=DECAY, tolerance=1e-10)
HESSIAN = InverseCurvature(Exact(), "hessian", 0.0)
EPS = 1e-4  # of an example's weight, in a training of so many steps: truncation ε² = 1e-8 of third derivatives, rounding 1e-16 / ε
APART = 0.02  # the same at an optimum: two such steps, the second half as far, are extrapolated, which leaves ε⁴


@dataclass(frozen=True)
class Wave(Measurement):
    """A user's measurement that has nothing to do with any training loss: Σ_j sin(3 f_j) f_1."""

    unit: ClassVar[str] = "none"
    lower_is_better: ClassVar[bool] = False
    reads: ClassVar[str] = "labels"

    def value(self, outputs, targets, objective):
        return (3 * outputs).sin().sum(-1) * outputs[..., 0]


@cache
def optimum(objective: str, measurement: str, **changes: Any) -> tuple[Experiment, Trained]:
    made = paired(objective, measurement, **{"training": TIGHT, **changes})
    return made, made.train(SEED, NOTHING_KEPT)


def estimated(method: InverseCurvature, made: Experiment, trained: Trained) -> Tensor:
    fitted = made.problem(trained, SEED)
    return method.estimate(fitted, Laboratory(made, NOTHING_KEPT, SEED, 2**30, 1, 1, trained), SEED).influence


def differences(made: Experiment, start: Trained | None, eps: float) -> Tensor:
    """−dm_t/dw_i: retrained with w_i = 1 ± eps, from `start` or from scratch, both sides of every example in one stack."""
    moved = eps * torch.eye(N_TRAIN, dtype=torch.float64)
    task = made.task(SEED, torch.cat([1 - moved, 1 + moved]))
    task = task if start is None else replace(task, params=stack(start.params, 2 * N_TRAIN))
    fit = made.training.fit(task)
    values = made.measure(SEED, task.module, fit.params, fit.buffers)
    return (values[:N_TRAIN] - values[N_TRAIN:]) / (2 * eps)


def close(one: Tensor, other: Tensor, within: float) -> None:
    assert_close(one, other, rtol=0, atol=within * other.abs().max().item())


# ------------------------------------------------------------------------------------ a quadratic training loss, any measurement


@pytest.mark.parametrize("measured", ["reconstruction_error", "displacement", "log_probability", "wave"])
def test_with_a_quadratic_training_loss_it_is_the_analytic_derivative(measured):
    """W(w) = argmin (1/n) Σ w_i ½‖W x_i − x_i‖² + (λ/2)‖W‖² is a linear system; torch differentiates its solution by the weights."""
    name = "loss" if measured == "wave" else measured
    made = paired("reconstruction", name, model=Linear(), training=Newton(weight_decay=DECAY, tolerance=1e-12))
    made = replace(made, measurement=Wave()) if measured == "wave" else made
    trained = made.train(SEED, NOTHING_KEPT)
    x, at = (torch.from_numpy(with_intercept(part)) for part in (made.data.train_inputs, made.data.test_inputs))
    start = at @ torch.from_numpy(affine({name: value.detach() for name, value in made.initial(SEED).named_parameters()})).T

    def measure(weights: Tensor) -> Tensor:
        weighted = x.T * weights / N_TRAIN
        outputs = at @ torch.linalg.solve(weighted @ x + DECAY * torch.eye(4, dtype=torch.float64), weighted @ x[:, :3])
        if measured == "displacement":
            return (outputs - start).square().mean(1)
        if measured == "reconstruction_error":
            return (outputs - at[:, :3]).square().mean(1)
        return (3 * outputs).sin().sum(1) * outputs[:, 0] if measured == "wave" else -0.5 * (outputs - at[:, :3]).square().sum(1)

    exact = -jacrev(measure)(torch.ones(N_TRAIN, dtype=torch.float64)).T
    close(estimated(HESSIAN, made, trained), exact, 1e-8)
    close(estimated(replace(HESSIAN, curvature="ggn"), made, trained), exact, 1e-8)  # quadratic: the same matrix


# ------------------------------------------------------------------------------------------ clusters and autoencoders, at an optimum


@pytest.mark.parametrize("measurement", ["cluster_loss", "displacement", "margin", "loss"])
def test_clusters_with_fixed_targets_are_the_dense_formula(measurement):
    """Assignments, targets, divergence and measurements written out with torch's own functions, differentiated densely."""
    made, trained = optimum("dec", measurement, model=Dec(width=3, embedding=2))
    fitted = made.problem(trained, SEED)
    forward, theta = flat_forward(fitted)
    inputs, tests, labels = made.data.train_inputs, made.data.test_inputs, made.data.test_targets
    first = torch.cat([value.detach().flatten() for value in made.initial(SEED).parameters()])
    q = forward(first, inputs).softmax(1)
    sharp = q**2 / q.sum(0)
    p = sharp / sharp.sum(1, keepdim=True)
    q_test = forward(first, tests).softmax(1)
    sharp_test = q_test**2 / q.sum(0)
    p_test = sharp_test / sharp_test.sum(1, keepdim=True)

    def losses(t: Tensor) -> Tensor:
        return F.kl_div(forward(t, inputs).log_softmax(1), p, reduction="none").sum(1)

    def measure(t: Tensor) -> Tensor:
        outputs = forward(t, tests)
        own = outputs.softmax(1).gather(1, labels[:, None])[:, 0]
        return {
            "cluster_loss": -own.log(),
            "margin": own.log() - (1 - own).log(),
            "displacement": (outputs - forward(first, tests)).square().mean(1),
            "loss": F.kl_div(outputs.log_softmax(1), p_test, reduction="none").sum(1),
        }[measurement]

    curved = hessian(lambda t: losses(t).mean() + 0.5 * DECAY * t.square().sum())(theta)
    exact = jacrev(losses)(theta) @ torch.linalg.solve(curved, jacrev(measure)(theta).T) / N_TRAIN
    close(estimated(HESSIAN, made, trained), exact, 1e-8)  # a condition of 1e3, times rounding


CASES = {
    "dec, cluster_loss": ("dec", "cluster_loss", Dec(width=3, embedding=2)),
    "dec, margin": ("dec", "margin", Logistic()),
    "dec, displacement": ("dec", "displacement", Mlp(width=3)),
    "reconstruction, its error": ("reconstruction", "reconstruction_error", Mlp(width=3)),
    "reconstruction, displacement": ("reconstruction", "displacement", Mlp(width=3)),
    "supervised, displacement": ("supervised", "displacement", Mlp(width=3)),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_slope_of_retraining(case):
    objective, measurement, model = CASES[case]
    made, trained = optimum(objective, measurement, model=model)
    assert trained.gradient_norm < 1e-9
    extrapolated = (4 * differences(made, trained, APART / 2) - differences(made, trained, APART)) / 3
    close(estimated(HESSIAN, made, trained), extrapolated, 2e-5)  # each is found to a gradient norm of 3e-9: 3e-9 n / (λ ε) at most


@pytest.mark.parametrize("case", ["dec, cluster_loss", "reconstruction, displacement"])
def test_the_proximal_bregman_response_has_the_slope_of_the_gauss_newton_influence(case):
    """In the limit of a small strength, by two strengths of either sign; solved to a relative 1e-6."""
    objective, measurement, model = CASES[case]
    made, trained = optimum(objective, measurement, model=model)
    sets = Removals.single([0, 4, 9])
    sides = [Retraining(response="pbrf", proximity=0.1, strength=sign * 1e-3, seeds=1) for sign in (1, -1)]
    plus, minus = (torch.from_numpy(side.run(made, trained, sets, SEED, NOTHING_KEPT).change[..., 0]) for side in sides)
    close((plus - minus) / 2e-3, estimated(InverseCurvature(Exact(), "ggn", 0.1), made, trained)[[0, 4, 9]], 1e-4)


# ------------------------------------------------------------------------------------------------------------ derivatives of training


@pytest.mark.parametrize("case", CASES)
def test_hypergradients_are_the_slope_of_training_again(case):
    objective, measurement, model = CASES[case]
    training = Sgd(lr=0.05, epochs=5, batch_size=6, momentum=0.9, weight_decay=DECAY)
    made = paired(objective, measurement, model=model, training=training)
    trained = made.train(SEED, NOTHING_KEPT, checkpoints=3)
    lab = Laboratory(made, NOTHING_KEPT, SEED, 2**30, 3, 1, trained)
    fitted = made.problem(trained, SEED)
    expected = differences(made, None, EPS)
    for form in ("adjoint", "forward"):
        close(Hypergradient(hessian="exact", form=form).estimate(fitted, lab, SEED).influence, expected, 1e-7)


def test_an_estimate_knows_which_seed_training_started_from():
    """Two seeds' starts are two displacements; the same θ is measured differently."""
    made, trained = optimum("reconstruction", "displacement", model=Mlp(width=3))
    ours, others = (made.problem(trained, seed).test_gradients() for seed in (SEED, SEED + 1))
    assert not torch.allclose(ours, others)
    start = made.initial(SEED + 1)(blobs().test_inputs)
    assert_close(made.test_examples(SEED + 1).targets, start.detach(), rtol=0, atol=1e-12)  # to rounding
