"""Every solver against the dense float64 solve: on random positive definite matrices and on the tiny problems."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from problems import NAMES, answers, experiment, problem
from torch import nn
from torch.testing import assert_close

from influx.curvature import Curvature
from influx.errors import AccuracyWarning, InfluxError, NumericalError
from influx.estimators.inverse_curvature import InverseCurvature
from influx.measurements import Loss
from influx.objectives import SquaredError
from influx.problem import Examples, Problem
from influx.solvers import lissa
from influx.solvers.base import Solution, Solver, relative_residual
from influx.solvers.cg import ConjugateGradient
from influx.solvers.exact import Exact
from influx.solvers.lissa import Lissa

SIZE, SHIFT = 12, 0.05
SOLVERS: dict[str, Solver] = {
    "exact": Exact(),
    "cg": ConjugateGradient(tolerance=1e-10),
    "lissa": Lissa(depth=500),  # (1 − λ_min/σ)^500 with λ_min/σ ≥ 1/23: e^-22
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spectrum(low: float = 0.0, high: float = 1.0, size: int = SIZE) -> torch.Tensor:
    """A symmetric matrix of known eigenvalues, evenly spaced, in a random basis."""
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator(), dtype=torch.float64)).Q
    return basis @ torch.diag(torch.linspace(low, high, size, dtype=torch.float64)) @ basis.T


def quadratic(data_part: torch.Tensor, weight_decay: float = SHIFT, dtype: torch.dtype = torch.float64) -> Problem:
    """Linear regression without intercept whose curvature is `data_part + weight_decay I`: the rows are √n times a root of it."""
    values, vectors = torch.linalg.eigh(data_part)
    size = len(data_part)
    inputs = (math.sqrt(size) * vectors * values.clamp_min(0).sqrt()) @ vectors.T
    examples = Examples(inputs.to(dtype), torch.zeros(size, dtype=dtype))
    module = nn.Sequential(nn.Flatten(), nn.Linear(size, 1, bias=False)).to(dtype)
    params = {"1.weight": torch.zeros(1, size, dtype=dtype)}
    return Problem(module, params, {}, examples, examples, SquaredError(), Loss(), weight_decay)


def right_sides(m: int, size: int = SIZE, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Columns of very different length."""
    drawn = torch.randn(size, m, generator=generator(1), dtype=torch.float64) * torch.logspace(-6, 3, m, dtype=torch.float64)
    return drawn.to(dtype)


def solve(solver: Solver, fitted: Problem, rhs: torch.Tensor, kind: str = "hessian", damping: float = 0.0, seed: int = 0) -> Solution:
    return solver.solve(Curvature(fitted, kind, damping), rhs, seed)


