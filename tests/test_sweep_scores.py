"""A sweep of a task: methods and, once, baselines, as one ranking and one figure; a refused job costs only itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Ran, call

from influx import sweeps
from influx.sweep_scores import Scores, once

DATA = ("dataset=iris", "dataset.train_size=80", "dataset.test_size=40", "dataset.label_noise=0.2", "task.seeds=2", "hydra.sweep.dir=swept")
METHODS = "method=grad_dot,tracin,loss"
BASELINES = {"loss", "gradient_norm", "random", "nearest"}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    """Of three methods one cannot take a training that leaves no steps."""
    place = tmp_path_factory.mktemp("sweep")
    return call("validate", "-m", "task=mislabeled", "model=logistic", METHODS, *DATA, cwd=place), place / "swept"


def headline(folder: Path, statistic: str = "roc_auc") -> pd.DataFrame:
    return pd.read_csv(folder / "summary.csv").query(f"statistic == '{statistic}'")


def test_methods_and_baselines_are_one_table(swept: tuple[Ran, Path]) -> None:
    _, folder = swept
    table = headline(folder)
    assert set(table["method"]) == {"grad_dot", *BASELINES}
    assert not table["method"].duplicated().any()
    assert dict(zip(table["method"], table["baseline"], strict=True)) == {
        "grad_dot": False, "loss": False, "gradient_norm": True, "random": True, "nearest": True,
    }  # fmt: skip
    for row in table.itertuples():
        own = pd.read_csv(folder / str(row.job) / "detection.csv").query(f"score == '{row.method}' and statistic == 'roc_auc'").iloc[0]
        assert (row.value, row.ci_low, row.ci_high, row.n_seeds) == (own.value, own.ci_low, own.ci_high, 2)


def test_a_refused_job_costs_only_itself(swept: tuple[Ran, Path]) -> None:
    ran, folder = swept
    assert ran.status == 2
    lost = pd.read_csv(folder / "summary.csv").query("status != 'finished'")
    assert list(lost["method"]) == ["tracin"]
    assert "follows the training run step by step" in lost["status"].item()
    assert "2 of 3 jobs finished." in (folder / "summary.md").read_text()


def test_the_screen_ranks_by_the_tasks_own_statistic(swept: tuple[Ran, Path]) -> None:
    ran, folder = swept
    shown = ran.out[ran.out.index("jobs by ROC AUC") :]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    table = headline(folder).sort_values("value", ascending=False, kind="stable")
    assert [row[1] for row in rows] == list(table["method"])
    assert [row[0] == "" for row in rows] == list(table["baseline"])  # of no job
    assert "ROC AUC of finding wrong labels" in (folder / "summary.md").read_text()
    assert (folder / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_has_every_score_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, pd.DataFrame] = {}
    monkeypatch.setattr("influx.sweep_scores.save_detection", lambda curves, table, *_, **__: drawn.update(curves=curves, table=table))
    ran = call("validate", "-m", "task=mislabeled", "model=logistic", "method=cg", "method.damping=0.01,1", *DATA, cwd=tmp_path)
    assert ran.status == 0, ran.err
    labels = {"cg, 0.01", "cg, 1", *BASELINES}
    assert set(drawn["table"]["score"]) == set(drawn["curves"]["score"]) == labels
    assert not drawn["curves"].duplicated(["score", "inspected"]).any()
    assert headline(tmp_path / "swept")["method"].value_counts()["loss"] == 1


def test_a_number_swept_beside_the_method_has_baselines_at_each_of_its_values(tmp_path: Path) -> None:
    ran = call("validate", "-m", "task=mislabeled", "model=logistic", "method=loss", *DATA, "dataset.label_noise=0.1,0.3", cwd=tmp_path)
    assert ran.status == 0, ran.err
    table = headline(tmp_path / "swept")
    assert table.groupby("dataset.label_noise")["method"].apply(set).tolist() == [BASELINES, BASELINES]
    assert (tmp_path / "swept/summary.png").exists()


def test_cleaning_is_ranked_by_accuracy_at_the_last_share(tmp_path: Path) -> None:
    words = ("task=cleansing", "task.repeats=1", "task.removed=[0.1,0.3]", "task.reverse=true", "model=logistic", "method=loss,grad_dot")
    ran = call("validate", "-m", *words, *DATA, cwd=tmp_path)
    assert ran.status == 0, ran.err
    assert "jobs by accuracy at 0.3" in ran.out
    table = headline(tmp_path / "swept", "accuracy_at_0.3")
    assert set(table["method"]) == {"loss", "grad_dot", "random", "oracle"}  # not the methods' opposites
    assert (tmp_path / "swept/summary.png").exists()


def test_baselines_are_of_the_first_job_at_a_place() -> None:
    def job(method: str, place: str, *scores: str) -> Scores:
        return Scores(method, (place,), pd.DataFrame({"score": np.repeat([method, *scores], 2)}), None)

    jobs = [job("a", "x", "loss", "random", "best"), job("b", "x", "loss", "random"), job("loss", "x", "random"), job("a", "y", "loss")]
    assert once(jobs) == [("a", "random"), ("b",), ("loss",), ("a", "loss")]


def test_jobs_of_two_tasks_are_ranked_each_by_its_own(tmp_path: Path) -> None:
    words = ("task=mislabeled,cleansing", "method=loss", "model=logistic", "++task.seeds=1")
    ran = call("validate", "-m", *words, *(word for word in DATA if "seeds" not in word), cwd=tmp_path)
    assert ran.status == 0, ran.err
    assert "jobs by value" in ran.out
    assert set(sweeps.headline(sweeps.joined(sweeps.read(tmp_path / "swept")))["statistic"]) == {"roc_auc", "accuracy_at_0.4"}
