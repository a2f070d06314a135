"""From one correlation to another, a bar a switch: what each of several defects costs, in one order and whatever the order.

A column of two panels for each level of one grid axis. Above, the waterfall from top to bottom: where the correlation stands after each
switch in the stated order. Below, what each switch is worth: its share over all orders, and the two ends of what an order can make of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from influx.report.figures.base import Figure
from influx.report.plots import BLUE, GREEN, GREY, ORANGE, VERMILLION, new_figure

COLOURS = (ORANGE, BLUE, GREEN, VERMILLION, "#CC79A7", "#56B4E9")  # Okabe & Ito's
DARK = "#333333"
JOIN, NONE = " + ", "none"  # as the results spell sets of switches
HEIGHT = 0.62  # of a bar
BACKED = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1}  # so that a line that reaches a number does not hide it
NUMBERS = ["mean", "low", "high", "magnitude"]


@dataclass(frozen=True)
class Waterfall(Figure):
    """
    Args:
        arm: the comparison that holds the switches' rows (`influx.studies.switches`).
        axis: the grid axis, a column of panels for each of its levels.
        levels: its levels, from left to right.
        switches: name in the results -> what it is called, in the order of the waterfall.
        also: the same for defects that stand outside the order, drawn below only.
        ends: what the first and the last correlation are called.
        title: of the figure.
        chance: the mean |correlation| of unrelated scores, drawn as a line; null = none.
    """

    arm: str
    axis: str
    levels: Sequence[str]
    switches: Mapping[str, str]
    title: str
    also: Mapping[str, str] = field(default_factory=dict)
    ends: tuple[str, str] = ("as published", "matched")
    chance: float | None = None

    def draw(self, points: pd.DataFrame, results: pd.DataFrame, labels: Mapping[str, str]) -> matplotlib.figure.Figure:
        table = points[points["arm"] == self.arm]
        figure = new_figure(2.9 * len(self.levels) + 2.1, 6.6)
        upper, lower = figure.subplots(2, len(self.levels), sharex="row", sharey="row", squeeze=False)
        for level, above, below in zip(self.levels, upper, lower, strict=True):
            part = table[table[self.axis] == level].set_index("statistic")
            self._fall(part, above)
            above.set_title(level, fontweight="bold")
            self._worth(part, below)
        stages = [self.ends[0], *(f"+ {said}" for said in self.switches.values()), self.ends[1]]
        _name_rows(upper[0], stages)
        _name_rows(lower[0], [*self.switches.values(), *self.also.values()])
        seeds = int(table["n"].max()) if len(table) else 0
        figure.suptitle(f"{self.title} ({seeds} seeds)", x=0.01, ha="left")
        figure.legend(handles=_legend(), loc="outside lower left", ncols=2)
        return figure

    def _fall(self, part: pd.DataFrame, ax: Axes) -> None:
        """One panel above, from top to bottom: a bar from what stands before each switch to what stands after it."""
        stages = [NONE, *(JOIN.join(list(self.switches)[: place + 1]) for place in range(len(self.switches)))]
        found = [_row(part, f"mended: {stage}") for stage in stages]
        ax.axvline(0, color=GREY, linewidth=0.6)
        if self.chance is not None:
            ax.axvline(self.chance, color=GREY, linewidth=0.8, linestyle=":")
        for place, row in ((0, found[0]), (len(stages), found[-1])):
            ax.barh(place, row["mean"], HEIGHT, color=DARK)
            ax.plot([row["low"], row["high"]], [place, place], color=GREY, linewidth=1)
            _say(ax, place, f"{row['mean']:.2f}", row["mean"])
        for place, (name, colour) in enumerate(zip(self.switches, COLOURS, strict=False), start=1):
            before, after, step = found[place - 1]["mean"], found[place]["mean"], _row(part, f"step: {name}")
            ax.barh(place, after - before, HEIGHT, left=before, color=colour)
            ax.plot([before + step["low"], before + step["high"]], [place, place], color=DARK, linewidth=1)
            ax.plot([before, before], [place - 1 + HEIGHT / 2, place - HEIGHT / 2], color=GREY, linewidth=0.7)
            _say(ax, place, f"{step['mean']:+.2f}", step["mean"])
        ax.plot([found[-1]["mean"]] * 2, [len(stages) - 1 + HEIGHT / 2, len(stages) - HEIGHT / 2], color=GREY, linewidth=0.7)
        magnitudes = [row["magnitude"] for row in found]
        places = [*range(len(stages) - 1), len(stages)]  # the last stage stands on a bar of its own
        ax.plot(magnitudes, places, "o", markerfacecolor="white", markeredgecolor=DARK, markersize=5, zorder=3)
        ax.set_xlim(-0.55, 1.4)
        ax.set_xticks([-0.5, 0, 0.5, 1])
        ax.set_xlabel("mean Spearman with retraining")

    def _worth(self, part: pd.DataFrame, ax: Axes) -> None:
        """One panel below: what each switch is worth first, last, and on average over all orders."""
        ax.axvline(0, color=GREY, linewidth=0.6)
        colours = dict(zip(self.switches, COLOURS, strict=False))
        for place, name in enumerate((*self.switches, *self.also)):
            colour = colours.get(name, GREY)
            first, last, share = (_row(part, f"{kind}: {name}") for kind in ("first", "last", "share"))
            ax.plot([first["mean"], last["mean"]], [place, place], color=colour, linewidth=5, alpha=0.3, solid_capstyle="butt")
            ax.plot(first["mean"], place, ">", color=colour, markersize=6, markerfacecolor="white")
            ax.plot(last["mean"], place, "<", color=colour, markersize=6)
            ax.plot([share["low"], share["high"]], [place, place], color=DARK, linewidth=1)
            ax.plot(share["mean"], place, "D", color=colour, markeredgecolor=DARK, markersize=6, zorder=3)
            percent = _row(part, f"percent: {name}")["mean"]
            _say(ax, place, f"{round(percent) if np.isfinite(percent) else 0} %", percent)
        ax.set_xlim(-0.55, 1.4)
        ax.set_xticks([-0.5, 0, 0.5, 1])
        ax.set_xlabel("Spearman gained when mended")


def _row(part: pd.DataFrame, statistic: str) -> pd.Series:
    """One statistic's numbers, all NaN where there are none."""
    return part[NUMBERS].reindex([statistic]).iloc[0].astype(float)


def _say(ax: Axes, place: float, words: str, value: float) -> None:
    """A number in the column at the right edge of a row."""
    if np.isfinite(value):
        at = ax.get_yaxis_transform()
        ax.text(0.995, place, words.replace("-", "\u2212"), transform=at, ha="right", va="center", fontsize=8, bbox=BACKED)


def _name_rows(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)


def _legend() -> list[Line2D]:
    said = {
        "above: where each switch takes the mean, line: paired 95 % interval of the step": ("s", DARK),
        "above: mean |Spearman| at that stage (dotted: unrelated scores)": ("o", "white"),
        "below: share over all orders, line: 95 % interval, number: part of what is lost": ("D", DARK),
        "below: gain when it alone is mended": (">", "white"),
        "below: loss when it alone is left (grey: defects outside the order)": ("<", DARK),
    }
    return [
        Line2D([], [], linestyle="", marker=marker, color=DARK, markerfacecolor=face, label=label) for label, (marker, face) in said.items()
    ]
