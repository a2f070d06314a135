"""The record of a training run, for methods that follow it step by step."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """One update: the parameters before it, the training rows of its batch, and its learning rate."""

    params: dict[str, Tensor]
    rows: Int[Tensor, " batch"]
    lr: float


@dataclass(frozen=True)
class Trajectory:
    """Every step of one model's training, in order. Memory: steps x P numbers."""

    steps: tuple[Step, ...]
