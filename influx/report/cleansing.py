"""Cleaning the training set: accuracy over share removed, the table on the screen and what it says."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from rich.table import Table

from influx.report.detection import draw_scores, looks
from influx.report.plots import GREY, new_figure, say_nothing, style
from influx.report.saving import save

APART = 0.005  # of the axis, between the intervals of two rules


def save_cleansing(table: pd.DataFrame, path: str | Path, *, method: str, share: float, title: str, about: str) -> None:
    """`table`: `score, kind, removed, value, ci_low, ci_high`; `share`: of wrong labels."""
    with style():
        figure = new_figure(6.6, 4.2)
        ax = figure.subplots()
        draw_cleansing(table, ax, method=method, share=share)
        ax.set_title(textwrap.fill(about, 85))
        figure.legend(loc="outside lower left", ncols=6)
        figure.suptitle(textwrap.fill(title, 80), x=0.01, ha="left")
        save(figure, path)


def save_cleansing_ranking(table: pd.DataFrame, ranked: pd.DataFrame, path: str | Path, *, title: str, about: str) -> None:
    """Several methods: accuracy over share removed, and their ranking at one share. `table` as above; `ranked`: `score, value, ci_low,
    ci_high`, best first, with removing nothing (`all`) among them."""
    rules = [str(score) for score in ranked["score"] if score != "all"]
    nothing = float(table.loc[table["score"] == "all", "accuracy"].iloc[0])
    with style():
        figure = new_figure(8.4, max(3.9, 0.28 * len(ranked) + 1.2))
        left, right = figure.subplots(1, 2, width_ratios=[1.35, 1])
        draw_cleansing(table, left, method=rules[0], share=0.0)
        shown = ranked[ranked["score"] != "all"]
        label = "accuracy at the last share; line: nothing removed"
        draw_scores(shown, right, drawn=looks(rules), label=label, reference=nothing)
        left.set_title(about)
        figure.suptitle(textwrap.fill(title, 95), x=0.01, ha="left")
        save(figure, path)


def draw_cleansing(table: pd.DataFrame, ax: Axes, *, method: str = "", share: float = 0.0) -> None:
    """Test accuracy over share removed: a line a rule with its 95 % intervals over seeds (side by side), all from nothing removed.

    `table`: `score, kind, removed, value, ci_low, ci_high`, of which the rows of kind "accuracy" are drawn, the score "all" being nothing
    removed; `method`: the rule that has the first colour; `share`: of wrong labels, drawn as a line.
    """
    accuracy = table[(table["kind"] == "accuracy") & table["value"].notna()]
    nothing = accuracy[accuracy["score"] == "all"]
    rules = [score for score in accuracy["score"].drop_duplicates() if score != "all"]
    drawn = looks([*filter(None, [method]), *(rule for rule in rules if rule != method)])
    if len(nothing):
        ax.axhline(nothing["value"].iloc[0], color=GREY, linewidth=0.6)
    if not len(accuracy):
        say_nothing(ax, "no accuracy")
    step = APART * accuracy["removed"].max()
    for place, rule in enumerate(reversed(rules)):
        part = accuracy[accuracy["score"] == rule].sort_values("removed")
        joined = accuracy.loc[[*nothing.index, *part.index]]
        at = joined["removed"] + step * (place - (len(rules) - 1) / 2) * (joined["removed"] > 0)
        ax.plot(at, joined["value"], marker=".", label=rule, **drawn[rule])
        ax.vlines(at, joined["ci_low"], joined["ci_high"], color=drawn[rule]["color"], linewidth=1)
    if share > 0:
        ax.axvline(share, color=GREY, linewidth=0.8, linestyle=":", label="share of wrong labels")
    ax.set_xlim(left=0)
    ax.set_xlabel("share of the training set removed")
    ax.set_ylabel("test accuracy, 95 % interval over seeds")


def cleansing_lines(table: pd.DataFrame, about: str) -> Table:
    """The terminal's view: a row a rule with its accuracy at each share removed; of the last share the interval, the differences to
    removing as many at random and to removing nothing, and how many of the labels that are kept are wrong."""
    shares = [share for share in table["removed"].drop_duplicates() if share > 0]
    last = shares[-1]
    lines = Table(caption=f"{about}; 95 % intervals over seeds", caption_justify="left")
    lines.add_column("rule", no_wrap=True)
    for heading in (*(f"{share:.3g}" for share in (0.0, *shares)), f"at {last:.3g}: interval", "minus random", "minus all", "wrong"):
        lines.add_column(heading, justify="right", no_wrap=True)
    cells = table.set_index(["score", "kind", "removed"])
    for rule in table["score"].drop_duplicates():
        values = [_cell(cells, (rule, "accuracy", share)).partition(" ")[0] for share in (0.0, *shares)]
        at = 0.0 if rule == "all" else last
        held = _limits(cells.loc[(rule, "accuracy", at)])
        differences = [_cell(cells, (rule, kind, last)) for kind in ("minus_random", "minus_all")]
        wrong = f"{cells.loc[(rule, 'wrong', at)].value:.0%}" if (rule, "wrong", at) in cells.index else ""
        lines.add_row(str(rule), *values, held, *differences, wrong)
    return lines


def _cell(cells: pd.DataFrame, place: tuple[str, str, float]) -> str:
    """A value with its interval, or nothing where there is no such row."""
    if place not in cells.index:
        return ""
    return f"{cells.loc[place].value:.3f} {_limits(cells.loc[place])}".strip()


def _limits(row: pd.Series) -> str:
    """An interval of accuracies, to a thousandth."""
    return "" if math.isnan(row.ci_low) else f"[{row.ci_low:.3f}, {row.ci_high:.3f}]"


def cleansing_verdict(table: pd.DataFrame, method: str, removed: float) -> str:
    """Did removing what the method suspects help, against nothing removed and against as many at random?"""
    cells = table[table["removed"] == removed].set_index(["score", "kind"])
    own = cells.loc[(method, "accuracy")]
    said = f"without the {removed:.0%} that {method} suspects, accuracy is {own.value:.3f} {_limits(own)}".rstrip()
    others = {"minus_all": "nothing removed", "minus_random": "as many removed at random"}
    parts = [_compared(cells.loc[(method, kind)], words) for kind, words in others.items() if (method, kind) in cells.index]
    return f"{said}: {'; '.join(parts)}."


def _compared(row: pd.Series, what: str) -> str:
    difference = f"{row.value:.3f} {_limits(row)}".strip()
    if math.isnan(row.ci_low):
        return f"{difference} against {what} (one seed: no interval)"
    if row.ci_low > 0:
        return f"better than {what} ({difference})"
    if row.ci_high < 0:
        return f"worse than {what} ({difference})"
    return f"not told from {what} ({difference})"
