"""What turn-over dropout's facts say, against the network run example by example, and cases with a known answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import experiment
from sklearn.metrics import roc_auc_score
from test_turnover import laboratory, made
from torch.nn import functional as F
from torch.testing import assert_close

from influx.errors import AccuracyWarning
from influx.estimators import _mask_facts
from influx.estimators.turnover_dropout import TurnoverDropout, fitted_net
from influx.experiment import Experiment
from influx.masks import Masks, by_integers
from influx.models.mlp import Mlp
from influx.training.first_order import Sgd

SEED = 3
MEMORISED = Sgd(lr=0.2, epochs=150, batch_size=12, momentum=0.9, weight_decay=0.0)

pytestmark = pytest.mark.filterwarnings("ignore:.*same mask:influx.errors.AccuracyWarning")


def noisy(**changes: object) -> Experiment:
    """The tiny classification problem with a third of its labels moved to the next class."""
    plain = experiment("mlp", torch.float64, **{"training": MEMORISED, "model": Mlp(depth=1, width=64), **changes})
    targets, wrong = plain.data.train_targets.clone(), np.arange(0, 36, 3)
    targets[wrong] = (targets[wrong] + 1) % 3
    flipped = np.sort(plain.data.train_index[wrong])
    return replace(plain, data=replace(plain.data, train_targets=targets, flipped=flipped))


def found(trained: Experiment, masks: Masks | None = None) -> dict[str, float]:
    lab = laboratory(trained, SEED)
    fitted = next(iter(lab.masked(masks or Masks(), 1)))
    return _mask_facts.facts(fitted_net(fitted), fitted, lab.mislabelled, seed=0)


def test_equal_losses_tell_nothing_apart():
    assert _mask_facts._told_apart(torch.ones(6), np.array([1, 4])) == 0.5
    tied = _mask_facts._told_apart(torch.tensor([1.0, 3.0, 2.0, 2.0]), np.array([1, 2]))
    assert tied == pytest.approx(3.5 / 4)  # three pairs of four are in the right order, one is tied


def test_facts_are_those_of_a_loop_over_examples():
    trained = noisy()
    data = trained.data
    fitted = next(iter(laboratory(trained, SEED).masked(Masks(), 1)))
    (w1, b1, w2, b2), n = fitted.params.values(), data.n_train
    kept = by_integers(torch.as_tensor(data.train_index), 64, 0.5, SEED, 0).double()
    masks = {"own_mask": 2 * kept, "flipped_mask": 2 * (1 - kept), "without_mask": torch.ones_like(kept)}

    def run(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return F.linear(torch.tanh(F.linear(x.flatten(), w1, b1)) * mask, w2, b2)

    facts, labels = found(trained), data.train_targets
    for name, mask in masks.items():
        outputs = torch.stack([run(data.train_inputs[i], mask[i]) for i in range(n)])
        assert facts[f"loss_{name}"] == pytest.approx(F.cross_entropy(outputs, labels).item(), abs=1e-12)
        assert facts[f"accuracy_{name}"] == pytest.approx((outputs.argmax(1) == labels).double().mean().item())
    whole = torch.stack([run(data.test_inputs[t], torch.ones(64).double()) for t in range(data.n_test)])
    assert facts["test_accuracy_without_mask"] == pytest.approx((whole.argmax(1) == data.test_targets).double().mean().item())
    mean = data.train_inputs.mean(0)
    own, other = (torch.stack([run(mean, masks[name][i]) for i in range(n)]).argmax(1) for name in ("own_mask", "flipped_mask"))
    assert facts["label_from_mask_alone"] == pytest.approx((own == labels).double().mean().item())
    assert facts["label_from_flipped_mask"] == pytest.approx((other == labels).double().mean().item())
    wrong = torch.as_tensor(np.isin(data.train_index, data.flipped))
    assert wrong.sum() == 12
    assert facts["wrong_label_from_mask_alone"] == pytest.approx((own == labels)[wrong].double().mean().item())
    alone = torch.stack([run(data.train_inputs[i], masks["without_mask"][i]) for i in range(n)])
    by_loss = roc_auc_score(wrong, F.cross_entropy(alone, labels, reduction="none"))
    assert facts["wrong_labels_by_loss"] == pytest.approx(by_loss, abs=1e-12)
    paired = (own[:, None] == labels[None, :]).double().mean().item()  # every answer with every label
    assert facts["label_by_chance"] == pytest.approx(paired)


def test_memorised_noise_is_told_by_own_masks_and_by_no_others():
    """36 examples on 64 units: own masks fit all, flipped ones not, and the mask says the label where the input does not."""
    facts = found(noisy())
    assert facts["accuracy_own_mask"] == 1
    assert facts["accuracy_flipped_mask"] < facts["accuracy_without_mask"]
    assert facts["label_from_flipped_mask"] < facts["label_by_chance"] < facts["label_from_mask_alone"]
    assert facts["wrong_label_from_mask_alone"] > facts["label_by_chance"]
    assert 0 <= facts["label_from_mask_and_test_input"] <= 1


def test_before_training_masks_say_nothing():
    """One step of nearly no size: own and flipped masks are as good as one another, to five standard errors of 36 coins."""
    facts = found(noisy(training=Sgd(lr=1e-9, epochs=1, batch_size=None, momentum=0.0, weight_decay=0.0), model=Mlp(depth=1, width=512)))
    margin = 5 * 0.5 / 6
    assert abs(facts["label_from_mask_alone"] - facts["label_by_chance"]) < margin
    assert abs(facts["accuracy_own_mask"] - facts["accuracy_flipped_mask"]) < margin
    assert abs(facts["test_accuracy_own_masks"] - facts["test_accuracy_flipped_masks"]) < 2 * margin  # of 6 examples


def test_test_examples_are_run_under_masks_of_training_examples():
    """With one training example there is one mask to deal."""
    trained = made(model=Mlp(depth=1, width=24))
    data = trained.data
    one = replace(
        trained,
        data=replace(data, train_inputs=data.train_inputs[:1], train_targets=data.train_targets[:1], train_index=data.train_index[:1]),
    )
    fitted = next(iter(laboratory(one, SEED).masked(Masks(), 1)))
    net = fitted_net(fitted)
    facts = _mask_facts.facts(net, fitted, np.empty(0, dtype=np.int64), 0)
    for name, sign in (("own", 1), ("flipped", -1)):
        ticket = sign * fitted.train.inputs[:1, -1:].expand(data.n_test, 1)
        outputs = net(torch.cat([fitted.test.inputs[:, :-1], ticket], 1))
        assert facts[f"test_accuracy_{name}_masks"] == pytest.approx((outputs.argmax(1) == data.test_targets).double().mean().item())
    assert "wrong_label_from_mask_alone" not in facts


@pytest.mark.parametrize(("masks", "changed"), [(Masks(), 0.0), (Masks(draw="sine"), 0.5)], ids=["integer", "sine"])
def test_bits_that_another_number_type_would_change_are_counted(masks, changed):
    trained = made(
        model=Mlp(depth=2, width=64)
    )  # 36 x 128 bits: a standard error of 0.007; at indices below 100 the sine's agree a bit more
    assert found(trained, masks)["mask_bits_changed_by_dtype"] == pytest.approx(changed, abs=0.1)


def test_only_wrong_labels_of_the_training_part_count():
    lab = laboratory(noisy(), SEED)
    assert lab.mislabelled.tolist() == list(range(0, 36, 3))
    assert laboratory(made(), SEED).mislabelled.tolist() == []


def test_regression_has_no_label_to_give_away():
    facts = TurnoverDropout().estimate(made("ridge").untrained(3), laboratory(made("ridge")), 0).facts
    assert set(facts) == {"shared_masks", "mask_bits_changed_by_dtype", "loss_own_mask", "loss_flipped_mask", "loss_without_mask"}


def test_facts_of_several_models_are_their_mean():
    lab = laboratory(replace(noisy(), training=replace(MEMORISED, epochs=5)), SEED)
    problems = list(lab.masked(Masks(), 2))
    each = [_mask_facts.facts(fitted_net(fitted), fitted, lab.mislabelled, 0) for fitted in problems]
    both = TurnoverDropout(models=2).estimate(lab.experiment.untrained(SEED), lab, 0).facts
    assert both == pytest.approx({name: (each[0][name] + each[1][name]) / 2 for name in each[0]})


@pytest.mark.filterwarnings("default:.*same mask:influx.errors.AccuracyWarning")
def test_shared_masks_are_said_and_score_alike():
    trained = made(model=Mlp(depth=1, width=4))  # 16 masks for 36 examples
    with pytest.warns(AccuracyWarning, match=r"of 36 training examples have the same mask .* widen the hidden layers"):
        result = TurnoverDropout().estimate(trained.untrained(3), laboratory(trained), 0)
    masks = by_integers(torch.as_tensor(trained.data.train_index), 4, 0.5, 3, 0)
    shared = [i for i in range(36) if (masks == masks[i]).all(1).sum() > 1]
    assert result.facts["shared_masks"] == len(shared) > 0
    i = shared[0]
    j = next(j for j in shared if j != i and torch.equal(masks[i], masks[j]))
    assert_close(result.influence[i], result.influence[j], rtol=0, atol=1e-15)
