"""What outputs are compared with: targets of every family of objectives, of what a measurement reads, and by which seed's start."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from methods import SEED
from pairs import N_TRAIN, paired
from problems import NOTHING_KEPT, experiment
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from influx.aims import Aims
from influx.errors import InfluxError
from influx.experiment import Experiment
from influx.measurements import Loss, Margin, MeanLoss, Measurement
from influx.measurements.cluster_loss import ClusterLoss
from influx.measurements.displacement import Displacement
from influx.measurements.mean import Mean
from influx.measurements.reconstruction_error import ReconstructionError
from influx.models.dec import Dec
from influx.models.mlp import Mlp
from influx.objectives import CrossEntropy, SquaredError, Supervised
from influx.objectives.base import class_scores, standing
from influx.objectives.reconstruction import Reconstruction
from influx.objectives.self_training import SelfTraining
from influx.removals import Removals
from influx.retraining import Retraining
from influx.stacking import stack
from influx.training.first_order import Sgd
from influx.training.second_order import Lbfgs, Newton

EXACT = {"rtol": 1e-12, "atol": 1e-14}  # a few float64 roundings


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------------------ objectives


def test_deep_clusterings_targets_are_a_loop():
    """p_ij = (q_ij²/f_j) / Σ_c (q_ic²/f_c), f_j = Σ_i w_i q_ij, and the loss a Kullback-Leibler divergence (Xie et al. 2016)."""
    objective, outputs, weights = SelfTraining(), drawn(6, 3), torch.tensor([1.0, 0, 1, 1, 2, 1], dtype=torch.float64)
    q = np.exp(outputs.numpy()) / np.exp(outputs.numpy()).sum(1, keepdims=True)
    f = [sum(weights[i].item() * q[i, j] for i in range(6)) for j in range(3)]
    p = np.array([[q[i, j] ** 2 / f[j] / sum(q[i, c] ** 2 / f[c] for c in range(3)) for j in range(3)] for i in range(6)])
    targets = objective.aims(outputs, objective.reference(outputs, weights))
    assert_close(targets, torch.from_numpy(p), **EXACT)
    now = drawn(2, 6, 3, seed=1)
    expected = torch.stack([F.kl_div(one.log_softmax(1), targets, reduction="none").sum(1) for one in now])
    assert_close(objective.loss(now, targets), expected, rtol=1e-12, atol=1e-14)
    sure = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)  # 0 log 0 is 0
    assert_close(objective.loss(outputs[:1], sure), F.cross_entropy(outputs[:1], torch.tensor([0]), reduction="none"), **EXACT)


def test_reconstruction_is_half_the_squared_distance():
    objective, inputs, outputs = Reconstruction(), drawn(5, 2, 3), drawn(4, 5, 6, seed=1)
    assert torch.equal(objective.targets(inputs), inputs.flatten(1))
    distance = torch.linalg.vector_norm(outputs - inputs.view(5, 6), dim=2)
    assert_close(objective.loss(outputs, objective.targets(inputs)), 0.5 * distance**2, **EXACT)


def test_drawn_targets_have_the_likelihoods_moments():
    """Every quantile once: no sampling error but the grid's."""
    grid = (torch.arange(20_000, dtype=torch.float64).unsqueeze(1) + 0.5) / 20_000
    outputs = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64)
    clusters = SelfTraining().draw(outputs.expand(20_000, -1), grid.expand(-1, 3))
    assert_close(clusters.mean(0), outputs[0].softmax(0), rtol=0, atol=1e-4)
    assert torch.equal(clusters.sum(1), torch.ones(20_000, dtype=torch.float64))
    around = Reconstruction().draw(outputs.expand(20_000, -1), torch.cat([grid, grid.flip(0), grid.roll(1, 0)], 1))
    assert_close(around.mean(0), outputs[0], rtol=0, atol=1e-9)
    assert_close(around.var(0), torch.ones(3, dtype=torch.float64), rtol=0, atol=2e-3)  # the tails beyond the grid


