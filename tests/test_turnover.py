"""Turn-over dropout's scores against a loop over pairs that runs one small network by hand, and what the method refuses."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from problems import NOTHING_KEPT, TORCH_MEASURES, BatchNormNet, experiment
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from influx.errors import InfluxError
from influx.estimators import turnover_dropout
from influx.estimators.turnover_dropout import TurnoverDropout
from influx.experiment import Experiment
from influx.laboratory import Laboratory, masked_experiment
from influx.masks import Masks, by_integers
from influx.measurements import LogProbability, Loss, Margin, MeanLoss
from influx.models.logistic import Logistic
from influx.models.mlp import Mlp
from influx.seeding import derive
from influx.training.first_order import Sgd

SGD = Sgd(lr=0.2, epochs=8, batch_size=12, momentum=0.9, weight_decay=0.01)
WIDE = Mlp(depth=2, width=24)  # wide enough that no two of some dozen examples share a mask

pytestmark = pytest.mark.filterwarnings("ignore:.*same mask:influx.errors.AccuracyWarning")


@cache
def made(name: str = "mlp", dtype: torch.dtype = torch.float64, **changes: object) -> Experiment:
    return experiment(name, dtype, **{"training": SGD, "model": WIDE, **changes})


def laboratory(trained: Experiment, seed: int = 3) -> Laboratory:
    return Laboratory(trained, NOTHING_KEPT, seed, 2**28)


def score(method: TurnoverDropout, trained: Experiment, seed: int = 3) -> Tensor:
    return method.estimate(trained.untrained(seed), laboratory(trained, seed), 0).influence


def by_hand(trained: Experiment, masks: Masks, seed: int) -> Tensor:
    """One pair after another: a tanh MLP with two hidden layers, written out, each mask multiplied in."""
    data, measure, rate = trained.data, TORCH_MEASURES[type(trained.measurement).__name__], masks.rate
    params = list(masked_experiment(trained, masks, seed).train(seed, NOTHING_KEPT).params.values())
    scales = (1 / (1 - rate), 1 / (1 - rate)) if masks.fair else (1 / (1 - rate), 1 / rate)
    layers = list(zip(params[0::2], params[1::2], strict=True))
    influence = torch.empty(data.n_train, data.n_test, dtype=torch.float64)
    for i, place in enumerate(data.train_index):
        for t in range(data.n_test):
            values = []
            for flipped in (False, True):
                hidden = data.test_inputs[t : t + 1].flatten(1)
                for layer, (weight, bias) in enumerate(layers[:-1]):
                    hidden = torch.tanh(F.linear(hidden, weight, bias))
                    if masks.layers is None or layer + 1 in masks.layers:
                        kept = masks.keeps(torch.tensor([float(place)]).double(), len(bias), seed, layer)
                        hidden = hidden * (~kept if flipped else kept) * scales[flipped]
                values.append(measure(F.linear(hidden, *layers[-1]), data.test_targets[t : t + 1]))
            influence[i, t] = values[1] - values[0]
    return influence


@pytest.mark.parametrize("rate", [0.5, 0.3])
@pytest.mark.parametrize(("name", "measurement"), [("mlp", Loss()), ("mlp", Margin()), ("mlp", LogProbability()), ("ridge", Loss())])
def test_scores_are_those_of_a_loop_over_pairs(name, measurement, rate):
    trained = made(name, measurement=measurement)
    wanted = by_hand(trained, Masks(rate), 3)
    # the same float64 sums in another order
    assert_close(score(TurnoverDropout(rate), trained), wanted, rtol=0, atol=1e-12 * wanted.abs().max().item())


@pytest.mark.parametrize(
    "method",
    [
        TurnoverDropout(masks="sine"),
        TurnoverDropout(0.2, fair=True),
        TurnoverDropout(sites=[2]),
        TurnoverDropout(0.3, 1, "sine", True, [1]),
    ],
    ids=["sine", "fair", "second layer", "all released"],
)
def test_variants_are_those_of_a_loop_over_pairs(method):
    wanted = by_hand(made(), method.drawn, 3)
    assert_close(score(method, made()), wanted, rtol=0, atol=1e-12 * wanted.abs().max().item())
    assert not torch.allclose(wanted, score(TurnoverDropout(), made()), rtol=0, atol=1e-3 * wanted.abs().max().item())


def test_fair_masks_train_with_the_releases_scale():
    """Full-batch gradient descent written out: half the units, scaled by 1/rate."""
    slow = replace(SGD, epochs=2, batch_size=None, momentum=0.0)
    trained = made(training=slow, model=Mlp(depth=1, width=5))
    params = [part.detach().requires_grad_(True) for part in trained.module(1).parameters()]
    x, y, places = trained.data.train_inputs, trained.data.train_targets, torch.as_tensor(trained.data.train_index)
    mask = by_integers(places, 5, 0.5, 6, 0).double() / 0.2
    for _ in range(2):
        outputs = F.linear(torch.tanh(F.linear(x.flatten(1), *params[:2])) * mask, *params[2:])
        objective = F.cross_entropy(outputs, y) + 0.005 * sum(p.square().sum() for p in params)
        gradients = torch.autograd.grad(objective, params)
        params = [(p - 0.2 * g).detach().requires_grad_(True) for p, g in zip(params, gradients, strict=True)]
    ours = masked_experiment(trained, Masks(0.2, fair=True), 6).train(1, NOTHING_KEPT)
    for one, wanted in zip(ours.params.values(), params, strict=True):
        assert_close(one, wanted.detach(), rtol=0, atol=1e-13)  # two steps of the same float64 sums in another order


def test_ordinary_dropout_beside_the_masks_trains_and_is_off_in_the_scores():
    """Two estimates of one dropout network agree to the bit, and are those of a network with the same parameters and no dropout."""
    dropped = made(model=replace(WIDE, dropout=0.3))
    fitted = next(iter(laboratory(dropped).masked(Masks(), 1)))
    plain = next(iter(laboratory(made()).masked(Masks(), 1)))
    assert not torch.allclose(fitted.theta, plain.theta)
    params = dict(zip(plain.params, fitted.params.values(), strict=True))  # in the same order, under other numbers of layers
    without = replace(plain, params=params)
    wanted = turnover_dropout.turned_over(turnover_dropout.fitted_net(without), without)
    assert torch.equal(score(TurnoverDropout(), dropped), wanted)


def test_a_whole_sets_score_is_the_mean():
    whole = score(TurnoverDropout(), made(measurement=MeanLoss()))
    assert whole.shape == (36, 1)
    assert_close(whole, score(TurnoverDropout(), made()).mean(1, keepdim=True), rtol=0, atol=1e-13)


def test_models_are_averaged_each_with_its_own_seed():
    """The first is this run's; the others are no run's that counts its seeds up, so that runs of neighbouring seeds share no model."""
    other = derive(3, "masked model", 1) >> 31
    assert other > 10**6
    wanted = (score(TurnoverDropout(), made(), seed=3) + score(TurnoverDropout(), made(), seed=other)) / 2
    assert_close(score(TurnoverDropout(models=2), made(), seed=3), wanted, rtol=0, atol=1e-14)


def test_convolutions_agree_with_tickets_one_by_one():
    """Through the training engine's own forward pass instead of the batched one."""
    trained = made("conv", model=experiment("conv").model)
    masked = masked_experiment(trained, Masks(), 3)
    fitted = masked.problem(masked.train(3, NOTHING_KEPT), 3)
    inputs = fitted.test.inputs

    def under(tickets: Tensor) -> Tensor:
        shown = [torch.cat([inputs[:, :-1], ticket.expand(len(inputs), 1)], 1) for ticket in tickets]
        return torch.stack([fitted.measured(fitted.outputs(fitted.theta, rows), fitted.test.targets) for rows in shown])

    own = fitted.train.inputs[:, -1]
    assert_close(score(TurnoverDropout(), trained), under(-own) - under(own), rtol=0, atol=1e-13)


