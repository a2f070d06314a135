"""Which test examples are looked at: all of them, or the one that the trained model finds hardest, easiest, or of median difficulty.

Studies of fragility report one test point a run, chosen by its loss under the trained model (Basu et al. 2021; Epifano et al. 2023). From
there on the run has no other: estimate, choice of what is removed, truth and every file are about that one.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from influx import stacking
from influx.errors import InfluxError
from influx.experiment import Experiment, Trained
from influx.measurements.base import Posing
from influx.measurements.cluster_loss import scores_of
from influx.objectives.base import Coupled
from influx.pipelines.session import Session
from influx.problem import Examples, Problem

log = logging.getLogger("influx")


def check(session: Session) -> Experiment:
    """The experiment in the sizes that it will have once a test point is chosen.

    Raises:
        InfluxError: one test point is asked for, and a measurement of the whole test set or with questions of its own.
    """
    which, experiment = session.config["test_points"], session.experiment
    if which == "all":
        return experiment
    if experiment.measurement.whole_set:
        raise InfluxError(
            f"test_points={which} keeps one test example, and measurement={session.choices['measurement']} is of the whole test set: "
            "use measurement=loss, or test_points=all."
        )
    if isinstance(experiment.measurement, Posing):
        raise InfluxError(
            f"test_points={which} looks for a test example by its loss, and measurement={session.choices['measurement']} asks questions of "
            "its own: use test_points=all."
        )
    if reads_the_batch(experiment):
        raise InfluxError(
            f"test_points={which} keeps one test example, and objective.recompute=true makes its targets of all of them together: use "
            "test_points=all, objective.recompute=false, or a measurement that does not read targets."
        )
    return experiment.on_tests(np.array([0]))


def reads_the_batch(experiment: Experiment) -> bool:
    """Whether test examples are measured against targets that they make together."""
    objective = experiment.objective
    return experiment.measurement.reads == "targets" and isinstance(objective, Coupled) and objective.recompute


def focused(session: Session, trained: Trained) -> Session:
    """The session on the test point that `test_points` names; said in the log and in run.json."""
    which, experiment = session.config["test_points"], session.experiment
    if which == "all":
        return session
    values = losses(experiment.problem(trained, session.seed), experiment.posed(session.seed, trained))
    row = ranked(values, which)
    index, loss = int(experiment.data.test_index[row]), float(values[row])
    session.folder.record["test_point"] = {"which": which, "index": index, "loss": loss}
    log.info("test point: %d, of the %s loss among %d (%.4g)", index, which, len(values), loss)
    return replace(session, experiment=experiment.on_tests(np.array([row])))


def ranked(values: Float[np.ndarray, " n"], which: str) -> int:
    """The row of the "highest", "median" (of an even number the lower of the two) or "lowest" value; of equal ones the first."""
    if which == "highest":
        return int(np.argmax(values))
    wanted = np.sort(values)[(len(values) - 1) // 2 if which == "median" else 0]
    return int(np.argmax(values == wanted))


def losses(problem: Problem, examples: Examples) -> Float[np.ndarray, " n"]:
    """The training objective's loss of each example, as the model stands."""
    with torch.no_grad():
        parts = [problem.losses(problem.theta, examples.take(rows)) for rows in stacking.blocks(len(examples), 4 * problem.bytes_per_row)]
    return torch.cat(parts).cpu().numpy()


def accuracy(experiment: Experiment, trained: Trained, seed: int) -> float:
    """Share of the test examples whose class (or the cluster that was matched with it) the trained model finds most likely."""
    problem, labels = experiment.problem(trained, seed), experiment.data.test_targets
    with torch.no_grad():
        parts = [
            scores_of(experiment.objective, problem.outputs(problem.theta, problem.test.inputs[rows]), "accuracy").argmax(1) == labels[rows]
            for rows in stacking.blocks(len(problem.test), 4 * problem.bytes_per_row)
        ]
    return torch.cat(parts).double().mean().item()
