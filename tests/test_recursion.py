"""The forward recursion of hypergradients and its options: against the recursion written out, the adjoint form, and its own roots."""

from __future__ import annotations

import math
import shutil
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import NOTHING_KEPT, experiment
from test_hypergradient import MEMORY, RUNS, SEED, Run, distance, known, run

from influx.errors import InfluxError
from influx.estimators import hypergradient
from influx.estimators.as_published import AsPublished
from influx.estimators.hypergradient import Hypergradient
from influx.estimators.recursion import forward, memory_steps, read_out, transition
from influx.laboratory import Laboratory
from influx.measurements import Margin
from influx.store import Store
from influx.training.first_order import Sgd
from influx.trajectory import Descent

DECAYS = ("optimizer", "released")


def written_out(case: Run, options: Sgd, hessian: str, factor: float) -> torch.Tensor:
    """The recursion an example at a time, in numpy, with dense Hessians from torch.autograd and `factor` times the weight decay."""
    n, p = case.fitted.n_train, case.fitted.n_params
    decay, mu = factor * options.weight_decay, options.momentum
    h, d = np.zeros((2, n, p))
    for step in case.record.trajectory.forward():
        here = case.fitted.at(dict(step.params))
        rows = step.rows
        batch = here.train.take(rows)
        curved = torch.autograd.functional.hessian(lambda t, here=here, batch=batch: here.losses(t, batch).mean(), here.theta).numpy()
        pushed = decay * h + (h @ curved if hessian == "exact" else 0.0)
        pushed[rows] += here.loss_gradients(batch).numpy() / len(rows)
        d = mu * d + pushed
        h = h - step.lr * (pushed + mu * d if options.nesterov else d)
    return torch.from_numpy(-h @ case.fitted.test_gradients().numpy().T)


# ------------------------------------------------------------------------------------------------------------- its decay


@pytest.mark.parametrize("training", ["momentum and decay", "nesterov", "step"])
@pytest.mark.parametrize(("hessian", "decay"), list(product(("exact", "none"), DECAYS)))
def test_either_decay_is_the_recursion_written_out(training, hessian, decay):
    case, options = known("mlp", training), RUNS[training]
    expected = written_out(case, options, hessian, 36.0 if decay == "released" else 1.0)
    for form in ("forward", "adjoint"):
        made = case.estimate(Hypergradient(hessian, form, decay)).influence
        assert distance(made, expected) < 1e-11  # rounding of 25 steps, Hessians taken in two ways


@pytest.mark.parametrize("training", RUNS)
@pytest.mark.parametrize(("hessian", "state"), list(product(("exact", "none"), ("memory", "disk"))))
def test_forward_is_adjoint_under_the_released_decay_too(training, hessian, state):
    case = known("mlp", training)
    one, other = Hypergradient(hessian, "forward", "released", state), Hypergradient(hessian, "adjoint", "released")
    assert distance(case.estimate(one).influence, case.estimate(other).influence) < 1e-12


def test_the_released_decay_is_another_estimate_of_the_same_training():
    case = known("mlp", "momentum and decay")
    ours, theirs = (case.estimate(Hypergradient("exact", "adjoint", decay)) for decay in DECAYS)
    assert distance(theirs.influence, ours.influence) > 0.1
    assert theirs.facts["memory_steps"] < ours.facts["memory_steps"]
    undecayed = known("mlp", "momentum")
    assert torch.equal(*(undecayed.estimate(Hypergradient(weight_decay=decay)).influence for decay in DECAYS))  # n times nothing


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Hypergradient(weight_decay="inside"), r"method\.weight_decay=inside is not possible.* one of optimizer, released"),
        (lambda: Hypergradient(weight_decay="optimiser"), r"one of optimizer, released\..*Did you mean 'optimizer'"),
        (lambda: AsPublished(weight_decay="released"), r"method\.weight_decay=released is not possible.* one of left_out, inside"),
        (lambda: Hypergradient(state="disk"), r"method\.state=disk is about h_i.* use method\.form=forward"),
        (lambda: Hypergradient(keep=True), r"method\.keep=true is about h_i.* use method\.form=forward"),
        (lambda: Hypergradient(form="forward", state="tape"), r"method\.state=tape is not possible.* one of memory, disk"),
    ],
)
def test_words_of_another_method_or_form_are_refused(made, message):
    with pytest.raises(InfluxError, match=message):
        made()