def test_blocks_of_pairs_change_nothing(monkeypatch):
    whole = score(TurnoverDropout(), made())
    monkeypatch.setattr(turnover_dropout, "BLOCK_BYTES", 3 * 4 * made().untrained(0).bytes_per_row + 1)  # three test examples at a time
    assert_close(score(TurnoverDropout(), made()), whole, rtol=0, atol=1e-13)


def test_float32_says_the_same():
    """The masks are the same to the bit, so that only rounding in training is left: 24 steps of 1e-7."""
    single, double = score(TurnoverDropout(), made(dtype=torch.float32)), score(TurnoverDropout(), made())
    assert single.dtype == torch.float32
    assert_close(single.double(), double, rtol=0, atol=1e-4 * double.abs().max().item())


def test_the_same_seed_gives_the_same_bytes_whatever_the_global_state():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = score(TurnoverDropout(), made())
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(score(TurnoverDropout(), made()), one)
    assert not torch.equal(score(TurnoverDropout(), made(), seed=4), one)


def test_a_memorised_example_helps_itself():
    """Positive = removing it would raise its loss. Its own mask's score on its own loss is positive, and above most others'."""
    trained = made(training=replace(SGD, epochs=200, weight_decay=0.0), model=Mlp(depth=1, width=64))
    data = trained.data
    own = replace(trained, data=replace(data, test_inputs=data.train_inputs, test_targets=data.train_targets, test_index=data.train_index))
    result = TurnoverDropout().estimate(own.untrained(3), laboratory(own), 0)
    mine = result.influence.diagonal()
    assert (mine > 0).double().mean() > 0.9
    assert (result.influence <= mine).double().mean() > 0.7  # 0.5, with a standard error of 0.05, for scores that know nothing
    facts = result.facts
    assert facts["loss_own_mask"] < facts["loss_without_mask"] < facts["loss_flipped_mask"]
    assert facts["loss_flipped_mask"] - facts["loss_own_mask"] == pytest.approx(mine.mean().item())
    assert facts["shared_masks"] == 0
    assert 0.34 < facts["label_from_mask_alone"] <= 1  # of three classes: a mask alone gives its example's label away