def test_standing_targets_are_those_given_unless_recomputed():
    outputs, given, weights = drawn(2, 6, 3), drawn(6, 3, seed=2).softmax(1), torch.ones(2, 6)
    weights[0, 2] = 0
    assert standing(SelfTraining(), outputs, given, weights) is given
    assert standing(Reconstruction(), outputs, given, weights) is given
    made = standing(SelfTraining(recompute=True), outputs.requires_grad_(True), given, weights)
    assert not made.requires_grad
    for model in (0, 1):  # as if the example of weight 0 were not there
        rows = weights[model] > 0
        q = outputs[model].detach().softmax(1)
        sharp = q**2 / q[rows].sum(0)
        assert_close(made[model], sharp / sharp.sum(1, keepdim=True), **EXACT)


def test_outputs_are_scores_of_classes_or_of_clusters_or_of_neither():
    outputs = drawn(4, 3)
    assert class_scores(Supervised(), outputs) is outputs
    assert torch.equal(class_scores(SelfTraining(), outputs), outputs.log_softmax(1))
    assert class_scores(Reconstruction(), outputs) is None


# --------------------------------------------------------------------------------------------------------------- measurements


def test_measurements_have_closed_forms():
    outputs, labels, there = drawn(2, 5, 3), torch.tensor([0, 2, 1, 1, 0]), drawn(5, 3, seed=1)
    q = outputs.softmax(-1).gather(-1, labels.expand(2, 5).unsqueeze(-1)).squeeze(-1)
    for objective in (SelfTraining(), CrossEntropy()):
        assert_close(ClusterLoss().value(outputs, labels, objective), -q.log(), rtol=1e-12, atol=1e-12)
        assert_close(Margin().value(outputs, labels, objective), q.log() - (1 - q).log(), rtol=1e-12, atol=1e-12)
    mean_square = torch.stack([torch.stack([((row - own) ** 2).mean() for row, own in zip(one, there, strict=True)]) for one in outputs])
    assert_close(ReconstructionError().value(outputs, there, Reconstruction()), mean_square, **EXACT)
    assert_close(Displacement().value(outputs, there, SelfTraining()), mean_square, **EXACT)


@pytest.mark.parametrize("of", [Margin(), Displacement(), ClusterLoss(), Loss()])
def test_the_mean_of_a_measurement_is_that_of_its_values(of: Measurement):
    mean = Mean(of)
    assert (mean.unit, mean.lower_is_better, mean.reads, mean.whole_set) == (of.unit, of.lower_is_better, of.reads, True)
    made = paired("dec", "loss")
    each, one = (replace(made, measurement=measured) for measured in (of, mean))
    fitted = made.train(SEED, NOTHING_KEPT)
    values = [e.problem(fitted, SEED).test_gradients() for e in (each, one)]
    assert_close(values[1], values[0].mean(0, keepdim=True), **EXACT)
    params, buffers = stack(fitted.params, 1), stack(fitted.buffers, 1)
    stacks = [e.measure(SEED, e.module(SEED), params, buffers) for e in (each, one)]
    assert_close(stacks[1], stacks[0].mean(1, keepdim=True), **EXACT)


NO_SCORES = r" needs scores of classes or clusters, and a model trained for Reconstruction gives none: use measurement=loss, or obj"
NO_INPUTS = (
    r"reconstruction_error needs a model that gives its inputs back, and one trained for SelfTraining does not: use measurement=loss"
)
LABELS = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("measurement", "objective", "targets", "message"),
    [
        (ClusterLoss(), SquaredError(), drawn(4), r"cluster_loss needs class labels, and this data set has numbers: use measurement=loss"),
        (ClusterLoss(), Reconstruction(), LABELS, r"cluster_loss" + NO_SCORES),
        (Margin(), Reconstruction(), LABELS, r"margin" + NO_SCORES),
        (ReconstructionError(), SelfTraining(), drawn(4, 3), NO_INPUTS),
    ],
)
def test_a_measurement_of_what_outputs_are_not_is_refused(measurement, objective, targets, message):
    with pytest.raises(InfluxError, match=message):
        measurement.value(drawn(4, 3), targets, objective)


# ------------------------------------------------------------------------------------------------------- targets in an experiment


def dec(measurement: str, recompute: bool = False) -> Experiment:
    made = paired("dec", measurement, model=Dec(width=3, embedding=2))
    return replace(
        made, objective=SelfTraining(recompute), training=Sgd(lr=0.5, epochs=30, batch_size=None, momentum=0.0, weight_decay=0.01)
    )


