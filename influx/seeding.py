"""Random numbers made of (seed, purpose): the same command gives the same bytes, and the global state changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed that depends on `seed` and on every word of `purpose`, and on nothing else."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator, so that a draw is the same whatever device uses it."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    return np.random.default_rng(derive(seed, *purpose))


@contextmanager
def isolated(seed: int, *purpose: str | int) -> Iterator[None]:
    """Inside, torch's global generator is a fresh one; outside it is as it was (layers initialise and drop out from it)."""
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, *purpose))
        yield


class SameDraws:
    """Inside, `again()` sets torch's global generators back to where they were at the beginning; afterwards they stand where the first
    round left them."""

    def __init__(self, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []

    def __enter__(self) -> SameDraws:
        self.rounds, self.begin = 0, self._states()
        self.first = self.begin
        return self

    def again(self) -> None:
        if self.rounds == 1:
            self.first = self._states()
        self.rounds += 1
        self._set(self.begin)

    def __exit__(self, *_: object) -> None:
        if self.rounds > 1:
            self._set(self.first)

    def _states(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(place) for place in self.devices)]

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for place, state in zip(self.devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, place)
