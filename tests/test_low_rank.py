"""Arnoldi and Nyström: dense inverses at full rank, and what they keep below it, from NumPy's own eigenvectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import NAMES, Dense, answers, dense, problem
from torch.testing import assert_close

from influx.curvature import Curvature
from influx.errors import AccuracyWarning, InfluxError, NumericalError
from influx.estimators.inverse_curvature import InverseCurvature, inverse_cost
from influx.problem import Problem
from influx.solvers import Solution, Solver
from influx.solvers.arnoldi import Arnoldi, krylov
from influx.solvers.nystrom import Nystrom

pytestmark = pytest.mark.filterwarnings("ignore::influx.errors.AccuracyWarning")
CLEAR = ["ridge", "binary", "softmax", "mlp"]  # their Hessians are positive definite


def sides(fitted: Problem) -> torch.Tensor:
    return fitted.test_gradients().T


def solve(solver: Solver, fitted: Problem, kind: str = "ggn", damping: float = 0.01, seed: int = 0) -> Solution:
    return solver.solve(Curvature(fitted, kind, damping), sides(fitted), seed)


def spectrum(known: Dense, kind: str, damping: float) -> tuple[np.ndarray, np.ndarray]:
    return np.linalg.eigh(known.matrix(kind, damping).numpy())


# ------------------------------------------------------------------------------------------------------------- full rank


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
@pytest.mark.parametrize("name", NAMES)
def test_arnoldi_of_full_rank_is_the_dense_inverse(name, kind):
    """Also where eigenvalues repeat (softmax: a null space of several dimensions) and are negative (the Hessian of conv)."""
    fitted, known = problem(name), answers(name)
    solution = solve(Arnoldi(fitted.n_params), fitted, kind)
    wanted = torch.linalg.solve(known.matrix(kind, 0.01), sides(fitted))
    condition = torch.linalg.cond(known.matrix(kind, 0.01)).item()
    # rounding of the products with A (some 1e-14 of its norm), times the condition
    assert (solution.x - wanted).norm() / wanted.norm() < 1e-13 * condition
    assert solution.converged.all()
    lowest = torch.linalg.eigvalsh(known.matrix(kind, 0.01))[0].item()
    assert solution.smallest_eigenvalue == pytest.approx(lowest, abs=1e-12)


@pytest.mark.parametrize("sketch", ["gaussian", "columns"])
@pytest.mark.parametrize("name", NAMES)
def test_nystrom_of_full_rank_is_the_dense_inverse(name, sketch):
    fitted, known = problem(name), answers(name)
    solution = solve(Nystrom(fitted.n_params, sketch), fitted)
    wanted = torch.linalg.solve(known.matrix("ggn", 0.01), sides(fitted))
    # the sketch drops eigenvalues of rounding size, 1e-13 of the largest, beside a shift of 0.02 or more
    assert (solution.x - wanted).norm() / wanted.norm() < 1e-9
    assert solution.converged.all()


@pytest.mark.parametrize("solver", [Arnoldi(200), Nystrom(200)], ids=["arnoldi", "nystrom"])
@pytest.mark.parametrize("kind", ["ggn", "fisher"])
@pytest.mark.parametrize("name", ["ridge", "softmax", "mlp"])
def test_float32(name, kind, solver):
    double = solve(solver, problem(name), kind)
    single = solve(solver, problem(name, torch.float32), kind)
    assert single.x.dtype == torch.float32
    # float32's 1e-7, times conditions up to 300 and a few dozen terms
    assert (single.x - double.x).norm() / double.x.norm() < 1e-3


# --------------------------------------------------------------------------------------------------------- arnoldi's part


@pytest.mark.parametrize(
    ("name", "kind", "complement"),
    [("softmax", "ggn", False), ("softmax", "ggn", True), ("mlp", "hessian", False), ("mlp", "hessian", True), ("conv", "hessian", True)],
)
def test_arnoldi_keeps_the_eigenpairs_of_largest_absolute_value(name, kind, complement):
    """With a Krylov space of every dimension the Ritz pairs are eigenpairs: NumPy's, the negative ones among them."""
    fitted, damping, rank = problem(name), 0.01, 4
    values, vectors = spectrum(answers(name), kind, damping)
    kept = np.argsort(-np.abs(values))[:rank]
    b = sides(fitted).numpy()
    wanted = vectors[:, kept] @ np.diag(1 / values[kept]) @ vectors[:, kept].T @ b
    if complement:
        wanted += (b - vectors[:, kept] @ vectors[:, kept].T @ b) / (fitted.weight_decay + damping)
    solution = solve(Arnoldi(rank, fitted.n_params, complement), fitted, kind, damping)
    # eigenvectors are accurate to 1e-14 over a relative gap between the 4th and 5th eigenvalue, 0.01 or more here
    assert_close(solution.x.numpy(), wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())


