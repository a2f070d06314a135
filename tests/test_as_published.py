"""The released code's influence estimate: each switch against plain autograd in float64, and all of them right against the theory."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from methods import AMPLE, laboratory
from problems import NOTHING_KEPT, Dense, DropoutNet, dense, experiment, problem
from torch import Tensor
from torch.testing import assert_close

from influx.errors import AccuracyWarning, InfluxError, NumericalError
from influx.estimators.as_published import AsPublished
from influx.estimators.inverse_curvature import InverseCurvature
from influx.measurements import MeanLoss
from influx.models.base import last_layer
from influx.problem import Problem
from influx.solvers.exact import Exact
from influx.training.first_order import Sgd

pytestmark = pytest.mark.filterwarnings("ignore::influx.errors.AccuracyWarning")

SEED = 3
REGULAR = {"precision": "float64", "damping": 0.01}  # what makes the softmax's singular matrix one that has an inverse
MATCHED = {"precision": "float64", "weight_decay": "inside", "bias": "moving", "divisor": "n"}


def scores(fitted: Problem, seed: int = SEED, **switches: object) -> Tensor:
    return AsPublished(**switches).estimate(fitted, laboratory(experiment("mlp"), trained=False), seed).influence


def output_weights(fitted: Problem) -> Problem:
    """Only the output layer's weight may move."""
    return replace(fitted, selected=last_layer(fitted.module)[:1])


def reference(known: Dense, matrix: Tensor) -> Tensor:
    """∇ℓ_iᵀ A⁻¹ ∇m_t without a divisor."""
    return known.train_gradients @ torch.linalg.solve(matrix, known.test_gradients.T)


def shifted(known: Dense, fitted: Problem, shift: float, kind: str = "hessian") -> Tensor:
    """The matrix of the losses alone, with another shift in place of λ."""
    return known.matrix(kind, shift - fitted.weight_decay)


def same(found: Tensor, wanted: Tensor, within: float = 1e-9) -> None:
    """1e-9 of the largest: rounding of a solve with a condition number of at most 1e4."""
    assert_close(found, wanted, rtol=0, atol=within * wanted.abs().max().item())


# ------------------------------------------------------------------------------------------------------------- matched


@pytest.mark.parametrize("params", ["last_layer", "all"])
@pytest.mark.parametrize("name", ["ridge", "softmax", "mlp"])
def test_with_all_switches_right_it_is_the_influence_function(name, params):
    fitted = problem(name)
    theory = InverseCurvature(Exact(), "hessian", 0.0, params).estimate(fitted, laboratory(experiment(name), trained=False), SEED)
    same(scores(fitted, params=params, **MATCHED), theory.influence)


def test_the_divisor_is_the_factor_n():
    fitted = problem("mlp")
    same(scores(fitted, **{**MATCHED, "divisor": 1}), fitted.n_train * scores(fitted, **MATCHED))


@pytest.mark.parametrize("switches", [{}, {"divisor": "n", "sign": "minus"}, {"divisor": "n", "inverse": "lissa_summed"}])
def test_it_claims_a_scale_only_where_it_has_one(switches):
    assert not AsPublished(**switches).calibrated
    assert AsPublished(divisor="n").calibrated


# ------------------------------------------------------------------------------------------------ one switch at a time


@pytest.mark.parametrize("weight_decay", ["left_out", "inside"])
@pytest.mark.parametrize("name", ["softmax", "mlp"])
def test_weight_decay_and_damping_shift_the_matrix(name, weight_decay):
    fitted = problem(name)
    known = dense(output_weights(fitted))
    shift = 0.01 + (fitted.weight_decay if weight_decay == "inside" else 0.0)
    same(scores(fitted, weight_decay=weight_decay, **REGULAR), reference(known, shifted(known, fitted, shift)))


def test_a_bias_that_moves_is_in_the_matrix():
    fitted = problem("mlp")
    known = dense(fitted.select("last_layer"))
    same(scores(fitted, bias="moving", **REGULAR), reference(known, shifted(known, fitted, 0.01)))


@pytest.mark.parametrize("params", ["last_layer", "all"])
def test_a_dropped_bias_is_in_no_logit(params):
    fitted = problem("mlp")
    weight, bias = last_layer(fitted.module)
    without = replace(fitted, params={**fitted.params, bias: torch.zeros_like(fitted.params[bias])})
    chosen = (weight,) if params == "last_layer" else tuple(name for name in fitted.params if name != bias)
    known = dense(replace(without, selected=chosen))
    found = scores(fitted, bias="dropped", params=params, **REGULAR)
    same(found, reference(known, shifted(known, fitted, 0.01)))
    assert (found - scores(fitted, params=params, **REGULAR)).abs().max() > 1e-3 * found.abs().max()  # it is a switch


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_all_layers_have_a_hessian_and_a_gauss_newton_matrix(kind):
    fitted = problem("mlp")
    known = dense(replace(fitted, selected=tuple(name for name in fitted.params if name != last_layer(fitted.module)[1])))
    same(scores(fitted, params="all", curvature=kind, **REGULAR), reference(known, shifted(known, fitted, 0.01, kind)))


