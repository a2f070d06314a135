"""DenseNet-40: torchvision's network with another stem, rows that do not see one another, and the derivative of its training."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from problems import NOTHING_KEPT, data_of
from test_hypergradient import MEMORY, SEED, Run, differences, distance
from torch import nn
from torch.testing import assert_close

from influx.errors import InfluxError
from influx.estimators.hypergradient import Hypergradient
from influx.experiment import Experiment
from influx.laboratory import Laboratory
from influx.measurements import MeanLoss
from influx.models import build
from influx.models.base import Shape, last_layer
from influx.models.densenet import Dense, DenseNet
from influx.objectives import Supervised
from influx.training.first_order import Sgd
from influx.vision import torchvision

COLOUR = Shape((3, 32, 32), 10, "classification")
SMALL = DenseNet(depth=10, growth=2, activation="tanh")  # one layer a block


def test_it_is_torchvisions_network_with_a_stem_for_small_images():
    """Its class with three blocks of six layers; the 7x7 stem with its pooling becomes one 3x3 convolution (section 4.1, CIFAR)."""
    ours = build(DenseNet(norm="batch"), COLOUR, 0).double().eval()
    theirs = torchvision().models.DenseNet(12, (6, 6, 6), 24, num_classes=10).double()
    theirs.features.conv0 = nn.Conv2d(3, 24, 3, padding=1, bias=False).double()
    for name in ("norm0", "relu0", "pool0"):
        setattr(theirs.features, name, nn.Identity())
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.copy_(mine)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert_close(ours(x), theirs.eval()(x), rtol=1e-10, atol=1e-10)  # the same float64 sums, in another order


def test_normalisation_and_depth():
    module = build(DenseNet(), COLOUR, 0)
    assert sum(isinstance(part, Dense) for part in module.modules()) == 18  # and 36 + 2 + 1 convolutions, 1 output layer: 40
    assert sum(isinstance(part, nn.Conv2d | nn.Linear) for part in module.modules()) == 40
    norms = [part for part in module.modules() if isinstance(part, nn.GroupNorm)]
    assert {part.num_channels // part.num_groups for part in norms} == {12}
    assert last_layer(module) == (f"{len(module) - 1}.weight", f"{len(module) - 1}.bias")


def test_the_first_convolution_is_drawn_as_he_et_al_have_it():
    module = build(DenseNet(growth=96), COLOUR, 0)
    assert module[0].weight.std().item() == pytest.approx((2 / 27) ** 0.5, rel=0.03)  # 5,184 draws: 1 % is one standard error
    assert not module[-1].bias.any()


def test_examples_do_not_see_one_another_in_training():
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    for norm, mixes in (("group", False), ("batch", True)):
        module = build(replace(SMALL, norm=norm), Shape((3, 8, 8), 10, "classification"), 0).double().train()
        apart = (module(x)[:2] - module(x[:2])).abs().max().item()
        assert (apart > 1e-3) is mixes


@cache
def case() -> Run:
    rng = np.random.default_rng(3)
    data = data_of(rng.normal(size=(14, 1, 8, 8)), rng.integers(3, size=14), 10, 3)
    made = Experiment(data, SMALL, Sgd(lr=0.05, epochs=2, batch_size=4, weight_decay=0.01), Supervised(), MeanLoss())
    trained = made.train(SEED, NOTHING_KEPT)
    return Run(made, made.problem(trained, SEED, MEMORY), Laboratory(made, NOTHING_KEPT, SEED, MEMORY, 1, 1, trained))


def test_gradients_are_taken_layer_by_layer():
    problem = case().fitted
    assert problem.layers is not None  # group normalisation too
    by_layer = problem.loss_gradients(problem.train)
    for row in range(3):
        leaf = problem.theta.clone().requires_grad_(True)
        one = torch.autograd.grad(problem.losses(leaf, problem.train.take(slice(row, row + 1))).sum(), leaf)[0]
        assert distance(by_layer[row], one) < 1e-12


@pytest.mark.parametrize("form", ["forward", "adjoint"])
def test_its_hypergradients_are_the_derivative_of_retraining(form):
    made = case().estimate(Hypergradient(form=form)).influence
    assert distance(made, differences(case().made)) < 1e-7  # third derivatives of a deep network times 1e-5 squared


def test_batch_normalisation_is_refused_by_what_follows_the_training():
    made = replace(case().made, model=replace(SMALL, norm="batch"))
    with pytest.raises(InfluxError, match=r"DenseNet has dropout or batch statistics.*use a model without them"):
        made.check_trajectory()


@pytest.mark.parametrize("depth", [4, 12, 41])
def test_other_depths_are_refused(depth):
    with pytest.raises(InfluxError, match=rf"model\.depth={depth} is not possible with model=densenet: it must be 10, 16, 22"):
        DenseNet(depth=depth)


def test_it_needs_images():
    with pytest.raises(InfluxError, match=r"model=densenet needs images of at least 8x8 pixels; these are 6x6"):
        build(DenseNet(), Shape((1, 6, 6), 10, "classification"), 0)
    with pytest.raises(InfluxError, match=r"model\.norm=layer is not possible.* one of group, batch"):
        DenseNet(norm="layer")
