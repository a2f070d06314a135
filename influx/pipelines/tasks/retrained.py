"""Training again on a part of the training set, as a data set of its own: the divisor is the number of examples that are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from influx.experiment import Experiment, Trained
from influx.seeding import derive
from influx.stacking import stack, unstack
from influx.store import Store


def on_rows(experiment: Experiment, rows: Int[np.ndarray, " kept"], targets: Tensor | None = None) -> Experiment:
    """The experiment whose training part is these rows alone, with their `targets` [n_train] if others are wanted."""
    data, at = experiment.data, torch.as_tensor(rows, device=experiment.data.train_inputs.device)
    labels = data.train_targets if targets is None else targets
    kept = replace(data, train_inputs=data.train_inputs[at], train_targets=labels[at], train_index=data.train_index[rows])
    return replace(experiment, data=kept)


def fresh_seeds(seed: int, count: int) -> list[int]:
    """Seeds that no run counts up to, the same for every rule, so that rules differ in what they keep and in nothing else."""
    return [derive(seed, "training again", repeat) >> 31 for repeat in range(count)]  # 32 bits


def trainings(experiment: Experiment, seeds: Sequence[int], store: Store, *, continued: bool) -> Iterator[Trained]:
    """A model for each seed. `continued` starts each where the one before has ended, with its own batch order: repeats of that kind are
    one long training looked at several times, not independent ones."""
    last: Trained | None = None
    for place, seed in enumerate(seeds):
        last = experiment.train(seed, store) if last is None or not continued else _onward(experiment, seeds[: place + 1], last, store)
        yield last


def _onward(experiment: Experiment, seeds: Sequence[int], last: Trained, store: Store) -> Trained:
    """Training with the last of `seeds`, from where those before it have led."""

    def work() -> dict[str, Tensor]:
        inputs = experiment.data.train_inputs
        task = experiment.task(seeds[-1], inputs.new_ones(1, len(inputs)))
        fit = experiment.training.fit(replace(task, params=stack(last.params, 1), buffers=stack(last.buffers, 1)))
        made = {"params": unstack(fit.params, 0), "buffers": unstack(fit.buffers, 0)}
        return {f"{kind}/{name}": value for kind, named in made.items() for name, value in named.items()}

    key = experiment.key(seeds[-1], continued=list(seeds[:-1]))
    found, reused = store.fetch("model", key, work, f"{experiment.about}, continued")
    params, buffers = (_like(old, found, kind) for old, kind in ((last.params, "params"), (last.buffers, "buffers")))
    return Trained(params, buffers, float("nan"), [], 0.0, reused)


def _like(old: Mapping[str, Tensor], found: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name: found[f"{kind}/{name}"].to(value.device) for name, value in old.items()}
