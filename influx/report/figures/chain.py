"""The chain from leave-one-out to an influence estimate: how far apart neighbours are, and how well the estimate ranks each object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from influx.report.figures.base import Figure
from influx.report.plots import GREY, new_figure

COOL = ("#08306B", "#2F7EBC", "#9CC9E1")  # gaps: another question
WARM = ("#8C2D04", "#D55E00", "#F5B041")  # errors: a worse answer
MARKERS = "osD^vP"
LEAST = 1e-5  # a distance below is rounding, and off the axis
COLOURS = ("#000000", "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73")


@dataclass(frozen=True)
class Chain(Figure):
    """A row a setting: on the left a bar a distance, on a logarithmic axis; on the right a mark an object.

    Args:
        axis: the grid's axis of settings.
        rows: level -> what it is called, from the top.
        gaps: label -> (comparison, statistic), drawn in cool colours.
        errors: the same, drawn in warm colours.
        objects: label -> arm or comparison whose agreement with the estimate is drawn.
        ceiling: the comparison that holds the truth's agreement with itself, drawn as a grey line.
        unit: of the distances.
        title: of the figure.
        statistic: of correlations.csv.
    """

    axis: str
    rows: Mapping[str, str]
    gaps: Mapping[str, Sequence[str]]
    errors: Mapping[str, Sequence[str]]
    objects: Mapping[str, str]
    ceiling: str
    unit: str
    title: str
    statistic: str = "spearman"

    def draw(self, points: pd.DataFrame, results: pd.DataFrame, labels: Mapping[str, str]) -> matplotlib.figure.Figure:
        here = [level for level in self.rows if (points[self.axis] == level).any()]
        seeds = int(points["n"].max()) if len(points) else 0
        figure = new_figure(10.0, 2.0 + 0.52 * len(here))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.15, 1))
        self._bars(points, here, left)
        self._marks(points[points["statistic"] == self.statistic], here, right)
        left.set_yticks(range(len(here)), [self.rows[level] for level in here])
        left.set_ylim(len(here) - 0.45, -0.55)
        left.tick_params(axis="y", length=0)
        figure.suptitle(f"{self.title} (means and 95 % intervals, {seeds} seeds)", x=0.01, ha="left")
        return figure

    def _bars(self, table: pd.DataFrame, here: list[str], ax: Axes) -> None:
        named = {**self.gaps, **self.errors}
        height = 0.84 / len(named)
        colours = (*COOL[: len(self.gaps)], *WARM[: len(self.errors)])
        shown = []
        for k, ((label, (arm, statistic)), colour) in enumerate(zip(named.items(), colours, strict=True)):
            part = table[(table["arm"] == arm) & (table["statistic"] == statistic)].set_index(self.axis).reindex(here)
            shown += part["mean"].tolist()
            at = np.arange(len(here)) + (k - (len(named) - 1) / 2) * height
            ax.barh(at, part["mean"], height, color=colour, label=label)
            ax.hlines(at, part["low"].clip(lower=part["mean"] / 50), part["high"], color=GREY, linewidth=1)
        ax.set_xscale("log")
        positive = [value for value in shown if value > LEAST]
        if positive:
            ax.set_xlim(10 ** np.floor(np.log10(min(positive))), 2 * max(positive))
        ax.set_xlabel(self.unit)
        ax.grid(axis="x", color="#dddddd", linewidth=0.6)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, columnspacing=1.2, handlelength=1.2)

    def _marks(self, table: pd.DataFrame, here: list[str], ax: Axes) -> None:
        step = 0.7 / max(len(self.objects) - 1, 1)
        for k, ((label, arm), colour, marker) in enumerate(zip(self.objects.items(), COLOURS, MARKERS, strict=False)):
            part = table[table["arm"] == arm].set_index(self.axis).reindex(here)
            at = np.arange(len(here)) - 0.35 + k * step
            ax.hlines(at, part["low"], part["high"], color=colour, linewidth=1)
            ax.plot(part["mean"], at, marker, color=colour, markersize=4, label=label)
        part = table[table["arm"] == self.ceiling].set_index(self.axis).reindex(here)
        middle = np.arange(len(here))
        ax.vlines(part["mean"], middle - 0.42, middle + 0.42, color=GREY, linestyle=(0, (2, 1)), label="cold start, seed with seed")
        for edge in middle[:-1] + 0.5:
            ax.axhline(edge, color="#dddddd", linewidth=0.6)
        ax.axvline(0, color=GREY, linewidth=0.6)
        ax.set_xlabel(f"{self.statistic.capitalize()} of the influence function with")
        ax.tick_params(axis="y", length=0)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, columnspacing=1.2, handletextpad=0.3)
