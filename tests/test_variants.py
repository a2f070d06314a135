"""RelatIF, self-influence and renormalised influence: their formulas in dense float64, refits, and what must not change them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import Run
from problems import TABLE, Dense, affine, answers, cast, dense, problem, ridge_solution, with_intercept
from torch.testing import assert_close

from influx.errors import InfluxError, NumericalError
from influx.estimators import Estimator
from influx.estimators.inverse_curvature import InverseCurvature, normalise, training_solves
from influx.estimators.relatif import RelatIF
from influx.estimators.renormalized import Renormalized
from influx.estimators.self_influence import SelfInfluence
from influx.measurements import LogProbability, MeanLoss
from influx.problem import Examples, Problem
from influx.solvers.arnoldi import Arnoldi
from influx.solvers.cg import ConjugateGradient
from influx.solvers.datainf import DataInf
from influx.solvers.exact import Exact
from influx.solvers.nystrom import Nystrom

FORMS = {
    "theta": lambda solver, *options: RelatIF(solver, *options, kind="theta"),
    "loss": lambda solver, *options: RelatIF(solver, *options, kind="loss"),
    "self": SelfInfluence,
    "renormalized": Renormalized,
}
CLEAR = ["ridge", "softmax", "mlp"]


def run(method: Estimator, fitted: Problem) -> torch.Tensor:
    return method.estimate(fitted, None, 0).influence  # type: ignore[arg-type]


def wanted(form: str, known: Dense, kind: str, damping: float) -> torch.Tensor:
    g, m, inverse = known.train_gradients, known.test_gradients, torch.linalg.inv(known.matrix(kind, damping))
    influence = g @ inverse @ m.T / len(g)
    own = torch.einsum("ip,pq,iq->i", g, inverse, g)
    divisors = {"theta": (g @ inverse).norm(dim=1), "loss": own.sqrt(), "renormalized": g.norm(dim=1)}
    if form == "self":
        return (own / len(g)).unsqueeze(1).expand(-1, len(m))
    return influence / divisors[form].unsqueeze(1)


def without_gradients(fitted: Problem, rows: list[int]) -> Problem:
    """Regression targets moved to what is predicted: these rows' gradients are 0 exactly."""
    targets = fitted.train.targets.clone()
    with torch.no_grad():
        targets[rows] = fitted.outputs(fitted.theta, fitted.train.inputs)[rows, 0]
    return replace(fitted, train=Examples(fitted.train.inputs, targets))


# ----------------------------------------------------------------------------------------------------------- the formulas


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
@pytest.mark.parametrize("name", CLEAR)
@pytest.mark.parametrize("form", FORMS)
def test_the_formula_in_dense_algebra(form, name, kind):
    ours = run(FORMS[form](Exact(), kind, 0.02), problem(name))
    # dense float64 algebra of condition below 100
    assert_close(ours, wanted(form, answers(name), kind, 0.02), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("solver", "curvature"),
    [(ConjugateGradient(1e-11), "ggn"), (Arnoldi(200), "ggn"), (Nystrom(200), "ggn"), (DataInf(), "fisher")],
    ids=["cg", "arnoldi", "nystrom", "datainf"],
)
@pytest.mark.parametrize("form", FORMS)
def test_any_solver_will_do(form, solver, curvature):
    """The solver's own inverse, applied to the identity, in the formula."""
    fitted, known = problem("softmax"), answers("softmax")
    inverse = InverseCurvature(solver, curvature, 0.02)
    (solved,) = training_solves(inverse, fitted, 0)
    x = solved.x * solved.norms  # [P, n]
    own = (known.train_gradients * x.T).sum(1)
    influence = run(inverse, fitted)
    expected = {
        "theta": influence / x.norm(dim=0).unsqueeze(1),
        "loss": influence / own.sqrt().unsqueeze(1),
        "self": (own / fitted.n_train).unsqueeze(1).expand(-1, 6),
        "renormalized": influence / known.train_gradients.norm(dim=1).unsqueeze(1),
    }[form]
    ours = run(FORMS[form](solver, curvature, 0.02), fitted)
    assert_close(ours, expected, rtol=0, atol=1e-8 * expected.abs().max().item())  # cg's tolerance, times a condition of 30
    if curvature == "ggn":
        assert_close(ours, wanted(form, known, "ggn", 0.02), rtol=0, atol=1e-8 * expected.abs().max().item())


def test_self_influence_is_the_leave_one_out_change_of_a_ridge_rows_own_loss():
    """To first order in leverage: e²h against the refit's ½e²/(1 − h)² − ½e², whose ratio is 1 + 3h/2 + ..."""
    fitted = problem("ridge")
    x, y = with_intercept(fitted.train.inputs), fitted.train.targets.numpy()
    errors = y - x @ affine(fitted.params)[0]
    ours = run(SelfInfluence(Exact()), fitted)[:, 0].numpy()
    for row in range(len(y)):
        weights = np.ones(len(y))
        weights[row] = 0
        refitted = ridge_solution(x, y, fitted.weight_decay, weights)
        change = 0.5 * (y[row] - x[row] @ refitted) ** 2 - 0.5 * errors[row] ** 2
        leverage = ours[row] / errors[row] ** 2
        assert change == pytest.approx(errors[row] ** 2 * 0.5 * (1 / (1 - leverage) ** 2 - 1), rel=1e-8)  # closed form, gradient 1e-12
        assert ours[row] <= change


