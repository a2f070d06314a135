"""Jobs that differ in a seed alone are one row: SciPy says which interval."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from conftest import TINY, call
from matplotlib.figure import Figure

from influx import sweeps
from influx.report.heat_grid import draw_grid
from influx.statistics import interval_over_crossed, interval_over_seeds
from influx.sweep_seeds import left_out, over_seeds, shared_seeds


def ranked(**columns: list[object]) -> pd.DataFrame:
    table = pd.DataFrame({"noise_ceiling": np.nan, "corrected": np.nan, "seconds": 1.0, "status": "finished", **columns})
    table.insert(0, "job", range(len(table)))
    table.attrs = {"keys": [name for name in ("method", "seed", "training.lr") if name in table], "headline": sweeps.SPEARMAN}
    return table


def test_means_and_t_intervals_over_seeds() -> None:
    values = [0.1, 0.4, 0.3, -0.2, -0.1, -0.6]
    made = over_seeds(ranked(method=["a"] * 3 + ["b"] * 3, seed=[0, 1, 2] * 2, value=values))
    assert made is not None
    assert list(made["method"]) == ["a", "b"]
    for row, part in zip(made.itertuples(), (values[:3], values[3:]), strict=True):
        low, high = scipy.stats.t.interval(0.95, 2, loc=np.mean(part), scale=scipy.stats.sem(part))
        assert (row.value, row.ci_low, row.ci_high) == pytest.approx((np.mean(part), low, high), rel=1e-12)  # the same formula
        assert row.n_jobs == 3
    assert made.attrs["keys"] == ["method"]
    assert made.attrs["repeated"] == ["seed"]


def test_jobs_that_failed_are_not_in_the_mean() -> None:
    made = over_seeds(ranked(method=["a"] * 3, seed=[0, 1, 2], value=[0.1, 0.3, np.nan]))
    assert made is not None
    assert (made.loc[0, "value"], made.loc[0, "n_jobs"]) == (pytest.approx(0.2), 2)


def test_nothing_repeated_is_no_mean() -> None:
    assert over_seeds(ranked(method=["a", "b"], value=[0.1, 0.2])) is None
    assert over_seeds(ranked(method=["a", "b"], seed=[0, 1], value=[0.1, 0.2])) is None  # each seed another method
    assert over_seeds(ranked(method=["a", "a"], seed=[0, 1], value=[np.nan, np.nan])) is None


def test_truths_that_share_seeds_are_said() -> None:
    said = shared_seeds(pd.DataFrame({"seed": ["0", "1", "2"], "n_seeds": [4, 4, 4]}))
    assert said.endswith("seed=0,4,8 shares none.")
    assert shared_seeds(pd.DataFrame({"seed": ["0", "4"], "n_seeds": [4, 4]})) == ""
    assert shared_seeds(pd.DataFrame({"seed": ["0", "1"], "n_seeds": [1, 1]})) == ""
    assert shared_seeds(pd.DataFrame({"method": ["a"]})) == ""


def test_a_map_has_its_numbers_where_they_belong() -> None:
    table = pd.DataFrame({"x": [1, 10, 1], "y": [0.1, 0.1, 0.2], "value": [0.5, -0.25, 0.75]})
    ax = Figure().subplots()
    shown = draw_grid(table, ax, names=("width", "damping"), largest=1).get_array()
    np.testing.assert_allclose(np.ma.filled(shown, np.nan), [[0.5, -0.25], [0.75, np.nan]])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "10"]
    assert ax.get_ylabel() == "damping"


def test_two_swept_numbers_over_seeds_are_a_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[pd.DataFrame] = []
    monkeypatch.setattr(sweeps, "save_grid", lambda table, *_, **__: drawn.append(table))
    options = [word for word in TINY["validate"] if not word.startswith(("training.epochs", "model.width"))]
    ran = call("validate", "-m", *options, "method=loss", "model.width=2,4", "training.epochs=1,2", "seed=0,1", cwd=tmp_path)
    assert ran.status == 0, ran.err
    (table,) = drawn
    assert len(table) == 4
    assert set(table["n_jobs"]) == {2}
    assert "Means over 2 jobs that differ in seed alone, with 95 % t-intervals" not in ran.out
    assert "Means over 2 jobs that differ in seed alone, 95 % t-intervals over them." in ran.out
    (text,) = (file.read_text() for file in tmp_path.rglob("summary.md"))
    assert "## Every job" in text


# ------------------------------------------------------------------------------------------------------- what counts as another seed


def test_a_seed_that_comes_twice_counts_once() -> None:
    once = over_seeds(ranked(method=["a"] * 3, seed=[0, 1, 2], value=[0.1, 0.3, 0.4]))
    twice = over_seeds(ranked(method=["a"] * 6, seed=[0, 1, 2] * 2, value=[0.1, 0.3, 0.4] * 2))
    assert once is not None
    assert twice is not None
    numbers = ["value", "ci_low", "ci_high", "n_jobs"]
    np.testing.assert_allclose(twice[numbers].to_numpy(float), once[numbers].to_numpy(float), rtol=1e-12)
    assert left_out(once) == []
    assert left_out(twice) == ["jobs 3, 4, 5: of a seed that another job of the same setting has: one value a seed is counted."]


def test_crossed_seeds_are_not_taken_for_independent_ones() -> None:
    """Where one of two factors does everything, the interval is that over its levels."""
    seeds, splits = np.repeat([0, 1, 2], 3), np.tile([0, 1, 2], 3)
    table = ranked(method=["a"] * 9, seed=list(seeds), value=list(np.array([0.2, 0.5, 0.9])[splits]))
    table["dataset.split_seed"] = splits
    table.attrs["keys"].append("dataset.split_seed")
    made = over_seeds(table)
    assert made is not None
    low, high = scipy.stats.t.interval(0.95, 2, loc=np.mean([0.2, 0.5, 0.9]), scale=scipy.stats.sem([0.2, 0.5, 0.9]))
    assert (made.loc[0, "ci_low"], made.loc[0, "ci_high"]) == pytest.approx((low, high), rel=1e-12)  # the same formula
    together = table[seeds == splits]  # keys that change together are one factor
    together.attrs = table.attrs
    paired = over_seeds(together)
    assert paired is not None
    assert (paired.loc[0, "ci_low"], paired.loc[0, "ci_high"]) == pytest.approx((low, high), rel=1e-12)


def test_the_interval_over_crossed_factors_covers() -> None:
    """Of 2,000 draws of a seed effect, a split effect and noise, at least 95 % of intervals hold the mean (it may be more: it is said to be
    wide); independent ones would hold it in two thirds."""
    draw = np.random.default_rng(0)
    held, blind = 0, 0
    for _ in range(2000):
        values = draw.normal(size=(5, 1)) + 0.5 * draw.normal(size=(1, 5)) + 0.3 * draw.normal(size=(5, 5))
        _, low, high = interval_over_crossed([values.mean(1), values.mean(0)])
        held += low <= 0 <= high
        _, low, high = interval_over_seeds(values.ravel())
        blind += low <= 0 <= high
    assert held / 2000 > 0.94  # three standard errors of a share of .95 are .015
    assert blind / 2000 < 0.75
    assert np.isnan(interval_over_crossed([np.array([1.0]), np.array([0.0, 2.0])])[1:]).all()


def test_an_undefined_value_is_said() -> None:
    made = over_seeds(ranked(method=["a"] * 3, seed=[0, 1, 2], value=[0.1, 0.3, np.nan]))
    assert made is not None
    assert left_out(made) == ["job 2: finished with an undefined value and in no mean."]
