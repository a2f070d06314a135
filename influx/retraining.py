"""The truth: retrain with examples left out, and measure what changed.

`change[i, t, s] = m_t(θ_s trained without i) − m_t(θ_s trained on all)` for seed s. One path serves every kind of removal: a stack of
models whose example weights are 1, with zeros where examples are left out. Row 0 of every stack leaves nothing out; from scratch it
is the reference, so that base and retrained models differ in nothing but the removed example.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import joblib
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from influx import rules, stacking
from influx.errors import AccuracyWarning, InfluxError, warn_accuracy
from influx.experiment import Experiment, Trained
from influx.instantiate import describe
from influx.progress import progress
from influx.seeding import numpy_generator
from influx.store import Store
from influx.training import Task
from influx.training.first_order import FirstOrder

STACK_BYTES = 32 * 2**20  # aim for one stack's parameters, their optimiser state and one batch's layer outputs
FEWEST, MOST = 8, 128  # models in a stack when the size is chosen


@dataclass(frozen=True)
class Control:
    """Retraining with nothing left out, against the trained model.

    The first three are of a model alone: from scratch on a CPU exactly 0; from the optimum the drift of further training, which every
    retrained model shares. The last is of the models with nothing left out inside the stacks that give the truth: from scratch it is
    what rounding does to a change.
    """

    largest_parameter_change: float
    largest_measurement_change: float
    mean_measurement_change: float
    largest_measurement_change_in_stacks: float


@dataclass(frozen=True)
class Truth:
    """`rows` count within the training part. `full[t, s]` is the measurement with nothing removed that `change` is taken against."""

    change: Float[np.ndarray, "n_removed n_test n_seeds"]
    full: Float[np.ndarray, "n_test n_seeds"]
    rows: Int[np.ndarray, " n_removed"]
    seeds: Int[np.ndarray, " n_seeds"]
    control: Control
    reused: int
    shards: int


@dataclass(frozen=True)
class Prediction:
    """Seconds that retraining will take, and how many stacks the trial has already trained and stored."""

    seconds: float
    trained: int


@dataclass(frozen=True)
class Retraining:
    """Which examples to leave out, from where to start, with which seeds.

    Args:
        start: "scratch" (the seed's initialisation and batch order) or "warm" (the seed's trained model, its batch order anew).
        removed: how many examples are left out, one at a time, or "all".
        selection: "random", "top" (largest mean |estimate| over the test examples), "loss" (highest training loss), "stratified" (evenly
            spaced ranks of the mean estimate) or "all".
        index: explicit positions in the data set's own order, in any order, repeats counted once; overrides `removed` and `selection`.
        seeds: number of seeds, counted up from the run's; the estimate's own model is the first of them.
        trainable: "all", or "last_layer": the parameters that retraining may move.
        epochs: of each retraining; null as in training.
        divisor: "n" keeps the objective's divisor, "n-1" averages over the examples that are left.
        subtract_drift: warm start only: take changes against the model retrained with nothing left out, not the trained one.
        workers: processes that retrain side by side.
        models_at_once: removals in one stack; null chooses from the size of model and batch.
    """

    start: str = "scratch"
    removed: int | str = 50
    selection: str = "random"
    index: list[int] | None = None
    seeds: int = 4
    trainable: str = "all"
    epochs: int | None = None
    divisor: str = "n"
    subtract_drift: bool = False
    workers: int = 1
    models_at_once: int | None = None

    def __post_init__(self) -> None:
        rules.check_fields("retraining", self)
        if self.start == "scratch" and self.trainable != "all":
            raise InfluxError(
                "retraining.trainable=last_layer needs retraining.start=warm: from scratch the other layers would stay random."
            )
        if self.start == "scratch" and self.subtract_drift:
            raise InfluxError("retraining.subtract_drift=true needs retraining.start=warm: from scratch there is no drift.")

    @property
    def name(self) -> str:
        """The start and what may move, as tables name it."""
        return self.start + ("_last_layer" if self.trainable == "last_layer" else "")

    def check(self, train_index: Int[np.ndarray, " n_train"], experiment: Experiment) -> None:
        """Refuse what cannot be retrained, before anything is trained.

        Raises:
            InfluxError: fewer than two training examples, more removals than there are, an index that is empty or outside the training
                part, or epochs for a training without.
        """
        n = len(train_index)
        if n < 2:
            raise InfluxError("leaving one training example out of 1 leaves none: raise dataset.train_size.")
        if self.index is None and self.selection != "all" and isinstance(self.removed, int) and self.removed > n:
            raise InfluxError(f"retraining.removed={self.removed} is more than the {n} training examples; use a smaller number, or all.")
        if self.index is not None and not self.index:
            raise InfluxError("retraining.index is empty: list at least one position, or set it to null.")
        strangers = sorted(set(self.index or ()) - set(train_index.tolist()))
        if strangers:
            raise InfluxError(f"retraining.index: {strangers[0]} is not in the training part (influence.npz lists train_index).")
        if self.epochs is not None and not isinstance(experiment.training, FirstOrder):
            raise InfluxError("retraining.epochs needs a training with epochs (sgd, adam, adamw); newton and lbfgs run to a gradient norm.")

    def choose(
        self,
        train_index: Int[np.ndarray, " n_train"],
        influence: Float[np.ndarray, "n_train n_test"],
        losses: Float[np.ndarray, " n_train"],
        seed: int,
    ) -> Int[np.ndarray, " n_removed"]:
        """Rows to leave out, ascending."""
        n = len(train_index)
        if self.index is not None:
            return np.flatnonzero(np.isin(train_index, self.index))
        if self.removed == "all" or self.selection == "all":
            return np.arange(n)
        count = int(self.removed)
        if self.selection == "random":
            rows = numpy_generator(seed, "removed examples").choice(n, count, replace=False)
        elif self.selection == "stratified":
            order = np.argsort(influence.mean(1), kind="stable")
            rows = order[np.linspace(0, n - 1, count).round().astype(int)]
        else:
            rank = losses if self.selection == "loss" else np.abs(influence).mean(1)
            rows = np.argsort(-rank, kind="stable")[:count]
        return np.sort(rows)

    def predict(self, experiment: Experiment, base: Trained, rows: Int[np.ndarray, " n_removed"], seed: int, store: Store) -> Prediction:
        """The time that `run` will take, from a trial of one stack; a trial that is a whole training is kept in the store for `run`."""
        first = self._shards(experiment, [base], rows, [seed], store)
        if all(store.holds("retrained", self.shard_key(experiment, shard.rows, seed + s)) for shard in first for s in range(self.seeds)):
            return Prediction(0.0, 0)
        training = experiment.training.shortened(self.epochs)
        short, share = training.trial(len(base.history), len(first[0].rows) + 1)
        begun, trained = time.perf_counter(), 0
        if share == 1.0:
            trained = 1 - first[0].run().stored
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", AccuracyWarning)  # `run` will say it
                short.fit(self._task(experiment, base, first[0].rows, seed))
        seconds = (time.perf_counter() - begun) / share * len(first) * self.seeds / self.workers
        return Prediction(seconds + (self.seeds - 1) * base.seconds, trained)

    def run(self, experiment: Experiment, base: Trained, rows: Int[np.ndarray, " n_removed"], seed: int, store: Store) -> Truth:
        """Retrain without each of `rows`, for every seed. Finished stacks are stored and never trained again.

        Cost: (n_removed + stacks) x n_seeds trainings, side by side in stacks; memory: one stack a worker.
        """
        if stacking.mixes_rows(experiment.module(seed)):
            warn_accuracy(
                "batch normalisation mixes the rows of a batch: a left-out example counts for nothing in the loss, but still moves its "
                "batch's mean and variance, so this truth is not quite its absence."
            )
        seeds = [seed + s for s in range(self.seeds)]
        bases = [base, *(experiment.train(s, store) for s in seeds[1:])]
        shards = self._shards(experiment, bases, rows, seeds, store)
        change = np.empty((len(rows), experiment.n_test, self.seeds))
        full = np.empty((experiment.n_test, self.seeds))
        results = []
        for shard, result in zip(shards, _results(shards, self.workers), strict=True):
            s = shard.seed - seed
            change[np.searchsorted(rows, shard.rows), :, s] = result.values - result.reference
            full[:, s] = result.reference
            results.append(result)
        control = self._control(experiment, base, seed, max(result.drift for result in results))
        return Truth(change, full, rows, np.array(seeds), control, sum(result.stored for result in results), len(shards))

    def _shards(
        self, experiment: Experiment, bases: list[Trained], rows: Int[np.ndarray, " n_removed"], seeds: list[int], store: Store
    ) -> list[Shard]:
        size = self.models_at_once or _stack_size(experiment)
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        return [Shard(self, experiment, base, part, seed, store) for base, seed in zip(bases, seeds, strict=True) for part in parts]

    def _retrain(
        self, experiment: Experiment, base: Trained, rows: Int[np.ndarray, " k"], seed: int
    ) -> tuple[Float[Tensor, "k1 n_test"], Float[Tensor, "1 n_test"]]:
        """Measurements of one stack (row 0 with nothing left out), and those of the trained model."""
        task = self._task(experiment, base, rows, seed)
        fit = experiment.training.shortened(self.epochs).fit(task)
        trained = stacking.stack(base.params, 1), stacking.stack(base.buffers, 1)
        return experiment.measure(task.module, fit.params, fit.buffers), experiment.measure(task.module, *trained)

    def _task(self, experiment: Experiment, base: Trained, rows: Int[np.ndarray, " k"], seed: int) -> Task:
        data, n = experiment.data, experiment.data.n_train
        weights = torch.ones(len(rows) + 1, n, dtype=data.train_inputs.dtype, device=data.train_inputs.device)
        if self.divisor == "n-1":
            weights[1:] *= n / (n - 1)
        weights[torch.arange(1, len(rows) + 1), torch.as_tensor(rows)] = 0.0
        task = experiment.task(seed, weights)
        if self.start == "warm":
            params, buffers = (stacking.stack(part, task.models) for part in (base.params, base.buffers))
            task = replace(task, params=params, buffers=buffers, trainable=experiment.trainable(self.trainable, task.module))
        return replace(task, reference=base.params) if len(rows) else task

    def _control(self, experiment: Experiment, base: Trained, seed: int, in_stacks: float) -> Control:
        task = self._task(experiment, base, np.arange(0), seed)
        fit = experiment.training.shortened(self.epochs).fit(task)
        moved = max((fit.params[name][0] - base.params[name]).abs().max().item() for name in base.params)
        before = experiment.measure(task.module, stacking.stack(base.params, 1), stacking.stack(base.buffers, 1))
        drift = experiment.measure(task.module, fit.params, fit.buffers) - before
        return Control(moved, drift.abs().max().item(), drift.mean().item(), in_stacks)

    def shard_key(self, experiment: Experiment, rows: Int[np.ndarray, " k"], seed: int) -> dict[str, object]:
        """Everything that determines one stack's measurements."""
        return experiment.key(
            seed,
            all_data=experiment.digest,
            measurement=describe(experiment.measurement),
            rows=rows.tolist(),
            start=self.start,
            trainable=self.trainable,
            epochs=self.epochs,
            divisor=self.divisor,
        )


@dataclass(frozen=True)
class StackResult:
    """Measurements without each row, the reference they are compared with, the drift of the model with nothing left out, and whether all
    came from the store."""

    values: Float[np.ndarray, "k n_test"]
    reference: Float[np.ndarray, " n_test"]
    drift: float
    stored: bool


@dataclass(frozen=True)
class Shard:
    """One stack of retrainings: the unit of work, of storage and of loss when killed. Picklable."""

    options: Retraining
    experiment: Experiment
    base: Trained
    rows: Int[np.ndarray, " k"]
    seed: int
    store: Store

    def run(self) -> StackResult:
        key = self.options.shard_key(self.experiment, self.rows, self.seed)
        stored = self.store.load("retrained", key)
        if stored is None:
            values, trained = self.options._retrain(self.experiment, self.base, self.rows, self.seed)
            self.store.save("retrained", key, {"values": values, "trained": trained[0]})
        else:
            values, trained = stored["values"], stored["trained"].unsqueeze(0)
        values_np, trained_np = values.double().cpu().numpy(), trained.double().cpu().numpy()
        own = self.options.start == "scratch" or self.options.subtract_drift
        drift = float(np.abs(values_np[0] - trained_np[0]).max())
        return StackResult(values_np[1:], values_np[0] if own else trained_np[0], drift, stored is not None)


