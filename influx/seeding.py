"""Random numbers made of (seed, purpose): the same command gives the same bytes, and the global state changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

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
