"""TRAK against its formula with the projection as an explicit matrix and gradients from plain autograd, and against exact influence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from problems import (
    NAMES,
    NOTHING_KEPT,
    BatchNormNet,
    answers,
    cast,
    dense,
    experiment,
    flat_forward,
    problem,
    torch_margin,
)
from scipy.stats import spearmanr
from torch import Tensor
from torch.testing import assert_close

from influx.errors import InfluxError, NumericalError
from influx.estimators import trak
from influx.estimators.trak import Trak, projected, signs, slopes
from influx.measurements import Loss, Margin, MeanLoss
from influx.problem import Examples, Problem
from influx.training.first_order import Sgd

SEED = 3


def output_gradients(fitted: Problem) -> Tensor:
    """∇f_i of each training example's log-odds, or prediction, by plain autograd."""
    forward, theta = flat_forward(fitted)
    targets = fitted.train.targets
    value = (lambda out: out[:, 0]) if targets.is_floating_point() else (lambda out: torch_margin(out, targets))
    return torch.autograd.functional.jacobian(lambda t: value(forward(t, fitted.train.inputs)), theta)


def weights(fitted: Problem) -> Tensor:
    """∂ℓ_i/∂f: −(1 − p_y), or ŷ − y."""
    forward, theta = flat_forward(fitted)
    outputs, targets = forward(theta, fitted.train.inputs), fitted.train.targets
    if targets.is_floating_point():
        return outputs[:, 0] - targets
    return -(1 - outputs.softmax(1).gather(1, targets[:, None])[:, 0])


def matrix(fitted: Problem, dim: int, seed: int, model: int) -> Tensor:
    """R [P, dim] as one matrix: each layer's tiles of signs put in their place in θ's order."""
    whole = torch.zeros(dim, fitted.n_params, dtype=torch.float64)
    for at, layer in enumerate(fitted.layers or (trak_whole(fitted),)):
        own = torch.zeros(dim, *layer.shape, dtype=torch.float64)
        for number, (outs, ins) in enumerate(trak._tiles(*layer.shape)):
            size = (outs.stop - outs.start) * (ins.stop - ins.start)
            drawn = signs(whole.new_empty(0, dim), size, seed, model, at, number)
            own[:, outs, ins] = drawn.T.reshape(dim, outs.stop - outs.start, ins.stop - ins.start)
        layer.scatter(own, whole)
    return whole.T / math.sqrt(dim)


def trak_whole(fitted: Problem):
    from influx.problem import whole_layer

    return whole_layer(fitted.n_params)


def by_definition(fitted: Problem, r: Tensor, damping: float | None) -> Tensor:
    """q_i ψ_tᵀ (ΦᵀΦ/n + δ)⁻¹ φ_i / n; δ = 0.1 x the mean eigenvalue when None."""
    phi, psi = output_gradients(fitted) @ r, dense(fitted).test_gradients @ r
    gram = phi.T @ phi / len(phi)
    delta = 0.1 * gram.diagonal().mean() if damping is None else damping
    solved = torch.linalg.solve(gram + delta * torch.eye(len(gram), dtype=gram.dtype), psi.T)
    return weights(fitted)[:, None] * (phi @ solved) / len(phi)


def near(ours: Tensor, wanted: Tensor, share: float = 1e-9) -> None:
    assert_close(ours, wanted, rtol=0, atol=share * wanted.abs().max().item())


@pytest.mark.parametrize("damping", ["auto", 0.01])
@pytest.mark.parametrize(
    ("name", "measurement"), [("mlp", Loss()), ("mlp", Margin()), ("mlp", MeanLoss()), ("conv", Loss()), ("ridge", Loss())]
)
def test_scores_are_the_formula_with_an_explicit_projection(name, measurement, damping, monkeypatch):
    monkeypatch.setattr(trak, "TILE", 7)  # several tiles a layer, also across a row of its matrix
    fitted = replace(problem(name), measurement=measurement)
    dim = 4 if name == "ridge" else 12
    ours = Trak(dim=dim, damping=damping).estimate(fitted, None, SEED).influence
    # dense float64 algebra of condition below 1e5
    near(ours, by_definition(fitted, matrix(fitted, dim, SEED, 0), None if damping == "auto" else damping))


def test_the_score_of_the_margin_is_minus_the_paper_s():
    """τ = φ_tᵀ (ΦᵀΦ)⁻¹ Φᵀ Q with Q = diag(1 − p): the paper's score of one model."""
    fitted = replace(problem("mlp"), measurement=Margin())
    r = matrix(fitted, 9, SEED, 0)
    phi, psi = output_gradients(fitted) @ r, dense(fitted).test_gradients @ r
    p = fitted.outputs(fitted.theta, fitted.train.inputs).softmax(1).gather(1, fitted.train.targets[:, None])[:, 0]
    tau = psi @ torch.linalg.inv(phi.T @ phi) @ phi.T @ torch.diag(1 - p)  # [n_test, n]
    near(Trak(dim=9, damping=0.0).estimate(fitted, None, SEED).influence, -tau.T, 1e-7)  # condition of ΦᵀΦ up to 1e6


