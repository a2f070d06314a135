"""What is left out: selections by hand, the partitions, the refusals; and the truths of subsets and groups against plain refits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import NOTHING_KEPT, Prediction, experiment, ridge_solution, with_intercept
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression

from influx import removals
from influx.errors import InfluxError
from influx.experiment import Experiment
from influx.removals import Removals, ranked_rows
from influx.retraining import Retraining, Truth
from influx.statistics import compare, per_test
from influx.training.first_order import Sgd

INFLUENCE = np.array([[0.1, 0.3], [-5, -1], [2, 1], [0, 0], [3, -3.5], [-0.2, -0.2], [1, 1], [-1, -1.5]])
LOSSES = np.array([0.3, 2.0, 0.1, 0.9, 0.9, 0.0, 5.0, 0.2])
POSITIONS = [50, 7, 23, 99, 4, 61, 12, 35]  # of the eight rows, in the data set's own order
LABELS = [0, 2, 1, 1, 2, 0, 1, 1]


def eight(labels: list[int] = LABELS) -> Experiment:
    """Eight training rows of three classes at `POSITIONS`."""
    data = experiment("mlp").data
    part = {"train_inputs": data.train_inputs[:8], "train_targets": torch.tensor(labels), "train_index": np.array(POSITIONS)}
    return experiment("mlp", data=replace(data, **part))


def chosen(truth: str = "loo", seed: int = 0, subject: Experiment | None = None, **options) -> list[list[int]]:
    sets = Retraining(**options).choose(truth, subject or eight(), INFLUENCE, LOSSES, seed)
    assert all((np.diff(rows) > 0).all() for rows in sets.sets)  # ascending, none twice
    return [rows.tolist() for rows in sets.sets]


def rows_of(**options) -> list[int]:
    """The rows of single removals."""
    found = chosen(**options)
    assert all(len(rows) == 1 for rows in found)
    return [row for (row,) in found]


# ------------------------------------------------------------------------------------------------------- single examples


def test_top_takes_the_largest_mean_magnitude():
    # mean |influence|: .2, 3, 1.5, 0, 3.25, .2, 1, 1.25
    assert rows_of(removed=3, selection="top") == [1, 2, 4]
    assert rows_of(removed=1, selection="top") == [4]


def test_loss_takes_the_largest_training_losses_and_the_first_of_equals():
    assert rows_of(removed=2, selection="loss") == [1, 6]
    assert rows_of(removed=3, selection="loss") == [1, 3, 6]


def test_stratified_takes_evenly_spaced_ranks_with_both_ends():
    # ascending mean influence: 1 (−3), 7 (−1.25), 4 (−.25), 5 (−.2), 3 (0), 0 (.2), 6 (1), 2 (1.5)
    assert rows_of(removed=3, selection="stratified") == [1, 2, 3]  # ranks 0, 3.5 -> 4, 7
    for count in range(1, 9):
        assert len(set(rows_of(removed=count, selection="stratified"))) == count


def test_random_is_a_function_of_the_seed():
    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
    one = rows_of(removed=4, selection="random")
    np.random.seed(2)  # noqa: NPY002
    assert rows_of(removed=4, selection="random") == one == sorted(set(one))
    assert len({tuple(rows_of(seed=seed, removed=4, selection="random")) for seed in range(10)}) > 5


@pytest.mark.parametrize(
    ("truth", "count"), [("loo", {"removed": 4}), ("subset", {"subsets": 3}), ("group", {"groups": 3, "group_size": 2})]
)
def test_a_fixed_selection_seed_leaves_the_same_out_whatever_the_runs_seed(truth: str, count: dict[str, int]) -> None:
    drawn = [chosen(truth, seed=seed, selection_seed=5, **count) for seed in range(5)]
    assert all(each == drawn[0] for each in drawn)
    assert drawn[0] == chosen(truth, seed=5, **count)  # the same draw as a run of that seed


def test_random_is_uniform():
    drawn = [ranked_rows("random", 2, INFLUENCE, LOSSES, seed) for seed in range(400)]
    counts = np.bincount(np.concatenate(drawn), minlength=8)
    assert (np.abs(counts - 100) < 4 * np.sqrt(100 * 0.75)).all()  # hypergeometric: mean 100, variance 75, four sigma


@pytest.mark.parametrize("options", [{"removed": "all"}, {"selection": "all"}, {"removed": 3, "selection": "all"}])
def test_all_takes_all(options):
    assert rows_of(**options) == list(range(8))


def test_an_explicit_index_names_positions_of_the_data_set():
    assert rows_of(index=[99, 7, 35, 7]) == [1, 3, 7]  # ascending rows of the training part, whatever the order given, each once
    assert rows_of(index=[4], removed="all", selection="all") == [4]


# ------------------------------------------------------------------------------------------------------ subsets and groups


@pytest.mark.parametrize(("fraction", "left_out"), [(0.5, 4), (0.75, 2), (0.9, 1), (0.1, 7)])
def test_subsets_keep_their_share(fraction, left_out):
    found = chosen("subset", fraction=fraction, subsets=30)
    assert {len(rows) for rows in found} == {left_out}
    assert len(found) == 30
    assert len({tuple(rows) for rows in found}) > 5
    assert chosen("subset", fraction=fraction, subsets=30) == found != chosen("subset", seed=1, fraction=fraction, subsets=30)


def test_subsets_are_uniform():
    counts = removals.subsets(8, 0.75, 400, 0).mask(8).sum(0)
    assert (np.abs(counts - 100) < 4 * np.sqrt(100 * 0.75)).all()  # as above


def test_more_subsets_begin_with_the_fewer_ones():
    assert chosen("subset", subsets=20)[:7] == chosen("subset", subsets=7)


@pytest.mark.parametrize(
    ("selection", "first", "second"),
    [("top", [1, 2, 4], [0, 6, 7]), ("loss", [1, 3, 6], [0, 4, 7])],  # the largest together, then those that follow
)
def test_groups_are_disjoint_and_in_the_order_of_their_ranks(selection, first, second):
    assert chosen("group", selection=selection, groups=2, group_size=3) == [first, second]


def test_random_groups_are_disjoint():
    found = chosen("group", groups=4, group_size=2)
    assert sorted(row for rows in found for row in rows) == list(range(8))
    assert found != chosen("group", seed=1, groups=4, group_size=2)


def test_a_class_is_a_group():
    assert chosen("group", selection="class", group_size=None) == [[0, 5], [2, 3, 6, 7], [1, 4]]
    assert chosen("group", selection="class", group_size=None, groups=1) == [[0, 5], [2, 3, 6, 7], [1, 4]]  # `groups` does not count


def test_groups_of_a_class_are_disjoint_and_take_the_classes_in_turn():
    labels = [0, 1] * 4
    found = chosen("group", subject=eight(labels), selection="class", groups=4, group_size=2)
    assert [{labels[row] for row in rows} for rows in found] == [{0}, {1}, {0}, {1}]
    assert sorted(row for rows in found for row in rows) == list(range(8))
    assert found != chosen("group", subject=eight(labels), seed=1, selection="class", groups=4, group_size=2)


@pytest.mark.parametrize(("truth", "unit"), [("loo", "removed example"), ("subset", "removed subset"), ("group", "removed group")])
def test_sets_know_what_they_are_called(truth, unit):
    sets = Retraining(removed=2, subsets=2, groups=2, group_size=1).choose(truth, eight(), INFLUENCE, LOSSES, 0)
    assert sets.unit == unit
    assert (sets.rows is None) == (truth != "loo")
    assert {part.unit for part in sets.batches(1)} == {unit}


# ----------------------------------------------------------------------------------------------------------------- algebra


SETS = Removals((np.array([1]), np.array([0, 2, 7]), np.array([], dtype=int), np.arange(8)), "removed group")


def test_masks_and_predictions_are_written_out():
    mask = SETS.mask(8)
    assert mask.dtype == bool
    assert [np.flatnonzero(row).tolist() for row in mask] == [rows.tolist() for rows in SETS.sets]
    wanted = [[sum(INFLUENCE[row, t] for row in rows) for t in range(2)] for rows in SETS.sets]
    np.testing.assert_allclose(SETS.predicted(INFLUENCE), wanted, rtol=1e-14, atol=1e-15)  # eight float64 additions, in another order


def test_predictions_of_single_examples_are_the_estimate_itself():
    assert np.array_equal(Removals.single([3, 1, 7]).predicted(INFLUENCE), INFLUENCE[[3, 1, 7]])


@pytest.mark.parametrize("count", [1, 2, 7, 10, 50, 101])
@pytest.mark.parametrize("size", [1, 3, 10, 64])
def test_batches_are_as_few_and_as_equal_as_possible(count, size):
    sets = Removals(tuple(np.array([row]) for row in range(count)))
    parts = sets.batches(size)
    assert [rows.tolist() for part in parts for rows in part.sets] == [[row] for row in range(count)]
    sizes = {len(part) for part in parts}
    assert len(parts) == -(-count // size)
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    other = Removals(tuple(np.arange(row % 3 + 1) for row in range(count))).batches(size)
    assert [len(part) for part in other] == [len(part) for part in parts]  # numbers alone decide


# ---------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("truth", "options", "message"),
    [
        ("loo", {}, r"retraining\.removed=50 is more than the 8 training examples; use a smaller number, or all"),
        ("loo", {"index": [5000]}, r"retraining\.index: 5000 is not in the training part"),
        ("loo", {"index": []}, r"retraining\.index is empty"),
        ("loo", {"removed": 2, "selection": "class"}, r"retraining\.selection=class needs truth=group: a class is not a single example"),
        ("subset", {"fraction": 0.01}, r"retraining\.fraction=0\.01 keeps 0 of 8 training examples: choose one that leaves some out"),
        ("subset", {"fraction": 0.99}, r"retraining\.fraction=0\.99 keeps 8 of 8 training examples"),
        ("subset", {"index": [50]}, r"retraining\.index is for truth=loo; truth=subset draws"),
        ("subset", {"selection": "top"}, r"retraining\.selection=top is not for truth=subset"),
        ("group", {"index": [50], "groups": 2, "group_size": 2}, r"retraining\.index is for truth=loo; truth=group draws"),
        ("group", {}, r"retraining\.groups=20 groups of retraining\.group_size=10 need 200 training examples.*there are 8"),
        ("group", {"groups": 1, "group_size": 8}, r"some must be left: there are 8"),
        ("group", {"selection": "stratified"}, r"truth=group has no retraining\.selection=stratified: .* random, top, loss, class"),
        ("group", {"selection": "all"}, r"truth=group has no retraining\.selection=all"),
        ("group", {"group_size": None}, r"retraining\.group_size=null \(whole classes\) needs retraining\.selection=class"),
        ("group", {"selection": "class", "groups": 3, "group_size": 3}, r"need 3 training examples of class 0; there are 2"),
        ("group", {"selection": "class", "groups": 4, "group_size": 2}, r"need 4 training examples of class 0; there are 2"),
    ],
)
def test_what_cannot_be_left_out_is_refused_before_training(truth, options, message):
    with pytest.raises(InfluxError, match=message):
        Retraining(**options).check(truth, eight())


@pytest.mark.parametrize("size", [None, 2])
def test_the_only_class_cannot_be_left_out(size):
    with pytest.raises(InfluxError, match=r"retraining\.selection=class needs training examples of two classes at least"):
        Retraining(selection="class", groups=1, group_size=size).check("group", eight([1] * 8))


def test_numbers_have_no_classes():
    with pytest.raises(InfluxError, match=r"retraining\.selection=class needs labels; tiny has numbers as targets"):
        Retraining(selection="class").check("group", experiment("ridge"))


@pytest.mark.parametrize(
    ("truth", "options"),
    [
        ("loo", {"removed": 8}), ("loo", {"removed": "all"}), ("loo", {"selection": "all"}), ("loo", {"index": [99]}),
        ("subset", {}), ("subset", {"removed": 8, "groups": 99}), ("group", {"groups": 8, "group_size": 1}),
        ("group", {"selection": "class", "group_size": None}), ("group", {"selection": "class", "groups": 3, "group_size": 2}),
    ],
)  # fmt: skip
def test_what_can_be_left_out_is_not_refused(truth, options):
    Retraining(**options).check(truth, eight())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, r"retraining\.fraction=0\.0 is not possible: it must be a number above 0 and below 1"),
        ({"fraction": 1}, r"retraining\.fraction=1"),
        ({"subsets": 0}, r"retraining\.subsets=0"),
        ({"groups": 0}, r"retraining\.groups=0"),
        ({"group_size": 0}, r"retraining\.group_size=0 .*, or null"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(InfluxError, match=message):
        Retraining(**options)


# ------------------------------------------------------------------------------------------------- truths against refits


def truth_of(subject: Experiment, sets: Removals, **options) -> Truth:
    return Retraining(**{"seeds": 1, **options}).run(subject, subject.train(0, NOTHING_KEPT), sets, 0, NOTHING_KEPT)


def ridge_changes(subject: Experiment, sets: Removals, divisor: str = "n") -> tuple[np.ndarray, np.ndarray]:
    """Changes of predictions and of half squared errors by the normal equations of what is left."""
    data = subject.data
    x, x_test = with_intercept(data.train_inputs), with_intercept(data.test_inputs)
    y, y_test = data.train_targets.numpy(), data.test_targets.numpy()
    weights = 1.0 - sets.mask(len(y))
    if divisor == "n-1":
        weights *= len(y) / weights.sum(1, keepdims=True)
    full, *left = (x_test @ ridge_solution(x, y, subject.training.weight_decay, w) for w in [np.ones(len(y)), *weights])
    predictions = np.stack(left)
    return predictions - full, 0.5 * (predictions - y_test) ** 2 - 0.5 * (full - y_test) ** 2


RIDGE_SETS = {
    "subset": removals.subsets(30, 0.5, 40, 0),
    "most": removals.subsets(30, 0.1, 5, 0),  # three rows left for five parameters: the penalty decides
    "group": removals.groups(np.arange(30)[::-1], 10, 2),
}


@pytest.mark.parametrize("case", RIDGE_SETS)
@pytest.mark.parametrize("divisor", ["n", "n-1"])
@pytest.mark.parametrize("start", ["scratch", "warm"])
def test_ridge_without_a_set_is_its_normal_equations(case, divisor, start):
    subject, sets = experiment("ridge"), RIDGE_SETS[case]
    predictions, losses = ridge_changes(subject, sets, divisor)
    ours = truth_of(replace(subject, measurement=Prediction()), sets, divisor=divisor, start=start)
    # ‖θ − optimum‖ ≤ 1e-12/λ = 2e-11 on both sides, times ‖x‖ and the error, up to ten each
    np.testing.assert_allclose(ours.change[..., 0], predictions, rtol=0, atol=1e-8)
    np.testing.assert_allclose(truth_of(subject, sets, divisor=divisor, start=start).change[..., 0], losses, rtol=0, atol=1e-8)
    assert np.abs(predictions).max() > 0.1


def test_the_linear_datamodelling_score_is_scipys_over_closed_form_refits():
    """LDS: for each test example Spearman over subsets of Σ influence and the refitted change; the table has the mean."""
    subject, sets = experiment("ridge"), RIDGE_SETS["subset"]
    rng = np.random.default_rng(0)
    influence = rng.normal(size=(30, 6)) - ridge_changes(subject, Removals.single(range(30)))[1]  # an estimate of middling quality
    wanted = [
        spearmanr([influence[rows, t].sum() for rows in sets.sets], ridge_changes(subject, sets)[1][:, t]).statistic for t in range(6)
    ]
    truth = truth_of(subject, sets)
    predicted = truth.removals.predicted(influence)
    # ranks: exactly equal once no two of 40 changes are within 1e-8 of each other
    assert per_test(predicted, truth.change).spearman.tolist() == pytest.approx(wanted, abs=1e-12)
    table = compare(predicted, truth.change, calibrated=True, resamples=10).set_index("statistic")
    assert table.value["spearman"] == pytest.approx(np.mean(wanted), abs=1e-12)
    assert 0.05 < abs(np.mean(wanted)) < 0.95


def refits(subject: Experiment, sets: Removals, divisor: str) -> np.ndarray:
    """Test losses of scikit-learn's softmax regression on what is left, and on everything (first)."""
    data, lam = subject.data, subject.training.weight_decay
    x, x_test, y = with_intercept(data.train_inputs), with_intercept(data.test_inputs), data.train_targets.numpy()
    found = []
    for mask in [np.zeros(len(y), bool), *sets.mask(len(y))]:
        n = (~mask).sum() if divisor == "n-1" else len(y)
        model = LogisticRegression(C=1 / (n * lam), fit_intercept=False, solver="newton-cholesky", tol=1e-12, max_iter=1000)
        p = model.fit(x[~mask], y[~mask]).predict_proba(x_test)
        found.append(-np.log(p[np.arange(len(p)), data.test_targets.numpy()]))
    return np.stack(found)


