"""Finding wrong labels: the curve of labels found, the ranking of scores, the table on the screen and what it says."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from rich.table import Table

from influx.report.plots import BLUE, GREEN, GREY, ORANGE, VERMILLION, new_figure, say_nothing, style
from influx.report.saving import save
from influx.report.tables import interval, significant

PURPLE, SKY, YELLOW = "#CC79A7", "#56B4E9", "#B8A800"  # the rest of the palette, yellow darker for thin lines
METHODS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, YELLOW, "black")
BASELINES = {"loss": "--", "gradient_norm": ":", "nearest": "-.", "random": (0, (1, 4))}  # grey, told apart by their dashes
RULES: dict[str, dict[str, Any]] = {
    "oracle": {"color": "black", "linestyle": (0, (5, 1, 1, 1))},
    "best": {"color": "black", "linestyle": ":"},
}
MOST = 60  # scores that have room below each other
NARROW = 0.12  # share of wrong labels up to which there is no room for a word beside the ideal curve


def looks(scores: list[str]) -> dict[str, dict[str, Any]]:
    """Colour and dashes of each score: methods in colour, solid (dashed from the ninth on), baselines in grey."""
    methods = [score for score in scores if score not in BASELINES and score not in RULES]
    made: dict[str, dict[str, Any]] = {}
    for at, score in enumerate(methods):
        made[score] = {"color": METHODS[at % len(METHODS)], "linestyle": "-" if at < len(METHODS) else "--"}
    made |= {score: {"color": GREY, "linestyle": BASELINES[score]} for score in scores if score in BASELINES}
    return made | {score: RULES[score] for score in scores if score in RULES}


def save_detection(
    curve: pd.DataFrame, table: pd.DataFrame, path: str | Path, *, method: str, share: float, title: str, about: str
) -> None:
    """`curve`: `score, inspected, found, ci_low, ci_high`; `table`: `score, statistic, value, ci_low, ci_high`; `share`: how many of the
    labels are wrong."""
    ranked = table[table["statistic"] == "roc_auc"].sort_values("value", ascending=False, kind="stable")
    drawn = looks([method, *(score for score in ranked["score"] if score != method)])
    with style():
        figure = new_figure(8.4, max(3.9, 0.28 * len(ranked) + 1.2))
        left, right = figure.subplots(1, 2, width_ratios=[1.35, 1])
        draw_curves(curve, left, share=share, drawn=drawn)
        draw_scores(ranked, right, drawn=drawn)
        left.set_title(about)
        figure.suptitle(textwrap.fill(title, 95), x=0.01, ha="left")
        save(figure, path)


def draw_curves(curve: pd.DataFrame, ax: Axes, *, share: float, drawn: Mapping[str, dict[str, Any]] | None = None) -> None:
    """Share of the wrong labels found over share inspected: a line a score with its 95 % band, what chance finds, and the best there is.

    `curve`: `score, inspected, found, ci_low, ci_high`; `share`: how many of the labels are wrong; `drawn`: as `looks` gives them, all
    scores of the table in its order when it is left out.
    """
    drawn = looks(curve["score"].astype(str).drop_duplicates().tolist()) if drawn is None else drawn
    ax.plot([0, share, 1], [0, 1, 1], color="black", linewidth=0.8)
    ax.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    beside = {"x": share - 0.015, "ha": "right"} if share > NARROW else {"x": share + 0.015, "ha": "left"}
    ax.text(y=0.975, s="ideal", fontsize=7, va="top", **beside)  # type: ignore[arg-type]
    ax.text(0.9, 0.88, "chance", fontsize=7, va="top", ha="left")
    if not curve["found"].notna().any():
        say_nothing(ax, "no score")
    for score in reversed(list(drawn)):
        part = curve[curve["score"] == score]
        ax.plot(part["inspected"], part["found"], label=score, **drawn[score])
        if part["ci_low"].notna().any():
            band = part["ci_low"].clip(0, 1), part["ci_high"].clip(0, 1)
            ax.fill_between(part["inspected"], *band, color=drawn[score]["color"], alpha=0.15, linewidth=0)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.01)
    ax.set_xlabel("share of the training set inspected, most suspicious first")
    ax.set_ylabel("share of the wrong labels found")


def draw_scores(
    ranked: pd.DataFrame,
    ax: Axes,
    *,
    drawn: Mapping[str, dict[str, Any]] | None = None,
    label: str = "ROC AUC, 95 % interval over seeds",
    reference: float = 0.5,
) -> None:
    """A row a score, best first, in the colour and with the dashes of its curve: its value with its 95 % interval over seeds, beside what
    an unrelated score has (`reference`).

    `ranked`: `score, value, ci_low, ci_high`, of which the first `MOST` rows are drawn; `drawn`: as in `draw_curves`; `label`: of the axis.
    """
    drawn = looks(ranked["score"].astype(str).drop_duplicates().tolist()) if drawn is None else drawn
    ranked, left_out = ranked.head(MOST), max(0, len(ranked) - MOST)
    for place, row in enumerate(ranked.itertuples()):
        look = drawn[str(row.score)]
        ax.plot([-0.09, -0.01], [place] * 2, transform=ax.get_yaxis_transform(), clip_on=False, linewidth=1.6, **look)
        if not math.isnan(row.ci_low):
            ax.plot([row.ci_low, row.ci_high], [place] * 2, color=look["color"], linewidth=1.4)
        ax.plot(row.value, place, "o", color=look["color"], markersize=4.5)
        said = "none" if math.isnan(row.value) else f"{row.value:.3f}"
        ax.text(1.02, place, said, transform=ax.get_yaxis_transform(), va="center", fontsize=7)
    ax.axvline(reference, color=GREY, linewidth=0.6)
    ax.set_yticks(range(len(ranked)), ranked["score"].astype(str))
    ax.tick_params(axis="y", length=0, pad=26)
    ax.set_ylim(max(len(ranked), 1) - 0.5, -0.5)
    ends = ranked[["value", "ci_low", "ci_high"]].to_numpy(float)
    known = [reference, *ends[np.isfinite(ends)]]
    margin = 0.05 * (max(known) - min(known)) or 0.05
    ax.set_xlim(min(known) - margin, max(min(max(known) + margin, 1.0), reference + margin))
    ax.set_xlabel(f"{label}\n{left_out:,} more scores are not drawn" if left_out else label)
    if len(known) == 1:
        say_nothing(ax, "no score")


def detection_lines(table: pd.DataFrame, about: str) -> Table:
    """The terminal's view: a row a score, best first, a column a statistic; the first of them with its interval."""
    names = [name for name in table["statistic"].drop_duplicates() if "_minus_" not in name]
    lines = Table(caption=f"{about}; all intervals: detection.csv", caption_justify="left")
    lines.add_column("score", no_wrap=True)
    for name in (names[0], "95 % interval", *names[1:]):
        lines.add_column(name.replace("_", " "), justify="right", no_wrap=name == "95 % interval")
    cells = table.set_index(["score", "statistic"])
    order = table[table["statistic"] == names[0]].sort_values("value", ascending=False, kind="stable")["score"]
    for score in order:
        rows = [cells.loc[(score, name)] for name in names]
        lines.add_row(str(score), significant(rows[0].value), interval(rows[0]), *(significant(row.value) for row in rows[1:]))
    first = cells.loc[order.iloc[0]]
    for said, column in (("by chance", "chance"), ("at best", "best")):
        known = [significant(float(first.loc[name, column])) for name in names]
        lines.add_row(said, known[0], "", *known[1:], style="dim")
    return lines


def detection_verdict(table: pd.DataFrame, method: str) -> str:
    """Does the method beat each example's own loss, the cheapest score there is?"""
    cells = table.set_index(["score", "statistic"])
    own = cells.loc[(method, "roc_auc")]
    said = f"{method} finds wrong labels with ROC AUC {significant(own.value)} {interval(own)}".rstrip()
    if (method, "roc_auc_minus_loss") not in cells.index:
        return f"{said} (0.5 by chance)."
    paired = cells.loc[(method, "roc_auc_minus_loss")]
    difference = f"{significant(abs(paired.value))}"
    if math.isnan(paired.ci_low):
        how = "above" if paired.value > 0 else "below"
        return f"{said}, {difference} {how} that of the loss alone; one seed does not tell whether that is luck: task.seeds=5."
    between = f"paired difference {significant(paired.value)} {interval(paired)}"
    if paired.ci_low > 0:
        return f"{said}: it beats the loss alone ({between})."
    if paired.ci_high < 0:
        return f"{said}: the loss alone, a forward pass, does better ({between})."
    return f"{said}: these seeds do not tell it from the loss alone ({between})."