def test_the_sign_is_a_sign():
    fitted = problem("mlp")
    assert torch.equal(scores(fitted, sign="minus", **REGULAR), -scores(fitted, **REGULAR))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_precision_is_the_matrixs_whatever_the_runs_type(dtype):
    fitted = problem("ridge", dtype)
    known = dense(output_weights(problem("ridge")))
    wanted = reference(known, shifted(known, fitted, 0.0))
    found = scores(fitted, precision="float32", weight_decay="left_out")
    assert found.dtype == dtype
    same(found.double(), wanted, 1e-4)  # float32 with a condition number of about 10
    assert (found.double() - wanted).abs().max() > 1e-12 * wanted.abs().max()  # and float32 it is
    if dtype == torch.float64:
        same(scores(fitted, precision="float64"), wanted)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_solved_equations_are_the_inverse_but_for_rounding(precision):
    """Regular matrix: the same numbers. Singular one: gradients lie in its range, and only the inverse's rounding leaves it."""
    fitted = problem("mlp")
    regular = {"precision": precision, "damping": 0.01}
    within = {"float32": 1e-4, "float64": 1e-9}[precision]  # condition numbers below 1e3, the zero eigenvalues apart
    for way in ("solve", "eigen"):
        same(scores(fitted, inverse=way, **regular), scores(fitted, **regular), within)
    known = dense(output_weights(fitted))
    wanted = known.train_gradients @ torch.linalg.pinv(shifted(known, fitted, 0.0), rtol=1e-9) @ known.test_gradients.T
    same(scores(fitted, inverse="solve", precision=precision), wanted, within)
    off = (scores(fitted, precision=precision) - wanted).abs().max()
    assert off > 0.1 * wanted.abs().max()  # 1 and 4 times the largest were seen: double precision does not help an inverse


def test_as_released_the_softmax_matrix_is_singular_and_says_so():
    fitted = problem("mlp")
    with pytest.warns(AccuracyWarning, match="singular to working precision .* partly rounding"):
        made = AsPublished().estimate(fitted, laboratory(experiment("mlp"), trained=False), SEED)
    eigenvalues = torch.linalg.eigvalsh(shifted(dense(output_weights(fitted)), fitted, 0.0))
    assert made.facts["largest_eigenvalue"] == pytest.approx(eigenvalues[-1].item(), rel=1e-5)  # float32
    assert abs(made.facts["smallest_eigenvalue"]) < 1e-6 * eigenvalues[-1].item()
    assert made.facts["condition_number"] > 1e6
    (first, *_) = made.solves
    assert first["damping"] == 0.0


def test_a_regular_matrix_warns_of_nothing(recwarn):
    scores(problem("mlp"), **REGULAR)
    assert not [warning for warning in recwarn if issubclass(warning.category, AccuracyWarning)]


def test_the_mean_of_the_test_set_is_one_column():
    fitted = problem("mlp")
    whole = scores(replace(fitted, measurement=MeanLoss()), **REGULAR)
    same(whole, scores(fitted, **REGULAR).mean(1, keepdim=True))


def test_little_memory_takes_a_few_test_examples_at_a_time():
    fitted = problem("mlp")
    same(scores(replace(fitted, memory=2 * 5 * 8 * 12 * 2), **REGULAR), scores(fitted, **REGULAR))  # two test examples of 12 parameters


# ----------------------------------------------------------------------------------------------------------- shuffling


def test_shuffled_scores_are_those_of_other_examples():
    fitted = problem("mlp")
    straight, shuffled = scores(fitted, **REGULAR), scores(fitted, index="shuffled", **REGULAR)
    place = (shuffled.unsqueeze(1) == straight.unsqueeze(0)).all(2).int().argmax(1)
    assert sorted(place.tolist()) == list(range(fitted.n_train))
    assert (place == torch.arange(fitted.n_train)).sum() <= 4  # a random permutation keeps one place on average
    assert torch.equal(scores(fitted, index="shuffled", **REGULAR), shuffled)
    assert not torch.equal(scores(fitted, SEED + 1, index="shuffled", **REGULAR), shuffled)


# --------------------------------------------------------------------------------------------------------------- lissa

SERIES = {"precision": "float64", "inverse": "lissa", "scale": 2.0, "shrink": 0.05}  # λ_max of these problems is below 1


@pytest.mark.parametrize("params", ["last_layer", "all"])
def test_lissas_fixed_point_is_damped_by_shrink_times_scale(params):
    fitted = problem("mlp")
    found = scores(fitted, tolerance=0.0, depth=2000, params=params, curvature="ggn", **SERIES)  # 0.95^2000 of the start is left: nothing
    same(found, scores(fitted, precision="float64", damping=0.1, params=params, curvature="ggn"))


