"""Every figure's style, the training history and the scatter of predicted against actual change.

A drawing function, here and in the files beside this one, takes a table and an `Axes`, then settings by name, and computes nothing:
statistics come from `influx.statistics`. It draws into any axes, those of a user's own figure too:

    from influx.report.plots import draw_pairs, style
    with style():
        draw_pairs(table, ax, unit="nats", calibrated=True)

`style()` is the look of influx's own figures and may be left out. Rows without a number are left out; where none is left the axes say so.
Figures are made without pyplot, so that no global state is touched and no display is needed.
"""

from __future__ import annotations

import math
import textwrap
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from influx.report.saving import save
from influx.report.tables import interval, significant

# Okabe & Ito's palette, told apart with every common colour blindness.
BLUE, ORANGE, GREEN, VERMILLION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"

CURVES = {"loss": ("training loss", BLUE), "gradient_norm": ("gradient norm", VERMILLION), "accuracy": ("training accuracy", GREEN)}
DENSITY = ListedColormap(matplotlib.colormaps["Blues"](np.linspace(0.25, 1, 256)))  # a cell with one pair can be seen

DENSE = 4_000  # pairs above which points would cover each other: a density is drawn instead
STRIP = 20  # test examples up to which each is drawn, not counted


def style() -> AbstractContextManager[None]:
    """The look of all figures, for as long as the context lasts."""
    return matplotlib.rc_context(
        {
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "axes.titlesize": 9,
            "axes.titlelocation": "left",
            "axes.labelsize": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.8,
            "axes.axisbelow": True,
            "axes.formatter.limits": (-2, 4),
            "axes.formatter.use_mathtext": True,
            "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, VERMILLION, GREY]),
            "figure.titlesize": 10,
            "figure.titleweight": "bold",
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "legend.fontsize": 8,
            "legend.frameon": False,
            "lines.linewidth": 1.4,
            "savefig.dpi": 160,
            "pdf.fonttype": 42,  # TrueType: letters that an editor can change
            "svg.fonttype": "none",
            "svg.hashsalt": "influx",
        }
    )


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches whose parts keep out of each other's way."""
    return Figure(figsize=(width, height), layout="constrained")


def say_nothing(ax: Axes, words: str) -> None:
    """In the middle of axes that have nothing else to show."""
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", fontsize=8, color=GREY)


# ------------------------------------------------------------------------------------------------------------- history


def draw_history(table: pd.DataFrame, ax: Axes, *, column: str = "loss") -> None:
    """One `column` of a training history (`epoch` and `loss`, `gradient_norm` or `accuracy`) against the epoch.

    The axis is logarithmic for a gradient norm, and for a loss that spans more than two decades, if all is positive.
    """
    label, colour = CURVES[column]
    known = _finite(table, column)
    values = known[column]
    ax.plot(known["epoch"], values, color=colour, marker="." if len(known) <= 30 else "")
    positive = len(known) > 0 and values.min() > 0
    if positive and (column == "gradient_norm" or values.max() > 100 * values.min()):
        ax.set_yscale("log")
    if len(known) > 0:
        ax.set_xlim(known["epoch"].min() - 0.5, known["epoch"].max() + 0.5)
    else:
        say_nothing(ax, f"no {label} was recorded")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_xlabel("epoch")
    ax.set_title(label)


def save_history(table: pd.DataFrame, path: str | Path) -> None:
    """Loss, gradient norm and, when there is any, accuracy over the epochs, side by side."""
    columns = ["loss", *(name for name in CURVES if name != "loss" and np.isfinite(table[name]).any())]
    with style():
        figure = new_figure(3.2 * len(columns), 2.6)
        for column, ax in zip(columns, figure.subplots(1, len(columns), squeeze=False)[0], strict=True):
            draw_history(table, ax, column=column)
        save(figure, path)


# ------------------------------------------------------------------------------------------------------------- scatter