def test_self_influence_finds_a_flipped_label():
    fitted = problem("binary")
    with torch.no_grad():
        losses = fitted.losses(fitted.theta, fitted.train)
    targets, row = fitted.train.targets.clone(), int(losses.argmin())
    targets[row] = 1 - targets[row]  # the row that the model was surest of
    flipped = replace(fitted, train=Examples(fitted.train.inputs, targets))
    assert int(run(SelfInfluence(Exact()), flipped)[:, 0].argmax()) == row


@pytest.mark.parametrize(("measurement", "sign"), [(LogProbability(), -1.0), (MeanLoss(), 1.0)], ids=["log_probability", "mean_loss"])
def test_self_influence_knows_the_measurements_sign_alone(measurement, sign):
    fitted = replace(problem("softmax"), measurement=measurement)
    ours = run(SelfInfluence(Exact()), fitted)
    assert ours.shape == (TABLE["softmax"].n, fitted.n_test)
    assert_close(ours[:, 0], sign * wanted("self", answers("softmax"), "ggn", 0.0)[:, 0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("form", ["theta", "loss", "renormalized"])
def test_the_whole_sets_score_is_the_mean(form):
    fitted = problem("softmax")
    each, whole = (run(FORMS[form](Exact()), part) for part in (fitted, replace(fitted, measurement=MeanLoss())))
    assert_close(whole, each.mean(1, keepdim=True), rtol=0, atol=1e-13)


# --------------------------------------------------------------------------------------------------------- invariances


@pytest.mark.parametrize("form", ["theta", "loss", "renormalized"])
def test_the_length_of_a_training_gradient_does_not_matter(form):
    """In least squares g_i = −e_i x_i, and the curvature knows nothing of e_i: doubling the error moves nothing."""
    fitted = problem("ridge")
    with torch.no_grad():
        predicted = fitted.outputs(fitted.theta, fitted.train.inputs)[:, 0]
    targets = predicted + 1e3 * (fitted.train.targets - predicted)
    longer = replace(fitted, train=Examples(fitted.train.inputs, targets))
    method = FORMS[form](Exact())
    assert_close(run(method, longer), run(method, fitted), rtol=0, atol=1e-11)  # an error of 1e-3 keeps 13 digits
    plain = InverseCurvature(Exact())
    assert_close(run(plain, longer), 1e3 * run(plain, fitted), rtol=1e-9, atol=0)  # the influence itself does move


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_an_example_without_a_gradient_scores_nothing(form, dtype):
    fitted = cast(without_gradients(problem("ridge"), [4, 17]), torch.float64)
    fitted = without_gradients(cast(fitted, dtype), [4, 17])
    ours = run(FORMS[form](Exact()), fitted)
    assert torch.isfinite(ours).all()
    assert not ours[[4, 17]].any()
    assert ours[[0, 1, 2, 3, 5]].abs().amin(0).min() > 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("solver", [Exact(), Nystrom(10), Arnoldi(10)], ids=["exact", "nystrom", "arnoldi"])
@pytest.mark.filterwarnings("ignore::influx.errors.AccuracyWarning")
def test_memory_changes_nothing(solver, form):
    """Five training examples a block, one test example a column."""
    fitted = problem("mlp")
    method = FORMS[form](solver, "ggn", 0.05)
    small = replace(fitted, memory=10 * solver.copies * fitted.theta.nbytes)
    assert len(list(training_solves(InverseCurvature(solver), small, 0))) > 5
    whole = run(method, fitted)
    assert_close(run(method, small), whole, rtol=0, atol=1e-11 * whole.abs().max().item())  # products of another width


@pytest.mark.parametrize("form", FORMS)
def test_float32(form):
    single, double = (run(FORMS[form](Exact(), "ggn", 0.02), problem("mlp", dtype)) for dtype in (torch.float32, torch.float64))
    assert single.dtype == torch.float32
    assert_close(single.double(), double, rtol=0, atol=1e-4 * double.abs().max().item())  # 1e-7 times a condition of 100


def test_normalise_survives_squares_that_vanish():
    tiny = torch.tensor([[3e-30, 4e-30], [0.0, 0.0], [0.0, -2e20]], dtype=torch.float32)
    lengths = normalise(tiny)
    assert_close(lengths, torch.tensor([5e-30, 0.0, 2e20]))
    assert_close(tiny, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]]))


@pytest.mark.parametrize("form", FORMS)
def test_params_are_the_last_layers_alone(form):
    fitted = problem("mlp")
    ours = run(FORMS[form](Exact(), "ggn", 0.02, "last_layer"), fitted)
    block = dense(fitted.select("last_layer"))
    assert len(block.ggn) < fitted.n_params
    assert_close(ours, wanted(form, block, "ggn", 0.02), rtol=1e-9, atol=1e-12)  # as above


