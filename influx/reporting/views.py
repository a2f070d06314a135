"""What a report's page shows of one run: its numbers in words, some of its pairs, its most influential examples, how to repeat it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from influx.errors import InfluxError
from influx.report.tables import significant, verdict
from influx.reporting.examples import Examples, unit_of
from influx.reporting.numbers import Pairs, pairs
from influx.reporting.runs import Reported

ALL_PAIRS, MOST_PAIRS, FEWEST_PAIRS = 24_000, 2_000, 200  # of all runs together; of one run, at most and at least
GALLERY_ROWS, GALLERY_SIDE = 4, 4  # test examples of a run, and training examples on each of their sides
ALL_ROWS = 120  # of the galleries of all runs together
UNITS = {"subset": "removed subset", "group": "removed group"}  # by the first word of a truth's name


@dataclass(frozen=True)
class Room:
    """How much of each run the page has room for."""

    pairs: int
    rows: int

    @classmethod
    def of(cls, n_runs: int) -> Room:
        each = max(1, n_runs)
        return cls(min(MOST_PAIRS, max(FEWEST_PAIRS, ALL_PAIRS // each)), min(GALLERY_ROWS, max(1, ALL_ROWS // each)))


def view(one: Reported, label: str, room: Room, examples: Examples) -> dict[str, Any]:
    """What the page's script draws of a finished run; what its folder does not have is left out, what is damaged is said."""
    table = one.job.table if one.compared else None
    lines = _headline(one) if table is None else _said(table)
    warnings = [str(line) for line in one.record.get("warnings", [])]
    shown: dict[str, Any] = {
        "label": label,
        "said": " ".join(lines[:1]),
        "lines": lines,
        "warnings": warnings,
        "rerun": one.again,
        "words": one.words,
        "unit": "" if table is None else unit_of(one.config),
        "calibrated": table is not None and bool((table["statistic"] == "slope").any()),
        "pairs": None,
        "gallery": [],
        "gallery_note": "",
    }
    try:
        if table is not None:
            shown["pairs"] = _pairs(one, pairs(one.fresh(), room.pairs), examples)
        if "top_influences" in one.run.tables:
            shown |= _gallery(one, one.fresh().table("top_influences"), room.rows, examples)
    except InfluxError as error:
        warnings.append(str(error))
    return shown


def _said(table: pd.DataFrame) -> list[str]:
    """The agreement in plain words."""
    truth = str(table["truth"].iloc[0]) if "truth" in table else ""
    return verdict(table, UNITS.get(truth.partition("_")[0], "removed example"))


def _headline(one: Reported) -> list[str]:
    """What a run says that did something else than compare an estimate with a truth."""
    row = one.run.headline
    if row is None:
        return ["No estimate was compared with a truth."]
    limits = f" [{significant(row['ci_low'])}, {significant(row['ci_high'])}]" if row.get("ci_low", math.nan) == row.get("ci_low") else ""
    return [f"{one.job.headline['label']}: {significant(float(row['value']))}{limits}."]


def _pairs(one: Reported, found: Pairs, examples: Examples) -> dict[str, Any]:
    table = found.table
    train = [examples.number(one, "train", int(index)) if found.single else None for index in table["removal"]]
    test = [examples.number(one, "test", int(index)) for index in table["test_index"]]
    return {
        "total": found.total,
        "single": found.single,
        **{name: [_short(value) for value in table[name]] for name in ("predicted", "actual", "actual_se")},
        "removal": [int(value) for value in table["removal"]],
        "test_index": [int(value) for value in table["test_index"]],
        "train": train,
        "test": test,
    }


def _gallery(one: Reported, table: pd.DataFrame, rows: int, examples: Examples) -> dict[str, Any]:
    """The test examples on which an influence is largest, each with the training examples at both ends."""
    largest = table.groupby("test_index", sort=False)["influence"].agg(lambda values: values.abs().max())
    chosen = largest.sort_values(ascending=False, kind="stable").index[:rows]
    made = []
    for index in chosen:
        own = table[table["test_index"] == index]
        title = str(own["test_label"].iloc[0])
        sides = []
        for kind, part in own.groupby("kind", sort=False):
            items = [_item(row, one, examples) for row in part.sort_values("rank").head(GALLERY_SIDE).to_dict("records")]
            sides.append({"kind": str(kind), "items": items})
        named = title if index < 0 else f"test {index}: {title}"
        made.append({"test": examples.number(one, "test", int(index)), "title": named, "sides": sides[:2]})
    total = table["test_index"].nunique()
    said = f"The {len(chosen)} of {total} test examples" if total > len(chosen) else "The test examples"
    unit = unit_of(one.config)
    change = f"predicted change in {unit}" if unit else "predicted change"
    note = f"{said} on which an influence is largest; below each training example the {change} when it is left out."
    return {"gallery": made, "gallery_note": note}


def _item(row: Mapping[Any, Any], one: Reported, examples: Examples) -> list[Any]:
    """A training example: its number, what it is called without one, its influence."""
    number = examples.number(one, "train", int(row["train_index"]))
    influence = float(row["influence"])
    return [number, f"train {row['train_index']}: {row['train_label']}", f"{'+' * (influence > 0)}{significant(influence)}"]


def _short(value: float) -> float | None:
    """Four significant digits, which is more than a chart shows."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
