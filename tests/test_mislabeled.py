"""Finding wrong labels: statistics against brute force, files against the influences they come from, seeds against single runs."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Ran, call
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from influx.pipelines.tasks.base import over_seeds
from influx.pipelines.tasks.detection import curve, found, measures
from influx.report.detection import detection_verdict, draw_curves, draw_scores, looks

CONVEX = ("dataset=iris", "model=logistic", "dataset.train_size=80", "dataset.test_size=40")
NOISY = (*CONVEX, "dataset.label_noise=0.2")
RUN = ("task=mislabeled", *NOISY)


def seeds(folder: Path) -> pd.Series:
    """detection_seeds.csv by seed, score and statistic."""
    return pd.read_csv(folder / "detection_seeds.csv").set_index(["seed", "score", "statistic"])["value"].sort_index()


def wrong_of(folder: Path) -> np.ndarray:
    record = json.loads((folder / "run.json").read_text())
    return np.isin(np.load(folder / "influence.npz")["train_index"], record["flipped_labels"])


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    made = call("validate", *RUN, "task.seeds=3", cwd=tmp_path_factory.mktemp("mislabeled"), pictures=True)
    assert made.status == 0, made.err
    return made


# ---------------------------------------------------------------------------------------------------------- statistics


def orders(suspicion: np.ndarray) -> list[tuple[int, ...]]:
    """All orders of inspection that the suspicion allows: its ties in every order."""
    return [order for order in itertools.permutations(range(len(suspicion))) if (np.diff(suspicion[list(order)]) <= 0).all()]


TIED = np.array([3.0, 1.0, 1.0, 2.0, 1.0, 0.0]), np.array([True, True, False, False, False, True])


def test_ties_are_inspected_in_random_order() -> None:
    suspicion, wrong = TIED
    every = np.array([np.append(0, np.cumsum(wrong[list(order)])) for order in orders(suspicion)])  # [orders, 1 + inspected]
    assert len(every) == 6
    np.testing.assert_allclose(found(suspicion, wrong, np.arange(7.0)), every.mean(0), rtol=1e-14)


def test_the_statistics_are_what_they_say() -> None:
    suspicion, wrong = TIED
    made = measures(suspicion, wrong, [1 / 3, 0.01])
    pairs = [np.sign(a - b) / 2 + 0.5 for a in suspicion[wrong] for b in suspicion[~wrong]]
    assert made["roc_auc"].value == pytest.approx(np.mean(pairs))
    at_two = np.mean([wrong[list(order)][:2].mean() for order in orders(suspicion)])  # of the two most suspicious
    assert made["recall_at_0.333333"] == pytest.approx((at_two * 2 / 3, 1 / 3, 2 / 3))
    assert made["recall_at_0.01"] == pytest.approx((1 / 3, 1 / 6, 1 / 3))  # one example at least, the first of which is wrong
    assert made["average_precision"].chance == 0.5


def test_perfect_reversed_and_constant_scores() -> None:
    wrong = np.arange(50) < 10
    perfect, opposite, constant = (measures(score, wrong, [0.2]) for score in (1.0 * wrong, -1.0 * wrong, np.zeros(50)))
    assert [made["roc_auc"].value for made in (perfect, opposite, constant)] == [1.0, 0.0, 0.5]
    assert [made["recall_at_0.2"].value for made in (perfect, opposite, constant)] == pytest.approx([1.0, 0.0, 0.2])
    assert perfect["average_precision"].value == 1.0
    assert constant["average_precision"].value == pytest.approx(0.2)
    np.testing.assert_allclose(curve(np.zeros(50), wrong), np.linspace(0, 1, 101), atol=1e-15)


def test_means_over_seeds_have_students_interval() -> None:
    table = over_seeds([{"score": "a", "value": value} for value in (1.0, 2.0, 6.0)] + [{"score": "b", "value": 4.0}], ["score"])
    assert table["value"].tolist() == [3.0, 4.0]
    assert table["n_seeds"].tolist() == [3, 1]
    half = 4.302653 * np.sqrt(7.0) / np.sqrt(3.0)  # t(0.975, 2 degrees), standard deviation of 1, 2, 6
    assert table.loc[0, ["ci_low", "ci_high"]].tolist() == pytest.approx([3 - half, 3 + half], rel=1e-6)
    assert np.isnan(table.loc[1, "ci_low"])


# --------------------------------------------------------------------------------------------------------------- the run


def test_the_first_seeds_numbers_are_those_of_its_influences(ran: Ran) -> None:
    influence, wrong = np.load(ran.folder / "influence.npz")["influence"], wrong_of(ran.folder)
    assert influence.shape == (80, 1)
    assert wrong.sum() == 16
    auc = roc_auc_score(wrong, -influence[:, 0])
    assert seeds(ran.folder)[0, "cg", "roc_auc"] == pytest.approx(auc, abs=1e-12)
    assert auc > 0.7  # removing a wrong label lowers the test loss: the most negative influences are theirs


def test_the_table_is_the_mean_over_seeds(ran: Ran) -> None:
    each = seeds(ran.folder)
    table = pd.read_csv(ran.folder / "detection.csv").set_index(["score", "statistic"])
    assert set(each.index.get_level_values("seed")) == {0, 1, 2}
    assert table.index.get_level_values("score").unique().tolist() == ["cg", "loss", "gradient_norm", "random", "nearest"]
    pd.testing.assert_series_equal(table["value"].sort_index(), each.groupby(["score", "statistic"]).mean(), rtol=1e-12)
    paired = each[:, "cg", "roc_auc"] - each[:, "loss", "roc_auc"]
    half = 4.302653 * paired.std() / np.sqrt(3)
    row = table.loc["cg", "roc_auc_minus_loss"]
    assert (row.value, row.ci_low, row.ci_high) == pytest.approx((paired.mean(), paired.mean() - half, paired.mean() + half), rel=1e-5)
    assert table.loc["cg", "recall_at_0.1"].best == 0.5
    assert table.loc["cg", "recall_at_0.1"].chance == 0.1


def test_each_seed_is_a_run_of_its_own(ran: Ran, tmp_path: Path) -> None:
    alone = call("validate", *RUN, "task.seeds=1", "seed=2", "dataset.noise_seed=2", cwd=tmp_path)
    pd.testing.assert_series_equal(seeds(alone.folder)[2], seeds(ran.folder)[2], rtol=1e-12)


def test_curves_files_and_record(ran: Ran) -> None:
    lines = pd.read_csv(ran.folder / "curve.csv")
    for _, part in lines.groupby("score"):
        assert part["found"].is_monotonic_increasing
        assert (part["found"].iloc[0], part["found"].iloc[-1]) == (0, 1)
    record = json.loads((ran.folder / "run.json").read_text())
    assert record["table"] == "detection.csv"
    assert record["headline"] == {"statistic": "roc_auc", "label": "ROC AUC of finding wrong labels"}
    assert 0.5 < record["facts"]["test_accuracy"] <= 1
    assert (ran.folder / "detection.png").read_bytes().startswith(b"\x89PNG")
    assert "16 of 80 training labels wrong, 3 seeds" in ran.out
    assert "cg finds wrong labels with ROC AUC" in ran.out


def test_a_measurement_of_which_more_is_better_turns_no_score_round(ran: Ran, tmp_path: Path) -> None:
    """log-probability = minus the loss: influences change their sign, suspicion does not."""
    other = call("validate", *RUN, "task.seeds=1", "measurement=log_probability", cwd=tmp_path)
    assert other.status == 0, other.err
    pd.testing.assert_series_equal(seeds(other.folder)[0].drop("random"), seeds(ran.folder)[0].drop("random"), rtol=1e-9)


@pytest.mark.parametrize("method", ["loss", "gradient_norm", "random"])
def test_a_method_that_is_a_baseline_is_there_once_with_the_same_sign(method: str, ran: Ran, tmp_path: Path) -> None:
    made = call("validate", *RUN, "task.seeds=1", f"method={method}", cwd=tmp_path)
    pd.testing.assert_series_equal(seeds(made.folder)[0, method], seeds(ran.folder)[0, method], rtol=1e-12)
    assert not pd.read_csv(made.folder / "detection.csv").duplicated(["score", "statistic"]).any()


def test_the_self_score_is_the_self_influence(tmp_path: Path) -> None:
    words = (*RUN, "task.seeds=1", "method.damping=0.01")
    made = call("validate", *words, "method=exact", "method.curvature=ggn", "task.score=self", cwd=tmp_path)
    own = call("validate", *words, "method=self_influence", cwd=tmp_path)
    influence = np.load(made.folder / "influence.npz")["influence"]
    assert influence.shape == (80, 80)
    by_method = np.load(own.folder / "influence.npz")["influence"][:, 0]
    np.testing.assert_allclose(np.diagonal(influence), by_method, rtol=1e-6)  # CG's residual on one side
    assert seeds(made.folder)[0, "exact", "roc_auc"] == pytest.approx(seeds(own.folder)[0, "self_influence", "roc_auc"])
    assert seeds(made.folder)[0, "exact", "roc_auc"] > 0.8
    accuracies = [json.loads((one.folder / "run.json").read_text())["facts"]["test_accuracy"] for one in (made, own)]
    assert accuracies[0] == accuracies[1]  # of the test part, although influence is read out on the training part


def test_settings_that_a_task_does_not_use_are_named(tmp_path: Path) -> None:
    made = call("validate", *RUN, "task.seeds=1", "retraining.seeds=2", "loo=false", "retraining.workers=1", cwd=tmp_path)
    assert "does not use retraining.seeds, loo." in made.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("task=mislabelled", r"task=mislabelled is not known; choose from .*mislabeled"),
        ("task=mislabeled", r"task=mislabeled looks for wrong labels, and dataset.label_noise=0 makes 0 of 80: set it between 0 and 1"),
        ("task=mislabeled dataset.label_noise=1", r"dataset.label_noise=1 makes 80 of 80"),
        ("task=mislabeled dataset.label_noise=0.2 test_points=highest measurement=loss", r"leave test_points=highest out"),
        ("task=mislabeled task.budgets=[0]", r"task.budgets=\[0\] is not possible: it must be a list of different numbers above 0"),
        ("task=mislabeled task.score=max", r"task.score=max is not possible: it must be one of mean, self"),
        ("task.seeds=2", r"task.seeds needs an option of task, and none was chosen"),
    ],
)
def test_what_makes_no_sense_is_refused_before_training(words: str, message: str, tmp_path: Path) -> None:
    made = call("validate", *CONVEX, *words.split(), cwd=tmp_path)
    assert made.status == 2
    assert "Traceback" not in made.err
    assert re.search(message, made.err), made.err
    assert not list(tmp_path.rglob("history.csv"))


def test_a_matrix_of_self_scores_that_is_too_large_is_refused(tmp_path: Path) -> None:
    words = ("task=mislabeled", "dataset.label_noise=0.2", "dataset.train_size=800", "task.score=self", "memory=4MiB", "method=loss")
    made = call("validate", *words, cwd=tmp_path)
    assert made.status == 2
    assert "task.score=self needs the influence of each training example on each, 4.88 MiB: lower dataset.train_size" in made.err


def test_numbers_to_predict_have_no_wrong_labels(tmp_path: Path) -> None:
    made = call("validate", "task=mislabeled", "dataset=diabetes", "model=linear", cwd=tmp_path)
    assert "task=mislabeled is about class labels, and diabetes has numbers to predict" in made.err


def test_scores_from_a_file_are_of_one_model(ran: Ran, tmp_path: Path) -> None:
    words = (*RUN, "method=external", f"path={ran.folder / 'influence.npz'}")
    refused = call("validate", *words, cwd=tmp_path)
    assert "method=external has the scores of one model, and task.seeds > 1 trains others: set task.seeds=1." in refused.err
    made = call("validate", *words, "task.seeds=1", cwd=tmp_path)
    assert seeds(made.folder)[0, "external", "roc_auc"] == pytest.approx(seeds(ran.folder)[0, "cg", "roc_auc"])


TASK = """
from dataclasses import dataclass

