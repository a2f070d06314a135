"""Contrastive learning against loops in NumPy, and what it makes of data, models and pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from methods import SEED
from pairs import paired, sentences
from problems import NOTHING_KEPT, experiment
from torch import nn
from torch.testing import assert_close

from influx.errors import InfluxError
from influx.models import build
from influx.models.base import Shape
from influx.models.mlp import Mlp
from influx.models.views import Views
from influx.objectives.base import standing
from influx.objectives.contrastive import Contrastive
from influx.pipelines.exhibits import exhibit

T, E = 0.7, 3


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def by_loops(outputs: np.ndarray, bank: np.ndarray, counts: np.ndarray, own: list[set[int]]) -> list[float]:
    """−log of the positive's share among itself and all keys that count and are not the example's own."""

    def unit(v: np.ndarray) -> np.ndarray:
        return v / np.sqrt((v**2).sum())

    losses = []
    for i, row in enumerate(outputs):
        first, second = unit(row[:E]), unit(row[E:])
        positive = np.exp(first @ second / T)
        negative = sum(np.exp(first @ unit(key[E:]) / T) for j, key in enumerate(bank) if counts[j] and j not in own[i])
        losses.append(-np.log(positive / (positive + negative)))
    return losses


def test_the_loss_with_a_fixed_bank_is_a_loop():
    objective = Contrastive(E, T, negatives=4)
    outputs, now = drawn(7, 2 * E), drawn(9, 2 * E)[2:]
    targets = objective.aims(outputs, objective.reference(outputs, torch.ones(7)))
    assert targets.shape == (7, 4, E + 1)
    places = [0, 2, 4, 6]  # evenly spaced
    own = [{places.index(i)} if i in places else set() for i in range(7)]
    expected = by_loops(now.numpy(), outputs.numpy()[places], np.ones(4), own)
    assert_close(objective.loss(now, targets), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_recomputed_keys_are_the_batchs_others_that_count_for_each_model_its_own():
    objective = Contrastive(E, T, recompute=True)
    outputs, weights = drawn(2, 5, 2 * E), torch.tensor([[1.0, 1, 0, 1, 1], [1.0, 1, 1, 1, 1]])
    found = objective.loss(outputs, standing(objective, outputs, torch.empty(5, 0), weights))
    for model in (0, 1):
        expected = by_loops(outputs[model].numpy(), outputs[model].numpy(), weights[model].numpy(), [{i} for i in range(5)])
        assert_close(found[model], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_copies_of_an_example_are_no_negatives_of_one_another():
    objective, outputs = Contrastive(E, T), drawn(4, 2 * E)
    outputs[3] = outputs[0]
    counts = objective.aims(outputs, objective.reference(outputs, torch.ones(4)))[..., -1]
    assert counts.tolist() == [[0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 1], [0, 1, 1, 0]]


def test_an_example_without_negatives_loses_nothing():
    objective, outputs = Contrastive(E, T), drawn(1, 2 * E).requires_grad_(True)
    loss = objective.loss(outputs, objective.aims(outputs.detach(), objective.reference(outputs.detach(), torch.ones(1))))
    assert loss.item() == 0
    assert torch.autograd.grad(loss.sum(), outputs)[0].abs().max() == 0


def test_views_are_the_example_and_a_noisy_copy_of_the_seeds_own():
    data = experiment("mlp").data
    made = Contrastive(noise=0.2).prepare(data)
    assert made.train_inputs.shape == (36, 2, 3)
    assert torch.equal(made.train_inputs[:, 0], data.train_inputs)
    noise = (made.train_inputs[:, 1] - data.train_inputs) / 0.2
    assert abs(noise.std().item() - 1) < 0.2  # of 108 numbers: 1/√216 = 0.07
    assert torch.equal(Contrastive(noise=0.2).prepare(data).train_inputs, made.train_inputs)
    assert not torch.equal(Contrastive(noise=0.2, noise_seed=1).prepare(data).train_inputs, made.train_inputs)
    assert not torch.equal(made.test_inputs[:, 1] - made.test_inputs[:, 0], made.train_inputs[:6, 1] - made.train_inputs[:6, 0])


def test_pictures_are_of_the_example_itself():
    for name in ("mlp", "conv"):
        data = experiment(name).data
        made = Contrastive().prepare(data)
        assert made.is_image == data.is_image
        ours, theirs = exhibit(made, "train", 4), exhibit(data, "train", 4)
        assert (ours.title, ours.lines) == (theirs.title, theirs.lines)
        assert np.array_equal(ours.image, theirs.image) if data.is_image else ours.image is theirs.image is None


def test_the_encoder_sees_one_view_at_a_time():
    module = build(Views(Mlp(width=4)), Shape((2, 3), 4, "regression"), 0)
    inputs = drawn(5, 2, 3).float()
    other = inputs.clone()
    other[:, 1] += 1
    ours, theirs = module(inputs), module(other)
    assert torch.equal(ours[:, :2], theirs[:, :2])
    assert not torch.equal(ours[:, 2:], theirs[:, 2:])
    assert torch.equal(module(inputs.flip(1)), torch.cat([ours[:, 2:], ours[:, :2]], 1))
    assert [name for name, _ in module.named_parameters()] == [f"encoder.{at}.{kind}" for at in (1, 3) for kind in ("weight", "bias")]


def test_a_model_that_mixes_views_is_refused():
    with pytest.raises(InfluxError, match=r"embeds each view of an example on its own, and this one mixes them: use model=views"):
        paired("contrastive", "loss", model=Mlp(width=4))


def test_views_of_examples_that_have_one_are_refused():
    with pytest.raises(
        InfluxError, match=r"model=views reads two views of each example, and these have one: use it with objective=contrastive"
    ):
        experiment("mlp", model=Views(Mlp())).module(0)


def test_words_are_refused():
    with pytest.raises(InfluxError, match=r"objective=contrastive adds noise to numbers, and tiny has words: use a data set of images"):
        Contrastive().prepare(sentences())


@pytest.mark.parametrize(("name", "value"), [("temperature", 0), ("noise", -1), ("embedding", 0), ("negatives", 0), ("noise_seed", -1)])
def test_wrong_options_are_refused(name, value):
    with pytest.raises(InfluxError, match=rf"objective.{name}={value} is not possible"):
        Contrastive(**{name: value})


@pytest.mark.parametrize("recompute", [True, False])
def test_training_brings_views_together_and_keeps_others_apart_when_keys_are_recomputed(recompute):
    """A fixed bank keeps nobody apart: all embeddings leave its places for the same one."""
    made = paired("contrastive", "loss")
    training = replace(made.training, epochs=60, lr=0.5, weight_decay=0.0)
    made = replace(made, training=training, objective=replace(made.objective, recompute=recompute))
    fitted = made.problem(made.train(SEED, NOTHING_KEPT), SEED)
    first, second = (nn.functional.normalize(part, dim=1) for part in fitted.outputs(fitted.theta, fitted.train.inputs).chunk(2, 1))
    alike = first @ second.T
    assert alike.diagonal().mean() > 0.9
    assert (alike.mean() < 0.5) == recompute
