"""A statistic over two swept numbers, as a map."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from influx.report.plots import new_figure, style
from influx.report.saving import save
from influx.report.tables import significant

CELL = 0.55  # inches
COLUMNS = 3  # panels side by side
NUMBERED = 14  # rows or columns up to which a cell holds its number
DARK = 0.55  # of the largest magnitude, from which a number is written in white


def save_grid(table: pd.DataFrame, path: str | Path, *, statistic: str, names: tuple[str, str], title: str) -> None:
    """One panel for each value of `panel`, all on one scale; columns as in `draw_grid`. `names`: the axes'."""
    panels = list(table.groupby("panel", sort=False))
    rows, columns = -(-len(panels) // COLUMNS), min(COLUMNS, len(panels))
    width = columns * (1.2 + CELL * table["x"].nunique()) + 1.2
    largest = float(np.nanmax(np.abs(table["value"].to_numpy(float))))
    with style():
        figure = new_figure(max(width, 4.2), rows * (1.1 + CELL * table["y"].nunique()) + 0.5)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for ax, (name, part) in zip(axes, panels, strict=False):
            cells = draw_grid(part, ax, names=names, largest=largest)
            ax.set_title(str(name))
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        figure.colorbar(cells, ax=axes, label=statistic, shrink=0.8)
        figure.suptitle(textwrap.fill(title, round(11 * max(width, 4.2))), x=0.01, ha="left")
        save(figure, path)


def draw_grid(table: pd.DataFrame, ax: Axes, *, names: tuple[str, str], largest: float = 1.0) -> AxesImage:
    """`x, y` (numbers, evenly spaced as they come), `value`; white is zero, and cells without a value stay empty. Returns the cells, for a
    colour bar."""
    xs, ys = (np.sort(table[name].unique()) for name in ("x", "y"))
    values = table.pivot(index="y", columns="x", values="value").reindex(index=ys, columns=xs).to_numpy(float)
    cells = ax.imshow(values, cmap="RdBu", vmin=-largest, vmax=largest, origin="lower", aspect="auto")
    ax.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    ax.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])
    ax.spines[:].set_visible(False)
    if max(values.shape) <= NUMBERED:
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if abs(value) > DARK * largest else "black"
            ax.text(column, row, significant(value), ha="center", va="center", fontsize=7, color=colour)
    return cells
