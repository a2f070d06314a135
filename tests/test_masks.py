"""Turn-over dropout's masks: what the integer hash promises, and what the released sine does not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from influx.errors import InfluxError
from influx.masks import MOST, Masks, by_integers, by_sine, tickets
from influx.seeding import derive

MANY = 20_000
HIGH = torch.arange(MOST - MANY, MOST)  # the last places that float32 can tell apart


# ----------------------------------------------------------------------------------------------------------------- integers


def plain_mix(word: int) -> int:
    """The hash on Python's own integers."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        word = ((word ^ (word >> shift)) * factor) % 2**32
    return word ^ (word >> 15)


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.73])
def test_masks_are_the_integer_function_that_they_are_said_to_be(rate):
    index = [0, 1, 2, 255, 256, 65_535, 65_536, 1_234_567, MOST - 1]
    ours = by_integers(torch.tensor(index), 37, rate, seed=5, layer=2)
    key = derive(5, "turn-over dropout", 2)
    wanted = [
        [plain_mix(plain_mix(i ^ key % 2**32) ^ plain_mix(unit ^ key >> 32)) >= round(rate * 2**32) for unit in range(37)] for i in index
    ]
    assert ours.tolist() == wanted


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.73])
def test_the_flipped_mask_is_the_complement_and_scales_are_exact(rate):
    own = tickets(np.arange(500)).float()
    one, other, none = (Masks(rate).factors(sign * own, 33, 0, 0) for sign in (1, -1, 0))
    assert ((one > 0) ^ (other > 0)).all()
    assert set(one.unique().tolist()) == {0.0, torch.tensor(1 / (1 - rate)).item()}
    assert set(other.unique().tolist()) == {0.0, torch.tensor(1 / rate).item()}
    assert (none == 1).all()
    assert torch.equal(one > 0, by_integers(torch.arange(500), 33, rate, 0, 0))


@pytest.mark.parametrize("index", [torch.arange(MANY), HIGH], ids=["low", "high"])
@pytest.mark.parametrize("rate", [0.5, 0.2])
def test_masks_are_balanced_and_independent(index, rate):
    kept = by_integers(index, 64, rate, seed=0, layer=0).double()
    spread = math.sqrt(rate * (1 - rate))
    # five standard errors everywhere; the largest of 64 units and of 20,000 examples gets the usual √(2 log count) more
    assert abs(kept.mean() - (1 - rate)) < 5 * spread / math.sqrt(kept.numel())
    assert (kept.mean(0) - (1 - rate)).abs().max() < 8 * spread / math.sqrt(MANY)
    assert (kept.mean(1) - (1 - rate)).abs().max() < 8 * spread / math.sqrt(64)
    assert kept.mean(1).std().item() == pytest.approx(spread / math.sqrt(64), rel=0.03)  # binomial: 1/√(2·20,000) = 0.5 % noise
    centred = (kept - kept.mean(0)) / spread
    units = centred.T @ centred / MANY  # correlations of units
    assert (units - torch.eye(64)).abs().max() < 7 / math.sqrt(MANY)
    neighbours = (centred[:-1] * centred[1:]).mean(1)  # correlations of consecutive examples
    assert abs(neighbours.mean()) < 5 / math.sqrt(64 * MANY)
    assert neighbours.std().item() == pytest.approx(1 / math.sqrt(64), rel=0.05)


@pytest.mark.parametrize("index", [torch.arange(10 * MANY), HIGH, 64 * torch.arange(MANY)], ids=["low", "high", "sparse"])
def test_no_two_examples_share_a_mask(index):
    """2·10⁵ masks of 64 fair bits: a shared one has a chance of 1e-9."""
    kept = np.packbits(by_integers(index, 64, 0.5, seed=1, layer=0).numpy(), axis=1).view(np.uint64)
    assert len(np.unique(kept)) == len(index)


def test_layers_and_seeds_have_masks_of_their_own():
    first = by_integers(torch.arange(MANY), 32, 0.5, seed=0, layer=0)
    for seed, layer in ((0, 1), (1, 0), (2**40, 0)):
        agreement = (by_integers(torch.arange(MANY), 32, 0.5, seed, layer) == first).double().mean().item()
        assert agreement == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(32 * MANY))
    assert torch.equal(by_integers(torch.arange(MANY), 32, 0.5, seed=0, layer=0), first)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_masks_are_the_same_in_every_type_and_place(device):
    own = tickets(HIGH.numpy())
    wanted = by_integers(HIGH, 16, 0.5, 3, 1)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(Masks().factors(own.to(device, dtype), 16, 3, 1).cpu() > 0, wanted)


