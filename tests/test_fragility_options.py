"""What the fragility studies choose: one test point by its loss, removals at a percentile, averaged weights, their VGG and LeNet."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from problems import NOTHING_KEPT, BatchNormNet, experiment, torch_loss
from torch import Tensor, nn
from torch.testing import assert_close

from influx.errors import InfluxError
from influx.experiment import Experiment
from influx.models.base import Shape, build
from influx.models.lenet import LeNet
from influx.models.vgg import Vgg
from influx.pipelines.test_points import ranked
from influx.removals import ranked_rows
from influx.retraining import Retraining
from influx.training.first_order import Adam, AdamW, FirstOrder, Sgd

# ----------------------------------------------------------------------------------------------------------- test points


@pytest.mark.parametrize(("which", "row"), [("highest", 1), ("lowest", 2), ("median", 5)])
def test_of_equal_losses_the_first_is_taken(which, row):
    assert ranked(np.array([1.0, 7.0, 0.0, 7.0, 0.0, 0.5]), which) == row  # sorted 0 0 .5 1 7 7: the lower median is .5
    assert ranked(np.array([3.0]), which) == 0


@pytest.mark.parametrize(("which", "row"), [("highest", 0), ("median", 2), ("lowest", 1)])
def test_an_odd_number_has_one_median(which, row):
    assert ranked(np.array([9.0, 1.0, 5.0]), which) == row


def test_an_experiment_on_some_tests_trains_the_same():
    subject = experiment("mlp")
    few = subject.on_tests(np.array([4, 1]))
    assert torch.equal(few.data.test_inputs, subject.data.test_inputs[[4, 1]])
    assert few.data.test_index.tolist() == subject.data.test_index[[4, 1]].tolist()
    assert few.n_test == 2
    assert few.key(0) == subject.key(0)  # so that a stored model is used again
    assert few.digest != subject.digest  # but not its measurements


@pytest.mark.parametrize("which", ["highest", "median", "lowest"])
def test_a_run_looks_at_the_one_test_point(tiny, validated, which):
    ran = tiny("validate", f"test_points={which}", "retraining.selection=top", "store.dir=null")
    assert ran.status == 0, ran.err
    record = json.loads((ran.folder / "run.json").read_text())
    arrays, truth, before = (np.load(place) for place in (
        ran.folder / "influence.npz", ran.folder / "ground_truth.npz", validated.folder / "ground_truth.npz"))  # fmt: skip
    losses = dict(zip(before["test_index"].tolist(), before["full"][:, 0], strict=True))  # of all eight, by an ordinary run's model
    order = sorted(losses, key=losses.get)
    wanted = {"highest": order[-1], "median": order[3], "lowest": order[0]}[which]
    assert record["test_point"] == {"which": which, "index": wanted, "loss": pytest.approx(losses[wanted], rel=1e-9)}
    assert f"test point: {wanted}, of the {which} loss among 8" in ran.out + ran.err
    assert arrays["influence"].shape[1] == 1
    assert arrays["test_index"].tolist() == truth["test_index"].tolist() == [wanted]
    assert truth["change"].shape[1] == 1
    top = arrays["train_index"][np.argsort(-np.abs(arrays["influence"][:, 0]), kind="stable")[:4]]
    assert set(truth["train_index"].tolist()) == set(top.tolist())  # what is removed is chosen for that point
    for name in ("per_test.csv", "top_influences.csv"):
        assert set(pd.read_csv(ran.folder / name).test_index) == {wanted}
    assert set(pd.read_csv(ran.folder / "correlations.csv").n_test) == {1}


def test_the_influence_on_the_point_is_the_whole_runs(tiny):
    places = [tiny("estimate", "method=grad_dot", f"test_points={which}").folder for which in ("median", "all")]
    one, all_of_them = (np.load(place / "influence.npz") for place in places)
    column = all_of_them["test_index"].tolist().index(one["test_index"].item())
    wanted = all_of_them["influence"][:, column]
    np.testing.assert_allclose(one["influence"][:, 0], wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())  # products of other sizes


def test_a_second_run_goes_on_from_the_first(tiny):
    first = tiny("validate", "test_points=highest")
    second = tiny("validate", "test_points=highest")
    for name in ("influence.npz", "ground_truth.npz", "correlations.csv"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
    reused = json.loads((second.folder / "run.json").read_text())["reused"]
    assert reused[0] == "model"
    assert "retraining shards" in reused[1]


def test_a_measurement_of_the_whole_set_has_no_test_point(tiny):
    ran = tiny("estimate", "test_points=lowest", "measurement=mean_loss")
    assert ran.status == 2
    assert "test_points=lowest keeps one test example, and measurement=mean_loss is of the whole test set: use measurement=loss" in ran.err


def test_a_wrong_word_is_refused(tiny):
    ran = tiny("validate", "test_points=hardest")
    assert ran.status == 2
    assert "test_points=hardest is not possible: it must be one of all, highest, median, lowest. Did you mean 'highest'?" in ran.err


# ------------------------------------------------------------------------------------------------------------ percentile

SIZES = np.array([[4.0], [-1.0], [2.0], [-5.0], [3.0]])  # ranks by magnitude, from the smallest: rows 1, 2, 4, 0, 3


@pytest.mark.parametrize(
    ("percentile", "count", "rows"),
    [(0, 2, [1, 2]), (100, 2, [3, 0]), (50, 1, [4]), (50, 3, [2, 4, 0]), (30, 1, [2]), (30, 2, [2, 4]), (30, 5, [0, 1, 2, 3, 4])],
)
def test_a_percentile_takes_the_ranks_around_it(percentile, count, rows):
    found = ranked_rows("percentile", count, SIZES, np.zeros(5), 0, percentile)
    assert sorted(found.tolist()) == sorted(rows)


def test_the_hundredth_percentile_is_the_top():
    rng = np.random.default_rng(3)
    influence, losses = rng.normal(size=(40, 3)), rng.normal(size=40)
    top = ranked_rows("top", 7, influence, losses, 0)
    assert set(ranked_rows("percentile", 7, influence, losses, 0, 100.0).tolist()) == set(top.tolist())


def test_retraining_removes_them():
    subject = experiment("mlp")
    influence = np.random.default_rng(4).normal(size=(36, 2))
    sets = Retraining(selection="percentile", percentile=30, removed=6).choose("loo", subject, influence, np.zeros(36), 0)
    ranks = np.argsort(np.argsort(np.abs(influence).mean(1)))[sets.rows]
    assert sorted(ranks.tolist()) == [8, 9, 10, 11, 12, 13]  # around 0.3 x 35 = 10.5
    assert (np.diff(sets.rows) > 0).all()


def test_a_percentile_is_one_and_groups_have_none():
    with pytest.raises(
        InfluxError, match=r"retraining.percentile=101 is not possible: it must be a number of at least 0 and of at most 100"
    ):
        Retraining(percentile=101)
    with pytest.raises(
        InfluxError, match=r"truth=group has no retraining.selection=percentile: it must be one of random, top, loss, class"
    ):
        Retraining(selection="percentile").check("group", experiment("mlp"))


# ------------------------------------------------------------------------------------------------------ averaged weights

TRAININGS: dict[str, FirstOrder] = {
    "sgd": Sgd(lr=0.1, epochs=6, batch_size=8, momentum=0.9, weight_decay=0.02),
    "adam": Adam(lr=0.01, epochs=6, batch_size=8, weight_decay=0.02),
    "adamw": AdamW(lr=0.01, epochs=6, batch_size=8, decoupled_decay=0.1),
}


@cache
def fitted(subject: Experiment, k: int = 1):
    """K models without one row each but the first."""
    weights = torch.ones(k, subject.data.n_train, dtype=torch.float64)
    weights[torch.arange(1, k), torch.arange(1, k)] = 0.0
    return subject.training.fit(subject.task(0, weights))


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize(("start", "first"), [(0.0, 1), (0.5, 4), (0.6, 4), (0.75, 5), (0.99, 6)])
def test_the_parameters_are_the_mean_of_the_ends_of_epochs(name, start, first):
    training = TRAININGS[name]
    made = fitted(experiment("mlp", training=replace(training, average_from=start)), 3)
    ends = [fitted(experiment("mlp", training=replace(training, epochs=epoch)), 3) for epoch in range(first, 7)]
    for parameter, value in made.params.items():
        assert_close(value, torch.stack([end.params[parameter] for end in ends]).mean(0), rtol=0, atol=1e-13)  # sums in another order


def test_gradient_descent_on_ridge_averages_in_closed_form():
    """θ_t = θ* + (1 − lr A)^t (θ_0 − θ*), whose mean over t = 6 ... 10 is known."""
    subject = experiment("ridge", training=Sgd(lr=0.2, epochs=10, batch_size=None, momentum=0.0, weight_decay=0.05, average_from=0.5))
    data, module = subject.data, subject.module(0)
    x = torch.cat([data.train_inputs, torch.ones(30, 1, dtype=torch.float64)], dim=1)
    a = x.T @ x / 30 + 0.05 * torch.eye(5, dtype=torch.float64)
    best = torch.linalg.solve(a, x.T @ data.train_targets / 30)
    begun = torch.cat([module[1].weight[0], module[1].bias]).detach() - best
    shrink = torch.eye(5, dtype=torch.float64) - 0.2 * a
    wanted = best + torch.stack([torch.linalg.matrix_power(shrink, t) @ begun for t in range(6, 11)]).mean(0)
    made = fitted(subject).params
    assert_close(torch.cat([made["1.weight"][0, 0], made["1.bias"][0]]), wanted, rtol=0, atol=1e-13)


def test_one_of_several_models_is_the_model_alone():
    training = replace(TRAININGS["sgd"], average_from=0.5)
    alone, several = (fitted(experiment("mlp", training=training), k) for k in (1, 3))
    for parameter, value in alone.params.items():
        assert_close(several.params[parameter][:1], value, rtol=0, atol=1e-13)


def test_the_last_row_of_the_history_describes_the_mean():
    subject = experiment("mlp", training=replace(TRAININGS["sgd"], average_from=0.5))
    trained, plain = (one.train(0, NOTHING_KEPT) for one in (subject, experiment("mlp", training=TRAININGS["sgd"])))
    module = subject.module(0)
    module.load_state_dict(trained.params)
    loss = torch_loss(module(subject.data.train_inputs), subject.data.train_targets).mean()
    squares = sum(p.square().sum() for p in module.parameters())
    gradients = torch.autograd.grad(loss + 0.01 * squares, list(module.parameters()))
    assert trained.history[-1]["loss"] == pytest.approx(loss.item(), rel=1e-12)
    assert trained.gradient_norm == pytest.approx(torch.cat([g.flatten() for g in gradients]).norm().item(), rel=1e-9)
    assert trained.history[:-1] == plain.history[:-1]
    assert trained.history[-1] != plain.history[-1]


def test_averaging_is_part_of_a_models_key():
    plain, averaged = (experiment("mlp", training=replace(TRAININGS["sgd"], average_from=start)) for start in (None, 0.5))
    assert plain.key(0) != averaged.key(0)


def test_a_truth_is_averaged_as_its_model_is():
    subject = experiment("mlp", training=replace(TRAININGS["sgd"], average_from=0.5))
    base = subject.train(0, NOTHING_KEPT)
    plan = Retraining(removed=4, seeds=1)
    truth = plan.run(subject, base, plan.choose("loo", subject, np.zeros((36, 6)), np.zeros(36), 0), 0, NOTHING_KEPT)
    assert truth.control.largest_parameter_change == 0.0
    assert truth.full[:, 0] == pytest.approx(_test_losses(subject, base.params), abs=1e-12)


def _test_losses(subject: Experiment, params: dict[str, Tensor]) -> np.ndarray:
    module = subject.module(0)
    module.load_state_dict(params)
    with torch.no_grad():
        return torch_loss(module(subject.data.test_inputs), subject.data.test_targets).numpy()


def test_a_mean_of_weights_is_no_step_to_follow(tiny):
    subject = experiment("mlp", training=replace(TRAININGS["sgd"], average_from=0.5))
    said = r"step by step, and training.average_from=0.5 ends it with a mean of several steps: set training.average_from=null"
    with pytest.raises(InfluxError, match=said):
        subject.check_trajectory()
    assert subject.training.marks(36, 5) == ()
    ran = tiny("estimate", "method=tracin", "training.average_from=0.5")
    assert ran.status == 2
    assert "set training.average_from=null" in ran.err


def test_batch_statistics_are_not_averaged():
    subject = experiment("conv", model=BatchNormNet(), training=Sgd(epochs=2, batch_size=8, average_from=0.5))
    with pytest.raises(InfluxError, match=r"training.average_from=0.5 averages weights, and the batch normalisation of this model"):
        subject.train(0, NOTHING_KEPT)


@pytest.mark.parametrize("start", [1, -0.1, "late"])
def test_a_start_is_a_share(start):
    with pytest.raises(InfluxError, match=r"training.average_from=.* it must be a number of at least 0 and below 1, or null"):
        Sgd(average_from=start)


# ------------------------------------------------------------------------------------------------------------------ models

CIFAR = Shape((3, 32, 32), 10, "classification")


def test_the_published_head_of_vgg13():
    module = build(Vgg(layers=13, head="published"), CIFAR, 0)
    assert sum(p.numel() for p in module.parameters()) == 32_394_562
    assert sum(isinstance(part, nn.Conv2d) for part in module.modules()) == 10
    linear = [(part.in_features, part.out_features) for part in module.modules() if isinstance(part, nn.Linear)]
    assert linear == [(512, 4096), (4096, 4096), (4096, 1000), (1000, 10)]
    assert [part.p for part in module.modules() if isinstance(part, nn.Dropout)] == [0.4] * 3


def test_the_linear_head_of_vgg13():
    module = build(Vgg(layers=13), CIFAR, 0)
    assert sum(p.numel() for p in module.parameters()) == 9_410_122
    assert [(part.in_features, part.out_features) for part in module.modules() if isinstance(part, nn.Linear)] == [(512, 10)]
    with pytest.raises(InfluxError, match=r"model.head=wide is not possible: it must be one of linear, published"):
        Vgg(head="wide")


def test_lenets_first_linear_layer_is_the_studys_third_convolution():
    module = build(LeNet(), Shape((1, 28, 28), 10, "classification"), 0)
    third = nn.Conv2d(16, 120, 5)
    with torch.no_grad():
        third.weight.copy_(module[7].weight.view(120, 16, 5, 5))
        third.bias.copy_(module[7].bias)
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    images[..., :2], images[..., -2:], images[..., :2, :], images[..., -2:, :] = 0.0, 0.0, 0.0, 0.0  # padded to 32, as that study has them
    unpadded = nn.Conv2d(1, 6, 5)
    unpadded.load_state_dict(module[0].state_dict())
    theirs = nn.Sequential(unpadded, *module[1:6], third, nn.Flatten(), *module[8:])
    assert_close(theirs(images), module(images[..., 2:-2, 2:-2]), rtol=0, atol=1e-5)  # float32
