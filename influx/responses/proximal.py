"""The proximal response: the objective without the examples, held near the trained model (Bae et al. 2022, section 4).

    argmin J(θ) − ε Σ_{m left out} ℓ_m(θ) + (p/2) ‖θ − θ_s‖²,      J(θ) = (1/n) Σ_i ℓ_i(θ) + (λ/2) ‖θ‖².

With p = 0 it is the warm-started objective solved to the end. Unlike the PBO's, its minimum with nothing left out is θ_s only if θ_s is a
minimum of J; and J need not be convex near θ_s, so the local minimum below θ_s is what is found.

1. Departure from the definition, which starts every removal at θ_s: the minimum with nothing left out is found from there once, and the
   others start from it. They then differ by what is left out, not by the way down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from influx.responses.anchored import Anchored, Near, everything
from influx.responses.divergence import Anchor
from influx.training import Task
from influx.training.second_order import Flat


@dataclass(frozen=True)
class Proximal(Anchored):
    """argmin of the proximal objective below θ_s."""

    name: ClassVar[str] = "proximal"

    def objective(self, task: Task, anchor: Anchor, weight_decay: float) -> Near:
        terms = (everything(task, anchor, task.weights, linear=True),)
        return Near(task, terms, weight_decay + self.proximity, weight_decay * Flat(task, 0.0).start()[0])
