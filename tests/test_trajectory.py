"""A training run that is followed again: its steps are the trained ones to the bit, from wherever it is taken up, both ways."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from problems import NOTHING_KEPT, BatchNormNet, DropoutNet, experiment, torch_loss
from torch.func import functional_call

from influx.errors import InfluxError
from influx.experiment import Experiment
from influx.laboratory import Laboratory
from influx.models.all_conv import AllConv
from influx.store import Store
from influx.training.first_order import Adam, AdamW, FirstOrder, Sgd
from influx.training.second_order import Newton
from influx.trajectory import Snapshot, Step, Trajectory

SEED = 3
AMPLE = 2**30  # bytes: all steps at once
SHORT = {"lr": 0.05, "epochs": 4, "batch_size": 10, "weight_decay": 0.02}  # of 36 rows: 4 steps an epoch, the last of 6 rows
OPTIMISERS: dict[str, FirstOrder] = {
    "sgd": Sgd(momentum=0.0, **SHORT),
    "momentum": Sgd(momentum=0.9, **SHORT),
    "nesterov": Sgd(momentum=0.9, nesterov=True, **SHORT),
    "adam": Adam(**SHORT),
    "amsgrad": Adam(amsgrad=True, **SHORT),
    "adamw": AdamW(**SHORT),
}
SCHEDULES = ("constant", "linear", "cosine", "step")
N_STEPS = 16


def made(training: FirstOrder, name: str = "mlp", **changes: object) -> Experiment:
    return experiment(name, training=training, **changes)


def followed(run: Experiment, limit: int = AMPLE, checkpoints: int = 1, store: Store = NOTHING_KEPT) -> Trajectory:
    trained = run.train(SEED, store, checkpoints=checkpoints)
    return run.trajectory(SEED, store, trained, limit, checkpoints=checkpoints)


def trained_states(run: Experiment) -> tuple[list[Snapshot], dict[str, torch.Tensor]]:
    """What the training itself saw before each step, and where it ended: snapshots of every step, none of them replayed."""
    ones = torch.ones(1, run.data.n_train, dtype=run.data.train_inputs.dtype)
    fit = run.training.fit(run.task(SEED, ones, keep=tuple(range(len(run.training.rates(run.data.n_train))))))
    return list(fit.snapshots), {name: value[0] for name, value in fit.params.items()}


def same(one: Snapshot, other: Snapshot) -> bool:
    """To the bit."""
    assert one.step == other.step
    assert list(one.params) == list(other.params)
    pairs = zip((*one.params.values(), *one.memory), (*other.params.values(), *other.memory), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# ------------------------------------------------------------------------------------------------------- the same to the bit


@pytest.mark.parametrize(("optimiser", "schedule"), list(product(OPTIMISERS, SCHEDULES)))
def test_replayed_steps_are_the_trained_ones(optimiser, schedule):
    run = made(replace(OPTIMISERS[optimiser], schedule=schedule))
    states, final = trained_states(run)
    trajectory = followed(run)
    seen = 0
    for state, step in zip(states, trajectory.forward(), strict=True):
        assert same(step.before, state)
        assert step.lr == run.training.rates(36)[seen]
        seen += 1
    assert seen == N_STEPS
    assert all(torch.equal(step.params[name], value) for name, value in final.items())  # the last step, once it is done
    assert all(torch.equal(trajectory.final[name], value) for name, value in final.items())


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("checkpoints", [2, 4])
def test_training_goes_on_from_every_snapshot(optimiser, checkpoints):
    trajectory = followed(made(OPTIMISERS[optimiser]), checkpoints=checkpoints)
    whole = trajectory.steps
    assert [snapshot.step for snapshot in trajectory.snapshots] == list(range(0, N_STEPS, N_STEPS // checkpoints))
    for snapshot in trajectory.snapshots:
        again = [step.kept() for step in trajectory.replay(snapshot, N_STEPS)]
        assert len(again) == N_STEPS - snapshot.step
        assert_same_steps(again, whole[snapshot.step :])


@pytest.mark.parametrize("optimiser", ["momentum", "adam"])
def test_training_goes_on_from_the_middle_of_an_epoch(optimiser):
    trajectory = followed(made(OPTIMISERS[optimiser]))
    whole = trajectory.steps
    for start, stop in ((1, 2), (5, 11), (7, 16), (8, 8)):
        assert_same_steps([step.kept() for step in trajectory.replay(whole[start].before, stop)], whole[start:stop])


@pytest.mark.parametrize("changes", [{"batch_size": None}, {"batch_size": 36}, {"batch_size": 1, "epochs": 2}, {"batch_size": 35}])
def test_every_size_of_batch(changes):
    run = made(replace(OPTIMISERS["momentum"], **changes))
    states, _ = trained_states(run)
    steps = followed(run, limit=0, checkpoints=2).steps
    assert all(same(step.before, state) for step, state in zip(steps, states, strict=True))
    per_epoch = len(steps) // run.training.epochs
    for epoch in range(run.training.epochs):  # every row once
        rows = torch.cat([step.rows for step in steps[epoch * per_epoch : (epoch + 1) * per_epoch]])
        assert rows.sort().values.tolist() == list(range(36))


def test_a_convolution_and_float32():
    for dtype in (torch.float32, torch.float64):
        run = experiment("conv", dtype, training=Sgd(lr=0.05, epochs=2, batch_size=8, momentum=0.9), model=AllConv(width=2))
        states, _ = trained_states(run)
        assert all(same(step.before, state) for step, state in zip(followed(run).backward(), reversed(states), strict=True))


def test_a_step_is_gradient_descent_on_its_rows():
    """v ← μv + g + λθ, θ ← θ − lr(g + λθ + μv) with torch's gradient of the batch's mean loss: rows, rate and memory fit."""
    run = made(replace(OPTIMISERS["nesterov"], schedule="cosine"))
    trajectory = followed(run)
    module, descent = run.module(SEED), trajectory.descent
    steps = trajectory.steps
    ends = [*(step.params for step in steps[1:]), trajectory.final]
    for step, end in zip(steps, ends, strict=True):
        leaves = {name: value.clone().requires_grad_(True) for name, value in step.params.items()}
        outputs = functional_call(module, leaves, (run.data.train_inputs[step.rows],))
        loss = torch_loss(outputs, run.data.train_targets[step.rows]).mean()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        for (name, value), g, v in zip(step.params.items(), gradients, step.before.memory, strict=True):
            g = g + descent.weight_decay * value
            moved = value - step.lr * (g + descent.momentum * (descent.momentum * v + g))
            torch.testing.assert_close(end[name], moved, rtol=1e-12, atol=1e-13)  # the same float64 step, sums in another order


def assert_same_steps(some: list[Step], others: tuple[Step, ...] | list[Step]) -> None:
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert same(one.before, other.before)
        assert torch.equal(one.rows, other.rows)
        assert one.lr == other.lr


# ----------------------------------------------------------------------------------------------------------------- backwards


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize(("steps_held", "checkpoints"), [(0, 1), (3, 1), (5, 2), (0, 4), (1000, 1)])
def test_backwards_is_forwards_reversed_under_any_limit(optimiser, steps_held, checkpoints):
    run = made(OPTIMISERS[optimiser])
    limit = steps_held * followed(run).steps[0].before.nbytes
    trajectory = followed(run, limit, checkpoints)
    assert_same_steps([step.kept() for step in trajectory.backward()], trajectory.steps[::-1])


@pytest.mark.parametrize("held", [2, 4, 8])
def test_what_is_held_stays_within_the_limit(held, monkeypatch):
    trajectory = followed(made(OPTIMISERS["momentum"]))
    keep, alive, trained = Step.kept, [], []

    def kept(step: Step) -> Step:
        made = keep(step)
        alive.append(weakref.ref(made))
        return made

    def replay(snapshot: Snapshot, stop: int) -> Iterator[Step]:
        for step in trajectory.replay(snapshot, stop):
            trained.append(1)
            yield step

    monkeypatch.setattr(Step, "kept", kept)
    limited = replace(trajectory, replay=replay, limit=held * trajectory.snapshots[0].nbytes)
    order = []
    for step in limited.backward():
        order.append(step.before.step)
        assert sum(ref() is not None for ref in alive) <= held
    assert order == list(range(N_STEPS))[::-1]
    assert sum(trained) <= N_STEPS * (1 + math.log2(N_STEPS / held) / 2) + N_STEPS  # half a training for each halving, and their middles


# -------------------------------------------------------------------------------------------------------- snapshots and store


@pytest.mark.parametrize("optimiser", ["momentum", "amsgrad"])
def test_snapshots_survive_the_store(optimiser, tmp_path):
    run, store = made(OPTIMISERS[optimiser]), Store(tmp_path)
    fresh = followed(run, checkpoints=4)
    for _ in range(2):  # made, then reused
        stored = followed(run, checkpoints=4, store=store)
        assert len(stored.snapshots) == 4
        assert all(same(one, other) for one, other in zip(stored.snapshots, fresh.snapshots, strict=True))
        assert_same_steps([step.kept() for step in stored.backward()], fresh.steps[::-1])
        assert all(torch.equal(stored.final[name], value) for name, value in fresh.final.items())


def count_trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry a training from then on; following one again is none."""
    calls: list[int] = []
    fit = Sgd.fit

    def counted(self, task):
        calls.append(1)
        return fit(self, task)

    monkeypatch.setattr(Sgd, "fit", counted)
    return calls