@pytest.mark.parametrize("steps", [6, 20, 60])
def test_a_krylov_space_is_orthonormal_and_projects_the_curvature(steps):
    fitted = problem("conv")
    basis, images, projected = krylov(Curvature(fitted, "hessian", 0.0), steps, torch.Generator().manual_seed(0))
    assert_close(images, basis @ answers("conv").hessian, rtol=0, atol=1e-12)
    assert_close(basis @ basis.T, torch.eye(steps, dtype=torch.float64), rtol=0, atol=1e-13)  # rounding of sums of 187
    wanted = basis @ answers("conv").hessian @ basis.T
    assert_close(projected, wanted.triu(), rtol=0, atol=1e-12)  # the matrices agree to 1e-12
    assert wanted.triu(2).abs().max() < 1e-12  # three-term recursion: it is a Krylov space


def test_extreme_ritz_values_converge_first():
    """The dominant eigenvalues of conv after a tenth of the dimension: as exact as products are."""
    fitted = problem("conv")
    values = np.linalg.eigvalsh(answers("conv").ggn.numpy())[::-1]
    _, _, projected = krylov(Curvature(fitted, "ggn", 0.0), 20, torch.Generator().manual_seed(0))
    ritz = torch.linalg.eigvalsh(projected, UPLO="U").flip(0)
    np.testing.assert_allclose(ritz[:4], values[:4], rtol=1e-6)  # the error falls with the square of the gap's power; 1e-6 is loose
    assert (ritz <= values[0] * (1 + 1e-12)).all()


def test_a_krylov_space_goes_on_when_it_is_exhausted():
    """The GGN of softmax regression has a null space: one start vector spans P − 4 dimensions and then every step is a restart."""
    fitted = problem("softmax")
    curvature = Curvature(fitted, "ggn", 0.0)
    basis, _, projected = krylov(curvature, fitted.n_params, torch.Generator().manual_seed(0))
    assert_close(basis @ basis.T, torch.eye(fitted.n_params, dtype=torch.float64), rtol=0, atol=1e-13)
    assert_close(torch.linalg.eigvalsh(projected, UPLO="U"), torch.linalg.eigvalsh(answers("softmax").ggn), rtol=0, atol=1e-13)


# --------------------------------------------------------------------------------------------------------- nystrom's part


@pytest.mark.parametrize("rank", [3, 10, 25])
def test_nystrom_is_the_projection_it_says(rank):
    """From its own answers: X for the identity gives (Ĉ + μI)⁻¹; then Ĉ has the rank, 0 ≤ Ĉ ≤ C, and Ĉ = C on its own range."""
    fitted, shift = problem("mlp"), 0.02 + 0.05
    identity = torch.eye(fitted.n_params, dtype=torch.float64)
    inverse = Nystrom(rank).solve(Curvature(fitted, "ggn", 0.05), identity, 0).x
    sketch = torch.linalg.inv(inverse) - shift * identity
    data_part = answers("mlp").ggn - 0.02 * identity
    rounding = 1e-11  # of inverting twice at condition below 100
    values = torch.linalg.eigvalsh(sketch)
    assert values.min() > -rounding
    assert int((values > 1e-9).sum()) == rank
    assert torch.linalg.eigvalsh(data_part - sketch).min() > -rounding  # the Schur complement is positive semi-definite
    assert int((torch.linalg.eigvalsh(data_part - sketch) > 1e-9).sum()) <= fitted.n_params - rank  # and has lost the rank