# ----------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("softmax", Logistic(), "masks hidden units, and this model has no hidden layer"),
        ("mlp", Mlp(depth=0), "masks hidden units, and this model has no hidden layer"),
        ("conv", BatchNormNet(), "batch normalisation mixes the examples of a batch"),
    ],
)
def test_a_model_without_units_to_mask_is_refused_before_training(name, model, message):
    trained = made(name, model=model)
    with pytest.raises(InfluxError, match=message):
        TurnoverDropout().plan(trained.untrained(0), laboratory(trained))


def test_a_layer_that_there_is_not_is_refused_before_training():
    with pytest.raises(InfluxError, match=r"method\.sites asks for hidden layer 3, and this model has 2"):
        TurnoverDropout(sites=[1, 3]).plan(made().untrained(0), laboratory(made()))


def test_a_problem_trained_without_masks_is_refused():
    trained = made()
    with pytest.raises(InfluxError, match="trained without masks"):
        turnover_dropout.fitted_net(trained.problem(trained.train(0, NOTHING_KEPT), 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": 0.0}, r"method\.rate=0\.0 .*above 0"),
        ({"rate": 1.0}, "below 1"),
        ({"models": 0}, "at least 1"),
        ({"masks": "sin"}, r"method\.masks=sin .*one of integer, sine.*Did you mean 'sine'"),
        ({"sites": []}, r"method\.sites=\[\] .*a list of different layers' numbers, counted from 1, or null"),
        ({"sites": [0]}, "counted from 1"),
        ({"sites": [1, 1]}, "different"),
    ],
)
def test_a_wrong_option_is_refused(changes, message):
    with pytest.raises(InfluxError, match=message):
        TurnoverDropout(**changes)


def test_the_plan_counts_pairs_and_trainings():
    cost = TurnoverDropout(models=3).plan(made().untrained(0), laboratory(made()))
    assert cost.trainings == 3
    assert cost.flops == 3 * 2 * 36 * 6 * 2 * (3 * 24 + 24 + 24 * 24 + 24 + 24 * 3 + 3)  # two passes a pair, 2 operations a weight and bias
