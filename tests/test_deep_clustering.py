"""Deep embedded clustering: what model, objective and start compute, against loops, NumPy, scikit-learn and torch.optim."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from problems import NOTHING_KEPT, data_of, experiment
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

from influx.curvature import Curvature
from influx.data import Data
from influx.datasets.gaussian_mixture import GaussianMixture
from influx.errors import InfluxError
from influx.experiment import Experiment
from influx.measurements.cluster_loss import ClusterLoss
from influx.models.base import Shape, build
from influx.models.dec import Dec, StudentT, matched, sharpen
from influx.models.pretraining import ROWS
from influx.objectives import CrossEntropy
from influx.objectives.base import standing
from influx.objectives.self_training import SelfTraining
from influx.problem import Problem
from influx.seeding import torch_generator
from influx.training.first_order import Adam, Sgd

ROUNDING = {"rtol": 1e-11, "atol": 1e-12}  # sums of some dozens of float64 terms of size one
SEED = 4
SMALL = Dec(width=6, embedding=4)


def points(n: int = 20, seed: int = 0) -> Data:
    return GaussianMixture(points=n, points_seed=seed).load()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def placed(model: Dec, data: Data, seed: int = SEED) -> nn.Module:
    module = build(model, Shape(data.input_shape, data.n_outputs, data.task), seed).to(data.dtype)
    model.place(module, data, seed)
    return module


@cache
def clustering(recompute: bool = False, model: Dec = SMALL, epochs: int = 40) -> Experiment:
    """60 points; full-batch SGD, so that a step is a function of all examples alone."""
    training = Sgd(lr=0.2, epochs=epochs, batch_size=None, momentum=0.9, weight_decay=0.01)
    return Experiment(points(), model, training, SelfTraining(recompute), ClusterLoss())


@cache
def fitted(recompute: bool = False) -> Problem:
    made = clustering(recompute)
    return made.problem(made.train(SEED, NOTHING_KEPT), SEED)


def published(q: np.ndarray) -> np.ndarray:
    """p of Xie et al. 2016, equation 3."""
    p = np.zeros_like(q)
    for i in range(len(q)):
        shares = [q[i, j] ** 2 / q[:, j].sum() for j in range(q.shape[1])]
        p[i] = np.array(shares) / sum(shares)
    return p


def softmax(outputs: Tensor) -> np.ndarray:
    e = np.exp(outputs.detach().numpy())
    return e / e.sum(1, keepdims=True)


# ---------------------------------------------------------------------------------------------------------- model, objective


def test_assignments_are_student_t_kernels_normalised():
    head = StudentT(3, 4).double()
    head.centroids.data = drawn(3, 4, seed=1)
    z = 2 * drawn(7, 4)
    kernel = np.array(
        [[1 / (1 + sum((a - b) ** 2 for a, b in zip(row, mu, strict=True))) for mu in head.centroids.tolist()] for row in z.tolist()]
    )
    assert_close(head(z).exp(), torch.from_numpy(kernel), **ROUNDING)
    assert_close(head(z).softmax(1), torch.from_numpy(kernel / kernel.sum(1, keepdims=True)), **ROUNDING)


def test_targets_and_loss_are_the_papers():
    outputs, objective = 2 * drawn(9, 3), SelfTraining()
    q = softmax(outputs)
    targets = objective.aims(outputs, objective.reference(outputs, torch.ones(9).double()))
    assert_close(targets, torch.from_numpy(published(q)), **ROUNDING)
    divergence = (published(q) * np.log(published(q) / q)).sum(1)
    assert_close(objective.loss(outputs, targets), torch.from_numpy(divergence), **ROUNDING)


def test_the_loss_is_0_where_target_and_assignment_agree_or_the_target_is_sure():
    sure = torch.tensor([[1.0, 0.0, 0.0]]).double()
    assert SelfTraining().loss(sure.log().clamp_min(-800), sure).item() == 0.0
    outputs = drawn(5, 3)
    assert_close(SelfTraining().loss(outputs, outputs.softmax(1)), torch.zeros(5).double(), rtol=0, atol=1e-15)  # of terms of size one


@pytest.mark.parametrize("objective", [SelfTraining(False), SelfTraining(True)])
def test_k_models_side_by_side_have_each_their_own_targets(objective):
    outputs, weights = drawn(4, 9, 3), (drawn(4, 9, seed=1) > 0).double()
    fixed = drawn(9, 3, seed=2).softmax(1)
    together = standing(objective, outputs, fixed, weights)
    for k in range(4):
        alone = standing(objective, outputs[k], fixed, weights[k])
        assert_close(together[k] if objective.recompute else together, alone, **ROUNDING)


def test_no_gradient_passes_through_recomputed_targets():
    outputs = drawn(9, 3).requires_grad_(True)
    assert not standing(SelfTraining(True), outputs, outputs, torch.ones(9).double()).requires_grad


# --------------------------------------------------------------------------------------------------------------------- starts


@pytest.mark.parametrize("model", [SMALL, Dec(pretraining=3, warm_up=3, jitter=0.5)], ids=["plain", "with everything"])
def test_a_start_is_a_function_of_data_and_seed(model):
    one, again, other = (placed(model, points(), seed).state_dict() for seed in (1, 1, 2))
    for name, value in one.items():
        assert torch.equal(value, again[name])
        assert not torch.equal(value, other[name])


@pytest.mark.parametrize("model", [SMALL, Dec(pretraining=3, warm_up=3, jitter=0.5)], ids=["plain", "with everything"])
def test_labels_name_clusters_and_change_nothing_else(model):
    data, names = points(), torch.tensor([2, 0, 1])
    one = placed(model, data).state_dict()
    other = placed(model, replace(data, train_targets=names[data.train_targets])).state_dict()
    for name in one:
        assert torch.equal(other[name][names] if name.endswith("centroids") else other[name], one[name])


def test_centroids_are_the_means_of_the_points_nearest_to_them():
    module, data = placed(SMALL, points()), points()
    embedded, centroids = module[0](data.train_inputs), module[1].centroids
    nearest = torch.cdist(embedded, centroids).argmin(1)
    means = torch.stack([embedded[nearest == j].mean(0) for j in range(3)])
    assert_close(means, centroids.detach(), rtol=0, atol=1e-9)  # k-means stopped: no point changes its cluster


def test_jitter_is_the_standard_deviation_of_what_is_added():
    few = Dec(width=6, embedding=200)
    plain, moved, twice = (placed(replace(few, jitter=jitter), points())[1].centroids for jitter in (0.0, 1e-3, 2e-3))
    assert_close(twice - plain, 2 * (moved - plain), rtol=0, atol=1e-12)  # the same draws
    assert (moved - plain).std().item() == pytest.approx(1e-3, rel=0.15)  # 5 standard errors of 600 draws


def test_clusters_are_matched_one_to_one_with_as_many_hits_as_any_numbering_has():
    rng = np.random.default_rng(0)
    for _ in range(20):
        clusters, labels = rng.integers(4, size=30), rng.integers(4, size=30)
        hits = (matched(clusters, labels, 4)[labels] == clusters).sum()
        assert sorted(matched(clusters, labels, 4)) == [0, 1, 2, 3]
        assert hits == max((np.array(each)[labels] == clusters).sum() for each in itertools.permutations(range(4)))


def test_a_linear_autoencoder_with_one_unit_finds_the_first_principal_component():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(80, 2)) @ np.diag([2.0, 0.5]) @ np.linalg.qr(rng.normal(size=(2, 2)))[0]
    data = data_of(inputs - inputs[:70].mean(0), np.arange(80) % 3, 70, 3)
    module = placed(Dec(depth=0, embedding=1, pretraining=4000), data)
    direction = module[0][1].weight[0].detach().numpy()
    first = PCA(1).fit(data.train_inputs.numpy()).components_[0]
    cosine = abs(direction @ first) / np.linalg.norm(direction)
    assert cosine > 1 - 1e-4  # what 4,000 steps of 0.001 leave of the angle is below 1 % of a right one


@pytest.mark.parametrize("n", [20, 100])
def test_a_round_of_the_warm_up_is_an_epoch_of_adam_for_targets_of_all_examples(n):
    """Against torch.optim.Adam and the published formula; 60 rows are one batch, 300 are two, in an order that is then the seed's."""
    data, rounds = points(n), 4
    module, mirror = (placed(SMALL, data) for _ in range(2))
    sharpen(module, data.train_inputs, rounds, SEED)
    optimizer = torch.optim.Adam(mirror.parameters(), lr=1e-3)
    order = torch_generator(SEED, "warm-up")
    for _ in range(rounds):
        p = torch.from_numpy(published(softmax(mirror(data.train_inputs))))
        for rows in torch.randperm(data.n_train, generator=order).split(ROWS):
            optimizer.zero_grad()
            (p[rows] * (p[rows].log() - mirror(data.train_inputs[rows]).log_softmax(1))).sum(1).mean().backward()
            optimizer.step()
    for ours, theirs in zip(module.parameters(), mirror.parameters(), strict=True):
        assert_close(ours, theirs, rtol=0, atol=1e-9)  # Adam divides rounding by gradients that may be small


