"""The layout that makes "add a method in two files" true: imports point one way, and a YAML file is its class's constructor."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from influx import rules
from influx.cli import COMMANDS
from influx.datasets import Dataset
from influx.estimators import Estimator
from influx.instantiate import build
from influx.loggers import Logger
from influx.measurements import Measurement
from influx.models import Model
from influx.objectives import Objective
from influx.pipelines.tasks import Task
from influx.retraining import Retraining
from influx.solvers import Solver
from influx.training import Training

REPOSITORY = Path(__file__).parents[1]
MODULES = {
    ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((REPOSITORY / "influx").rglob("*.py"))
}

# ---------------------------------------------------------------------------------------------------------------- imports


def _imported(nodes: Iterator[ast.AST] | list[ast.stmt]) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """Everything that a module imports anywhere in it: modules of ours by their name, others as `package.name`."""
    found = _imported(ast.walk(ast.parse(MODULES[module].read_text())))
    return frozenset(name if name in MODULES else name.rpartition(".")[0] if name.rpartition(".")[0] in MODULES else name for name in found)


def reached(module: str) -> set[str]:
    """Modules of ours that importing `module` brings along."""
    seen, waiting = set(), [module]
    while waiting:
        new = {name for name in imports(waiting.pop()) if name in MODULES} - seen
        seen |= new
        waiting += new
    return seen


def part(*names: str) -> list[str]:
    """The modules of some parts: `influx.solvers` is the package and all that is in it."""
    return [module for module in MODULES if any(module == name or module.startswith(f"{name}.") for name in names)]


UPPER = ("influx.cli", "influx.app", "influx.pipelines", "influx.runfolder", "influx.report")
LEARNING = ("influx.datasets", "influx.training", "influx.retraining", "influx.shards", "influx.experiment", "influx.store")


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        (("influx.estimators", "influx.solvers", "influx.curvature", "influx.problem"), (*UPPER, *LEARNING, "influx.laboratory")),
        (("influx.record", "influx.trajectory"), (*UPPER, *LEARNING, "influx.laboratory", "influx.estimators")),
        (("influx.gradients", "influx.cost", "influx.memory"), (*UPPER, *LEARNING, "influx.estimators", "influx.problem")),
        (("influx.laboratory",), (*UPPER, "influx.estimators", "influx.statistics")),
        (("influx.objectives", "influx.measurements", "influx.stacking", "influx.models"), (*UPPER, *LEARNING, "influx.estimators")),
        (("influx.datasets",), (*UPPER, *LEARNING[1:], "influx.estimators", "influx.solvers", "influx.problem")),
        (("influx.training",), (*UPPER, "influx.datasets", "influx.retraining", "influx.shards", "influx.experiment", "influx.estimators")),
        (("influx.experiment", "influx.shards", "influx.retraining"), (*UPPER, "influx.estimators", "influx.statistics")),
        (("influx.removals", "influx.workers"), (*UPPER, *LEARNING, "influx.estimators", "influx.statistics", "influx.problem")),
        (("influx.statistics", "influx.reliability", "influx.bootstrap"), (*UPPER, *LEARNING, "influx.estimators", "influx.problem")),
    ],
    ids=lambda names: names[0],
)
def test_imports_point_one_way(lower: tuple[str, ...], upper: tuple[str, ...]) -> None:
    modules, forbidden = part(*lower), set(part(*upper))
    assert modules
    assert {module: sorted(reached(module) & forbidden) for module in modules if reached(module) & forbidden} == {}


def test_imports_have_no_cycle() -> None:
    assert [module for module in MODULES if module in reached(module)] == []


def test_the_report_layer_takes_tables_and_knows_nothing_else_of_ours() -> None:
    allowed = {*part("influx.report"), "influx.errors", "influx.statistics", "influx.reliability"}
    for module in part("influx.report"):
        assert {name for name in imports(module) if name.split(".")[0] == "influx"} <= allowed, module


@pytest.mark.parametrize(
    ("library", "doors"),
    [
        ("hydra", ("influx.app", "influx.composing", "influx.launching", "influx.sweep_resume")),
        ("omegaconf", ("influx.app", "influx.composing", "influx.launching", "influx.sweep_resume")),
        ("matplotlib", ("influx.report",)),
    ],
)
def test_a_library_comes_in_by_few_doors(library: str, doors: tuple[str, ...]) -> None:
    users = {module for module in MODULES if any(name.split(".")[0] == library for name in imports(module))}
    assert users
    assert users <= set(part(*doors))


def test_torchvision_is_imported_by_name_in_one_place_only() -> None:
    """`influx.vision` imports it through importlib, after mending what a mismatched pair lacks."""
    assert [module for module in MODULES if any(name.split(".")[0] == "torchvision" for name in imports(module))] == []
    assert [module for module in MODULES if "import_module" in MODULES[module].read_text()] == ["influx.instantiate", "influx.vision"]


@pytest.mark.parametrize(
    ("module", "light"),
    [
        ("influx.cli", {"__future__", "os", "sys", "influx"}),
        ("influx.errors", {"__future__", "difflib", "warnings", "collections"}),
        ("influx.rules", {"__future__", "dataclasses", "collections", "typing", "influx"}),
        ("influx.rule_kinds", {"__future__", "dataclasses", "math", "collections", "typing", "influx"}),
        ("influx.memory", {"__future__", "re", "contextlib", "pathlib"}),
    ],
)
def test_what_answers_first_imports_nothing_heavy(module: str, light: set[str]) -> None:
    top = _imported(ast.parse(MODULES[module].read_text()).body)
    assert {name.split(".")[0] for name in top} <= light
    ours = {name for name in top if name.startswith("influx.") and not name.startswith("influx.rule_kinds.")}
    assert ours <= {"influx.errors.InfluxError", "influx.errors.nearest", "influx.memory"}


def test_no_file_is_long() -> None:
    files = [*MODULES.values(), *(REPOSITORY / "conf").rglob("*.yaml")]
    assert [file.name for file in files if len(file.read_text().splitlines()) > 350] == []


# ---------------------------------------------------------------------------------------------------------- configuration

FAMILIES: dict[str, Any] = {
    "dataset": Dataset,
    "model": Model,
    "training": Training,
    "objective": Objective,
    "measurement": Measurement,
    "method": Estimator,
    "solver": Solver,
    "retraining": Retraining,
    "task": Task,
    "logger": Logger,
}
INSIDE = {"solver": "method.solver"}  # groups whose place in the configuration is inside another
OPTIONS = sorted(file for group in FAMILIES for file in (REPOSITORY / "conf" / group).rglob("*.yaml"))
each_option = pytest.mark.parametrize("file", OPTIONS, ids=lambda file: f"{file.parent.name}/{file.stem}")


def settings(file: Path) -> dict[str, Any]:
    """A file's own keys: without Hydra's defaults list and its section."""
    return {key: value for key, value in yaml.safe_load(file.read_text()).items() if key not in ("defaults", "hydra")}


def composed(file: Path) -> dict[str, Any]:
    """A file's keys with those of the options that its defaults list puts inside it (`/solver@solver: cg`)."""
    listed = [item for item in yaml.safe_load(file.read_text()).get("defaults", []) if item != "_self_"]
    inside = {}
    for where, option in (pair for item in listed for pair in item.items() if not pair[0].startswith("override ")):
        group, _, key = where.removeprefix("/").partition("@")
        if key:
            inside[key] = composed(REPOSITORY / "conf" / group / f"{option}.yaml")
    return {**inside, **settings(file)}