# --------------------------------------------------------------------------------------------------------------- its memory


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("mu", "lr", "decay"), [(0.9, 0.01, 1.0), (0.9, 0.1, 0.02), (0.5, 0.3, 1.5), (0.0, 0.1, 0.5), (0.9, 1e-3, 1.0)])
def test_memory_is_the_larger_root_of_the_recursion(mu, lr, decay, nesterov):
    """Against the polynomials of the file's head, and against a recursion that is simply run."""
    made = memory_steps(Descent(mu, nesterov, decay), lr)
    reach = lr * (1 + mu) if nesterov else lr
    roots = np.roots([1.0, -(1 + mu - reach * decay), mu * (1 - lr * decay) if nesterov else mu])
    assert made == pytest.approx(-1 / math.log(np.abs(roots).max()), rel=1e-9)
    h, d, sizes = 1.0, 0.0, []
    for _ in range(20_000):
        pushed = decay * h
        d = mu * d + pushed
        h -= lr * (pushed + mu * d if nesterov else d)
        sizes.append(math.hypot(h, d))
        if sizes[-1] < 1e-200:
            break
    late = np.log(sizes[len(sizes) // 2 :])
    assert -1 / np.polyfit(np.arange(len(late)), late, 1)[0] == pytest.approx(made, rel=0.02)  # complex roots swing about the line


def test_what_is_never_forgotten_has_no_length():
    assert memory_steps(Descent(0.9, False, 0.0), 0.1) == math.inf
    assert memory_steps(Descent(0.0, False, 30.0), 0.1) == math.inf  # |1 − ηλ| = 2: it grows
    assert memory_steps(Descent(0.0, False, 10.0), 0.1) == 0.0  # 1 − ηλ = 0: a step forgets all
    assert "memory_steps" not in known("mlp", "momentum").estimate(Hypergradient()).facts


def test_the_transition_is_a_step():
    """One step of plain numbers, as the recursion's two lines have it."""
    rng = np.random.default_rng(0)
    for nesterov in (False, True):
        h, d, gradient = rng.normal(size=3)
        matrix, reach = transition(Descent(0.8, nesterov, 0.3), 0.07)
        pushed = 0.3 * h + gradient
        moved = 0.8 * d + pushed
        expected = [h - 0.07 * (pushed + 0.8 * moved if nesterov else moved), moved]
        assert matrix @ [h, d] + gradient * np.array([reach, 1.0]) == pytest.approx(expected, rel=1e-14)


# ------------------------------------------------------------------------------------------------------ where its state is


@pytest.mark.parametrize("hessian", ["exact", "none"])
def test_the_disk_changes_no_bit_and_keeps_nothing(hessian, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    case = known("mlp", "nesterov")
    memory, disk = (case.estimate(Hypergradient(hessian, "forward", state=state)) for state in ("memory", "disk"))
    assert torch.equal(memory.influence, disk.influence)
    assert disk.facts["disk_bytes"] == 2 * 36 * 31 * 8
    assert "disk_bytes" not in memory.facts
    assert list(tmp_path.iterdir()) == []


def test_the_disk_is_free_again_after_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    case, during = known("mlp", "nesterov"), []

    def fails(*_: object, **__: object) -> None:
        during.extend(tmp_path.rglob("*"))
        raise KeyboardInterrupt

    monkeypatch.setattr("influx.estimators.recursion.hessian_product", fails)
    with pytest.raises(KeyboardInterrupt):
        case.estimate(Hypergradient(form="forward", state="disk"))
    assert during == []  # no name is left even while it runs
    assert list(tmp_path.iterdir()) == []


def test_on_disk_only_what_is_worked_on_counts_as_memory(monkeypatch):
    made = experiment("mlp", training=RUNS["sgd"])
    record = Laboratory(made, NOTHING_KEPT, 0, MEMORY)
    whole = 2 * 36 * 31 * 8
    free = Hypergradient("none", "forward", state="disk")
    assert free.plan(made.untrained(0), record).nbytes == 4 * 8 * 31 * 8  # four P-vectors a row of a batch of 8
    assert free.plan(made.untrained(0, whole - 1), record).nbytes < whole
    usage = shutil.disk_usage(tempfile.gettempdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=whole - 1))
    with pytest.raises(InfluxError, match=r"method\.state=disk writes 17\.4 KiB into .* where 17\.4 KiB are free: set TMPDIR"):
        free.plan(made.untrained(0), record)


@pytest.mark.parametrize("hessian", ["exact", "none"])
@pytest.mark.parametrize("training", ["nesterov", "step", "one row a step"])
def test_tracked_rows_are_those_rows_of_all(training, hessian):
    case = known("mlp", training)
    tracked, exact = torch.tensor([30, 2, 17]), hessian == "exact"
    few = forward(case.fitted, case.record.trajectory, exact=exact, tracked=tracked)
    every = forward(case.fitted, case.record.trajectory, exact=exact)
    assert few.shape == (3, 31)
    assert distance(few, every[tracked]) < 1e-14
    assert distance(read_out(case.fitted, few), case.estimate(Hypergradient(hessian)).influence[tracked]) < 1e-12


@pytest.mark.parametrize("hessian", ["exact", "none"])
def test_blocks_of_examples_change_no_number(hessian, monkeypatch):
    case = known("mlp", "nesterov")
    whole = forward(case.fitted, case.record.trajectory, exact=hessian == "exact")
    monkeypatch.setattr("influx.stacking.BLOCK_BYTES", 4 * 31 * 8 * 5)  # five examples at a time
    parts = forward(case.fitted, case.record.trajectory, exact=hessian == "exact")
    assert distance(parts, whole) < 1e-14


# ---------------------------------------------------------------------------------------------------------- what is kept


def stored(tmp_path: Path, **changes: object) -> Run:
    made = run(RUNS["nesterov"], **changes)
    return replace(made, record=replace(made.record, store=Store(tmp_path)))


@pytest.mark.parametrize("hessian", ["exact", "none"])
def test_what_is_kept_serves_another_measurement_without_a_recursion(hessian, tmp_path, monkeypatch):
    method = Hypergradient(hessian, "forward", keep=True)
    case = stored(tmp_path)
    first = case.estimate(method)
    fresh = known("mlp", "nesterov").estimate(Hypergradient(hessian, "forward"))
    assert torch.equal(first.influence, fresh.influence)
    expected = known("mlp", "nesterov").estimate(Hypergradient(hessian, "forward"), measurement=Margin())

    def again(*_: object, **__: object) -> None:
        raise AssertionError("the training was followed again")

    monkeypatch.setattr(hypergradient, "forward", again)
    few = stored(tmp_path, measurement=Margin())
    cut = replace(few.fitted, test=few.fitted.test.take(slice(0, 2)))
    made = replace(few, fitted=cut).estimate(method).influence
    assert distance(made, expected.influence[:, :2]) < 1e-14  # a product of other sizes
    assert "spearman_without_hessian" not in first.facts  # it would follow the training again


def test_other_options_or_seeds_are_not_taken_for_what_was_kept(tmp_path):
    case = stored(tmp_path)
    methods = [Hypergradient(h, "forward", decay, keep=True) for h, decay in product(("exact", "none"), DECAYS)]
    made = [case.estimate(method).influence for method in methods]
    assert len(list((tmp_path / "hypergradients").rglob("*.safetensors"))) == 4
    assert min(distance(a, b) for a in made for b in made if a is not b) > 1e-3
    other = replace(case.record, seed=SEED + 1)
    keys = [record.experiment.key(record.seed, hypergradients={}) for record in (case.record, other)]
    assert keys[0] != keys[1]


def test_keeping_counts_as_memory_and_needs_no_store():
    made = experiment("mlp", training=RUNS["sgd"])
    record = Laboratory(made, NOTHING_KEPT, 0, MEMORY)
    needed = 5 * 36 * 31 * 8
    method = Hypergradient("none", "forward", keep=True)
    assert method.plan(made.untrained(0, needed), record).nbytes == needed
    with pytest.raises(InfluxError, match=r"method\.keep=true takes 3 more copies of a half.*use method\.form=adjoint, or raise memory"):
        method.plan(made.untrained(0, needed - 1), record)
    case = known("mlp", "nesterov")
    assert torch.equal(case.estimate(method).influence, case.estimate(Hypergradient("none", "forward")).influence)


def test_float32_state_is_float32_on_disk_too():
    made = experiment("mlp", torch.float32, training=RUNS["nesterov"])
    trained = made.train(SEED, NOTHING_KEPT)
    record = Laboratory(made, NOTHING_KEPT, SEED, MEMORY, 1, 1, trained)
    for hessian in ("exact", "none"):
        single = Hypergradient(hessian, "forward", state="disk").estimate(made.problem(trained, SEED), record, 0).influence
        assert single.dtype == torch.float32
        double = known("mlp", "nesterov").estimate(Hypergradient(hessian, "forward")).influence
        assert distance(single.double(), double) < 1e-4  # 25 steps of float32 rounding
