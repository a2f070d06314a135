"""Agreement along a swept setting, in groups of lines that belong together, and what absolute values would show of one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from influx.report.figures.base import Figure
from influx.report.figures.lines import COLOURS, MARKERS
from influx.report.plots import GREY, new_figure

SPREAD = 0.3  # of the distance between two levels: how far lines of a panel stand apart, so that intervals do not cover each other


@dataclass(frozen=True)
class LineGroups(Figure):
    """A panel a group of arms, then one of the mean of |statistic|; the levels of the axis stand at equal distances.

    Args:
        axis: the grid axis, a numeric setting.
        label: what it is called.
        groups: the panels: title -> arm or comparison -> what it is called; those without results are left out.
        title: of the figure.
        against: comparisons of two truths, drawn dashed: no estimate is in them.
        magnitude: the group that the last panel repeats in absolute value; null = no such panel.
        chance: the mean |statistic| of unrelated scores, drawn in the last panel; null = none.
        statistic: of correlations.csv.
    """

    axis: str
    label: str
    groups: Mapping[str, Mapping[str, str]]
    title: str
    against: Sequence[str] = field(default_factory=tuple)
    magnitude: str | None = None
    chance: float | None = None
    statistic: str = "spearman"

    def draw(self, points: pd.DataFrame, results: pd.DataFrame, labels: Mapping[str, str]) -> matplotlib.figure.Figure:
        table = points[points["statistic"] == self.statistic].dropna(subset=[self.axis])
        levels = sorted(pd.to_numeric(table[self.axis]).unique())
        groups = {title: {arm: said for arm, said in arms.items() if arm in set(table["arm"])} for title, arms in self.groups.items()}
        count = len(self.groups) + (self.magnitude is not None)
        figure = new_figure(3.5 * count + 0.4, 4.6)
        panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
        for ax, (title, arms) in zip(panels, groups.items(), strict=False):
            for place, (arm, called) in enumerate(arms.items()):
                part = _at(table[table["arm"] == arm], self.axis, levels, place, len(arms))
                below, above = part["mean"] - part["low"], part["high"] - part["mean"]
                ax.errorbar(part["at"], part["mean"], [below, above], label=called, **self._look(arm, place), elinewidth=1)
            self._finish(ax, title, levels)
        if self.magnitude is not None:
            for place, (arm, called) in enumerate(groups[self.magnitude].items()):
                part = _at(table[table["arm"] == arm], self.axis, levels, place, len(groups[self.magnitude]))
                panels[-1].plot(part["at"], part["magnitude"], label=called, **self._look(arm, place))
            if self.chance is not None:
                panels[-1].axhline(self.chance, color=GREY, linestyle=":", linewidth=1, label="unrelated scores")
            self._finish(panels[-1], f"{self.magnitude}: |{self.statistic.capitalize()}|", levels)
        seeds = int(table["n"].max()) if len(table) else 0
        panels[0].set_ylabel(f"{self.statistic.capitalize()} with retraining")
        figure.suptitle(f"{self.title} (mean of {seeds} seeds, 95 % interval)", x=0.01, ha="left")
        return figure

    def _look(self, arm: str, place: int) -> dict[str, Any]:
        """An arm's colour, marker and dash, by its place in its group."""
        dash = "--" if arm in self.against else "-"
        return {"color": COLOURS[place], "marker": MARKERS[place], "markersize": 4, "linestyle": dash}

    def _finish(self, ax: Axes, title: str, levels: Sequence[float]) -> None:
        ax.axhline(0, color=GREY, linewidth=0.6)
        ax.set_title(title)
        ax.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
        ax.set_xlabel(self.label)
        ax.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.17), borderaxespad=0)


def _at(part: pd.DataFrame, axis: str, levels: Sequence[float], place: int, count: int) -> pd.DataFrame:
    """One arm's row at every level (NaN where it has none, which breaks its line), and `at`: the level's place, moved aside."""
    aside = SPREAD * ((place + 0.5) / count - 0.5)
    found = part.set_index(pd.to_numeric(part[axis]))[["mean", "low", "high", "magnitude"]].reindex(levels)
    return found.assign(at=np.arange(len(levels)) + aside)
