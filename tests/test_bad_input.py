"""Bad input, each with one clear line, exit status 2, no traceback, and nothing half-written left behind."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, Ran, Run
from torch import nn

from influx import vision
from influx.cost import Cost
from influx.errors import InfluxError
from influx.estimators import Estimate, Estimator
from influx.models import Model

KEPT = {".hydra", "run.json"}  # of a run that stopped before training, besides its log
TRAINED = {"model.safetensors", "history.csv"}


def check_refusal(ran: Ran, message: str) -> None:
    """Status 2 and one line that says `message` (a regular expression)."""
    assert ran.status == 2, ran.err
    assert re.fullmatch(rf"influx: [^\n]*{message}[^\n]*\n", ran.err), ran.err
    assert "Traceback" not in ran.out


def check_left(ran: Ran, cwd: Path, allowed: set[str]) -> None:
    """One run folder that says why it failed, no more than `allowed` beside it, and no temporary file anywhere."""
    record = json.loads((ran.folder / "run.json").read_text())
    assert record["status"] == f"failed: {ran.err.removeprefix('influx: ').strip()}"
    assert {file.name for file in ran.folder.iterdir()} <= {*KEPT, f"{record['command']}.log", *allowed}
    assert not list(cwd.rglob(".writing-*"))


# ------------------------------------------------------------------------------------- stopped before a folder is made

BEFORE = [
    # commands, groups, options, keys
    ("validat", r"there is no command 'validat'.* Did you mean 'validate'\?"),
    ("train dataset=irys", r"dataset=irys is not known; choose from bbc_news, .*wine\. Did you mean 'iris'\?"),
    ("validate method=lisa", r"method=lisa is not known; choose from .*cg, .*exact, .*lissa, .*\. Did you mean 'lissa'\?"),
    ("train method=cg", r"method belongs to influx estimate, validate\."),
    ("estimate task=mislabeled", r"task belongs to influx validate\."),
    ("validate task.seeds=2", r"task.seeds needs an option of task, and none was chosen: add task=cleansing\|debiasing\|mislabeled\."),
    ("validate +method.params=all", r"'method.params' exists already: leave out the \+\."),
    ("train datset=iris", r"there is no key 'datset'; .* Did you mean 'dataset'\?"),
    ("train sed=1", r"there is no key 'sed'; there are checkpoints, command, dataset, .*training\. Did you mean 'seed'\?"),
    ("train model.widht=3", r"there is no key 'model.widht'; there are model.activation, .* Did you mean 'model.width'\?"),
    ("train depth=3", r"there is no key 'depth'"),
    ("validate method.max_iterations=9", r"there is no key 'method.max_iterations'; .* Did you mean 'method.solver.max_iterations'\?"),
    ("train model=logistic training.lr=0.1", r"there is no key 'training.lr'; there are training.max_iterations, training.tolerance"),
    ("estimate loo=false", r"there is no key 'loo'"),
    ("train ~nope", r"there is no key 'nope'"),
    ("train ~seed", r"the configuration has no 'seed', and influx train needs it"),
    ("train model=null", r"a group=option setting needs the name of an option"),
    ("train store=null", r"store=None is not possible here"),
    # how a setting is written
    ("train seed", r"cannot read 'seed': settings are key=value"),
    ("train seed==", r"cannot read 'seed=='"),
    ("train model=[mlp", r"cannot read 'model=\[mlp'"),
    ("train =3", r"a group=option setting needs"),
    ("train seed=0,1", r"seed=0,1 has several values: add -m"),
    ("train dataset=iris,wine", r"dataset=iris,wine has several values: add -m"),
    ("train seed=${nope}", r"Interpolation key 'nope' not found"),
    ("train -cn nowhere", r"there is no configuration 'nowhere'"),
    ("train -cd nowhere", r"config directory '.*nowhere' not found"),
    # types and ranges
    ("train seed=one", r"seed=one is not possible: it must be a whole number of at least 0\."),
    ("train seed=1.5", r"seed=1.5 is not possible: it must be a whole number"),
    ("train seed=true", r"seed=True is not possible: it must be a whole number"),
    ("train seed=null", r"seed=None is not possible: it must be a whole number"),
    ("train seed=-1", r"seed=-1 is not possible: it must be a whole number of at least 0\."),
    ("train training.lr=fast", r"training.lr=fast is not possible: it must be a number above 0\."),
    ("train training.lr=0", r"training.lr=0 is not possible: it must be a number above 0\."),
    ("train training.lr=inf", r"training.lr=inf is not possible: it must be a number above 0\."),
    ("train training.lr=nan", r"training.lr=nan is not possible"),
    ("train training.epochs=2.5", r"training.epochs=2.5 is not possible: it must be a whole number of at least 1\."),
    ("train training.momentum=1", r"training.momentum=1 is not possible: it must be a number of at least 0 and below 1\."),
    ("train training.nesterov=1", r"training.nesterov=1 is not possible: it must be true or false\."),
    ("validate loo=yes", r"loo=yes is not possible: it must be true or false\."),
    ("train dataset.train_size=-5", r"dataset.train_size=-5 is not possible: it must be a whole number of at least 1, or null\."),
    ("train dataset.test_size=0", r"dataset.test_size=0 is not possible: it must be a whole number of at least 1, or null\."),
    ("train dataset.label_noise=1.5", r"dataset.label_noise=1.5 is not possible: it must be a number of at least 0 and of at most 1\."),
    ("train dataset.test_index=[-1]", r"dataset.test_index=\[-1\] is not possible: it must be a list, each item a whole number"),
    ("train dataset.classes=3", r"dataset.classes=3 is not possible: it must be a list"),
    ("train model.width=0", r"model.width=0 is not possible: it must be a whole number of at least 1\."),
    ("validate method.damping=-0.1", r"method.damping=-0.1 is not possible: it must be a number of at least 0, or auto\."),
    ("validate method.damping=aut", r"method.damping=aut is not possible: .* or auto\. Did you mean 'auto'\?"),
    (
        "estimate method.params=last",
        r"method.params=last is not possible: it must be all, last_layer, or a pattern .* such as '\*\.weight'\.",
    ),
    ("estimate method.params=last_layers", r"method.params=last_layers is not possible: .* Did you mean 'last_layer'\?"),
    ("estimate memory=much", r"memory=much is not possible: it must be a size of at least 1MiB, such as 2GiB or 500MB\."),
    ("estimate memory=1000", r"memory=1000 is not possible: it must be a size of at least 1MiB"),
    ("estimate memory=2.5", r"memory=2.5 is not possible: it must be a size of at least 1MiB"),
    ("estimate memory=-1GiB", r"memory=-1GiB is not possible: it must be a size"),
    ("validate memory=null", r"memory=None is not possible: it must be a size"),
    ("train memory=2GiB", r"there is no key 'memory'"),
    ("train checkpoints=0", r"checkpoints=0 is not possible: it must be a whole number of at least 1\."),
    ("train checkpoints=all", r"checkpoints=all is not possible: it must be a whole number of at least 1\."),
    ("validate method=lissa method.solver.depth=0", r"method.solver.depth=0 is not possible"),
    ("validate method=lissa method.solver.scale=big", r"method.solver.scale=big is not possible: it must be a number above 0, or auto\."),
    ("validate retraining.removed=0", r"retraining.removed=0 is not possible: it must be a whole number of at least 1, or all\."),
    ("validate resamples=9", r"resamples=9 is not possible: it must be a whole number of at least 10\."),
    ("train store.dir=''", r"store.dir= is not possible: it must be a text, or null\."),
    # choices
    ("train dtype=float16", r"dtype=float16 is not possible: it must be one of float32, float64\."),
    ("train device=gpu", r"device=gpu is not possible: it must be one of auto, cpu, cuda\."),
    ("train model.activation=rellu", r"model.activation=rellu is not possible: .* Did you mean 'relu'\?"),
    ("validate retraining.selection=to", r"retraining.selection=to is not possible: .* Did you mean 'top'\?"),
    ("validate truth=pbfr", r"truth=pbfr is not possible: it must be one of "),
    ("train command=tran", r"command=tran is not possible: .* Did you mean 'train'\?"),
    ("rerun", r"rerun needs a run folder"),
    ("rerun nowhere", r"nowhere is not a run folder"),
    ("-sc", r"say which completion: influx -sc install=bash"),
    ("validate -m method=cg,subset method.subsets=60", r"there is no key 'method.subsets' for every method of the sweep: write \+\+method"),
]


@pytest.mark.parametrize(("line", "message"), BEFORE, ids=[line for line, _ in BEFORE])
def test_refused_before_a_folder_is_made(run_influx: Run, tmp_path: Path, line: str, message: str) -> None:
    ran = run_influx(*line.split(" "), cwd=tmp_path)
    check_refusal(ran, message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", [["--bogus"], ["--cfg", "jop"], ["-z"]])
def test_an_unknown_flag_is_named(run_influx: Run, tmp_path: Path, flag: list[str]) -> None:
    ran = run_influx("train", *flag, cwd=tmp_path)
    assert ran.status == 2
    assert re.match(r"influx: error: .*(--bogus|jop|-z)", ran.err.splitlines()[-1])
    assert not list(tmp_path.iterdir())


def test_an_output_folder_below_a_file(run_influx: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran = run_influx("train", "hydra.run.dir=file/run", cwd=tmp_path)
    check_refusal(ran, r"cannot write file/run.* \(Not a directory\): choose another folder with hydra.run.dir=")
    assert [place.name for place in tmp_path.iterdir()] == ["file"]


def test_a_missing_configuration_folder(run_influx: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("influx.configuration.__file__", str(tmp_path / "site/influx/app.py"))
    check_refusal(run_influx("train", cwd=tmp_path), r"the configuration folder conf/ is missing from .*site/influx and from .*site")


# --------------------------------------------------------------------------------------------- stopped before training


@dataclass(frozen=True)
class FollowsTraining(Estimator):
    needs_trajectory = True

    def plan(self, problem: object, record: object) -> Cost:
        raise AssertionError("not reached")

    def estimate(self, problem: object, record: object, seed: int) -> Estimate:
        raise AssertionError("not reached")


class Breaks(Estimator):
    def plan(self, problem, record) -> Cost:
        return Cost()

    def estimate(self, problem, record, seed: int) -> Estimate:
        return Estimate(torch.full((problem.n_train, problem.n_test), float("nan")))


class Planless(Estimator):
    def estimate(self, problem, record, seed: int) -> Estimate:
        raise AssertionError("not reached")


class Vague(Breaks):
    def __init__(self, option) -> None:
        self.option = option


@dataclass(frozen=True)
class WrongWidth(Model):
    def module(self, shape: object) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


@dataclass(frozen=True)
class WrongInput(Model):
    def module(self, shape: object) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(5, 10))


MINE = {
    "method/follows": "_target_: test_bad_input.FollowsTraining",
    "method/breaks": "_target_: test_bad_input.Breaks",
    "method/keyless": "damping: 0.0",
    "method/lacks": "_target_: influx.estimators.inverse_curvature.InverseCurvature",
    "method/nested": "_target_: test_bad_input.FollowsTraining\nsolver:\n  _target_: influx.solvers.exact.Exact",
    "method/vague": "_target_: test_bad_input.Vague\noption:\n  _target_: influx.solvers.exact.Exact",
    "method/object": "_target_: influx.estimators.inverse_curvature.InverseCurvature\ncurvature:\n  _target_: pathlib.Path",
    "method/either": "_target_: influx.estimators.inverse_curvature.InverseCurvature\ndamping:\n  _target_: pathlib.Path",
    "method/planless": "_target_: test_bad_input.Planless",
    "model/wrong_width": "_target_: test_bad_input.WrongWidth",
    "model/wrong_input": "_target_: test_bad_input.WrongInput",
}


@pytest.fixture
def my_conf(tmp_path: Path) -> str:
    """A folder for `-cd` with the options of `MINE`."""
    for name, text in MINE.items():
        place = tmp_path / "conf" / f"{name}.yaml"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{text}\n")
    return str(tmp_path / "conf")


EARLY = [
    # data
    ("train dataset.train_size=5000", r"dataset.train_size=5000 and dataset.test_size=8 is too much: digits has 1797 examples"),
    ("train dataset.test_index=[1797]", r"dataset.test_index holds 1797, but digits has positions 0 to 1796 only"),
    ("train dataset.train_index=[]", r"dataset.train_index is empty"),
    ("train dataset.classes=[1,12]", r"dataset.classes holds 12, which digits does not have"),
    ("train dataset=diabetes model=linear dataset.label_noise=0.1", r"dataset.label_noise does not apply to diabetes"),
    ("train dataset=mnist", r"mnist is not in .*data .*dataset.download=true .*work offline"),
    ("train dataset=csv dataset.path=nowhere.csv", r"dataset.path=nowhere.csv is not a file \(looked for .*nowhere.csv\)"),
    # what does not fit the data
    ("train dataset=iris dataset.train_size=40 model=lenet", r"model=lenet needs images; this data set has rows of 4 numbers"),
    (
        "train model=resnet18 training.batch_size=59",
        r"the last batch of 60 examples in batches of 59 has one row, .*choose another training.batch_size",
    ),
    ("train model=lenet", r"model=lenet needs images of at least 14x14 pixels; these are 8x8. Use model=mlp"),
    ("train model=vgg11", r"model=vgg needs images of at least 32x32 pixels; these are 8x8"),
    ("train model=linear training=sgd", r"model=linear is for regression; this data set is for classification. Use model=logistic"),
    ("train dataset=diabetes model=logistic training=sgd", r"model=logistic is for classification; .* Use model=linear"),
    ("train model=wrong_width", r"WrongWidth gives outputs of shape \(3,\) an example; it must be \(10,\)"),
    ("train model=wrong_input", r"WrongInput does not fit inputs of shape \(1, 8, 8\): "),
    ("train dataset=diabetes objective=cross_entropy", r"objective=cross_entropy does not fit regression .*supervised or squared_error"),
    ("train objective=squared_error", r"objective=squared_error does not fit classification .*supervised or cross_entropy"),
    ("train dataset=diabetes measurement=margin", r"measurement=margin needs class labels; .* measurement=loss or mean_loss"),
    # retraining
    ("validate retraining.removed=61", r"retraining.removed=61 is more than the 60 training examples"),
    ("validate retraining.index=[99999]", r"retraining.index: 99999 is not in the training part"),
    ("validate retraining.index=[]", r"retraining.index is empty"),
    ("validate retraining.trainable=last_layer", r"retraining.trainable=last_layer needs retraining.start=warm"),
    ("validate retraining.subtract_drift=true", r"retraining.subtract_drift=true needs retraining.start=warm"),
    ("validate model=logistic training=newton retraining.epochs=2", r"retraining.epochs needs a training with epochs"),
    ("validate dataset=diabetes dataset.train_size=1 retraining.removed=1", r"leaving one training example out of 1 leaves none"),
    # methods and other classes
    (
        "estimate method=follows training=newton model=logistic",
        r"this method follows the training run step by step, and Newton keeps no such",
    ),
    ("estimate method._target_=nowhere.Method", r"method: nowhere.Method cannot be imported \(No module named 'nowhere'\).*PYTHONPATH"),
    ("estimate method._target_=influx.estimators.Nope", r"method: influx.estimators.Nope cannot be imported"),
    ("estimate method._target_=.Nope", r"method: .Nope cannot be imported"),
    ("estimate method._target_=os.path.join", r"method: os.path.join is not a class that can be built"),
    ("estimate method._target_=influx.estimators.Estimator", r"method: influx.estimators.Estimator is not a class that can be built"),
    ("estimate method._target_=Nope", r"method: the configuration has no _target_"),
    ("estimate method._target_=influx.solvers.exact.Exact", r"method: influx.solvers.exact.Exact is not a kind of .*Estimator; derive"),
    ("estimate method.solver._target_=subprocess.Popen", r"method.solver: subprocess.Popen is not a kind of influx.solvers.base.Solver"),
    ("estimate method=object", r"method.curvature: pathlib.Path is not a kind of builtins.str"),
    ("estimate method=either", r"method.damping: InverseCurvature annotates it with no class, so no _target_ can be built for it"),
    ("estimate method=planless", r"method: test_bad_input.Planless is not a class that can be built"),
    (
        "estimate method.params=7.*",
        r"method.params=7\.\* matches none of the parameters 1\.weight, 1\.bias, .*",
    ),
    ("estimate method.params=1.wieght", r"method.params=1.wieght matches none of the parameters .* Did you mean '1.weight'\?"),
    ("estimate method=exact memory=1MiB", r"method=exact works on a 2,410 x 2,410 matrix, .* memory allows 0\.0: use .*or raise memory"),
    ("estimate method=vague", r"method.option: Vague annotates it with no class, so no _target_ can be built for it"),
    ("estimate method=nested", r"method.solver: FollowsTraining has no such argument; it takes none"),
    ("estimate method=keyless", r"method: the configuration has no _target_"),
    ("estimate method=lacks", r"method: InverseCurvature also needs solver"),
    ("estimate +method.dampin=1", r"method.dampin: InverseCurvature has no such argument; it takes solver, .* Did you mean 'damping'\?"),
    ("train seed=${oc.env:NOPE_NOPE}", r"Environment variable 'NOPE_NOPE' not found"),
    ("train +training.warmup=3", r"training.warmup: Sgd has no such argument; it takes lr"),
    pytest.param(
        "train device=cuda",
        r"device=cuda: torch sees no CUDA device here; use device=auto or device=cpu",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
    ),
]


@pytest.mark.parametrize(("line", "message"), EARLY)
def test_refused_before_training(tiny: Run, tmp_path: Path, my_conf: str, line: str, message: str) -> None:
    ran = tiny(*line.split(), "-cd", my_conf)
    check_refusal(ran, message)
    if "oc.env" not in line:
        check_left(ran, tmp_path, set())


def test_a_store_below_a_file(tiny: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran = tiny("train", "store.dir=file/store")
    check_refusal(ran, r"store.dir=file/store cannot be written \(Not a directory\): choose another place, or null")
    check_left(ran, tmp_path, set())


CSV = [
    ("", r"is empty: a header and at least one row"),
    ("x,y,target\n", r"is empty: it has a header but no row"),
    ("\x00\x01\x02,\xff\n" * 3, r"has no column dataset.target=target|cannot be read as"),
    ("x,y,target\n1,2\n1,2,3,4,5\n", r"cannot be read as comma-separated|more fields"),
    ("x,y,label\n1,2,0\n3,4,1\n", r"has no column dataset.target=target; its columns are x, y, label"),
    ("x,y,target\n1,2,0\n,4,1\n5,6,0\n7,8,1\n", r"1 NaN or infinite value.* in its inputs, the first in row 1 .*column x"),
    ("x,y,target\n1,2,0\n3,inf,1\n5,6,0\n7,8,1\n", r"1 NaN or infinite value.* in its inputs, the first in row 1 .*column y"),
    ("x,y,target\n1,2,0\n3,4,\n5,6,0\n7,8,1\n", r"has no target in row 1"),
    ("x,y,target\n1,a,0\n3,4,1\n5,6,0\n7,8,1\n", r"feature column y that is not numeric"),
    ("x,y,target\n1,2,0\n3,4,2\n5,6,0\n7,8,2\n", r"has the label 2 but no example of class 1: labels must be whole numbers 0, 1, 2"),
    ("x,y,target\n1,2,-1\n3,4,1\n5,6,-1\n7,8,1\n", r"has the label -1 in row 0"),
    ("x,y,target\n1,2,0.5\n3,4,1\n5,6,0\n7,8,1\n", r"has the label 0.5 in row 0"),
]


@pytest.mark.parametrize(("content", "message"), CSV)
def test_a_file_of_ones_own_that_is_wrong(run_influx: Run, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.csv").write_text(content, encoding="latin-1")
    ran = run_influx("train", "dataset=csv", "dataset.path=mine.csv", cwd=tmp_path)
    check_refusal(ran, f"(?:{message})")
    check_left(ran, tmp_path, set())


# ------------------------------------------------------------------------------------------------ broken down on the way

BROKEN = [
    ("train training.lr=1e300 training.epochs=3", set(), r"training diverged by epoch \d+: 1.weight .*Lower training.lr \(now 1e\+300\)"),
    ("train training=newton", set(), r"training=newton needs a strictly convex problem"),
    ("train training=newton model.width=200", set(), r"training=newton forms a 15,010 x 15,010 Hessian; the limit is 10,000"),
    ("train model=logistic training.weight_decay=0", set(), r"Set training.weight_decay above 0"),
    ("train dataset=csv model=logistic training=lbfgs dataset.standardize=false", set(), r"objective is not finite. Standardise the data"),
    ("estimate method=exact model.width=400", set(), r"exact works on a 30,010 x 30,010 matrix, .* 20\.1 GiB, and memory allows 2\.0: "),
    ("estimate method=exact model=logistic training=sgd training.weight_decay=0", TRAINED, r"the ggn is singular .* Set method.damp"),
    ("estimate method=cg method.curvature=hessian", TRAINED, r"cg met negative curvature: .* Use method.curvature=ggn, "),
    ("estimate method=lissa method.solver.scale=0.001", TRAINED, r"lissa diverged at step 50 with scale 0.001: .* \(try 0.004\)"),
    ("estimate method=breaks", TRAINED, r"480 influences are not finite"),
]


@pytest.mark.parametrize(("line", "left", "message"), BROKEN, ids=[line for line, _, _ in BROKEN])
def test_a_computation_that_breaks_down_names_the_knob(
    tiny: Run, tmp_path: Path, my_conf: str, line: str, left: set[str], message: str
) -> None:
    rows = "".join(f"{1 + i / 100}e308,{i % 2}\n" for i in range(79))
    (tmp_path / "data.csv").write_text("x,target\n" + rows)
    ran = tiny(*line.split(), "-cd", my_conf)
    check_refusal(ran, message)
    check_left(ran, tmp_path, left)


def test_a_retraining_that_breaks_down_leaves_a_whole_estimate(tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "ground_truth.npz")

    monkeypatch.setattr("influx.retraining.Retraining.run", broken)
    ran = tiny("validate")
    assert ran.status == 2
    assert ran.err.splitlines()[-1].startswith("influx: cannot write ground_truth.npz (No space left on device)")
    assert np.load(ran.folder / "influence.npz")["influence"].shape == (60, 8)
    assert not (ran.folder / "ground_truth.npz").exists()


def test_a_missing_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "find_spec", lambda _: None)
    with pytest.raises(InfluxError, match=r"torchvision is not installed: .*pip install torchvision"):
        vision.torchvision.__wrapped__()


# ------------------------------------------------------------------------------------------------------------- warnings

WARNED = [
    ("estimate method=exact method.curvature=hessian model.width=4", r"the hessian is not positive definite \(smallest eigenvalue -"),
    (
        "estimate training=adamw training.epochs=2 method.damping=0.1",
        r"training.decoupled_decay=0.01 shrinks the parameters without being part of the objective",
    ),
    ("estimate method=lissa method.solver.depth=1 training.weight_decay=0", r"raise method.solver.depth, method.damping"),
    ("estimate method=lissa method.solver.depth=1", r"lissa left a relative residual of .*raise method.solver.depth"),
    ("estimate method=cg method.solver.max_iterations=1", r"cg stopped after 1 steps? with a largest relative residual"),
    ("train model=logistic training.max_iterations=1", r"training stopped at a gradient norm of .*training.max_iterations=1 is too few"),
    (
        "validate experiment=iris_last_layer dataset.train_size=40 retraining.trainable=all retraining.epochs=2 retraining.removed=4",
        r"the estimate moves method.params=last_layer and the truth retraining.trainable=all: they answer different questions",
    ),
]


@pytest.mark.parametrize(("line", "message"), WARNED, ids=[line for line, _ in WARNED])
def test_a_number_that_deserves_less_trust_says_so(tiny: Run, line: str, message: str) -> None:
    ran = tiny(*line.split())
    warnings = json.loads((ran.folder / "run.json").read_text())["warnings"]
    assert (ran.status, ran.err) == (0, "")
    assert any(re.search(message, warning) for warning in warnings), warnings
    assert all(f"warning: {warning}" in ran.out for warning in warnings)


# ------------------------------------------------------------------------------------------------------------ tracebacks


@pytest.mark.parametrize("line", ["train nope=1", "train seed=-1", "train dataset.train_size=5000", "train training.lr=1e300"])
def test_full_errors_have_a_traceback(tiny: Run, tmp_path: Path, line: str) -> None:
    command, *words = line.split()
    ran = tiny(command, *words, env={"HYDRA_FULL_ERROR": "1"})
    assert ran.status == 2
    assert "Traceback (most recent call last)" in ran.err
    assert ran.err.splitlines()[-1].startswith("influx: ")


def test_a_fault_of_ours_does_not_blame_the_user(tiny: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("influx.experiment.Experiment.train", broken)
    ran = tiny("train")
    assert ran.status == 1
    assert "influx: ZeroDivisionError: division by zero\nThis is not your input's fault." in ran.err
    assert "Traceback" not in ran.err
    assert json.loads((ran.folder / "run.json").read_text())["status"] == "failed: ZeroDivisionError"


def test_a_sweep_with_a_wrong_value_runs_the_others(run_influx: Run, tmp_path: Path) -> None:
    ran = run_influx("train", "-m", *TINY["train"], "training.lr=0.1,-1", cwd=tmp_path)
    assert ran.status == 2
    assert ran.err.splitlines()[-1] == "influx: training.lr=-1 is not possible: it must be a number above 0."
    assert json.loads((ran.folders[0] / "run.json").read_text())["status"] == "finished"
