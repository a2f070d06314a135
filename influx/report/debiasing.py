"""Word bias: what each intervention does to each test, the table on the screen and what it says."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from rich.table import Table

from influx.report.detection import MOST
from influx.report.plots import BLUE, GREEN, GREY, VERMILLION, new_figure, say_nothing, style
from influx.report.saving import save
from influx.report.tables import interval, significant

COLOURS = {"without raising": BLUE, "without lowering": VERMILLION, "without random": GREY, "hard debiasing": "black"}  # others are green
FIRST = ("without raising", "without lowering", "without random")
WIDTH, HEIGHT = 3.0, 0.27  # inches a panel and a row


def save_debiasing(table: pd.DataFrame, path: str | Path, *, tests: Sequence[str], title: str, about: str) -> None:
    """`table`: as in `draw_debiasing`; `tests`: a panel each."""
    scores = _scores(table)
    with style():
        figure = new_figure(2.4 + WIDTH * len(tests), HEIGHT * len(scores) + 1.9)
        panels = figure.subplots(1, len(tests), sharey=True, squeeze=False)[0]
        for ax, test in zip(panels, tests, strict=True):
            draw_debiasing(table, ax, test=test, scores=scores)
        handles, names = panels[0].get_legend_handles_labels()
        wide = int(14 * (2.4 + WIDTH * len(tests)))
        figure.legend(
            handles, names, loc="outside lower left", ncols=3, title=textwrap.fill(about, wide), alignment="left", title_fontsize=8
        )
        figure.suptitle(textwrap.fill(title, wide), x=0.01, ha="left")
        save(figure, path)


def draw_debiasing(table: pd.DataFrame, ax: Axes, *, test: str, scores: Sequence[str] | None = None) -> None:
    """A row a score with its interval; behind them how far single random sets move the effect, and the change that would end it.

    `table`: `score, statistic, value, ci_low, ci_high`; of it are drawn, for the `test`, the statistic `change:<test>` of the `scores` (all
    of the table when they are left out), `weat:<test>` of the score "trained", and `spread:<test>` of "without random".
    """
    scores = _scores(table) if scores is None else scores
    scores, left_out = scores[:MOST], max(0, len(scores) - MOST)
    cells = table.drop_duplicates(["score", "statistic"]).set_index(["score", "statistic"])[["value", "ci_low", "ci_high"]]
    trained = _or_nothing(cells, "trained", f"weat:{test}")
    random, spread = (_or_nothing(cells, "without random", f"{kind}:{test}").value for kind in ("change", "spread"))
    if not math.isnan(random - spread):
        ax.axvspan(random - spread, random + spread, color=GREY, alpha=0.18, linewidth=0, label="random sets: one standard deviation")
    ax.axvline(0.0, color=GREY, linewidth=0.8, label="as trained")
    if not math.isnan(trained.value):
        ax.axvline(-trained.value, color="black", linewidth=0.9, linestyle=":", label="no effect left")
    rows = [_or_nothing(cells, score, f"change:{test}") for score in scores]
    if all(math.isnan(row.value) for row in rows):
        say_nothing(ax, "no change")
    for place, (score, row) in enumerate(zip(scores, rows, strict=True)):
        colour = COLOURS.get(score, GREEN)
        if not math.isnan(row.ci_low):
            ax.plot([row.ci_low, row.ci_high], [place] * 2, color=colour, linewidth=1.4)
        ax.plot(row.value, place, "o", color=colour, markersize=4.5)
    ax.set_yticks(range(len(scores)), scores)
    ax.set_ylim(max(len(scores), 1) - 0.5, -0.5)
    more = f"\n{left_out:,} more scores are not drawn" if left_out else ""
    ax.set_xlabel(f"change of the effect size, 95 % interval{more}")
    ax.set_title(f"{test.replace('_', ' ')}\neffect size {significant(trained.value)} {interval(trained)}".rstrip())


def debiasing_lines(table: pd.DataFrame, tests: Sequence[str], about: str) -> Table:
    """The terminal's view: for each test the effect size as trained, then a row a score with its effect, change and mean training loss."""
    lines = Table(
        caption=f"{about}; 95 % intervals over seeds; changes of a set are from a model retrained with everything", caption_justify="left"
    )
    for heading in ("test", "what was done"):
        lines.add_column(heading)
    for heading in ("effect size", "change", "95 % interval", "minus random", "95 % interval", "loss"):
        lines.add_column(heading, justify="right", no_wrap=True)
    cells = table.set_index(["score", "statistic"])
    for test in tests:
        for score in ("trained", *_scores(table)):
            change, paired = (_row(cells, score, f"{kind}:{test}") for kind in ("change", "minus_random"))
            values = [_row(cells, score, f"{kind}:{test}") for kind in ("weat", "loss")]
            effect, loss = ("" if row is None else significant(row.value) for row in values)
            lines.add_row(test if score == "trained" else "", score, effect, *_cells(change), *_cells(paired), loss)
    return lines


def debiasing_verdict(table: pd.DataFrame, method: str) -> str:
    """Do the sets that the method names move the effect further than random ones, and is fine-tuning nearer zero than hard debiasing?"""
    cells = table.set_index(["score", "statistic"])
    raising, lowering, hard = (cells.loc[(method, name)] for name in ("raising_minus_random", "lowering_minus_random", "size_minus_hard"))
    said = [
        f"without the documents that raise the effect by {method} it falls more than without random ones: {_told(raising, -1)}",
        f"without those that lower it it rises more: {_told(lowering, 1)}",
        f"steps on documents leave less of it than hard debiasing: {_told(hard, -1)}",
    ]
    return f"{'; '.join(said)} (means over tests)."


def _told(row: pd.Series, sign: int) -> str:
    """Whether the difference has the sign that the sentence claims."""
    between = f"({significant(row.value)} {interval(row)})".replace(" )", ")")
    if math.isnan(row.ci_low):
        return f"one seed does not tell {between}"
    yes, no = (row.ci_low > 0, row.ci_high < 0) if sign > 0 else (row.ci_high < 0, row.ci_low > 0)
    return f"{'yes' if yes else 'no, the opposite' if no else 'not told'} {between}"


def _scores(table: pd.DataFrame) -> list[str]:
    known = [str(score) for score in table[table["statistic"].astype(str).str.startswith("change:")]["score"].drop_duplicates()]
    return [*(score for score in FIRST if score in known), *(score for score in known if score not in FIRST)]


def _or_nothing(cells: pd.DataFrame, score: str, statistic: str) -> pd.Series:
    """A row of numbers, all NaN where the table has none."""
    found = _row(cells, score, statistic)
    return pd.Series(math.nan, index=cells.columns) if found is None else found.astype(float)


def _row(cells: pd.DataFrame, score: str, statistic: str) -> pd.Series | None:
    return cells.loc[(score, statistic)] if (score, statistic) in cells.index else None  # type: ignore[return-value]


def _cells(row: pd.Series | None) -> tuple[str, str]:
    return ("", "") if row is None else (significant(row.value), interval(row))
