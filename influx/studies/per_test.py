"""How an estimate's agreement with a truth is spread over test examples: by class, and how many are above a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from influx.statistics import per_test_correlation
from influx.studies.comparisons import Comparison, Folders, rows_of
from influx.studies.folders import Changes, Scores, truths


@dataclass(frozen=True)
class PerTestAgreement(Comparison):
    """Each test example's correlation over removals, of one arm's estimate with another arm's truth (or its own), in a few numbers:

    - `mean`, `spread`: over test examples, the spread their standard deviation (divisor n);
    - `mean: <class>`, `spread: <class>`: over the test examples of a class, as Silva et al. (2022) report clusters;
    - `at least <x>`: share of test examples whose correlation reaches x; one without a correlation does not.

    Args:
        estimate, truth: the arms; both must be about the same data, see `EstimateAgreement`.
        kind: "pearson", "spearman" or "kendall".
        thresholds: the x of the shares.
    """

    estimate: str
    truth: str
    kind: str = "pearson"
    thresholds: Sequence[float] = (0.6, 0.8)

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.estimate, self.truth)

    def rows(self, folders: Folders) -> list[dict[str, Any]]:
        both = self.seeds(folders)
        known = truths(folders[self.truth], both)
        return rows_of({seed: self._of_seed(folders[self.estimate][seed], known[seed]) for seed in both})

    def _of_seed(self, folder: Path, truth: Changes) -> dict[str, float]:
        scores = Scores.read(folder)
        here = np.isin(truth.tests, scores.tests)
        found = per_test_correlation(scores.predicted(truth, folder), truth.change[:, here], self.kind)
        made = {f"at least {x:g}": float((found >= x).mean()) for x in self.thresholds} | _moments(found, "")
        names = classes(folder, truth.tests[here])
        for name in np.unique(names[names != ""]):
            made |= _moments(found[names == name], f": {name}")
        return made


def _moments(values: Float[np.ndarray, " n"], of: str) -> dict[str, float]:
    defined = values[np.isfinite(values)]
    return {f"mean{of}": float(defined.mean()), f"spread{of}": float(defined.std())} if len(defined) else {}


def classes(folder: Path, tests: np.ndarray) -> np.ndarray:
    """The class names of these test examples, as the run's list of influences has them; "" for those that are not in it."""
    listed = folder / "top_influences.csv"
    if not listed.exists():
        return np.full(len(tests), "")
    known = pd.read_csv(listed, dtype={"test_label": str}).drop_duplicates("test_index").set_index("test_index")["test_label"]
    return known.reindex(tests).fillna("").to_numpy(dtype=str)
