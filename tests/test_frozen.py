"""Training the output layer on frozen features is training the network with the other layers frozen, to rounding."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from problems import NOTHING_KEPT, BatchNormNet, DropoutNet, data_of, experiment
from torch import nn
from torch.testing import assert_close

from influx import frozen, shards, stacking
from influx.experiment import Experiment, Trained
from influx.measurements import Loss
from influx.models import Model
from influx.models.lenet import LeNet
from influx.models.mlp import Mlp
from influx.objectives import Supervised
from influx.removals import Removals
from influx.responses.base import Response
from influx.responses.bregman import Bregman
from influx.responses.linearised import Linearised
from influx.responses.proximal import Proximal
from influx.retraining import Retraining
from influx.shards import Draw, Recipe, Shard
from influx.solvers.exact import Exact
from influx.training import Fit, Task, Training
from influx.training.first_order import Adam, Sgd
from influx.training.second_order import Lbfgs, Newton

SEED = 2
ROUNDING = 1e-10  # float64, some dozens of steps: measured differences stay below 1e-13
SGD = Sgd(lr=0.1, epochs=4, batch_size=8, momentum=0.9, weight_decay=0.02)


def images(side: int) -> Experiment:
    """Forty images with labels that no image decides."""
    rng = np.random.default_rng(5)
    data = data_of(rng.normal(size=(46, 1, side, side)), rng.integers(0, 3, size=46), 40, 3)
    return Experiment(data, LeNet(), SGD, Supervised(), Loss())


SUBJECTS: dict[str, Experiment] = {
    "mlp": experiment("mlp", training=SGD),
    "deep mlp": experiment("mlp", model=Mlp(depth=3, width=6, activation="selu"), training=SGD),
    "lenet": images(14),
    "batch norm": experiment("conv", model=BatchNormNet(), training=SGD),
    "dropout": experiment("conv", model=DropoutNet(), training=SGD),
    "adam": experiment("mlp", training=Adam(epochs=4, batch_size=8)),
    "full batch": experiment("mlp", training=replace(SGD, batch_size=None)),
    "newton": experiment("mlp", training=Newton(weight_decay=0.05, tolerance=1e-12)),
    "lbfgs": experiment("mlp", training=Lbfgs(weight_decay=0.05, tolerance=1e-11)),
    "regression": experiment("ridge", model=Mlp(depth=1, width=5), training=SGD),
}


def by_features(training: Training, task: Task) -> Fit:
    """As a shard's response goes: the narrowed task, then the whole network's parameters."""
    small = frozen.narrowed(task)
    made = training.fit(small)
    return made if small is task else replace(made, params=frozen.widened(task, made.params), buffers=task.buffers)


def start(subject: Experiment) -> Trained:
    """A few steps of SGD away from the initialisation: Newton's method does not train a network."""
    return replace(subject, training=replace(SGD, epochs=2)).train(SEED, NOTHING_KEPT)


def shard(subject: Experiment, base: Trained | None = None, divisor: str = "n") -> Shard:
    recipe = Recipe("warm", "last_layer", None, divisor)
    return Shard(recipe, subject, Removals.single([0, 3, 11]), Draw(SEED, SEED), base or start(subject), side_by_side=True)