def save_scatter(
    pairs: pd.DataFrame,
    per_test: pd.DataFrame,
    correlations: pd.DataFrame,
    path: str | Path,
    *,
    unit: str,
    calibrated: bool,
    title: str,
) -> None:
    """Predicted against actual change, and how the rank correlation varies over test examples.

    `pairs`: `predicted`, `actual` and possibly `actual_se`, one row a pair; `per_test`: `test_index`, `spearman`;
    `correlations`: the table of `influx.statistics.compare`; `unit`: the measurement's, on the axes.
    """
    with style():
        figure = new_figure(8.4, 4.4)
        left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
        draw_pairs(pairs, left, unit=unit, calibrated=calibrated)
        left.set_title(_pairs_caption(correlations), fontsize=8, linespacing=1.5)
        draw_per_test(per_test, right, correlations=correlations)
        figure.suptitle(textwrap.fill(title, 95), x=0.01, ha="left")
        save(figure, path)


def draw_pairs(pairs: pd.DataFrame, ax: Axes, *, unit: str, calibrated: bool) -> None:
    """Actual against predicted change: points (with standard errors, when few), or a density above `DENSE` pairs.

    `pairs`: `predicted`, `actual` and possibly `actual_se`, a row a pair; `unit`: the measurement's; `calibrated`: whether the estimate
    claims the scale of the truth, without which its axis has no unit.

    Both axes have the same limits, and the identity is drawn, when the estimate claims the scale and the two spans are comparable.
    Extreme pairs may fall outside the frame, never silently: their number is below it.
    """
    known = _finite(pairs, "predicted", "actual")
    x, y = known["predicted"].to_numpy(float), known["actual"].to_numpy(float)
    x_limits, y_limits = _window(x), _window(y)
    if calibrated and 1 / 3 <= np.ptp(x_limits) / np.ptp(y_limits) <= 3:
        x_limits = y_limits = (min(x_limits[0], y_limits[0]), max(x_limits[1], y_limits[1]))
        ax.set_aspect("equal")
    ax.axhline(0, color=GREY, linewidth=0.6)
    ax.axvline(0, color=GREY, linewidth=0.6)
    if not len(known):
        say_nothing(ax, "no pairs")
    elif len(known) > DENSE:
        cells = ax.hexbin(x, y, gridsize=45, extent=(*x_limits, *y_limits), bins="log", mincnt=1, linewidths=0.1, cmap=DENSITY)
        ax.figure.colorbar(cells, ax=ax, label="pairs", shrink=0.6, pad=0.01)
    else:
        _draw_points(known, ax)
    notes = []
    if calibrated:
        ax.axline((0, 0), slope=1, color=VERMILLION, linewidth=1, linestyle="--")
        notes.append("dashed: actual = predicted")
    outside = int(np.sum((x < x_limits[0]) | (x > x_limits[1]) | (y < y_limits[0]) | (y > y_limits[1])))
    if outside:
        notes.append(f"{outside:,} of {len(pairs):,} pairs outside")
    if len(known) < len(pairs):
        notes.append(f"{len(pairs) - len(known):,} without a number")
    ax.set_xlim(*x_limits)
    ax.set_ylim(*y_limits)
    ax.set_xlabel("\n".join((f"predicted change ({unit if calibrated else 'arbitrary unit'})", "; ".join(notes))).strip())
    ax.set_ylabel(f"actual change ({unit})")


def draw_per_test(per_test: pd.DataFrame, ax: Axes, *, correlations: pd.DataFrame | None = None) -> None:
    """Each test example's rank correlation (points for up to `STRIP`, else a histogram), their mean, its ceiling, and both intervals.

    `per_test`: `test_index`, `spearman`; `correlations`: the table of `influx.statistics.compare`, without which only the first is drawn.
    """
    known = _finite(per_test, "spearman")
    values = known["spearman"].to_numpy(float)
    ax.set_xlim(min([-0.05, *(values - 0.08)]), 1.05)
    if len(per_test) <= STRIP:
        ax.plot(values, np.arange(len(known)), "o", color=BLUE, markersize=4)
        ax.set_yticks(np.arange(len(known)), [str(i) for i in known["test_index"]])
        ax.set_ylim(len(known) - 0.4, -0.6)
        ax.set_ylabel("test example")
    else:
        ax.hist(values, bins=np.arange(-1, 1.01, 0.05).tolist(), color=BLUE, edgecolor="white", linewidth=0.5)
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_ylabel("test examples")
    ax.set_xlabel("Spearman of each test example")
    if not len(known):
        say_nothing(ax, "no test example has a correlation")
    headline = None if correlations is None else _rows(correlations).get("spearman")
    if headline is not None:
        _draw_headline(headline, ax)