def test_a_warm_up_makes_assignments_surer_and_fixed_targets_with_them():
    def sureness(rounds: int) -> float:
        made = replace(clustering(), model=replace(SMALL, warm_up=rounds))
        return made.train_examples(SEED).targets.max(1).values.mean().item()

    assert sureness(0) < sureness(100) < sureness(300)


def test_a_model_trained_on_labels_starts_where_the_clustering_starts():
    one, other = (replace(clustering(), objective=objective).initial(SEED).state_dict() for objective in (SelfTraining(), CrossEntropy()))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_start_has_the_computations_number_type(dtype):
    module = placed(Dec(pretraining=2, warm_up=2), points().to(dtype, "cpu"))
    assert {value.dtype for value in module.state_dict().values()} == {dtype}


def test_fewer_examples_than_clusters_are_refused():
    few = replace(points(), train_inputs=points().train_inputs[::40], train_targets=points().train_targets[::40])
    with pytest.raises(InfluxError, match=r"3 clusters in 2 training examples: set dataset.train_size=3 or more"):
        placed(SMALL, few)


def test_targets_that_are_numbers_are_refused():
    with pytest.raises(InfluxError, match="model=dec is for classification"):
        build(SMALL, Shape((2,), 1, "regression"), 0)
    with pytest.raises(InfluxError, match="as many clusters as the data set has classes"):
        SelfTraining().prepare(experiment("ridge").data)


