"""One run's objects, built from its configuration before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from influx import memory
from influx.aims import Aims
from influx.datasets import Data, Dataset
from influx.errors import InfluxError
from influx.experiment import Experiment
from influx.instantiate import build
from influx.laboratory import Laboratory
from influx.measurements import Measurement
from influx.measurements.base import Posing
from influx.models import Model
from influx.models.base import Encoding, Placed
from influx.objectives import CrossEntropy, Objective, SquaredError
from influx.objectives.base import Clustering, Coupled, Unlabelled
from influx.objectives.contrastive import check_views
from influx.runfolder import RunFolder
from influx.stacking import is_layered, mixes_rows
from influx.store import Store
from influx.training import Training, averaging
from influx.training.second_order import SecondOrder

log = logging.getLogger("influx")

LARGE_MODEL = 100_000  # parameters from which one batch's products fill several threads
ALL_CORES = torch.get_num_threads()  # read once: a sweep's earlier job may have asked for fewer


@dataclass(frozen=True)
class Session:
    """What every pipeline works with."""

    config: Mapping[str, Any]
    choices: Mapping[str, str]
    folder: RunFolder
    experiment: Experiment
    store: Store
    seed: int

    @property
    def memory(self) -> int:
        """Bytes that an estimate may hold; training asks for none."""
        return memory.parse(self.config.get("memory", "2GiB"))

    @property
    def laboratory(self) -> Laboratory:
        """The record that estimators ask, before the model is trained."""
        workers = int(self.config.get("retraining", {}).get("workers", 1))
        return Laboratory(self.experiment, self.store, self.seed, self.memory, self.config["checkpoints"], workers)


def open_session(config: Mapping[str, Any], choices: Mapping[str, str], folder: RunFolder, store: Store) -> Session:
    """Build data, model, training, objective and measurement, and check that they fit one another.

    Raises:
        InfluxError: any part is wrong or does not fit; nothing has been trained or written by then.
    """
    device = _device(config["device"])
    dtype = getattr(torch, config["dtype"])
    model = build(config["model"], Model, "model")
    training = build(config["training"], Training, "training")
    objective = build(config["objective"], Objective, "objective")
    measurement = build(config["measurement"], Measurement, "measurement")
    with folder.stage("data"):
        found = read(config["dataset"])
        folder.record["data"] = found.shown_digest()
        data = prepared(found, model, objective, measurement, dtype, device)
    if data.texts and not isinstance(model, Encoding) and not data.words:
        folder.warn(f"{data.name} is text, and model={choices['model']} takes its token ids for quantities: use model=minilm.")
    experiment = Experiment(data, model, training, objective, measurement)
    module = experiment.module(config["seed"])
    check_targets(experiment, choices["objective"])
    check_batches(experiment, module)
    size = sum(p.numel() for p in module.parameters())
    threads = _set_threads(config["threads"], size, not is_layered(module))
    folder.record |= {"device": str(device), "threads": threads, "n_parameters": size}
    if len(data.flipped):
        folder.record["flipped_labels"] = data.flipped.tolist()
    _say_of_tests(experiment, folder)
    log.info(
        "%s: %d training and %d test examples; %s with %s parameters; %s, %s, seed %d",
        data.name, data.n_train, data.n_test, type(model).__name__, f"{size:,}", config["dtype"], device, config["seed"],
    )  # fmt: skip
    return Session(config, choices, folder, experiment, store, config["seed"])


def read(node: Mapping[str, Any]) -> Data:
    """The data set that a configuration describes."""
    return build(node, Dataset, "dataset").load()


def prepared(
    found: Data, model: Model, objective: Objective, measurement: Measurement, dtype: torch.dtype, device: torch.device
) -> Data:  # fmt: skip
    """A data set as the objective and the measurement want it, texts as the model's frozen layers leave them: computed once, not at every
    step.

    Raises:
        InfluxError: the model reads texts, and there are none; or the objective or the measurement cannot use the data.
    """
    data = found.to(dtype, device)
    if isinstance(objective, Unlabelled):
        data = objective.prepare(data).to(dtype, device)
    if isinstance(measurement, Posing):
        data = measurement.pose(data).to(dtype, device)
    if not isinstance(model, Encoding):
        return data
    if not data.texts:
        raise InfluxError(f"model={type(model).__name__.lower()} reads texts, and {data.name} has none: use dataset=bbc_news.")
    return replace(data, train_inputs=model.encode(data.train_inputs), test_inputs=model.encode(data.test_inputs))


def check_targets(experiment: Experiment, chosen: str) -> None:
    """One example through objective and measurement: what cannot take these outputs and targets says so now."""
    data, module = experiment.data, experiment.module(0)
    objective, labels = experiment.objective, data.task == "classification"
    if isinstance(objective, SquaredError if labels else CrossEntropy):
        right = "cross_entropy" if labels else "squared_error"
        raise InfluxError(f"objective={chosen} does not fit {data.task} targets; use objective=supervised or {right}.")
    if isinstance(objective, Coupled) and objective.recompute and isinstance(experiment.training, SecondOrder):
        raise InfluxError(
            "objective.recompute=true moves the objective while it is optimised, and training=newton and lbfgs look for its minimum: "
            "use training=sgd, adam or adamw, or objective.recompute=false."
        )
    if data.words:
        try:
            module(data.train_inputs[:1])
        except (RuntimeError, ValueError) as error:
            name = type(experiment.model).__name__
            raise InfluxError(f"{name} reads quantities, and this objective gives it numbers of words: use model=skip_gram.") from error
    state = {name: value.detach() for name, value in module.named_parameters()}, dict(module.named_buffers())
    if data.views:
        check_views(module, data.train_inputs[:2])
    part = data.train_inputs[:1], data.train_targets[:1]
    aims = Aims(module, state, state, objective, part)  # of an untrained model: sizes alone count
    few = data.test_inputs[:1], data.test_targets[:1]
    with torch.no_grad():
        check_losses(objective, module, data)
        experiment.measurement.value(module(few[0]), aims.of_measurement(experiment.measurement, few), objective)


def check_losses(objective: Objective, module: torch.nn.Module, data: Data) -> None:
    """Raise `InfluxError` unless a supervised objective gives two examples two losses: targets [n, 1] would be spread over n."""
    if isinstance(objective, Unlabelled) or data.n_train < 2:
        return
    outputs, targets = module(data.train_inputs[:2]), data.train_targets[:2]
    try:
        made = tuple(objective.loss(outputs, targets).shape)
    except RuntimeError as error:
        raise InfluxError(_unfit(objective, outputs, targets)) from error
    if made != (2,):
        raise InfluxError(_unfit(objective, outputs, targets))


def _unfit(objective: Objective, outputs: torch.Tensor, targets: torch.Tensor) -> str:
    return (
        f"{type(objective).__name__} gives no loss an example here: for 2 examples the outputs are of shape {tuple(outputs.shape)}, the "
        f"targets of shape {tuple(targets.shape)}. Squared error takes one output, and all take one target an example."
    )


def check_batches(experiment: Experiment, module: torch.nn.Module) -> None:
    """What training refuses of batch normalisation, a batch of one row or mean weights, is said now and not in the middle of it."""
    averaging.check(getattr(experiment.training, "average_from", None), module)
    rows, size = experiment.data.n_train, getattr(experiment.training, "batch_size", None)
    if mixes_rows(module) and size is not None and rows % size == 1:
        raise InfluxError(
            f"the last batch of {rows} examples in batches of {size} has one row, which batch normalisation cannot take: "
            "choose another training.batch_size."
        )


def _say_of_tests(experiment: Experiment, folder: RunFolder) -> None:
    """What test examples or clusters are not, where one would take them for it."""
    data, objective = experiment.data, experiment.objective
    if not data.test_names and torch.equal(data.train_inputs, data.test_inputs):
        log.info("the test examples are the training examples: nothing is held out.")
    if isinstance(objective, Clustering) and not isinstance(experiment.model, Placed) and experiment.measurement.reads == "labels":
        folder.warn(
            f"the clusters of {type(experiment.model).__name__} are matched with no classes, so that a measurement by labels is about an "
            "arbitrary numbering: use model=dec or vade."
        )


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InfluxError("device=cuda: torch sees no CUDA device here; use device=auto or device=cpu.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _set_threads(wanted: int | str, size: int, convolutional: bool) -> int:
    if wanted == "auto":
        wanted = ALL_CORES if size >= LARGE_MODEL or convolutional else 1
    torch.set_num_threads(int(wanted))
    return int(wanted)
