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
from influx.objectives import Supervised
from influx.problem import Examples, Problem

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


# ------------------------------------------------------------------------------------------------------- the empirical Fisher


def fisher(name: str, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor:
    """(1/n) Σ_i ∇ℓ_i ∇ℓ_iᵀ + λI from the dense gradients."""
    gradients = answers(name).train_gradients[rows]
    return gradients.T @ gradients / len(gradients) + TABLE[name].training.weight_decay * torch.eye(gradients.shape[1], dtype=torch.float64)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("memory", [2**30, 1])  # gradients kept between products, and made anew for each
@pytest.mark.parametrize("name", NAMES)
def test_the_fisher_matrix_is_the_gradients_second_moment(name, dtype, memory):
    fitted = replace(problem(name, dtype), memory=memory)
    curvature, vectors = Curvature(fitted, "fisher", DAMPING), some_vectors(fitted)
    wanted = fisher(name) + DAMPING * torch.eye(len(vectors), dtype=torch.float64)
    size = wanted.norm().item() * vectors.double().norm(dim=0).max().item()
    atol = TOLERANCE[dtype]["atol"] * max(1.0, size)
    for _ in range(2):  # the second from what was kept
        assert_close(curvature.matmat(vectors).double(), wanted @ vectors.double(), rtol=0, atol=atol)
    matrix = curvature.dense()
    assert torch.equal(matrix, matrix.T)
    assert_close(matrix.double(), wanted, rtol=0, atol=TOLERANCE[dtype]["atol"] * max(1.0, wanted.norm().item()))


@pytest.mark.parametrize("name", ["ridge", "mlp"])
def test_the_fisher_matrix_of_a_batch_and_of_a_layer(name):
    fitted, rows = problem(name), torch.tensor([3, 0, 3, 7])
    vectors = some_vectors(fitted)
    assert_close(Curvature(fitted, "fisher", 0.0).matmat(vectors, rows), fisher(name, rows) @ vectors, rtol=0, atol=1e-11)
    block = Curvature(fitted.select("last_layer"), "fisher", 0.0).dense()
    assert_close(block, fisher(name)[-len(block) :, -len(block) :], **TOLERANCE[torch.float64])


def test_the_fisher_matrix_is_the_gauss_newton_matrix_for_labels_of_the_model():
    """With every label in proportion to its probability: Σ_y p_y ∇ℓ_y ∇ℓ_yᵀ = GGN, for cross-entropy (Kunstner et al. 2019)."""
    fitted = problem("softmax")
    p = fitted.outputs(fitted.theta, fitted.train.inputs).softmax(1)
    total = torch.zeros(fitted.n_params, fitted.n_params, dtype=torch.float64)
    for label in range(3):
        part = replace(fitted, train=Examples(fitted.train.inputs, torch.full((fitted.n_train,), label)))
        gradients = part.loss_gradients(part.train)
        total += (gradients * p[:, label : label + 1]).T @ gradients / fitted.n_train
    assert_close(total, Curvature(replace(fitted, weight_decay=0.0), "ggn", 0.0).dense(), **TOLERANCE[torch.float64])


# ---------------------------------------------------------------------------------------------------------- damping by itself


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher"])
@pytest.mark.parametrize("name", NAMES)
def test_the_mean_eigenvalue_is_within_its_stated_error(name, kind):
    """√(2/(64 r)) with r = tr(C)²/tr(C²) the effective rank; three of them for a tolerance that chance passes 99.7 times in 100."""
    fitted = problem(name)
    matrix = Curvature(replace(fitted, weight_decay=0.0), kind, 0.0).dense()
    trace, squares = matrix.trace().item(), matrix.square().sum().item()
    off_diagonal = squares - matrix.diagonal().square().sum().item()  # random signs see only this
    found = Curvature(fitted, kind, "auto").mean_eigenvalue
    assert abs(found * len(matrix) - trace) <= 3 * (2 * squares / 64) ** 0.5
    assert abs(found * len(matrix) - trace) <= 4 * (2 * off_diagonal / 64) ** 0.5 + 1e-12
    assert Curvature(fitted, kind, "auto").mean_eigenvalue == found  # drawn from no global state


def test_damping_auto_is_a_tenth_of_it_beside_the_weight_decay():
    fitted = problem("mlp")
    curvature = Curvature(fitted, "ggn", "auto")
    assert curvature.delta == pytest.approx(0.1 * curvature.mean_eigenvalue, rel=1e-15)
    assert curvature.shift == fitted.weight_decay + curvature.delta
    assert_close(curvature.dense(), Curvature(fitted, "ggn", curvature.delta).dense(), **TOLERANCE[torch.float64])


def test_damping_auto_of_a_hessian_with_a_negative_trace_is_still_positive():
    fitted = problem("mlp")
    upside_down = replace(fitted, measurement=fitted.measurement, objective=Flipped())
    curvature = Curvature(upside_down, "hessian", "auto")
    assert curvature.mean_eigenvalue < 0 < curvature.delta


class Flipped(Supervised):
    """A loss with a maximum."""

    def loss(self, outputs, targets):
        return -super().loss(outputs, targets)


# ------------------------------------------------------------------------------------------------- an output layer in closed form


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["last_layer", "3.weight", "3.bias"])
def test_an_output_layers_curvature_needs_no_products(which, kind, monkeypatch):
    fitted = problem("mlp").select(which)
    wanted = dense(fitted).matrix(kind, DAMPING)
    monkeypatch.setattr(Curvature, "matmat", None)
    assert_close(Curvature(fitted, kind, DAMPING).dense(), wanted, **TOLERANCE[torch.float64])


# ------------------------------------------------------------------------------------------ every activation, depth and bias


def at_random(model: Model, row: str) -> Problem:
    """Row `row`'s data under an untrained model: nothing cancels, as it does at an optimum."""
    made = experiment(row, model=model)
    module = made.module(1)
    params = {key: 1.5 * value.detach() for key, value in module.named_parameters()}
    return Problem(module, params, {}, made.train_examples(0), made.test_examples(0), made.objective, made.measurement, 0.02)


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
