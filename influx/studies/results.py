"""From the run folders of a study's jobs to one long table: a row an arm x grid point x seed x statistic."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from influx.statistics import interval_over_seeds
from influx.studies.study import Job, Study

FIRST, LAST = ["arm"], ["seed", "statistic", "value", "ci_low", "ci_high", "noise_ceiling", "n_removed", "n_test"]


def collect(study: Study, jobs: Sequence[Job], folder: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """The results of the jobs in `folder` that finished, comparisons included, and why the others did not (place -> reason)."""
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    finished: list[Job] = []
    for job in jobs:
        status = state(folder / job.place)
        if status != "finished":
            failed[job.place] = status
            continue
        finished.append(job)
        if not job.together:
            rows += [{"arm": job.arm, **_levels(job.point), "seed": job.seed, **row} for row in _of_job(folder / job.place)]
    rows += _compared(study, finished, folder)
    axes = list(dict.fromkeys(axis for job in jobs for axis in job.point))
    table = pd.DataFrame(rows)
    return table.reindex(columns=[*FIRST, *axes, *LAST]), failed


def state(folder: Path) -> str:
    """How the run in a folder ended, in one line."""
    try:
        said = str(json.loads((folder / "run.json").read_text())["status"])
    except (OSError, ValueError, KeyError):
        return "failed: it has not run"
    return "failed: it was stopped" if said == "running" else said.strip().splitlines()[0]


def _of_job(folder: Path) -> list[dict[str, Any]]:
    """Its table of statistics, if it has one, then the facts that its estimator and its truth noted.

    What a task says of another score than the method's own goes by the name `<score>: <statistic>`.
    """
    record = json.loads((folder / "run.json").read_text())
    rows: list[dict[str, Any]] = []
    if record.get("table"):
        table = pd.read_csv(folder / record["table"])
        if "score" in table:
            other = table["score"] != record["choices"]["method"]
            table.loc[other, "statistic"] = table["score"] + ": " + table["statistic"]
        rows += table[[name for name in LAST[1:] if name in table]].to_dict("records")  # type: ignore[arg-type]
    noted: dict[str, Any] = {**record.get("facts", {}), **record.get("zero_removal_control", {})}
    rows += [{"statistic": name, "value": float(value)} for name, value in noted.items() if _is_number(value)]
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _levels(point: Mapping[str, Any]) -> dict[str, str]:
    """As text: a column that some arms lack would turn whole numbers into others."""
    return {axis: str(level) for axis, level in point.items()}


def _compared(study: Study, finished: Sequence[Job], folder: Path) -> list[dict[str, Any]]:
    rows = []
    for name, comparison in study.compare.items():
        points = {tuple(job.point.items()): job.point for job in finished if job.arm == comparison.arms[0]}
        for point in points.values():
            here = {
                arm: {seed: folder / job.place for job in finished if job.arm == arm and job.point == point for seed in job.seeds}
                for arm in comparison.arms
            }
            if all(here.values()):
                rows += [{"arm": name, **_levels(point), **row} for row in comparison.rows(here)]
    return rows


def over_seeds(results: pd.DataFrame) -> pd.DataFrame:
    """A row an arm x grid point x statistic: `mean`, `low`, `high` (95 %, Student's t over seeds), `magnitude` (mean of |value|), `n`."""
    known = results.dropna(subset=["value"])
    by = [name for name in results if name not in LAST or name == "statistic"]
    rows = []
    for key, values in known.groupby(by, sort=False, dropna=False)["value"]:
        mean, low, high = interval_over_seeds(values.to_numpy())
        found = {"mean": mean, "low": low, "high": high, "magnitude": values.abs().mean(), "n": len(values)}
        rows.append({**dict(zip(by, key, strict=True)), **found})
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "magnitude", "n"])
