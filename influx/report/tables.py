"""Tables of numbers for people: Markdown, the terminal, and what the numbers say in plain words."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from rich.table import Table

from influx.statistics import seeds_needed

FEW = 10  # removed examples; a bootstrap of fewer is too narrow
NOISELESS = 0.995  # a ceiling from which the truth's noise is not worth a word
MOSTLY_NOISE = 0.5  # a ceiling below this makes a comparison nearly meaningless
USEFUL = 0.8  # the ceiling that the advice on seeds aims at


def significant(number: float) -> str:
    """Three significant digits, `0.340`, `1230`, `-2.50e-07`; empty for NaN."""
    if math.isnan(number):
        return ""
    if 1e3 <= abs(float(f"{number:.3g}")) < 1e6:
        return f"{float(f'{number:.3g}'):.0f}"
    return f"{number:#.3g}".rstrip(".")


def to_markdown(table: pd.DataFrame) -> str:
    """A GitHub table, numbers to three significant digits and right-aligned, nothing in place of NaN; ends with a newline."""
    numeric = [pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype) for dtype in table.dtypes]
    rows = [
        [_cell(name) for name in table.columns],
        ["---:" if right else "---" for right in numeric],
        *([_cell(value) for value in row] for row in table.itertuples(index=False)),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def correlation_lines(table: pd.DataFrame) -> Table:
    """The terminal's view of a `compare` table: statistic, value, 95 % interval, noise ceiling."""
    lines = Table(caption=_sizes(table), caption_justify="left")
    lines.add_column("statistic")
    for heading in ("value", "95 % interval", "noise ceiling"):
        lines.add_column(heading, justify="right")
    for row in table.itertuples():
        lines.add_row(str(row.statistic).replace("_", " "), significant(row.value), interval(row), significant(row.noise_ceiling))
    return lines


def interval(row: Any) -> str:
    """`[0.280, 0.400]` from a `compare` row; empty when there is no interval."""
    return "" if math.isnan(row.ci_low) else f"[{significant(row.ci_low)}, {significant(row.ci_high)}]"


def verdict(table: pd.DataFrame) -> list[str]:
    """What a `compare` table says, one sentence or two a line: agreement against its ceiling, scale, and every caveat there is."""
    rows = {row.statistic: row for row in table.itertuples()}
    headline = rows["spearman"]
    lines = [_headline(headline)]
    if "slope" in rows and not math.isnan(rows["slope"].value):
        scale = rows["slope"]
        lines.append(f"Slope {_with_interval(scale)}: actual changes are that multiple of the predicted ones (1 is the right scale).")
    return lines + [line for line in (_about_noise(headline), _about_interval(headline), _about_undefined(headline)) if line]


def _headline(row: Any) -> str:
    if math.isnan(row.value):
        return "Spearman is undefined: for every test example the estimate or the truth is the same whatever is removed."
    said = f"Spearman {_with_interval(row)}"
    if math.isnan(row.noise_ceiling):
        return f"{said}."
    ceiling, seeds = significant(row.noise_ceiling), _count(row.n_seeds, "seed")
    if row.noise_ceiling >= NOISELESS:
        return f"{said}; the truth is the same for all {seeds}, so the whole distance to 1 is the estimate's."
    return f"{said}; no estimate that is blind to the seeds' noise can be expected to pass {ceiling} ({seeds})."


def _about_noise(row: Any) -> str:
    if row.n_seeds == 1:
        return "With one seed the truth's noise is unknown: retraining.seeds=4 measures it."
    if math.isnan(row.noise_ceiling):
        return "The truth's noise is unknown: its changes are the same whatever is removed."
    if row.noise_ceiling >= MOSTLY_NOISE:
        return ""
    needed = seeds_needed(row.noise_ceiling, row.n_seeds, USEFUL)
    advice = "Its seeds do not agree."
    if math.isfinite(needed):
        advice = f"About retraining.seeds={needed:.0f} would lift the ceiling to {USEFUL:g}."
    return f"The truth is mostly noise: a low correlation says little about the estimator. {advice}"


def _about_interval(row: Any) -> str:
    if row.n_removed < 3:
        return f"No interval: {_count(row.n_removed, 'removed example')} cannot show how much the correlation varies."
    if row.n_removed < FEW:
        return f"{row.n_removed} removed examples are too few for the interval to be trusted: raise retraining.removed."
    if row.ci_low <= 0 <= row.ci_high:
        return "The interval holds 0: these removals do not tell the estimate from an unrelated one."
    return ""


def _about_undefined(row: Any) -> str:
    if row.n_undefined in (0, row.n_test):
        return ""
    return (
        f"{row.n_undefined} of {_count(row.n_test, 'test example')} left out of the mean: "
        "the estimate or the truth is the same whatever is removed, so there is no correlation."
    )


def _with_interval(row: Any) -> str:
    return f"{significant(row.value)} {interval(row)}".rstrip()


def _sizes(table: pd.DataFrame) -> str:
    row = table.iloc[0]
    return f"{row.n_removed} removed, {_count(row.n_test, 'test example')}, {_count(row.n_seeds, 'seed')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return significant(value)
    return "" if value is None or value is pd.NA else str(value).replace("|", "\\|").replace("\n", " ")
