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
from methods import METHODS, SEED, SHARED, estimator, laboratory, node, run
from pairs import MEASUREMENTS, MODELS, N_TRAIN, NEEDS_ITS_OWN, OBJECTIVES, fitting, paired, refusal
from problems import NOTHING_KEPT

from influx.cost import Cost
from influx.errors import InfluxError
from influx.estimators import Estimator
from influx.experiment import Experiment
from influx.models.mlp import Mlp
from influx.removals import Removals, groups, subsets
from influx.retraining import Retraining

pytestmark = pytest.mark.filterwarnings("ignore::influx.errors.AccuracyWarning")  # small settings say that they are small

CLASSES = ("cross_entropy", "supervised", "dec", "vade")
FITS = {  # measurement: the objectives it can judge (all others: every one), and what the others are told before anything is trained
    "cluster_loss": (CLASSES, r"measurement=cluster_loss needs (class labels|scores of classes or clusters), .*"),
    "margin": (CLASSES, r"measurement=margin needs (class labels|scores of classes or clusters)[,;] .*"),
    "reconstruction_error": (
        ("reconstruction", "vade", "vae"),
        r"measurement=reconstruction_error needs a model that gives its inputs back, .*",
    ),
    "own_cluster_loss": (("dec", "vade"), r"measurement=own_cluster_loss needs a model that makes clusters, .*"),
    "weat": (("skip_gram",), r"measurement=weat compares word vectors, and this objective trains none: .*"),
}
PAIRS = [  # supervised has the same two losses
    pytest.param(*found, marks=[pytest.mark.slow] * (found[0] in ("cross_entropy", "squared_error"))) for found in fitting()
]
NOT_CONVEX = ("contrastive",)  # losses whose curvature in the outputs can be negative
MISSING = r"needs the package"
NO_LAYERS = r"output layer is not linear|works on linear and convolution layers|no hidden layer with an activation"
UNREAD = ("vade", "vae")  # losses that leave outputs unread: without weight decay the Hessian has rows of zeros
TOLD = {  # what methods may say of an objective's own model, before anything is trained; of an MLP nothing
    "contrastive": (MISSING, r"uses its output layer twice|layers that are used once"),
    "skip_gram": (MISSING, NO_LAYERS, r"needs a measurement that training examples have as well|asks what they have no answer to"),
}
REFUSED = {("contrastive", "pbrf"): r"no distance when the loss is not convex in the outputs, and Contrastive is not: use .*=proximal"}
TRUTHS = {
    "scratch": {},
    "warm": {"start": "warm"},
    "proximal": {"response": "proximal", "proximity": 5.0},
    "pbrf": {"response": "pbrf", "proximity": 5.0},
    "linear": {"response": "linear", "proximity": 5.0},
}


def curved(objective: str, method: str) -> dict[str, str]:
    """The Fisher matrix in place of a Gauss-Newton matrix that is not positive, weight decay in place of a Hessian without an inverse."""
    if objective in UNREAD and method == "as_published":
        return {"weight_decay": "inside"}
    return {"curvature": "fisher"} if objective in NOT_CONVEX and "curvature" in node(method) else {}


def test_every_pair_fits_or_is_refused_with_one_line():
    for objective in OBJECTIVES:
        for measurement in MEASUREMENTS:
            fit, words = FITS.get(measurement, (tuple(OBJECTIVES), ""))
            said = refusal(objective, measurement)
            assert (said is None) == (objective in fit), (objective, measurement, said)
            assert said is None or re.fullmatch(words + r"[^\n]*\.", said), said


@cache
def pair(objective: str, measurement: str) -> Experiment:
    """With an MLP where the objective can train one: every method takes that."""
    return paired(objective, measurement) if objective in NEEDS_ITS_OWN else paired(objective, measurement, model=Mlp(width=3))


def planned(chosen: Estimator, made: Experiment) -> tuple[Cost | None, str]:
    """The plan that is made before training, or the refusal."""
    try:
        return chosen.plan(made.untrained(SEED), laboratory(made, trained=False)), ""
    except InfluxError as error:
        return None, str(error)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("objective", "measurement"), PAIRS)
def test_every_method_takes_every_pair(method, objective, measurement):
    made = pair(objective, measurement)
    chosen, lab = estimator(method, made, **curved(objective, method)), laboratory(made)
    fitted = made.problem(lab.trained, SEED)
    before, said = planned(chosen, made)
    if said:
        assert any(re.search(words, said) for words in TOLD.get(objective, (MISSING,))), said
        pytest.skip(said)
    found = chosen.estimate(fitted, lab, SEED).influence
    assert before == chosen.plan(fitted, lab)
    assert found.shape == (N_TRAIN, made.n_test)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("objective", sorted(MODELS))
def test_every_method_takes_the_objectives_own_model_or_says_why_not(method, objective):
    assert torch.isfinite(run(method, paired(objective, "loss"), **curved(objective, method))).all()


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_truth_takes_every_objective(truth, objective):
    """Leave-one-out, groups and subsets, by retraining and by each response."""
    asked = Retraining(seeds=2, **TRUTHS[truth])
    if (objective, truth) in REFUSED:
        with pytest.raises(InfluxError, match=REFUSED[objective, truth]):
            asked.check("loo", pair(objective, "loss"))
        return
    for measurement in ("loss", "displacement"):
        made = pair(objective, measurement)
        base = made.train(SEED, SHARED)
        for sets in (Removals.single([0, 5]), groups(np.arange(N_TRAIN), 3, 2), subsets(N_TRAIN, 0.7, 2, 0)):
            found = asked.run(made, base, sets, SEED, NOTHING_KEPT)
            assert found.change.shape == (2, made.n_test, 2)
            assert np.isfinite(found.change).all()
            assert (np.abs(found.change).max(1) > 0).all()
