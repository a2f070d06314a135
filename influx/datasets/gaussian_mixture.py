"""Points of a mixture of three Gaussians in the plane, drawn by a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from influx.datasets.base import Dataset, Source
from influx.seeding import numpy_generator

MEANS = ((0.0, 0.0), (5.0, 5.0), (5.0, -5.0))


@dataclass(frozen=True, kw_only=True)
class GaussianMixture(Dataset):
    """`points` points from each of three normal distributions with means (0, 0), (5, 5), (5, −5) and standard deviation `spread` in both
    coordinates; the label is the distribution. The test part is the same points again (`held_out` false), so that the influence of every
    point on every point can be asked for, or as many other ones. Drawn by `points_seed`; not standardised.

    Source: the made-up data of Silva et al. (2022), with the released code's means, spread (1.25) and 50 points each.
    """

    points: int = 50
    spread: float = 1.25
    points_seed: int = 0
    held_out: bool = False
    standardize: bool = False

    def read(self) -> Source:
        inputs, labels = self._draw("points")
        test = self._draw("held-out points") if self.held_out else (inputs, labels)
        names = tuple(f"({x:g}, {y:g})" for x, y in MEANS)
        return Source(inputs, labels, "classification", names, ("x", "y"), *test)

    def _draw(self, purpose: str) -> tuple[np.ndarray, np.ndarray]:
        noise = numpy_generator(self.points_seed, purpose).normal(size=(len(MEANS), self.points, 2))
        inputs = np.array(MEANS)[:, None] + self.spread * noise
        return inputs.reshape(-1, 2), np.repeat(np.arange(len(MEANS)), self.points)