def _draw_headline(headline: Any, ax: Axes) -> None:
    """The mean and its ceiling as lines, their intervals as bands, and what they are."""
    if not math.isnan(headline.value):
        ax.axvline(headline.value, color="black", label=f"mean {significant(headline.value)} {interval(headline)}")
        if not math.isnan(headline.ci_low):
            ax.axvspan(headline.ci_low, headline.ci_high, color="black", alpha=0.15, linewidth=0, zorder=0)
    _draw_ceiling(headline, ax)
    if headline.n_undefined:
        ax.plot([], [], " ", label=f"undefined for {headline.n_undefined} of {headline.n_test}")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, handlelength=1.5)


def _draw_points(pairs: pd.DataFrame, ax: Axes) -> None:
    few = len(pairs) <= 300
    if few and "actual_se" in pairs:
        ax.errorbar(pairs["predicted"], pairs["actual"], pairs["actual_se"], fmt="none", ecolor=BLUE, alpha=0.35, linewidth=0.8)
    ax.scatter(pairs["predicted"], pairs["actual"], s=14 if few else 6, color=BLUE, alpha=0.8 if few else 0.35, linewidths=0)


def _draw_ceiling(headline: Any, ax: Axes) -> None:
    seeds = "1 seed" if headline.n_seeds == 1 else f"{headline.n_seeds} seeds"
    if math.isnan(headline.noise_ceiling):
        ax.plot([], [], " ", label=f"noise ceiling unknown ({seeds})")
        return
    ceiling = f"{significant(headline.noise_ceiling)} {interval(headline, 'ceiling')}".rstrip()
    ax.axvline(headline.noise_ceiling, color=VERMILLION, linestyle="--", label=f"noise ceiling {ceiling} ({seeds})")
    if not math.isnan(headline.ceiling_low):
        ax.axvspan(headline.ceiling_low, headline.ceiling_high, color=VERMILLION, alpha=0.18, linewidth=0, zorder=0)


def _pairs_caption(correlations: pd.DataFrame) -> str:
    rows = _rows(correlations)
    sizes = rows["spearman"]
    names = {"pearson_pooled": "Pearson", "spearman_pooled": "Spearman", "slope": "slope"}
    said = [f"{said} {significant(rows[name].value) or 'undefined'} {interval(rows[name])}" for name, said in names.items() if name in rows]
    pairs = f"{sizes.n_removed * sizes.n_test:,} pairs ({sizes.n_removed:,} removed × {sizes.n_test:,} test)"
    return "\n".join((pairs, ", ".join(said[:2]), *said[2:]))


def _rows(correlations: pd.DataFrame) -> dict[str, Any]:
    return {row.statistic: row for row in correlations.itertuples()}


def _finite(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows that have a number in each of those columns."""
    return table[np.isfinite(table[list(columns)].to_numpy(float)).all(1)]


def _window(values: np.ndarray) -> tuple[float, float]:
    """Limits that hold zero and all values, or, when a few lie far out, three times the central 99 % of them."""
    if not len(values):
        return -1.0, 1.0
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    inner_low, inner_high = np.quantile(values, [0.005, 0.995])
    reach = max(inner_high - inner_low, 1e-12 * (high - low))
    low, high = max(low, min(inner_low - reach, 0.0)), min(high, max(inner_high + reach, 0.0))
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin
