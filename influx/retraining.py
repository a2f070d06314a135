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
TRIAL_EPOCHS = 50  # model-epochs of the trial behind a prediction
FEWEST, MOST = 8, 128  # models in a stack when the size is chosen


@dataclass(frozen=True)
class Control:
    """Retraining with nothing left out, against the trained model. From scratch on a CPU both differences are exactly 0; from the
    optimum they are the drift of further training, which every retrained model shares."""

    largest_parameter_change: float
    largest_measurement_change: float
    mean_measurement_change: float


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
class Retraining:
    """Which examples to leave out, from where to start, with which seeds.

    Args:
        start: "scratch" (the seed's initialisation and batch order) or "warm" (the seed's trained model, its batch order anew).
        removed: how many examples are left out, one at a time, or "all".
        selection: "random", "top" (largest mean |estimate| over the test examples), "loss" (highest training loss), "stratified" (evenly
            spaced ranks of the mean estimate) or "all".
        index: explicit positions in the data set's own order; overrides `removed` and `selection`.
        seeds: number of seeds, counted up from the run's.
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
        """The truth's name in tables."""
        return f"loo_{self.start}" + ("_last_layer" if self.trainable == "last_layer" else "")

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

    def predict(self, experiment: Experiment, base: Trained, rows: Int[np.ndarray, " n_removed"], seed: int) -> float:
        """Seconds that `run` takes when nothing is stored, from a trial: a few epochs of one stack, or one stack to its optimum."""
        training = experiment.training
        stacks = [rows[part] for part in self._parts(experiment, len(rows))]

        def seconds(options: Retraining) -> float:
            begun = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", AccuracyWarning)  # `run` will say it
                options._retrain(experiment, base, stacks[0], seed)
            return time.perf_counter() - begun

        if isinstance(training, FirstOrder):
            epochs, few = self.epochs or training.epochs, 1 + max(1, TRIAL_EPOCHS // len(stacks[0]))
            short, longer = seconds(replace(self, epochs=1)), seconds(replace(self, epochs=few))
            stack_seconds = short + (epochs - 1) * max(0.0, longer - short) / (few - 1)
        else:
            stack_seconds = seconds(self)
        return stack_seconds * len(stacks) * self.seeds / self.workers + (self.seeds - 1) * base.seconds

    def run(self, experiment: Experiment, base: Trained, rows: Int[np.ndarray, " n_removed"], seed: int, store: Store) -> Truth:
        """Retrain without each of `rows`, for every seed. Finished stacks are stored and never trained again.

        Cost: (n_removed + stacks) x n_seeds trainings, side by side in stacks; memory: one stack a worker.
        """
        if any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in experiment.module(seed).modules()):
            warn_accuracy(
                "batch normalisation mixes the rows of a batch: a left-out example counts for nothing in the loss, but still moves its "
                "batch's mean and variance, so this truth is not quite its absence."
            )
        seeds = [seed + s for s in range(self.seeds)]
        bases = [base, *(experiment.train(s, store) for s in seeds[1:])]
        parts = self._parts(experiment, len(rows))
        jobs = [(s, k, part) for s in range(self.seeds) for k, part in enumerate(parts)]
        change = np.empty((len(rows), experiment.n_test, self.seeds))
        full = np.empty((experiment.n_test, self.seeds, len(parts)))
        reused = 0
        tasks = [Shard(self, experiment, bases[s], rows[part], seeds[s], store) for s, _, part in jobs]
        for (s, k, part), (values, reference, stored) in zip(jobs, _results(tasks, self.workers), strict=True):
            change[part, :, s] = values - reference
            full[:, s, k] = reference
            reused += stored
        control = self._control(experiment, base, seed)
        return Truth(change, full[:, :, 0], rows, np.array(seeds), control, reused, len(jobs))

    def _parts(self, experiment: Experiment, count: int) -> list[slice]:
        size = self.models_at_once or _stack_size(experiment)
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

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

    def _control(self, experiment: Experiment, base: Trained, seed: int) -> Control:
        task = self._task(experiment, base, np.arange(0), seed)
        fit = experiment.training.shortened(self.epochs).fit(task)
        moved = max((fit.params[name][0] - base.params[name]).abs().max().item() for name in base.params)
        before = experiment.measure(task.module, stacking.stack(base.params, 1), stacking.stack(base.buffers, 1))
        drift = experiment.measure(task.module, fit.params, fit.buffers) - before
        return Control(moved, drift.abs().max().item(), drift.mean().item())

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
class Shard:
    """One stack of retrainings: the unit of work, of storage and of loss when killed. Picklable."""

    options: Retraining
    experiment: Experiment
    base: Trained
    rows: Int[np.ndarray, " k"]
    seed: int
    store: Store

    def run(self) -> tuple[np.ndarray, np.ndarray, bool]:
        """(measurements without each row [k, n_test], the reference [n_test], whether both came from the store)."""
        key = self.options.shard_key(self.experiment, self.rows, self.seed)
        stored = self.store.load("retrained", key)
        if stored is None:
            values, trained = self.options._retrain(self.experiment, self.base, self.rows, self.seed)
            self.store.save("retrained", key, {"values": values, "trained": trained[0]})
        else:
            values, trained = stored["values"], stored["trained"].unsqueeze(0)
        values_np, trained_np = values.double().cpu().numpy(), trained.double().cpu().numpy()
        own = self.options.start == "scratch" or self.options.subtract_drift
        return values_np[1:], values_np[0] if own else trained_np[0], stored is not None


def _stack_size(experiment: Experiment) -> int:
    inputs = experiment.data.train_inputs
    module = experiment.module(0)
    params = {name: value.detach() for name, value in module.named_parameters()}
    each = stacking.bytes_per_row(module, params, dict(module.named_buffers()), inputs)
    batch = getattr(experiment.training, "batch_size", None) or experiment.data.n_train
    state = 4 * sum(value.numel() for value in params.values()) * inputs.element_size()
    return int(np.clip(STACK_BYTES // (state + 4 * min(batch, experiment.data.n_train) * each), FEWEST, MOST))


def _results(tasks: list[Shard], workers: int) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
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


def _in_worker(
    run: Callable[[], tuple[np.ndarray, np.ndarray, bool]], threads: int
) -> tuple[tuple[np.ndarray, np.ndarray, bool], list[str]]:
    """A stack's result, and its accuracy warnings, which would otherwise end on the worker's own standard error."""
    torch.set_num_threads(threads)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AccuracyWarning)
        result = run()
    return result, [str(warning.message) for warning in caught if issubclass(warning.category, AccuracyWarning)]
