"""What methods that think of labels do where a model was trained without them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from math import comb

import pytest
import torch
from methods import SEED, estimator
from pairs import N_TRAIN, paired
from problems import NOTHING_KEPT
from torch.testing import assert_close

from influx.curvature import Curvature
from influx.errors import InfluxError, NumericalError
from influx.estimators.inverse_curvature import InverseCurvature
from influx.estimators.knn_shapley import KnnShapley, shapley_of_vectors
from influx.estimators.nearest import Nearest
from influx.estimators.trak import Trak
from influx.kronecker import check_convex, convex
from influx.laboratory import Laboratory
from influx.models.mlp import Mlp
from influx.objectives.base import SelfTargeted
from influx.problem import Problem
from influx.responses.bregman import Bregman
from influx.responses.choice import check
from influx.responses.linearised import Linearised
from influx.solvers.cg import ConjugateGradient
from influx.solvers.ekfac import Ekfac
from influx.solvers.exact import Exact
from influx.solvers.nystrom import Nystrom


def fitted(objective: str, measurement: str, **changes: object) -> Problem:
    made = paired(objective, measurement, **changes)
    return made.problem(made.train(SEED, NOTHING_KEPT), SEED)


def laboratory(objective: str) -> Laboratory:
    return Laboratory(paired(objective, "loss"), NOTHING_KEPT, SEED, 2**30)


# ------------------------------------------------------------------------------------------------------- neighbours and likeness


def test_shapley_values_of_vectors_are_those_of_all_subsets():
    """−‖mean of the K nearest's targets / K − y‖² for every subset, by enumeration."""
    numbers = torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted, k = torch.tensor([[0.4, -1.0]], dtype=torch.float64), 2

    def utility(members: tuple[int, ...]) -> float:
        return -((numbers[sorted(members)[:k], 0].sum(0) / k - wanted[0]) ** 2).sum().item()

    for i in range(5):
        others = [j for j in range(5) if j != i]
        value = sum(
            (utility((*subset, i)) - utility(subset)) / comb(4, size) / 5 for size in range(5) for subset in combinations(others, size)
        )
        assert shapley_of_vectors(numbers, wanted, k)[i, 0].item() == pytest.approx(value, abs=1e-12)


def test_neighbours_vote_with_labels_where_labels_judge():
    """A clustering that labels judge: neighbours and likeness are told by labels, as for a classifier on the same points."""
    judged, own = fitted("dec", "cluster_loss", model=Mlp(width=3)), fitted("dec", "loss", model=Mlp(width=3))
    classified = replace(fitted("supervised", "loss", model=Mlp(width=3)), params=judged.params)
    for method in (KnnShapley(3, "inputs"), Nearest("inputs"), Nearest("features")):
        ours = method.estimate(judged, None, SEED).influence
        assert torch.equal(ours, method.estimate(classified, None, SEED).influence)
        assert not torch.equal(ours, method.estimate(own, None, SEED).influence)
    ignored = Nearest("inputs", "ignored").estimate(judged, None, SEED).influence
    assert torch.equal(Nearest("inputs").estimate(own, None, SEED).influence, ignored)  # no labels to compare


def test_neighbours_cannot_answer_a_measurements_own_questions():
    with pytest.raises(InfluxError, match=r"Weat asks what they have no answer to: use method=nearest, or another method"):
        KnnShapley(space="inputs").plan(fitted("skip_gram", "weat"), None)


# ---------------------------------------------------------------------------------------------------------------------- TRAK


@pytest.mark.parametrize("objective", ["dec", "reconstruction"])
def test_trak_linearises_the_loss_itself(objective):
    """Without a projection and with δ: (1/n) ∇m_tᵀ (F + δ)⁻¹ ∇ℓ_i, F the empirical Fisher matrix without λ."""
    problem = fitted(objective, "displacement", model=Mlp(width=3))
    ours = Trak(dim=10_000, damping=0.01).estimate(problem, None, SEED).influence
    g, m = problem.loss_gradients(problem.train), problem.test_gradients()
    fisher = g.T @ g / N_TRAIN + 0.01 * torch.eye(g.shape[1], dtype=torch.float64)
    assert_close(ours, g @ torch.linalg.solve(fisher, m.T) / N_TRAIN, rtol=1e-8, atol=1e-12)


# -------------------------------------------------------------------------------------- curvature of losses that are not convex


