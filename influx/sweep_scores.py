"""Sweeps of a task: every job's own method and, once, the baselines that each job computes beside it, as one ranking and one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from influx.report.cleansing import save_cleansing_ranking
from influx.report.detection import save_detection

OPPOSITE = "best"  # what a method would remove last: no rival of other methods


@dataclass(frozen=True)
class Scores:
    """One job's table of scores x statistics, its curves, its method, and what tells it from jobs with other baselines (`place`)."""

    method: str
    place: tuple[str, ...]
    table: pd.DataFrame
    curve: pd.DataFrame | None


def is_of_method(key: str) -> bool:
    """Whether baselines are the same whatever this setting is."""
    return key.partition(".")[0] == "method"


def once(jobs: Sequence[Scores]) -> list[tuple[str, ...]]:
    """For each job the scores that stand for it: its method's, and the baselines that no job of the same place has stood for yet or has as
    its method."""
    methods = {(job.place, job.method) for job in jobs}
    seen: set[tuple[tuple[str, ...], str]] = set()
    made = []
    for job in jobs:
        others = [score for score in job.table["score"].drop_duplicates() if score not in (job.method, OPPOSITE)]
        new = [score for score in others if (job.place, score) not in methods | seen]
        seen |= {(job.place, score) for score in new}
        made.append((job.method, *new))
    return made


def rows(job: Scores, scores: Sequence[str], choices: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of `summary.csv` for those scores, a baseline in the place of a method."""
    kept = job.table[job.table["score"].isin(scores)]
    kept = kept.assign(method=kept["score"], baseline=kept["score"] != job.method)
    return kept.assign(measurement=choices["measurement"]) if "measurement" in choices else kept


def draw(jobs: Sequence[tuple[Scores, Sequence[str], str]], ranked: pd.DataFrame, path: Path, title: str) -> bool:
    """Curves of all scores beside their ranking, when there are curves: `jobs` are (job, its scores, its method's label), `ranked` has
    `label, value, ci_low, ci_high`. Returns whether something was drawn."""
    parts = []
    for job, scores, label in jobs:
        if job.curve is None:
            return False
        part = job.curve[job.curve["score"].isin(scores)]
        parts.append(part.assign(score=part["score"].where(part["score"] != job.method, label)))
    curves = pd.concat(parts, ignore_index=True)
    ranked = ranked.assign(score=ranked["label"])
    about = f"{int(ranked['n_seeds'].max())} seeds"
    if "found" in curves:
        first = jobs[0][0].table
        share = float(first.loc[first["statistic"] == "average_precision", "chance"].iloc[0])
        table = ranked.assign(statistic="roc_auc")
        save_detection(curves, table, path, method=str(ranked["score"].iloc[0]), share=share, title=title, about=about)
        return True
    save_cleansing_ranking(curves.assign(kind="accuracy", value=curves["accuracy"]), ranked, path, title=title, about=about)
    return True
