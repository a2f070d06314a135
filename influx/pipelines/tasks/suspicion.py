"""From influences to one number a training example: how suspicious it is."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
from jaxtyping import Float

from influx.datasets import Data
from influx.errors import InfluxError
from influx.estimators import Estimator
from influx.estimators.gradient_norm import GradientNorm
from influx.estimators.loss import Loss
from influx.estimators.nearest import Nearest
from influx.estimators.random import Random
from influx.experiment import Trained
from influx.measurements import Measurement
from influx.pipelines.exhibits import label, text
from influx.pipelines.session import Session

log = logging.getLogger("influx")

BASELINES: dict[str, Estimator] = {"loss": Loss(), "gradient_norm": GradientNorm(), "random": Random(), "nearest": Nearest()}

ROUNDING = 1e3  # times machine precision: how far the same number, computed for several examples, may spread

Suspicion = Float[np.ndarray, " n_train"]


def by_mean(influence: Float[np.ndarray, "n_train n_test"], estimator: Estimator, measurement: Measurement) -> Suspicion:
    """Minus the mean over test examples of the influence, in the sign of a loss: most suspicious is what harms most. For a method that
    marks what it suspects by high scores, plus the mean."""
    mean = influence.mean(1) if measurement.lower_is_better else -influence.mean(1)
    return mean if estimator.marks == "high" else -mean


def by_self(influence: Float[np.ndarray, "n_train n_columns"], method: str) -> Suspicion:
    """The influence of each training example on its own loss, the diagonal or all there is: most suspicious is what nothing else in the
    training set supports.

    Raises:
        InfluxError: it is the same for all of them but for rounding, as the cosine of anything with itself is.
    """
    own = influence[:, 0].copy() if influence.shape[1] == 1 else np.diagonal(influence).copy()
    if np.ptp(own) <= ROUNDING * np.finfo(own.dtype).eps * np.abs(own).max():
        raise InfluxError(f"method={method} gives every training example the same influence on itself: use task.score=mean.")
    return own


def suspects(data: Data, score: Suspicion) -> pd.DataFrame:
    """The training examples, most suspicious first, with the labels that they have and whether the label noise changed those; for texts,
    their beginnings."""
    order = np.argsort(-score, kind="stable")
    table = pd.DataFrame(
        {
            "rank": np.arange(1, len(order) + 1),
            "train_index": data.train_index[order],
            "label": [label(data, data.train_targets[row]) for row in order],
            "wrong": data.wrong_labels[order],
            "score": score[order],
        }
    )
    return table.assign(text=[text(data, "train", row) for row in order]) if data.texts else table


def baselines(session: Session, trained: Trained, wanted: tuple[str, ...] = tuple(BASELINES)) -> dict[str, Suspicion]:
    """What costs next to nothing, on the same model: one that cannot take this model is left out."""
    problem = session.experiment.problem(trained, session.seed, session.memory)
    laboratory = session.laboratory.after(trained)
    made = {}
    for name in wanted:
        estimator = BASELINES[name]
        try:
            estimator.plan(problem, laboratory)
        except InfluxError as error:
            log.info("baseline %s left out: %s", name, error)
            continue
        influence = estimator.estimate(problem, laboratory, session.seed).influence.cpu().numpy()
        made[name] = by_mean(influence, estimator, session.experiment.measurement)
    return made
