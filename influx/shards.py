"""Shards of retraining: the unit of work, of storage, and of loss when killed.

A shard is a stack of models trained side by side, each without one set of examples; model 0 has all of them. Which sets share a shard is
decided before anything is trained, so a run that was interrupted ends with the same bytes as one that was not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from influx import frozen, stacking
from influx.experiment import Experiment, Trained
from influx.instantiate import describe
from influx.removals import Removals
from influx.store import Claim, Store, digest
from influx.training import Task, Training
from influx.workers import in_parallel

STACK_BYTES = 12 * 2**20  # aim for what one stack keeps busy: parameters, the optimiser's memory, one batch's layer outputs
FEWEST = 8  # models in a stack when the size is chosen
KIND = "retrained"  # the store's word for a stack's measurements


class Draw(NamedTuple):
    """The seeds of an initialisation and of a batch order."""

    init: int
    order: int


@dataclass(frozen=True)
class Recipe:
    """How each model is retrained: fields of `influx.retraining.Retraining` with the same names."""

    start: str
    trainable: str
    epochs: int | None
    divisor: str


@dataclass(frozen=True)
class Shard:
    """One stack of models, picklable. `base` is the model to start from when `recipe.start` is "warm", and the optimum that Newton starts
    near."""

    recipe: Recipe
    experiment: Experiment
    part: Removals
    draw: Draw
    base: Trained
    side_by_side: bool

    @property
    def training(self) -> Training:
        return self.experiment.training.shortened(self.recipe.epochs)

    @property
    def key(self) -> dict[str, object]:
        """Everything that determines the measurements."""
        return self.experiment.key(
            self.draw.init,
            order=self.draw.order,
            all_data=self.experiment.digest,
            measurement=describe(self.experiment.measurement),
            sets=digest({"sets": [rows.tolist() for rows in self.part.sets]}),  # long lists
            recipe=vars(self.recipe),
            side_by_side=self.side_by_side,
        )

    @property
    def about(self) -> str:
        return f"{self.experiment.about}, seed {self.draw.init}, {len(self.part)} {self.part.unit}s"

    def task(self) -> Task:
        data, sets = self.experiment.data, self.part.sets
        n = data.n_train
        weights = torch.ones(len(sets) + 1, n, dtype=data.train_inputs.dtype, device=data.train_inputs.device)
        for k, rows in enumerate(sets, start=1):
            if self.recipe.divisor == "n-1":  # average over what is left
                weights[k] *= n / (n - len(rows))
            weights[k, torch.as_tensor(rows)] = 0.0
        task = self.experiment.task(self.draw.init, weights, order=self.draw.order)
        if self.recipe.start == "warm":
            params, buffers = (stacking.stack(part, task.models) for part in (self.base.params, self.base.buffers))
            task = replace(task, params=params, buffers=buffers, trainable=self.experiment.trainable(self.recipe.trainable, task.module))
        return replace(task, side_by_side=self.side_by_side, reference=self.base.params if sets else None)

    def retrain(self) -> Float[Tensor, "k1 n_test"]:
        """Measurements of the stack's models, the first with nothing left out."""
        task = self.task()
        fit = frozen.fit(self.training, task)
        return self.experiment.measure(task.module, fit.params, fit.buffers).cpu()


def stack_size(experiment: Experiment, *, trainable: str = "all") -> int:
    """How many models share a stack: a function of sizes alone."""
    module, inputs = experiment.module(0), experiment.data.train_inputs
    params = {name: value.detach() for name, value in module.named_parameters()}
    row = stacking.bytes_per_row(module, params, dict(module.named_buffers()), inputs)
    layer = frozen.find(module, {**params, **dict(module.named_buffers())}, inputs) if trainable == "last_layer" else None
    if layer is not None:  # the others are computed once, and held once
        params = {name: params[name] for name in layer.names}
        row = experiment.data.n_outputs * inputs.element_size()
    size = sum(value.numel() for value in params.values()) * inputs.element_size()
    return int(np.clip(STACK_BYTES // experiment.training.memory(size, row, len(inputs)), FEWEST, experiment.training.most_at_once))


def finished(
    shards: list[Shard], store: Store, workers: int, backend: str, cluster: str | None
) -> Iterator[tuple[int, Float[Tensor, "k1 n_test"], bool]]:
    """Each shard's number, its measurements and whether they came from the store, as they get ready.

    What is missing is retrained and saved at once. Of several processes on one store, one retrains a shard: the others go on with the
    next ones and come back for it.
    """
    missing: list[int] = []
    for at, shard in enumerate(shards):
        stored = store.load(KIND, shard.key)
        if stored is None:
            missing.append(at)
        else:
            yield at, stored["values"], True
    claims: dict[int, Claim] = {}
    drawn: list[int] = []
    elsewhere: list[int] = []

    def unclaimed() -> Iterator[Shard]:
        for at in missing:
            claim = store.claim(KIND, shards[at].key)
            if claim is None or store.holds(KIND, shards[at].key):  # another process works on it, or has finished it since
                elsewhere.append(at)
                if claim is not None:
                    claim.release()
                continue
            claims[at] = claim
            drawn.append(at)
            yield shards[at]

    try:
        for position, values in in_parallel(Shard.retrain, unclaimed(), workers=workers, backend=backend, cluster=cluster):
            at = drawn[position]
            store.save(KIND, shards[at].key, {"values": values}, shards[at].about)
            claims.pop(at).release()
            yield at, values, False
    finally:
        for claim in claims.values():
            claim.release()
    for at in elsewhere:  # only now, with no claim in hand: two processes that wait for each other would do so for ever
        shard = shards[at]
        found, stored_meanwhile = store.fetch(KIND, shard.key, lambda shard=shard: {"values": shard.retrain()}, shard.about)  # type: ignore[misc]
        yield at, found["values"], stored_meanwhile
