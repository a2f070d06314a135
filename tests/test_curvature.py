"""Hessian and Gauss-Newton products against dense float64 matrices from plain torch.autograd, on every tiny problem."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from problems import LINEAR, NAMES, TABLE, answers, dense, experiment, problem
from torch.testing import assert_close

from influx import stacking
from influx.curvature import Curvature
from influx.models import Model
from influx.models.base import ACTIVATIONS
from influx.models.linear import Linear
from influx.models.logistic import Logistic
from influx.models.mlp import Mlp
from influx.problem import Problem

KINDS = ("hessian", "ggn")
DAMPING = 0.07

# Float64: sums of a few hundred products of size one or less. Float32 (θ itself was rounded): eps = 1.2e-7 times the third derivative,
# some ten roundings deep.
TOLERANCE = {torch.float64: {"rtol": 0, "atol": 1e-12}, torch.float32: {"rtol": 0, "atol": 5e-6}}


def some_vectors(fitted: Problem, m: int = 3) -> torch.Tensor:
    drawn = torch.randn(fitted.n_params, m, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn.to(fitted.theta.dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_products_are_the_dense_matrix(name, kind, dtype):
    """With weight decay and damping inside, as the dense reference has them."""
    fitted = problem(name, dtype)
    curvature = Curvature(fitted, kind, DAMPING)
    wanted = answers(name).matrix(kind, DAMPING)
    vectors = some_vectors(fitted)
    size = vectors.double().norm(dim=0).max().item()
    tolerance = {"rtol": 0, "atol": TOLERANCE[dtype]["atol"] * size}
    assert curvature.size == len(wanted)
    product = curvature.matmat(vectors)
    assert product.dtype == dtype
    assert_close(product.double(), wanted @ vectors.double(), **tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_dense_is_the_matrix_and_symmetric(name, kind):
    matrix = Curvature(problem(name), kind, 0.0).dense()
    assert torch.equal(matrix, matrix.T)
    assert_close(matrix, answers(name).matrix(kind), **TOLERANCE[torch.float64])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_products_are_symmetric_before_symmetrising(name, kind):
    fitted = problem(name)
    matrix = Curvature(fitted, kind, 0.0).matmat(torch.eye(fitted.n_params, dtype=torch.float64))
    assert_close(matrix, matrix.T, **TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", NAMES)
def test_the_gauss_newton_matrix_is_positive_semidefinite(name):
    curvature = Curvature(replace(problem(name), weight_decay=0.0), "ggn", 0.0)
    eigenvalues = torch.linalg.eigvalsh(curvature.dense())
    assert eigenvalues[0] > -1e-14 * len(eigenvalues)  # zero up to rounding of a matrix of norm one


def test_the_hessian_need_not_be():
    """The suite holds a problem that tells the two apart."""
    assert torch.linalg.eigvalsh(Curvature(problem("conv"), "hessian", 0.0).dense())[0] < -0.01


@pytest.mark.parametrize("name", LINEAR)
def test_hessian_and_gauss_newton_agree_for_linear_models(name):
    hessian, ggn = (Curvature(problem(name), kind, 0.0).dense() for kind in KINDS)
    assert_close(hessian, ggn, **TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LINEAR])
def test_and_differ_for_networks(name):
    hessian, ggn = (Curvature(problem(name), kind, 0.0).dense() for kind in KINDS)
    assert (hessian - ggn).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_last_layer_is_the_block_of_the_whole(name, kind):
    fitted = problem(name)
    block = Curvature(fitted.select("last_layer"), kind, DAMPING)
    size = block.size
    assert size == sum(fitted.params[key].numel() for key in list(fitted.params)[-2:])
    assert_close(block.dense(), answers(name).matrix(kind, DAMPING)[-size:, -size:], **TOLERANCE[torch.float64])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["ridge", "softmax", "conv"])
def test_a_batch_of_rows_is_the_curvature_of_those_rows(name, kind):
    fitted = problem(name)
    rows = torch.tensor([3, 0, 3, 7])  # a row may come twice, as draws with replacement do
    wanted = dense(replace(fitted, train=fitted.train.take(rows))).matrix(kind, DAMPING)
    vectors = some_vectors(fitted)
    product = Curvature(fitted, kind, DAMPING).matmat(vectors, rows)
    assert_close(product, wanted @ vectors, rtol=0, atol=1e-11)  # norm of the vectors 14, of the batch's curvature up to 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mlp", "conv"])
@pytest.mark.parametrize("budget", [1, 40_000, 150_000])  # one row and one vector at a time; several of each
def test_blocks_of_rows_and_vectors_change_nothing(name, kind, budget, monkeypatch):
    fitted = problem(name)
    vectors = some_vectors(fitted, 5)
    whole = Curvature(fitted, kind, DAMPING).matmat(vectors)
    monkeypatch.setattr(stacking, "BLOCK_BYTES", budget)
    assert_close(Curvature(fitted, kind, DAMPING).matmat(vectors), whole, rtol=0, atol=1e-12)  # the order of a sum of n terms


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_rows_do_not_poison_the_matrix(kind):
    """Rows fitted beyond rounding have no curvature; they once had NaN."""
    fitted = problem("softmax", torch.float32)
    grown = replace(fitted, params={key: 300 * value for key, value in fitted.params.items()})
    matrix = Curvature(grown, kind, 0.0).dense()
    assert torch.isfinite(matrix).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_hessian_is_the_gradients_finite_difference(name):
    """Independent of any second derivative: a central difference of the dense gradient of J."""
    made, fitted = experiment(name), problem(name)
    vector = some_vectors(fitted, 1)[:, 0]
    step = 1e-5

    def gradient(theta: torch.Tensor) -> torch.Tensor:
        leaf = theta.clone().requires_grad_(True)
        objective = fitted.losses(leaf, fitted.train).mean() + 0.5 * made.training.weight_decay * leaf.square().sum()
        return torch.autograd.grad(objective, leaf)[0]

    difference = (gradient(fitted.theta + step * vector) - gradient(fitted.theta - step * vector)) / (2 * step)
    # truncation h²/6 ‖v‖³ f'''' ≈ 1e-10 x 1e3 (187 parameters) and rounding eps/h ≈ 1e-11
    assert_close(Curvature(fitted, "hessian", 0.0).matmat(vector[:, None])[:, 0], difference, rtol=0, atol=2e-7)


# ------------------------------------------------------------------------------------------ every activation, depth and bias


def at_random(model: Model, row: str) -> Problem:
    """Row `row`'s data under an untrained model: nothing cancels, as it does at an optimum."""
    made = experiment(row, model=model)
    module = made.module(1)
    params = {key: 1.5 * value.detach() for key, value in module.named_parameters()}
    return Problem(module, params, {}, made.train_examples, made.test_examples, made.objective, made.measurement, 0.02)