def column_errors(x: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return (x.double() - wanted).norm(dim=0) / wanted.norm(dim=0)


def dense_residual(matrix: torch.Tensor, x: torch.Tensor, rhs: torch.Tensor) -> torch.Tensor:
    return (rhs.double() - matrix @ x.double()).norm(dim=0) / rhs.double().norm(dim=0)


# ----------------------------------------------------------------------------------------------------- the dense solution


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("m", [1, 5, 3 * SIZE])  # fewer and more right-hand sides than parameters
def test_solves_random_positive_definite_systems(name, m):
    matrix = spectrum() + SHIFT * torch.eye(SIZE, dtype=torch.float64)
    rhs = right_sides(m)
    solution = solve(SOLVERS[name], quadratic(spectrum()), rhs)
    # condition number 21 times the residual: rounding (exact), 1e-10 (cg), the series' remainder 1e-10 (lissa)
    assert column_errors(solution.x, torch.linalg.solve(matrix, rhs)).max() < 21 * 2e-10
    assert solution.converged.all()
    assert [len(part) for part in (solution.iterations, solution.residual, solution.converged)] == [m, m, m]
    assert_close(solution.residual, dense_residual(matrix, solution.x, rhs), rtol=1e-3, atol=1e-14)  # a residual of rounding size is noise


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("row", ["ridge", "binary", "softmax", "mlp"])
@pytest.mark.parametrize("name", ["exact", "cg"])
def test_solves_the_tiny_problems(name, row, kind):
    fitted, known = problem(row), answers(row)
    matrix = known.matrix(kind, 0.01)
    rhs = fitted.test_gradients().T.contiguous()
    solution = solve(SOLVERS[name], fitted, rhs, kind, 0.01)
    condition = torch.linalg.cond(matrix).item()
    assert column_errors(solution.x, torch.linalg.solve(matrix, rhs)).max() < 2e-10 * condition
    assert solution.effective_damping == pytest.approx(fitted.weight_decay + 0.01, rel=1e-12)


@pytest.mark.parametrize("row", ["ridge", "softmax"])
def test_lissa_solves_the_tiny_problems(row):
    fitted = problem(row)
    rhs = fitted.test_gradients().T.contiguous()
    solution = solve(Lissa(depth=600), fitted, rhs, "ggn", 0.05)
    wanted = torch.linalg.solve(answers(row).matrix("ggn", 0.05), rhs)
    assert column_errors(solution.x, wanted).max() < 1e-9  # (1 − λ_min/σ)^600 with λ_min/σ ≥ 1/8


@pytest.mark.parametrize("name", SOLVERS)
def test_float32(name):
    matrix = spectrum() + SHIFT * torch.eye(SIZE, dtype=torch.float64)
    rhs = right_sides(5, dtype=torch.float32)
    solution = solve(SOLVERS[name], quadratic(spectrum(), dtype=torch.float32), rhs)
    assert solution.x.dtype == torch.float32
    # condition 21 times eps (exact, lissa) or times cg's floor of 100 eps
    assert column_errors(solution.x, torch.linalg.solve(matrix, rhs.double())).max() < 21 * 1e-5
    assert solution.converged.all()


@pytest.mark.parametrize("name", SOLVERS)
def test_awkward_right_hand_sides(name):
    """Zero, duplicate, and linearly dependent columns; and columns that are eigenvectors."""
    matrix = spectrum() + SHIFT * torch.eye(SIZE, dtype=torch.float64)
    base = torch.randn(SIZE, 2, generator=generator(2), dtype=torch.float64)
    eigenvector = torch.linalg.eigh(matrix).eigenvectors[:, :1]
    zero = torch.zeros(SIZE, 1, dtype=torch.float64)
    rhs = torch.cat([zero, base, base, -3 * base[:, :1], base.sum(1, keepdim=True), zero, eigenvector, 1e-9 * eigenvector], dim=1)
    solution = solve(SOLVERS[name], quadratic(spectrum()), rhs)
    wanted = torch.linalg.solve(matrix, rhs)
    for column, residual, x, b in zip(wanted.T, solution.residual, solution.x.T, rhs.T, strict=True):
        assert (x - column).norm() <= 21 * 2e-10 * column.norm()  # as above
        assert residual <= (1e-9 if b.any() else 0.0)
    assert not solution.x[:, [0, 7]].any()
    assert solution.converged.all()


@pytest.mark.parametrize("name", SOLVERS)
def test_nothing_but_zeros(name):
    solution = solve(SOLVERS[name], quadratic(spectrum()), torch.zeros(SIZE, 3, dtype=torch.float64))
    assert not solution.x.any()
    assert not solution.residual.any()
    assert solution.converged.all()
    assert not math.isinf(solution.smallest_eigenvalue)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_right_hand_side_is_left_alone(name):
    rhs = right_sides(3)
    before = rhs.clone()
    solve(SOLVERS[name], quadratic(spectrum()), rhs)
    assert torch.equal(rhs, before)


@pytest.mark.parametrize("name", SOLVERS)
def test_columns_come_back_in_their_order(name):
    rhs, order = right_sides(4), torch.tensor([2, 0, 3, 1])
    plain, shuffled = (solve(SOLVERS[name], quadratic(spectrum()), part).x for part in (rhs, rhs[:, order]))
    assert (column_errors(shuffled, plain[:, order])).max() < 21 * 2e-10  # as above


@pytest.mark.parametrize("name", SOLVERS)
def test_the_same_seed_gives_the_same_bytes(name):
    rhs = right_sides(4)
    one, other = (solve(SOLVERS[name], quadratic(spectrum()), rhs, seed=3) for _ in range(2))
    assert torch.equal(one.x, other.x)


def test_relative_residual_by_hand():
    fitted = quadratic(torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64)), 0.5)
    x = torch.tensor([[2.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    rhs = torch.tensor([[3.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
    # A = diag(1.5, 3.5): b − Ax = (0, 0.5), ‖b‖ = 5; a zero right-hand side with a zero answer has none
    wanted = torch.tensor([0.1, 0.0], dtype=torch.float64)
    assert_close(relative_residual(Curvature(fitted, "ggn", 0.0), x, rhs), wanted, rtol=1e-14, atol=0)


# ------------------------------------------------------------------------------------------------------------------ exact


@pytest.mark.filterwarnings("ignore::influx.errors.AccuracyWarning")
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("row", NAMES)
def test_exact_reports_the_smallest_eigenvalue(row, kind):
    fitted = problem(row)
    damping = 0.03
    solution = solve(Exact(), fitted, fitted.test_gradients().T.contiguous(), kind, damping)
    wanted = torch.linalg.eigvalsh(answers(row).matrix(kind, damping))[0].item()
    assert solution.smallest_eigenvalue == pytest.approx(wanted, abs=1e-13)  # eps times the largest eigenvalue, times the size


def test_exact_refuses_a_singular_matrix():
    with pytest.raises(NumericalError, match=r"the ggn is singular \(smallest eigenvalue .*\): its inverse means nothing\."):
        solve(Exact(), quadratic(spectrum(), 0.0), right_sides(2), "ggn")
    unregularised = replace(problem("softmax"), weight_decay=0.0)  # softmax scores can all be moved alike: no unique optimum
    with pytest.raises(NumericalError, match=r"the hessian is singular .* or train with training\.weight_decay above 0"):
        solve(Exact(), unregularised, unregularised.test_gradients().T.contiguous())


def test_exact_warns_of_an_indefinite_matrix_and_solves_it():
    fitted = problem("conv")
    rhs = fitted.test_gradients().T.contiguous()
    smallest = torch.linalg.eigvalsh(answers("conv").hessian)[0].item()
    with pytest.warns(AccuracyWarning, match=rf"the hessian is not positive definite \(smallest eigenvalue {smallest:.2e} with method"):
        solution = solve(Exact(), fitted, rhs)
    assert solution.smallest_eigenvalue == pytest.approx(smallest, abs=1e-13)
    wanted = torch.linalg.solve(answers("conv").hessian, rhs)
    condition = torch.linalg.cond(answers("conv").hessian).item()
    assert column_errors(solution.x, wanted).max() < condition * 1e-12  # the matrices agree to 1e-12
    assert solution.converged.all()


def test_damping_named_in_the_warning_is_enough():
    fitted = problem("conv")
    rhs = fitted.test_gradients().T.contiguous()
    with pytest.warns(AccuracyWarning) as caught:
        solve(Exact(), fitted, rhs)
    named = float(str(caught[0].message).split("method.damping above ")[1].split(",")[0])
    assert solve(Exact(), fitted, rhs, damping=1.05 * named).smallest_eigenvalue > 0  # named to two digits


def test_only_exact_needs_a_matrix_in_memory():
    """The command line asks before it trains (test_bad_input). 31 parameters: three matrices of 961 doubles are 23,064 bytes."""
    fitted = problem("mlp")
    works = [solver.work(replace(fitted, memory=23_064), 6) for solver in SOLVERS.values()]
    assert [work.nbytes for work in works] == [23_064, 0, 0]
    assert all(0 < work.flops < math.inf for work in works)
    with pytest.raises(InfluxError, match=r"method=exact works on a 31 x 31 matrix, .* memory allows 0\.0: use method=cg .*raise memory"):
        Exact().work(replace(fitted, memory=23_063), 6)


def test_a_curvature_that_a_solver_cannot_invert_is_refused():
    class Picky(Exact):
        kinds = ("ggn",)

    method = InverseCurvature(Picky(), "hessian")
    with pytest.raises(InfluxError, match=r"Picky inverts ggn, not hessian: set method\.curvature=ggn"):
        method.plan(problem("mlp"), None)


# --------------------------------------------------------------------------------------------------------------------- cg


def test_cg_refuses_negative_curvature():
    fitted = problem("conv")
    with pytest.raises(NumericalError, match=r"cg met negative curvature: the hessian .* has an eigenvalue of at most -.*method=exact"):
        solve(ConjugateGradient(), fitted, fitted.test_gradients().T.contiguous())


def test_cg_says_when_it_stops_early():
    matrix, rhs = spectrum() + SHIFT * torch.eye(SIZE, dtype=torch.float64), right_sides(2)
    with pytest.warns(AccuracyWarning, match=r"cg stopped after 2 steps with a largest relative residual of .*max_iterations"):
        solution = solve(ConjugateGradient(max_iterations=2), quadratic(spectrum()), rhs)
    assert not solution.converged.all()
    assert solution.iterations.tolist() == [2, 2]
    assert_close(solution.residual, dense_residual(matrix, solution.x, rhs), rtol=1e-10, atol=0)  # the true one, not the recursion's


def test_cg_never_needs_more_steps_than_dimensions_left():
    """Block CG: m right-hand sides search m dimensions a step; 12 parameters and 4 of them need 3 steps."""
    solution = solve(ConjugateGradient(tolerance=1e-10), quadratic(spectrum()), right_sides(4))
    assert solution.iterations.max() <= SIZE // 4 + 1  # one more for rounding


def test_cg_converges_on_an_ill_conditioned_matrix():
    """Condition 1e6: the recursion's residual drifts, the true one must still reach the tolerance."""
    matrix = torch.linalg.matrix_exp(spectrum(math.log(1e-6), 0.0, 40))
    rhs = right_sides(3, 40)
    solution = solve(ConjugateGradient(tolerance=1e-9, max_iterations=2000), quadratic(matrix, 0.0), rhs)
    assert solution.converged.all()
    # the quadratic's rows reproduce the matrix to some eps of its norm, i.e. 1e-9 of ‖b‖ where ‖x‖ = 1e6 ‖b‖
    assert dense_residual(matrix, solution.x, rhs).max() < 3e-9


def test_cg_bounds_the_smallest_eigenvalue_from_above():
    few = solve(ConjugateGradient(tolerance=0.5), quadratic(spectrum()), right_sides(1)).smallest_eigenvalue
    all_of_them = solve(ConjugateGradient(), quadratic(spectrum()), right_sides(SIZE)).smallest_eigenvalue
    assert few >= SHIFT - 1e-14
    assert all_of_them == pytest.approx(SHIFT, abs=1e-12)  # the search space is everything


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_cg_on_a_singular_matrix_says_that_it_failed(kind):
    """Rank 6 of 12 and no damping: no solution exists, and no factorisation's own error may surface."""
    fitted = quadratic(spectrum(-1.0, 1.0), 0.0)  # the root clamps the negative half to zero
    with pytest.raises(NumericalError, match=r"cg broke down|cg met negative curvature"):
        solve(ConjugateGradient(max_iterations=50), fitted, right_sides(3), kind)


# ------------------------------------------------------------------------------------------------------------------ lissa


@pytest.mark.parametrize("depth", [1, 2, 7, 40])
def test_lissa_with_full_batches_is_the_truncated_series(depth):
    """Σ_{t<T} (I − A/σ)^t b/σ = A⁻¹(I − (I − A/σ)^T) b, term by term."""
    matrix, rhs = spectrum() + SHIFT * torch.eye(SIZE, dtype=torch.float64), right_sides(3)
    scale = 1.7
    step = torch.eye(SIZE, dtype=torch.float64) - matrix / scale
    wanted = torch.linalg.solve(matrix, (torch.eye(SIZE, dtype=torch.float64) - torch.linalg.matrix_power(step, depth)) @ rhs)
    with pytest.warns(AccuracyWarning, match=r"lissa left a relative residual of .* raise method\.solver\.depth"):
        solution = solve(Lissa(depth=depth, scale=scale, batch_size=SIZE), quadratic(spectrum()), rhs)
    assert column_errors(solution.x, wanted).max() < 1e-12  # the same series in another order
    assert solution.effective_damping == pytest.approx(SHIFT + scale / depth, rel=1e-12)
    assert solution.iterations.tolist() == [depth] * 3
    assert_close(solution.residual, dense_residual(matrix, solution.x, rhs), rtol=1e-10, atol=1e-14)
    assert torch.equal(solution.converged, solution.residual <= 0.05)


@pytest.mark.parametrize("damping", [0.0, 0.2])
def test_lissa_measures_its_scale(damping):
    """σ = 1.1 x the largest eigenvalue, damping included; read off the effective damping λ + δ + σ/T."""
    solution = solve(Lissa(depth=200), quadratic(spectrum()), right_sides(2), "ggn", damping)
    scale = (solution.effective_damping - SHIFT - damping) * 200
    assert scale == pytest.approx(1.1 * (1.0 + SHIFT + damping), rel=1e-3)  # 30 subspace steps on four vectors, gap 1/12


@pytest.mark.filterwarnings("ignore::influx.errors.AccuracyWarning")
def test_lissa_with_sampled_batches_comes_near():
    fitted = problem("softmax")
    rhs = fitted.test_gradients().T.contiguous()
    wanted = torch.linalg.solve(answers("softmax").matrix("ggn", 0.1), rhs)
    sampled = Lissa(depth=400, batch_size=15)
    one, again, other = (solve(sampled, fitted, rhs, "ggn", 0.1, seed) for seed in (0, 0, 1))
    assert torch.equal(one.x, again.x)
    assert not torch.equal(one.x, other.x)
    # relative noise of one batch's curvature about 1/√15 = .26, averaged over the last 200 steps with some 10 steps of memory: .26/√20
    assert column_errors(one.x, wanted).max() < 0.06
    matrix = answers("softmax").matrix("ggn", 0.1)
    assert_close(one.residual, dense_residual(matrix, one.x, rhs), rtol=1e-8, atol=0)
    assert one.residual.min() > 1e-4  # it was sampled


@pytest.mark.filterwarnings("ignore::influx.errors.AccuracyWarning")
def test_lissa_repeats_are_averaged():
    fitted = problem("softmax")
    rhs = fitted.test_gradients().T.contiguous()
    wanted = torch.linalg.solve(answers("softmax").matrix("ggn", 0.1), rhs)
    once, often = (solve(Lissa(depth=80, batch_size=5, repeats=repeats), fitted, rhs, "ggn", 0.1) for repeats in (1, 9))
    assert often.iterations.tolist() == [720] * 6
    assert column_errors(often.x, wanted).mean() < 0.7 * column_errors(once.x, wanted).mean()  # 1/√9 in expectation


def test_lissa_draws_the_same_batches_whatever_memory_allows(monkeypatch):
    """Sampled batches of batch_size=auto do not depend on how many right-hand sides come at once."""
    monkeypatch.setattr(lissa, "AUTO_BUDGET", 0)
    monkeypatch.setattr(lissa, "FEWEST", 12)
    method, fitted = InverseCurvature(Lissa(depth=30)), problem("softmax")
    ample, scarce = (
        method.estimate(replace(fitted, memory=memory), None, 0).influence
        for memory in (2**30, 2 * 2 * method.solver.copies * fitted.theta.nbytes)
    )
    assert len(replace(fitted, memory=2 * 2 * method.solver.copies * fitted.theta.nbytes).columns(method.solver.copies)) == 3
    assert_close(scarce, ample, rtol=0, atol=1e-12)  # products of 2 or 6 columns


def test_lissa_batch_of_everything_is_not_sampled():
    fitted = problem("softmax")
    rhs = fitted.test_gradients().T.contiguous()
    auto, whole, more = (solve(Lissa(depth=100, batch_size=size), fitted, rhs, "ggn", 0.1).x for size in ("auto", 45, 1000))
    assert torch.equal(auto, whole)
    assert torch.equal(more, whole)


@pytest.mark.parametrize("batch_size", [SIZE, 4])
def test_lissa_detects_divergence(batch_size):
    lissa = Lissa(depth=1000, scale=0.3, batch_size=batch_size)
    with pytest.raises(NumericalError, match=r"lissa diverged at step \d+ with scale 0\.3: .*Raise method\.solver\.scale \(try 1\.2\)"):
        solve(lissa, quadratic(spectrum()), right_sides(2))


def test_lissa_detects_negative_curvature():
    fitted = problem("conv")
    with pytest.raises(NumericalError, match=r"lissa diverged .*or below 0.*method\.curvature=ggn"):
        solve(Lissa(depth=1000), fitted, fitted.test_gradients().T.contiguous()[:, :1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConjugateGradient(tolerance=0.0), r"method\.solver\.tolerance=0\.0 is not possible: it must be a number above 0"),
        (lambda: ConjugateGradient(max_iterations=0), r"method\.solver\.max_iterations=0"),
        (lambda: Lissa(depth=0), r"method\.solver\.depth=0"),
        (lambda: Lissa(scale="large"), r"method\.solver\.scale=large is not possible: it must be a number above 0, or auto"),
        (lambda: Lissa(batch_size=0), r"method\.solver\.batch_size=0"),
        (lambda: Lissa(repeats=0), r"method\.solver\.repeats=0"),
    ],
)
def test_a_wrong_option_is_refused(make, message):
    with pytest.raises(InfluxError, match=message):
        make()


def test_the_objective_of_the_quadratic_is_what_it_claims():
    """The oracle's own oracle: the regression above has the curvature that it was built to have."""
    for kind in ("hessian", "ggn"):
        dense = Curvature(quadratic(spectrum()), kind, 0.0).dense()
        assert_close(dense, spectrum() + SHIFT * torch.eye(SIZE, dtype=torch.float64), rtol=0, atol=1e-13)
    assert experiment("ridge").training.weight_decay == 0.05
