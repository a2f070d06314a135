"""Several statistics along a swept number: a panel a statistic, a line an arm with its interval over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib.figure
import pandas as pd

from influx.report.figures.base import Figure
from influx.report.figures.lines import COLOURS, MARKERS, draw_line
from influx.report.plots import GREY, new_figure


@dataclass(frozen=True)
class LinePanels(Figure):
    """A row of panels an arm set, a column a statistic; lines without results are left out.

    Args:
        axis: the grid axis, a numeric setting.
        label: what it is called.
        rows: title of a row -> arm or comparison -> what it is called.
        statistics: name -> what its panels' scale is called; a name that ends in "(log)" is drawn on a logarithmic one.
        title: of the figure.
    """

    axis: str
    label: str
    rows: Mapping[str, Mapping[str, str]]
    statistics: Mapping[str, str]
    title: str

    def draw(self, points: pd.DataFrame, results: pd.DataFrame, labels: Mapping[str, str]) -> matplotlib.figure.Figure:
        figure = new_figure(3.6 * len(self.statistics) + 2.6, 2.9 * len(self.rows) + 0.6)
        axes = figure.subplots(len(self.rows), len(self.statistics), squeeze=False)
        table = points.dropna(subset=[self.axis])
        table = table.assign(at=pd.to_numeric(table[self.axis]))
        for row, (title, arms) in zip(axes, self.rows.items(), strict=True):
            for ax, (statistic, said) in zip(row, self.statistics.items(), strict=True):
                part = table[table["statistic"] == statistic]
                for (arm, called), colour, marker in zip(arms.items(), COLOURS, MARKERS, strict=False):
                    mine = part[part["arm"] == arm].sort_values("at")
                    if len(mine):
                        draw_line(mine, ax, label=called, colour=colour, marker=marker)
                if said.endswith("(log)"):
                    ax.set_yscale("log")
                else:
                    ax.axhline(0, color=GREY, linewidth=0.6)
                ax.set_xticks(sorted(table.loc[table["arm"].isin(arms), "at"].unique()))
                ax.set_ylabel(said.removesuffix("(log)").rstrip())
                ax.set_xlabel(self.label)
            row[0].set_title(title, loc="left")
            if row[-1].get_legend_handles_labels()[0]:
                row[-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0)
        seeds = int(points["n"].max()) if len(points) else 0
        figure.suptitle(f"{self.title} (mean of {seeds} seeds, 95 % interval)", x=0.01, ha="left")
        return figure