def leaves(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        elif key != "_target_":
            yield f"{prefix}{key}"


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for value in node.values():
        if isinstance(value, dict) and "_target_" in value:  # others are values that users name the keys of
            yield from nodes(value)


def test_every_group_has_a_family() -> None:
    groups = {place.name for place in (REPOSITORY / "conf").iterdir() if place.is_dir()}
    assert groups == {*FAMILIES, "experiment", "study", "hydra"}


@each_option
def test_an_option_builds_with_its_defaults(file: Path) -> None:
    group = file.parent.name
    assert isinstance(build(composed(file), FAMILIES[group], group), FAMILIES[group])


@each_option
def test_an_option_is_its_constructor(file: Path) -> None:
    for node in nodes(composed(file)):
        module, _, name = node["_target_"].rpartition(".")
        constructor = inspect.signature(getattr(__import__(module, fromlist=[name]), name)).parameters
        assert set(node) - {"_target_"} == set(constructor)


@each_option
def test_an_option_says_what_it_is_and_what_each_key_means(file: Path) -> None:
    first, *lines = file.read_text().splitlines()
    assert re.fullmatch(r"# \S.*", first)
    for line in lines:
        key = re.match(r"\s*(\w+):\s*\S", line)
        if key and key[1] != "_target_":
            assert re.search(r"\s# \S", line), f"no comment on {line.strip()!r}"


def test_every_setting_has_a_rule_and_every_rule_a_setting() -> None:
    settable = {f"{INSIDE.get(file.parent.name, file.parent.name)}.{key}" for file in OPTIONS for key in leaves(settings(file))}
    for command in ("base", *COMMANDS):
        file = REPOSITORY / "conf" / f"{command}.yaml"
        settable |= set(leaves(settings(file))) if file.exists() else set()
    settable = {key for key in settable if not key.startswith("measurement.tests.")}  # word lists: users name them, `Weat` checks them
    assert settable == set(rules.RULES)


@pytest.mark.parametrize("file", sorted((REPOSITORY / "conf/experiment").glob("*.yaml")), ids=lambda file: file.stem)
def test_an_experiment_sets_what_exists_to_what_is_possible(file: Path) -> None:
    assert file.read_text().startswith("# @package _global_\n# ")
    assert set(leaves(settings(file))) <= set(rules.RULES)
    rules.check_config(settings(file))


@pytest.mark.parametrize("command", ["train", "estimate", "validate"])
def test_an_experiment_comes_last_in_a_commands_defaults(command: str) -> None:
    defaults = yaml.safe_load((REPOSITORY / "conf" / f"{command}.yaml").read_text())["defaults"]
    assert defaults[0] == "base"
    assert defaults[-3:] == ["_self_", {"experiment": None}, {"override hydra/sweeper": "grid"}]  # Hydra wants its overrides last
