"""A published claim, the numbers that decide it, and the verdict.

A claim is about one quantity, or about the same quantity at several points of the grid (`each`), or about several (`values`): its cells.
For each cell the mean over seeds and its 95 % interval (Student's t over seeds) stand against a threshold. A cell is *reproduced* when
its whole interval meets the threshold, *not reproduced* when none of it does, else *inconclusive*: run more seeds. The claim is
reproduced when all its cells are, and not when one is not. Of the cells that share its verdict the one nearest to failing speaks for it.
A cell with fewer results than seeds were asked for is inconclusive.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from influx.errors import InfluxError, nearest
from influx.instantiate import build
from influx.statistics import interval_over_seeds as interval
from influx.studies.quantities import Quantity

REPRODUCED, FAILED, OPEN = "reproduced", "not reproduced", "inconclusive"
KEYS = (
    "claim", "paper", "where", "statement", "paper_value", "at_least", "at_most", "value", "values", "each", "ceiling", "explanation",
)  # fmt: skip
NEEDED = ("claim", "paper", "where", "statement", "paper_value")
LOW_CEILING = 0.5  # of the truth's agreement with itself: below, a comparison says little about an estimator
COLUMNS = [
    "claim", "paper", "where", "statement", "paper_value", "our_value", "ci_low", "ci_high", "verdict",
    "wanted", "cell", "n_seeds", "noise_ceiling", "explanation",
]  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One quantity of a claim, and in words where in the grid it is taken."""

    name: str
    quantity: Quantity


