"""Stochastic weight averaging (Izmailov et al., UAI 2018, algorithm 1): the mean of a training's late weights.

    θ̄_c = θ̄_{c−1} + (θ_c − θ̄_{c−1}) / c    over the ends θ_c of the averaged epochs, c = 1, 2, ...

1. The paper holds or cycles the learning rate while it averages; here the schedule is whatever training.schedule says.
2. The paper measures batch statistics anew for the mean weights; modules with batch normalisation are refused instead.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from influx import stacking
from influx.errors import InfluxError
from influx.stacking import Stack


class RunningMean:
    """θ̄ of stacked parameters, each model's its own. Memory: one more copy of them."""

    def __init__(self, start: float | None, epochs: int) -> None:
        self.start, self.epochs = start, epochs
        self.count, self.mean = 0, dict[str, Tensor]()

    def add(self, epoch: int, params: Stack, names: Iterable[str]) -> None:
        """Take in the end of `epoch` (1, 2, ...) when it lies beyond the share `start` of all epochs; null averages nothing."""
        if self.start is None or epoch <= round(self.start * self.epochs, 9):  # 0.29 x 100 is a little less than 29
            return
        self.count += 1
        for name in names:
            if self.count == 1:
                self.mean[name] = params[name].detach().clone(memory_format=torch.contiguous_format)
            else:
                self.mean[name].lerp_(params[name].detach(), 1.0 / self.count)


def check(start: float | None, module: nn.Module) -> None:
    """Raise `InfluxError` when the mean of `module`'s weights would meet the batch statistics of others."""
    if start is not None and stacking.mixes_rows(module):
        raise InfluxError(
            f"training.average_from={start:g} averages weights, and the batch normalisation of this model has statistics of the last ones: "
            "set training.average_from=null, or use a model without batch normalisation."
        )
