"""The record of a run that the command line gives to its estimator: an experiment, its trained model and its store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from influx import masking
from influx.experiment import Experiment, Trained
from influx.masks import Masks, tickets
from influx.problem import Problem
from influx.progress import progress
from influx.record import Facts, Record
from influx.removals import Removals
from influx.seeding import derive
from influx.shards import Draw, Recipe, Shard, finished, stack_size
from influx.store import Store
from influx.training.first_order import FirstOrder
from influx.trajectory import Trajectory


@dataclass(frozen=True)
class Laboratory(Record):
    """`trained` is the run's model, None before it is trained; `memory` the bytes that an estimate may hold; `checkpoints` the places
    along training that are kept; `workers` the processes that retrain."""

    experiment: Experiment
    store: Store
    seed: int
    memory: int
    checkpoints: int = 1
    workers: int = 1
    trained: Trained | None = None

    @property
    def facts(self) -> Facts:
        training, n = self.experiment.training, self.experiment.data.n_train
        if not isinstance(training, FirstOrder):
            return Facts(0, n, None)
        return Facts(len(training.rates(n)), min(n, training.batch_size or n), training.descent)

    def check_trajectory(self) -> None:
        self.experiment.check_trajectory()

    @cached_property
    def trajectory(self) -> Trajectory:
        return self.experiment.trajectory(self.seed, self.store, self._model, self.memory // 2, checkpoints=self.checkpoints)

    def recall(self, name: str, options: Mapping[str, Any], work: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        experiment, more = self.experiment, cast(dict[str, Any], {name: dict(options)})
        found, _ = self.store.fetch(name, experiment.key(self.seed, **more), work, f"{experiment.about}, seed {self.seed}")
        return {part: value.to(experiment.data.train_inputs.device) for part, value in found.items()}

    def models(self, count: int) -> Iterator[Problem]:
        yield self.experiment.problem(self._model, self.seed, self.memory)
        for seed in range(self.seed + 1, self.seed + count):
            yield self.experiment.problem(self.experiment.train(seed, self.store), seed, self.memory)

    def without(self, sets: Sequence[Int[np.ndarray, " rows"]], *, average: bool) -> Float[Tensor, "n_sets n_test"]:
        removals = Removals(tuple(np.sort(rows) for rows in sets), "removed subset")
        recipe = Recipe("scratch", "all", None, "n-1" if average else "n")
        draw = Draw(self.seed, self.seed)
        parts = removals.batches(stack_size(self.experiment))
        shards = [Shard(recipe, self.experiment, part, draw, self._model, side_by_side=True) for part in parts]
        results = finished(shards, self.store, self.workers, "loky", None)
        bar = progress(range(len(shards)), "retraining shards")
        made: dict[int, Tensor] = {at: found["values"][1:] for _, (at, found, _) in zip(bar, results, strict=True)}
        return torch.cat([made[at] for at in range(len(shards))]).to(self.experiment.data.train_inputs.device)

    def masked(self, masks: Masks, count: int) -> Iterator[Problem]:
        for seed in (self.seed, *(derive(self.seed, "masked model", number) >> 31 for number in range(1, count))):  # 32 bits
            experiment = masked_experiment(self.experiment, masks, seed)
            yield experiment.problem(experiment.train(seed, self.store), seed, self.memory)

    @property
    def mislabelled(self) -> Int[np.ndarray, " rows"]:
        return np.flatnonzero(self.experiment.data.wrong_labels)

    def after(self, trained: Trained) -> Laboratory:
        """The same, once the run's model is trained."""
        return replace(self, trained=trained)

    @property
    def _model(self) -> Trained:
        if self.trained is None:
            raise RuntimeError("the model is not trained yet: plan() may ask for facts only")
        return self.trained


def masked_experiment(experiment: Experiment, masks: Masks, seed: int) -> Experiment:
    """The same experiment under turn-over dropout: each training example with a mask of its own, test examples with none; the inputs are
    flattened, and carry a ticket in one more column (`influx.masking`)."""
    data = experiment.data
    own = tickets(data.train_index)

    def ticketed(inputs: Float[Tensor, " n *shape"], each: Float[Tensor, " n"]) -> Float[Tensor, "n features1"]:
        return torch.cat([inputs.flatten(1), each.to(inputs).unsqueeze(1)], dim=1)

    train, test = ticketed(data.train_inputs, own), ticketed(data.test_inputs, torch.zeros(data.n_test))
    model = masking.Masked(experiment.model, data.input_shape, masks, seed)
    return replace(experiment, data=replace(data, train_inputs=train, test_inputs=test), model=model)