@pytest.mark.parametrize("divisor", ["n", "n-1"])
@pytest.mark.parametrize("name", SUBJECTS)
def test_the_models_are_those_of_the_whole_network(name, divisor):
    subject = SUBJECTS[name]
    task = shard(subject, divisor=divisor).task()
    whole, found = subject.training.fit(task), by_features(subject.training, task)
    assert list(found.params) == list(whole.params)
    for parameter, value in whole.params.items():
        assert_close(found.params[parameter], value, rtol=0, atol=ROUNDING)
    moved = max((value[0] - task.params[parameter][0]).abs().max() for parameter, value in whole.params.items())
    apart = max((value[1] - value[0]).abs().max() for value in whole.params.values())
    assert min(moved, apart) > 1e-5  # there is something to agree on
    for parameter, value in task.buffers.items():
        assert torch.equal(found.buffers[parameter], value)


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_measurements_are_those_of_the_whole_network(name):
    subject = SUBJECTS[name]
    made = shard(subject)
    task = made.task()
    whole = subject.training.fit(task)
    with torch.no_grad():  # each model on its own, as a module
        wanted = []
        for k in range(task.models):
            module = subject.module(SEED)
            module.load_state_dict({**stacking.unstack(whole.params, k), **stacking.unstack(whole.buffers, k)})
            wanted.append(subject.objective.loss(module(subject.data.test_inputs), subject.data.test_targets))
    assert_close(made.retrain()["values"], torch.stack(wanted), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_it_is_taken_and_small(name):
    task = shard(SUBJECTS[name]).task()
    small = frozen.narrowed(task)
    assert stacking.is_layered(small.module)
    assert small.examples.inputs.shape == (len(task.examples), {"mlp": 4, "lenet": 84}[name])
    assert torch.equal(small.weights, task.weights)
    assert (small.seed, small.trainable) == (task.seed, ("0.weight", "0.bias"))
    found = by_features(SUBJECTS[name].training, task)
    still = [value for parameter, value in found.params.items() if parameter not in task.trainable]
    assert all(value.stride(0) == 0 for value in still)  # held once, whatever the number of models


def test_float32_agrees_to_its_rounding():
    subject = experiment("mlp", torch.float32, training=SGD)
    task = shard(subject).task()
    whole, found = subject.training.fit(task), by_features(subject.training, task)
    for parameter, value in whole.params.items():
        assert_close(found.params[parameter], value, rtol=0, atol=1e-5)  # 20 steps on numbers of order 1


def test_blocks_of_rows_change_nothing(monkeypatch):
    task = shard(SUBJECTS["lenet"]).task()
    whole = frozen.narrowed(task).examples.inputs
    monkeypatch.setattr(stacking, "BLOCK_BYTES", 1)
    assert_close(frozen.narrowed(task).examples.inputs, whole, rtol=0, atol=1e-14)


# ------------------------------------------------------------------------------------------ what is trained as it is


class _Scaled(nn.Module):
    """Something stands behind the linear output layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(inputs, 4), nn.Linear(4, outputs)

    def forward(self, x):
        return 2 * self.out(self.hidden(x.flatten(1)).tanh())


class _Squared(_Scaled):
    """The output layer is applied twice."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.hidden, self.out = nn.Linear(inputs, outputs), nn.Linear(outputs, outputs)

    def forward(self, x):
        return self.out(self.out(self.hidden(x.flatten(1))).tanh())


class _Feeding(_Scaled):
    """The output layer's weights decide its own inputs."""

    def forward(self, x):
        hidden = self.hidden(x.flatten(1)).tanh()
        return self.out(hidden * self.out.weight.norm())


@dataclass(frozen=True)
class Odd(Model):
    kind: type[_Scaled]

    def module(self, shape):
        return self.kind(shape.n_features, shape.n_outputs)


@pytest.mark.parametrize("kind", [_Scaled, _Squared, _Feeding])
def test_a_network_of_another_form_is_trained_whole(kind):
    subject = experiment("mlp", model=Odd(kind), training=SGD)
    task = shard(subject).task()
    assert frozen.narrowed(task) is task
    whole, found = subject.training.fit(task), by_features(subject.training, task)
    assert all(torch.equal(found.params[name], value) for name, value in whole.params.items())
    assert_close(shard(subject).retrain()["values"], subject.measure(0, task.module, whole.params, whole.buffers), rtol=0, atol=ROUNDING)


def test_all_parameters_or_a_linear_model_are_trained_whole():
    task = shard(SUBJECTS["mlp"]).task()
    everything = replace(task, trainable=tuple(task.params))
    assert frozen.narrowed(everything) is everything
    linear = shard(experiment("softmax", training=SGD)).task()
    assert frozen.narrowed(linear) is linear


def test_models_that_start_apart_are_trained_whole():
    task = shard(SUBJECTS["mlp"]).task()
    apart = {name: value + torch.arange(task.models).view(-1, *[1] * (value.dim() - 1)) for name, value in task.params.items()}
    there = replace(task, params=apart)
    assert frozen.narrowed(there) is there
    outputs = stacking.outputs(there.module, apart, {}, there.examples.inputs)
    assert torch.equal(stacking.outputs(*frozen.reduced(there.module, apart, {}, there.examples.inputs)), outputs)


# ------------------------------------------------------------------------------------------------------ in the truth


@dataclass(frozen=True, kw_only=True)
class Watching(Sgd):
    """Notes the modules that it trains."""

    def fit(self, task: Task):
        SEEN.append(type(task.module[-1]).__name__ + str(len(task.module)))
        return super().fit(task)


SEEN: list[str] = []


def test_retraining_goes_by_way_of_the_features_everywhere():
    training: Training = Watching(lr=0.1, epochs=3, batch_size=8)
    subject = replace(SUBJECTS["lenet"], training=training)
    base = subject.train(SEED, NOTHING_KEPT)
    SEEN.clear()
    plan = Retraining(start="warm", trainable="last_layer", removed=4, seeds=1, epochs=2)
    truth = plan.run(subject, base, Removals.single([0, 3, 11, 12]), SEED, NOTHING_KEPT)
    assert set(SEEN) == {"Linear1"}  # trials, shards and the control
    assert truth.control.largest_parameter_change > 1e-5


def test_a_stack_holds_more_models_when_their_features_are_held_once(monkeypatch):
    monkeypatch.setattr(shards, "STACK_BYTES", 2**21)
    subject = SUBJECTS["lenet"]
    assert shards.stack_size(subject) == shards.FEWEST < shards.stack_size(subject, trainable="last_layer")
    odd = experiment("mlp", model=Odd(_Scaled), training=SGD)
    assert shards.stack_size(odd, trainable="last_layer") == shards.stack_size(odd)


RESPONSES = (Bregman(proximity=0.1, tolerance=1e-10), Proximal(proximity=0.1, tolerance=1e-10), Linearised(Exact(), proximity=0.1))


@pytest.mark.parametrize("response", RESPONSES, ids=lambda response: response.name)
def test_responses_of_the_output_layer_are_those_of_the_network(response: Response) -> None:
    """The same minima, found to a relative gradient of 1e-10 (the linear one: exactly), by way of the features and without them."""
    subject = SUBJECTS["lenet"]
    base = start(subject)
    task, problem = shard(subject, base).task(), subject.problem(base, 0)
    small = frozen.narrowed(task)
    assert small is not task
    whole = response.move(task, subject.training, replace(problem, selected=task.trainable))
    found = response.move(small, subject.training, frozen.output_problem(problem))
    params = frozen.widened(task, found.params)
    assert set(params) == set(whole.params)
    for name, value in whole.params.items():
        assert_close(params[name], value, rtol=0, atol=1e-9)
