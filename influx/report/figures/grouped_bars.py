"""Agreement by group and arm: a cluster of bars a level of one grid axis, a bar an arm, a panel a statistic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from influx.report.figures.base import Figure
from influx.report.plots import BLUE, GREEN, GREY, ORANGE, VERMILLION, new_figure

COLOURS = (GREY, ORANGE, BLUE, GREEN, VERMILLION, "#56B4E9")
HATCHES = ("", "////", "", "....", "xxxx", "")  # told apart in grey print too


@dataclass(frozen=True)
class GroupedBars(Figure):
    """
    Args:
        axis: the grid's axis whose levels are the clusters.
        groups: level -> what it is called, from the left.
        arms: a bar each, in this order.
        title: of the figure.
        statistics: of correlations.csv, a panel each.
    """

    axis: str
    groups: Mapping[str, str]
    arms: Sequence[str]
    title: str
    statistics: Sequence[str] = ("pearson", "spearman")

    def draw(self, points: pd.DataFrame, results: pd.DataFrame, labels: Mapping[str, str]) -> matplotlib.figure.Figure:
        here = [level for level in self.groups if (points[self.axis] == level).any()]
        figure = new_figure(4.6 * len(self.statistics) + 0.6, 3.8)
        axes = figure.subplots(1, len(self.statistics), sharey=True, squeeze=False)[0]
        for statistic, ax in zip(self.statistics, axes, strict=True):
            self._panel(points[points["statistic"] == statistic], here, ax, labels)
            ax.set_title(statistic.capitalize())
        seeds = int(points["n"].max()) if len(points) else 0
        axes[0].set_ylabel(f"agreement, mean over {seeds} seeds\nwith 95 % interval")
        figure.suptitle(self.title, x=0.01, ha="left")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(self.arms))
        return figure

    def _panel(self, table: pd.DataFrame, here: list[str], ax: Axes, labels: Mapping[str, str]) -> None:
        width = 0.84 / len(self.arms)
        for k, (arm, colour) in enumerate(zip(self.arms, COLOURS, strict=False)):
            part = table[table["arm"] == arm].set_index(self.axis).reindex(here)
            at = np.arange(len(here)) + (k - (len(self.arms) - 1) / 2) * width
            look: dict[str, Any] = {"color": colour, "hatch": HATCHES[k % len(HATCHES)], "edgecolor": "white", "linewidth": 0.0}
            ax.bar(at, part["mean"], width, label=labels.get(arm, arm), **look)
            ax.vlines(at, part["low"], part["high"], color="black", linewidth=1)
        ax.axhline(0, color=GREY, linewidth=0.6)
        ax.axhline(1, color=GREY, linewidth=0.6, linestyle=":")
        ax.set_xticks(range(len(here)), [self.groups[level] for level in here])
        ax.tick_params(axis="x", length=0)
