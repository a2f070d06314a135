"""The numbers of a report's page: averages over seeds, and the pairs of predicted and actual changes that its scatter shows."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass

import numpy as np
import pandas as pd

from influx.runs import Run
from influx.sweep_seeds import over_seeds

SEED = 0  # of the random subset of pairs
NUMBERS = ("value", "ci_low", "ci_high", "noise_ceiling", "ceiling_low", "ceiling_high", "corrected", "seconds")


@dataclass(frozen=True)
class Pairs:
    """Predicted and actual change of some (removal, test example) pairs, drawn at random from `total` without replacement.

    Columns of `table`: `predicted`, `actual` (mean over retraining seeds; unit: the measurement's), `actual_se` (its standard error, NaN
    with one seed), `removal` (a training example's position in the data set, or a removal's number), `test_index`.
    """

    table: pd.DataFrame
    total: int
    single: bool  # one training example was left out at a time


def telling(ranked: pd.DataFrame) -> pd.DataFrame:
    """The runs with a value, best first, with those of `attrs["keys"]` that differ among them; all runs where none has a value."""
    known = ranked[ranked["value"].notna()]
    if known.empty:
        return ranked
    keys = [key for key in ranked.attrs["keys"] if known[key].astype(str).nunique() > 1]
    known.attrs = {**ranked.attrs, "keys": keys}
    return known


def averaged(ranked: pd.DataFrame) -> pd.DataFrame:
    """A headline's rows (one a run, as `influx.sweeps.headline` makes them), means where runs differ in nothing but a seed.

    Columns: the keys, `NUMBERS` and, of means, `n_jobs`. `attrs`: the `keys` left, and those that were `repeated`. Intervals of means are
    Student's t over seeds (`influx.sweep_seeds`), those of single runs their own.
    """
    ranked = telling(ranked)
    means = over_seeds(ranked)
    repeated = [] if means is None else means.attrs["repeated"]
    keys = [key for key in ranked.attrs["keys"] if key not in repeated]
    table = ranked[ranked["value"].notna()] if means is None else means
    columns = [*keys, *NUMBERS, *(["n_jobs"] if repeated else [])]
    made = table[columns].reset_index(drop=True)
    made.attrs = {"keys": keys, "repeated": repeated}
    return made


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