# -------------------------------------------------------------------------------------------------- reports and refusals


@pytest.mark.parametrize("form", FORMS)
def test_solves_are_reported(form):
    fitted = problem("softmax")
    made = FORMS[form](ConjugateGradient())
    solves = made.estimate(fitted, None, 0).solves  # type: ignore[arg-type]
    assert len(solves) == (6 if form == "renormalized" else 45)
    assert all(row["converged"] and row["residual"] <= 1e-8 for row in solves)
    assert {row.get("name") for row in solves} == {None if form == "renormalized" else "iHVP of a training gradient"}
    assert made.calibrated is False
    cost = made.plan(fitted, None)  # type: ignore[arg-type]
    assert cost.gradients >= 51
    assert cost.nbytes > 0


@pytest.mark.filterwarnings("ignore::influx.errors.AccuracyWarning")
@pytest.mark.parametrize("form", ["loss", "self"])
def test_an_indefinite_hessian_is_refused_where_its_form_is_a_square(form):
    fitted = problem("mlp")
    fitted = replace(fitted, params={key: value.flip(0) for key, value in fitted.params.items()})  # far from the minimum
    assert torch.linalg.eigvalsh(dense(fitted).hessian)[0] < -0.01
    with pytest.raises(NumericalError, match=r"the self-influence -.*: use another method.curvature \(fisher, or ggn\), or raise"):
        run(FORMS[form](Exact(), "hessian"), fitted)
    assert torch.isfinite(run(FORMS["theta"](Exact(), "hessian"), fitted)).all()


@pytest.mark.parametrize("form", FORMS)
def test_a_plan_refuses_what_its_solver_refuses(form):
    fitted = problem("mlp")
    with pytest.raises(InfluxError, match=r"DataInf inverts fisher, not ggn: set method\.curvature=fisher"):
        FORMS[form](DataInf()).plan(fitted, None)  # type: ignore[arg-type]
    with pytest.raises(InfluxError, match=r"method=exact works on a 31 x 31 matrix"):
        FORMS[form](Exact()).plan(replace(fitted, memory=1000), None)  # type: ignore[arg-type]
    with pytest.raises(InfluxError, match=r"method\.damping=-1 is not possible"):
        FORMS[form](Exact(), "ggn", -1)


def test_a_wrong_kind_is_refused():
    with pytest.raises(InfluxError, match=r"method\.kind=parameters is not possible: it must be one of theta, loss"):
        RelatIF(Exact(), kind="parameters")


# -------------------------------------------------------------------------------------------------- on the command line


def test_a_solver_is_chosen_by_its_place(run_influx: Run, tmp_path: Path) -> None:
    line = ("method=relatif", "solver@method.solver=lissa", "method.solver.depth=7")
    config = yaml.safe_load(run_influx("validate", *line, "--cfg", "job", cwd=tmp_path).out)
    assert config["method"]["solver"]["_target_"] == "influx.solvers.lissa.Lissa"
    assert config["method"]["solver"]["depth"] == 7
    assert re.search(r"^solver: arnoldi, cg, datainf,.* nystrom", run_influx("estimate", "--help", cwd=tmp_path).out, re.MULTILINE)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("solver=cg", r"'solver' is chosen inside another group: write solver@method\.solver=\.\.\."),
        ("solver@method.solver=arnoldy", r"solver=arnoldy is not known; choose from arnoldi, .*\. Did you mean 'arnoldi'\?"),
        (
            "solver@method.solver=lissa method.solver.depht=3",
            r"there is no key 'method\.solver\.depht'; .* Did you mean 'method\.solver\.depth'\?",
        ),
        ("solver@method.solver=nystrom method.solver.rank=0", r"method\.solver\.rank=0 is not possible: it must be a whole number"),
        ("method=relatif method.kind=both", r"method\.kind=both is not possible: it must be one of theta, loss\."),
    ],
)
def test_a_wrong_choice_of_solver_is_one_clear_line(run_influx: Run, tmp_path: Path, line: str, message: str) -> None:
    ran = run_influx("estimate", *line.split(" "), cwd=tmp_path)
    assert ran.status == 2
    assert re.fullmatch(f"influx: {message}.*", ran.err.strip())


def test_a_chosen_solver_is_recorded_and_repeated(tiny: Run, tmp_path: Path, run_influx: Run) -> None:
    ran = tiny("estimate", "method=relatif", "solver@method.solver=exact")
    assert ran.status == 0, ran.err
    record = json.loads((ran.folder / "run.json").read_text())
    assert record["choices"]["solver@method.solver"] == "exact"
    rows = (ran.folder / "diagnostics.csv").read_text().splitlines()
    assert sum(row.startswith("solve,iHVP of a training gradient,,") for row in rows) == 60
    again = run_influx("rerun", str(ran.folder), cwd=tmp_path)
    assert again.status == 0, again.err
    one, other = (np.load(folder / "influence.npz")["influence"] for folder in (ran.folder, again.folder))
    assert np.array_equal(one, other)
    assert json.loads((again.folder / "run.json").read_text())["choices"] == record["choices"]
