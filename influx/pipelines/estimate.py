"""`influx estimate`: train or reuse a model, then estimate every training example's influence on every test example."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from influx import memory
from influx.cost import Cost
from influx.errors import InfluxError, NumericalError
from influx.estimators import Estimate, Estimator
from influx.experiment import Experiment, Trained
from influx.instantiate import build
from influx.pipelines import test_points
from influx.pipelines.class_influence import MOST_CLASSES, class_table
from influx.pipelines.cluster_explanations import clusters, explain, with_clusters
from influx.pipelines.cost import forecast, said
from influx.pipelines.exhibits import SHOWN_IMAGES, SHOWN_ROWS, gallery, kinds, top_table
from influx.pipelines.session import Session
from influx.pipelines.train import train
from influx.pipelines.word_tests import write_word_tests
from influx.problem import Problem
from influx.report.gallery import save_gallery
from influx.report.heat_map import save_class_influence

log = logging.getLogger("influx")

SOLVE_COLUMNS = ("iterations", "residual", "converged", "damping", "smallest_eigenvalue")


@dataclass(frozen=True)
class Estimated:
    """A trained model and an estimate on it, as arrays. `session` is on the test examples that were chosen."""

    session: Session
    trained: Trained
    estimator: Estimator
    influence: Float[np.ndarray, "n_train n_test"]
    test_index: Int[np.ndarray, " n_test"]
    train_losses: Float[np.ndarray, " n_train"]
    solves: list[dict[str, Any]]


def prepare(session: Session, given: Estimator | None = None) -> Estimator:
    """The estimator that the configuration describes, or that is `given`, with its needs checked against what the run can give: nothing is
    trained by then.

    Raises:
        InfluxError: the method cannot take this model, this training or these sizes.
    """
    estimator = build(session.config["method"], Estimator, "method") if given is None else given
    experiment = test_points.check(session)
    training, laboratory = experiment.training, replace(session.laboratory, experiment=experiment)
    if estimator.needs_trajectory:
        laboratory.check_trajectory()
    cost = estimator.plan(experiment.untrained(session.seed, session.memory), laboratory)
    if not isinstance(cost, Cost):
        raise InfluxError(f"{type(estimator).__name__}.plan must return a Cost; it returned {type(cost).__name__}.")
    decoupled = getattr(training, "decoupled_decay", 0.0)
    if decoupled > 0:
        session.folder.warn(
            f"training.decoupled_decay={decoupled:g} shrinks the parameters without being part of the objective, so no "
            "curvature holds it: the estimate describes another problem than the one that was trained."
        )
    return estimator


def estimate(session: Session, estimator: Estimator, tested: Experiment | None = None) -> Estimated:
    """Train, estimate, write the files. `tested` has the test part whose accuracy is noted, where influence is read out on another."""
    trained = train(session)
    tested = session.experiment if tested is None else tested
    noted: dict[str, float] = {}
    if tested.gives_classes:
        noted["test_accuracy"] = test_points.accuracy(tested, trained, session.seed)
    write_word_tests(session, trained)
    session = test_points.focused(session, trained)
    folder, experiment = session.folder, session.experiment
    problem = experiment.problem(trained, session.seed, session.memory)
    cost = estimator.plan(problem, session.laboratory.after(trained))
    ahead = forecast(problem, cost, trained)
    log.info("estimating: %s, about %.2g s; its arrays take about %s, of %s allowed",
             said(cost), ahead, memory.shown(cost.nbytes), session.config["memory"])  # fmt: skip
    peak = memory.Peak(problem.theta.is_cuda)
    with folder.stage("estimate"):
        made = scored(session, estimator, trained)
    folder.record["cost"] = {"forecast_seconds": ahead, **asdict(cost), "peak_bytes": peak.nbytes()}
    facts = noted | made.facts
    if facts:
        folder.record["facts"] = facts
    influence = made.influence.cpu().numpy()
    whole_set = experiment.measurement.whole_set
    test_index = np.array([-1]) if whole_set else experiment.data.test_index
    folder.arrays("influence.npz", influence=influence, train_index=experiment.data.train_index, test_index=test_index)
    losses = test_points.losses(problem, problem.train)
    _show(session, trained, influence, whole_set)
    write_diagnostics(session, made.solves, test_index)
    seconds = folder.record["stage_seconds"]["estimate"]
    log.info("estimated %d x %d influences in %.2f s (%s)", *influence.shape, seconds, _solved(made))
    log.info("the process's memory peaked at %s", memory.shown(folder.record["cost"]["peak_bytes"]))
    for name, value in facts.items():
        log.info("%s: %s", name.replace("_", " "), f"{value:.3g}" if isinstance(value, float) else value)
    return Estimated(session, trained, estimator, influence, test_index, losses, made.solves)


def scored(session: Session, estimator: Estimator, trained: Trained) -> Estimate:
    """What the estimator makes of the session's data, checked; nothing is written.

    Raises:
        InfluxError: it does not return what the contract asks for.
        NumericalError: an influence is not finite.
    """
    problem = session.experiment.problem(trained, session.seed, session.memory)
    made = _checked(estimator.estimate(problem, session.laboratory.after(trained), session.seed), problem, type(estimator).__name__)
    if not bool(torch.isfinite(made.influence).all()):
        count = int((~torch.isfinite(made.influence)).sum())
        raise NumericalError(f"{count} influences are not finite: raise method.damping.")
    return made


def _checked(made: object, problem: Problem, name: str) -> Estimate:
    """What an estimator returned, if it is what the contract asks for."""
    wanted = (problem.n_train, problem.n_test)
    if not isinstance(made, Estimate) or not isinstance(made.influence, torch.Tensor):
        raise InfluxError(f"{name}.estimate must return an Estimate with a tensor of influences; it returned {type(made).__name__}.")
    if tuple(made.influence.shape) != wanted:
        shape = tuple(made.influence.shape)
        raise InfluxError(f"{name}.estimate returned influences of shape {shape}; [n_train, n_test] is {wanted} here.")
    return replace(made, influence=made.influence.detach())


def _solved(made: Estimate) -> str:
    if not made.solves:
        return "no linear solve"
    table = pd.DataFrame(made.solves)
    return f"{table.converged.sum()} of {len(table)} solves converged, largest relative residual {table.residual.max():.1e}"


def _show(session: Session, trained: Trained, influence: Float[np.ndarray, "n_train n_test"], whole_set: bool) -> None:
    """The influences to look at: the most helpful and harmful, and class by class where there are classes."""
    data, folder, pictures = session.experiment.data, session.folder, session.config["pictures"]
    unit, k = session.experiment.measurement.unit, session.config["top_k"]
    called = kinds(data, session.experiment.measurement)
    table, places = top_table(data, influence, k, whole_set, called), None if whole_set else clusters(session, trained)
    if places is not None:
        table = with_clusters(table, data, places)
        explain(folder, data, places, influence, measurement=session.experiment.measurement, pictures=pictures)
    folder.csv("top_influences.csv", table)
    if pictures:
        count = SHOWN_IMAGES if data.is_image else SHOWN_ROWS
        shown = np.sort(np.argsort(-np.abs(influence).max(0), kind="stable")[:count])  # where influence is largest
        said = "most helpful", "most harmful"
        if called[0] == "lowering":
            said = "lowering it most", "raising it most"
        rows = gallery(data, influence, k, shown.tolist(), whole_set)
        save_gallery(rows, folder.path / "top_influences.png", unit=unit, kinds=said)
    if whole_set or data.task != "classification" or data.test_names or len(data.class_names) > MOST_CLASSES:
        return
    table = class_table(data, influence)
    folder.csv("class_influence.csv", table)
    if pictures:
        save_class_influence(table, folder.path / "class_influence.png", unit=unit, title=f"{session.choices['method']} on {data.name}")


def write_diagnostics(session: Session, solves: list[dict[str, Any]], test_index: Int[np.ndarray, " n_test"]) -> None:
    """`diagnostics.csv`: a row a solve, then a row a stage with its seconds."""
    rows = [{"kind": "solve", "name": "iHVP", "test_index": t, **row} for t, row in zip_longest(test_index[: len(solves)], solves)]
    stages = [{"kind": "stage", "name": name, "seconds": s} for name, s in session.folder.record["stage_seconds"].items()]
    columns = ["kind", "name", "test_index", *SOLVE_COLUMNS, "seconds"]
    table = pd.DataFrame([*rows, *stages], columns=columns).astype({"test_index": "Int64", "iterations": "Int64"})  # empty for stages
    session.folder.csv("diagnostics.csv", table)
