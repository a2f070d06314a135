"""The charts of agreement on a report's page: which kind, which rows in which, and each one's numbers in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from influx.report.tables import significant
from influx.report.web import charts
from influx.report.web.page import Chart
from influx.sweep_seeds import REPEATS, shared_seeds

STANDS_ALONE = ("method", "dataset", "model", "task", "truth")  # keys whose values say enough
IDENTITY = ("method", "truth", "measurement", *REPEATS)  # keys that no line is drawn along
MOST_PANELS, MOST_LINES, MOST_ROWS = 9, 5, 60  # charts of agreement; lines in one; rows in one
MOST_WORDS = 12  # rows that a chart's words name
WIDE = 50.0  # ratio of a swept number's largest to smallest value from which its axis is logarithmic


def agreement_charts(means: pd.DataFrame, ranked: pd.DataFrame, statistic: str) -> tuple[Chart, ...]:
    """A line along a swept number where one was swept, else a chart for each combination of what was swept beside the method.

    `means` is `influx.reporting.numbers.averaged`'s; `ranked` has the runs behind it, and `statistic` is their name on an axis.
    """
    if means.empty:
        return ()
    keys, limits = means.attrs["keys"], limits_of(ranked)
    number = _swept_number(means, keys)
    if not number:
        return _panels(means, ranked, statistic, limits)
    others = [key for key in keys if key != number]
    at = pd.to_numeric(means[number])
    rows = means.to_dict("records")
    table = means.assign(at=at, label=[label(row, others) for row in rows], named=[label(row, keys) for row in rows])
    table = table.sort_values("at", kind="stable")
    wide = bool(at.min() > 0 and at.max() >= WIDE * at.min())
    words = _in_words(table.assign(label=table["named"]), statistic)
    spec = charts.along(table, statistic=statistic, key=number, logarithmic=wide, limits=limits, description=words)
    return (Chart("agreement-0", "", spec, words, _counts(ranked)),)


def cost_chart(means: pd.DataFrame, statistic: str) -> Chart | None:
    """Agreement against seconds, where methods differ."""
    known = means[means["seconds"] > 0]
    if "method" not in known or known["method"].nunique() < 2:
        return None
    table = known.assign(label=[label(row, means.attrs["keys"]) for row in known.to_dict("records")])
    ends = [table.loc[table["seconds"].idxmin()], table.loc[table["seconds"].idxmax()]]
    low, high = (f"{row['label']}, {significant(row['value'])} in {significant(row['seconds'])} s" for row in ends)
    words = f"{statistic} against the seconds of the estimate. Cheapest: {low}; dearest: {high}."
    return Chart("cost", "", charts.cost(table, statistic=statistic, limits=limits_of(means), description=words), words, words)


def note(means: pd.DataFrame, ranked: pd.DataFrame, agree: bool) -> str:
    """What points, lines and bands are; `agree` says whether the statistic is an agreement with a truth."""
    if means.empty:
        return ""
    if means.attrs["repeated"]:
        counts = sorted({int(n) for n in means["n_jobs"]})
        many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        keys = " and ".join(means.attrs["repeated"])
        spread = (
            f"Points are means over {many} runs that differ in {keys} alone, lines 95 % t-intervals over them, thin marks the single runs"
        )
    else:
        over = "bootstrap intervals over left-out and test examples" if agree else "intervals"
        spread = f"Points are runs, lines their 95 % {over}"
    said = [f"{spread}."]
    if means["noise_ceiling"].notna().any():
        said.append(
            "The band is the noise ceiling of the truth with its interval: no estimate blind to the seeds' noise is expected beyond it."
        )
    elif agree:
        said.append("With one retraining seed the noise ceiling of the truth is unknown.")
    if means.attrs["repeated"]:
        said.append(shared_seeds(ranked))
    return " ".join(filter(None, said))


def label(row: Mapping[Any, Any], keys: Sequence[str]) -> str:
    """What tells a row apart, in words: names stand alone, numbers with their key."""
    said = [(key, str(row[key])) for key in keys if not pd.isna(row[key]) and str(row[key]) != ""]
    return ", ".join(value if key in STANDS_ALONE else f"{key.rpartition('.')[2]} {value}" for key, value in said)


def with_interval(row: Mapping[Any, Any]) -> str:
    limits = "" if pd.isna(row["ci_low"]) else f" [{significant(row['ci_low'])}, {significant(row['ci_high'])}]"
    return f"{significant(row['value'])}{limits}"


def limits_of(table: pd.DataFrame) -> tuple[float, float]:
    """The ends of an axis with 0, 1 and every interval in it."""
    known = pd.concat([table[name].astype(float) for name in ("value", "ci_low", "ci_high")]).dropna()
    low, high = min(0.0, known.min()), max(1.0, known.max())
    return math.floor(20 * (low - 0.01)) / 20, math.ceil(20 * (high + 0.01)) / 20


# ------------------------------------------------------------------------------------------------------------------ pieces


def _panels(means: pd.DataFrame, ranked: pd.DataFrame, statistic: str, limits: tuple[float, float]) -> tuple[Chart, ...]:
    """A chart for each place that methods were tried in, when there are few and each has several rows; else one for all."""
    keys = means.attrs["keys"]
    places = [key for key in keys if key != "method"]
    n_panels = len(means[places].astype(str).drop_duplicates()) if places else 1
    apart = "method" in keys and n_panels <= MOST_PANELS and 2 * n_panels <= len(means)
    inside, outside = (["method"], places) if apart else (keys, [])

    def placed(table: pd.DataFrame) -> pd.DataFrame:
        rows = table.to_dict("records")
        return table.assign(panel=[label(row, outside) for row in rows], label=[label(row, inside) or "run" for row in rows])

    singles, made = placed(ranked[ranked["value"].notna()]), []
    for number, (panel, part) in enumerate(placed(means).groupby("panel", sort=False)):
        part = part.head(MOST_ROWS)
        own = singles[(singles["panel"] == panel) & singles["label"].isin(part["label"])]
        words = _in_words(part, statistic)
        shown = own if means.attrs["repeated"] else own.head(0)
        spec = charts.agreement(part, shown, statistic=statistic, limits=limits, description=words)
        made.append(Chart(f"agreement-{number}", str(panel), spec, words, _counts(own)))
    return tuple(made)


def _swept_number(means: pd.DataFrame, keys: Sequence[str]) -> str:
    """The one key along which a line can be drawn; empty where there is none."""
    numeric = [key for key in keys if key not in IDENTITY and pd.to_numeric(means[key], errors="coerce").notna().all()]
    if len(numeric) != 1 or means[numeric[0]].nunique() < 2:
        return ""
    others = means[[key for key in keys if key != numeric[0]]].astype(str).drop_duplicates()
    return numeric[0] if len(others) <= MOST_LINES else ""


def _counts(runs: pd.DataFrame) -> str:
    """What the values are about: `n: 50 removals, 30 test examples, 4 retraining seeds.`"""
    removals = "n_removed" in runs and runs["n_removed"].notna().any()
    words = {"n_removed": "removals", "n_test": "test examples", "n_seeds": "retraining seeds" if removals else "seeds"}
    said = []
    for column, word in words.items():
        numbers = sorted({int(n) for n in runs[column].dropna()}) if column in runs else []
        if numbers:
            said.append(f"{numbers[0]} {word}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]} {word}")
    return f"n: {', '.join(said)}." if said else ""


def _in_words(table: pd.DataFrame, statistic: str) -> str:
    """A chart's numbers as a sentence."""
    said = "; ".join(f"{row['label']} {with_interval(row)}" for row in table.head(MOST_WORDS).to_dict("records"))
    more = f"; and {len(table) - MOST_WORDS} more in the table below" if len(table) > MOST_WORDS else ""
    ceilings = table["noise_ceiling"].dropna()
    highest = ""
    if len(ceilings):
        low, high = significant(ceilings.min()), significant(ceilings.max())
        highest = f" Noise ceiling {low}." if low == high else f" Noise ceilings {low} to {high}."
    return f"{statistic}: {said}{more}.{highest}"
