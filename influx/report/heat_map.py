"""Mean influence class by class, as a map whose white is zero."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from influx.report.plots import new_figure, say_nothing, style
from influx.report.saving import save
from influx.report.tables import significant

CELL, NUMBERED, BARE = 0.46, 12, 0.2  # inches a class; classes up to which a cell holds its number; inches a class without
SMALLEST, CHARACTER = 1.3, 0.085  # inches: of the map, so that its axes' names have room; of a class name's character
MOST = 40  # classes up to which each is named
DARK = 0.6  # of the largest value, from which a number is written in white


def save_class_influence(table: pd.DataFrame, path: str | Path, *, unit: str, title: str) -> None:
    """`table`: as in `draw_class_influence`, and `n_train, n_test`, the sizes of its classes; `unit`: the measurement's."""
    with style():
        classes = max(table["train_class"].nunique(), table["test_class"].nunique())
        side = max((CELL if classes <= NUMBERED else BARE) * classes, SMALLEST)
        names = CHARACTER * max(len(str(name)) for part in ("train_class", "test_class") for name in table[part])
        figure = new_figure(2.1 + side + names, 1.3 + side + 0.7 * names)
        ax = figure.subplots()
        draw_class_influence(table, ax, unit=unit)
        sizes = [table.drop_duplicates(f"{part}_class")[f"n_{part}"].sum() for part in ("train", "test")]
        ax.set_title(f"{sizes[0]:,} training × {sizes[1]:,} test examples", fontsize=8)
        figure.suptitle(title, x=0.01, ha="left")
        save(figure, path)


def draw_class_influence(table: pd.DataFrame, ax: Axes, *, unit: str) -> None:
    """A row a training class, a column a test class, in the table's order; blue: positive (for a loss, helpful on average), red: negative.

    `table`: `train_class, test_class, influence`, a row a pair of classes; `unit`: the measurement's. Numbers much smaller or larger than 1
    are shown in powers of ten of it.
    """
    if not table["influence"].notna().any():
        say_nothing(ax, "no influences")
        return
    names = [table[side].drop_duplicates().astype(str).tolist() for side in ("train_class", "test_class")]
    keyed = table.assign(train_class=table["train_class"].astype(str), test_class=table["test_class"].astype(str))
    values = (
        keyed.pivot(index="train_class", columns="test_class", values="influence").reindex(index=names[0], columns=names[1]).to_numpy(float)
    )
    largest = float(np.nanmax(np.abs(values))) or 1.0
    exponent = math.floor(math.log10(largest))
    exponent = 0 if -2 <= exponent <= 3 else exponent
    cells = ax.imshow(values, cmap="RdBu", vmin=-largest, vmax=largest)
    rows, columns = (range(0, len(part), 1 + (len(part) - 1) // MOST) for part in names)
    ax.set_yticks(rows, [names[0][at] for at in rows])
    ax.set_xticks(columns, [names[1][at] for at in columns], rotation=45, ha="right", rotation_mode="anchor")
    ax.set_ylabel("class of the training example")
    ax.set_xlabel("class of the test example")
    ax.spines[:].set_visible(False)
    label = f"mean influence ({f'$10^{{{exponent}}}$ ' if exponent else ''}{unit})"
    ax.figure.colorbar(cells, ax=ax, label=label, format=lambda value, _: f"{value / 10.0**exponent:g}", shrink=0.8)
    if max(values.shape) > NUMBERED:
        return
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if abs(value) > DARK * largest else "black"
        ax.text(column, row, _number(value / 10.0**exponent), ha="center", va="center", fontsize=6, color=colour)


def _number(value: float) -> str:
    """Three significant digits, but none beyond the fourth place, so that it stays inside its cell."""
    return significant(value) if not abs(value) < 0.01 else f"{value:.4f}" if round(value, 4) else "0.00"