@pytest.mark.parametrize("rank", [2, 6])
def test_nystrom_with_columns_is_built_of_the_curvatures_own_columns(rank):
    """C[:, K] C[K, K]⁺ C[K, :] for the columns K that it reproduces (the drawn ones, and those that depend on them)."""
    fitted, shift = problem("mlp"), 0.02 + 0.05
    identity = torch.eye(fitted.n_params, dtype=torch.float64)
    inverse = Nystrom(rank, "columns").solve(Curvature(fitted, "ggn", 0.05), identity, 0).x
    sketch = torch.linalg.inv(inverse) - shift * identity
    data_part = answers("mlp").ggn - 0.02 * identity
    chosen = (data_part - sketch).abs().amax(0) < 1e-10
    assert rank <= int(chosen.sum()) < fitted.n_params
    wanted = data_part[:, chosen] @ torch.linalg.pinv(data_part[chosen][:, chosen], rtol=1e-9) @ data_part[chosen]
    assert torch.linalg.matrix_rank(wanted, rtol=1e-9) == rank
    assert_close(sketch, wanted, rtol=0, atol=1e-9)  # inverses of a small block of condition up to 1e4


def test_nystrom_survives_a_small_shift():
    """μ = 1e-9 beside eigenvalues of 1: Woodbury's identity on the sketch itself would lose eight digits."""
    fitted = replace(problem("softmax"), weight_decay=0.0)
    solution = solve(Nystrom(fitted.n_params), fitted, damping=1e-9)
    identity = torch.eye(fitted.n_params, dtype=torch.float64)
    wanted = torch.linalg.solve(answers("softmax").ggn - (0.02 - 1e-9) * identity, sides(fitted))
    scores, theirs = (fitted.loss_gradients(fitted.train) @ x for x in (solution.x, wanted))
    assert (scores - theirs).norm() / theirs.norm() < 1e-5  # 1e-14 of rounding in b's null-space part, over 1e-9


# ------------------------------------------------------------------------------------------------------- what they report


@pytest.mark.parametrize("solver", [Arnoldi(3), Arnoldi(3, complement=True), Nystrom(3), Nystrom(3, "columns")], ids=str)
@pytest.mark.parametrize("kind", ["ggn", "hessian"])
def test_the_residual_is_the_true_one(solver, kind):
    fitted = problem("softmax")
    with pytest.warns(AccuracyWarning, match=r"(3 eigenpairs leave|rank 3 leaves) a relative residual of .* raise method\.solver\.rank"):
        solution = solve(solver, fitted, kind)
    b, matrix = sides(fitted), answers("softmax").matrix(kind, 0.01)
    assert_close(solution.residual, (b - matrix @ solution.x).norm(dim=0) / b.norm(dim=0), rtol=1e-10, atol=0)
    assert not solution.converged.all()
    assert solution.effective_damping == pytest.approx(0.03)


