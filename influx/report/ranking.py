"""The figure of a sweep: jobs ranked by agreement with the truth, or agreement along a number that was swept.

Tables have a row a job, `value, ci_low, ci_high, noise_ceiling, ceiling_low, ceiling_high` and what each function adds.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from influx.report.plots import BLUE, GREY, VERMILLION, new_figure, style
from influx.report.saving import save
from influx.report.tables import significant

COLUMNS = 3  # panels side by side
LONG = 42  # characters from which a label is cut in the middle


def save_ranking(table: pd.DataFrame, path: str | Path, *, statistic: str, title: str, ceilings: bool = True) -> None:
    """One panel for each value of `panel`, in the table's order; also needs `label`."""
    panels = list(table.groupby("panel", sort=False))
    rows, columns = -(-len(panels) // COLUMNS), min(COLUMNS, len(panels))
    tallest = max(len(part) for _, part in panels)
    with style():
        width = 6.4 if columns == 1 else 4.2 * columns
        figure = new_figure(width, rows * (0.24 * tallest + 1.1) + 0.4)
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for ax, (name, part) in zip(axes, panels, strict=False):
            draw_ranking(part, ax)
            ax.set_title(_short(str(name)))
            ax.set_xlabel(statistic)
            ax.set_xlim(*_limits(table))
        for ax in list(figure.axes)[len(panels) :]:
            ax.set_axis_off()
        if ceilings:
            _legend(figure.axes[0], table)
        figure.suptitle(textwrap.fill(title, round(11 * width)), x=0.01, ha="left")
        save(figure, path)


def draw_ranking(table: pd.DataFrame, ax: Axes) -> None:
    """A row a job, in the table's order from the top: its value with its interval, beside the noise ceiling of its truth as a band. A job
    without a value is named all the same."""
    places = [float(place) for place in range(len(table))]
    for place, row in zip(places, table.itertuples(), strict=True):
        if not math.isnan(row.noise_ceiling):
            ax.plot([row.noise_ceiling] * 2, [place - 0.5, place + 0.5], color=VERMILLION, linestyle="--", linewidth=1)
            ax.fill_betweenx([place - 0.5, place + 0.5], row.ceiling_low, row.ceiling_high, color=VERMILLION, alpha=0.18, linewidth=0)
        said = significant(row.value) or "none"
        ax.text(1.02, place, said, transform=ax.get_yaxis_transform(), va="center", fontsize=7, color=GREY if said == "none" else "black")
    ax.errorbar(table["value"], places, xerr=_reach(table), fmt="o", color=BLUE, markersize=4, elinewidth=1.2)
    ax.axvline(0, color=GREY, linewidth=0.6)
    ax.set_yticks(places, [_short(str(label)) for label in table["label"]])
    ax.set_ylim(len(table) - 0.5, -0.5)


def save_lines(
    table: pd.DataFrame, path: str | Path, *, statistic: str, key: str, logarithmic: bool, title: str, ceilings: bool = True
) -> None:
    """The statistic against the swept number, a line for each `label`; `at` is the number."""
    with style():
        figure = new_figure(6.4, 3.6)
        ax = figure.subplots()
        draw_lines(table, ax)
        if logarithmic:
            ax.set_xscale("log")
        ax.set_xlabel(key)
        ax.set_ylabel(statistic)
        if ceilings:
            _legend(ax, table)
        elif table["label"].nunique() > 1:
            figure.legend(loc="outside lower left", ncols=4)
        figure.suptitle(textwrap.fill(title, 70), x=0.01, ha="left")
        save(figure, path)


def draw_lines(table: pd.DataFrame, ax: Axes) -> None:
    """Values with their intervals, joined by a line for each label, and the noise ceilings in the same way, dashed."""
    for number, (label, part) in enumerate(table.groupby("label", sort=False)):
        part = part.sort_values("at")
        name = _short(str(label)) or None
        ax.errorbar(part["at"], part["value"], yerr=_reach(part), marker="o", markersize=4, elinewidth=1, color=f"C{number}", label=name)
    ceilings = table.dropna(subset="noise_ceiling").drop_duplicates(["at", "noise_ceiling"]).sort_values("at")
    if not ceilings.duplicated("at").any():
        ax.plot(ceilings["at"], ceilings["noise_ceiling"], color=VERMILLION, linestyle="--", linewidth=1)
        ax.fill_between(ceilings["at"], ceilings["ceiling_low"], ceilings["ceiling_high"], color=VERMILLION, alpha=0.18, linewidth=0)
    ax.axhline(0, color=GREY, linewidth=0.6)
    ax.set_ylim(*_limits(table))


def _legend(ax: Axes, table: pd.DataFrame) -> None:
    if table["noise_ceiling"].notna().any():
        ax.plot([], [], color=VERMILLION, linestyle="--", linewidth=1, label="noise ceiling")
    else:
        ax.plot([], [], " ", label="noise ceiling unknown (1 seed)")
    ax.figure.legend(loc="outside lower left", ncols=4)


def _reach(table: pd.DataFrame) -> np.ndarray:
    """Lengths of the intervals' two arms; none where there is no interval."""
    arms = np.stack([table["value"] - table["ci_low"], table["ci_high"] - table["value"]])
    return np.clip(np.nan_to_num(arms.astype(float)), 0, None)


def _limits(table: pd.DataFrame) -> tuple[float, float]:
    lowest = np.nanmin([0.0, *table["value"], *table["ci_low"]])
    return min(-0.05, lowest - 0.05), 1.05


def _short(text: str) -> str:
    half = LONG // 2
    return text if len(text) <= LONG else f"{text[: half - 1]}…{text[-half:]}"
