"""Which hidden units each training example keeps under turn-over dropout, and by what they are scaled.

A unit is *kept* by example i with probability 1 − rate, once and for all. Under i's *own* mask the units that it keeps are multiplied by
1/(1 − rate); under the *flipped* mask, the complement, the others are, by 1/rate. Masks are a function of (seed, layer, example, unit) and
nothing is stored. Which example is meant, and which of its masks, is one number, the *ticket*: index + 1 for the own mask, −(index + 1) for
the flipped one, 0 for none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from influx.errors import InfluxError
from influx.seeding import derive, torch_generator

MOST = 2**24  # examples: float32 holds every whole number up to here
WORD = 2**32 - 1
FAIR = 0.5


@dataclass(frozen=True)
class Masks:
    """How masks are drawn and scaled.

    Args:
        rate: share of the units that an own mask leaves out.
        draw: "integer" makes each bit of integers alone, the same on every device and in every number format; "sine" is the hash of the
            authors' release, the parity of 1000·sin((index + 199)·projection).
        fair: as released when rate ≠ 1/2: bits are fair coins whatever the rate, which enters the scales alone: 1/rate in training, and
            1/(1 − rate) for both masks at estimation. With rate 1/2 it changes nothing.
        layers: numbers of the hidden layers that are masked, from 1 in the order in which they run; None: all.

    1. `sine` is kept to show what is wrong with it: its argument is some 10⁵ to 10⁹, so that the rounding of the sine's argument decides
       the bit. float32 and float64 have unrelated masks, two devices' sines may differ in some bits, and large indices round to one
       another's place. The release draws its projection from a fixed seed a layer, we from ours and the layer's number.
    """

    rate: float = 0.5
    draw: str = "integer"
    fair: bool = False
    layers: tuple[int, ...] | None = None

    def keeps(self, index: Float[Tensor, " rows"], units: int, seed: int, layer: int) -> Bool[Tensor, "rows units"]:
        """The units of a layer that the examples at these places, as numbers of the computation's type, keep."""
        if self.draw == "sine":
            return by_sine(index, units, seed, layer)
        return by_integers(index.long(), units, FAIR if self.fair else self.rate, seed, layer)

    def factors(
        self, tickets: Float[Tensor, " rows"], units: int, seed: int, layer: int, *, training: bool = False
    ) -> Float[Tensor, "rows units"]:
        """What each unit's result is multiplied by: 0 or the scale of its mask, 1 throughout for a ticket of 0."""
        used = self.keeps(tickets.abs() - 1, units, seed, layer) == (tickets > 0).unsqueeze(1)
        own, flipped = self._scales(training)
        scale = torch.full_like(tickets, flipped).masked_fill(tickets > 0, own)  # [rows]
        return (used * scale.unsqueeze(1)).masked_fill((tickets == 0).unsqueeze(1), 1.0)

    def _scales(self, training: bool) -> tuple[float, float]:
        """Of own and flipped masks."""
        if not self.fair:
            return 1 / (1 - self.rate), 1 / self.rate
        released = self.rate if training else 1 - self.rate
        return 1 / released, 1 / released


def _mixed(word: Int[Tensor, " *shape"]) -> Int[Tensor, " *shape"]:
    """A bijection of 32-bit words that spreads every bit over all others (Wellons' two-round multiply-xorshift, "hash-prospector"); both
    factors are below 2^31, so that no product leaves 63 bits."""
    word = ((word ^ (word >> 16)) * 0x21F0AAAD) & WORD
    word = ((word ^ (word >> 15)) * 0x735A2D97) & WORD
    return word ^ (word >> 15)


def by_integers(index: Int[Tensor, " rows"], units: int, rate: float, seed: int, layer: int) -> Bool[Tensor, "rows units"]:
    """Independent bits of probability 1 − rate (to 2⁻³³)."""
    key = derive(seed, "turn-over dropout", layer)
    example = _mixed((index & WORD) ^ (key & WORD))
    unit = _mixed(torch.arange(units, device=index.device) ^ (key >> 32))
    return _mixed(example.unsqueeze(1) ^ unit) >= round(rate * 2**32)


def by_sine(index: Float[Tensor, " rows"], units: int, seed: int, layer: int) -> Bool[Tensor, "rows units"]:
    """Parities of a sine, in the type of `index`; fair, and whole numbers of `index` + 199 beyond the type's are rounded."""
    uniform = torch.rand(units, generator=torch_generator(seed, "turn-over dropout", layer))
    projection = ((uniform + 0.1) * 1000.0).to(index)
    return (torch.sin((index + 199).unsqueeze(1) * projection) * 1000.0 % 2).long() == 1


def tickets(index: Int[np.ndarray, " rows"]) -> Float[Tensor, " rows"]:
    """Own masks of the examples at these places in the data set's order.

    Raises:
        InfluxError: a place that float32 cannot tell from the next.
    """
    if index.max(initial=0) + 1 > MOST:
        raise InfluxError(
            f"method=turnover_dropout tells examples apart by their place in the data set, up to {MOST:,}; this one has place "
            f"{index.max():,}: choose examples that come before with dataset.train_index."
        )
    return torch.from_numpy(index + 1.0)
