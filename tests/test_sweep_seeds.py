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
from influx.sweep_seeds import over_seeds, shared_seeds


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
