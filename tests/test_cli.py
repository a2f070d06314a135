"""The command line as its user meets it: help, completion, sweeps, rerun, code of one's own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import TINY, Ran, Run

from influx.cli import COMMANDS

METHODS = sorted(file.stem for file in (Path(__file__).parents[1] / "conf/method").glob("*.yaml"))
IRIS = ("dataset=iris", "model=logistic", "dataset.train_size=40", "dataset.test_size=8")  # trains in milliseconds
IRIS_TRUTH = (*IRIS, "retraining.removed=4", "retraining.seeds=2", "resamples=50")
SAME_BYTES = ("model.safetensors", "history.csv", "influence.npz", "ground_truth.npz", "correlations.csv")


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def process(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`influx ARGUMENTS` as a process of its own."""
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-m", "influx", *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)


# ------------------------------------------------------------------------------------------------------------ first word


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_no_argument_and_help_print_the_usage_with_three_examples(run_influx: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ran = run_influx(*arguments, cwd=tmp_path)
    examples = ran.out.partition("\nexamples\n")[2].partition("\n\n")[0].splitlines()
    assert ran.status == 0
    assert ran.err == ""
    assert len(examples) == 3
    assert all(line.startswith("  influx validate") for line in examples)
    assert all(f"  {command} " in ran.out for command in COMMANDS)


def test_the_examples_of_the_usage_compose(run_influx: Run, tmp_path: Path) -> None:
    usage = run_influx(cwd=tmp_path).out
    for example in re.findall(r"^  influx (validate.*)$", usage.partition("\nexamples\n")[2], re.MULTILINE):
        words = [re.sub(r",.*", "", word) for word in example.split() if word != "-m"]  # the first value of a sweep
        ran = run_influx(*words, "--cfg", "job", cwd=tmp_path)
        assert ran.status == 0, ran.err


def test_version_is_ours_not_hydras(run_influx: Run, tmp_path: Path) -> None:
    assert run_influx("--version", cwd=tmp_path).out == "influx 0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("validat",), r"there is no command 'validat'; the commands are train, .*rerun.*\. Did you mean 'validate'\?"),
        (("qqq",), rf"there is no command 'qqq'; the commands are {', '.join(COMMANDS)}\.$"),
        (("docter",), r"there is no command 'docter'; .*\. Did you mean 'doctor'\?"),
        (("seed=1", "validate"), r"the command comes first: influx validate seed=1$"),
        (("-cd", "train", "validate"), r"the command comes first: influx train -cd validate$"),
    ],
)
def test_the_command_comes_first(run_influx: Run, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    ran = run_influx(*arguments, cwd=tmp_path)
    assert (ran.status, ran.out) == (2, "")
    assert re.fullmatch(f"influx: {message}", ran.err.strip())


@pytest.mark.parametrize("command", TINY)
def test_help_of_a_command_lists_groups_options_and_keys(run_influx: Run, tmp_path: Path, command: str) -> None:
    said = run_influx(command, "--help", cwd=tmp_path).out
    assert re.search(r"^dataset: bbc_news, breast_cancer, .*digits.*iris", said, re.MULTILINE)
    assert f"\nmethod: {', '.join(METHODS)}\n" in said
    assert re.search(r"^  train_size: null$", said, re.MULTILINE)
    assert f"influx {command} --cfg job" in said


def test_cfg_job_prints_the_configuration_and_runs_nothing(run_influx: Run, tmp_path: Path) -> None:
    ran = run_influx("validate", "method=lissa", "seed=7", "--cfg", "job", cwd=tmp_path)
    config = yaml.safe_load(ran.out)
    assert ran.status == 0
    assert (config["seed"], config["command"]) == (7, "validate")
    assert config["method"]["solver"]["_target_"] == "influx.solvers.lissa.Lissa"
    assert not list(tmp_path.iterdir())


IMPORTED = "import sys, runpy\ntry:\n    runpy.run_module('influx', run_name='__main__')\nfinally:\n    print('torch' in sys.modules)"


@pytest.mark.parametrize(
    "arguments", [(), ("--version",), ("doctor", "--help"), ("validate", "--help"), ("validate", "nope=1"), ("validate", "seed=-1")]
)
def test_answers_about_the_command_line_do_not_import_torch(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


@pytest.mark.parametrize("words", [("--help",), TINY["validate"], ("-m", *TINY["validate"], "seed=0,1")], ids=["help", "run", "sweep"])
def test_a_reader_who_stops_early_is_no_error(tmp_path: Path, words: tuple[str, ...]) -> None:
    command = f"{sys.executable} -m influx validate {' '.join(words)} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout.splitlines()[-1], done.stderr) == ("0", "")
    statuses = [json.loads(file.read_text())["status"] for file in tmp_path.rglob("run.json")]
    assert set(statuses) <= {"finished"}
    assert len(statuses) == {"--help": 0, "-m": 2}.get(words[0], 1)


# ------------------------------------------------------------------------------------------------------------ completion


def completed(run: Run, cwd: Path, line: str) -> set[str]:
    return set(run("-sc", "query=bash", cwd=cwd, env={"COMP_LINE": line}).out.split())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("influx ", set(COMMANDS)),
        ("influx va", set(COMMANDS)),  # the shell keeps those that begin with `va`
        ("influx validate meth", {"method=", "method."}),
        ("influx validate method=", {f"method={name}" for name in METHODS}),
        ("/some/bin/influx validate dataset.tr", {"dataset.train_size=", "dataset.train_index="}),
        ("influx validate model=logistic training.t", {"training.tolerance="}),
    ],
)
def test_completion_goes_through_the_command(run_influx: Run, tmp_path: Path, line: str, offered: set[str]) -> None:
    assert completed(run_influx, tmp_path, line) == offered


