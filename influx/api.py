"""Everything the command line does, for a module and tensors of your own.

    import influx
    run = influx.estimate(net, "cross_entropy", (x, y), (x_test, y_test), method="ekfac")
    run.influence                                     # DataFrame [n_train, n_test]
    run = influx.validate(net, "cross_entropy", (x, y), (x_test, y_test), method="ekfac", training="adam")
    run.correlations                                  # agreement with retraining, interval, noise ceiling

Both are the command of the same name with other data, model and loss: the same methods, settings, defaults and files. What comes back is
what `influx.load` gives for a folder of the command line.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from influx import progress, rules
from influx.asked import Asked
from influx.errors import InfluxError
from influx.estimators import Estimator
from influx.experiment import Experiment
from influx.instantiate import build
from influx.measurements import Measurement
from influx.measurements.base import Posing
from influx.objectives import Objective, SquaredError
from influx.objectives.base import Unlabelled
from influx.own import AsGiven, Held, Loss, OwnLoss, check_separate, data_of, with_flat_targets
from influx.own_module import OwnModel, OwnModule, module_of, width_of
from influx.pipelines import estimate as estimating
from influx.pipelines import validate as validating
from influx.pipelines.session import Session, check_batches, check_targets
from influx.runfolder import RunFolder
from influx.runs import Run
from influx.store import Store
from influx.training import Training

TRIED = 3  # examples that the loss is tried on
NO_TRAINING = ("training", "retraining", "truth", "loo")  # means nothing where nothing is trained


def estimate(
    model: nn.Module,
    loss: str | Loss,
    train: Any,
    test: Any,
    *,
    method: str | Estimator = "cg",
    measurement: str | Measurement = "loss",
    weight_decay: float = 0.0,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
) -> Run:
    """Influence of every training example on every test example, for a model that is trained already.

    `run.influence[i, t]` predicts `m_t(θ trained without i) − m_t(θ trained on all)`, in the measurement's unit: for a loss, positive means
    that training example i is helpful. The module's present parameters are taken for the optimum of
    `J(θ) = (1/n) Σ_i ℓ_i(θ) + (λ/2)‖θ‖²`; `run.history` has J and the norm of its gradient there, which says how nearly they are.

    Args:
        model: the trained module; never changed. Its number type and device are those of the computation, in evaluation mode.
        loss: "cross_entropy" (logits and whole-number labels), "squared_error" (one output, ½(ŷ − y)²), another option of `objective=`, or
            a function of outputs [n, out] and targets [n, ...] that gives one loss an example, shape [n] (torch's do with
            reduction="none"). Where it is not convex in the outputs the GGN has negative eigenvalues, which methods refuse or warn of:
            set method.curvature=fisher, or more method.damping.
        train, test: (inputs [n, ...], targets [n, ...]) as tensors or arrays, a torch Dataset, or a DataLoader that does not shuffle.
        method: an option of `method=` on the command line, or an `Estimator`.
        measurement: an option of `measurement=`, or a `Measurement`.
        weight_decay: λ that the model was trained with; the Hessian has it.
        seed: of methods that draw.
        settings: more settings, by their names on the command line: {"method.damping": 0.01, "memory": "4GiB"}.
        folder: where the run's files go, for `influx.load` and `influx report`; without one they last as long as what is returned.

    Raises:
        InfluxError: something does not fit; the message says what, and what to do.

    Cost: that of the method; nothing is trained.

    >>> import torch, influx
    >>> x = torch.linspace(-1, 1, 8, dtype=torch.float64).unsqueeze(1)
    >>> y = 2 * x.squeeze(1) + torch.tensor([0.3, -0.3] * 4, dtype=torch.float64)
    >>> net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    >>> _ = net.weight.data.fill_(float(x.squeeze() @ y / x.squeeze().square().sum()))  # least squares
    >>> run = influx.estimate(net, "squared_error", (x, y), (x[:2], y[:2]), method="exact")
    >>> run.influence.head(3).round(4).to_numpy().tolist()
    [[0.0117, -0.0155], [-0.0155, 0.0205], [0.0064, -0.0085]]
    """
    if not isinstance(model, nn.Module):
        raise InfluxError(
            f"influx.estimate needs a trained torch.nn.Module; model is a {type(model).__name__}. influx.validate can train one."
        )
    for key in settings or {}:
        if key.partition(".")[0] in NO_TRAINING:
            also = " (λ is the argument weight_decay)" if key == "training.weight_decay" else ""
            raise InfluxError(f"{key} means nothing to influx.estimate, which trains nothing{also}: use influx.validate.")
    rules.check_value("training.weight_decay", weight_decay)
    asked = Asked("estimate", loss, method, measurement, {"seed": seed}, settings or {})
    with _differentiating():
        session = _session(asked, model, train, test, folder, AsGiven(float(weight_decay), type(model), seed))
        estimator = _prepared(session, asked.estimator)
        return _run(session, lambda: estimating.estimate(session, estimator), folder is None)


def validate(
    model: OwnModule,
    loss: str | Loss,
    train: Any,
    test: Any,
    *,
    method: str | Estimator = "cg",
    training: str = "sgd",
    weight_decay: float | None = None,
    removed: int | str | None = None,
    seeds: int | None = None,
    measurement: str | Measurement = "loss",
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
) -> Run:
    """Train, estimate influence, retrain with examples left out, and say how well the two agree.

    `run.correlations` has the agreement with its interval and the noise ceiling, `run.predicted` and `run.change` the two sides of it, and
    `run.parameters()` the trained model's numbers.

    Args:
        model: a module that is not trained: training starts from its present parameters, whatever the seed, so that seeds vary the batch
            order alone; or a function (a class) without arguments that makes one, called once for each seed. Never changed.
        loss, train, test, measurement, folder: as for `influx.estimate`.
        method: an option of `method=`; those that follow the training run are welcome here.
        training: an option of `training=`: "sgd", "adam", "adamw", "newton" (convex models), "lbfgs".
        weight_decay: λ of the training.
        removed, seeds: how many training examples are left out, one at a time ("all": each), and over how many seeds.
        seed: of the training and of what is left out; further ones count up from it.
        settings: more settings, by their names on the command line: {"training.epochs": 20, "retraining.start": "warm", "truth": "group"}.

    What is None has the default of `influx validate --cfg job`.

    Raises:
        InfluxError: something does not fit; nothing has been trained by then.
        NumericalError: training or estimation broke down.

    Cost: that of the method, and `removed` × `seeds` trainings.

    >>> import torch, influx
    >>> from sklearn.datasets import load_iris
    >>> x, y = map(torch.as_tensor, load_iris(return_X_y=True))
    >>> x = (x - x.mean(0)) / x.std(0)
    >>> net = lambda: torch.nn.Linear(4, 3, dtype=torch.float64)
    >>> how = {"training": "newton", "weight_decay": 0.01, "removed": 20, "seeds": 1}
    >>> run = influx.validate(net, "cross_entropy", (x[::2], y[::2]), (x[1::2], y[1::2]), method="exact", **how)
    >>> run.correlations.set_index("statistic").value[["pearson", "spearman", "slope"]].round(2).to_dict()
    {'pearson': 1.0, 'spearman': 1.0, 'slope': 1.21}
    """
    given = {"training.weight_decay": weight_decay, "retraining.removed": removed, "retraining.seeds": seeds}
    named = {"training": training, "seed": seed, **{key: value for key, value in given.items() if value is not None}}
    asked = Asked("validate", loss, method, measurement, named, settings or {})
    with _differentiating():
        session = _session(asked, model, train, test, folder, None)
        estimator = estimating.prepare(session, asked.estimator)
        retraining = validating.prepare(session, estimator) if session.config["loo"] else None
        return _run(session, lambda: validating.validate(session, estimator, retraining), folder is None)


@contextmanager
def _differentiating() -> Iterator[None]:
    """Gradients are recorded, whatever the caller has switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _prepared(session: Session, given: Estimator | None) -> Estimator:
    """The estimator, where there is no training run to follow."""
    try:
        return estimating.prepare(session, given)
    except InfluxError as error:
        if "step by step" not in str(error):
            raise
        method = session.choices["method"]
        raise InfluxError(
            f"method={method} follows the training run, and influx.estimate has only its end: use influx.validate, which trains."
        ) from error


