"""One job's estimate against another job's truth, where both left out the same examples of the same trained model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from influx.errors import InfluxError
from influx.statistics import per_test_correlation
from influx.studies.comparisons import KINDS, Comparison, Folders


@dataclass(frozen=True)
class Crossed(Comparison):
    """The estimate of one arm against the truth of another, as a job that has both would report it: mean over test examples.

    It saves the job only: nothing is estimated or retrained again. Both must train the same model and select removed examples in a way
    that does not look at the estimate, for instance by training loss.
    """

    estimate: str
    truth: str

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.estimate, self.truth)

    def rows(self, folders: Folders) -> list[dict[str, Any]]:
        both = sorted(set(folders[self.estimate]) & set(folders[self.truth]))
        made = []
        for seed in both:
            found = correlation(folders[self.estimate][seed], folders[self.truth][seed])
            made += [{"seed": seed, "statistic": kind, "value": value} for kind, value in found.items()]
        return made


def correlation(estimate: Path, truth: Path) -> dict[str, float]:
    """Pearson and Spearman of a run folder's influences with another's retraining, each test example apart, then averaged.

    Raises:
        InfluxError: examples were left out together there, or one that this estimate has not scored.
    """
    with np.load(truth / "ground_truth.npz", allow_pickle=False) as held:
        if "removed" in held:
            raise InfluxError(f"{truth} left out several examples at a time: only a truth=loo or pbrf can be crossed with an estimate.")
        rows, tests, change = held["train_index"], held["test_index"], held["change"].mean(2)
    with np.load(estimate / "influence.npz", allow_pickle=False) as held:
        known, columns, influence = held["train_index"], held["test_index"], held["influence"]
    if not np.isin(rows, known).all() or not np.array_equal(tests, columns):
        raise InfluxError(f"{estimate} and {truth} are not about the same data: an estimate is crossed with a truth of the same split.")
    order = np.argsort(known)
    predicted = influence[order[np.searchsorted(known, rows, sorter=order)]].astype(np.float64)
    found = {kind: per_test_correlation(predicted, change, kind) for kind in KINDS}
    return {kind: float(np.nanmean(each)) if np.isfinite(each).any() else float("nan") for kind, each in found.items()}
