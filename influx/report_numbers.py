"""The numbers of a report's page: averages over seeds, and the pairs of predicted and actual changes that its scatter shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from influx.runs import Run
from influx.statistics import interval_over_seeds

SEED = 0  # of the random subset of pairs
MEANS = {"corrected": "corrected", "seconds": "seconds"}  # averaged without an interval


@dataclass(frozen=True)
class Pairs:
    """Predicted and actual change of some (removal, test example) pairs, drawn at random from `total` without replacement.

    Columns of `table`: `predicted`, `actual` (mean over retraining seeds; unit: the measurement's), `actual_se` (its standard error, NaN
    with one seed), `removal` (a training example's position in the data set, or a removal's number), `test_index`.
    """

    table: pd.DataFrame
    total: int
    single: bool  # one training example was left out at a time


def averaged(ranked: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """A headline's rows (one a run, as `influx.sweeps.headline` makes them) averaged over seeds.

    With `seed` among `keys`, runs that differ in nothing else become one row: mean, `ci_low` and `ci_high` of Student's t over seeds, the
    same for the noise ceiling (its interval cut at 1), `n_runs`. Without it a row is a run, and its intervals are its own bootstrap's.
    Columns: the other keys, `value, ci_low, ci_high, noise_ceiling, ceiling_low, ceiling_high, corrected, seconds, n_runs, jobs`.
    """
    rest = [key for key in keys if key != "seed"]
    done = ranked[ranked["value"].notna()]
    if "seed" not in keys:
        columns = [*rest, "value", "ci_low", "ci_high", "noise_ceiling", "ceiling_low", "ceiling_high", *MEANS]
        return done[columns].assign(n_runs=1, jobs=done["job"].astype(str)).reset_index(drop=True)
    groups = done.groupby([done[key].fillna("").astype(str) for key in rest], sort=False) if rest else [((), done)]
    rows = [_over_seeds(part, rest) for _, part in groups]
    columns = [*rest, "value", "ci_low", "ci_high", "noise_ceiling", "ceiling_low", "ceiling_high", *MEANS, "n_runs", "jobs"]
    return pd.DataFrame(rows, columns=columns).sort_values("value", ascending=False, kind="stable", ignore_index=True)


def _over_seeds(part: pd.DataFrame, rest: Sequence[str]) -> dict[str, object]:
    value, low, high = interval_over_seeds(part["value"].to_numpy(float))
    ceiling, ceiling_low, ceiling_high = interval_over_seeds(part["noise_ceiling"].dropna().to_numpy(float))
    means = {name: part[column].mean() for name, column in MEANS.items()}
    return {
        **{key: part[key].iloc[0] for key in rest},
        "value": value, "ci_low": low, "ci_high": high,
        "noise_ceiling": ceiling, "ceiling_low": ceiling_low, "ceiling_high": min(1.0, ceiling_high) if ceiling_high == ceiling_high else math.nan,
        **means, "n_runs": len(part), "jobs": " ".join(map(str, part["job"])),
    }  # fmt: skip


def pairs(run: Run, most: int) -> Pairs:
    """At most `most` pairs of a run that compared an estimate with a truth.

    Raises:
        InfluxError: the run has no truth, or a file of it is damaged.
    """
    predicted, changes = run.predicted, run.changes
    n_removed, n_test = predicted.shape
    by_seed = changes.to_numpy().reshape(n_removed, -1, n_test)  # [n_removed, n_seeds, n_test]
    actual, seeds = by_seed.mean(1), by_seed.shape[1]
    error = by_seed.std(1, ddof=1) / math.sqrt(seeds) if seeds > 1 else np.full_like(actual, math.nan)
    total = n_removed * n_test
    chosen = np.sort(np.random.default_rng(SEED).choice(total, most, replace=False)) if total > most else np.arange(total)
    row, column = np.divmod(chosen, n_test)
    table = pd.DataFrame(
        {
            "predicted": predicted.to_numpy()[row, column],
            "actual": actual[row, column],
            "actual_se": error[row, column],
            "removal": predicted.index.to_numpy()[row],
            "test_index": predicted.columns.to_numpy()[column],
        }
    )
    return Pairs(table, total, predicted.index.name == "train_index")
