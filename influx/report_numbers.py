"""The numbers of a report's page: averages over seeds, and the pairs of predicted and actual changes that its scatter shows."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from influx.runs import Run
from influx.statistics import interval_over_seeds

SEED = 0  # of the random subset of pairs
MEANS = ("corrected", "seconds")  # averaged without an interval
OVER_SEEDS, BOOTSTRAP = "t over seeds", "bootstrap"  # what an interval is of


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
    same for the noise ceiling (its interval cut at 1), `n_runs`. Otherwise a row is a run, and its intervals are its own bootstrap's.
    Columns: the other keys, `value, ci_low, ci_high, noise_ceiling, ceiling_low, ceiling_high, corrected, seconds, interval, n_runs, jobs`;
    `interval` says what the interval is of.
    """
    rest = [key for key in keys if key != "seed"]
    done = ranked[ranked["value"].notna()]
    if "seed" not in keys:
        columns = [*rest, "value", "ci_low", "ci_high", "noise_ceiling", "ceiling_low", "ceiling_high", *MEANS]
        kind = done["ci_low"].notna().map({True: BOOTSTRAP, False: ""})
        return done[columns].assign(interval=kind, n_runs=1, jobs=done["job"].astype(str)).reset_index(drop=True)
    groups = done.groupby([done[key].fillna("").astype(str) for key in rest], sort=False) if rest else [((), done)]
    rows = [_over_seeds(part, rest) for _, part in groups]
    columns = [*rest, "value", "ci_low", "ci_high", "noise_ceiling", "ceiling_low", "ceiling_high", *MEANS, "interval", "n_runs", "jobs"]
    return pd.DataFrame(rows, columns=columns).sort_values("value", ascending=False, kind="stable", ignore_index=True)


def _over_seeds(part: pd.DataFrame, rest: Sequence[str]) -> dict[str, object]:
    """A row: means over seeds with their intervals; of a single run its own numbers."""
    same = {key: part[key].iloc[0] for key in rest}
    counted = {"n_runs": len(part), "jobs": " ".join(map(str, part["job"]))}
    if len(part) == 1:
        own = part[["value", "ci_low", "ci_high", "noise_ceiling", "ceiling_low", "ceiling_high", *MEANS]].iloc[0].to_dict()
        return {**same, **own, "interval": "" if math.isnan(own["ci_low"]) else BOOTSTRAP, **counted}
    value, low, high = interval_over_seeds(part["value"].to_numpy(float))
    ceiling, ceiling_low, ceiling_high = interval_over_seeds(part["noise_ceiling"].dropna().to_numpy(float))
    return {
        **same,
        **{"value": value, "ci_low": low, "ci_high": high},
        **{"noise_ceiling": ceiling, "ceiling_low": ceiling_low, "ceiling_high": float(np.minimum(1.0, ceiling_high))},
        **{name: part[name].mean() for name in MEANS},
        **{"interval": OVER_SEEDS, **counted},
    }


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


def train_size(run: Run) -> int | None:
    """Training examples that a run's estimate is about; None where there is no estimate, or it cannot be read (what needs it says so)."""
    try:
        with np.load(run.path / "influence.npz", allow_pickle=False) as found:
            return len(found["train_index"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
