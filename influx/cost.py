"""What work will take, in units that do not depend on the machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What an estimate will take: `gradients` of one example (forward and backward once), multiply-adds x 2 of dense algebra beside
    them, whole trainings, and bytes held at once beside the influence matrix."""

    gradients: float = 0.0
    flops: float = 0.0
    trainings: float = 0.0
    nbytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """One after the other."""
        return Cost(
            self.gradients + other.gradients, self.flops + other.flops, self.trainings + other.trainings, max(self.nbytes, other.nbytes)
        )  # fmt: skip
