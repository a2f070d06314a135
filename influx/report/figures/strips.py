"""Every seed as a dot, side by side for each arm: panels of named settings, and what scores dealt at random would give."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from influx.errors import InfluxError, nearest
from influx.report.figures.base import Figure
from influx.report.figures.lines import COLOURS, MARKERS
from influx.report.plots import BLUE, GREY, new_figure

BAND = "#DDDDDD"
PANEL_KEYS = ("title", "levels", "arms", "statistic", "label", "log")
FEWEST = 4  # strips for which a panel has room, so that its title has
CHARACTER = 0.085  # inches of a title's character
REACH = 0.36  # of the distance between two levels: how far an arm's strip may be from its tick


@dataclass(frozen=True)
class Strips(Figure):
    """Panels side by side; in each, some levels of one grid axis, and at each level a strip of dots an arm: a dot a seed, the mean with its
    95 % interval in front.

    Args:
        axis: the grid axis that the levels are of.
        panels: what to draw, each a mapping: `title`; `levels`, level -> what its tick says (those without results are left out); and,
            where they differ from the figure's, `arms`, `statistic`, `label` (of the vertical axis), `log` (true for a logarithmic one).
        arms: which arms and comparisons to draw, in this order.
        title: of the figure.
        statistic: of the results.
        label: what the statistic is called, on the vertical axis.
        chance: a comparison that has `null_low` and `null_high`: drawn as a band behind correlations, level by level.
        chance_label: what the band is called.
    """

    axis: str
    panels: Sequence[Mapping[str, Any]]
    arms: Sequence[str]
    title: str
    statistic: str = "spearman"
    label: str = "Spearman"
    chance: str | None = None
    chance_label: str = "95 % of what permuted scores give"

    def __post_init__(self) -> None:
        for panel in self.panels:
            for key in panel:
                if key not in PANEL_KEYS:
                    raise InfluxError(
                        f"a panel of the figure has a key '{key}'; there are {', '.join(PANEL_KEYS)}.{nearest(key, PANEL_KEYS)}"
                    )
            if "title" not in panel or "levels" not in panel:
                raise InfluxError("a panel of the figure needs title and levels.")

    def draw(self, points: pd.DataFrame, results: pd.DataFrame, labels: Mapping[str, str]) -> matplotlib.figure.Figure:
        known = set(results[self.axis].astype(str))
        shown = [(panel, {at: said for at, said in panel["levels"].items() if str(at) in known}) for panel in self.panels]
        shown = [(panel, levels) for panel, levels in shown if levels]
        widths = [max(len(levels) * len(self._arms(panel)), FEWEST) for panel, levels in shown]
        figure = new_figure(min(max(2.6 + 0.5 * sum(widths), 6.5), 12.5), 4.2)
        if not shown:
            return figure
        axes = figure.subplots(1, len(shown), squeeze=False, width_ratios=widths)[0]
        for ax, (panel, levels) in zip(axes, shown, strict=True):
            self._panel(ax, panel, levels, points, results, labels)
        for ax, wide in zip(axes, widths, strict=True):
            inches = figure.get_figwidth() * wide / sum(widths)
            ax.set_title(textwrap.fill(ax.get_title(loc="left"), max(8, int(inches / CHARACTER))))
        seeds = points.loc[points["arm"].isin(self.arms), "n"].max()
        figure.suptitle(f"{self.title} ({seeds:.0f} seeds)", x=0.01, ha="left")
        named: dict[str, Any] = {}
        for ax in axes:
            named |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=3)
        return figure

    def _arms(self, panel: Mapping[str, Any]) -> Sequence[str]:
        arms: Sequence[str] = panel.get("arms", self.arms)
        return arms

    def _look(self, arm: str) -> tuple[str, str]:
        """Colour and marker: the same in every panel."""
        every = list(dict.fromkeys([*self.arms, *(one for panel in self.panels for one in self._arms(panel))]))
        at = every.index(arm) % len(COLOURS)
        return COLOURS[at], MARKERS[at]

    def _panel(
        self,
        ax: Axes,
        panel: Mapping[str, Any],
        levels: Mapping[str, str],
        points: pd.DataFrame,
        results: pd.DataFrame,
        labels: Mapping[str, str],
    ) -> None:
        statistic, arms = panel.get("statistic", self.statistic), self._arms(panel)
        correlation = statistic == self.statistic
        if correlation and self.chance is not None:
            self._band(ax, levels, points)
        step = 2 * REACH / len(arms)
        for place, arm in enumerate(arms):
            colour, marker = self._look(arm)
            for x, level in enumerate(levels):
                at = x - REACH + step * (place + 0.5)
                dots, mean = (part[_at(part, arm, self.axis, level, statistic)] for part in (results, points))
                draw_strip(dots, ax, mean=mean, at=at, reach=0.3 * step, colour=colour, marker=marker, label=labels.get(arm, arm))
        if panel.get("log"):
            ax.set_yscale("log")
        elif correlation:
            ax.set_ylim(-1.05, 1.05)
            ax.axhline(0, color=GREY, linewidth=0.6)
        ax.set_xlim(-0.5, len(levels) - 0.5)
        ax.set_xticks(range(len(levels)), list(levels.values()))
        ax.set_title(panel["title"])
        ax.set_ylabel(panel.get("label", self.label))

    def _band(self, ax: Axes, levels: Mapping[str, str], points: pd.DataFrame) -> None:
        for x, level in enumerate(levels):
            low, high = (points[_at(points, str(self.chance), self.axis, level, side)]["mean"] for side in ("null_low", "null_high"))
            if len(low) and len(high):
                label = self.chance_label if x == 0 else None
                ax.fill_between([x - 0.5, x + 0.5], low.iloc[0], high.iloc[0], color=BAND, linewidth=0, label=label, zorder=0)


def draw_strip(
    dots: pd.DataFrame,
    ax: Axes,
    *,
    mean: pd.DataFrame,
    at: float = 0.0,
    reach: float = 0.1,
    colour: str = BLUE,
    marker: str = "o",
    label: str = "",
) -> None:
    """`dots`: `value`, a row a seed, spread evenly over 2 · reach around `at`; `mean`: `mean`, `low`, `high`, one row."""
    if not len(mean):
        return
    ax.plot(at + np.linspace(-reach, reach, len(dots)), dots["value"], ".", color=colour, markersize=5, alpha=0.55, markeredgewidth=0)
    one = mean.iloc[0]
    ax.plot([at, at], [one["low"], one["high"]], color="black", linewidth=1.4, zorder=3)
    look: dict[str, Any] = {
        "color": colour,
        "markersize": 6,
        "markeredgecolor": "black",
        "markeredgewidth": 0.8,
        "linestyle": "none",
        "zorder": 4,
    }
    ax.plot([at], [one["mean"]], marker=marker, label=label, **look)


def _at(table: pd.DataFrame, arm: str, axis: str, level: str, statistic: str) -> pd.Series:
    return (table["arm"] == arm) & (table[axis].astype(str) == str(level)) & (table["statistic"] == statistic)
