"""The truth: retrain with examples left out, and measure what changed.

`change[j, t, s] = m_t(θ_s trained without set j) − m_t(θ_s trained on all)` for seed s. One path serves every kind of removal: a stack of
models whose example weights are 1, with zeros where examples are left out. Row 0 of every stack leaves nothing out; from scratch it
is the reference, so that base and retrained models differ in nothing but the removed examples.

The mean of `change` over seeds is the *expected* effect of a removal; `change[..., 0]` is the effect on *this* model, of the seed that
the estimate was made on: same start, same batch order.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from influx import layered, removals, rules, stacking
from influx.errors import InfluxError, warn_accuracy
from influx.experiment import Experiment, Trained
from influx.problem import GIBIBYTE
from influx.progress import progress
from influx.removals import Removals
from influx.responses import choice
from influx.responses.choice import RETRAIN
from influx.shards import KIND, Draw, Recipe, Shard, finished, stack_size
from influx.solvers import Solver
from influx.solvers.exact import Exact
from influx.store import Store
from influx.training.first_order import FirstOrder
from influx.training.second_order import Newton
from influx.trials import seconds_per_model
from influx.truth import Control, Gathering, Truth, check_room, measured
from influx.workers import check as check_backend


@dataclass(frozen=True)
class Plan:
    """How stacks are trained, and how long a model takes in one.

    `side_by_side` is measured, once, and kept in the store: a run that goes on later, or elsewhere, takes the same way and rounds alike.
    """

    side_by_side: bool
    seconds_per_model: float


@dataclass(frozen=True)
class Retraining:
    """Which examples to leave out, how the model answers, with which seeds.

    Args:
        response: "retrain"; or what the trained model answers when the examples' weights change (`influx.responses`): "proximal", "pbrf"
            or "linear".
        start: response=retrain: "scratch" (the seed's initialisation and batch order) or "warm" (the seed's trained model, its batch
            order anew).
        removed: truth=loo: how many examples are left out, one at a time, or "all".
        selection: truth=loo: "random", "top" (largest mean |estimate| over the test examples), "loss" (highest training loss),
            "percentile" (mean |estimate| nearest `percentile`), "stratified" (evenly spaced ranks of the mean estimate) or "all";
            truth=group: "random", "top", "loss" or "class".
        percentile: selection=percentile: of the ranks by mean |estimate|, 0 the smallest and 100 the largest.
        index: truth=loo: explicit positions in the data set's own order, in any order, repeats counted once; overrides `removed` and
            `selection`.
        selection_seed: draws what is left out at random; null = the run's seed. A fixed one leaves the same out in runs of several seeds.
        fraction: truth=subset: share of the training examples that each random subset keeps.
        subsets: truth=subset: how many.
        groups: truth=group: how many groups are left out, one group at a time.
        group_size: truth=group: examples in a group; null with selection=class: whole classes.
        seeds: number of seeds, counted up from the run's; the estimate's own model is the first of them.
        vary: what differs between seeds: "init" (initialisation), "order" (batch order) or "both".
        trainable: "all", or "last_layer": the parameters that retraining may move.
        epochs: response=retrain: of each retraining; null as in training.
        divisor: "n" keeps the objective's divisor, "n-1" averages over the examples that are left.
        subtract_drift: warm start and proximal: take changes against the model retrained with nothing left out, not the trained one.
        workers: processes that retrain side by side.
        backend: "loky" (processes of this machine), "ray" or "dask" (a cluster, with the extra of that name).
        cluster: address of the ray or dask cluster; null starts one on this machine.
        models_at_once: removals in one stack; null chooses from the size of model and batch.
        strength: share of the left-out examples' weight that is taken away: 1 leaves them out, small values of either sign give finite
            differences. Predictions are scaled by it as well.
        proximity: proximal, pbrf, linear: the proximal weight p ≥ 0; null: the damping of the method (`after`).
        tolerance: proximal, pbrf: gradient norm to stop at, relative to that of what is taken away.
        max_iterations: proximal, pbrf: at most.
        solver: linear: how the inverse of G + (λ + p) I is applied.
        keep: "measurements", or "responses": outputs and parameters of every model as well.
    """

    response: str = "retrain"
    start: str = "scratch"
    removed: int | str = 50
    selection: str = "random"
    percentile: float = 30.0
    index: list[int] | None = None
    selection_seed: int | None = None
    fraction: float = 0.5
    subsets: int = 100
    groups: int = 20
    group_size: int | None = 10
    seeds: int = 4
    vary: str = "both"
    trainable: str = "all"
    epochs: int | None = None
    divisor: str = "n"
    subtract_drift: bool = False
    workers: int = 1
    backend: str = "loky"
    cluster: str | None = None
    models_at_once: int | None = None
    strength: float = 1.0
    proximity: float | None = None
    tolerance: float = 1e-6
    max_iterations: int = 300
    solver: Solver = field(default_factory=Exact)
    keep: str = "measurements"

    def __post_init__(self) -> None:
        rules.check_fields("retraining", self)
        if not isinstance(self.solver, Solver):
            raise InfluxError(
                f"retraining.solver={self.solver} is not possible: an option is chosen by solver@retraining.solver={self.solver}."
            )
        if self.response != RETRAIN or self.start == "warm":
            return
        if self.trainable != "all":
            raise InfluxError(
                "retraining.trainable=last_layer needs retraining.start=warm: from scratch the other layers would stay random."
            )
        if self.subtract_drift:
            raise InfluxError("retraining.subtract_drift=true needs retraining.start=warm: from scratch there is no drift.")

    @property
    def name(self) -> str:
        """The start or the response, and what may move, as tables name them."""
        how = self.start if self.response == RETRAIN else self.response
        return how + ("_last_layer" if self.trainable == "last_layer" else "")

    def after(self, method: str, damping: float | str | None) -> Retraining:
        """The same, its proximal weight by default the damping of the method that is to be validated (null: it has none)."""
        if self.response == RETRAIN or self.proximity is not None:
            return self
        return replace(self, proximity=choice.proximity(self.response, method, damping))

    def draws(self, seed: int) -> list[Draw]:
        """The seeds of the truth's columns; the first is the estimate's own model."""
        counted = range(seed, seed + self.seeds)
        return [Draw(seed if self.vary == "order" else s, seed if self.vary == "init" else s) for s in counted]

    def check(self, truth: str, experiment: Experiment, allowed: int = 2 * GIBIBYTE) -> None:
        """Refuse what cannot be retrained, or not in so many bytes, before anything is trained.

        Raises:
            InfluxError: fewer than two training examples, more removals than there are, an index that is empty or outside the training
                part, a selection that the truth does not have, epochs or a batch order for a training without, a missing extra.
        """
        n = experiment.data.n_train
        choice.check(self.recipe.response, experiment.untrained(0, allowed).select(self.trainable))
        if n < 2:
            raise InfluxError("leaving one training example out of 1 leaves none: raise dataset.train_size.")
        if self.epochs is not None and not isinstance(experiment.training, FirstOrder):
            raise InfluxError("retraining.epochs needs a training with epochs (sgd, adam, adamw); newton and lbfgs run to a gradient norm.")
        if self.vary == "order" and not experiment.training.shuffles(n):
            raise InfluxError("retraining.vary=order needs a training in batches (training=sgd, adam or adamw with a training.batch_size).")
        check_backend(self.backend, self.cluster)
        if truth == "loo":
            self._check_examples(experiment.data.train_index, n)
        elif self.index is not None:
            raise InfluxError(f"retraining.index is for truth=loo; truth={truth} draws what it leaves out.")
        if truth == "subset" and self.selection != "random":
            raise InfluxError(f"retraining.selection={self.selection} is not for truth=subset: its subsets are random.")
        zeros = np.zeros((n, 1))
        sets = self.choose(truth, experiment, zeros, zeros[:, 0], 0)
        if self.keep == "responses":
            check_room(experiment, len(sets), self.seeds, allowed)

    def _check_examples(self, train_index: Int[np.ndarray, " n_train"], n: int) -> None:
        if self.selection == "class":
            raise InfluxError("retraining.selection=class needs truth=group: a class is not a single example.")
        if self.index is None and self.selection != "all" and isinstance(self.removed, int) and self.removed > n:
            raise InfluxError(f"retraining.removed={self.removed} is more than the {n} training examples; use a smaller number, or all.")
        if self.index is not None and not self.index:
            raise InfluxError("retraining.index is empty: list at least one position, or set it to null.")
        strangers = sorted(set(self.index or ()) - set(train_index.tolist()))
        if strangers:
            raise InfluxError(f"retraining.index: {strangers[0]} is not in the training part (influence.npz lists train_index).")

    def choose(
        self,
        truth: str,
        experiment: Experiment,
        influence: Float[np.ndarray, "n_train n_test"],
        losses: Float[np.ndarray, " n_train"],
        seed: int,
    ) -> Removals:
        """The sets of rows to leave out; `truth` is "loo", "subset" or "group".

        Raises:
            InfluxError: there are too few examples for them, or the truth has no such selection.
        """
        data, n = experiment.data, experiment.data.n_train
        seed = seed if self.selection_seed is None else self.selection_seed
        if truth == "subset":
            return removals.subsets(n, self.fraction, self.subsets, seed)
        if truth == "group":
            return self._groups(experiment, influence, losses, seed)
        if self.index is not None:
            return Removals.single(np.flatnonzero(np.isin(data.train_index, self.index)))
        if self.removed == "all" or self.selection == "all":
            return Removals.single(range(n))
        rows = removals.ranked_rows(self.selection, int(self.removed), influence, losses, seed, self.percentile)
        return Removals.single(np.sort(rows))

    def _groups(
        self, experiment: Experiment, influence: Float[np.ndarray, "n_train n_test"], losses: Float[np.ndarray, " n_train"], seed: int
    ) -> Removals:
        data, size = experiment.data, self.group_size
        if self.selection == "class":
            if data.task != "classification":
                raise InfluxError(f"retraining.selection=class needs labels; {data.name} has numbers as targets.")
            return removals.class_groups(data.train_targets.cpu().numpy(), size, self.groups, seed)
        if self.selection not in ("random", "top", "loss"):
            raise InfluxError(f"truth=group has no retraining.selection={self.selection}: it must be one of random, top, loss, class.")
        if size is None:
            raise InfluxError("retraining.group_size=null (whole classes) needs retraining.selection=class.")
        return removals.groups(removals.ranked_rows(self.selection, data.n_train, influence, losses, seed), size, self.groups)

    @property
    def recipe(self) -> Recipe:
        response = choice.choose(self.response, self.proximity, self.tolerance, self.max_iterations, self.strength, self.solver)
        epochs = self.epochs if self.response == RETRAIN else None
        return Recipe(response.begins or self.start, self.trainable, epochs, self.divisor, float(self.strength), response, self.keep)

    def shards(self, experiment: Experiment, bases: list[Trained], sets: Removals, seed: int, plan: Plan) -> list[Shard]:
        """All shards, seed by seed: a function of the options and the number of sets, not of the moment's free memory or workers."""
        parts = self._parts(experiment, sets)
        draws = zip(self.draws(seed), bases, strict=True)
        return [Shard(self.recipe, experiment, part, draw, base, plan.side_by_side) for draw, base in draws for part in parts]

    def _parts(self, experiment: Experiment, sets: Removals) -> list[Removals]:
        return sets.batches(self.models_at_once or stack_size(experiment, self.recipe.response, trainable=self.trainable))

    def plan(self, experiment: Experiment, base: Trained, sets: Removals, seed: int, store: Store) -> Plan:
        """How to train the shards, from a trial of one; kept in the store and used again."""
        module = experiment.module(seed)
        one_way = layered.fits(module) or stacking.mixes_rows(module) or self.response == "linear"
        ways = (True,) if one_way else (False, True)

        def measured() -> dict[str, Tensor]:
            shards = {way: self.shards(experiment, [base] * self.seeds, sets, seed, Plan(way, 0.0))[0] for way in ways}
            seconds = {way: seconds_per_model(shard, base) for way, shard in shards.items()}
            best = min(ways, key=lambda way: seconds[way])
            return {"side_by_side": torch.tensor(best), "seconds_per_model": torch.tensor(seconds[best], dtype=torch.float64)}

        key = experiment.key(seed, recipe=self.recipe.described, models_at_once=len(self._parts(experiment, sets)[0]))
        found, _ = store.fetch("plan", key, measured, f"{experiment.about}, how to retrain")
        return Plan(bool(found["side_by_side"]), found["seconds_per_model"].item())

    def seconds(self, plan: Plan, experiment: Experiment, base: Trained, sets: Removals, seed: int, store: Store) -> float:
        """The time that `run` will take with what the store holds now."""
        shards = self.shards(experiment, [base] * self.seeds, sets, seed, plan)
        missing = sum(len(shard.part) + 1 for shard in shards if not store.holds(KIND, shard.key))
        others = (self.seeds - 1) * base.seconds if self.recipe.start == "warm" and missing else 0.0
        return missing * plan.seconds_per_model / self.workers + others

    def run(self, experiment: Experiment, base: Trained, sets: Removals, seed: int, store: Store, plan: Plan | None = None) -> Truth:
        """The models without each of `sets`, for every seed, by `plan` (null: makes one). Finished shards are stored and never made again.

        Cost: (n_removed + shards of a seed) x n_seeds trainings (or solves of a response), from scratch one more for the control; memory:
        one stack a worker.

        Raises:
            NumericalError: a training has diverged.
            InfluxError: a worker died, or the store can no longer be written; finished shards are kept.
        """
        begins = self.recipe.start == "warm" or isinstance(experiment.training, Newton)  # at the seed's own trained model
        bases = [base, *(experiment.train(d.init, store, order=d.order) if begins else base for d in self.draws(seed)[1:])]
        shards = self.shards(experiment, bases, sets, seed, plan or self.plan(experiment, base, sets, seed, store))
        from_stack = self.recipe.start == "scratch" or self.subtract_drift or self.recipe.response.anchored
        gathering = Gathering(experiment, shards, bases, sets, from_stack=from_stack)
        results = finished(shards, store, self.workers, self.backend, self.cluster)
        for _, (at, found, stored) in zip(progress(range(len(shards)), "retraining shards"), results, strict=True):
            gathering.add(at, found, stored)
        truth = gathering.truth(seed, self._control(experiment, base, seed, gathering, store))
        self._warn_of_solves(truth)
        return truth

    def _control(self, experiment: Experiment, base: Trained, seed: int, gathering: Gathering, store: Store) -> Control:
        alone = Shard(self.recipe, experiment, Removals(()), Draw(seed, seed), base, side_by_side=True)

        def again() -> dict[str, Tensor]:
            task, found = alone.move()
            moved = torch.stack([(found.params[name][0] - base.params[name]).abs().max() for name in base.params]).max()
            return {"moved": moved, "values": experiment.measure(seed, task.module, found.params, found.buffers)[0]}

        if self.recipe.start == "warm" and not self.recipe.response.anchored:  # those cost nothing
            moved, values = gathering.unchanged["moved"], gathering.unchanged["values"][0]
        else:
            found, _ = store.fetch("control", alone.key, again, f"{experiment.about}, seed {seed}, nothing removed")
            moved, values = found["moved"], found["values"]
        drift = values.double().cpu().numpy() - measured(experiment, base, seed)
        size = np.abs(drift)
        return Control(moved.item(), float(size.max()), float(drift.mean()), float(np.median(size)), gathering.drift)

    def _warn_of_solves(self, truth: Truth) -> None:
        missed = [row["residual"] for row in truth.solves if not row["converged"]]
        if not missed:
            return
        worst = max(missed)
        if self.response == "linear":
            knob = "another retraining.solver"
        elif worst > 1:
            knob = "a larger retraining.proximity, or leaving out fewer: their objectives fall without end"
        else:
            knob = "a larger retraining.max_iterations or dtype=float64 (neither helps at a kink of relu or selu)"
        warn_accuracy(
            f"{len(missed)} of {len(truth.solves)} {self.response} responses were not solved for (largest relative residual {worst:.1e}; "
            f"diagnostics.csv has each): what is left would look like the estimate's error. Try {knob}."
        )
