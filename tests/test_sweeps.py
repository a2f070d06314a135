"""A sweep ends in one table and one figure, failed jobs included."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, Ran, call
from matplotlib.figure import Figure

from influx import sweep_jobs, sweeps
from influx.report.ranking import draw_lines, draw_ranking

SWEEP = "hydra.sweep.dir=swept"


def summary(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "summary.csv")


def shown(text: str) -> list[list[str]]:
    """The cells of the table on the screen."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def sweep(command: str, *arguments: str, cwd: Path) -> Ran:
    """A tiny sweep into the folder swept."""
    return call(command, "-m", *TINY[command], *arguments, SWEEP, cwd=cwd)


# ------------------------------------------------------------------------------------------------------ from the command line


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    """Three methods on training parts of two sizes, one of them too small to hold every class."""
    place = tmp_path_factory.mktemp("sweep")
    options = [word for word in TINY["validate"] if not word.startswith("dataset.train_size")]
    ran = call("validate", "-m", *options, "method=nearest,random,loss", "dataset.train_size=60,3", SWEEP, cwd=place)
    return ran, place / "swept"


def test_a_sweeps_table_has_a_row_a_job_and_statistic(methods: tuple[Ran, Path]) -> None:
    _, folder = methods
    table = summary(folder)
    assert list(table.columns[:6]) == ["job", "method", "dataset.train_size", "truth", "measurement", "statistic"]
    assert list(table.columns[-2:]) == ["seconds", "status"]
    finished = table[table["status"] == "finished"]
    assert sorted(finished["job"].unique()) == [0, 2, 4]
    for job, part in finished.groupby("job"):
        own = pd.read_csv(folder / str(job) / "correlations.csv")
        columns = ["method", "truth", "measurement", "statistic", "value", "ci_low", "ci_high", "noise_ceiling", "n_removed", "n_seeds"]
        pd.testing.assert_frame_equal(part[columns].reset_index(drop=True), own[columns], check_dtype=False)
        seconds = json.loads((folder / str(job) / "run.json").read_text())["stage_seconds"]["estimate"]
        assert set(part["seconds"]) == {seconds}
        assert set(part["dataset.train_size"]) == {60}


def test_failed_jobs_are_in_it_with_their_reason(methods: tuple[Ran, Path]) -> None:
    ran, folder = methods
    assert ran.status == 2
    failed = summary(folder).query("status != 'finished'")
    assert list(failed["job"]) == [1, 3, 5]
    assert list(failed["method"]) == ["nearest", "random", "loss"]
    assert failed["value"].isna().all()
    assert failed["status"].str.match(r"failed: the training part of digits \(3 examples\) has no example of class").all()
    assert "jobs 1, 3, 5 (method=nearest|random|loss, dataset.train_size=3) failed: the training part" in ran.out
    assert (
        "- jobs 1, 3, 5 (method=nearest|random|loss, dataset.train_size=3) failed: the training part" in (folder / "summary.md").read_text()
    )
    assert ran.err.splitlines()[-1].startswith("influx: the training part of digits")


