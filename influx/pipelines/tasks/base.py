"""The contract of a task, and what tasks have in common: a run for each seed, and tables over seeds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import pandas as pd

from influx.errors import InfluxError
from influx.estimators import Estimator
from influx.estimators.external import External
from influx.objectives.base import Unlabelled
from influx.pipelines.session import Session, prepared, read
from influx.retraining import Retraining
from influx.runfolder import RunFolder
from influx.statistics import interval_over_seeds

UNUSED = ("loo", "truth", "resamples", "retraining")  # by any task


class Task(ABC):
    """What `influx validate task=...` does in place of comparing with retraining. Options only.

    The package's own are in `influx/pipelines/tasks`; a user's is any subclass that a YAML file in a folder `task/` names.
    """

    @abstractmethod
    def check(self, session: Session, estimator: Estimator) -> None:
        """Called before anything is trained; the estimator's own needs have been checked by then.

        Raises:
            InfluxError: the task cannot be done with this data, measurement or method; the message says what to do.
        """

    @abstractmethod
    def run(self, session: Session, estimator: Estimator) -> float | None:
        """Train, estimate, use the estimate, write the files; what is returned is what a Hydra sweeper optimises."""


def check_session(name: str, session: Session, estimator: Estimator, seeds: int) -> None:
    """What every task on labels needs.

    Raises:
        InfluxError: a regression set, one test point, or scores from a file for several seeds.
    """
    data, config = session.experiment.data, session.config
    if data.task != "classification":
        raise InfluxError(f"task={name} is about class labels, and {data.name} has numbers to predict: use a classification set.")
    if isinstance(session.experiment.objective, Unlabelled):
        raise InfluxError(f"task={name} is about class labels, and this objective trains without them: use objective=supervised.")
    if config["test_points"] != "all":
        raise InfluxError(f"task={name} reads out all test examples: leave test_points={config['test_points']} out.")
    if seeds > 1 and isinstance(estimator, External):
        raise InfluxError("method=external has the scores of one model, and task.seeds > 1 trains others: set task.seeds=1.")
    warn_of_unused(name, session, tuple(f"retraining.{field.name}" for field in fields(Retraining) if field.name != "workers"))


def warn_of_unused(name: str, session: Session, more: Sequence[str]) -> None:
    """Say which settings on the command line the task does nothing with: those of the ordinary comparison, and `more`."""
    words = [word.lstrip("+").partition("=")[0] for word in session.folder.record.get("overrides", [])]
    named = (*UNUSED, *more)
    unused = [word for word in words if word in named or word.startswith(tuple(f"{name}." for name in named if "." in name))]
    if unused:
        session.folder.warn(f"task={name} retrains in its own way (or not at all) and does not use {', '.join(unused)}.")


def replicas(session: Session, seeds: int) -> Iterator[Session]:
    """The session, then others like it whose seed and draw of label noise are each one further: another initialisation, batch order and
    choice of wrong labels on the same examples."""
    yield session
    node, experiment = session.config["dataset"], session.experiment
    dtype, device = experiment.dtype, experiment.data.train_inputs.device
    for more in range(1, seeds):
        own = {**node, "noise_seed": node.get("noise_seed", 0) + more}
        with session.folder.stage("data"):
            data = prepared(read(own), experiment.model, experiment.objective, experiment.measurement, dtype, device)
        config = {**session.config, "seed": session.seed + more, "dataset": own}
        yield replace(session, config=config, seed=session.seed + more, experiment=replace(experiment, data=data))


def over_seeds(rows: Sequence[Mapping[str, Any]], by: Sequence[str]) -> pd.DataFrame:
    """A row for each combination of the columns `by`, in the order of their first row: `value` (mean), `ci_low, ci_high` (95 %, Student's
    t), `n_seeds`. The mean over an input without values is NaN."""
    made = []
    for key, values in pd.DataFrame(rows).groupby(list(by), sort=False)["value"]:
        mean, low, high = interval_over_seeds(values.to_numpy(float))
        made.append({**dict(zip(by, key, strict=True)), "value": mean, "ci_low": low, "ci_high": high, "n_seeds": len(values)})
    return pd.DataFrame(made)


def note_table(folder: RunFolder, table: str, statistic: str, label: str) -> None:
    """Say in run.json which file holds the job's statistics, and which of them a sweep ranks jobs by."""
    folder.record |= {"table": table, "headline": {"statistic": statistic, "label": label}}
