"""PBRF, the proximal Bregman response function (Bae et al. 2022, section 4; Grosse et al. 2023, section 2.1.1).

    PBO(θ) = (1/n) Σ_i D_i(f_θ(x_i), f_s(x_i)) − ε Σ_{m left out} ℓ_m(θ) + ((λ + p)/2) ‖θ − θ_s‖²,     PBRF = argmin PBO,

with ε = strength/n and D_i the Bregman divergence of example i's loss in the outputs. With nothing left out its minimum is θ_s, converged
or not, and its derivative in ε is (G + (λ + p) I)⁻¹ ∇ℓ_m: it is what an influence function with the GGN approximates to first order.

1. Departure from Grosse et al.: the Bregman divergence of the penalty, (λ/2) ‖θ − θ_s‖², is there beside the proximal term, as the
   released code of Bae et al. has λ in its matrix.
2. Departure from both, who run a stochastic optimiser: the minimum is found to a stated gradient norm, since what is left of it would be
   counted as the estimator's error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from influx.responses.anchored import Anchored, Near, everything, removed
from influx.responses.divergence import Anchor
from influx.training import Task
from influx.training.second_order import Flat


@dataclass(frozen=True)
class Bregman(Anchored):
    """argmin PBO."""

    name: ClassVar[str] = "pbrf"
    anchored: ClassVar[bool] = True

    def objective(self, task: Task, anchor: Anchor, weight_decay: float) -> Near:
        terms = (everything(task, anchor, torch.ones_like(task.weights), linear=False), removed(task, anchor))
        return Near(task, terms, weight_decay + self.proximity, torch.zeros_like(Flat(task, 0.0).start()[0]))