@pytest.mark.parametrize("line", ["influx rerun ", "influx nonsense meth", "influx validate 'meth"])
def test_completion_offers_nothing_where_it_knows_nothing(run_influx: Run, tmp_path: Path, line: str) -> None:
    assert completed(run_influx, tmp_path, line) == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_installs(tmp_path: Path, shell: str) -> None:
    done = process("-sc", f"install={shell}", cwd=tmp_path)
    assert done.returncode == 0
    assert "COMP_LINE" in done.stdout


def test_bash_offers_the_commands(tmp_path: Path) -> None:
    (tmp_path / "influx").write_text(f'#!/bin/sh\nexec {sys.executable} -m influx "$@"\n')
    (tmp_path / "influx").chmod(0o755)
    script = """eval "$(influx -sc install=bash)"
    COMP_LINE="influx va" COMP_CWORD=1
    hydra_bash_completion; echo "${COMPREPLY[@]}" """
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "--norc", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "validate", done.stderr


# ---------------------------------------------------------------------------------------------------------- runs, sweeps


def test_a_sweep_has_a_numbered_folder_a_job(run_influx: Run, tmp_path: Path) -> None:
    ran = run_influx("validate", "-m", *IRIS_TRUTH, "method=exact,cg", "seed=0,1", cwd=tmp_path)
    (sweep,) = (tmp_path / "outputs/validate/sweeps").iterdir()
    said = [record(folder) for folder in ran.folders]
    assert ran.status == 0
    assert [folder.relative_to(sweep) for folder in ran.folders] == [Path(str(job)) for job in range(4)]
    assert [(job["choices"]["method"], job["seed"]) for job in said] == [("exact", 0), ("exact", 1), ("cg", 0), ("cg", 1)]
    assert {job["status"] for job in said} == {"finished"}
    assert not (tmp_path / "outputs/validate/runs").exists()