@dataclass(frozen=True)
class Claim:
    """One row of `claims.csv`.

    Args:
        claim: its id.
        paper, where: who claims it, and in which part of the paper (or where else it is from).
        statement: in words.
        paper_value: the paper's figure when it is known for certain, else null.
        at_least, at_most: the threshold, on one side.
        cells: what is compared with it.
        ceiling: the truth's agreement with itself across seeds, shown beside the value, if there is one.
        explanation: shown on the page when the claim is not reproduced.
    """

    claim: str
    paper: str
    where: str
    statement: str
    paper_value: float | str | None
    at_least: float | None
    at_most: float | None
    cells: tuple[Cell, ...]
    ceiling: Quantity | None = None
    explanation: str = ""

    @classmethod
    def read(cls, where: str, node: Mapping[str, Any]) -> Claim:
        """
        Raises:
            InfluxError: a key is unknown or missing, or there is not one threshold.
        """
        name = f"{where}.{node.get('claim', '?')}"
        check_keys(name, node, KEYS, NEEDED)
        if (node.get("at_least") is None) == (node.get("at_most") is None):
            raise InfluxError(f"{name} needs one threshold: at_least or at_most.")
        ceiling = build(node["ceiling"], Quantity, f"{name}.ceiling") if node.get("ceiling") else None
        return cls(
            node["claim"], node["paper"], node["where"], node["statement"], node["paper_value"], node.get("at_least"), node.get("at_most"),
            _cells(name, node), ceiling, node.get("explanation") or "",
        )  # fmt: skip

    @property
    def arms(self) -> tuple[str, ...]:
        ceiling = () if self.ceiling is None else self.ceiling.arms
        return (*(arm for cell in self.cells for arm in cell.quantity.arms), *ceiling)

    @property
    def wanted(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"

    def judge(self, results: pd.DataFrame, seeds: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The claim's row of `claims.csv`, and a row for each of its cells, which must have as many `seeds` for a verdict: whose result is
        missing or undefined could be those that speak against it."""
        cells = [self._judge(cell, results, seeds) for cell in self.cells]
        verdicts = {row["verdict"] for row in cells}
        verdict = FAILED if FAILED in verdicts else REPRODUCED if verdicts == {REPRODUCED} else OPEN
        deciding = [row for row in cells if row["verdict"] == verdict]
        worst = min(deciding, key=lambda row: (row["n_seeds"], row["margin"]) if verdict == OPEN else (0, row["margin"]))
        ceiling = math.nan if self.ceiling is None else float(self.ceiling.per_seed(results).mean())
        row = {key: getattr(self, key) for key in NEEDED} | {
            **{key: worst[key] for key in ("our_value", "ci_low", "ci_high", "cell", "n_seeds")},
            "verdict": verdict, "wanted": self.wanted, "noise_ceiling": ceiling, "explanation": self._said(worst, seeds, ceiling),
        }  # fmt: skip
        return {key: row[key] for key in COLUMNS}, [{"claim": self.claim, **row} for row in cells]

    def _said(self, worst: Mapping[str, Any], seeds: int, ceiling: float) -> str:
        verdict, n = worst["verdict"], worst["n_seeds"]
        said = [f"At quick scale: {self.explanation}"] if self.explanation and verdict != REPRODUCED else []
        if n < seeds:
            said.append(f"Only {n} of {seeds} seeds have a result, so there is no verdict.")
        elif verdict == OPEN and n < 2:
            said.append("One seed has no interval: use more (seeds=10).")
        elif verdict == OPEN:
            said.append(f"Its interval holds the threshold: more seeds would tell (seeds={2 * n}).")
        if ceiling < LOW_CEILING:
            said.append(
                f"The truth agrees with itself across seeds by {ceiling:.2f} only: no estimate can be expected to reach more, and a low "
                "correlation is the truth's noise as well as the estimator's."
            )
        return " ".join(part.strip() for part in said if part)

    def _judge(self, cell: Cell, results: pd.DataFrame, seeds: int) -> dict[str, Any]:
        values = cell.quantity.per_seed(results).to_numpy(float)
        mean, low, high = interval(values)
        sign, threshold = (1, self.at_least) if self.at_least is not None else (-1, self.at_most)
        assert threshold is not None
        near, far = (low, high) if sign > 0 else (high, low)
        verdict = OPEN
        if not math.isnan(near) and len(values) >= seeds:
            verdict = REPRODUCED if sign * (near - threshold) >= 0 else FAILED if sign * (far - threshold) < 0 else OPEN
        return {
            "cell": cell.name, "our_value": mean, "ci_low": low, "ci_high": high, "n_seeds": len(values), "verdict": verdict,
            "margin": sign * (mean - threshold),
        }  # fmt: skip


def check_keys(where: str, node: Mapping[str, Any], known: Sequence[str], needed: Sequence[str]) -> None:
    """Raise `InfluxError` for a key that is not known, or one that is needed and missing."""
    for key in node:
        if key not in known:
            raise InfluxError(f"{where} has a key '{key}'; there are {', '.join(known)}.{nearest(key, known)}")
    missing = [key for key in needed if key not in node]
    if missing:
        raise InfluxError(f"{where} needs {', '.join(missing)}.")


def _cells(name: str, node: Mapping[str, Any]) -> tuple[Cell, ...]:
    if ("value" in node) == ("values" in node):
        raise InfluxError(f"{name} needs value (one quantity) or values (a name and a quantity for each).")
    named = node["values"] if "values" in node else {"": node["value"]}
    each = node.get("each") or {}
    made = []
    for levels in itertools.product(*each.values()):
        at = dict(zip(each, levels, strict=True))
        said = ", ".join(f"{axis}={level}" for axis, level in at.items())
        for label, quantity in named.items():
            built = build(_placed(quantity, at), Quantity, f"{name}.value")
            made.append(Cell(", ".join(part for part in (label, said) if part), built))
    return tuple(made)


def _placed(node: Any, at: Mapping[str, Any]) -> Any:
    """The quantity's node with `at` added to every part that names an arm; what it says itself wins."""
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [_placed(part, at) for part in node]
    if not isinstance(node, Mapping):
        return copy.copy(node)
    made = {key: _placed(value, at) for key, value in node.items() if key != "at"}
    if "arm" in node or "at" in node:
        made["at"] = {**at, **(node.get("at") or {})}
    return made
