"""The contract of a study's figure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import matplotlib.figure
import pandas as pd

from influx.report.plots import style
from influx.report.saving import save


class Figure(ABC):
    """Draws; everything that is drawn has been computed before."""

    @abstractmethod
    def draw(self, points: pd.DataFrame, results: pd.DataFrame, labels: Mapping[str, str]) -> matplotlib.figure.Figure:
        """
        Args:
            points: over seeds: `arm`, one column a grid axis, `statistic`, `mean`, `low`, `high` (95 %), `magnitude` (the mean of |value|),
                `n` seeds.
            results: seed by seed: `arm`, the axes, `seed`, `statistic`, `value`.
            labels: what each arm and comparison is called.
        """

    def save(self, points: pd.DataFrame, results: pd.DataFrame, labels: Mapping[str, str], path: Path) -> None:
        with style():
            save(self.draw(points, results, labels), path)