def test_a_broken_job_does_not_stop_its_sweep(run_influx: Run, tmp_path: Path) -> None:
    ran = run_influx("train", "-m", *IRIS, "dataset=iris,diabetes,wine", cwd=tmp_path)
    assert ran.status == 2
    assert [record(folder)["status"].partition(":")[0] for folder in ran.folders] == ["finished", "failed", "finished"]
    assert ran.err.splitlines()[-1] == "influx: model=logistic is for classification; this data set is for regression. Use model=linear."


def test_runs_of_one_second_have_folders_of_their_own(run_influx: Run, tmp_path: Path) -> None:
    folders = [run_influx("train", *IRIS, cwd=tmp_path).folder for _ in range(2)]
    assert folders[0] != folders[1]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", folder.name) for folder in folders)
    assert {folder.parent for folder in folders} == {tmp_path / "outputs/train/runs"}


def test_a_sweeps_small_job_does_not_bind_its_large_ones_threads(run_influx: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("influx.pipelines.session.ALL_CORES", 3)
    monkeypatch.setattr("influx.pipelines.session.LARGE_MODEL", 1000)
    ran = run_influx("train", "-m", *TINY["train"], "model.width=4,32", cwd=tmp_path)
    assert [record(folder)["threads"] for folder in ran.folders] == [1, 3]


def test_an_interpolation_is_a_value_like_any_other(run_influx: Run, tmp_path: Path) -> None:
    ran = run_influx("train", *IRIS, "seed=3", "dataset.split_seed=${seed}", cwd=tmp_path)
    config = yaml.safe_load((ran.folder / ".hydra/config.yaml").read_text())
    assert ran.status == 0, ran.err
    assert config["dataset"]["split_seed"] == "${seed}"


@pytest.mark.parametrize(
    ("arguments", "training"),
    [(("model=logistic",), "Newton"), (("model=logistic", "training=sgd"), "Sgd"), (("training=sgd", "model=linear"), "Sgd"), ((), "Sgd")],
)
def test_a_convex_model_trains_to_its_optimum_unless_told_otherwise(
    run_influx: Run, tmp_path: Path, arguments: tuple[str, ...], training: str
) -> None:
    config = yaml.safe_load(run_influx("validate", *arguments, "--cfg", "job", cwd=tmp_path).out)
    assert config["training"]["_target_"].rpartition(".")[2] == training


def test_an_experiment_changes_what_its_file_says_and_the_line_has_the_last_word(run_influx: Run, tmp_path: Path) -> None:
    ran = run_influx("validate", "experiment=iris_last_layer", "model.width=7", "--cfg", "job", cwd=tmp_path)
    config = yaml.safe_load(ran.out)
    assert config["dataset"]["_target_"] == "influx.datasets.iris.Iris"
    assert config["model"] == {"_target_": "influx.models.mlp.Mlp", "depth": 1, "width": 7, "activation": "selu", "dropout": 0.0}
    assert config["method"]["params"] == config["retraining"]["trainable"] == "last_layer"


# ----------------------------------------------------------------------------------------------------------------- rerun

LAST_LAYER = ("experiment=iris_last_layer", "training.epochs=3", "retraining.epochs=2", "retraining.removed=4", "resamples=50")


@pytest.fixture(scope="module", params=[(*IRIS_TRUTH, "method=exact"), LAST_LAYER], ids=["groups", "experiment"])
def original(request: pytest.FixtureRequest, run_influx: Run, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A finished run that used group options."""
    return run_influx("validate", *request.param, "store.dir=null", cwd=tmp_path_factory.mktemp("original"))


def test_rerun_repeats_a_run_byte_for_byte_and_can_be_repeated(run_influx: Run, tmp_path: Path, original: Ran) -> None:
    again = run_influx("rerun", str(original.folder), cwd=tmp_path)
    third = run_influx("rerun", str(again.folder), cwd=tmp_path)
    assert (again.status, third.status) == (0, 0), again.err + third.err
    assert again.folder.parent == tmp_path / "outputs/validate/runs"
    for name in SAME_BYTES:
        assert (again.folder / name).read_bytes() == (original.folder / name).read_bytes(), name
        assert (third.folder / name).read_bytes() == (original.folder / name).read_bytes(), name
    for key in ("choices", "config_digest", "command", "seed"):
        assert record(third.folder)[key] == record(again.folder)[key] == record(original.folder)[key]
    assert again.out.splitlines()[0] == original.out.splitlines()[0]  # the same plain lines on the screen


def test_rerun_takes_overrides(run_influx: Run, tmp_path: Path, original: Ran) -> None:
    again = run_influx("rerun", str(original.folder), "seed=5", "method.damping=0.5", cwd=tmp_path)
    assert record(again.folder)["seed"] == 5
    assert record(again.folder)["overrides"] == ["seed=5", "method.damping=0.5"]
    assert (again.folder / "influence.npz").read_bytes() != (original.folder / "influence.npz").read_bytes()


def test_rerun_goes_where_it_is_told(run_influx: Run, tmp_path: Path, original: Ran) -> None:
    run_influx("rerun", str(original.folder), "hydra.run.dir=elsewhere", cwd=tmp_path)
    assert record(tmp_path / "elsewhere")["status"] == "finished"


def test_rerun_sweeps(run_influx: Run, tmp_path: Path, original: Ran) -> None:
    ran = run_influx("rerun", str(original.folder), "-m", "seed=1,2", cwd=tmp_path)
    assert [record(folder)["seed"] for folder in ran.folders] == [1, 2]
    assert {folder.parents[1] for folder in ran.folders} == {tmp_path / "outputs/validate/sweeps"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "run.json").unlink(), "is not a run folder: it has no run.json"),
        (lambda folder: (folder / ".hydra/config.yaml").unlink(), "is not a run folder: it has no run.json and .hydra/config.yaml"),
        (lambda folder: (folder / "run.json").write_text("{"), "is damaged: it does not say what was run"),
        (lambda folder: (folder / "run.json").write_text("{}"), "is damaged: it does not say what was run"),
    ],
)
def test_rerun_of_a_folder_that_is_no_run(run_influx: Run, tmp_path: Path, change, message: str) -> None:
    folder = tmp_path / "run"
    (folder / ".hydra").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"command": "train", "choices": {}}))
    (folder / ".hydra/config.yaml").write_text("seed: 0\n")
    change(folder)
    ran = run_influx("rerun", "run", cwd=tmp_path)
    assert (ran.status, ran.folders) == (2, ())
    assert message in ran.err


def test_rerun_says_how_it_is_used(run_influx: Run, tmp_path: Path) -> None:
    assert "usage: influx rerun RUN_FOLDER" in run_influx("rerun", "--help", cwd=tmp_path).out
    assert run_influx("rerun", cwd=tmp_path).err.startswith("influx: rerun needs a run folder")


# -------------------------------------------------------------------------------------------------------- one's own code

MY_LAB = '''
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from influx.cost import Cost
from influx.datasets.base import Dataset, Source
from influx.estimators import Estimate, Estimator
from influx.measurements import Measurement
from influx.models import Model


@dataclass(frozen=True)
class GradientProduct(Estimator):
    """Test gradient times training gradient, right up to a factor."""

    factor: float = 1.0
    calibrated = False

    def plan(self, problem, record):
        return Cost(gradients=problem.n_train + problem.n_test)

    def estimate(self, problem, record, seed):
        tests = problem.test_gradients()
        rows = [gradients @ tests.T for _, gradients in problem.train_gradients()]
        return Estimate(self.factor * torch.cat(rows))


@dataclass(frozen=True, kw_only=True)
class TwoMoons(Dataset):
    def read(self):
        draw = np.random.default_rng(0)
        labels = np.arange(50) % 2
        return Source(draw.normal(size=(50, 2)) + 2 * labels[:, None], labels, "classification")


@dataclass(frozen=True)
class Bilinear(Model):
    hidden: int = 3

    def module(self, shape):
        return nn.Sequential(nn.Linear(shape.n_features, self.hidden), nn.Linear(self.hidden, shape.n_outputs))


@dataclass(frozen=True)
class Power(Measurement):
    unit = "loss"
    lower_is_better = True
    power: float = 1.0

    def value(self, outputs, targets, objective):
        return objective.loss(outputs, targets) ** self.power
'''
MY_YAML = {
    "method/gradient_product": "_target_: my_lab.GradientProduct\nfactor: 2.0\n",
    "dataset/two_moons": "_target_: my_lab.TwoMoons\ntrain_size: 30\ntest_size: 8\n",
    "model/bilinear": "_target_: my_lab.Bilinear\nhidden: 4\n",
    "measurement/power": "_target_: my_lab.Power\npower: 1.0\n",
}
MINE = ("-cd", "conf", "method=gradient_product", "dataset=two_moons", "model=bilinear", "training.epochs=2", *TINY["validate"][3:])


@pytest.fixture
def my_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's own module on the path and its YAML under conf/."""
    (tmp_path / "my_lab.py").write_text(MY_LAB)
    for name, text in MY_YAML.items():
        place = tmp_path / "conf" / f"{name}.yaml"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_lab", raising=False)
    return tmp_path


def test_a_users_own_method_data_and_model_run(run_influx: Run, my_lab: Path) -> None:
    ran = run_influx("validate", *MINE, cwd=my_lab)
    table = pd.read_csv(ran.folder / "correlations.csv")
    assert ran.status == 0, ran.err
    assert set(table.method) == {"gradient_product"}
    assert not {"slope", "rmse"} & set(table.statistic)  # right up to a factor only
    assert np.load(ran.folder / "influence.npz")["influence"].shape == (30, 8)
    assert record(ran.folder)["choices"]["dataset"] == "two_moons"
    assert record(ran.folder)["n_parameters"] == 2 * 4 + 4 + 4 * 2 + 2


def test_a_users_own_measurement_does_not_reuse_anothers_truth(run_influx: Run, my_lab: Path) -> None:
    changes = []
    for power in ("1.0", "2.0"):
        ran = run_influx("validate", *MINE, "measurement=power", f"measurement.power={power}", cwd=my_lab)
        changes.append(np.load(ran.folder / "ground_truth.npz")["full"])
    np.testing.assert_allclose(changes[1], changes[0] ** 2, rtol=1e-12)


@pytest.mark.parametrize("flag", ["-cd conf", "--config-dir conf", "--config-dir=conf", "hydra.searchpath=[file://{cwd}/conf]"])
@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_a_users_yaml_cannot_shadow_ours_without_a_word(run_influx: Run, my_lab: Path, flag: str, sweep: list[str]) -> None:
    (my_lab / "conf/method/lissa.yaml").write_text("_target_: my_lab.GradientProduct\n")
    ran = run_influx("train", *sweep, *flag.format(cwd=my_lab).split(" "), cwd=my_lab)
    assert (ran.status, ran.folders) == (2, ())
    assert re.fullmatch(r"influx: .*conf/method/lissa\.yaml has the name of a built-in option and would be .* than lissa\.\n", ran.err)


# --------------------------------------------------------------------------------------------------------------- process


def test_a_run_as_a_process_of_its_own(tmp_path: Path) -> None:
    done = process("train", *IRIS, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "iris: 40 training and 8 test examples; Logistic with 15 parameters; float64, cpu, seed 0"


def test_an_interrupted_run_says_so(run_influx: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("influx.experiment.Experiment.train", interrupted)
    ran = run_influx("train", *IRIS, cwd=tmp_path)
    assert ran.status == 130
    assert "interrupted" in ran.err
    assert record(ran.folder)["status"] == "failed: KeyboardInterrupt"