@pytest.mark.parametrize("checkpoints", [1, 4])
def test_a_model_is_trained_once_and_then_followed(checkpoints: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = made(OPTIMISERS["momentum"])
    calls = count_trainings(monkeypatch)
    for store, again in ((Store(tmp_path), 0), (NOTHING_KEPT, 1)):
        calls.clear()
        first = followed(run, checkpoints=checkpoints, store=store)
        assert sum(calls) == 1
        assert len(list(first.backward())) == N_STEPS
        followed(run, checkpoints=checkpoints, store=store)
        assert sum(calls) == 1 + again  # kept nowhere: the second call of `train` trains


def test_another_number_of_checkpoints_needs_no_other_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The model of a store made without checkpoints: training is repeated once for its snapshots, and they are those of that model."""
    run, store = made(OPTIMISERS["momentum"]), Store(tmp_path)
    trained = run.train(SEED, store)
    calls = count_trainings(monkeypatch)
    for _ in range(2):
        assert run.train(SEED, store, checkpoints=4).reused
        trajectory = run.trajectory(SEED, store, trained, AMPLE, checkpoints=4)
        assert sum(calls) == 1
    *_, last = trajectory.replay(trajectory.snapshots[-1], N_STEPS)
    assert all(torch.equal(last.params[name], value) for name, value in trained.params.items())


def test_without_checkpoints_there_are_no_snapshots_but_the_start(monkeypatch: pytest.MonkeyPatch):
    run = made(OPTIMISERS["momentum"])
    trained = run.train(SEED, NOTHING_KEPT, checkpoints=4)
    calls = count_trainings(monkeypatch)
    trajectory = run.trajectory(SEED, NOTHING_KEPT, trained, AMPLE)
    assert [snapshot.step for snapshot in trajectory.snapshots] == [0]
    assert not calls


def test_checkpoints_are_places_of_the_run_with_the_rate_that_led_there():
    run = made(replace(OPTIMISERS["momentum"], schedule="linear"))
    trajectory = followed(run, checkpoints=4)
    steps = trajectory.steps
    for (params, lr), at in zip(trajectory.checkpoints, (4, 8, 12, 16), strict=True):
        expected = steps[at].params if at < N_STEPS else trajectory.final
        assert all(torch.equal(params[name], value) for name, value in expected.items())
        assert lr == pytest.approx(0.05 * (1 - (at - 1) / N_STEPS), rel=1e-15)
    assert len(followed(run, checkpoints=99).checkpoints) == run.training.epochs  # ends of epochs, no more


def test_the_record_knows_the_run_before_it_is_trained():
    run = made(OPTIMISERS["nesterov"])
    laboratory = Laboratory(run, NOTHING_KEPT, SEED, AMPLE, checkpoints=2)
    assert (laboratory.facts.n_steps, laboratory.facts.batch_size) == (N_STEPS, 10)
    trajectory = laboratory.after(run.train(SEED, NOTHING_KEPT)).trajectory
    assert trajectory.n_steps == laboratory.facts.n_steps
    assert trajectory.descent == laboratory.facts.descent
    assert trajectory.descent.nesterov
    assert trajectory.limit <= AMPLE // 2


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        ({"training": Newton()}, "softmax", "Newton keeps no such record: use training=sgd, adam or adamw"),
        ({"model": DropoutNet(), "training": OPTIMISERS["sgd"]}, "mlp", "DropoutNet has dropout or batch statistics"),
        ({"model": BatchNormNet(), "training": OPTIMISERS["sgd"]}, "conv", "BatchNormNet has dropout or batch statistics"),
    ],
)
def test_what_cannot_be_followed_is_refused(changes, name, message):
    with pytest.raises(InfluxError, match=message):
        experiment(name, **changes).check_trajectory()
