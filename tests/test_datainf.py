"""DataInf against its definition: the average of dense inverses, one example and one layer at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from problems import NAMES, NOTHING_KEPT, TABLE, BatchNormNet, answers, dense, experiment, problem
from torch.testing import assert_close

from influx import stacking
from influx.curvature import Curvature
from influx.errors import InfluxError, NumericalError
from influx.estimators.inverse_curvature import InverseCurvature, inverse_cost
from influx.problem import Problem
from influx.solvers import Solution
from influx.solvers.datainf import DataInf, combined, inner
from influx.training.first_order import Sgd


def solve(fitted: Problem, damping: float | str, rhs: torch.Tensor | None = None) -> Solution:
    return DataInf().solve(Curvature(fitted, "fisher", damping), fitted.test_gradients().T if rhs is None else rhs, 0)


def blocks(fitted: Problem) -> list[torch.Tensor]:
    """Places in θ of each layer: parameters that share a name up to its last dot."""
    names = [name.rpartition(".")[0] for name in fitted.selected for _ in range(fitted.params[name].numel())]
    return [torch.tensor([at for at, own in enumerate(names) if own == name]) for name in dict.fromkeys(names)]


def definition(
    gradients: torch.Tensor, places: list[torch.Tensor], weight_decay: float, damping: float | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The block-diagonal matrix (1/n) Σ_i (g_i g_iᵀ + s_l I)⁻¹ by dense inversion, and every parameter's shift s_l."""
    n, size = gradients.shape
    inverse, shifts = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for place in places:
        own = gradients[:, place]
        delta = 0.1 * own.square().sum() / (n * len(place)) if damping == "auto" else float(damping)
        shifts[place] = weight_decay + delta
        identity = torch.eye(len(place), dtype=torch.float64)
        mean = sum(torch.linalg.inv(torch.outer(g, g) + (weight_decay + delta) * identity) for g in own) / n
        inverse[place[:, None], place] = mean
    return inverse, shifts


@pytest.mark.parametrize("damping", ["auto", 0.0, 0.3])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_average_of_dense_inverses(name, damping):
    fitted, known = problem(name), answers(name)
    inverse, shifts = definition(known.train_gradients, blocks(fitted), fitted.weight_decay, damping)
    wanted = inverse @ known.test_gradients.T
    solution = solve(fitted, damping)
    # both are float64; inverses of condition (|g|² + s)/s, below 1e4
    assert_close(solution.x, wanted, rtol=0, atol=1e-11 * wanted.abs().max().item())
    influence = InverseCurvature(DataInf(), "fisher", damping).estimate(fitted, None, 0).influence
    assert_close(influence, known.train_gradients @ wanted / TABLE[name].n, rtol=0, atol=1e-10 * influence.abs().max().item())
    fisher = known.train_gradients.T @ known.train_gradients / TABLE[name].n + torch.diag(shifts)
    b = known.test_gradients.T
    assert_close(solution.residual, (b - fisher @ wanted).norm(dim=0) / b.norm(dim=0), rtol=1e-9, atol=0)
    assert solution.effective_damping == pytest.approx(shifts.mean().item(), rel=1e-12)