from influx.pipelines.estimate import estimate
from influx.pipelines.tasks import Task


@dataclass(frozen=True)
class Largest(Task):
    share: float = 0.5

    def check(self, session, estimator):
        pass

    def run(self, session, estimator):
        made = estimate(session, estimator)
        session.folder.text("largest.txt", f"{self.share * abs(made.influence).max()}")
        return 1.0
"""


def test_a_users_own_task_is_a_class_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mytask.py").write_text(TASK)
    (tmp_path / "conf/task").mkdir(parents=True)
    (tmp_path / "conf/task/largest.yaml").write_text("_target_: mytask.Largest\nshare: 0.25\n")
    monkeypatch.syspath_prepend(tmp_path)
    made = call("validate", "--config-dir", "conf", "task=largest", "method=loss", *CONVEX, cwd=tmp_path)
    monkeypatch.delitem(sys.modules, "mytask")
    assert made.status == 0, made.err
    largest = np.abs(np.load(made.folder / "influence.npz")["influence"]).max()
    assert float((made.folder / "largest.txt").read_text()) == 0.25 * largest


# ------------------------------------------------------------------------------------------------------- words and pictures


@pytest.mark.parametrize(
    ("paired", "said"),
    [
        ((0.1, 0.05, 0.15), "it beats the loss alone (paired difference 0.100 [0.0500, 0.150])"),
        ((-0.1, -0.15, -0.05), "the loss alone, a forward pass, does better"),
        ((0.1, -0.1, 0.3), "these seeds do not tell it from the loss alone"),
        ((0.1, np.nan, np.nan), "0.100 above that of the loss alone; one seed does not tell"),
    ],
)
def test_the_verdict_is_about_the_paired_difference(paired: tuple[float, float, float], said: str) -> None:
    columns = ["score", "statistic", "value", "ci_low", "ci_high"]
    table = pd.DataFrame([("cg", "roc_auc", 0.9, 0.8, 1.0), ("cg", "roc_auc_minus_loss", *paired)], columns=columns)
    assert said in detection_verdict(table, "cg")


def test_the_picture_shows_the_tables_numbers(ran: Ran) -> None:
    lines, table = pd.read_csv(ran.folder / "curve.csv"), pd.read_csv(ran.folder / "detection.csv")
    ranked = table[table["statistic"] == "roc_auc"].sort_values("value", ascending=False)
    drawn = looks(ranked["score"].tolist())
    left, right = Figure().subplots(1, 2)
    draw_curves(lines, left, share=0.2, drawn=drawn)
    draw_scores(ranked, right, drawn=drawn)
    by_name = {line.get_label(): line for line in left.lines}
    for score, part in lines.groupby("score"):
        np.testing.assert_array_equal(by_name[score].get_ydata(), part["found"])
    assert [text.get_text() for text in right.get_yticklabels()] == ranked["score"].tolist()
    assert [float(dot.get_xdata()[0]) for dot in right.lines if dot.get_marker() == "o"] == ranked["value"].tolist()


# ------------------------------------------------------------------------------------- influence on itself, without a matrix


def test_a_method_that_knows_the_influence_on_itself_needs_no_matrix(tmp_path: Path) -> None:
    """The suspects' order gives the reported area, their table has every training example once, and facts are about the test part."""
    deep = ("dataset=iris", "model=mlp", "training.epochs=15", "dataset.train_size=80", "dataset.test_size=40", "dataset.label_noise=0.2")
    words = (*deep, "method=turnover_dropout", "task=mislabeled", "task.score=self", "task.seeds=2", "memory=1MiB")
    made = call("validate", *words, cwd=tmp_path)
    assert made.status == 0, made.err
    table, record = pd.read_csv(made.folder / "suspects.csv"), json.loads((made.folder / "run.json").read_text())
    assert table["rank"].tolist() == list(range(1, 81))
    assert table["train_index"].is_unique
    assert set(table.loc[table["wrong"], "train_index"]) == set(record["flipped_labels"])
    assert table["score"].is_monotonic_decreasing
    assert seeds(made.folder)[0, "turnover_dropout", "roc_auc"] == pytest.approx(roc_auc_score(table["wrong"], table["score"]), abs=1e-12)
    assert (1, "turnover_dropout", "roc_auc") in seeds(made.folder).index
    alone = call("estimate", *deep, "method=random", cwd=tmp_path)
    said = json.loads((alone.folder / "run.json").read_text())["facts"]
    assert record["facts"]["test_accuracy"] == said["test_accuracy"]
    assert {"accuracy_own_mask", "label_from_mask_alone", "test_accuracy_without_mask"} <= set(record["facts"])
    assert not (made.folder / "influence.npz").exists()


def test_suspects_of_the_mean_score_are_the_most_harmful_first(ran: Ran) -> None:
    table, arrays = pd.read_csv(ran.folder / "suspects.csv"), np.load(ran.folder / "influence.npz")
    order = np.argsort(arrays["influence"][:, 0], kind="stable")
    assert table["train_index"].tolist() == arrays["train_index"][order].tolist()


@pytest.mark.parametrize("method", ["nearest", "grad_cos"])
def test_a_cosine_with_oneself_finds_nothing_and_says_so(method: str, tmp_path: Path) -> None:
    words = ("dataset=digits", "dataset.train_size=60", "dataset.test_size=20", "dataset.label_noise=0.2", "training.epochs=2")
    done = call("validate", *words, "task=mislabeled", "task.score=self", "task.seeds=1", f"method={method}", cwd=tmp_path)
    assert done.status == 2
    assert f"method={method} gives every training example the same influence on itself: use task.score=mean." in done.err
