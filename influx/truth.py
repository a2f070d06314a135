"""The truth as arrays: what each model without a set of examples measures, less what the model with all of them does.

Filled shard by shard, in whatever order they get ready; each has its place beforehand, so that the order does not show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from influx import memory, stacking
from influx.errors import InfluxError
from influx.experiment import Experiment, Trained
from influx.removals import Removals
from influx.shards import Shard


@dataclass(frozen=True)
class Control:
    """Retraining with nothing left out, against the trained model.

    From scratch all but the last are of a model alone: exactly 0 on a CPU. From the optimum they are of the first stack's model: the drift
    of further training, which every retrained model shares (the median is of magnitudes). The last is of the models with nothing left out
    inside the first seed's stacks: from scratch it is what rounding does to a change.
    """

    largest_parameter_change: float
    largest_measurement_change: float
    mean_measurement_change: float
    median_measurement_change: float
    largest_measurement_change_in_stacks: float


@dataclass(frozen=True)
class Responses:
    """The models themselves: outputs on all training rows, and all parameters; `full_*` is the reference, as in `Truth.full`."""

    outputs: Float[np.ndarray, "n_removed n_train out n_seeds"]
    full_outputs: Float[np.ndarray, "n_train out n_seeds"]
    parameters: Float[np.ndarray, "n_removed p n_seeds"]
    full_parameters: Float[np.ndarray, "p n_seeds"]


@dataclass(frozen=True)
class Truth:
    """`full[t, s]` is the measurement with nothing removed that `change` is taken against; `solves` has a row of diagnostics a response and
    seed, `facts` the largest of each fact about a stack, `responses` the models when they are kept."""

    change: Float[np.ndarray, "n_removed n_test n_seeds"]
    full: Float[np.ndarray, "n_test n_seeds"]
    removals: Removals
    seeds: Int[np.ndarray, " n_seeds"]
    control: Control
    reused: int
    shards: int
    solves: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    responses: Responses | None = None


def check_room(experiment: Experiment, n_removed: int, n_seeds: int, allowed: int) -> None:
    """Raise `InfluxError` when the `Responses` of so many models would take more than the bytes allowed."""
    data, size = experiment.data, sum(value.numel() for value in experiment.module(0).parameters())
    needed = (n_removed + 1) * n_seeds * (data.n_train * experiment.n_outputs + size) * experiment.dtype.itemsize
    if needed > allowed:
        raise InfluxError(
            f"retraining.keep=responses would hold {memory.shown(needed)} of outputs and parameters, and memory allows "
            f"{memory.shown(allowed)}: leave out fewer, use fewer retraining.seeds, or raise memory."
        )


class Gathering:
    """Arrays that wait for the shards of some seeds. `from_stack`: changes are taken against the stack's own model with nothing removed,
    else against the trained one."""

    def __init__(self, experiment: Experiment, shards: list[Shard], bases: list[Trained], sets: Removals, *, from_stack: bool) -> None:
        self.experiment, self.shards, self.sets, self.seeds, self.from_stack = experiment, shards, sets, len(bases), from_stack
        self.bases = bases
        draws = [shard.draw.init for shard in shards[:: len(shards) // self.seeds]]
        self.trained = [measured(experiment, base, init) for base, init in zip(bases, draws, strict=True)]
        self.place = np.cumsum([0, *(len(shard.part) for shard in shards)])  # rows of the arrays, seed by seed
        self.accounts: list[dict[str, Tensor] | None] = [None] * len(shards)
        self.change = self._empty(experiment.n_test)
        self.full = np.empty((self.seeds, experiment.n_test))
        self.models: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # by name: of each removal, and of the reference
        self.facts: dict[str, float] = {}
        self.drift, self.reused = 0.0, 0
        self.unchanged: Mapping[str, Tensor] = {}  # what the first shard found

    def _empty(self, *shape: int, dtype: Any = float) -> np.ndarray:
        return np.empty((self.seeds * len(self.sets), *shape), dtype)

    def add(self, at: int, found: Mapping[str, Tensor], stored: bool) -> None:
        """What shard `at` found."""
        values, (s, part) = found["values"].double().cpu().numpy(), divmod(at, len(self.shards) // self.seeds)
        reference = values[0] if self.from_stack else self.trained[s]
        rows = slice(self.place[at], self.place[at + 1])
        self.change[rows] = values[1:] - reference
        if part == 0:  # of the seed's shards the first: those of other sizes round otherwise
            self.full[s] = reference
        self.drift = max(self.drift, float(np.abs(values[0] - self.trained[0]).max()) if s == 0 else 0.0)
        self.reused += stored
        if at == 0:
            self.unchanged = found
        if "converged" in found:
            self.accounts[at] = {name: found[name] for name in ("iterations", "residual", "converged")}
        for name in (name for name in found if name.startswith("facts/")):
            self.facts[name[6:]] = max(self.facts.get(name[6:], 0.0), found[name].item())
        if "outputs" in found:
            self._keep(s, rows, found, first=part == 0)

    def _keep(self, s: int, rows: slice, found: Mapping[str, Tensor], *, first: bool) -> None:
        for name in ("outputs", "parameters"):
            made = found[name].cpu().numpy()
            if name not in self.models:
                self.models[name] = self._empty(*made.shape[1:], dtype=made.dtype), np.empty((self.seeds, *made.shape[1:]), made.dtype)
            each, full = self.models[name]
            each[rows] = made[1:]
            if first:
                full[s] = made[0] if self.from_stack else self._of_base(name, self.bases[s])

    def _of_base(self, name: str, base: Trained) -> np.ndarray:
        problem = self.experiment.problem(base, 0)
        if name == "parameters":
            return problem.theta.cpu().numpy()
        inputs, theta = problem.train.inputs, problem.theta
        with torch.no_grad():
            made = [problem.outputs(theta, inputs[rows]) for rows in stacking.blocks(problem.n_train, 4 * problem.bytes_per_row)]
        return torch.cat(made).cpu().numpy()

    def truth(self, seed: int, control: Control) -> Truth:
        """When every shard has been added."""

        def shaped(each: np.ndarray) -> np.ndarray:
            return _seed_last(each.reshape(self.seeds, len(self.sets), *each.shape[1:]))

        kept = {name: shaped(each) for name, (each, _) in self.models.items()}
        full = {f"full_{name}": _seed_last(whole) for name, (_, whole) in self.models.items()}
        return Truth(
            shaped(self.change), self.full.T, self.sets, np.arange(seed, seed + self.seeds), control, self.reused, len(self.shards),
            self._solves(seed), self.facts, Responses(**kept, **full) if kept else None,
        )  # fmt: skip

    def _solves(self, seed: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for at, (shard, account) in enumerate(zip(self.shards, self.accounts, strict=True)):
            if account is None:
                continue
            s, response = at // (len(self.shards) // self.seeds), shard.recipe.response
            shift = self.experiment.training.weight_decay + response.proximity
            columns = (account["iterations"][1:].tolist(), account["residual"][1:].tolist(), account["converged"][1:].tolist())
            for k, (iterations, residual, converged) in enumerate(zip(*columns, strict=True)):
                name = f"{response.name} {self._without(self.place[at] % len(self.sets) + k)}, seed {seed + s}"
                row = {"iterations": iterations, "residual": residual, "converged": converged, "damping": shift}
                rows.append({"kind": "response", "name": name, "test_index": None, **row})
        return rows

    def _without(self, j: int) -> str:
        if self.sets.rows is None:
            return f"without {self.sets.unit.removeprefix('removed ')} {j}"
        return f"without {self.experiment.data.train_index[self.sets.rows[j]]}"


def measured(experiment: Experiment, trained: Trained, seed: int) -> Float[np.ndarray, " n_test"]:
    """The measurement of a trained model; `seed` is where its training started, which some measurements compare it with."""
    params, buffers = stacking.stack(trained.params, 1), stacking.stack(trained.buffers, 1)
    return experiment.measure(seed, experiment.module(0), params, buffers)[0].double().cpu().numpy()


def _seed_last(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(array, 0, -1))