def test_a_place_beyond_what_float32_counts_is_refused():
    tickets(np.array([MOST - 1]))
    with pytest.raises(InfluxError, match=r"up to 16,777,216; this one has place 16,777,216: choose examples"):
        tickets(np.array([3, MOST]))


# ------------------------------------------------------------------------------------------------------------- as released


def test_the_sine_is_the_formula_that_it_is_said_to_be():
    """Python's own sine, on the projection as drawn: float64 masks, but for arguments within rounding of a change of parity."""
    projection = (torch.rand(12, generator=torch.Generator().manual_seed(derive(5, "turn-over dropout", 1))) + 0.1) * 1000.0
    index = torch.tensor([0.0, 1, 2, 255, 4_321], dtype=torch.float64)
    ours = by_sine(index, 12, 5, 1)
    wanted = [[math.floor(1000 * math.sin((i + 199) * p)) % 2 == 1 for p in projection.double().tolist()] for i in index.tolist()]
    assert ours.tolist() == wanted


def test_the_sines_masks_look_random():
    kept = by_sine(torch.arange(MANY, dtype=torch.float64), 64, 0, 0).double()
    assert abs(kept.mean() - 0.5) < 5 * 0.5 / math.sqrt(kept.numel())
    assert kept.mean(1).std().item() == pytest.approx(0.5 / math.sqrt(64), rel=0.03)  # 1/√(2·20,000) = 0.5 % noise


def test_the_sines_masks_are_unrelated_between_number_formats():
    """The rounding of an argument of 10^7 in float32 is larger than the sine's period of a parity."""
    index = torch.arange(MANY)
    agreement = (by_sine(index.float(), 64, 0, 0) == by_sine(index.double(), 64, 0, 0)).double().mean().item()
    assert agreement == pytest.approx(0.5, abs=0.05)  # small indices agree more often than by chance
    same = Masks().keeps(index.float(), 64, 0, 0) == Masks().keeps(index.double(), 64, 0, 0)
    assert same.all()


def test_the_sine_gives_neighbours_beyond_float32_one_mask():
    """Beyond 2^24 float32 holds every second whole number: 500 examples have 250 masks, or so."""
    kept = by_sine(torch.arange(MOST + 4_000_000, MOST + 4_000_500).float(), 64, 0, 0)
    assert len(torch.unique(kept, dim=0)) <= 251
    assert len(torch.unique(by_integers(torch.arange(MOST - 500, MOST), 64, 0.5, 0, 0), dim=0)) == 500


def test_the_sines_flipped_mask_is_the_complement():
    own, masks = tickets(np.arange(200)), Masks(draw="sine")
    one, other = masks.factors(own, 33, 0, 0), masks.factors(-own, 33, 0, 0)
    assert ((one > 0) ^ (other > 0)).all()
    assert torch.equal(one > 0, by_sine(own - 1, 33, 0, 0))
    assert set(torch.cat([one, other]).unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("draw", ["integer", "sine"])
def test_fair_masks_are_scaled_as_the_release_does(draw):
    """Half the units are kept whatever the rate; 1/rate in training, 1/(1 − rate) for both masks at estimation."""
    own, masks = tickets(np.arange(MANY)), Masks(0.2, draw, fair=True)
    trained, one, other = masks.factors(own, 8, 0, 0, training=True), masks.factors(own, 8, 0, 0), masks.factors(-own, 8, 0, 0)
    assert (one > 0).double().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(8 * MANY))
    assert torch.equal(trained > 0, one > 0)
    assert ((one > 0) ^ (other > 0)).all()
    assert (trained.max().item(), one.max().item(), other.max().item()) == (1 / 0.2, 1 / 0.8, 1 / 0.8)
    assert (masks.factors(0 * own, 8, 0, 0, training=True) == 1).all()


@pytest.mark.parametrize("training", [True, False])
def test_with_half_the_units_fair_changes_nothing(training):
    own = tickets(np.arange(50))
    for sign in (1, -1):
        plain, fair = (Masks(fair=fair).factors(sign * own, 9, 0, 0, training=training) for fair in (False, True))
        assert torch.equal(plain, fair)