def _session(
    asked: Asked, model: OwnModule, train: Any, test: Any, folder: str | Path | None, training: Training | None
) -> Session:  # fmt: skip
    """A session on the user's own parts; its folder is not made yet."""
    config, choices, words = asked.composed()
    loss, measurement, seed = asked.loss, asked.measurement, config["seed"]
    objective = build(config["objective"], Objective, "objective") if isinstance(loss, str) else OwnLoss(Held(loss))
    measurement = build(config["measurement"], Measurement, "measurement") if isinstance(measurement, str) else measurement
    training = build(config["training"], Training, "training") if training is None else training
    whole = asked.command == "validate" or "method.params" not in asked.settings
    module = module_of(model, seed, whole)
    experiment = _experiment(module, model, train, test, training, objective, measurement)
    names = {"dataset": "own data", "model": type(module).__name__, **asked.objects}
    plain = {**config, **{key: {"own": value} for key, value in names.items()}, "dtype": str(experiment.dtype).removeprefix("torch.")}
    path = Path(tempfile.gettempdir()) / f"influx-{uuid.uuid4().hex}" if folder is None else Path(folder)
    run = RunFolder(path, {"choices": {**choices, **names}, "device": str(experiment.data.train_inputs.device), "warnings": []})
    run.record |= {"n_parameters": sum(value.numel() for value in module.parameters()), "overrides": words}
    return Session(plain, {**choices, **names}, run, experiment, Store(None), seed)


