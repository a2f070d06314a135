"""Random numbers made of (seed, purpose): the same command gives the same bytes, and the global state changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch


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


def same_draws(device: torch.device) -> Iterator[AbstractContextManager[None]]:
    """Contexts without end that all start from the global generator as it is now, and leave it as the first of them does."""
    devices = [device] if device.type == "cuda" else []
    states = torch.get_rng_state(), [torch.cuda.get_rng_state(place) for place in devices]

    @contextmanager
    def replay() -> Iterator[None]:
        torch.set_rng_state(states[0])
        for place, state in zip(devices, states[1], strict=True):
            torch.cuda.set_rng_state(state, place)
        yield

    while True:
        yield replay()
