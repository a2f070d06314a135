"""From one correlation to another, a bar a switch: what each of several defects costs, in one order and whatever the order.

A column of two panels for each level of one grid axis. Above, the waterfall: where the correlation stands after each switch in the stated
order. Below, what each switch is worth: its share over all orders, and the two ends of what an order can make of it.
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
WIDTH = 0.62  # of a bar


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
        figure = new_figure(3.3 * len(self.levels) + 0.9, 7.6)
        upper, lower = figure.subplots(2, len(self.levels), sharex="row", sharey="row", squeeze=False, height_ratios=[1.25, 1])
        for level, above, below in zip(self.levels, upper, lower, strict=True):
            part = table[table[self.axis] == level].set_index("statistic")
            self._fall(part, above)
            above.set_title(level, fontweight="bold")
            self._worth(part, below)
        seeds = int(table["n"].max()) if len(table) else 0
        upper[0][0].set_ylabel(f"Spearman with retraining\nmean over {seeds} seeds")
        names = [*self.switches.values(), *self.also.values()]
        lower[0][0].set_yticks(range(len(names)), names)
        lower[0][0].set_ylim(len(names) - 0.4, -0.6)
        figure.suptitle(self.title, x=0.01, ha="left")
        figure.legend(handles=_legend(bool(self.also)), loc="outside lower left", ncols=2)
        return figure

    def _fall(self, part: pd.DataFrame, ax: Axes) -> None:
        """One panel above: bars between what stands before and after each switch."""
        ax.axhline(0, color=GREY, linewidth=0.6)
        if self.chance is not None:
            ax.axhline(self.chance, color=GREY, linewidth=0.8, linestyle=":")
            ax.text(len(self.switches) + 1.45, self.chance, "|noise|", color=GREY, fontsize=7, ha="right", va="bottom")
        stages = [NONE, *(JOIN.join(list(self.switches)[: place + 1]) for place in range(len(self.switches)))]
        found = [part.reindex([f"mended: {stage}"]).iloc[0] for stage in stages]
        places = [*range(len(stages) - 1), len(stages)]  # the last stage is drawn twice: as the last switch's end, and as a bar
        for place, row in ((0, found[0]), (len(stages), found[-1])):
            ax.bar(place, row["mean"], WIDTH, color=DARK)
            _whisker(ax, place, row["low"], row["high"], GREY)
            ax.text(place, max(row["mean"], row["high"] if np.isfinite(row["high"]) else 0, 0) + 0.03, _number(row["mean"]), ha="center")
        for place, (name, colour) in enumerate(zip(self.switches, COLOURS, strict=False), start=1):
            before, after = found[place - 1]["mean"], found[place]["mean"]
            step = part.reindex([f"step: {name}"]).iloc[0]
            ax.bar(place, after - before, WIDTH, bottom=before, color=colour)
            _whisker(ax, place, before + step["low"], before + step["high"], DARK)
            ax.plot([place - 1 + WIDTH / 2, place - WIDTH / 2], [before, before], color=GREY, linewidth=0.7)
            ax.text(place, -0.42, f"{step['mean']:+.2f}".replace("-", "−"), ha="center", color=DARK)
        ax.plot([len(stages) - 1 + WIDTH / 2, len(stages) - WIDTH / 2], [found[-1]["mean"]] * 2, color=GREY, linewidth=0.7)
        magnitudes = [row["magnitude"] for row in found]
        ax.plot(places[:-1], magnitudes[:-1], "o", markerfacecolor="white", markeredgecolor=DARK, markersize=5, zorder=3)
        ax.plot(places[-1:], magnitudes[-1:], "o", markerfacecolor="white", markeredgecolor=DARK, markersize=5, zorder=3)
        ax.set_xticks(range(len(stages) + 1), [self.ends[0], *self.switches.values(), self.ends[1]], rotation=35, ha="right")
        ax.set_ylim(-0.5, 1.12)

    def _worth(self, part: pd.DataFrame, ax: Axes) -> None:
        """One panel below: what each switch is worth first, last, and on average over all orders."""
        ax.axvline(0, color=GREY, linewidth=0.6)
        for place, (name, colour) in enumerate(zip((*self.switches, *self.also), [*COLOURS, GREY, GREY], strict=False)):
            colour = colour if name in self.switches else GREY
            first, last, share = (part.reindex([f"{kind}: {name}"]).iloc[0] for kind in ("first", "last", "share"))
            ax.plot([first["mean"], last["mean"]], [place, place], color=colour, linewidth=5, alpha=0.3, solid_capstyle="butt")
            ax.plot(first["mean"], place, ">", color=colour, markersize=6, markerfacecolor="white")
            ax.plot(last["mean"], place, "<", color=colour, markersize=6)
            if np.isfinite(share["mean"]):
                ax.plot([share["low"], share["high"]], [place, place], color=DARK, linewidth=1)
                ax.plot(share["mean"], place, "D", color=colour, markeredgecolor=DARK, markersize=6, zorder=3)
            self._say(part, ax, name, place)
        ax.set_xlabel("gain in Spearman when mended")

    def _say(self, part: pd.DataFrame, ax: Axes, name: str, place: int) -> None:
        percent = part.reindex([f"percent: {name}"]).iloc[0]["mean"]
        if np.isfinite(percent):
            ax.text(1.0, place - 0.3, f"{percent:.0f} %".replace("-", "−"), transform=ax.get_yaxis_transform(), ha="right", fontsize=8)


def _whisker(ax: Axes, place: float, low: float, high: float, colour: str) -> None:
    if np.isfinite(low) and np.isfinite(high):
        ax.plot([place, place], [low, high], color=colour, linewidth=1)


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−") if np.isfinite(value) else ""


def _legend(also: bool) -> list[Line2D]:
    others = " (grey: other defects)" if also else ""
    said = {
        "above: change in this order, paired 95 % interval": ("s", DARK),
        "mean |Spearman| at that stage": ("o", "white"),
        "below: share over all orders, 95 % interval; % of what is lost": ("D", DARK),
        "gain when it alone is mended": (">", "white"),
        f"loss when it alone is left{others}": ("<", DARK),
    }
    return [
        Line2D([], [], linestyle="", marker=marker, color=DARK, markerfacecolor=face, label=label) for label, (marker, face) in said.items()
    ]