def test_without_projection_a_linear_regression_s_score_is_its_influence_function():
    """φ_i = x_i, so that ΦᵀΦ/n + λ is the Hessian: the one case in which TRAK is calibrated."""
    fitted = problem("ridge")
    ours = Trak(dim=512, damping=fitted.weight_decay).estimate(fitted, None, SEED).influence
    near(ours, answers("ridge").influence("hessian"), 1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_large_damping_leaves_gradient_dot_products(name):
    """q_i ∇f_i = ∇ℓ_i, for every model: what the linearisation rests on."""
    known = answers(name)
    wanted = known.train_gradients @ known.test_gradients.T / len(known.train_gradients) / 1e9
    near(Trak(dim=512, damping=1e9).estimate(problem(name), None, SEED).influence, wanted, 1e-6)  # ΦᵀΦ/n is below 1e3


def test_a_wide_projection_ranks_like_none():
    """Johnson-Lindenstrauss: inner products are kept to √(2/dim)."""
    fitted = problem("conv")
    exact = Trak(dim=187, damping=0.5).estimate(fitted, None, SEED).influence
    made = [Trak(dim=dim, damping=0.5).estimate(fitted, None, SEED).influence for dim in (16, 180)]
    agreement = [sum(spearmanr(one, other).statistic for one, other in zip(part.T, exact.T, strict=True)) / 6 for part in made]
    assert agreement[0] < agreement[1]
    assert agreement[1] > 0.85


def test_the_projection_s_entries_are_fair_independent_signs():
    drawn = signs(torch.empty(0, 64, dtype=torch.float64), 20_000, 0, 0, 0, 0)
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert abs(drawn.mean()) < 5 / math.sqrt(drawn.numel())
    correlations = drawn.T @ drawn / len(drawn) - torch.eye(64, dtype=torch.float64)
    assert correlations.abs().max() < 6 / math.sqrt(len(drawn))  # the largest of 2,016
    others = [signs(drawn[:0], 20_000, *purpose) for purpose in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))]
    assert max(abs((drawn * other).mean().item()) for other in others) < 5 / math.sqrt(drawn.numel())
    assert torch.equal(signs(torch.empty(0, 64), 20_000, 0, 0, 0, 0).double(), drawn)


# ------------------------------------------------------------------------------------------------------------ several models


@dataclass(frozen=True)
class Several:
    """A record that has models to give."""

    fitted: tuple[Problem, ...]

    def models(self, count: int) -> Iterator[Problem]:
        yield from self.fitted[:count]


@cache
def trained_again(name: str, count: int) -> tuple[Problem, ...]:
    made = experiment(name)
    return tuple(made.problem(made.train(seed, NOTHING_KEPT), seed) for seed in range(count))


def test_models_average_weights_and_kernels_separately():
    models = trained_again("mlp", 3)
    total_q = sum(weights(model) for model in models) / 3
    kernels = []
    for number, model in enumerate(models):
        r = matrix(model, 10, SEED, number)
        kernels.append(by_definition(model, r, 0.02) / weights(model)[:, None])
    wanted = total_q[:, None] * sum(kernels) / 3
    near(Trak(dim=10, models=3, damping=0.02).estimate(models[0], Several(models), SEED).influence, wanted)


def test_the_problem_s_own_data_is_what_every_model_is_asked_about():
    models = trained_again("mlp", 2)
    narrowed = replace(models[0], test=models[0].test.take(slice(1, 3)))
    whole = Trak(dim=10, models=2).estimate(models[0], Several(models), SEED).influence
    near(Trak(dim=10, models=2).estimate(narrowed, Several(models), SEED).influence, whole[:, 1:3])


# -------------------------------------------------------------------------------------------------- numbers, types and blocks


def test_weights_keep_their_digits_where_the_fit_is_perfect():
    """In float32 p_y is 1 to the last bit there, and 1 − p_y would be 0."""
    fitted = problem("softmax")
    sharp = replace(fitted, params={name: 15 * value for name, value in fitted.params.items()})
    single, double = slopes(cast(sharp, torch.float32)).double(), slopes(sharp)
    assert (1 + double.abs().float() == 1).any()
    # 1e-7 of log-odds up to a hundred
    assert ((single - double).abs() <= 1e-4 * double.abs()).all()
    assert (double < 0).all()