def _stack_size(experiment: Experiment) -> int:
    inputs = experiment.data.train_inputs
    module = experiment.module(0)
    params = {name: value.detach() for name, value in module.named_parameters()}
    each = stacking.bytes_per_row(module, params, dict(module.named_buffers()), inputs)
    batch = getattr(experiment.training, "batch_size", None) or experiment.data.n_train
    state = 4 * sum(value.numel() for value in params.values()) * inputs.element_size()
    return int(np.clip(STACK_BYTES // (state + 4 * min(batch, experiment.data.n_train) * each), FEWEST, MOST))


def _results(tasks: list[Shard], workers: int) -> Iterator[StackResult]:
    if workers == 1:
        yield from (task.run() for task in progress(tasks, "retraining stacks"))
        return
    threads = max(1, torch.get_num_threads() // workers)
    calls = (joblib.delayed(_in_worker)(task.run, threads) for task in tasks)
    results = joblib.Parallel(n_jobs=workers, return_as="generator")(calls)
    for _, (result, messages) in zip(progress(range(len(tasks)), "retraining stacks"), results, strict=True):
        for message in messages:
            warn_accuracy(message)
        yield result


def _in_worker(run: Callable[[], StackResult], threads: int) -> tuple[StackResult, list[str]]:
    """A stack's result, and its accuracy warnings, which would otherwise end on the worker's own standard error."""
    torch.set_num_threads(threads)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AccuracyWarning)
        result = run()
    return result, [str(warning.message) for warning in caught if issubclass(warning.category, AccuracyWarning)]