def targets_of(module: torch.nn.Module, inputs: Tensor, everyone: Tensor) -> Tensor:
    q, all_q = (module(x).softmax(1).detach() for x in (inputs, everyone))
    sharp = q**2 / all_q.sum(0)
    return sharp / sharp.sum(1, keepdim=True)


def test_fixed_targets_are_those_of_the_seeds_start():
    made = dec("loss")
    trained, data = made.train(SEED, NOTHING_KEPT), made.data
    start = made.initial(SEED)
    fitted = made.problem(trained, SEED)
    assert_close(fitted.train.targets, targets_of(start, data.train_inputs, data.train_inputs), **EXACT)
    assert_close(fitted.test.targets, targets_of(start, data.test_inputs, data.train_inputs), **EXACT)  # by the training part's sizes
    other = made.train_examples(SEED + 1).targets
    assert not torch.allclose(other, fitted.train.targets)
    assert_close(other, targets_of(made.initial(SEED + 1), data.train_inputs, data.train_inputs), **EXACT)


def test_recomputed_targets_are_those_of_the_trained_model():
    made = dec("loss", recompute=True)
    trained, data = made.train(SEED, NOTHING_KEPT), made.data
    now = made.module(SEED)
    now.load_state_dict(trained.params)
    fitted = made.problem(trained, SEED)
    assert_close(fitted.train.targets, targets_of(now, data.train_inputs, data.train_inputs), **EXACT)
    assert_close(fitted.test.targets, targets_of(now, data.test_inputs, data.test_inputs), **EXACT)  # a part is its own batch
    assert not torch.allclose(fitted.train.targets, dec("loss").train_examples(SEED).targets)


def by_hand(made: Experiment, rows: Tensor) -> torch.nn.Module:
    """Full-batch steps on the rows alone, from the start that all examples gave, their targets made anew before each."""
    module, inputs = made.initial(SEED), made.data.train_inputs[rows]
    for _ in range(30):
        p = targets_of(module, inputs, inputs)
        loss = F.kl_div(module(inputs).log_softmax(1), p, reduction="batchmean")
        penalty = 0.005 * sum(value.square().sum() for value in module.parameters())
        slopes = torch.autograd.grad(loss + penalty, list(module.parameters()))
        with torch.no_grad():
            for value, slope in zip(module.parameters(), slopes, strict=True):
                value -= 0.5 * slope
    return module


def test_training_with_recomputed_targets_is_a_loop():
    made = dec("loss", recompute=True)
    ours = made.train(SEED, NOTHING_KEPT).params
    for name, value in by_hand(made, torch.arange(N_TRAIN)).named_parameters():
        assert_close(ours[name], value.detach(), rtol=1e-10, atol=1e-12)  # 30 steps of roundings


def test_an_example_that_is_left_out_has_no_part_in_recomputed_targets():
    made = dec("cluster_loss", recompute=True)
    base = made.train(SEED, NOTHING_KEPT)
    found = Retraining(seeds=1, divisor="n-1").run(made, base, Removals.single([4]), SEED, NOTHING_KEPT).change[0, :, 0]
    x, y = made.data.test_inputs, made.data.test_targets
    everyone = torch.arange(N_TRAIN)
    without, all_of_them = (F.cross_entropy(by_hand(made, rows)(x), y, reduction="none") for rows in (everyone[everyone != 4], everyone))
    np.testing.assert_allclose(found, (without - all_of_them).detach().numpy(), rtol=1e-8, atol=1e-11)


def test_what_a_measurement_reads():
    made = dec("loss")
    trained, data = made.train(SEED, NOTHING_KEPT), made.data
    start = made.initial(SEED)
    for measurement, of_test, of_train in (
        (ClusterLoss(), data.test_targets, data.train_targets),
        (Displacement(), start(data.test_inputs).detach(), start(data.train_inputs).detach()),
    ):
        fitted = replace(made, measurement=measurement).problem(trained, SEED)
        assert_close(fitted.test.targets, of_test, rtol=0, atol=1e-12)
        assert_close(fitted.judged.targets, of_train, rtol=0, atol=1e-12)
        assert fitted.train.targets.shape == (N_TRAIN, 3)  # training has its own
    few = fitted.at(trained.params, torch.tensor([3, 5]))
    assert_close(few.judged.targets, fitted.judged.targets[[3, 5]], rtol=0, atol=0)


