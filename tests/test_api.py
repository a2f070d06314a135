"""A user's own module and tensors: the same numbers as the command line's, closed forms, and one line for what does not fit."""

from __future__ import annotations

import copy
import doctest
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import call
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

import influx
from influx import api
from influx.datasets import Dataset
from influx.errors import InfluxError
from influx.estimators.grad_dot import GradDot
from influx.instantiate import build
from influx.measurements.margin import Margin

CONF = Path(__file__).parents[1] / "conf"
EACH = partial(cross_entropy, reduction="none")


def classes(n: int = 24, m: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(n + m, 4, generator=draw, dtype=torch.float64).to(dtype)
    y = (x[:, 0] + 0.5 * torch.randn(n + m, generator=draw, dtype=torch.float64).to(dtype) > 0).long() + (x[:, 1] > 1).long()
    return (x[:n], y[:n]), (x[n:], y[n:])


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


QUICK = {"training.epochs": 2, "resamples": 20}
FEW = {**QUICK, "retraining.removed": 4, "retraining.seeds": 1}

# --------------------------------------------------------------------------------------------------------------------- truth


def test_the_examples_in_the_documentation_run() -> None:
    found = doctest.testmod(api)
    assert found.attempted > 10
    assert found.failed == 0


def test_the_example_is_short() -> None:
    for function in (influx.estimate, influx.validate):
        (example,) = [part for part in doctest.DocTestFinder().find(function, globs={}) if part.examples]
        assert sum(len(piece.source.splitlines()) for piece in example.examples) <= 15


@pytest.mark.parametrize("loss", ["cross_entropy", EACH, nn.CrossEntropyLoss(reduction="none")])
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_influence_is_the_dense_formula(loss: Any, curvature: str) -> None:
    (x, y), (x_test, y_test) = classes()
    module = nn.Linear(4, 3, dtype=torch.float64)
    settings = {"method.curvature": curvature, "method.damping": 0.0}
    run = influx.estimate(module, loss, (x, y), (x_test, y_test), method="exact", weight_decay=0.1, settings=settings)
    theta = torch.cat([value.detach().flatten() for value in module.parameters()])

    def losses(flat: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(inputs @ flat[:12].view(3, 4).T + flat[12:], targets, reduction="none")

    hessian = torch.autograd.functional.hessian(
        lambda flat: losses(flat, x, y).mean() + 0.05 * flat.square().sum(), theta
    )  # GGN too: linear
    train = torch.autograd.functional.jacobian(lambda flat: losses(flat, x, y), theta)
    test = torch.autograd.functional.jacobian(lambda flat: losses(flat, x_test, y_test), theta)
    wanted = train @ torch.linalg.solve(hessian, test.T) / len(x)
    np.testing.assert_allclose(run.influence.to_numpy(), wanted.numpy(), rtol=1e-8, atol=1e-12)  # two float64 solves


def test_validate_is_leave_one_out_of_least_squares() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(15, 2, generator=draw, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0], dtype=torch.float64) + 0.3 * torch.randn(15, generator=draw, dtype=torch.float64)
    module = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    settings = {
        "training.weight_decay": 0,
        "retraining.removed": "all",
        "retraining.seeds": 1,
        "retraining.divisor": "n-1",
        "resamples": 20,
    }
    run = influx.validate(module, "squared_error", (x[:12], y[:12]), (x[12:], y[12:]), method="exact", training="newton", settings=settings)
    full = np.linalg.lstsq(x[:12].numpy(), y[:12].numpy(), rcond=None)[0]

    def loss(theta: np.ndarray) -> np.ndarray:
        return 0.5 * (x[12:].numpy() @ theta - y[12:].numpy()) ** 2

    kept = [np.delete(np.arange(12), i) for i in range(12)]
    wanted = np.stack([loss(np.linalg.lstsq(x[rows].numpy(), y[rows].numpy(), rcond=None)[0]) - loss(full) for rows in kept])
    np.testing.assert_allclose(run.change.to_numpy(), wanted, rtol=0, atol=1e-8)  # Newton stops at a gradient norm of 1e-9


def test_it_is_the_command_line_on_other_data(tmp_path: Path) -> None:
    """A model and a data set of the command line, taken out of it."""
    words = [
        "dataset=iris",
        "model=logistic",
        "training=newton",
        "dtype=float64",
        "retraining.removed=5",
        "retraining.seeds=1",
        "resamples=20",
    ]
    ran = call("validate", *words, "method=exact", "store.dir=null", "pictures=false", cwd=tmp_path)
    assert ran.status == 0, ran.err
    there = influx.load(ran.folder)
    from influx.datasets.iris import Iris

    data = Iris().load()
    settings = {
        "retraining.removed": 5,
        "retraining.seeds": 1,
        "resamples": 20,
        "training.weight_decay": there.config["training"]["weight_decay"],
    }
    train, test = (data.train_inputs, data.train_targets), (data.test_inputs, data.test_targets)
    module = nn.Linear(4, 3, dtype=torch.float64)
    here = influx.validate(module, "cross_entropy", train, test, method="exact", training="newton", settings=settings)
    # other starts of a convex problem, each solved to a gradient norm of 1e-9
    np.testing.assert_allclose(here.influence.to_numpy(), there.influence.to_numpy(), rtol=1e-5, atol=1e-8)


def test_nothing_of_the_users_is_touched() -> None:
    train, test = classes()
    module, before = net().train(), torch.random.get_rng_state()
    state, threads = copy.deepcopy(module.state_dict()), torch.get_num_threads()
    influx.estimate(module, "cross_entropy", train, test, method="ekfac")
    first = influx.validate(module, "cross_entropy", train, test, method="grad_dot", settings=FEW).change
    assert module.training
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert all(value.grad is None for value in module.parameters())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    torch.manual_seed(99)
    assert influx.validate(module, "cross_entropy", train, test, method="grad_dot", settings=FEW).change.equals(first)


def test_a_function_makes_another_start_for_every_seed() -> None:
    train, test = classes()
    more = {**FEW, "retraining.seeds": 3, "training.batch_size": None}  # no batch order: starts alone differ
    made = influx.validate(lambda: nn.Linear(4, 3), "cross_entropy", train, test, method="loss", settings=more)
    given = influx.validate(nn.Linear(4, 3), "cross_entropy", train, test, method="loss", settings=more)
    assert made.full.T.nunique().min() == 3
    assert given.full.T.nunique().max() == 1


@pytest.mark.parametrize("kind", [lambda x, y: TensorDataset(x, y), lambda x, y: DataLoader(TensorDataset(x, y), batch_size=5),
                                  lambda x, y: (x.numpy(), y.numpy()), lambda x, y: [x, y]])  # fmt: skip
def test_data_come_in_many_forms(kind: Callable[..., Any]) -> None:
    train, test = classes()
    wanted = influx.estimate(net(), "cross_entropy", train, test, method="grad_dot").influence
    assert influx.estimate(net(), "cross_entropy", kind(*train), kind(*test), method="grad_dot").influence.equals(wanted)


def test_answers_of_several_numbers() -> None:
    (x, _), (x_test, _) = classes()
    module = nn.Linear(4, 2, dtype=torch.float64)
    made = influx.estimate(
        module, lambda f, y: (f - y).square().sum(1), (x, x[:, :2]), (x_test, x_test[:, :2]), method="exact", weight_decay=0.1
    )
    assert made.influence.shape == (24, 6)
    assert len(made.table("top_influences"))


def test_trak_takes_a_loss_of_several_numbers_whole() -> None:
    """Not its first output alone."""
    (x, _), (x_test, _) = classes()
    module, answers = nn.Linear(4, 2, dtype=torch.float64), x[:, :2].clone()

    def scores(y: torch.Tensor) -> Any:
        each = influx.estimate(
            module, lambda f, y: mse_loss(f, y, reduction="none").sum(1), (x, y), (x_test, x_test[:, :2]), method="trak", weight_decay=0.1
        )
        return each.influence

    before = scores(answers)
    answers[0, 1] += 1
    assert not np.allclose(before.loc[0], scores(answers).loc[0])


def test_objects_of_ones_own_are_parts() -> None:
    train, test = classes()
    named = influx.validate(net, "cross_entropy", train, test, method="grad_dot", measurement="margin", seeds=2, removed=4, settings=QUICK)
    given = influx.validate(net, "cross_entropy", train, test, method=GradDot(), measurement=Margin(), seeds=2, removed=4, settings=QUICK)
    assert given.influence.equals(named.influence)
    assert given.changes.equals(named.changes)
    assert given.choices["method"] == "GradDot"
    assert named.changes.shape == (4, 12)


def test_modules_of_the_same_numbers_are_not_taken_for_one_another() -> None:
    """Nor are functions of the same source, as closures have."""
    train, test = classes()
    first = nn.Sequential(nn.Linear(4, 3, dtype=torch.float64), nn.Tanh())
    second = nn.Sequential(first[0], nn.ReLU())
    made = [influx.validate(module, EACH, train, test, method="loss", settings=FEW).full for module in (first, second)]
    assert not made[0].equals(made[1])
    scaled = [influx.validate(net, lambda f, y, a=a: a * EACH(f, y), train, test, method="loss", settings=FEW).full for a in (1.0, 2.0)]
    assert not scaled[0].equals(scaled[1])


def test_the_record_says_that_nothing_was_trained() -> None:
    run = influx.estimate(net(), EACH, *classes(), method="loss", weight_decay=0.1)
    assert (run.choices["training"], run.choices["dataset"], run.choices["model"]) == ("as given", "own data", "Sequential")
    assert run.config["training"] == {"own": "as given"}
    assert np.isfinite(run.history["gradient_norm"]).all()


def test_a_named_folder_stays_and_another_goes(tmp_path: Path) -> None:
    train, test = classes()
    run = influx.estimate(net(), "cross_entropy", train, test, method="loss", folder=tmp_path / "mine")
    assert influx.load(tmp_path / "mine").influence.equals(run.influence)
    gone = influx.estimate(net(), "cross_entropy", train, test, method="loss")
    path = gone.path
    assert path.is_dir()
    del gone
    assert not path.exists()


# ------------------------------------------------------------------------------------------------------------------- methods

TRAINS = r"trains models of its own, and influx.estimate takes the one model as it is"
FOLLOWS = r"follows the training run, and influx.estimate has only its end"
NEEDS = {  # what influx.estimate says to methods that need more than a trained model
    "captum": FOLLOWS,
    "hypergradient": FOLLOWS, "unrolled": FOLLOWS, "source": FOLLOWS, "tracin": FOLLOWS, "subset": TRAINS, "datamodels": TRAINS,
    "data_shapley": TRAINS, "turnover_dropout": TRAINS, "external": "path",
}  # fmt: skip
SMALL = {"subset": {"method.subsets": 40}, "datamodels": {"method.subsets": 40}, "data_shapley": {"method.permutations": 2}}


def options(method: str) -> dict[str, Any]:
    known = yaml.safe_load((CONF / "method" / f"{method}.yaml").read_text())
    return {key: value for key, value in SMALL.get(method, {}).items() if key.partition(".")[2] in known}


@pytest.mark.parametrize("method", sorted(file.stem for file in (CONF / "method").glob("*.yaml")))
def test_every_method_works_or_says_why_not(method: str) -> None:
    train, test = classes(18, 4)

    def run() -> influx.Run:
        return influx.estimate(net(), "cross_entropy", train, test, method=method, weight_decay=0.5, settings=options(method))

    if method in ("kronfluence", "captum", "dattri"):
        pytest.importorskip(method)
    if method in NEEDS:
        with pytest.raises(InfluxError, match=NEEDS[method]):
            run()
    else:
        assert np.isfinite(run().influence.to_numpy()).all()


@pytest.mark.parametrize("method", ["hypergradient", "tracin", "turnover_dropout", "ekfac"])
def test_methods_that_follow_training_work_where_it_is_trained(method: str) -> None:
    train, test = classes(18, 4)
    run = influx.validate(net, "cross_entropy", train, test, method=method, training="sgd", settings=FEW)
    assert {"pearson", "spearman"} <= set(run.correlations["statistic"])


# -------------------------------------------------------------------------------------------------------------------- errors


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(self.first(x))
        return out


def broken() -> nn.Module:
    made = net(torch.float32)
    next(made.parameters()).data[0, 0] = torch.nan
    return made


def frozen() -> nn.Module:
    made = net(torch.float32)
    next(made.parameters()).requires_grad_(False)
    return made


SAMPLED = {"method.curvature": "fisher", "method.solver.labels": "sampled"}
GOOD = classes(dtype=torch.float32)
X, Y = GOOD[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": nn.Linear}, r"influx.estimate needs a trained torch.nn.Module; model is a type"),
        ({"model": nn.Tanh()}, r"model Tanh has no parameters"),
        ({"model": nn.Linear(5, 3)}, r"model does not take these inputs, \(4,\) an example: mat1"),
        (
            {"model": nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))},
            r"model must give outputs of shape \[n, out\]; for 2 examples it gave \(2,\)",
        ),
        ({"model": Tied()}, r"uses a parameter twice \(second.weight\)"),
        ({"loss": "cross_entrpy"}, r"objective=cross_entrpy is not known; choose from .*cross_entropy"),
        ({"loss": 3}, r"loss must be the name of an objective or a function of outputs and targets; this is a int"),
        ({"loss": cross_entropy}, r"loss must give one number an example, shape \(3,\); it gave \(\)\. .*reduction='none'"),
        ({"loss": lambda f, y: (f - f.mean(0)).square().sum(1)}, r"loss gives an example another number when it stands in a batch"),
        ({"loss": "squared_error"}, r"objective=squared_error does not fit classification targets"),
        (
            {"train": (X, Y[:-1])},
            r"train must be inputs \[n, ...\] and targets \[n\] of the same n > 0; their shapes are \(24, 4\) and \(23,\)",
        ),
        ({"train": X}, r"train must be \(inputs, targets\), a torch Dataset or a DataLoader; this is a Tensor"),
        ({"train": (X / 0, Y)}, r"train inputs hold \d+ numbers that are not finite"),
        ({"train": (Y.unsqueeze(1), Y)}, r"train inputs are torch.int64; they must be floating-point"),
        ({"train": (X, Y + 1)}, r"labels go from 0 to 3, and the model has 3 outputs, for classes 0 to 2"),
        ({"test": (X[:, :3], Y)}, r"train and test differ in kind: inputs \(4,\) and \(3,\) an example"),
        ({"train": DataLoader(TensorDataset(X, Y), shuffle=True)}, r"train is a loader that shuffles, .* give its dataset, train.dataset"),
        ({"method": "ekfacc"}, r"method=ekfacc is not known; .*Did you mean 'ekfac'"),
        ({"measurement": "los"}, r"measurement=los is not known"),
        ({"measurement": "weat"}, r"this measurement asks questions about words"),
        ({"method": 3}, r"method must be the name of one or a kind of Estimator; this is a int"),
        ({"measurement": GradDot()}, r"measurement must be the name of one or a kind of Measurement; this is a GradDot"),
        ({"model": nn.Linear(4, 3).half()}, r"model is in float16; it must be in float32 or float64 throughout"),
        ({"model": nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3).double())}, r"model is in float32 and float64; it must be in"),
        ({"model": broken()}, r"model has numbers that are not finite in 0.weight"),
        (
            {"model": frozen()},
            r"model is frozen in part \(0.weight does not require a gradient\), and all .*: give the part that is trained",
        ),
        ({"loss": lambda f, y: f.sum(1) / 0}, r"loss of the first training examples is -?inf, -?inf, -?inf: not finite"),
        ({"train": (X, Y), "loss": "squared_error", "model": nn.Linear(4, 1)}, r"Numbers to predict must be floating-point: targets.float"),
        ({"loss": EACH, "method": "ekfac", "settings": SAMPLED}, r"OwnLoss gives no distribution that targets could be drawn from"),
        ({"settings": {"store.dir": "here"}}, r"settings cannot have store.dir: what functions of yours compute has no name"),
        ({"settings": {"seed": 1}}, r"settings cannot have seed besides the argument that says it"),
        ({"method": GradDot(), "settings": {"method.params": "all"}}, r"settings cannot have method.params besides the argument"),
        ({"settings": {"training.weight_decay": 1}}, r"training.weight_decay means nothing .*\(λ is the argument weight_decay\)"),
        ({"weight_decay": -1.0}, r"training.weight_decay=-1.0 is not possible"),
        ({"settings": {"method.dampin": 1}}, r"there is no key 'method.dampin'.*Did you mean"),
        ({"settings": {"method.damping": -1}}, r"method.damping=-1 is not possible"),
        ({"settings": {"dataset.train_size": 5}}, r"settings cannot have dataset.train_size: data, model, loss"),
        ({"settings": {"retraining.removed": 5}}, r"retraining.removed means nothing to influx.estimate, which trains nothing"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    given = {"model": nn.Linear(4, 3), "loss": "cross_entropy", "train": GOOD[0], "test": GOOD[1], "folder": tmp_path / "run", **changes}
    with pytest.raises(InfluxError, match=message) as raised:
        influx.estimate(given.pop("model"), given.pop("loss"), given.pop("train"), given.pop("test"), **given)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_the_loss_of_every_example_is_looked_at(tmp_path: Path) -> None:
    train, test = classes()
    rows = torch.where(torch.arange(24) == 20, torch.inf, 0.0)  # beyond those that the loss is tried on

    def loss(f: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return EACH(f, y) + (rows if len(f) == 24 else 0)

    with pytest.raises(InfluxError, match=r"the model's mean loss on train is inf: look at its outputs"):
        influx.estimate(net(), loss, train, test)


def test_what_is_frozen_may_stay_where_the_method_names_what_moves() -> None:
    train, test = classes()
    more = {"method.params": "last_layer"}
    part = influx.estimate(frozen(), "cross_entropy", train, test, method="grad_dot", settings=more)
    assert part.influence.equals(
        influx.estimate(net(torch.float32), "cross_entropy", train, test, method="grad_dot", settings=more).influence
    )


def test_the_command_line_says_that_it_cannot_repeat_it(tmp_path: Path) -> None:
    influx.estimate(net(), EACH, *classes(), method="loss", folder=tmp_path / "mine")
    with pytest.raises(InfluxError, match=r"dataset: the run was made in Python, with own data, and can be repeated only there"):
        build(influx.load(tmp_path / "mine").config["dataset"], Dataset, "dataset")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InfluxError, match=r"folder .*file cannot be made: File exists. Name another one"):
        influx.estimate(net(), EACH, *classes(), method="loss", folder=tmp_path / "file")


def test_a_function_must_make_a_module() -> None:
    with pytest.raises(InfluxError, match=r"model must be a torch.nn.Module or a function that makes one; calling it gave a int"):
        influx.validate(lambda: 3, "cross_entropy", *GOOD)
    with pytest.raises(InfluxError, match=r"or a function without arguments that makes one; calling it: .*'in_features'"):
        influx.validate(nn.Linear, "cross_entropy", *GOOD)
    with pytest.raises(InfluxError, match=r"model must be a torch.nn.Module or a function that makes one; this is a str"):
        influx.validate("mlp", "cross_entropy", *GOOD)