def test_float32_ranks_like_float64():
    fitted = problem("conv")
    single = Trak(dim=40).estimate(cast(fitted, torch.float32), None, SEED).influence
    assert single.dtype == torch.float32
    for one, other in zip(single.T, Trak(dim=40).estimate(fitted, None, SEED).influence.T, strict=True):
        assert spearmanr(one, other).statistic > 0.999


@pytest.mark.parametrize("measurement", [Loss(), MeanLoss()])
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_memory_and_blocks_change_nothing(name, measurement, monkeypatch):
    fitted = replace(problem(name), measurement=measurement)
    whole = Trak(dim=12).estimate(fitted, None, SEED).influence
    monkeypatch.setattr("influx.stacking.BLOCK_BYTES", 5 * fitted.theta.nbytes)
    monkeypatch.setattr(trak, "ROWS_BYTES", 1000)
    tight = replace(fitted, memory=80 * fitted.theta.nbytes)  # flushed every few rows
    near(Trak(dim=12).estimate(tight, None, SEED).influence, whole)


def test_a_module_without_known_layers_goes_through_autograd():
    class Scaled(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner, self.scale = inner, torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

        def forward(self, x):
            return self.scale * self.inner(x)

    fitted = problem("mlp")
    module = Scaled(fitted.module)
    params = {name: value.detach() for name, value in module.named_parameters()}
    odd = replace(fitted, module=module, params=params, selected=())
    assert odd.layers is None
    near(Trak(dim=11, damping=0.1).estimate(odd, None, SEED).influence, by_definition(odd, matrix(odd, 11, SEED, 0), 0.1))


def test_batch_normalisation_is_projected_like_any_layer():
    made = experiment("conv", model=BatchNormNet(), training=Sgd(lr=0.05, epochs=2, batch_size=8))
    fitted = made.problem(made.train(0, NOTHING_KEPT), 0)
    assert fitted.layers is not None
    near(Trak(dim=11, damping=0.1).estimate(fitted, None, SEED).influence, by_definition(fitted, matrix(fitted, 11, SEED, 0), 0.1))


def test_the_last_layer_alone():
    fitted = problem("mlp")
    last = fitted.select("last_layer")
    ours = Trak(dim=6, damping=0.1, params="last_layer").estimate(fitted, None, SEED).influence
    near(ours, by_definition(last, matrix(last, 6, SEED, 0), 0.1))


def test_the_same_seed_gives_the_same_bytes_whatever_the_global_state():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = Trak(dim=8).estimate(problem("mlp"), None, SEED).influence
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(Trak(dim=8).estimate(problem("mlp"), None, SEED).influence, one)
    assert not torch.equal(Trak(dim=8).estimate(problem("mlp"), None, SEED + 1).influence, one)


def test_a_copy_of_a_training_example_helps_itself():
    fitted = problem("mlp")
    own = replace(fitted, test=Examples(fitted.train.inputs, fitted.train.targets))
    assert (Trak().estimate(own, None, SEED).influence.diagonal() > 0).all()


def test_the_projection_of_all_parameters_is_the_gradients_themselves():
    train, test = projected(problem("mlp"), 31, SEED, 0)
    near(train, output_gradients(problem("mlp")), 1e-12)
    near(test, answers("mlp").test_gradients, 1e-12)


# ----------------------------------------------------------------------------------------------------------------- refusals


def test_more_dimensions_than_examples_need_damping():
    with pytest.raises(
        InfluxError, match=r"method\.dim=40 dimensions of 24 gradients .*set method\.dim to at most 24, or method\.damping=auto"
    ):
        Trak(dim=40, damping=0.0).plan(experiment("conv").untrained(0), None)
    with pytest.raises(InfluxError, match=r"at most 5, or"):
        Trak(dim=6, damping=0.0).plan(experiment("ridge").untrained(0), None)


def test_gradients_that_span_too_little_are_refused():
    """Softmax gradients sum to 0 over the classes: 10 of 15 dimensions."""
    Trak(dim=15, damping=0.0).plan(problem("softmax"), None)
    with pytest.raises(NumericalError, match=r"do not span 15 dimensions .*method\.damping=auto, or a smaller method\.dim"):
        Trak(dim=15, damping=0.0).estimate(problem("softmax"), None, SEED)


@pytest.mark.parametrize("changes", [{"dim": 0}, {"models": 0}, {"damping": -1.0}, {"params": "last"}])
def test_a_wrong_option_is_refused(changes):
    with pytest.raises(InfluxError, match=f"method.{next(iter(changes))}=.* is not possible"):
        Trak(**changes)


def test_the_plan_counts_models():
    cost = Trak(dim=20, models=4).plan(experiment("conv").untrained(0), None)
    assert (cost.gradients, cost.trainings) == (4 * 30, 3)
    assert cost.flops == 4 * (2 * 30 * 187 * 20 + 2 * 24 * 400 + 8000 + 2 * 44 * 6 * 20)
