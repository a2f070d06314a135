"""What a correlation is worth: its values when the scores are dealt to the removed examples at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from influx.seeding import numpy_generator
from influx.statistics import per_test_correlation
from influx.studies.comparisons import Comparison, Folders, rows_of
from influx.studies.folders import Scores, truths

CENTRAL = (2.5, 97.5)  # per cent: the limits of what chance gives in 19 of 20 cases


@dataclass(frozen=True)
class PermutationNull(Comparison):
    """A job's own scores and truth, with the scores permuted over its removed examples: what no information at all correlates like.

    For each seed, over `times` permutations and averaged over test examples: `spearman` of the first permutation alone (one draw of
    chance, as a job with misaligned scores would be), `spearman_magnitude` (the mean of |ρ|, about .13 for 40 removed examples), and
    `null_low`, `null_high`, between which 95 % of the ρ lie.

    Cost: `times` rank correlations a job.
    """

    arm: str
    times: int = 200

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm,)

    def rows(self, folders: Folders) -> list[dict[str, Any]]:
        made: dict[int, dict[str, float]] = {}
        for seed, truth in truths(folders[self.arm]).items():
            folder = folders[self.arm][seed]
            predicted, actual = Scores.read(folder).predicted(truth, folder), truth.change
            rng = numpy_generator(
                seed, "permuted scores", *truth.removals.tolist()
            )  # jobs that remove other examples are permuted otherwise
            orders = [rng.permutation(len(predicted)) for _ in range(self.times)]
            values = np.stack([per_test_correlation(predicted[order], actual, "spearman") for order in orders])  # [times, n_test]
            if not np.isfinite(values).all():
                continue
            low, high = np.percentile(values, CENTRAL)
            found = {"spearman": values[0].mean(), "spearman_magnitude": np.abs(values).mean(), "null_low": low, "null_high": high}
            made[seed] = found
        return rows_of(made)
