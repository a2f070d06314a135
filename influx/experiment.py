"""An experiment: data, model, training, objective and measurement, ready to be trained any number of times.

It is what a worker process gets: everything that determines a trained model, apart from the example weights, the start and the seed.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from influx import frozen, stacking
from influx.aims import Aims, Labelled
from influx.datasets import Data
from influx.errors import InfluxError
from influx.instantiate import describe
from influx.masking import Masked
from influx.measurements import Measurement
from influx.measurements.base import Posing
from influx.models import Model, build
from influx.models.base import Placed, Shape, last_layer
from influx.objectives import Objective
from influx.objectives.base import Clustering, Coupled, Unlabelled, standing
from influx.problem import GIBIBYTE, Examples, Problem
from influx.stacking import Stack, stack, unstack
from influx.store import Store, digest
from influx.trained import Trained, from_store, snapshots_from_store, snapshots_to_store, to_store
from influx.training import Fit, Task, Training
from influx.training.first_order import FirstOrder
from influx.trajectory import Snapshot, Step, Trajectory

ENGINE = (  # what turns a key into numbers, beside the objects that the key describes
    "aims.py", "curvature.py", "estimators/adjoint.py", "estimators/recursion.py", "experiment.py", "frozen.py", "gradients.py",
    "kronecker.py", "layered.py", "masking.py", "masks.py", "measurements", "models", "objectives", "problem.py", "quasi_newton.py",
    "responses", "seeding.py", "shards.py", "solvers", "stacking.py", "trained.py", "training", "trajectory.py", "word_products.py",
)  # fmt: skip

RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU)  # layers that draw while training
PLACED: dict[str, dict[str, Tensor]] = {}  # starts that depend on the data, found once a process
SNAPSHOT_BYTES = 2**28  # of all snapshots of a training together; larger models keep fewer


@cache
def engine_digest() -> str:
    """SHA-256 of the engine's source: an edit of any of it makes stored results strangers."""
    package = Path(__file__).parent
    files = [file for part in ENGINE for file in sorted([package / part] if part.endswith(".py") else (package / part).glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@dataclass(frozen=True)
class Experiment:
    """`data` is already in the type and on the device of the computation."""

    data: Data
    model: Model
    training: Training
    objective: Objective
    measurement: Measurement

    def _place(self, index: Int[np.ndarray, " n"]) -> Int[Tensor, " n"]:
        return torch.as_tensor(index, device=self.data.train_inputs.device)

    def _train_part(self) -> Labelled:
        return self.data.train_inputs, self.data.train_targets

    def _test_part(self) -> Labelled:
        return self.data.test_inputs, self.data.test_targets

    def train_examples(self, seed: int) -> Examples:
        """With the targets of the training objective, those of coupled ones as they are where the seed's training starts."""
        if not isinstance(self.objective, Unlabelled):
            return Examples(*self._train_part(), self._place(self.data.train_index))
        targets = self._aims(seed, None).of_objective(self._train_part())
        return Examples(self.data.train_inputs, targets, self._place(self.data.train_index))

    def test_examples(self, seed: int, trained: Trained | None = None) -> Examples:
        """With what the measurement compares their outputs with, targets that are recomputed as they are under the trained model."""
        if not isinstance(self.objective, Unlabelled) and self.measurement.reads != "start":
            return Examples(*self._test_part(), self._place(self.data.test_index))
        targets = self._aims(seed, trained).of_measurement(self.measurement, self._test_part())
        return Examples(self.data.test_inputs, targets, self._place(self.data.test_index))

    def posed(self, seed: int, trained: Trained) -> Examples:
        """The test examples as the training objective would have them."""
        return Examples(self.data.test_inputs, self._aims(seed, trained).of_objective(self._test_part()), self._place(self.data.test_index))

    def _aims(self, seed: int, trained: Trained | None) -> Aims:
        module = self.initial(seed)
        start = {name: value.detach() for name, value in module.named_parameters()}, dict(module.named_buffers())
        return Aims(module, start, start if trained is None else (trained.params, trained.buffers), self.objective, self._train_part())

    @property
    def gives_classes(self) -> bool:
        """Whether outputs are scores of the classes (or clusters) that the test examples' labels name."""
        clusters = isinstance(self.objective, Clustering) and isinstance(self.model, Placed)  # others' clusters have no names
        unnamed = isinstance(self.objective, Unlabelled) and not clusters
        return self.data.task == "classification" and not self.data.test_names and not unnamed

    @property
    def n_outputs(self) -> int:
        if not isinstance(self.objective, Unlabelled):
            return self.data.n_outputs
        return self.objective.n_outputs(self.model.unticketed(self.data) if isinstance(self.model, Masked) else self.data)

    @property
    def n_test(self) -> int:
        return 1 if self.measurement.whole_set else self.data.n_test

    def on_tests(self, rows: Int[np.ndarray, " kept"]) -> Experiment:
        """The same experiment with these rows of its test part alone; what it trains is the same."""
        data, at = self.data, torch.as_tensor(rows, device=self.data.test_inputs.device)
        kept = replace(data, test_inputs=data.test_inputs[at], test_targets=data.test_targets[at], test_index=data.test_index[rows])
        return replace(self, data=kept)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all data, the test part included: what a measurement depends on."""
        return self.data.digest()

    @cached_property
    def train_digest(self) -> str:
        """SHA-256 of the training part: what a trained model depends on."""
        parts = (self.data.train_inputs, self.data.train_targets)
        return hashlib.sha256(b"".join(part.cpu().contiguous().numpy().tobytes() for part in parts)).hexdigest()

    def module(self, seed: int) -> nn.Module:
        """A freshly initialised module, a function of `seed` alone (drawn in float32, so that both number types start alike)."""
        numbers = isinstance(self.objective, Unlabelled) and not isinstance(self.objective, Clustering)
        task = "regression" if numbers else self.data.task
        shape = Shape(self.data.input_shape, self.n_outputs, task, len(self.data.words))
        return build(self.model, shape, seed).to(self.data.train_inputs.device, self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters and outputs; inputs may be whole numbers that stand for words."""
        return self.data.dtype

    def initial(self, seed: int) -> nn.Module:
        """The module that the seed's training starts from: `module`, unless where it starts depends on the data."""
        module = self.module(seed)
        if isinstance(self.model, Placed):
            described = {"data": self.train_digest, "model": describe(self.model), "dtype": str(self.dtype), "seed": seed}
            key = digest({**described, "outputs": self.n_outputs})
            if key not in PLACED:
                self.model.place(module, self.data, seed)
                PLACED[key] = {name: value.detach().clone() for name, value in module.state_dict().items()}
            module.load_state_dict(PLACED[key])
        return module

    def trainable(self, which: str, module: nn.Module) -> tuple[str, ...]:
        return tuple(name for name, _ in module.named_parameters()) if which == "all" else last_layer(module)

    def task(self, seed: int, weights: Float[Tensor, "k n"], *, order: int | None = None, keep: tuple[int, ...] = ()) -> Task:
        """K copies of the seed's initial model with their example weights, every parameter trainable; `order` is the batch order's seed
        when it is another."""
        module = self.initial(seed)
        params = stack({name: value.detach() for name, value in module.named_parameters()}, len(weights))
        buffers = stack(dict(module.named_buffers()), len(weights))
        trainable = self.trainable("all", module)
        order = seed if order is None else order
        return Task(module, params, buffers, self.train_examples(seed), weights, self.objective, trainable, order, None, keep)

    @property
    def about(self) -> str:
        """A few words for lists."""
        return f"{self.data.name}, {type(self.model).__name__}, {type(self.training).__name__}"

    def key(self, seed: int, *, order: int | None = None, **more: Any) -> dict[str, Any]:
        """Everything that determines a trained model."""
        inputs = self.data.train_inputs
        return {
            "engine": engine_digest(),
            "torch": torch.__version__,
            "data": self.train_digest,
            "inputs": list(self.data.input_shape),
            "outputs": self.n_outputs,
            "words": len(self.data.words),
            "dtype": str(self.dtype),
            "device": inputs.device.type,
            "model": describe(self.model),
            "training": describe(self.training),
            "objective": describe(self.objective),
            "seed": seed,
            "order": seed if order is None else order,
            **more,
        }

    def train(self, seed: int, store: Store, *, order: int | None = None, checkpoints: int = 1) -> Trained:
        """The model trained on all examples; taken from the store when it is there. `checkpoints` places along training are kept beside it,
        the last of them the model itself."""
        fresh: list[Trained] = []
        marks = self._marks(checkpoints)

        def work() -> dict[str, Tensor]:
            begun = time.perf_counter()
            trained = self._fit(seed, order, marks)
            kept = trained.snapshots if store.root is None else ()  # else the store has them
            fresh.append(replace(trained, seconds=time.perf_counter() - begun, snapshots=kept))
            if marks:
                store.save("snapshots", self._along(seed, order, marks), snapshots_to_store(trained.snapshots), about)
            return to_store(fresh[0])

        key, about = self.key(seed, order=order), f"{self.about}, seed {seed}"
        found, _ = store.fetch("model", key, work, about)
        return fresh[0] if fresh else self._ordered(from_store(found))

    def trajectory(
        self, seed: int, store: Store, trained: Trained, limit: int, *, order: int | None = None, checkpoints: int = 1
    ) -> Trajectory:
        """How `trained` came about; what the store does not hold is trained again.

        Raises:
            InfluxError: this training keeps no steps, or they cannot be repeated.
        """
        self.check_trajectory()
        training: FirstOrder = self.training  # type: ignore[assignment]
        marks = self._marks(checkpoints)
        task = self._task(seed, order, marks)
        along = trained.snapshots if marks else ()
        if tuple(snapshot.step for snapshot in along) != marks:
            key, about = self._along(seed, order, marks), f"{self.about}, seed {seed}"
            stored, _ = store.fetch("snapshots", key, lambda: snapshots_to_store(self._fit(seed, order, marks).snapshots), about)
            along = snapshots_from_store(stored, trained.params, marks)
        start = training.initial(task).kept()
        rates = training.rates(self.data.n_train)

        def replay(snapshot: Snapshot, stop: int) -> Iterator[Step]:
            return training.replay(task, snapshot, stop)

        return Trajectory((start, *along), rates, trained.params, replay, limit, training.descent)

    def check_trajectory(self) -> None:
        """Raise `InfluxError` when the training run cannot be followed step by step."""
        if not isinstance(self.training, FirstOrder):
            raise InfluxError(
                f"this method follows the training run step by step, and {type(self.training).__name__} keeps no such record: "
                "use training=sgd, adam or adamw."
            )
        if self.training.average_from is not None:
            raise InfluxError(
                f"this method follows the training run step by step, and training.average_from={self.training.average_from:g} ends it with "
                "a mean of several steps: set training.average_from=null."
            )
        module = self.module(0)
        if any(isinstance(part, RANDOM) for part in module.modules()) or stacking.mixes_rows(module):
            raise InfluxError(
                f"this method follows the training run step by step, and {type(self.model).__name__} has dropout or batch statistics, "
                "which no record of the parameters repeats: use a model without them."
            )

    def _marks(self, checkpoints: int) -> tuple[int, ...]:
        if not isinstance(self.training, FirstOrder) or checkpoints < 2:
            return ()
        each = 3 * sum(value.nbytes for value in self.module(0).parameters())  # two moments at most
        return self.training.marks(self.data.n_train, min(checkpoints, 1 + SNAPSHOT_BYTES // each))

    def _along(self, seed: int, order: int | None, marks: tuple[int, ...]) -> dict[str, Any]:
        return self.key(seed, order=order, snapshots=list(marks))

    def _task(self, seed: int, order: int | None, keep: tuple[int, ...]) -> Task:
        ones = torch.ones(1, self.data.n_train, dtype=self.dtype, device=self.data.train_inputs.device)
        return self.task(seed, ones, order=order, keep=keep)

    def _fit(self, seed: int, order: int | None, keep: tuple[int, ...]) -> Trained:
        fit: Fit = self.training.fit(self._task(seed, order, keep))
        params, buffers = unstack(fit.params, 0), unstack(fit.buffers, 0)
        return Trained(params, buffers, fit.history[-1]["gradient_norm"], fit.history, 0.0, False, fit.snapshots)

    def _ordered(self, trained: Trained) -> Trained:
        """Names in the module's own order, tensors on the experiment's device: the file keeps neither."""
        module, device = self.module(0), self.data.train_inputs.device
        params = {name: trained.params[name].to(device) for name, _ in module.named_parameters()}
        buffers = {name: trained.buffers[name].to(device) for name, _ in module.named_buffers()}
        return replace(trained, params=params, buffers=buffers)

    def problem(self, trained: Trained, seed: int, memory: int = 2 * GIBIBYTE) -> Problem:
        """The fitted problem that estimators work on, in so many bytes."""
        train = self.train_examples(seed)
        if isinstance(self.objective, Coupled) and self.objective.recompute:
            train = replace(train, targets=self._aims(seed, trained).of_objective(self._train_part()))
        return Problem(
            self.module(seed), trained.params, trained.buffers, train, self.test_examples(seed, trained),
            self.objective, self.measurement, self.training.weight_decay, (), memory, self._judged(train, seed, trained),
        )  # fmt: skip

    def _judged(self, train: Examples, seed: int, trained: Trained) -> Examples | None:
        reads = self.measurement.reads
        if isinstance(self.measurement, Posing):
            return None
        if reads == "targets" or (reads == "labels" and not isinstance(self.objective, Unlabelled)):
            return train
        return replace(train, targets=self._aims(seed, trained).of_measurement(self.measurement, self._train_part()))

    def untrained(self, seed: int, memory: int = 2 * GIBIBYTE) -> Problem:
        """The problem before training: what a method's needs can be checked against."""
        module = self.initial(seed)
        start = {name: value.detach() for name, value in module.named_parameters()}
        return self.problem(Trained(start, dict(module.named_buffers()), math.nan, [], 0.0), seed, memory)

    def measure(self, seed: int, module: nn.Module, params: Stack, buffers: Stack) -> Float[Tensor, "k n_test"]:
        """The measurement of K models of a seed on every test example (or on the whole set: one column)."""
        examples, models = self.test_examples(seed), len(next(iter(params.values())))
        module, params, buffers, inputs = frozen.reduced(module, params, buffers, examples.inputs)
        examples = replace(examples, inputs=inputs)
        each = stacking.bytes_per_row(module, unstack(params, 0), unstack(buffers, 0), examples.inputs)
        together = self.measurement.reads == "targets" and isinstance(self.objective, Coupled) and self.objective.recompute
        pieces = []
        with torch.no_grad():
            for rows in [slice(0, len(examples))] if together else stacking.blocks(len(examples), 4 * models * each):
                part = examples.take(rows)
                outputs = stacking.outputs(module, params, buffers, part.inputs)
                targets = standing(self.objective, outputs, part.targets, torch.ones_like(outputs[..., 0])) if together else part.targets
                pieces.append(self.measurement.value(outputs, targets, self.objective))
        values = torch.cat(pieces, dim=1)
        return values.mean(1, keepdim=True) if self.measurement.whole_set else values