def by_hand(fitted: Problem, depth: int) -> tuple[Tensor, Tensor]:
    """The last iterate's scores, and those of the sum of all iterates."""
    known = dense(output_weights(fitted))
    matrix, v = shifted(known, fitted, 0.0), known.test_gradients.T
    h, total = v, torch.zeros_like(v)
    for _ in range(depth):
        h = v + 0.95 * h - matrix @ h / 2.0
        total = total + h
    return known.train_gradients @ h / 2.0, known.train_gradients @ total / 2.0


def test_lissa_keeps_the_last_iterate_and_the_defect_sums_them():
    fitted = problem("mlp")
    last, total = by_hand(fitted, 7)
    same(scores(fitted, depth=7, tolerance=0.0, **SERIES), last)
    same(scores(fitted, depth=7, tolerance=0.0, **{**SERIES, "inverse": "lissa_summed"}), total)


def test_lissa_stops_a_column_when_its_norm_stands_still():
    fitted = problem("mlp")
    made = AsPublished(tolerance=1e-3, depth=5000, **SERIES).estimate(fitted, laboratory(experiment("mlp"), trained=False), SEED)
    steps = [row["iterations"] for row in made.solves]
    assert max(steps) < 5000
    for t, count in enumerate(steps):
        same(made.influence[:, t], by_hand(fitted, count)[0][:, t])
    assert all(row["damping"] == pytest.approx(0.1) for row in made.solves)


def test_lissa_that_diverges_says_what_to_raise():
    with pytest.raises(NumericalError, match=r"lissa diverged with method.scale=0.001: raise method.scale"):
        scores(problem("mlp"), inverse="lissa", scale=1e-3, tolerance=0.0, depth=200)


# ------------------------------------------------------------------------------------------------------------- dropout


def with_dropout(p: float) -> Problem:
    made = experiment("mlp", model=DropoutNet(p), training=Sgd(lr=0.1, epochs=3, batch_size=None, weight_decay=0.05))
    return made.problem(made.train(SEED, NOTHING_KEPT), SEED)


def test_active_dropout_draws_by_the_seed():
    fitted = with_dropout(0.5)
    active, inactive = scores(fitted, **REGULAR), scores(fitted, dropout="inactive", **REGULAR)
    assert (active - inactive).abs().max() > 0.01 * inactive.abs().max()
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    assert torch.equal(scores(fitted, **REGULAR), active)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(scores(fitted, SEED + 1, **REGULAR), active)
    assert not any(part.training for part in fitted.module.modules())


def test_active_dropout_that_drops_nothing_changes_nothing():
    fitted = with_dropout(0.0)
    assert torch.equal(scores(fitted, **REGULAR), scores(fitted, dropout="inactive", **REGULAR))


def test_inactive_dropout_is_the_network_in_evaluation_mode():
    fitted = with_dropout(0.5)
    known = dense(output_weights(fitted))
    same(scores(fitted, dropout="inactive", **REGULAR), reference(known, shifted(known, fitted, 0.01)))


# ------------------------------------------------------------------------------------------------------------ refusals


def test_dropout_in_lower_layers_is_refused():
    lab = laboratory(experiment("mlp"), trained=False)
    with pytest.raises(InfluxError, match=r"method.dropout=active works with method.params=last_layer only: set method.dropout=inactive"):
        AsPublished(params="all").plan(with_dropout(0.5), lab)
    AsPublished(params="all", dropout="inactive").plan(with_dropout(0.5), lab)


def test_a_matrix_that_does_not_fit_is_refused():
    lab = laboratory(experiment("mlp"), trained=False)
    with pytest.raises(InfluxError, match=r"method.inverse=dense works on a 12 x 12 matrix, .* use method.inverse=lissa"):
        AsPublished().plan(replace(problem("mlp"), memory=1000), lab)
    AsPublished(inverse="lissa").plan(replace(problem("mlp"), memory=1000), lab)
    AsPublished().plan(replace(problem("mlp"), memory=AMPLE), lab)


def test_a_matrix_without_inverse_is_refused_with_the_remedy():
    fitted = problem("mlp")
    certain = {name: 1e6 * value if name == last_layer(fitted.module)[0] else value for name, value in fitted.params.items()}
    with pytest.raises(
        NumericalError, match=r"the hessian has no inverse in float32: set method.weight_decay=inside .* method.damping above 0"
    ):
        scores(replace(fitted, params=certain))


@pytest.mark.parametrize(
    "switch", [{"precision": "float16"}, {"bias": "free"}, {"sign": -1}, {"divisor": 2}, {"shrink": 1.0}, {"index": "sorted"}]
)
def test_a_wrong_switch_is_refused(switch):
    with pytest.raises(InfluxError, match=f"method.{next(iter(switch))}=.* is not possible: it must be "):
        AsPublished(**switch)


def test_from_the_command_line_the_record_has_the_eigenvalues(tiny):
    ran = tiny("estimate", "method=as_published")
    assert ran.status == 0, ran.err
    facts = json.loads((ran.folder / "run.json").read_text())["facts"]
    assert facts["condition_number"] > 1e5
    assert set(facts) == {"smallest_eigenvalue", "largest_eigenvalue", "condition_number", "test_accuracy"}
