"""Any estimator and any truth with any pair of training objective and measurement: the table is the folders of the configuration.

A pair that does not fit is listed with what it is told; a method that cannot take an objective's own model is skipped with its message
there, and has to take the same pair with an MLP.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
import torch
from methods import METHODS, SEED, SHARED, estimator, laboratory, run
from pairs import MEASUREMENTS, MODELS, N_TRAIN, OBJECTIVES, fitting, paired, refusal
from problems import NOTHING_KEPT

from influx.errors import InfluxError
from influx.experiment import Experiment
from influx.models.mlp import Mlp
from influx.removals import Removals, groups, subsets
from influx.retraining import Retraining

pytestmark = pytest.mark.filterwarnings("ignore::influx.errors.AccuracyWarning")  # small settings say that they are small

REFUSED = {  # (objective, measurement): what is said, before anything is trained
    ("cross_entropy", "reconstruction_error"): "needs a model that gives its inputs back, and one trained for CrossEntropy does not",
    ("supervised", "reconstruction_error"): "needs a model that gives its inputs back, and one trained for Supervised does not",
    ("squared_error", "reconstruction_error"): "needs a model that gives its inputs back, and one trained for SquaredError does not",
    ("squared_error", "margin"): "measurement=margin needs class labels; on a regression data set use measurement=loss",
    ("squared_error", "cluster_loss"): "measurement=cluster_loss needs class labels, and this data set has numbers: use measurement=loss",
    ("dec", "reconstruction_error"): "needs a model that gives its inputs back, and one trained for SelfTraining does not",
    ("reconstruction", "margin"): "needs scores of classes or clusters, and a model trained for Reconstruction gives none",
    ("reconstruction", "cluster_loss"): "needs scores of classes or clusters, and a model trained for Reconstruction gives none",
}
PAIRS = fitting()
TRUTHS = {
    "scratch": {},
    "warm": {"start": "warm"},
    "proximal": {"response": "proximal", "proximity": 0.5},
    "pbrf": {"response": "pbrf", "proximity": 0.5},
    "linear": {"response": "linear", "proximity": 0.5},
}


def test_every_pair_fits_or_is_refused_with_one_line():
    said = {(o, m): refusal(o, m) for o in OBJECTIVES for m in MEASUREMENTS}
    assert {pair for pair, line in said.items() if line} == set(REFUSED)
    for pair, words in REFUSED.items():
        assert words in said[pair]
        assert re.fullmatch(r"[^\n]{20,}\.", said[pair])


@cache
def pair(objective: str, measurement: str) -> Experiment:
    """With an MLP, which every method takes and every objective can train."""
    return paired(objective, measurement, model=Mlp(width=3))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("objective", "measurement"), PAIRS)
def test_every_method_takes_every_pair(method, objective, measurement):
    made = pair(objective, measurement)
    chosen, lab = estimator(method, made), laboratory(made)
    fitted = made.problem(lab.trained, SEED)
    try:
        before = chosen.plan(made.untrained(SEED), laboratory(made, trained=False))
    except InfluxError as error:
        pytest.skip(str(error)) if "needs the package" in str(error) else pytest.fail(str(error))
    found = chosen.estimate(fitted, lab, SEED).influence
    assert before == chosen.plan(fitted, lab)
    assert found.shape == (N_TRAIN, made.n_test)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("objective", sorted(MODELS))
def test_every_method_takes_the_objectives_own_model_or_says_why_not(method, objective):
    assert torch.isfinite(run(method, paired(objective, "loss"))).all()


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_truth_takes_every_objective(truth, objective):
    """Leave-one-out, groups and subsets, by retraining and by each response."""
    for measurement in ("loss", "displacement"):
        made = pair(objective, measurement)
        base = made.train(SEED, SHARED)
        for sets in (Removals.single([0, 5]), groups(np.arange(N_TRAIN), 3, 2), subsets(N_TRAIN, 0.7, 2, 0)):
            found = Retraining(seeds=2, **TRUTHS[truth]).run(made, base, sets, SEED, NOTHING_KEPT)
            assert found.change.shape == (2, made.n_test, 2)
            assert np.isfinite(found.change).all()
            assert (np.abs(found.change).max(1) > 0).all()