@pytest.mark.parametrize("solver", [Arnoldi(3), Nystrom(3)], ids=["arnoldi", "nystrom"])
def test_seeds_decide_and_the_same_seed_gives_the_same_bytes(solver):
    fitted = problem("mlp")
    one, again, other = (solve(solver, fitted, seed=seed).x for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("solver", [Arnoldi(5), Nystrom(5)], ids=["arnoldi", "nystrom"])
def test_the_eigenvectors_are_found_once_for_all_blocks(solver):
    fitted = problem("mlp")
    curvature = Curvature(fitted, "ggn", 0.01)
    b = sides(fitted)
    whole = solver.solve(curvature, b, 0).x
    assert len(curvature.kept) == 1
    parts = torch.cat([solver.solve(curvature, part, 0).x for part in b.split(2, dim=1)], dim=1)
    assert len(curvature.kept) == 1
    assert_close(parts, whole, rtol=0, atol=1e-13 * whole.abs().max().item())  # products of another width
    small = replace(fitted, memory=3 * 4 * fitted.theta.nbytes)  # one or two test examples a block
    ours, all_at_once = (InverseCurvature(solver, "ggn", 0.01).estimate(part, None, 0).influence for part in (small, fitted))
    assert len(small.columns(solver.copies)) > 1
    assert_close(ours, all_at_once, rtol=0, atol=1e-13)


def test_a_zero_right_hand_side_has_a_zero_answer():
    fitted = problem("softmax")
    for solver in (Arnoldi(15), Arnoldi(4, complement=True), Nystrom(15)):
        solution = solver.solve(Curvature(fitted, "ggn", 0.0), torch.zeros(15, 2, dtype=torch.float64), 0)
        assert not solution.x.any()
        assert not solution.residual.any()


# ------------------------------------------------------------------------------------------------------------- refusals


def test_arnoldi_warns_of_an_indefinite_hessian():
    smallest = torch.linalg.eigvalsh(answers("conv").matrix("hessian", 0.01))[0].item()
    with pytest.warns(AccuracyWarning, match=rf"the hessian is not positive definite \(an eigenvalue of at most {smallest:.2e}"):
        solve(Arnoldi(10, 60), problem("conv"), "hessian")  # both ends of the spectrum converge first


def test_arnoldi_refuses_eigenvalues_that_are_rounding():
    fitted = replace(problem("softmax"), weight_decay=0.0)
    with pytest.raises(NumericalError, match=r"the 15 largest eigenvalues of the ggn go down to .*: lower method\.solver\.rank"):
        solve(Arnoldi(15), fitted, damping=0.0)
    with pytest.raises(NumericalError, match=r"arnoldi divides what its eigenvectors miss by λ \+ damping, which is 0"):
        solve(Arnoldi(3, complement=True), fitted, damping=0.0)


def test_nystrom_refuses_no_shift():
    with pytest.raises(NumericalError, match=r"nystrom divides by λ \+ damping, which is 0: set method\.damping above 0"):
        solve(Nystrom(3), replace(problem("softmax"), weight_decay=0.0), damping=0.0)


def test_nystrom_refuses_an_indefinite_hessian_and_names_enough_damping():
    fitted = problem("conv")
    with pytest.raises(NumericalError, match=r"nystrom needs a positive definite curvature, .*use method\.curvature=ggn, or") as caught:
        solve(Nystrom(20), fitted, "hessian")
    named = float(str(caught.value).split("method.damping above ")[1].rstrip("."))
    with pytest.warns(AccuracyWarning, match=r"eigenvalue of at most -.* before its shift, and nystrom takes negative ones for 0"):
        solution = solve(Nystrom(20), fitted, "hessian", damping=1.05 * named)  # named to two digits
    lowest = torch.linalg.eigvalsh(dense(fitted).matrix("hessian", 1.05 * named))[0].item()
    assert 0 < lowest <= solution.smallest_eigenvalue + 1e-12


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
def test_nystrom_is_silent_about_a_convex_problem(kind, recwarn):
    solve(Nystrom(15), problem("softmax"), kind)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Arnoldi(0), r"method\.solver\.rank=0 is not possible: it must be a whole number of at least 1"),
        (lambda: Arnoldi(5, "many"), r"method\.solver\.steps=many is not possible: .* or auto"),
        (lambda: Arnoldi(5, 4), r"method\.solver\.rank=5 is more than the 4 eigenpairs that method\.solver\.steps=4 can give: lower rank"),
        (lambda: Nystrom(5, "rows"), r"method\.solver\.sketch=rows is not possible: it must be one of gaussian, columns"),
    ],
)
def test_a_wrong_option_is_refused(make, message):
    with pytest.raises(InfluxError, match=message):
        make()


@pytest.mark.parametrize(("solver", "name"), [(Arnoldi(50), "arnoldi"), (Nystrom(50), "nystrom")], ids=["arnoldi", "nystrom"])
def test_what_memory_does_not_allow_is_refused_early(solver, name):
    fitted = replace(problem("conv"), memory=100_000)
    with pytest.raises(InfluxError, match=rf"{name} keeps \d+ vectors of 187 parameters.*, .* lower method\.solver\.rank"):
        inverse_cost(InverseCurvature(solver), fitted)
    cost = inverse_cost(InverseCurvature(solver), problem("conv"))
    assert 0 < cost.nbytes < problem("conv").memory
    assert cost.flops > 0
