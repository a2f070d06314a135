"""The record of a run: its trajectory, more models of its kind, and retrained ones, each against what they are by definition."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from problems import NOTHING_KEPT, BatchNormNet, DropoutNet, experiment, torch_loss
from torch.testing import assert_close

from influx.errors import InfluxError
from influx.experiment import Experiment
from influx.laboratory import Laboratory
from influx.masks import Masks
from influx.measurements import MeanLoss
from influx.store import Store
from influx.training.first_order import Adam, Sgd
from influx.training.second_order import Newton
from influx.trajectory import Descent

SEED, AMPLE = 5, 2**30
MOMENTUM = Sgd(lr=0.1, epochs=4, batch_size=8, momentum=0.9, weight_decay=0.02)


def made(row: str = "mlp", **changes) -> Experiment:
    return experiment(row, **{"training": MOMENTUM, **changes})


def laboratory(subject: Experiment, store: Store = NOTHING_KEPT, **changes) -> Laboratory:
    settings = {"memory": AMPLE, "checkpoints": 1, **changes}
    return Laboratory(subject, store, SEED, trained=subject.train(SEED, store), **settings)


# ------------------------------------------------------------------------------------------------------- before training


@pytest.mark.parametrize(
    ("training", "facts"),
    [
        (MOMENTUM, (4 * 5, 8, Descent(0.9, nesterov=False, weight_decay=0.02))),  # 36 rows: five batches, the last of four
        (replace(MOMENTUM, nesterov=True), (20, 8, Descent(0.9, nesterov=True, weight_decay=0.02))),
        (replace(MOMENTUM, batch_size=None), (4, 36, Descent(0.9, nesterov=False, weight_decay=0.02))),
        (replace(MOMENTUM, batch_size=500), (4, 36, Descent(0.9, nesterov=False, weight_decay=0.02))),
        (Adam(epochs=3, batch_size=36), (3, 36, None)),
        (Newton(), (0, 36, None)),
    ],
)
def test_facts_are_known_before_training(training, facts):
    found = Laboratory(made(training=training), NOTHING_KEPT, SEED, AMPLE).facts
    assert (found.n_steps, found.batch_size, found.descent) == facts


@pytest.mark.parametrize(
    "ask", [lambda lab: lab.trajectory, lambda lab: next(lab.models(1)), lambda lab: lab.without([np.array([1])], average=False)]
)
def test_nothing_else_is(ask):
    with pytest.raises(RuntimeError, match="not trained yet: plan\\(\\) may ask for facts only"):
        ask(Laboratory(made(), NOTHING_KEPT, SEED, AMPLE))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training": Newton()},
            r"follows the training run step by step, and Newton keeps no such record: use training=sgd, adam or adamw",
        ),
        ({"model": DropoutNet()}, r"and DropoutNet has dropout or batch statistics, which no record of the parameters repeats"),
        ({"model": BatchNormNet(), "row": "conv"}, r"and BatchNormNet has dropout or batch statistics"),
    ],
)
def test_what_cannot_be_followed_says_so(changes, message):
    lab = Laboratory(made(**changes), NOTHING_KEPT, SEED, AMPLE)
    with pytest.raises(InfluxError, match=message):
        lab.check_trajectory()


# ----------------------------------------------------------------------------------------------------------- after training


def test_the_first_model_is_the_runs_own_and_the_others_are_trained_from_the_next_seeds():
    subject = made()
    lab = laboratory(subject)
    problems = list(lab.models(3))
    assert len(problems) == 3
    for offset, fitted in enumerate(problems):
        wanted = subject.train(SEED + offset, NOTHING_KEPT).params
        assert all(torch.equal(fitted.params[name], wanted[name]) for name in wanted)
        assert fitted.memory == AMPLE
    assert not torch.equal(problems[0].theta, problems[1].theta)


@cache
def plain_loop(out: tuple[int, ...], average: bool) -> np.ndarray:
    """Test losses after momentum SGD written out, the rows in `out` missing from their batches."""
    subject = made()
    data, module = subject.data, subject.module(SEED)
    steps = subject.trajectory(SEED, NOTHING_KEPT, subject.train(SEED, NOTHING_KEPT), AMPLE).steps
    parameters = list(module.parameters())
    velocity = [torch.zeros_like(value) for value in parameters]
    factor = data.n_train / (data.n_train - len(out)) if average else 1.0
    for step in steps:
        kept = step.rows[~torch.isin(step.rows, torch.tensor(out, dtype=torch.int64))]
        loss = factor * torch_loss(module(data.train_inputs[kept]), data.train_targets[kept]).sum() / len(step.rows)
        for p, v, g in zip(parameters, velocity, torch.autograd.grad(loss, parameters), strict=True):
            v.mul_(0.9).add_(g + 0.02 * p.data)
            p.data -= 0.1 * v
    return torch_loss(module(data.test_inputs), data.test_targets).detach().numpy()


SETS = ((7,), (3, 30, 11), tuple(range(18)))


@pytest.mark.parametrize("average", [False, True])
def test_without_is_the_plain_loop(average):
    """Unsorted sets of unequal size, in their own order; divisor n, or what is left."""
    found = laboratory(made()).without([np.array(rows) for rows in SETS], average=average)
    assert found.shape == (3, 6)
    for row, out in zip(found, SETS, strict=True):
        np.testing.assert_allclose(row, plain_loop(tuple(sorted(out)), average), rtol=0, atol=1e-11)  # float64, sums in another order
    assert not np.allclose(found[2], plain_loop((), average=False), atol=1e-3)


def test_without_of_a_whole_sets_measurement_has_one_column():
    found = laboratory(made(measurement=MeanLoss())).without([np.array([7])], average=False)
    assert found.shape == (1, 1)
    assert found[0, 0].item() == pytest.approx(plain_loop((7,), False).mean(), abs=1e-11)


def test_without_is_retrained_once(tmp_path, monkeypatch):
    from influx.shards import Shard

    trained, retrain = [], Shard.retrain
    monkeypatch.setattr(Shard, "retrain", lambda shard: trained.append(len(shard.part)) or retrain(shard))
    store, sets = Store(tmp_path), [np.array([row]) for row in range(20)]
    first = laboratory(made(), store).without(sets, average=True)
    assert sum(trained) == 20
    assert torch.equal(laboratory(made(), store).without(sets, average=True), first)
    assert sum(trained) == 20
    assert laboratory(made(), store).without(sets[:3], average=False).shape == (3, 6)
    assert sum(trained) == 23


@pytest.mark.parametrize("training", [MOMENTUM, Adam(lr=0.02, epochs=4, batch_size=8, weight_decay=0.02)], ids=["sgd", "adam"])
@pytest.mark.parametrize("checkpoints", [1, 3])
@pytest.mark.parametrize("memory", [AMPLE, 1])  # all at once; one step at a time
def test_the_trajectory_is_the_run_in_both_directions(training, checkpoints, memory):
    subject = made(training=training)
    lab = laboratory(subject, memory=memory, checkpoints=checkpoints)
    trajectory = lab.trajectory
    assert trajectory is lab.trajectory
    forward = [step.kept() for step in trajectory.forward()]
    assert [step.before.step for step in forward] == list(range(20))
    assert all(torch.equal(forward[0].params[name], value) for name, value in subject.module(SEED).named_parameters())
    for one, other in zip((step.kept() for step in trajectory.backward()), reversed(forward), strict=True):
        assert torch.equal(one.rows, other.rows)
        assert (one.lr, one.before.step) == (other.lr, other.before.step)
        assert all(torch.equal(one.params[name], value) for name, value in other.params.items())
        assert all(torch.equal(a, b) for a, b in zip(one.before.memory, other.before.memory, strict=True))
    assert len(trajectory.checkpoints) == checkpoints
    assert all(torch.equal(trajectory.checkpoints[-1][0][name], value) for name, value in lab.trained.params.items())


def test_snapshots_are_kept_in_the_store_and_asked_for_again(tmp_path, monkeypatch):
    fitted, fit = [], Experiment._fit
    monkeypatch.setattr(Experiment, "_fit", lambda *arguments: fitted.append(arguments[1]) or fit(*arguments))
    store, subject = Store(tmp_path), made()
    subject.train(SEED, store, checkpoints=3)
    one = laboratory(subject, store, checkpoints=3).trajectory
    assert len(fitted) == 1  # snapshots came with the training
    more = laboratory(subject, store, checkpoints=4).trajectory
    assert len(fitted) == 2  # others need another
    again = laboratory(subject, store, checkpoints=4).trajectory
    assert len(fitted) == 2
    assert ([s.step for s in one.snapshots], [s.step for s in more.snapshots]) == ([0, 5, 15], [0, 5, 10, 15])
    for first, second in zip(more.snapshots, again.snapshots, strict=True):
        assert all(torch.equal(first.params[name], second.params[name]) for name in first.params)
        assert list(first.params) == list(second.params)
        assert all(torch.equal(a, b) for a, b in zip(first.memory, second.memory, strict=True))


def test_masked_models_come_from_the_next_seeds(tmp_path):
    found = list(laboratory(made(), Store(tmp_path)).masked(Masks(), 2))
    assert len(found) == 2
    assert not torch.equal(found[0].theta, found[1].theta)
    assert_close(found[0].train.inputs[:, :3], made().data.train_inputs, rtol=0, atol=0)  # and a ticket in one more column
    again = next(iter(laboratory(made(), Store(tmp_path)).masked(Masks(), 1)))
    assert torch.equal(again.theta, found[0].theta)


# -------------------------------------------------------------------------------------------------------- the command line


def trainings(folder: Path) -> int:
    return len(list(folder.rglob("model/**/*.safetensors")))


def test_a_sweep_over_methods_trains_once(tiny: Run, tmp_path: Path):
    ran = tiny("estimate", "method=cg,exact", "model=logistic", "-m")
    assert ran.status == 0, ran.err
    reused = [json.loads((folder / "run.json").read_text())["reused"] for folder in ran.folders]
    assert trainings(tmp_path / "outputs/store") == 1
    assert len(reused) == 2
    assert not any("model" in str(part) for part in reused[0])
    assert any("model" in str(part) for part in reused[1])
    one, other = (np.load(folder / "influence.npz")["influence"] for folder in ran.folders)
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * np.abs(other).max())  # cg's tolerance of 1e-8, times a condition


def test_checkpoints_of_a_training_serve_a_later_estimate(tiny: Run, tmp_path: Path):
    for command in ("train", "estimate"):
        settings = ("method=tracin",) if command == "estimate" else ()
        ran = tiny(command, *settings, "checkpoints=2")
        assert ran.status == 0, ran.err
    assert trainings(tmp_path / "outputs/store") == 1
    assert len(list((tmp_path / "outputs/store/snapshots").rglob("*.safetensors"))) == 1
