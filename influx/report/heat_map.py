"""Mean influence class by class, as a map whose white is zero."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from influx.report.plots import new_figure, style
from influx.report.saving import save
from influx.report.tables import significant

CELL, NUMBERED = 0.42, 12  # inches a class; classes up to which a cell holds its number
DARK = 0.6  # of the largest value, from which a number is written in white


def save_class_influence(table: pd.DataFrame, path: str | Path, *, unit: str, title: str) -> None:
    """`table`: `train_class, test_class, influence`; `unit`: the measurement's."""
    with style():
        classes = max(table["train_class"].nunique(), table["test_class"].nunique())
        figure = new_figure(2.6 + CELL * classes, 1.6 + CELL * classes)
        draw_class_influence(table, figure.subplots(), unit=unit)
        figure.suptitle(title, x=0.01, ha="left")
        save(figure, path)


def draw_class_influence(table: pd.DataFrame, ax: Axes, *, unit: str) -> None:
    """A row a training class, a column a test class, in the table's order; blue: helpful on average, red: harmful (for a loss)."""
    names = [table[side].drop_duplicates().astype(str).tolist() for side in ("train_class", "test_class")]
    keyed = table.assign(train_class=table["train_class"].astype(str), test_class=table["test_class"].astype(str))
    values = (
        keyed.pivot(index="train_class", columns="test_class", values="influence").reindex(index=names[0], columns=names[1]).to_numpy(float)
    )
    largest = float(np.nanmax(np.abs(values))) or 1.0
    cells = ax.imshow(values, cmap="RdBu", vmin=-largest, vmax=largest)
    ax.set_yticks(range(len(names[0])), names[0])
    ax.set_xticks(range(len(names[1])), names[1], rotation=45, ha="right", rotation_mode="anchor")
    ax.set_ylabel("class of the training example")
    ax.set_xlabel("class of the test example")
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(cells, ax=ax, label=f"mean influence ({unit})", shrink=0.8)
    if max(values.shape) > NUMBERED:
        return
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if abs(value) > DARK * largest else "black"
        ax.text(column, row, significant(value), ha="center", va="center", fontsize=4.5, color=colour)
