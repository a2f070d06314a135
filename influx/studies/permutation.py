"""What a correlation is worth: its values when the scores are dealt to the removed examples at random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from influx.seeding import numpy_generator
from influx.statistics import per_test_correlation
from influx.studies.comparisons import Comparison, Folders

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
        made = []
        for seed, folder in folders[self.arm].items():
            rows, predicted, actual = scored(folder)
            rng = numpy_generator(seed, "permuted scores", *rows)  # jobs that remove other examples are permuted otherwise
            orders = [rng.permutation(len(predicted)) for _ in range(self.times)]
            values = np.stack([per_test_correlation(predicted[order], actual, "spearman") for order in orders])  # [times, n_test]
            if not np.isfinite(values).all():
                continue
            low, high = np.percentile(values, CENTRAL)
            found = {"spearman": values[0].mean(), "spearman_magnitude": np.abs(values).mean(), "null_low": low, "null_high": high}
            made += [{"seed": seed, "statistic": name, "value": float(value)} for name, value in found.items()]
        return made


def scored(folder: Path) -> tuple[list[int], Float[np.ndarray, "n_removed n_test"], Float[np.ndarray, "n_removed n_test"]]:
    """A run folder's removed examples (or how many in each set), its predicted changes, and the actual ones averaged over its own seeds."""
    with np.load(folder / "influence.npz", allow_pickle=False) as held:
        influence, train_index = held["influence"], held["train_index"]
    with np.load(folder / "ground_truth.npz", allow_pickle=False) as held:
        actual = held["change"].mean(2)
        if "removed" in held:  # sets of several
            return held["removed"].sum(1).tolist(), held["removed"] @ influence, actual
        rows = held["train_index"].tolist()
        at = {row: position for position, row in enumerate(train_index.tolist())}
        return rows, influence[[at[row] for row in rows]], actual
