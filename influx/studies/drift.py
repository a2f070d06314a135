"""How much of what retraining from the optimum changes has nothing to do with what is removed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from influx.studies.comparisons import Comparison, Folders, rows_of
from influx.studies.folders import truths


@dataclass(frozen=True)
class Drift(Comparison):
    """Further training moves a model that is not at its optimum, with or without the removed example: every change then holds that drift.

    For each seed, averaged over test examples:

    - `positive_share`: of the removals, those after which the measurement is larger;
    - `one_sign_share`: the larger of that and its complement: 1 when all changes go the same way, about .5 to .6 by chance;
    - `drift`: the change with nothing removed, in the measurement's unit;
    - `drift_over_spread`: |drift| over the standard deviation of the changes over removals: how many times larger than what is to be
      measured. A rank correlation does not see a drift that all removals share; a magnitude, a sign or a slope does.
    """

    arm: str

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm,)

    def rows(self, folders: Folders) -> list[dict[str, Any]]:
        return rows_of({seed: _of_job(folders[self.arm][seed], truth.change) for seed, truth in truths(folders[self.arm]).items()})


def _of_job(folder: Path, change: Float[np.ndarray, "n_removed n_test"]) -> dict[str, float]:
    control = json.loads((folder / "run.json").read_text())["zero_removal_control"]
    positive, spread = (change > 0).mean(0), np.median(change.std(0))
    found = {
        "positive_share": float(positive.mean()),
        "one_sign_share": float(np.maximum(positive, 1 - positive).mean()),
        "drift": float(control["mean_measurement_change"]),
    }
    if spread > 0:
        found["drift_over_spread"] = float(control["median_measurement_change"] / spread)
    return found