@dataclass(frozen=True)
class NoLikelihood(SelfTargeted):
    """A user's objective: the inputs' fourth powers, which is convex but nobody's likelihood."""

    def prepare(self, data):
        return data

    def n_outputs(self, data):
        return 3

    def targets(self, inputs):
        return inputs.flatten(1)

    def loss(self, outputs, targets):
        return (outputs - targets).pow(4).sum(-1)


def test_sampled_targets_need_a_distribution_and_say_so_in_the_plan():
    problem = replace(fitted("reconstruction", "loss", model=Mlp(width=3)), objective=NoLikelihood())
    with pytest.raises(InfluxError, match=r"NoLikelihood gives no distribution that targets could be drawn from: use the data's own"):
        InverseCurvature(Ekfac(labels="sampled"), "fisher", 0.1).plan(problem, None)
    InverseCurvature(Ekfac(), "fisher", 0.1).plan(problem, None)


@pytest.mark.parametrize("objective", ["reconstruction", "dec"])
def test_the_fisher_matrix_of_drawn_targets_is_the_gauss_newton_matrix_in_expectation(objective):
    """tr(C) of the mean over draws against the exact one, within five standard errors."""
    problem = fitted(objective, "loss", model=Mlp(width=3))
    exact = sum(b.values.sum().item() for b in _bases(problem, "ggn", 0))
    draws = torch.tensor([sum(b.values.sum().item() for b in _bases(problem, "fisher", seed)) for seed in range(200)])
    assert abs(draws.mean().item() - exact) < 5 * draws.std().item() / 200**0.5
    assert draws.std() > 0


def _bases(problem: Problem, kind: str, seed: int):
    from influx.kronecker import eigenbases

    return eigenbases([problem], kind, labels="sampled", corrected=True, seed=seed)


def test_a_loss_that_is_not_convex_is_noticed_before_training():
    contrastive = paired("contrastive", "loss").untrained(SEED)
    assert not convex(contrastive)
    for objective in ("dec", "reconstruction", "supervised", "skip_gram"):
        assert convex(paired(objective, "loss").untrained(SEED))
    message = (
        r"Contrastive is not convex in the model's outputs, so its Gauss-Newton matrix has no square root: set method.curvature=fisher"
    )
    with pytest.raises(InfluxError, match=message):
        check_convex(contrastive)
    for method in ("kfac", "ekfac", "logra", "source"):
        with pytest.raises(InfluxError, match=message):
            estimator(method, paired("contrastive", "loss")).plan(contrastive, laboratory("contrastive"))


def test_solvers_name_the_curvature_that_is_positive():
    problem = fitted("contrastive", "loss")
    for kind, remedy in (("ggn", "method.curvature=fisher"), ("hessian", "method.curvature=ggn")):
        matrix = Curvature(problem, kind, 0.0)
        assert torch.linalg.eigvalsh(matrix.dense())[0] < 0
        for solver in (ConjugateGradient(), Nystrom(rank=5)):
            with pytest.raises(NumericalError, match=remedy):
                solver.solve(matrix, problem.test_gradients().T, SEED)


def test_responses_of_a_loss_that_is_not_convex_are_refused():
    problem = paired("contrastive", "loss").untrained(SEED)
    with pytest.raises(InfluxError, match=r"no distance when the loss is not convex in the outputs, and Contrastive is not: use"):
        check(Bregman(0.1), problem)
    with pytest.raises(InfluxError, match=r"retraining.solver=ekfac takes a root of the GGN, and there is none .*: use"):
        check(Linearised(Ekfac(), 0.1), problem)
    check(Linearised(Exact(), 0.1), problem)


@pytest.mark.parametrize("method", ["representer", "as_published"])
def test_an_output_layer_that_is_used_twice_is_no_map_of_features(method):
    problem = paired("contrastive", "loss").untrained(SEED)
    with pytest.raises(InfluxError, match=r"uses its output layer twice, so that outputs are no linear map of features: use"):
        estimator(method, paired("contrastive", "loss")).plan(problem, laboratory("contrastive"))


def test_features_of_two_views_are_both():
    problem = fitted("contrastive", "loss")
    wide = problem.features(problem.train)
    assert wide.shape == (N_TRAIN, 6)
    layer = problem.module.get_submodule("encoder.1")
    first = torch.tanh(problem.train.inputs[:, 0] @ problem.params["encoder.1.weight"].T + problem.params["encoder.1.bias"])
    assert layer.out_features == 3
    assert_close(wide[:, :3] if torch.allclose(wide[:, :3], first) else wide[:, ::2], first, rtol=0, atol=1e-12)
