"""Adam with one memory for all retrainings, as a script has it that makes its optimiser once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from influx import rules, stacking
from influx.training.base import Fit, Task, Training
from influx.training.first_order import Adam


@dataclass(frozen=True, kw_only=True)
class AdamShared(Training):
    """Adam whose moments and step counts go on from one model of a stack to the next: each starts with what the optimiser remembers of the
    model before it, so that retrained models depend on their order. The first, with nothing left out, starts fresh.

    A defect of the code released with Silva et al. (2022), kept to show what it does; a stack is a shard, so set
    retraining.models_at_once to at least the number of removals to have one memory for all. Fields as `Adam`; models are trained one after
    another.
    """

    lr: float = 1e-3
    epochs: int = 2
    batch_size: int | None = None
    weight_decay: float = 0.0

    most_at_once: ClassVar[int] = 512

    def __post_init__(self) -> None:
        rules.check_fields("training", self)

    @property
    def alone(self) -> Adam:
        """What trains a single model."""
        return Adam(lr=self.lr, epochs=self.epochs, batch_size=self.batch_size, weight_decay=self.weight_decay)

    def fit(self, task: Task) -> Fit:
        if task.models == 1:
            return self.alone.fit(task)
        memory: tuple[torch.Tensor, ...] = ()
        made = []
        for k in range(task.models):
            params, buffers, memory = self.alone.carried(_one(task, k), memory)
            made.append((params, buffers))
        params, buffers = ({name: torch.cat([each[at][name] for each in made]) for name in made[0][at]} for at in (0, 1))
        return Fit(params, buffers, None, [])

    def trial(self, iterations: int, seconds: float, models: int) -> tuple[Training, float]:
        return self, 1.0  # a few steps: nothing shorter could stand for them

    def memory(self, params: int, row: int, n: int) -> int:
        return params + self.alone.memory(params, row, n) // self.most_at_once  # one at a time; the results are kept

    def shuffles(self, n: int) -> bool:
        return self.alone.shuffles(n)


def _one(task: Task, k: int) -> Task:
    """The task of the k-th model alone."""
    params, buffers = (stacking.stack(stacking.unstack(named, k), 1) for named in (task.params, task.buffers))
    return replace(task, params=params, buffers=buffers, weights=task.weights[k : k + 1])