@pytest.mark.parametrize("which", ["all", "last_layer"])
@pytest.mark.parametrize(
    ("model", "row"),
    [(Mlp(depth=2, width=3, activation=name), "softmax") for name in ACTIVATIONS]
    + [(Mlp(depth=0), "softmax"), (Mlp(depth=3, width=2, activation="tanh"), "ridge"), (Mlp(depth=1, width=3, activation="gelu"), "conv")]
    + [(Linear(bias=False), "ridge"), (Logistic(bias=False), "binary")],
    ids=lambda value: value if isinstance(value, str) else f"{type(value).__name__}{getattr(value, 'depth', '')}",
)
def test_products_and_gradients_of_every_layered_model(model, row, which):
    fitted = at_random(model, row).select(which)
    wanted, vectors, rows = dense(fitted), some_vectors(fitted), torch.tensor([2, 9, 2])
    part = dense(replace(fitted, train=fitted.train.take(rows)))
    tolerance = {"rtol": 0, "atol": 2e-11}  # norm of the vectors up to 15, of the matrices up to 20
    for kind in KINDS:
        curvature = Curvature(fitted, kind, DAMPING)
        assert_close(curvature.matmat(vectors), wanted.matrix(kind, DAMPING) @ vectors, **tolerance)
        assert_close(curvature.matmat(vectors, rows), part.matrix(kind, DAMPING) @ vectors, **tolerance)
        assert_close(curvature.dense(), wanted.matrix(kind, DAMPING), **tolerance)
    assert_close(torch.cat([block for _, block in fitted.train_gradients()]), wanted.train_gradients, **tolerance)
    assert_close(fitted.test_gradients(), wanted.test_gradients, **tolerance)


# ------------------------------------------------------------------------------------------------------ per-example gradients


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [1, 10**8])
def test_gradients_are_the_dense_ones_in_any_blocks(name, dtype, budget, monkeypatch):
    monkeypatch.setattr(stacking, "BLOCK_BYTES", budget)
    fitted, wanted = problem(name, dtype), answers(name)
    blocks = list(fitted.train_gradients())
    assert len(blocks) == (fitted.n_train if budget == 1 else 1)
    gradients = torch.cat([block for _, block in blocks])
    assert [i for rows, _ in blocks for i in range(fitted.n_train)[rows]] == list(range(fitted.n_train))
    # gradients of size up to ten (ridge's residuals): ten roundings
    tolerance = {"rtol": 0, "atol": 10 * TOLERANCE[dtype]["atol"]}
    assert_close(gradients.double(), wanted.train_gradients, **tolerance)
    assert_close(fitted.test_gradients().double(), wanted.test_gradients, **tolerance)


def test_flat_parameters_round_trip():
    fitted = problem("conv").select("last_layer")
    back = fitted.unflatten(fitted.theta)
    assert all(torch.equal(back[key], fitted.params[key]) for key in fitted.selected)
    assert fitted.n_params == len(fitted.theta) == 2 * 3 + 3
    assert TABLE["conv"].classes == 3