@pytest.mark.parametrize("name", ["softmax", "mlp"])
def test_many_right_hand_sides_go_another_way_to_the_same_numbers(name):
    """Beyond a layer's width the gradients are formed; up to it they are not."""
    fitted = problem(name)
    many = torch.randn(fitted.n_params, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = solve(fitted, "auto", many).x
    one_by_one = torch.cat([solve(fitted, "auto", column.unsqueeze(1)).x for column in many.T], dim=1)
    assert_close(one_by_one, whole, rtol=0, atol=1e-12 * whole.abs().max().item())  # sums in another order


@pytest.mark.parametrize("m", [1, 3, 50])
def test_products_through_factors_are_products_with_gradients(m):
    fitted = problem("mlp")
    generator = torch.Generator().manual_seed(1)
    for _, parts in fitted.train_rows():
        for part in parts:
            vectors = torch.randn(m, *part.layer.shape, generator=generator, dtype=torch.float64)
            weights = torch.randn(len(part.matrices), m, generator=generator, dtype=torch.float64)
            assert_close(inner(part, vectors), torch.einsum("roi,moi->rm", part.matrices, vectors), rtol=0, atol=1e-12)  # rounding
            assert_close(combined(part, weights), torch.einsum("roi,rm->moi", part.matrices, weights), rtol=0, atol=1e-12)


def test_one_example_is_inverted_exactly():
    """With n = 1 and one layer there is nothing to exchange: the dense solve, residual 0."""
    fitted = problem("ridge")
    fitted = replace(fitted, train=fitted.train.take(slice(3, 4)))
    known = dense(fitted)
    fisher = known.train_gradients.T @ known.train_gradients + (0.05 + 0.2) * torch.eye(5, dtype=torch.float64)
    solution = solve(fitted, 0.2)
    assert_close(solution.x, torch.linalg.solve(fisher, known.test_gradients.T), rtol=1e-12, atol=0)
    assert solution.residual.max() < 1e-13
    assert solution.converged.all()


def test_the_exchange_is_exact_for_a_large_shift():
    """The error is of second order in |g|²/s (both sides are b/s − Gb/s² + ...), so ten times the damping leaves a hundredth of it."""
    fitted, known = problem("ridge"), answers("ridge")
    errors = []
    for damping in (1e2, 1e3):
        fisher = known.train_gradients.T @ known.train_gradients / 30 + (0.05 + damping) * torch.eye(5, dtype=torch.float64)
        exact = torch.linalg.solve(fisher, known.test_gradients.T)
        errors.append(((solve(fitted, damping).x - exact).norm() / exact.norm()).item())
    assert errors[1] / errors[0] == pytest.approx(0.01, rel=0.1)  # the next order: |g|²/s, some 0.05 at the first damping


@pytest.mark.parametrize("name", ["softmax", "mlp", "conv"])
def test_float32(name):
    double, single = (solve(problem(name, dtype), "auto") for dtype in (torch.float64, torch.float32))
    assert single.x.dtype == torch.float32
    # x = (b − projection of b)/s: float32's 1e-7 times a cancellation of up to |g|²/s = 1e3
    assert (single.x - double.x).norm() / double.x.norm() < 1e-3


@pytest.mark.parametrize("name", ["softmax", "mlp", "conv"])
def test_blocks_of_rows_change_nothing(name, monkeypatch):
    fitted = problem(name)
    whole = solve(fitted, "auto").x
    monkeypatch.setattr(stacking, "BLOCK_BYTES", 8 * fitted.theta.nbytes)
    assert len(list(fitted.train_rows())) > 1
    assert_close(solve(fitted, "auto").x, whole, rtol=0, atol=1e-12 * whole.abs().max().item())  # sums in another order


def test_batch_normalisation_is_a_layer_of_its_own():
    made = experiment("conv", model=BatchNormNet(), training=Sgd(lr=0.05, epochs=3, batch_size=8, weight_decay=0.01))
    fitted = made.problem(made.train(0, NOTHING_KEPT), 0)
    known = dense(fitted)
    inverse, _ = definition(known.train_gradients, blocks(fitted), fitted.weight_decay, "auto")
    wanted = inverse @ known.test_gradients.T
    assert_close(solve(fitted, "auto").x, wanted, rtol=0, atol=1e-10 * wanted.abs().max().item())


def test_the_last_layer_alone_is_one_block():
    fitted = problem("mlp").select("last_layer")
    known = dense(fitted)
    inverse, _ = definition(known.train_gradients, [torch.arange(fitted.n_params)], fitted.weight_decay, "auto")
    ours = InverseCurvature(DataInf(), "fisher", "auto", "last_layer").estimate(problem("mlp"), None, 0).influence
    wanted = known.train_gradients @ inverse @ known.test_gradients.T / 36
    assert_close(ours, wanted, rtol=0, atol=1e-11 * wanted.abs().max().item())


def test_the_right_hand_side_is_left_alone_and_zero_stays_zero():
    fitted = problem("mlp")
    rhs = fitted.test_gradients().T
    rhs[:, 2] = 0
    before = rhs.clone()
    solution = solve(fitted, "auto", rhs)
    assert torch.equal(rhs, before)
    assert not solution.x[:, 2].any()
    assert solution.residual[2] == 0


def test_no_shift_is_refused():
    with pytest.raises(NumericalError, match=r"datainf divides by λ \+ damping, which is 0 for a layer: set method\.damping above 0"):
        solve(replace(problem("mlp"), weight_decay=0.0), 0.0)


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
def test_only_the_fisher_matrix_has_this_form(kind):
    with pytest.raises(InfluxError, match=rf"DataInf inverts fisher, not {kind}: set method\.curvature=fisher"):
        inverse_cost(InverseCurvature(DataInf(), kind), problem("mlp"))


def test_a_solver_that_is_only_a_word_is_refused():
    with pytest.raises(InfluxError, match=r"method\.solver=exact is not possible: an option is chosen by solver@method\.solver=exact"):
        inverse_cost(InverseCurvature("exact"), problem("mlp"))  # type: ignore[arg-type]