def _run(session: Session, work: Callable[[], object], temporary: bool) -> Run:
    """Make the folder, do the work, close the record, and read the folder; a temporary one is removed with what is returned, or when the
    work breaks."""
    folder = _started(session, temporary)
    try:
        with nullcontext() if sys.stderr.isatty() else progress.silence():
            work()
        folder.record["status"] = "finished"
    except BaseException as error:
        folder.record["status"] = f"failed: {error}" if isinstance(error, InfluxError) else f"failed: {type(error).__name__}"
        if temporary:
            shutil.rmtree(folder.path, ignore_errors=True)
        raise
    finally:
        if folder.path.is_dir():
            folder.write_record()
    run = Run(folder.path)
    if temporary:
        weakref.finalize(run, shutil.rmtree, run.path, ignore_errors=True)
    return run


def _started(session: Session, temporary: bool) -> RunFolder:
    folder, words = session.folder, session.folder.record["overrides"]
    noted, config = folder.record["warnings"], dict(session.config)
    place = folder.path / ".hydra"
    try:
        folder.path.mkdir(0o700 if temporary else 0o777, parents=True, exist_ok=True)
        place.mkdir(exist_ok=True)
    except OSError as error:
        raise InfluxError(f"folder {folder.path} cannot be made: {error.strerror}. Name another one.") from error
    for name, content in (("config", config), ("overrides", words)):
        (place / f"{name}.yaml").write_text(yaml.safe_dump(content))
    folder.start(str(config["command"]), config, words)
    folder.record["warnings"] = noted
    return folder


def _experiment(
    module: nn.Module, model: OwnModule, train: Any, test: Any, training: Training, objective: Objective, measurement: Measurement
) -> Experiment:
    if isinstance(measurement, Posing):
        raise InfluxError(
            "this measurement asks questions about words, and influx.estimate and validate take tensors: use the command line."
        )
    first = next(module.parameters())
    data = data_of(train, test, lambda inputs: width_of(module, inputs), first.dtype, first.device)
    if isinstance(objective, Unlabelled):
        data = objective.prepare(data).to(first.dtype, first.device)
    elif isinstance(objective, OwnLoss):
        objective = replace(objective, target_dims=data.train_targets.ndim)
    else:
        data = with_flat_targets(data)
    experiment = Experiment(data, OwnModel(Held(model)), training, objective, measurement)
    if isinstance(objective, OwnLoss):
        with torch.no_grad():
            check_separate(objective, module(data.train_inputs[:TRIED]), data.train_targets[:TRIED])
    check_targets(experiment, "squared_error" if type(objective) is SquaredError else "cross_entropy")
    check_batches(experiment, module)
    return experiment
