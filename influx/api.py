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

import copy
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from influx import composing, progress, rules
from influx.configuration import conf_dir
from influx.errors import InfluxError, nearest
from influx.experiment import Experiment
from influx.instantiate import build
from influx.measurements import Measurement
from influx.measurements.base import Posing
from influx.objectives import Objective, SquaredError
from influx.objectives.base import Unlabelled
from influx.own import AsGiven, Held, Loss, OwnLoss, OwnModel, check_separate, data_of
from influx.pipelines import estimate as estimating
from influx.pipelines import validate as validating
from influx.pipelines.session import Session, check_batches, check_targets
from influx.runfolder import RunFolder
from influx.runs import Run
from influx.seeding import isolated
from influx.store import Store
from influx.training import Training

YOURS = ("dataset", "model", "objective", "device", "dtype", "threads", "task", "logger", "test_points")  # no settings here
OFF = {"store.dir": None, "pictures": False}  # unless asked for
TRIED = 3  # examples that the loss is tried on

OwnModule = nn.Module | Callable[[], nn.Module]


def estimate(
    model: nn.Module,
    loss: str | Loss,
    train: Any,
    test: Any,
    *,
    method: str = "cg",
    measurement: str = "loss",
    weight_decay: float = 0.0,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
) -> Run:
    """Influence of every training example on every test example, for a model that is trained already.

    `run.influence[i, t]` predicts `m_t(θ trained without i) − m_t(θ trained on all)`, in the measurement's unit: for a loss, positive means
    that training example i is helpful. The module's present parameters are taken for the optimum of
    `J(θ) = (1/n) Σ_i ℓ_i(θ) + (λ/2)‖θ‖²`.

    Args:
        model: the trained module; never changed. Its number type and device are those of the computation, in evaluation mode.
        loss: "cross_entropy" (logits and whole-number labels), "squared_error" (one output, ½(ŷ − y)²), another option of `objective=`, or
            a function of outputs [n, out] and targets [n, ...] that gives one loss an example, shape [n].
        train, test: (inputs [n, ...], targets [n, ...]) as tensors or arrays, a torch Dataset, or a DataLoader that does not shuffle.
        method: an option of `method=` on the command line.
        measurement: an option of `measurement=`.
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
    chosen = {"method": method, "measurement": measurement, **(settings or {})}
    _refuse_training(chosen)
    rules.check_value("training.weight_decay", weight_decay)
    given = AsGiven(float(weight_decay), type(model), seed)
    session = _open("estimate", model, loss, train, test, chosen, seed, folder, given)
    return _finish(session, _estimate, folder is None)


def validate(
    model: OwnModule,
    loss: str | Loss,
    train: Any,
    test: Any,
    *,
    method: str = "cg",
    training: str = "sgd",
    measurement: str = "loss",
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
        seed: of the training and of what is left out.
        settings: by their names on the command line: {"training.epochs": 20, "retraining.removed": 30, "retraining.seeds": 4,
            "truth": "group"}. Defaults are those of `influx validate --cfg job`.

    Raises:
        InfluxError: something does not fit; nothing has been trained by then.
        NumericalError: training or estimation broke down.

    Cost: that of the method, and `removed` × `seeds` trainings.

    >>> import torch, influx
    >>> from sklearn.datasets import load_iris
    >>> x, y = map(torch.as_tensor, load_iris(return_X_y=True))
    >>> x = (x - x.mean(0)) / x.std(0)
    >>> net = lambda: torch.nn.Linear(4, 3, dtype=torch.float64)
    >>> more = {"training.weight_decay": 0.01, "retraining.removed": 20, "retraining.seeds": 1}
    >>> run = influx.validate(net, "cross_entropy", (x[::2], y[::2]), (x[1::2], y[1::2]), method="exact", training="newton", settings=more)
    >>> run.correlations.set_index("statistic").value[["pearson", "spearman", "slope"]].round(2).to_dict()
    {'pearson': 1.0, 'spearman': 1.0, 'slope': 1.21}
    """
    chosen = {"method": method, "measurement": measurement, "training": training, **(settings or {})}
    session = _open("validate", model, loss, train, test, chosen, seed, folder, None)
    return _finish(session, _validate, folder is None)


def _estimate(session: Session) -> None:
    try:
        estimator = estimating.prepare(session)
    except InfluxError as error:
        if "step by step" not in str(error):
            raise
        method = session.choices["method"]
        raise InfluxError(
            f"method={method} follows the training run, and influx.estimate has only its end: use influx.validate, which trains."
        ) from error
    estimating.estimate(session, estimator)


def _validate(session: Session) -> None:
    estimator = estimating.prepare(session)
    retraining = validating.prepare(session, estimator) if session.config["loo"] else None
    validating.validate(session, estimator, retraining)


