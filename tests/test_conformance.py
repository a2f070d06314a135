"""The contract of a method, checked for every YAML in conf/method: one suite, no edit for a new method.

A method passes by its YAML alone. What a method cannot take it says in `plan` (skipped here, with its message); every method takes the MLP.
A property that a method's definition rules out is listed in `EXEMPT`, with the reason.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from methods import AMPLE, CONF, METHODS, SEED, SHARED, converged, estimator, laboratory, node, planned, prepared, run, with_rows, world
from problems import NOTHING_KEPT, dense
from scipy.stats import spearmanr
from torch.testing import assert_close

from influx import stacking
from influx.errors import InfluxError
from influx.estimators import Estimator
from influx.estimators.external import External
from influx.estimators.random import Random
from influx.laboratory import Laboratory
from influx.measurements import LogProbability, MeanLoss
from influx.problem import Problem

ROWS = ("ridge", "mlp", "conv")

pytestmark = pytest.mark.filterwarnings("ignore::influx.errors.AccuracyWarning")  # small settings say that they are small

SCALE = {  # how far a calibrated method's slope may be from 1 at a convex optimum, where it is not the influence function itself
    # activations and output gradients taken as independent: exact for one output, 10-15 % off for three
    "ekfac": 0.2, "kfac": 0.2, "source": 0.2,
}  # fmt: skip

RANDOM = "each row's score is a draw of its own"
SETS = "random sets of rows are drawn by their places"
ROUNDING = "as released it inverts a singular matrix in float32: its scores are partly rounding (matched, it is held to `exact`)"
CUT = "where an order is cut off depends on all test examples together"
EXEMPT: dict[str, dict[str, str]] = {  # property -> method -> why its definition rules the property out
    "permuted rows": {
        "random": RANDOM, "subset": SETS, "datamodels": SETS, "data_shapley": SETS,
        "kronfluence": "the labels of its Fisher matrix are drawn by the rows' places", "as_published": ROUNDING,
    },
    "duplicates": {
        "random": RANDOM, "subset": SETS, "datamodels": SETS, "data_shapley": SETS,
        "turnover_dropout": "an example's mask is its place's, and so a copy's is another",
        "external": "a file names a place once", "as_published": ROUNDING,
    },
    "permuted columns": {"random": RANDOM, "as_published": ROUNDING},
    "company": {"random": RANDOM, "data_shapley": CUT, "as_published": ROUNDING},
    "blocks": {"as_published": ROUNDING},
    "float32": {"dattri": "the library draws another projection in each number type", "as_published": ROUNDING},
    "scale": {
        "datainf": "a mean of inverses is not the inverse of a mean: up to 20 times too much, by how alike the gradients are",
        "kronfluence": "a Fisher matrix of labels drawn for forty rows is not their Hessian",
    },
    "sign": {
        "random": RANDOM, "external": "the file's scores are made up here",
        "subset": SETS, "datamodels": SETS, "data_shapley": SETS, "turnover_dropout": "noise of two small models",
        "as_published": ROUNDING,
    },
    "higher is better": {"random": "knows nothing", "external": "the file is what it is"},
    "mean": {
        "random": RANDOM, "external": "the file has a column of its own for the whole set", "datamodels": "a lasso is not linear",
        "data_shapley": CUT, "as_published": ROUNDING,
        "grad_cos": "the cosine with a mean is no mean of cosines",
    },
}  # fmt: skip


@cache
def estimate(method: str, row: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return run(method, world(row, dtype))


def close(one: torch.Tensor, other: torch.Tensor, within: float = 1e-8) -> None:
    """Equal to the rounding of an iterative float64 method, relative to the largest score."""
    assert_close(one, other, rtol=0, atol=within * other.abs().max().item())


def unless_exempt(what: str) -> Any:
    """Every method, but those that the definition exempts."""
    return pytest.mark.parametrize("method", [method for method in METHODS if method not in EXEMPT[what]])


every_method = pytest.mark.parametrize("method", METHODS)
each_row = pytest.mark.parametrize("row", ROWS)


# ------------------------------------------------------------------------------------------------------------- the contract


@each_row
@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shape_type_and_numbers(method, row, dtype):
    made = world(row, dtype)
    found = estimate(method, row, dtype)
    assert found.shape == (made.data.n_train, made.data.n_test)
    assert found.dtype == dtype
    assert torch.isfinite(found).all()
    assert not found.requires_grad
    assert (found.abs().amax(0) > 0).all()


@every_method
def test_every_method_takes_a_small_network(method):
    assert estimate(method, "mlp").shape == (36, 6)


@each_row
@every_method
def test_a_plan_is_made_before_training_and_stays_the_same(method, row):
    """`laboratory(trained=False)` raises when anything but facts is asked for."""
    made = world(row)
    chosen, lab = estimator(method, made), laboratory(made, trained=False)
    before = planned(chosen, made.untrained(SEED), lab)
    after = chosen.plan(made.problem(made.train(SEED, SHARED), SEED), lab)
    for cost in (before, after):
        assert all(math.isfinite(value) and value >= 0 for value in asdict(cost).values())
    assert before == after


@every_method
def test_the_same_seed_gives_the_same_bytes_whatever_the_global_state(method):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    first = run(method, world("mlp"), store=NOTHING_KEPT)
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    others = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert torch.equal(run(method, world("mlp"), store=NOTHING_KEPT), first)
    assert torch.equal(torch.random.get_rng_state(), others[0])  # nor is it touched
    assert np.array_equal(np.random.get_state()[1], others[1])  # noqa: NPY002
    assert not torch.equal(states[0], others[0])


@every_method
def test_the_problem_is_left_alone(method):
    made = world("mlp")
    chosen, fitted, lab = prepared(method, made)
    before = {key: value.clone() for key, value in {**fitted.params, **fitted.module.state_dict()}.items()}
    chosen.estimate(fitted, lab, SEED)
    assert all(torch.equal(before[key], value) for key, value in {**fitted.params, **fitted.module.state_dict()}.items())
    assert not fitted.module.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in fitted.module.parameters())


# --------------------------------------------------------------------------------------------------------------- symmetries


@pytest.mark.parametrize("row", ["ridge", "softmax", "mlp"])
@unless_exempt("permuted rows")
def test_permuting_training_examples_permutes_rows(method, row):
    order = torch.randperm(world(row).data.n_train, generator=torch.Generator().manual_seed(0))
    close(run(method, with_rows(world(row), order)), estimate(method, row)[order])


@pytest.mark.parametrize("row", ["ridge", "softmax", "mlp"])
@unless_exempt("permuted columns")
def test_permuting_test_examples_permutes_columns(method, row):
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    shuffled = with_rows(world(row), torch.arange(world(row).data.n_train), order)
    close(run(method, shuffled), estimate(method, row)[:, order])


@unless_exempt("company")
def test_a_test_examples_scores_do_not_depend_on_the_others(method):
    alone = run(method, with_rows(world("mlp"), torch.arange(36), torch.tensor([2])))
    close(alone, estimate(method, "mlp")[:, 2:3], 1e-6)  # block solvers share a search space, to their tolerance


@pytest.mark.parametrize("row", ["ridge", "softmax", "mlp"])
@unless_exempt("duplicates")
def test_duplicated_training_examples_score_alike(method, row):
    rows = torch.cat([torch.arange(world(row).data.n_train), torch.tensor([0, 7])])
    found = run(method, with_rows(world(row), rows))
    close(found[-2:], found[[0, 7]])


@pytest.mark.parametrize("row", ["ridge", "mlp"])
@unless_exempt("higher is better")
def test_log_probability_is_minus_the_loss(method, row):
    close(run(method, replace(world(row), measurement=LogProbability())), -estimate(method, row), 1e-6)  # both solves of a lasso


@pytest.mark.parametrize("row", ["ridge", "mlp"])
@unless_exempt("mean")
def test_the_whole_sets_score_is_the_mean(method, row):
    whole = run(method, replace(world(row), measurement=MeanLoss()))
    assert whole.shape == (world(row).data.n_train, 1)
    # linear in the right-hand side, up to the tolerance that cg stops at (1e-8 of each side, times a condition of 70)
    close(whole, estimate(method, row).mean(1, keepdim=True), 1e-6)


@every_method
def test_a_whole_sets_measurement_has_one_column(method):
    found = run(method, replace(world("conv"), measurement=MeanLoss()))
    assert found.shape == (24, 1)
    assert torch.isfinite(found).all()


# ----------------------------------------------------------------------------------------------------------------- numerics


@each_row
@unless_exempt("float32")
def test_float32_ranks_like_float64(method, row):
    ours = [estimate(method, row, dtype).double() for dtype in (torch.float32, torch.float64)]
    for single, double in zip(*((1e4 * found / found.abs().max()).round().T for found in ours), strict=True):  # ties stay ties
        assert spearmanr(single, double).statistic >= 0.999  # one swapped pair of neighbours among 24 costs 0.0009


@pytest.mark.parametrize("row", ["mlp", "conv"])
@unless_exempt("blocks")
def test_blocks_and_memory_change_nothing(method, row, monkeypatch):
    made, whole = world(row), estimate(method, row)
    fitted, lab = made.untrained(SEED), laboratory(made, trained=False)
    rows, vectors = (3, 8) if row == "mlp" else (12, 24)
    monkeypatch.setattr(stacking, "BLOCK_BYTES", 12 * rows * fitted.bytes_per_row)  # where twelve layer outputs are kept: rows at a time
    chosen, memory = estimator(method, made), vectors * fitted.theta.nbytes
    while not _fits(chosen, replace(fitted, memory=memory), lab):
        memory *= 2
    close(run(method, made, memory=memory), whole, 1e-6)  # cg shares its search space among the columns of a block, to its tolerance


def _fits(chosen: Estimator, fitted: Problem, lab: Laboratory) -> bool:
    try:
        chosen.plan(fitted, lab)
    except InfluxError:
        return fitted.memory > AMPLE  # nothing to do with memory
    return True


# --------------------------------------------------------------------------------------------------------- sign and scale


@pytest.mark.parametrize("row", ["ridge", "softmax", "mlp"])
@unless_exempt("sign")
def test_removing_the_test_examples_own_copy_raises_its_loss(method, row):
    """A training example is helpful to itself: the influence of its removal on its own loss is positive."""
    made = world(row) if row == "mlp" else converged(row)
    data = made.data
    own = replace(data, test_inputs=data.train_inputs, test_targets=data.train_targets, test_index=data.train_index)
    found = run(method, replace(made, data=own)).diagonal()
    assert (found >= 0).all()
    assert (found > 0).any()


@pytest.mark.parametrize("row", ["ridge", "softmax"])
@unless_exempt("scale")
def test_a_calibrated_methods_scale_is_the_influence_functions(method, row):
    """At the optimum of a convex problem, where all of them aim at `(1/n) ∇m_tᵀ H⁻¹ ∇ℓ_i`; damping off."""
    undamped = {"damping": 0.0} if "damping" in node(method) else {}
    made = converged(row)
    chosen, fitted, lab = prepared(method, made, **undamped)
    if not chosen.calibrated:
        pytest.skip("right up to a factor")
    found = chosen.estimate(fitted, lab, SEED).influence
    wanted = dense(fitted).influence("hessian")
    slope = ((wanted * found).sum() / found.square().sum()).item()
    assert slope == pytest.approx(1, abs=SCALE.get(method, 1e-3))


# ----------------------------------------------------------------------------------------------------------------- the files


@every_method
def test_the_docstring_names_cost_and_memory(method):
    target = node(method)["_target_"]
    module, _, name = target.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    said = f"{inspect.getdoc(inspect.getmodule(cls))}\n{inspect.getdoc(cls)}"
    assert re.search(r"\bCosts?\b", said)
    assert re.search(r"\b[Mm]emory\b", said)
    assert re.search(r"\b(19|20)\d\d\b", said) or "baseline" in said or cls in (External, Random), "a source has a year"


@every_method
def test_a_file_begins_with_what_it_estimates(method):
    first = (CONF / "method" / f"{method}.yaml").read_text().splitlines()[0]
    assert re.fullmatch(r"# \S.{10,}[^.]", first)
