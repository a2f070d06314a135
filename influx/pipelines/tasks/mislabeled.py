"""Finding wrong labels: label noise is put in, and training examples are inspected in the order in which a score suspects them.

Score: the method's mean influence on the test set (most harmful first), or each example's influence on its own loss; beside it, on the same
models, the baselines loss, gradient norm, similarity to the test set, and a random order. What the numbers mean: `detection.py`.

Chen et al. (HYDRA, AAAI 2021) rank training data by their contribution to the test loss; Koh & Liang (ICML 2017, section 5.4) by the
influence on their own. Yeh et al. (2018) draw the curve that is drawn here.

Cost: seeds x (training + estimate). For the self score the test part is the training part: n_train columns, unless the method knows the
influence of examples on themselves for less (`OnItself`).
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from rich.console import Console

from influx import memory, rules
from influx.errors import InfluxError
from influx.estimators import Estimator
from influx.estimators.base import OnItself
from influx.experiment import Trained
from influx.measurements import Loss
from influx.pipelines import test_points
from influx.pipelines.estimate import estimate, scored
from influx.pipelines.session import Session
from influx.pipelines.tasks.base import Task, check_session, note_table, over_seeds, replicas
from influx.pipelines.tasks.detection import curve, measures, shares
from influx.pipelines.tasks.suspicion import BASELINES, Suspicion, baselines, by_mean, by_self, suspects
from influx.pipelines.train import train
from influx.report.detection import detection_lines, detection_verdict, save_detection

log = logging.getLogger("influx")

HEADLINE, AGAINST = "roc_auc", "loss"
PAIRED = f"{HEADLINE}_minus_{AGAINST}"


@dataclass(frozen=True)
class Mislabeled(Task):
    """Writes detection.csv, detection_seeds.csv, curve.csv, detection.png; the ordinary files of an estimate are the first seed's.

    Args:
        seeds: runs, each with a noise draw, an initialisation and a batch order of its own.
        score: "mean" or "self", as above.
        budgets: shares of the training set that are inspected.
    """

    seeds: int = 5
    score: str = "mean"
    budgets: Sequence[float] = (0.05, 0.1, 0.2)

    def __post_init__(self) -> None:
        rules.check_fields("task", self)

    def check(self, session: Session, estimator: Estimator) -> None:
        """
        Raises:
            InfluxError: no label is wrong or all are, or the matrix of the self score does not fit in `memory`.
        """
        check_session("mislabeled", session, estimator, self.seeds)
        data = session.experiment.data
        wrong = int(data.wrong_labels.sum())
        if wrong in (0, data.n_train):
            noise = session.config["dataset"].get("label_noise", 0.0)
            raise InfluxError(
                f"task=mislabeled looks for wrong labels, and dataset.label_noise={noise:g} makes {wrong} of {data.n_train}: "
                "set it between 0 and 1, for example dataset.label_noise=0.2."
            )
        if self.score == "self" and not isinstance(estimator, OnItself):
            size = data.n_train**2 * data.train_inputs.element_size()
            if size > session.memory:
                raise InfluxError(
                    f"task.score=self needs the influence of each training example on each, {memory.shown(size)}: lower "
                    "dataset.train_size, or raise memory."
                )
            read = self._read_out(session)
            estimator.plan(read.experiment.untrained(read.seed, read.memory), read.laboratory)

    def run(self, session: Session, estimator: Estimator) -> float:
        """The headline is the method's ROC AUC, mean over seeds."""
        rows: list[dict[str, Any]] = []
        curves: list[dict[str, Any]] = []
        for number, one in enumerate(replicas(session, self.seeds)):
            scores = self._scores(one, estimator, first=number == 0)
            wrong = one.experiment.data.wrong_labels
            about = {"seed": one.seed, "noise_seed": one.config["dataset"].get("noise_seed", 0)}
            found = {name: measures(score, wrong, self.budgets) for name, score in scores.items()}
            for name, score in scores.items():
                rows += [{**about, "score": name, "statistic": key, **value._asdict()} for key, value in found[name].items()]
                curves += [
                    {"score": name, "inspected": at, "value": share} for at, share in zip(shares(), curve(score, wrong), strict=True)
                ]
                paired = found[name][HEADLINE].value - found[AGAINST][HEADLINE].value
                if name != AGAINST:
                    rows.append({**about, "score": name, "statistic": PAIRED, "value": paired, "chance": np.nan, "best": np.nan})
            log.info("seed %d: %s", one.seed, ", ".join(f"{name} {value[HEADLINE].value:.3f}" for name, value in found.items()))
        return self._finish(session, pd.DataFrame(rows), curves)

    def _read_out(self, session: Session) -> Session:
        """The session whose test part the score is read out on."""
        if self.score == "mean":
            return session
        experiment, data = session.experiment, session.experiment.data
        own = replace(data, test_inputs=data.train_inputs, test_targets=data.train_targets, test_index=data.train_index)
        return replace(session, experiment=replace(experiment, data=own, measurement=Loss()))

    def _scores(self, session: Session, estimator: Estimator, *, first: bool) -> dict[str, Suspicion]:
        """The method's score under its own name, then the baselines."""
        method, experiment, folder = session.choices["method"], session.experiment, session.folder
        read = self._read_out(session)
        if self.score == "self" and isinstance(estimator, OnItself):
            trained, influence = _on_itself(session, estimator, first=first)
        elif first:
            made = estimate(read, estimator, experiment)
            trained, influence = made.trained, made.influence
        else:
            with folder.stage(f"seed {session.seed}"):
                trained = experiment.train(session.seed, session.store, checkpoints=session.config["checkpoints"])
                influence = scored(read, estimator, trained).influence.cpu().numpy()
        own = by_self(influence, method) if self.score == "self" else by_mean(influence, estimator, experiment.measurement)
        if first:
            folder.csv("suspects.csv", suspects(experiment.data, own))
        return {method: own, **baselines(session, trained, tuple(name for name in BASELINES if name != method))}

    def _finish(self, session: Session, rows: pd.DataFrame, curves: list[dict[str, Any]]) -> float:
        folder, method = session.folder, session.choices["method"]
        known = rows.drop_duplicates(["score", "statistic"])[["score", "statistic", "chance", "best"]]  # the same for every seed
        table = over_seeds(rows.to_dict("records"), ["score", "statistic"]).merge(known, on=["score", "statistic"])  # type: ignore[arg-type]
        lines = over_seeds(curves, ["score", "inspected"]).rename(columns={"value": "found"})
        folder.csv("detection.csv", table)
        folder.csv("detection_seeds.csv", rows[["seed", "noise_seed", "score", "statistic", "value"]])
        folder.csv("curve.csv", lines)
        note_table(folder, "detection.csv", HEADLINE, "ROC AUC of finding wrong labels")
        data = session.experiment.data
        about = f"{int(data.wrong_labels.sum())} of {data.n_train} training labels wrong, {self.seeds} seed{'s' * (self.seeds > 1)}"
        if session.config["pictures"]:
            title = f"{method} on {data.name}, {type(session.experiment.model).__name__.lower()}: finding wrong labels"
            share = float(data.wrong_labels.mean())
            save_detection(lines, table, folder.path / "detection.png", method=method, share=share, title=title, about=about)
        screen = Console(width=100, file=io.StringIO())
        screen.print(detection_lines(table, about))
        log.info("%s", screen.file.getvalue().rstrip())  # type: ignore[attr-defined]
        log.info("%s", detection_verdict(table, method))
        return float(table.set_index(["score", "statistic"]).value[method, HEADLINE])


def _on_itself(session: Session, estimator: OnItself, *, first: bool) -> tuple[Trained, Float[np.ndarray, "n_train 1"]]:
    """The trained model and each training example's influence on itself; the first seed's facts are noted."""
    experiment, folder = session.experiment, session.folder
    trained = train(session) if first else experiment.train(session.seed, session.store, checkpoints=session.config["checkpoints"])
    with folder.stage("estimate" if first else f"seed {session.seed}"):
        problem = experiment.problem(trained, session.seed, session.memory)
        made = estimator.on_itself(problem, session.laboratory.after(trained), session.seed)
    if first:
        folder.record["facts"] = {"test_accuracy": test_points.accuracy(experiment, trained, session.seed), **made.facts}
    return trained, made.influence.cpu().numpy()
