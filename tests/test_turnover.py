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

from influx.errors import AccuracyWarning, InfluxError
from influx.estimators import turnover_dropout
from influx.estimators.turnover_dropout import TurnoverDropout
from influx.experiment import Experiment
from influx.laboratory import Laboratory, masked_experiment
from influx.masking import keeps
from influx.measurements import LogProbability, Loss, Margin, MeanLoss
from influx.models.logistic import Logistic
from influx.models.mlp import Mlp
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


def by_hand(trained: Experiment, rate: float, seed: int) -> Tensor:
    """One pair after another: a tanh MLP with two hidden layers, written out, each mask multiplied in."""
    data, measure = trained.data, TORCH_MEASURES[type(trained.measurement).__name__]
    params = list(masked_experiment(trained, rate, seed).train(seed, NOTHING_KEPT).params.values())
    layers = list(zip(params[0::2], params[1::2], strict=True))
    influence = torch.empty(data.n_train, data.n_test, dtype=torch.float64)
    for i, place in enumerate(data.train_index):
        for t in range(data.n_test):
            values = []
            for flipped in (False, True):
                hidden = data.test_inputs[t : t + 1].flatten(1)
                for layer, (weight, bias) in enumerate(layers[:-1]):
                    kept = keeps(torch.tensor([place]), len(bias), rate, seed, layer).double()
                    mask = (1 - kept) / rate if flipped else kept / (1 - rate)
                    hidden = torch.tanh(F.linear(hidden, weight, bias)) * mask
                values.append(measure(F.linear(hidden, *layers[-1]), data.test_targets[t : t + 1]))
            influence[i, t] = values[1] - values[0]
    return influence


@pytest.mark.parametrize("rate", [0.5, 0.3])
@pytest.mark.parametrize(("name", "measurement"), [("mlp", Loss()), ("mlp", Margin()), ("mlp", LogProbability()), ("ridge", Loss())])
def test_scores_are_those_of_a_loop_over_pairs(name, measurement, rate):
    trained = made(name, measurement=measurement)
    wanted = by_hand(trained, rate, 3)
    # the same float64 sums in another order
    assert_close(score(TurnoverDropout(rate), trained), wanted, rtol=0, atol=1e-12 * wanted.abs().max().item())


def test_a_whole_sets_score_is_the_mean():
    whole = score(TurnoverDropout(), made(measurement=MeanLoss()))
    assert whole.shape == (36, 1)
    assert_close(whole, score(TurnoverDropout(), made()).mean(1, keepdim=True), rtol=0, atol=1e-13)


def test_models_are_averaged_each_with_its_own_seed():
    wanted = (score(TurnoverDropout(), made(), seed=3) + score(TurnoverDropout(), made(), seed=4)) / 2
    assert_close(score(TurnoverDropout(models=2), made(), seed=3), wanted, rtol=0, atol=1e-14)


def test_convolutions_agree_with_tickets_one_by_one():
    """Through the training engine's own forward pass instead of the batched one."""
    trained = made("conv", model=experiment("conv").model)
    masked = masked_experiment(trained, 0.5, 3)
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


def test_regression_has_no_label_to_give_away():
    facts = TurnoverDropout().estimate(made("ridge").untrained(3), laboratory(made("ridge")), 0).facts
    assert set(facts) == {"shared_masks", "loss_own_mask", "loss_flipped_mask", "loss_without_mask"}


@pytest.mark.filterwarnings("default:.*same mask:influx.errors.AccuracyWarning")
def test_shared_masks_are_said_and_score_alike():
    trained = made(model=Mlp(depth=1, width=4))  # 16 masks for 36 examples
    with pytest.warns(AccuracyWarning, match=r"of 36 training examples have the same mask .* widen the hidden layers"):
        result = TurnoverDropout().estimate(trained.untrained(3), laboratory(trained), 0)
    masks = keeps(torch.as_tensor(trained.data.train_index), 4, 0.5, 3, 0)
    shared = [i for i in range(36) if (masks == masks[i]).all(1).sum() > 1]
    assert result.facts["shared_masks"] == len(shared) > 0
    i = shared[0]
    j = next(j for j in shared if j != i and torch.equal(masks[i], masks[j]))
    assert_close(result.influence[i], result.influence[j], rtol=0, atol=1e-15)


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


def test_a_problem_trained_without_masks_is_refused():
    trained = made()
    with pytest.raises(InfluxError, match="trained without masks"):
        turnover_dropout.fitted_net(trained.problem(trained.train(0, NOTHING_KEPT), 0))


@pytest.mark.parametrize(
    ("changes", "message"), [({"rate": 0.0}, r"method\.rate=0\.0 .*above 0"), ({"rate": 1.0}, "below 1"), ({"models": 0}, "at least 1")]
)
def test_a_wrong_option_is_refused(changes, message):
    with pytest.raises(InfluxError, match=message):
        TurnoverDropout(**changes)


def test_the_plan_counts_pairs_and_trainings():
    cost = TurnoverDropout(models=3).plan(made().untrained(0), laboratory(made()))
    assert cost.trainings == 3
    assert cost.flops == 3 * 2 * 36 * 6 * 2 * (3 * 24 + 24 + 24 * 24 + 24 + 24 * 3 + 3)  # two passes a pair, 2 operations a weight and bias
