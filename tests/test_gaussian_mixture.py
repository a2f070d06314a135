"""The mixture of Gaussians: its moments, its two kinds of test part, and what its seed draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from influx.datasets.gaussian_mixture import MEANS, GaussianMixture
from influx.errors import InfluxError


def test_as_published():
    data = GaussianMixture().load()
    assert (data.n_train, data.n_test, data.n_classes, data.input_shape) == (150, 150, 3, (2,))
    assert data.train_targets.bincount().tolist() == [50, 50, 50]
    assert torch.equal(data.train_inputs, data.test_inputs)
    assert torch.equal(data.train_targets, data.test_targets)
    assert np.array_equal(data.train_index, data.test_index)


@pytest.mark.parametrize("spread", [1.25, 3.0])
def test_moments_are_those_of_the_mixture(spread):
    data = GaussianMixture(points=4000, spread=spread).load()
    for label, mean in enumerate(MEANS):
        own = data.train_inputs[data.train_targets == label].numpy()
        assert own.mean(0) == pytest.approx(mean, abs=5 * spread / 4000**0.5)  # 5 standard errors
        assert np.cov(own.T) == pytest.approx(spread**2 * np.eye(2), abs=5 * spread**2 * (2 / 4000) ** 0.5)


def test_the_points_seed_draws_the_points_and_no_other_seed_does():
    first = GaussianMixture(points_seed=1).load()
    assert torch.equal(first.train_inputs, GaussianMixture(points_seed=1, split_seed=5, noise_seed=5).load().train_inputs)
    assert not torch.equal(first.train_inputs, GaussianMixture(points_seed=2).load().train_inputs)


def test_held_out_points_are_others_and_leave_the_training_points_alone():
    same, held_out = GaussianMixture().load(), GaussianMixture(held_out=True).load()
    assert torch.equal(same.train_inputs, held_out.train_inputs)
    assert held_out.n_test == 150
    assert not np.isin(held_out.test_inputs.numpy(), held_out.train_inputs.numpy()).any()


def test_parts_of_other_sizes_count_in_the_same_points():
    whole, part = GaussianMixture().load(), GaussianMixture(train_size=60, test_size=30).load()
    assert (part.n_train, part.n_test) == (60, 30)
    assert part.train_targets.bincount().tolist() == [20, 20, 20]
    assert torch.equal(part.train_inputs, whole.train_inputs[part.train_index])
    assert torch.equal(part.test_inputs, whole.test_inputs[part.test_index])


def test_standardised_on_request():
    data = GaussianMixture(standardize=True).load()
    assert data.train_inputs.mean(0).tolist() == pytest.approx([0, 0], abs=1e-14)
    assert data.train_inputs.std(0, correction=0).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize(("knob", "value"), [("points", 1), ("spread", 0), ("spread", -1.0), ("points_seed", -1), ("held_out", "yes")])
def test_what_is_not_possible_is_refused(knob, value):
    with pytest.raises(InfluxError, match=f"dataset.{knob}={value} is not possible"):
        GaussianMixture(**{knob: value})
