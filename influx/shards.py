"""Shards of retraining: the unit of work, of storage, and of loss when killed.

A shard is a stack of models trained side by side, each without one set of examples; model 0 has all of them. Which sets share a shard is
decided before anything is trained, so a run that was interrupted ends with the same bytes as one that was not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from influx import frozen, stacking
from influx.experiment import Experiment, Trained
from influx.instantiate import describe
from influx.removals import Removals
from influx.responses import Moved, Response, train_outputs
from influx.responses.retrained import Retrained
from influx.store import Claim, Store, digest
from influx.training import Task, Training
from influx.workers import in_parallel

STACK_BYTES = 12 * 2**20  # aim for what one stack keeps busy: parameters, the optimiser's memory, one batch's layer outputs
FEWEST = 8  # models in a stack when the size is chosen
RESPONSE_BYTES = 64 * 2**20  # the same where models are solved for: what they share, a factorisation, is worth a larger stack
MOST_RESPONSES = 512
KIND = "retrained"  # the store's word for a stack's measurements


class Draw(NamedTuple):
    """The seeds of an initialisation and of a batch order."""

    init: int
    order: int


@dataclass(frozen=True)
class Recipe:
    """How each model comes about: fields of `influx.retraining.Retraining` with the same names, and the response itself."""

    start: str
    trainable: str
    epochs: int | None
    divisor: str
    strength: float = 1.0
    response: Response = field(default_factory=Retrained)
    keep: str = "measurements"

    @property
    def described(self) -> dict[str, Any]:
        return {**vars(self), "response": describe(self.response)}


@dataclass(frozen=True)
class Shard:
    """One stack of models, picklable. `base` is θ_s, the model to start from when `recipe.start` is "warm", and the optimum that Newton
    starts near."""

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
            recipe=self.recipe.described,
            side_by_side=self.side_by_side,
        )

    @property
    def about(self) -> str:
        return f"{self.experiment.about}, seed {self.draw.init}, {len(self.part)} {self.part.unit}s"

    def task(self) -> Task:
        data, sets = self.experiment.data, self.part.sets
        n, strength = data.n_train, self.recipe.strength
        weights = torch.ones(len(sets) + 1, n, dtype=data.dtype, device=data.train_inputs.device)
        for k, rows in enumerate(sets, start=1):
            if self.recipe.divisor == "n-1":  # average over what is left
                weights[k] *= n / (n - strength * len(rows))
            weights[k, torch.as_tensor(rows)] *= 1.0 - strength
        task = self.experiment.task(self.draw.init, weights, order=self.draw.order)
        if self.recipe.start == "warm":
            params, buffers = (stacking.stack(part, task.models) for part in (self.base.params, self.base.buffers))
            task = replace(task, params=params, buffers=buffers, trainable=self.experiment.trainable(self.recipe.trainable, task.module))
        return replace(task, side_by_side=self.side_by_side, reference=self.base.params if sets else None)

    def move(self) -> tuple[Task, Moved]:
        task = self.task()
        small = frozen.narrowed(task)
        if small is task:
            problem = replace(self.experiment.problem(self.base, self.draw.init), selected=task.trainable)
            return task, self.recipe.response.move(task, self.training, problem)
        moved = self.recipe.response.move(small, self.training, frozen.output_problem(self.experiment.problem(self.base, self.draw.init)))
        return task, replace(moved, params=frozen.widened(task, moved.params), buffers=task.buffers)

    def retrain(self) -> dict[str, Tensor]:
        """`values` [k + 1, n_test]: measurements of the stack's models, the first with nothing left out.

        From θ_s also `moved`, the largest change of a parameter of the first model. Of what was solved for also `iterations`, `residual`
        and `converged` [k + 1], and facts about the stack; with keep=responses `outputs` [k + 1, n_train, out] on the training rows and
        `parameters` [k + 1, P], all of them.
        """
        task, moved = self.move()
        found = {"values": self.experiment.measure(self.draw.init, task.module, moved.params, moved.buffers)}
        if moved.account is not None:
            found |= vars(moved.account)
        if self.recipe.start == "warm":
            changes = [(moved.params[name][0] - value).abs().max() for name, value in self.base.params.items()]
            found["moved"] = torch.stack(changes).max()
        found |= {f"facts/{name}": torch.tensor(value, dtype=torch.float64) for name, value in moved.facts.items()}
        if self.recipe.keep == "responses":
            found["outputs"] = train_outputs(task, moved.params)
            found["parameters"] = torch.cat([value.flatten(1) for value in moved.params.values()], dim=1)
        return {name: value.cpu() for name, value in found.items()}


def stack_size(experiment: Experiment, response: Response | None = None, *, trainable: str = "all") -> int:
    """How many models share a stack: a function of sizes alone. `response` null: of retrained ones."""
    module, inputs = experiment.module(0), experiment.data.train_inputs
    params = {name: value.detach() for name, value in module.named_parameters()}
    row = stacking.bytes_per_row(module, params, dict(module.named_buffers()), inputs)
    layer = frozen.find(module, {**params, **dict(module.named_buffers())}, inputs) if trainable == "last_layer" else None
    if layer is not None:  # the others are computed once, and held once
        params = {name: params[name] for name in layer.names}
        row = experiment.n_outputs * experiment.dtype.itemsize
    size = sum(value.numel() for value in params.values()) * experiment.dtype.itemsize
    if response is not None and response.vectors is not None:
        return int(np.clip(RESPONSE_BYTES // (response.vectors * size), FEWEST, MOST_RESPONSES))
    return int(np.clip(STACK_BYTES // experiment.training.memory(size, row, len(inputs)), FEWEST, experiment.training.most_at_once))


def finished(
    shards: list[Shard], store: Store, workers: int, backend: str, cluster: str | None
) -> Iterator[tuple[int, Mapping[str, Tensor], bool]]:
    """Each shard's number, what `retrain` found and whether it came from the store, as they get ready.

    What is missing is retrained and saved at once. Of several processes on one store, one retrains a shard: the others go on with the
    next ones and come back for it.
    """
    missing: list[int] = []
    for at, shard in enumerate(shards):
        stored = store.load(KIND, shard.key)
        if stored is None:
            missing.append(at)
        else:
            yield at, stored, True
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
        for position, found in in_parallel(Shard.retrain, unclaimed(), workers=workers, backend=backend, cluster=cluster):
            at = drawn[position]
            store.save(KIND, shards[at].key, found, shards[at].about)
            claims.pop(at).release()
            yield at, found, False
    finally:
        for claim in claims.values():
            claim.release()
    for at in elsewhere:  # only now, with no claim in hand: two processes that wait for each other would do so for ever
        shard = shards[at]
        made, stored_meanwhile = store.fetch(KIND, shard.key, shard.retrain, shard.about)
        yield at, made, stored_meanwhile