@pytest.mark.parametrize("divisor", ["n", "n-1"])
@pytest.mark.parametrize("truth", ["subset", "group"])
def test_softmax_regression_without_a_set_is_scikit_learns_refit(truth, divisor):
    subject = experiment("softmax")
    plan = Retraining(seeds=1, subsets=4, groups=3, group_size=10, divisor=divisor)
    sets = plan.choose(truth, subject, np.zeros((45, 6)), np.zeros(45), 0)
    full, *left = refits(subject, sets, divisor)
    ours = truth_of(subject, sets, divisor=divisor)
    np.testing.assert_allclose(ours.full[:, 0], full, rtol=0, atol=1e-6)  # scikit-learn's stopping rule, in its own scale
    np.testing.assert_allclose(ours.change[..., 0], np.stack(left) - full, rtol=0, atol=1e-6)
    assert np.abs(ours.change).max() > 0.05


def test_a_left_out_class_is_no_longer_expected():
    """Its own rows' loss rises, the others' falls: there is one class less to choose from."""
    subject = experiment("softmax")
    data, plan = subject.data, Retraining(selection="class", group_size=None)
    own = replace(subject, data=replace(data, test_inputs=data.train_inputs, test_targets=data.train_targets))
    change = truth_of(own, plan.choose("group", own, np.zeros((45, 45)), np.zeros(45), 0)).change[..., 0]
    for label, row in enumerate(change):
        mine = data.train_targets.numpy() == label
        assert row[mine].mean() > 1
        assert row[~mine].mean() < -0.05


@pytest.mark.parametrize("models_at_once", [1, 4, 1000])
def test_sets_of_a_network_do_not_depend_on_the_stacks(models_at_once):
    subject = experiment("mlp", training=Sgd(lr=0.1, epochs=3, batch_size=8))
    sets = removals.subsets(36, 0.6, 9, 0)
    whole, cut = truth_of(subject, sets), truth_of(subject, sets, models_at_once=models_at_once)
    np.testing.assert_allclose(cut.change, whole.change, rtol=0, atol=1e-12)  # float64 losses of size one after a dozen steps
