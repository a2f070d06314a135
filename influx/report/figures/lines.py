"""Agreement along a swept number: a line an arm with its interval over seeds, signed, and beside it what absolute values would show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.figure
import pandas as pd
from matplotlib.axes import Axes

from influx.report.figures.base import Figure
from influx.report.plots import BLUE, GREEN, GREY, ORANGE, VERMILLION, new_figure

COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, GREY, "#CC79A7", "#56B4E9", "#000000")  # Okabe & Ito's
MARKERS = "osD^vPX*"
NOTE: dict[str, Any] = {"color": GREY, "fontsize": 7, "ha": "right", "va": "bottom"}


@dataclass(frozen=True)
class Lines(Figure):
    """Two panels over the levels of one grid axis.

    Args:
        axis: the axis, a numeric setting.
        label: what it is called.
        arms: which arms and comparisons to draw, in this order.
        statistic: of correlations.csv.
        title: of the figure.
        magnitude: whether to draw the second panel, the mean of |statistic|.
        chance: the mean |statistic| of unrelated scores, drawn in the second panel; null = none.
    """

    axis: str
    label: str
    arms: Sequence[str]
    title: str
    statistic: str = "spearman"
    magnitude: bool = True
    chance: float | None = None

    def draw(self, points: pd.DataFrame, results: pd.DataFrame, labels: Mapping[str, str]) -> matplotlib.figure.Figure:
        panels = 2 if self.magnitude else 1
        figure = new_figure(4.4 * panels + 2.4, 3.8)
        axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
        table = points[points["statistic"] == self.statistic]
        for arm, colour, marker in zip(self.arms, COLOURS, MARKERS, strict=False):
            part = table[table["arm"] == arm].assign(at=lambda rows: pd.to_numeric(rows[self.axis])).sort_values("at")
            draw_line(part, axes[0], label=labels.get(arm, arm), colour=colour, marker=marker)
            if self.magnitude:
                axes[1].plot(part["at"], part["magnitude"], color=colour, marker=marker, markersize=4)
        for ax in axes:
            ax.axhline(0, color=GREY, linewidth=0.6)
            ax.set_xlabel(self.label)
            ax.set_xticks(sorted(pd.to_numeric(table[self.axis].dropna()).unique()))
        seeds = int(table["n"].max()) if len(table) else 0
        axes[0].set_ylabel(f"{self.statistic.capitalize()}, mean over {seeds} seeds")
        axes[0].set_title("signed, with 95 % interval")
        if self.magnitude:
            axes[1].set_title(f"what |{self.statistic.capitalize()}| would show")
            if self.chance is not None:
                axes[1].axhline(self.chance, color=GREY, linestyle=":", linewidth=1)
                axes[1].annotate("unrelated scores", (1, self.chance), (0, 2), ("axes fraction", "data"), "offset points", **NOTE)
        figure.suptitle(self.title, x=0.01, ha="left")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
        return figure


def draw_line(table: pd.DataFrame, ax: Axes, *, label: str = "", colour: str = BLUE, marker: str = "o") -> None:
    """`at`, `mean`, `low`, `high`: a line with its interval as a band."""
    ax.plot(table["at"], table["mean"], color=colour, marker=marker, markersize=4, label=label)
    ax.fill_between(table["at"], table["low"], table["high"], color=colour, alpha=0.15, linewidth=0)