def test_supervised_targets_are_the_labels_themselves():
    made = experiment("mlp")
    labels = made.data.train_inputs, made.data.train_targets
    aims = Aims(made.module(0), ({}, {}), ({}, {}), made.objective, labels)
    assert aims.of_objective(labels) is made.data.train_targets
    assert aims.of_measurement(MeanLoss(), labels) is made.data.train_targets


# ------------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("training", [Lbfgs(), Newton()])
def test_a_moving_objective_has_no_minimum_to_look_for(training):
    from influx.pipelines.session import check_targets

    made = replace(dec("loss", recompute=True), training=training)
    with pytest.raises(
        InfluxError, match=r"objective.recompute=true moves the objective .*: use training=sgd, adam or adamw, or objective.rec"
    ):
        check_targets(made, "dec")


def test_clusters_need_classes_to_count_them():
    with pytest.raises(InfluxError, match=r"as many clusters as the data set has classes, and tiny is for regression: use a"):
        SelfTraining().prepare(experiment("ridge").data)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("objective=reconstruction model=mlp measurement=margin", "measurement=margin needs scores of classes or clusters"),
        ("objective=dec model=mlp objective.recompute=true training=lbfgs", "objective.recompute=true moves the objective while it is"),
        ("objective=dec model=mlp dataset=diabetes", "objective=dec makes as many clusters as the data set has classes"),
        ("objective=contrastive model=mlp", "and this one mixes them: use model=views"),
        ("measurement=reconstruction_error", "measurement=reconstruction_error needs a model that gives its inputs back"),
        ("objective=reconstruction model=mlp method=knn_shapley measurement=weat", "measurement=weat compares word vectors"),
    ],
)
def test_the_command_line_says_so_before_training(run_influx, tmp_path, words, message):
    ran = run_influx("estimate", "dataset=iris", *words.split(), cwd=tmp_path)
    assert ran.status == 2
    assert re.fullmatch(rf"influx: [^\n]*{re.escape(message)}[^\n]*\n", ran.err), ran.err
    assert not list(tmp_path.glob("**/model*"))


def test_the_command_line_judges_one_loss_by_another(run_influx, tmp_path):
    """What a user types: trained without labels, judged by them."""
    words = "dataset=iris dataset.train_size=30 objective=dec model=dec measurement=cluster_loss training.epochs=3"
    ran = run_influx("estimate", *words.split(), "method=exact", "method.damping=0.1", cwd=tmp_path)
    assert ran.status == 0, ran.err
    with np.load(ran.folder / "influence.npz") as found:
        assert found["influence"].shape[0] == 30
        assert np.isfinite(found["influence"]).all()
    words = "dataset=digits dataset.train_size=40 dataset.test_size=4 objective=contrastive model=views model.of.width=4 training.epochs=2"
    ran = run_influx("estimate", *words.split(), "method=tracin", "measurement=displacement", "pictures=true", cwd=tmp_path)
    assert ran.status == 0, ran.err


def test_turnover_dropout_reconstructs_no_ticket():
    """The mask that a row asks for travels in its inputs, and is no feature of it."""
    from influx.laboratory import masked_experiment
    from influx.masks import Masks

    made = paired("reconstruction", "reconstruction_error", model=Mlp(width=4))
    masked = masked_experiment(made, Masks(), SEED)
    assert masked.n_outputs == made.n_outputs == 3
    assert torch.equal(masked.train_examples(SEED).targets, made.data.train_inputs)
    assert masked.train_examples(SEED).inputs.shape == (N_TRAIN, 4)
    clusters = masked_experiment(paired("dec", "loss", model=Dec(width=3, embedding=2)), Masks(), SEED)
    assert_close(clusters.initial(SEED).get_parameter("net.1.centroids"), clusters_alone(), rtol=0, atol=0)


def clusters_alone() -> Tensor:
    """Where deep clustering starts without masks."""
    return paired("dec", "loss", model=Dec(width=3, embedding=2)).initial(SEED).get_parameter("1.centroids")
