"""How well an example sits in the cluster that it is in: against loops and retraining, and blind to labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import NOTHING_KEPT
from torch.testing import assert_close

from influx.data import Data
from influx.datasets.gaussian_mixture import GaussianMixture
from influx.errors import InfluxError
from influx.estimators.inverse_curvature import InverseCurvature
from influx.experiment import Experiment
from influx.measurements.own_cluster_loss import OwnClusterLoss
from influx.models.dec import Dec
from influx.objectives.reconstruction import Reconstruction
from influx.objectives.self_training import SelfTraining
from influx.removals import Removals
from influx.retraining import Retraining
from influx.solvers.exact import Exact
from influx.training.second_order import Lbfgs

SEED, REMOVED = 4, [0, 7, 14, 21, 28, 35, 42]


def clustering(data: Data) -> Experiment:
    """Smooth, decayed and run to an optimum, as first-order influence assumes."""
    training = Lbfgs(weight_decay=0.01, tolerance=1e-8, max_iterations=5000)
    return Experiment(data, Dec(width=4, embedding=3, warm_up=50), training, SelfTraining(), OwnClusterLoss())


def test_it_is_minus_log_q_of_the_cluster_at_the_start():
    rng = np.random.default_rng(0)
    outputs, start = rng.normal(size=(2, 5, 3)), rng.normal(size=(5, 3))
    ours = OwnClusterLoss().value(torch.as_tensor(outputs), torch.as_tensor(start), SelfTraining())
    theirs = [[-np.log(np.exp(row[at.argmax()]) / np.exp(row).sum()) for row, at in zip(model, start, strict=True)] for model in outputs]
    assert_close(ours, torch.tensor(theirs), rtol=1e-12, atol=1e-12)  # rounding


def test_influence_follows_retraining_without_each_example():
    made = clustering(GaussianMixture(points=15).load())
    base = made.train(SEED, NOTHING_KEPT)
    ours = InverseCurvature(Exact(), "hessian", 1e-5).estimate(made.problem(base, SEED), None, SEED).influence[REMOVED].numpy()
    truth = Retraining(seeds=1, start="warm").run(made, base, Removals.single(REMOVED), SEED, NOTHING_KEPT).change[..., 0]
    assert np.corrcoef(ours.ravel(), truth.ravel())[0, 1] > 0.95  # of first order: a removed example is 2 % of the data


def test_labels_have_no_part_in_it():
    data = GaussianMixture(points=15).load()
    other = replace(data, **{f"{part}_targets": (getattr(data, f"{part}_targets") + 1) % 3 for part in ("train", "test")})
    values = []
    for each in (data, other):
        made = clustering(each)
        problem = made.problem(made.train(SEED, NOTHING_KEPT), SEED)
        values.append(problem.measured(problem.outputs(problem.theta, problem.test.inputs), problem.test.targets))
    assert_close(values[0], values[1], rtol=1e-5, atol=1e-6)  # clusters in another order, to an optimum of 1e-8


def test_a_model_without_clusters_is_refused():
    with pytest.raises(InfluxError, match=r"needs a model that makes clusters, and Reconstruction trains none: use objective=dec or vade"):
        OwnClusterLoss().value(torch.zeros(2, 3), torch.zeros(2, 3), Reconstruction())