@pytest.mark.parametrize("knob", ["pretraining", "warm_up", "jitter"])
def test_what_a_start_takes_is_not_negative(knob):
    with pytest.raises(InfluxError, match=f"model.{knob}=-1 is not possible"):
        Dec(**{knob: -1})


# ------------------------------------------------------------------------------------------------------- fixed and recomputed


def test_fixed_targets_do_not_move():
    made = clustering(recompute=False)
    start = softmax(made.initial(SEED)(made.data.train_inputs))
    assert_close(fitted().train.targets, torch.from_numpy(published(start)), **ROUNDING)
    now = published(softmax(fitted().outputs(fitted().theta, made.data.train_inputs)))
    assert np.abs(now - fitted().train.targets.numpy()).max() > 0.1


def test_estimates_hold_recomputed_targets_still_where_the_trained_model_has_them():
    problem = fitted(recompute=True)
    now = softmax(problem.outputs(problem.theta, problem.train.inputs))
    assert_close(problem.train.targets, torch.from_numpy(published(now)), **ROUNDING)


@pytest.mark.parametrize(
    "training", [Sgd(lr=0.2, epochs=10, batch_size=None), Adam(lr=0.01, epochs=10, batch_size=None)], ids=["sgd", "adam"]
)
@pytest.mark.parametrize("recompute", [False, True])
def test_leaving_out_by_weight_0_is_training_without_the_row(recompute, training):
    """From the same start, with the divisor n."""
    made = replace(clustering(recompute), training=training)
    n, out = made.data.n_train, 7
    weights = torch.ones(2, n, dtype=torch.float64)
    weights[1, out] = 0
    whole = made.task(SEED, weights)
    others = torch.arange(n) != out
    short = made.task(SEED, torch.full((1, n - 1), (n - 1) / n, dtype=torch.float64))
    short = replace(short, examples=whole.examples.take(others))
    full, alone = made.training.fit(whole).params, made.training.fit(short).params
    for name in full:
        assert_close(full[name][1], alone[name][0], rtol=0, atol=1e-10)  # Adam divides rounding by gradients that may be small
        assert (full[name][1] - full[name][0]).abs().max() > 1e-6


# ---------------------------------------------------------------------------------------------------------------- derivatives


def central(function: Callable[[Tensor], Tensor], theta: Tensor, step: float) -> Tensor:
    """Central differences along every parameter, the last axis."""
    moves = step * torch.eye(len(theta), dtype=theta.dtype)
    return torch.stack([(function(theta + move) - function(theta - move)) / (2 * step) for move in moves], dim=-1)


def written_out(problem: Problem, theta: Tensor) -> Tensor:
    """log q from torch alone."""
    state = {**problem.params, **problem.unflatten(theta)}
    return functional_call(problem.module, state, (problem.train.inputs,)).log_softmax(1)


@pytest.mark.parametrize("recompute", [False, True])
def test_training_gradients_are_those_of_the_loss_with_targets_held_still(recompute):
    problem, made = fitted(recompute), torch.empty(60, fitted(recompute).n_params).double()
    for rows, gradients in problem.train_gradients():
        made[rows] = gradients
    differences = central(lambda theta: -(problem.train.targets * written_out(problem, theta)).sum(1), problem.theta, 1e-5)
    assert_close(made, differences, rtol=0, atol=1e-8)  # truncation h²/6 f''' and rounding eps/h are some 1e-10 each


def test_measurement_gradients_are_those_of_minus_log_q_at_the_label():
    problem = fitted()
    labels = points().test_targets
    differences = central(lambda theta: -written_out(problem, theta)[torch.arange(60), labels], problem.theta, 1e-5)
    assert_close(problem.test_gradients(), differences, rtol=0, atol=1e-8)


def test_the_hessian_is_the_derivative_of_the_mean_gradient():
    problem = fitted()

    def gradient(theta: Tensor) -> Tensor:
        leaf = theta.clone().requires_grad_(True)
        loss = -(problem.train.targets * written_out(problem, leaf)).sum(1).mean() + 0.005 * leaf.square().sum()
        return torch.autograd.grad(loss, leaf)[0]

    assert_close(Curvature(problem, "hessian", 0.0).dense(), central(gradient, problem.theta, 1e-5), rtol=0, atol=1e-8)
