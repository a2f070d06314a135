"""Every method of conf/method, made small, with a problem and a record that it can work on."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from problems import experiment

from influx.cost import Cost
from influx.datasets import Data
from influx.errors import InfluxError
from influx.estimators import Estimator
from influx.experiment import Experiment
from influx.instantiate import build
from influx.laboratory import Laboratory
from influx.problem import Problem
from influx.store import Store
from influx.training.first_order import Sgd

CONF = Path(__file__).parents[1] / "conf"
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
SEED = 4
AMPLE = 2**30
SHARED = Store(Path(mkdtemp()))  # trainings that several tests ask for

Prepared = tuple[Estimator, Problem, Laboratory]

SMALL: dict[str, Any] = {  # wherever a method has this key: as little as the suite needs
    "depth": 60, "subsets": 24, "permutations": 1, "dim": 16, "models": 2, "neighbors": 3,
}  # fmt: skip


@cache
def world(row: str, dtype: torch.dtype = torch.float64) -> Experiment:
    """Row `row` of the tiny problems under a short full-batch SGD, which every method can follow and whose rows have no order."""
    return experiment(row, dtype, training=Sgd(lr=0.1, epochs=6, batch_size=None, momentum=0.9, weight_decay=0.05))


@cache
def converged(row: str) -> Experiment:
    """At the optimum of a convex problem: 0.7^(epochs/2) = 2e-8 is what momentum leaves of the way there."""
    return experiment(row, training=Sgd(lr=0.5, epochs=100, batch_size=None, momentum=0.7, weight_decay=0.05))


def with_rows(made: Experiment, rows: torch.Tensor, columns: torch.Tensor | None = None) -> Experiment:
    """The experiment on training examples `rows` of it, and test examples `columns`."""
    data = made.data
    at = torch.arange(data.n_test) if columns is None else columns
    chosen = replace(
        data, train_inputs=data.train_inputs[rows], train_targets=data.train_targets[rows], train_index=data.train_index[rows.numpy()],
        test_inputs=data.test_inputs[at], test_targets=data.test_targets[at], test_index=data.test_index[at.numpy()],
    )  # fmt: skip
    return replace(made, data=chosen)


def laboratory(made: Experiment, *, trained: bool = True, memory: int = AMPLE, store: Store | None = None) -> Laboratory:
    store = SHARED if store is None else store
    model = made.train(SEED, store, checkpoints=3) if trained else None
    return Laboratory(made, store, SEED, memory, 3, 1, model)


@cache
def node(method: str) -> dict[str, Any]:
    """The method's composed configuration."""
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("estimate", overrides=[f"method={method}"])
    return OmegaConf.to_container(config["method"])


@cache
def scores_file(data: Data, whole_set: bool) -> str:
    """What another program wrote for this data: scores that are a function of the examples, rows and columns in another order."""
    names = data.train_index[::-1], np.array([-1]) if whole_set else data.test_index[::-1]
    place = Path(mkdtemp()) / "scores.npz"
    np.savez(place, influence=np.sin(np.add.outer(names[0], 7.0 * names[1])), train_index=names[0], test_index=names[1])
    return str(place)


def estimator(method: str, made: Experiment, **changes: Any) -> Estimator:
    """The method as shipped, made small."""

    def small(part: dict[str, Any]) -> dict[str, Any]:
        few = {key: min(value, SMALL[key]) if key in SMALL and isinstance(value, int) else value for key, value in part.items()}
        return {key: small(value) if isinstance(value, dict) else value for key, value in few.items()}

    settings = small({**node(method), **changes})
    if settings["_target_"].endswith(".External"):
        settings["path"] = scores_file(made.data, made.measurement.whole_set)
    return build(settings, Estimator, "method")


def prepared(method: str, made: Experiment, memory: int = AMPLE, store: Store | None = None, **changes: Any) -> Prepared:
    """All that an estimate takes; a problem that the method cannot take is skipped with what it says."""
    lab = laboratory(made, memory=memory, store=store)
    fitted = made.problem(lab.trained, SEED, memory)
    chosen = estimator(method, made, **changes)
    planned(chosen, fitted, lab)
    return chosen, fitted, lab


def planned(chosen: Estimator, fitted: Problem, lab: Laboratory) -> Cost:
    try:
        if chosen.needs_trajectory:
            lab.check_trajectory()
        return chosen.plan(fitted, lab)
    except InfluxError as error:
        refusal = str(error)
    assert re.fullmatch(r"[^\n]{20,}\.", refusal)  # one line, a sentence
    pytest.skip(refusal)


def run(method: str, made: Experiment, memory: int = AMPLE, store: Store | None = None, **changes: Any) -> torch.Tensor:
    chosen, fitted, lab = prepared(method, made, memory, store, **changes)
    return chosen.estimate(fitted, lab, SEED).influence
