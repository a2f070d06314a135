"""Methods one below the other: means with their intervals over seeds, a panel a case, and lines for what a method has to beat."""

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
from influx.report.plots import BLUE, GREY, VERMILLION, new_figure

KEYS = ("statistic", "label", "levels", "arms", "lines", "span", "reference")
DASHES: tuple[Any, ...] = ("--", ":", "-.", "-")
HEIGHT, LEGEND = 0.26, 1.6  # inches an arm, and beside the panels
WRAPPED = 56  # characters of a lone panel's axis, which would be wider than it otherwise


@dataclass(frozen=True)
class Forest(Figure):
    """
    Args:
        axis: the grid axis that the cases are levels of.
        rows: rows of panels, each a mapping: `statistic`; `label`, of its axis; `levels`, level -> the panel's title (those without
            results are left out); `arms`, from the top; `lines`, name -> [arm, statistic] of what is drawn as a line through all arms;
            `span`, the axis's limits (else what the intervals need); `reference`, a number that is drawn as a thin line.
        title: of the figure.
        marked: arms that are drawn in another colour: as the paper has them.
    """

    axis: str
    rows: Sequence[Mapping[str, Any]]
    title: str
    marked: Sequence[str] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            for key in row:
                if key not in KEYS:
                    raise InfluxError(f"a row of the figure has a key '{key}'; there are {', '.join(KEYS)}.{nearest(key, KEYS)}")
            missing = [key for key in KEYS[:4] if key not in row]
            if missing:
                raise InfluxError(f"a row of the figure needs {', '.join(missing)}.")

    def draw(self, points: pd.DataFrame, results: pd.DataFrame, labels: Mapping[str, str]) -> matplotlib.figure.Figure:
        shown = [{**row, "levels": self._known(points, row)} for row in self.rows]
        heights = [HEIGHT * len(row["arms"]) + 1.1 for row in shown]
        beside = LEGEND if any(row.get("lines") for row in shown) else 0.0
        figure = new_figure(max(7.0, 2.2 + beside + 1.9 * max(len(row["levels"]) for row in shown)), sum(heights) + 0.4)
        bands = figure.subfigures(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
        for band, row in zip(bands, shown, strict=True):
            axes = band.subplots(1, max(1, len(row["levels"])), sharex=True, sharey=True, squeeze=False)[0]
            for ax, (level, name) in zip(axes, row["levels"].items(), strict=False):
                self._panel(points[points[self.axis].astype(str) == str(level)], row, ax)
                ax.set_title(name)
            axes[0].set_yticks(range(len(row["arms"])), [labels[arm] for arm in row["arms"]])
            if "span" in row:
                axes[0].set_xlim(*row["span"])
            axes[0].set_ylim(len(row["arms"]) - 0.5, -0.5)
            if len(axes) == 1:
                axes[0].set_xlabel(textwrap.fill(row["label"], WRAPPED))
            else:
                band.supxlabel(row["label"], fontsize=9)
            if row.get("lines"):
                band.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
        seeds = int(points["n"].max()) if len(points) else 0
        figure.suptitle(f"{self.title} ({seeds} seeds, 95 % intervals)", x=0.01, ha="left")
        return figure

    def _known(self, points: pd.DataFrame, row: Mapping[str, Any]) -> dict[str, str]:
        there = points[(points["statistic"] == row["statistic"]) & points["arm"].isin(row["arms"])]
        return {level: name for level, name in row["levels"].items() if str(level) in set(there[self.axis].astype(str))}

    def _panel(self, here: pd.DataFrame, row: Mapping[str, Any], ax: Axes) -> None:
        cells = here.set_index(["arm", "statistic"])
        if "reference" in row:
            ax.axvline(row["reference"], color=GREY, linewidth=0.6)
        for (name, (arm, statistic)), dashes in zip((row.get("lines") or {}).items(), DASHES, strict=False):
            value = cells["mean"].get((arm, statistic), np.nan)
            ax.axvline(value, color=GREY, linestyle=dashes, linewidth=1, label=name)
        for place, arm in enumerate(row["arms"]):
            if (arm, row["statistic"]) not in cells.index:
                continue
            point = cells.loc[(arm, row["statistic"])]
            colour = VERMILLION if arm in self.marked else BLUE
            ax.plot([point.low, point.high], [place] * 2, color=colour, linewidth=1.4)
            ax.plot(point["mean"], place, "o", color=colour, markersize=4.5)
