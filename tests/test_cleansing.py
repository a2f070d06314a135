"""Cleaning data: what is kept, what it is trained into, and the tables, each against a truth of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Ran, call
from matplotlib.figure import Figure
from problems import NOTHING_KEPT, experiment

from influx.pipelines.tasks.cleansing import removal_order
from influx.pipelines.tasks.retrained import fresh_seeds, on_rows, trainings
from influx.report.cleansing import cleansing_lines, cleansing_verdict, draw_cleansing
from influx.store import Store
from influx.training.first_order import Sgd

DATA = ("dataset=iris", "model=logistic", "dataset.train_size=80", "dataset.test_size=60", "dataset.label_noise=0.2")
RUN = ("task=cleansing", *DATA, "task.repeats=2", "task.removed=[0.1,0.2]")


def seeds(folder: Path) -> pd.Series:
    """cleansing_seeds.csv by seed, rule and statistic."""
    return pd.read_csv(folder / "cleansing_seeds.csv").set_index(["seed", "score", "statistic"])["value"].sort_index()


def write_scores(place: Path, folder: Path, sign: float) -> str:
    """A file of scores that knows which labels of the run in `folder` are wrong: `sign` for those, minus it for the others."""
    train = np.load(folder / "influence.npz")["train_index"]
    wrong = np.isin(train, json.loads((folder / "run.json").read_text())["flipped_labels"])
    scores = np.where(wrong, sign, -sign)[:, None] * np.linspace(1, 2, len(train))[:, None]
    np.savez(place / "scores.npz", influence=scores, train_index=train, test_index=np.array([-1]))
    return f"path={place / 'scores.npz'}"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    done = call("validate", *RUN, "task.seeds=3", "task.reverse=true", cwd=tmp_path_factory.mktemp("cleansing"), pictures=True)
    assert done.status == 0, done.err
    return done


# --------------------------------------------------------------------------------------------------------- what is kept


def test_the_most_suspicious_goes_first() -> None:
    assert removal_order(np.array([0.0, 2.0, -1.0, 2.0])).tolist() == [1, 3, 0, 2]


def test_the_most_helpful_are_kept_and_not_the_most_harmful(ran: Ran, tmp_path: Path) -> None:
    """A first version of the released script kept the wrong end. Scores that know the wrong labels, of which there are as many as are
    removed, keep what the oracle keeps: the very same models."""
    words = (*RUN, "task.seeds=1", "task.removed=[0.2]", "task.reverse=true", "method=external")
    known = call("validate", *words, write_scores(tmp_path, ran.folder, -1.0), cwd=tmp_path)
    assert known.status == 0, known.err
    each = seeds(known.folder)[0]
    assert each["external", "accuracy_at_0.2"] == each["oracle", "accuracy_at_0.2"] == seeds(ran.folder)[0]["oracle", "accuracy_at_0.2"]
    assert each["external", "wrong_at_0.2"] == 0
    assert each["best", "wrong_at_0.2"] == 0.25  # all 16 wrong labels among 64
    turned = call("validate", *words, write_scores(tmp_path, ran.folder, 1.0), cwd=tmp_path)
    assert seeds(turned.folder)[0]["external", "wrong_at_0.2"] == 0.25


def test_parts_of_the_test_set_share_nothing_unless_it_is_asked_for(tmp_path: Path) -> None:
    """With labels to count: what is read out on, and what accuracy is reported on, are told apart by their test examples."""
    words = (*RUN, "task.seeds=1", "measurement=loss", "task.validation=0.25", "method=loss")
    apart, same = (call("validate", *words, f"task.readout={part}", cwd=tmp_path) for part in ("validation", "test"))
    read = [set(np.load(one.folder / "influence.npz")["test_index"]) for one in (apart, same)]
    assert (len(read[0]), len(read[1])) == (15, 45)
    assert not read[0] & read[1]
    assert "accuracy on 45 test examples" in " ".join(apart.out.split())
    assert "accuracy on 45 test examples" in " ".join(same.out.split())
    assert "task.readout=test chooses what to remove by the very points that the accuracy is reported on" in same.out
    ours, theirs = (seeds(one.folder)[0].drop("loss") for one in (apart, same))
    pd.testing.assert_series_equal(ours, theirs)  # what does not use the read-out is the same


# ---------------------------------------------------------------------------------------------------- what it is trained into


def test_what_is_kept_is_a_data_set_of_its_own() -> None:
    """The gradient of the mean over the kept rows alone (their number is the divisor), plus that of the regulariser, is zero."""
    whole = experiment("softmax")
    rows = np.array([0, 2, 3, 7, 11, 12])
    part = on_rows(whole, rows)
    (trained,) = trainings(part, [5], NOTHING_KEPT, continued=False)
    problem = part.problem(trained, 5)
    mean = problem.loss_gradients(problem.train).sum(0) / len(rows)
    assert float((mean + problem.weight_decay * problem.theta).norm()) < 1e-8  # Newton's tolerance
    assert part.data.train_index.tolist() == whole.data.train_index[rows].tolist()


def test_other_labels_take_the_place_of_the_rows_own() -> None:
    whole = experiment("softmax")
    targets = (whole.data.train_targets + 1) % whole.data.n_classes
    assert torch.equal(on_rows(whole, np.array([4, 1]), targets).data.train_targets, targets[[4, 1]])


def test_continued_repeats_are_one_long_training(tmp_path: Path) -> None:
    """Of full batches and without momentum, in which nothing but the parameters goes from step to step."""
    still = Sgd(lr=0.1, epochs=3, batch_size=None, momentum=0.0)
    tiny = replace(experiment("mlp"), training=still)
    store = Store(tmp_path)
    found = list(trainings(tiny, [4, 5, 6], store, continued=True))
    for times, one in enumerate(found, start=1):
        long = replace(tiny, training=replace(still, epochs=3 * times)).train(4, NOTHING_KEPT)
        for name, value in long.params.items():
            torch.testing.assert_close(one.params[name], value, rtol=1e-12, atol=1e-14)
    again = list(trainings(tiny, [4, 5, 6], store, continued=True))
    assert [one.reused for one in again] == [True] * 3
    assert all(torch.equal(one.params[name], other.params[name]) for one, other in zip(found, again, strict=True) for name in one.params)
    fresh = list(trainings(tiny, [4, 5], NOTHING_KEPT, continued=False))
    assert not any(torch.equal(value, found[1].params[name]) for name, value in fresh[1].params.items())


def test_seeds_are_fresh_and_the_same_for_every_rule() -> None:
    many = [seed for run in range(20) for seed in fresh_seeds(run, 5)]
    assert len({*many, *range(25)}) == 125
    assert fresh_seeds(3, 5)[:2] == fresh_seeds(3, 2)


def test_clean_labels_are_those_of_the_data_without_noise(tmp_path: Path) -> None:
    words = (*RUN, "task.seeds=1", "method=loss")
    mended = call("validate", *words, "task.labels=clean", cwd=tmp_path)
    clean = call("validate", *words, "dataset.label_noise=0", cwd=tmp_path)
    assert seeds(mended.folder)[0]["all", "accuracy_at_0"] == seeds(clean.folder)[0]["all", "accuracy_at_0"]
    assert "oracle" not in seeds(clean.folder)[0].index.get_level_values("score")


def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    """Its models are in the store one by one: 1 trained, and 2 repeats of nothing removed and of 4 rules x 2 shares."""
    call("validate", *RUN, "task.seeds=1", cwd=tmp_path)
    models = sorted((tmp_path / "outputs/store").rglob("model/**/*.safetensors"))
    assert len(models) == 1 + 2 * (1 + 4 * 2)
    again = call("validate", *RUN, "task.seeds=1", cwd=tmp_path)
    assert sorted((tmp_path / "outputs/store").rglob("model/**/*.safetensors")) == models
    assert again.status == 0


# --------------------------------------------------------------------------------------------------------------- the run


def test_each_seed_is_a_run_of_its_own(ran: Ran, tmp_path: Path) -> None:
    alone = call("validate", *RUN, "task.seeds=1", "task.reverse=true", "seed=1", "dataset.noise_seed=1", cwd=tmp_path)
    pd.testing.assert_series_equal(seeds(alone.folder)[1], seeds(ran.folder)[1], rtol=1e-12)


def test_tables_differences_and_record(ran: Ran) -> None:
    each = seeds(ran.folder)
    table = pd.read_csv(ran.folder / "cleansing.csv").set_index(["score", "statistic"])["value"].sort_index()
    pd.testing.assert_series_equal(table, each.groupby(["score", "statistic"]).mean(), rtol=1e-12, check_names=False)
    own, drawn, nothing = (
        each[:, rule, name] for rule, name in (("cg", "accuracy_at_0.2"), ("random", "accuracy_at_0.2"), ("all", "accuracy_at_0"))
    )
    np.testing.assert_allclose(each[:, "cg", "minus_random_at_0.2"], own - drawn, atol=1e-15)
    np.testing.assert_allclose(each[:, "cg", "minus_all_at_0.2"], own - nothing, atol=1e-15)
    record = json.loads((ran.folder / "run.json").read_text())
    assert record["table"] == "cleansing.csv"
    assert record["headline"]["statistic"] == "accuracy_at_0.2"
    assert 0 < record["facts"]["test_accuracy"] <= 1
    assert round(record["facts"]["test_accuracy"] * 30, 9) % 1 == 0  # of the reported half of 60
    assert (ran.folder / "cleansing.png").read_bytes().startswith(b"\x89PNG")
    assert each.loc[:, "oracle", "wrong_at_0.2"].eq(0).all()
    assert set(each.index.get_level_values("score")) == {"all", "cg", "best", "loss", "random", "oracle"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("task.removed=[0.001]", "task.removed=0.001 of 80 training examples removes 0 of them: choose another."),
        ("task.removed=[1]", "task.removed=1 of 80 training examples removes 80 of them"),
        ("task.removed=[]", "task.removed=[] is not possible: it must be a list of different numbers above 0"),
        ("task.removed=[0.2,0.2]", "must be a list of different numbers above 0"),
        ("task.removed=[0.201,0.2]", "task.removed=[0.201, 0.2] removes 16, 16 of 80: list shares that ascend, and differ"),
        ("task.removed=[0.4,0.2]", "list shares that ascend"),
        ("task.validation=0.001", "task.validation=0.001 of 60 test examples leaves a part empty: raise dataset.test_size."),
        ("task.readout=train", "task.readout=train is not possible: it must be one of validation, test."),
        ("task.labels=true_ones", "task.labels=true_ones is not possible: it must be one of noisy, clean."),
        ("task.restart=warm", "task.restart=warm is not possible: it must be one of fresh, continued."),
        ("dataset=diabetes model=linear dataset.label_noise=0", "task=cleansing is about class labels, and diabetes has numbers"),
    ],
)
def test_what_makes_no_sense_is_refused_before_training(words: str, message: str, tmp_path: Path) -> None:
    done = call("validate", *RUN, *words.split(), cwd=tmp_path)
    assert done.status == 2
    assert message in done.err
    assert not list(tmp_path.rglob("history.csv"))


# ------------------------------------------------------------------------------------------------------- words and pictures


def table_of(ran: Ran) -> pd.DataFrame:
    table = pd.read_csv(ran.folder / "cleansing.csv")
    split = table["statistic"].str.extract(r"(?P<kind>\w+)_at_(?P<removed>.*)")
    return table.assign(kind=split["kind"], removed=split["removed"].astype(float))


def test_the_verdict_says_what_the_paired_differences_say() -> None:
    rows = [("accuracy", 0.9, 0.8, 1.0), ("minus_all", 0.1, 0.05, 0.15), ("minus_random", -0.1, -0.2, 0.01)]
    table = pd.DataFrame([("cg", 0.4, *row) for row in rows], columns=["score", "removed", "kind", "value", "ci_low", "ci_high"])
    said = cleansing_verdict(table, "cg", 0.4)
    assert said.startswith(
        "without the 40% that cg suspects, accuracy is 0.900 [0.800, 1.000]: better than nothing removed (0.100 [0.050, 0.150])"
    )
    assert said.endswith("not told from as many removed at random (-0.100 [-0.200, 0.010]).")
    alone = cleansing_verdict(table.assign(ci_low=np.nan, ci_high=np.nan), "cg", 0.4)
    assert "0.100 against nothing removed (one seed: no interval)" in alone


def test_screen_and_picture_have_the_tables_numbers(ran: Ran) -> None:
    table = table_of(ran)
    lines = cleansing_lines(table, "about")
    columns = {str(column.header): list(column.cells) for column in lines.columns}
    cells = table.set_index(["score", "kind", "removed"])["value"]
    assert columns["rule"] == table["score"].drop_duplicates().tolist()
    for place, rule in enumerate(columns["rule"][1:], start=1):
        assert columns["0.2"][place] == f"{cells[rule, 'accuracy', 0.2]:.3f}"
        assert columns["minus all"][place].startswith(f"{cells[rule, 'minus_all', 0.2]:.3f} [")
    ax = Figure().subplots()
    draw_cleansing(table, ax, method="cg", share=0.2)
    by_name = {line.get_label(): line for line in ax.lines}
    expected = [cells["all", "accuracy", 0.0], cells["cg", "accuracy", 0.1], cells["cg", "accuracy", 0.2]]
    np.testing.assert_array_equal(by_name["cg"].get_ydata(), expected)


def test_switches_that_change_nothing_are_said(tmp_path: Path) -> None:
    words = ("dataset.label_noise=0", "task.labels=clean", "task.restart=continued", "task.repeats=1", "task.seeds=1")
    done = call("validate", *RUN, *words, cwd=tmp_path)
    said = json.loads((done.folder / "run.json").read_text())["warnings"]
    assert any("task.labels=clean changes nothing" in line for line in said)
    assert any("task.restart=continued changes nothing with task.repeats=1" in line for line in said)


def test_what_is_kept_with_true_labels_has_no_wrong_ones(tmp_path: Path) -> None:
    done = call("validate", *RUN, "task.labels=clean", "task.seeds=1", "task.repeats=1", cwd=tmp_path)
    assert not pd.read_csv(done.folder / "cleansing.csv")["statistic"].str.startswith("wrong").any()