def _open(
    command: str, model: OwnModule, loss: str | Loss, train: Any, test: Any, chosen: Mapping[str, Any], seed: int,
    folder: str | Path | None, training: Training | None,
) -> Session:  # fmt: skip
    """A session on the user's own parts; its folder is made last, when everything fits."""
    config, choices, words = _composed(command, {**OFF, **chosen, "seed": seed}, loss)
    objective = build(config["objective"], Objective, "objective") if isinstance(loss, str) else OwnLoss(Held(loss))
    measurement = build(config["measurement"], Measurement, "measurement")
    training = build(config["training"], Training, "training") if training is None else training
    experiment = _experiment(model, train, test, training, objective, measurement, seed)
    module = experiment.module(seed)
    names = {"dataset": "own data", "model": type(module).__name__, "objective": _name(loss)}
    plain = {**config, **{key: {"own": value} for key, value in names.items()}, "dtype": str(experiment.dtype).removeprefix("torch.")}
    place = config["store"].get("dir")
    store = Store(Path(place) if place else None)
    store.check()
    path = Path(tempfile.mkdtemp(prefix="influx-") if folder is None else folder)
    (path / ".hydra").mkdir(parents=True, exist_ok=True)
    (path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(plain))
    (path / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(words))
    run = RunFolder(path)
    run.start(command, plain, words)
    size = sum(value.numel() for value in module.parameters())
    run.record |= {"choices": {**choices, **names}, "device": str(experiment.data.train_inputs.device), "n_parameters": size}
    return Session(plain, {**choices, **names}, run, experiment, store, seed)


def _finish(session: Session, work: Callable[[Session], object], temporary: bool) -> Run:
    """Do the work, close the record, and read the folder; a temporary one is removed with what is returned, or when the work breaks."""
    folder = session.folder
    try:
        with nullcontext() if sys.stderr.isatty() else progress.silence():
            work(session)
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


def _composed(command: str, chosen: Mapping[str, Any], loss: str | Loss) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    groups = [place.name for place in conf_dir().iterdir() if place.is_dir()]
    for key in chosen:
        if key.partition(".")[0] in YOURS:
            raise InfluxError(f"settings cannot have {key}: data, model, loss, number type and device are those that you give.")
    for key in ("method", "measurement", "training"):
        _check_option(key, chosen.get(key))
    if isinstance(loss, str):
        _check_option("objective", loss)
    elif not callable(loss):
        raise InfluxError(f"loss must be the name of an objective or a function of outputs and targets; this is a {type(loss).__name__}.")
    words = composing.words_of({**({"objective": loss} if isinstance(loss, str) else {}), **chosen}, groups)
    try:
        config, choices = composing.compose(command, words)
    except composing.ERRORS as error:
        from influx import app  # with what the command line says of it

        raise InfluxError(app.explain(error, command, words)[0]) from error
    rules.check_config(config)
    rules.check_command(config)
    return config, choices, words


def _check_option(group: str, name: Any) -> None:
    options = sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))
    if name is not None and name not in options:
        raise InfluxError(f"{group}={name} is not known; choose from {', '.join(options)}.{nearest(str(name), options)}")


def _refuse_training(chosen: Mapping[str, Any]) -> None:
    for key in chosen:
        if key.partition(".")[0] in ("training", "retraining", "truth", "loo"):
            raise InfluxError(f"{key} means nothing to influx.estimate, which trains nothing: use influx.validate.")


def _experiment(
    model: OwnModule, train: Any, test: Any, training: Training, objective: Objective, measurement: Measurement, seed: int
) -> Experiment:
    if isinstance(measurement, Posing):
        raise InfluxError(
            "this measurement asks questions about words, and influx.estimate and validate take tensors: use the command line."
        )
    module = _module(model, seed)
    first = next(module.parameters())
    data = data_of(train, test, lambda inputs: _width(module, inputs), first.dtype, first.device)
    if isinstance(objective, Unlabelled):
        data = objective.prepare(data).to(first.dtype, first.device)
    experiment = Experiment(data, OwnModel(Held(model)), training, objective, measurement)
    if isinstance(objective, OwnLoss):
        with torch.no_grad():
            outputs = experiment.module(seed)(data.train_inputs[:TRIED])
            check_separate(objective, outputs, data.train_targets[:TRIED])
    check_targets(experiment, "squared_error" if type(objective) is SquaredError else "cross_entropy")
    check_batches(experiment, experiment.module(seed))
    return experiment


def _module(model: OwnModule, seed: int) -> nn.Module:
    """A copy of the module, or one that the function makes."""
    if not callable(model):
        raise InfluxError(f"model must be a torch.nn.Module or a function that makes one; this is a {type(model).__name__}.")
    with isolated(seed, "initialisation"):
        made = copy.deepcopy(model) if isinstance(model, nn.Module) else model()
    if not isinstance(made, nn.Module):
        raise InfluxError(f"model must be a torch.nn.Module or a function that makes one; calling it gave a {type(made).__name__}.")
    if next(made.parameters(), None) is None:
        raise InfluxError(f"model {type(made).__name__} has no parameters: there is nothing that examples could have an influence on.")
    return made.eval()


def _width(module: nn.Module, inputs: Tensor) -> int:
    """Of the output for one example."""
    try:
        with torch.no_grad():
            made = module(inputs[:2])
    except (RuntimeError, ValueError) as error:
        raise InfluxError(
            f"model does not take these inputs, {tuple(inputs.shape[1:])} an example: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(made, Tensor) or made.ndim != 2:
        said = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise InfluxError(f"model must give outputs of shape [n, out]; for two examples it gave {said}.")
    return made.shape[1]


def _name(loss: str | Loss) -> str:
    return loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
