"""Tables of numbers for people: Markdown, the terminal, and what the numbers say in plain words."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from rich.table import Table

from influx.reliability import seeds_needed

FEW = 20  # removed examples; a bootstrap of fewer is too narrow
NOISELESS = 0.995  # a ceiling from which the truth's noise is not worth a word
MOSTLY_NOISE = 0.5  # a ceiling below this makes a comparison nearly meaningless
USEFUL = 0.8  # the ceiling that the advice on seeds aims at
WIDE = 0.1  # from this width on a ceiling's interval is worth a word
DIFFERENT = 0.05  # between the expected and this model's correlation, from which both are worth a word

MORE = {
    "removed example": "raise retraining.removed",
    "removed subset": "raise retraining.subsets",
    "removed group": "leave out more of them",
}


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


def correlation_lines(table: pd.DataFrame, unit: str = "removed example") -> Table:
    """The terminal's view of a `compare` table: value and noise ceiling with their 95 % intervals, value corrected by the ceiling."""
    lines = Table(caption=_sizes(table, unit), caption_justify="left")
    lines.add_column("statistic")
    for heading in ("value", "95 % interval", "noise ceiling", "corrected"):
        lines.add_column(heading, justify="right")
    for row in table.itertuples():
        numbers = significant(row.value), interval(row), _with_interval(row, "ceiling"), significant(row.corrected)
        lines.add_row(str(row.statistic).replace("_", " "), *numbers)
    return lines


def interval(row: Any, of: str = "ci") -> str:
    """`[0.280, 0.400]` from a `compare` row, for its value (`ci`), its `ceiling` or `corrected`; empty when there is no interval."""
    low, high = getattr(row, f"{of}_low"), getattr(row, f"{of}_high")
    return "" if math.isnan(low) else f"[{significant(low)}, {significant(high)}]"


def claim_lines(table: pd.DataFrame, title: str) -> Table:
    """The terminal's view of a study's claims."""
    lines = Table(title=title, title_justify="left")
    for heading in ("claim", "statement"):
        lines.add_column(heading, no_wrap=heading == "claim")
    for heading in ("wanted", "here", "95 % interval", "seeds"):
        lines.add_column(heading, justify="right", no_wrap=True)
    lines.add_column("verdict")
    for row in table.itertuples():
        said = f"{row.statement} ({row.cell})" if row.cell else str(row.statement)
        numbers = str(row.wanted), significant(row.our_value), interval(row), str(row.n_seeds)
        lines.add_row(str(row.claim), said, *numbers, str(row.verdict))
    return lines


def verdict(table: pd.DataFrame, unit: str = "removed example") -> list[str]:
    """What a `compare` table says, one sentence or two a line: agreement against its ceiling, scale, and every caveat there is.

    `unit` is what was removed at a time: a removed example, removed subset, removed group.
    """
    rows = {row.statistic: row for row in table.itertuples()}
    headline = rows["spearman"]
    name = "Linear datamodelling score (LDS: Spearman over subsets)" if unit == "removed subset" else "Spearman"
    lines = [_headline(headline, name), _about_correction(headline), _about_this_model(headline)]
    if "slope" in rows and not math.isnan(rows["slope"].value):
        scale = rows["slope"]
        right = "1 is the right scale" if unit == "removed example" else "1 is the right scale, to first order in what is removed"
        lines.append(f"Slope {_with_interval(scale)}: actual changes are that multiple of the predicted ones ({right}).")
    lines += [_about_noise(headline), _about_interval(headline, unit), _about_undefined(headline)]
    return [line for line in lines if line]


def _headline(row: Any, name: str) -> str:
    if row.n_removed == 1:
        return f"{name} is undefined for a single removal."
    if math.isnan(row.value):
        return "Spearman is undefined: for every test example the estimate or the truth is the same whatever is removed."
    said = f"{name} {_with_interval(row)}"
    if math.isnan(row.noise_ceiling):
        return f"{said}."
    ceiling, seeds = significant(row.noise_ceiling), _count(row.n_seeds, "seed")
    if row.noise_ceiling >= NOISELESS:
        return f"{said}; the truth is the same for all {seeds}, so the whole distance to 1 is the estimate's."
    if row.ceiling_high - row.ceiling_low >= WIDE:
        seeds += f"; 95 % interval {interval(row, 'ceiling')}"
    return f"{said}; no estimate that is blind to the seeds' noise can be expected to pass {ceiling} ({seeds})."


def _about_correction(row: Any) -> str:
    if math.isnan(row.corrected) or not MOSTLY_NOISE <= row.noise_ceiling < NOISELESS:
        return ""
    return f"Corrected for that noise (divided by its ceiling) it is {_with_interval(row, 'corrected')}."


def _about_this_model(row: Any) -> str:
    difference = row.this_model - row.value
    if not abs(difference) >= DIFFERENT:  # nor when it is not known
        return ""
    said = f"Against this model's own retraining (same start and batch order) it is {significant(row.this_model)}"
    if difference > 0:
        return f"{said}: the estimate predicts this one run better than the mean over seeds."
    return f"{said}: one seed is a noisier truth than the mean of {row.n_seeds}."


def _about_noise(row: Any) -> str:
    if row.n_seeds == 1:
        return "With one seed the truth's noise is unknown: retraining.seeds=4 measures it."
    if row.n_removed == 1:
        return ""
    if math.isnan(row.noise_ceiling):
        return "The truth's noise is unknown: its changes are the same whatever is removed."
    if row.noise_ceiling >= MOSTLY_NOISE:
        return ""
    needed = seeds_needed(row.noise_ceiling, row.n_seeds, USEFUL)
    advice = "Its seeds do not agree."
    if math.isfinite(needed):
        advice = f"About retraining.seeds={needed:.0f} would lift the ceiling to {USEFUL:g}."
    ceiling = _with_interval(row, "ceiling")
    return f"The truth is mostly noise (ceiling {ceiling}): a low correlation says little about the estimator. {advice}"


def _about_interval(row: Any, unit: str) -> str:
    if row.n_removed < 3:
        return f"No interval: {_count(row.n_removed, unit)} cannot show how much the correlation varies."
    if row.n_removed < FEW:
        return f"{_count(row.n_removed, unit)} are too few for the interval to be trusted: {MORE[unit]}."
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


def _with_interval(row: Any, of: str = "ci") -> str:
    number = {"ci": row.value, "ceiling": row.noise_ceiling, "corrected": row.corrected}[of]
    return f"{significant(number)} {interval(row, of)}".strip()


def _sizes(table: pd.DataFrame, unit: str) -> str:
    row = table.iloc[0]
    return f"{_count(row.n_removed, unit)}, {_count(row.n_test, 'test example')}, {_count(row.n_seeds, 'seed')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return significant(value)
    return "" if value is None or value is pd.NA else str(value).replace("|", "\\|").replace("\n", " ")