def test_the_screen_ends_with_the_jobs_ranked(methods: tuple[Ran, Path]) -> None:
    ran, folder = methods
    rows = shown(ran.out[ran.out.index("jobs by Spearman") :])
    ranked = summary(folder).query("statistic == 'spearman'").sort_values("value", ascending=False)
    assert [row[1] for row in rows] == list(ranked["method"])
    assert [float(row[3]) for row in rows] == pytest.approx(list(ranked["value"]), rel=5e-3)  # three digits
    assert ran.out.splitlines()[-1] == f"summary: {folder / 'summary.csv'}"
    assert (folder / "summary.md").read_text().startswith("# Sweep swept\n\n3 of 6 jobs finished.\nSpearman: mean over")
    assert (folder / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_a_value_that_is_refused_at_once_has_its_reason_too(tmp_path: Path) -> None:
    ran = sweep("train", "training.lr=0.1,-1", cwd=tmp_path)
    table = summary(tmp_path / "swept")
    assert ran.status == 2
    assert list(table.columns) == ["job", "training.lr", "seconds", "status"]
    assert list(table["status"]) == ["finished", "failed: training.lr=-1 is not possible: it must be a number above 0."]
    assert shown(ran.out)[0][:2] == ["0", "0.1"]
    assert not (tmp_path / "swept/summary.png").exists()


def test_a_sweep_of_estimates_is_a_table_of_jobs(tmp_path: Path) -> None:
    ran = sweep("estimate", "method=loss,random", cwd=tmp_path)
    table = summary(tmp_path / "swept")
    assert ran.status == 0, ran.err
    assert list(table["method"]) == ["loss", "random"]
    assert table["seconds"].notna().all()
    assert not (tmp_path / "swept/summary.png").exists()


def test_a_single_run_has_no_summary(validated: Ran) -> None:
    assert "summary" not in validated.out
    assert not list(validated.folder.parent.rglob("summary.*"))


@pytest.mark.slow
def test_jobs_of_other_processes_are_joined_too(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    line = ["train", "-m", *TINY["train"], "seed=0,1", SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = subprocess.run([sys.executable, "-m", "influx", *line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(summary(tmp_path / "swept")["seed"]) == [0, 1]


def test_the_summary_can_be_left_out(tmp_path: Path) -> None:
    ran = sweep("train", "seed=0,1", "~hydra.callbacks.summary", cwd=tmp_path)
    assert ran.status == 0, ran.err
    assert not (tmp_path / "swept/summary.csv").exists()


def test_a_summary_that_cannot_be_written_is_said_and_costs_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(sweeps, "write_whole", full)
    ran = sweep("train", "seed=0,1", cwd=tmp_path)
    assert ran.status == 0
    assert ran.err.splitlines()[-1] == "influx: the sweep's summary could not be written: no space left"


def test_joining_needs_no_torch() -> None:
    code = "import sys, influx.app, influx.sweeps; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------------------------------ from folders


def job(sweep: Path, name: str, asked: list[str], status: str | None, value: float | None = None, number: int | None = None) -> Path:
    """A job's folder as a run leaves it."""
    folder = sweep / name
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra/overrides.yaml").write_text("".join(f"- {word}\n" for word in asked))
    (folder / ".hydra/hydra.yaml").write_text(f"hydra:\n  job:\n    num: {number}\n")
    if status is not None:
        (folder / "run.json").write_text(json.dumps({"status": status, "stage_seconds": {"estimate": 1.5}}))
    if value is not None:
        row = {"method": "m", "truth": "loo_scratch", "measurement": "loss", "statistic": "spearman", "value": value, "ci_low": value - 0.1}
        row |= {"ci_high": value + 0.1, "noise_ceiling": 0.9, "ceiling_low": 0.8, "ceiling_high": 0.95, "corrected": value / 0.9}
        pd.DataFrame([row]).to_csv(folder / "correlations.csv", index=False)
    return folder


def test_every_way_to_end_is_told(tmp_path: Path) -> None:
    job(tmp_path, "0", ["seed=0"], "finished", 0.5)
    job(tmp_path, "1", ["seed=1"], "running", 0.5)  # killed; its table is from no run that finished
    job(tmp_path, "2", ["seed=2"], None)
    job(tmp_path, "10", ["seed=3"], "failed: two\nlines")
    table = sweeps.joined(sweeps.read(tmp_path))
    assert list(table["job"]) == [0, 1, 2, 10]
    assert list(table["value"].notna()) == [True, False, False, False]
    assert list(table["status"]) == [
        "finished", "failed: it was stopped", "failed: it ended before it began (no run.json)", "failed: two",
    ]  # fmt: skip


def test_folders_of_any_name_are_numbered_by_their_job(tmp_path: Path) -> None:
    job(tmp_path, "method=b/deep", ["method=b"], "finished", 0.2, number=1)
    job(tmp_path, "method=a", ["method=a"], "finished", 0.1, number=0)
    assert [(found.number, found.asked) for found in sweeps.read(tmp_path)] == [(0, {"method": "a"}), (1, {"method": "b"})]


def test_what_an_earlier_sweep_left_is_not_counted(tmp_path: Path) -> None:
    old = job(tmp_path, "7", ["seed=7"], "finished", 0.9)
    again = job(tmp_path, "0", ["seed=0"], "finished", 0.9)
    os.utime(old / ".hydra/overrides.yaml", (1000, 1000))
    os.utime(again / "run.json", (1000, 1000))  # of the earlier sweep: this one's job has not come so far
    (tmp_path / "multirun.yaml").write_text("")
    os.utime(tmp_path / "multirun.yaml", (2000, 2000))
    (found,) = sweeps.read(tmp_path)
    assert (found.number, found.table) == (0, None)
    assert "no run.json" in found.status


def test_swept_keys_are_those_that_vary(tmp_path: Path) -> None:
    job(tmp_path, "0", ["seed=0", "+experiment=a", "dataset=iris", "'method.params=''*.weight'''"], "finished", 0.1)
    job(tmp_path, "1", ["seed=0", "+experiment=b", "dataset=iris"], "finished", 0.2)
    jobs = sweeps.read(tmp_path)
    assert sweeps.swept(jobs) == ["experiment", "method.params"]
    assert jobs[0].asked["method.params"] == "*.weight"
    assert list(sweeps.joined(jobs)["experiment"]) == ["a", "b"]


def test_a_note_of_failure_does_not_replace_a_runs_own_record(tmp_path: Path) -> None:
    own, refused = job(tmp_path, "0", [], "failed: own words"), job(tmp_path, "1", [], None)
    for folder in (own, refused, tmp_path):  # the last is no job's folder
        sweep_jobs.note_failure(folder, ValueError("first line\nsecond"))
    assert json.loads((own / "run.json").read_text())["status"] == "failed: own words"
    assert json.loads((refused / "run.json").read_text()) == {"status": "failed: first line"}
    assert not (tmp_path / "run.json").exists()


def test_no_jobs_no_summary(tmp_path: Path) -> None:
    sweeps.join(tmp_path / "absent")
    sweeps.join(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_headline_ranks_by_value_and_keeps_what_failed_last(tmp_path: Path) -> None:
    for number, value in enumerate([0.1, None, 0.7, 0.3]):
        job(tmp_path, str(number), [f"seed={number}"], "failed: x" if value is None else "finished", value)
    ranked = sweeps.headline(sweeps.joined(sweeps.read(tmp_path)))
    assert list(ranked["job"]) == [2, 3, 0, 1]
    assert ranked.attrs["keys"] == ["seed"]
    assert sweeps.failures(ranked) == ["job 1 (seed=1) failed: x"]


def test_counts_are_said_as_a_span_and_reasons_once(tmp_path: Path) -> None:
    table = pd.DataFrame({"job": range(14), "method": list("ababababababab"), "status": ["finished"] * 2 + ["failed: x"] * 12})
    table = table.assign(
        statistic="spearman", value=[0.1, 0.2, *[math.nan] * 12], n_removed=[50, 50, *[math.nan] * 12], n_test=[3, 9, *[1] * 12]
    )
    ranked = sweeps.headline(table[["job", "method", "statistic", "value", "n_removed", "n_test", "status"]].assign(seconds=0.0))
    assert ranked.attrs["counts"] == ["50 removals, 3 to 9 test examples"]
    assert sweeps.failures(ranked) == ["jobs 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ... (method=a|b) failed: x"]


# ----------------------------------------------------------------------------------------------------------------- figures


def ranked(**columns: list) -> pd.DataFrame:
    """A headline table whose jobs have those settings."""
    n = len(next(iter(columns.values())))
    numbers = {"value": np.linspace(0.8, -0.2, n), "noise_ceiling": 0.9, "ceiling_low": 0.85, "ceiling_high": 0.95, "corrected": np.nan}
    table = pd.DataFrame({**columns, **numbers}).assign(ci_low=lambda t: t["value"] - 0.1, ci_high=lambda t: t["value"] + 0.2)
    table.attrs["keys"] = list(columns)
    return table


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, pd.DataFrame]:
    """Which figure was drawn, and its table."""
    made: dict[str, pd.DataFrame] = {}
    monkeypatch.setattr(sweeps, "save_lines", lambda table, *_, **more: made.update(lines=table.assign(logarithmic=more["logarithmic"])))
    monkeypatch.setattr(sweeps, "save_ranking", lambda table, *_, **more: made.update(ranking=table))
    return made


def test_methods_are_ranked_a_panel_for_what_else_was_swept(drawn: dict[str, pd.DataFrame]) -> None:
    sweeps.draw(ranked(method=["a", "b", "a", "b"], dataset=["iris", "iris", "wine", "wine"]), Path("x"), "")
    assert list(drawn["ranking"]["label"]) == ["a", "b", "a", "b"]
    assert list(drawn["ranking"]["panel"]) == ["iris", "iris", "wine", "wine"]


def test_a_swept_number_is_an_axis_and_a_seed_is_not(drawn: dict[str, pd.DataFrame]) -> None:
    sweeps.draw(ranked(method=["a", "b", "a"], **{"training.lr": ["0.001", "0.1", "1"]}), Path("x"), "")
    assert list(drawn["lines"]["at"]) == [0.001, 0.1, 1]
    assert list(drawn["lines"]["label"]) == ["a", "b", "a"]
    assert drawn["lines"]["logarithmic"].all()
    sweeps.draw(ranked(seed=["0", "1"]), Path("x"), "")
    assert list(drawn["ranking"]["label"]) == ["0", "1"]


def test_many_methods_along_a_number_are_panels(drawn: dict[str, pd.DataFrame]) -> None:
    sweeps.draw(ranked(method=list("abcdef"), **{"training.lr": ["0.1", "1"] * 3}), Path("x"), "")
    assert set(drawn["ranking"]["panel"]) == {"0.1", "1"}


def test_too_many_rows_are_cut_and_said(drawn: dict[str, pd.DataFrame]) -> None:
    sweeps.draw(ranked(dataset=[f"d{i}" for i in range(70)]), Path("x"), "")
    assert len(drawn["ranking"]) == sweeps.MOST_ROWS


def test_a_ranking_draws_the_tables_numbers_and_nothing_else() -> None:
    table = ranked(method=["a", "b", "broken"]).assign(label=["a", "b", "broken"])
    table.loc[2, ["value", "ci_low", "ci_high", "noise_ceiling", "ceiling_low", "ceiling_high"]] = np.nan
    ax = Figure().subplots()
    draw_ranking(table, ax)
    points, _, (arms,) = ax.containers[0]
    np.testing.assert_array_equal(np.asarray(points.get_xdata(), float), table["value"])
    np.testing.assert_allclose([arm[:, 0] for arm in arms.get_segments()[:2]], table[["ci_low", "ci_high"]][:2])
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b", "broken"]
    assert [text.get_text() for text in ax.texts] == ["0.800", "0.300", "none"]
    assert ax.get_ylim() == (2.5, -0.5)  # the best on top


def test_lines_go_through_the_tables_numbers_in_order() -> None:
    table = ranked(at=[3.0, 1.0, 2.0]).assign(label="x")
    ax = Figure().subplots()
    draw_lines(table, ax)
    np.testing.assert_array_equal(ax.containers[0][0].get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(ax.containers[0][0].get_ydata(), table.sort_values("at")["value"])


@pytest.mark.parametrize(
    "columns",
    [
        {"method": list("ab"), "dataset": ["iris", "wine"]},
        {"method": list("abcdefgh"), "dataset": list("stuvwxyz")},
        {"training.lr": ["0.1", "0.2"]},
        {"dataset": ["d" * 100, "e"]},
    ],
)
def test_every_kind_of_figure_can_be_saved(columns: dict[str, list], tmp_path: Path) -> None:
    table = ranked(**columns)
    sweeps.draw(table, tmp_path / "a.png", "digits, mlp")
    sweeps.draw(table.assign(noise_ceiling=np.nan, ceiling_low=np.nan, ceiling_high=np.nan, ci_low=np.nan), tmp_path / "b.png", "")
    assert {file.name for file in tmp_path.iterdir()} == {"a.png", "b.png"}
