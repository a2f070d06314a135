"""Estimates from retrained models: games with known answers, enumeration, scikit-learn, and ridge regression solved by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import problems as P
import pytest
import torch
from sklearn.linear_model import Lasso, RidgeCV

from influx.errors import InfluxError
from influx.estimators import _fits, data_shapley
from influx.estimators.data_shapley import DataShapley
from influx.estimators.subset import FITS, Subset
from influx.laboratory import Laboratory
from influx.problem import Problem
from influx.record import Facts, Record
from influx.removals import subsets
from influx.seeding import numpy_generator

Game = Callable[[frozenset[int]], np.ndarray]


@dataclass(frozen=True)
class Played(Record):
    """A record whose models' measurements are a game of the examples that are kept; it notes the sizes that were trained."""

    n: int
    game: Game
    sizes: list[int] = field(default_factory=list)

    facts = Facts(0, 0, None)
    trajectory = None
    mislabelled = np.empty(0, dtype=np.int64)

    def check_trajectory(self):
        raise AssertionError

    def models(self, count):
        raise AssertionError

    def recall(self, name, options, work):
        raise AssertionError

    def masked(self, masks, count):
        raise AssertionError

    def without(self, sets, *, average):
        self.sizes.extend(self.n - len(rows) for rows in sets)
        return torch.from_numpy(np.stack([self.game(frozenset(range(self.n)) - set(rows.tolist())) for rows in sets]))


def small(n: int) -> Problem:
    """A problem of so many training examples and P.N_TEST test examples."""
    whole = P.problem("softmax")
    return replace(whole, train=whole.train.take(slice(0, n)))


def additive(n: int, seed: int = 0) -> tuple[np.ndarray, Game]:
    """What each example adds to each measurement, and that game."""
    a = np.random.default_rng(seed).normal(size=(n, P.N_TEST))
    return a, lambda kept: 3.0 + a[sorted(kept)].sum(0)


def arbitrary(n: int, seed: int = 0) -> Game:
    """A game with a value of its own for every set."""
    return lambda kept: np.random.default_rng([seed, *sorted(kept), n]).normal(size=P.N_TEST)


def all_subsets(items: list[int]) -> list[frozenset[int]]:
    return [frozenset(some) for size in range(len(items) + 1) for some in itertools.combinations(items, size)]


def run(method, n: int, game: Game, seed: int = 0):
    return method.estimate(small(n), Played(n, game), seed)


# ---------------------------------------------------------------------------------------------------------------- subset


def test_the_difference_over_all_subsets_is_the_mean_effect_of_removal() -> None:
    n = 6
    game, sets = arbitrary(n), all_subsets(list(range(n)))
    kept = torch.tensor([[float(i in s) for i in range(n)] for s in sets], dtype=torch.float64)
    values = torch.from_numpy(np.stack([game(s) for s in sets]))
    for i in range(n):
        others = all_subsets([j for j in range(n) if j != i])
        mean = np.mean([game(s | {i}) - game(s) for s in others], axis=0)
        np.testing.assert_allclose(_fits.difference(kept, values).coefficients[i], mean, atol=1e-14)  # sums of 64 numbers


def test_the_differences_error_is_what_it_says() -> None:
    n, (a, game) = 12, additive(12)
    made = [run(Subset(subsets=120), n, game, seed) for seed in range(30)]
    errors = [(one.influence.numpy() + a) for one in made]
    actual, said = np.sqrt(np.mean(np.square(errors))), np.mean([one.facts["standard_error"] for one in made])
    assert said == pytest.approx(actual, rel=0.05)  # 30 x 12 x 6 errors, those of a draw correlated: about 2 %
    bias = np.mean(errors, axis=0)
    assert np.abs(bias).max() < 4.5 * said / math.sqrt(30)  # 72 means of 30 draws: beyond 4.5 standard errors once in 2,000


@pytest.mark.parametrize(("fit", "close"), [("ridge", 1e-4), ("lasso", 0.02)])  # smallest penalty: 1e-6, and 1e-3 of the largest slope
def test_regressions_recover_an_additive_measurement(fit: str, close: float) -> None:
    a, game = additive(20)
    found = run(Subset(subsets=120, fit=fit, fraction=0.4), 20, game)
    np.testing.assert_allclose(found.influence, -a, atol=close * np.abs(a).max())
    assert found.facts["explained_out_of_sample"] > 0.999


def test_the_lasso_finds_the_few_that_matter_among_more_examples_than_subsets() -> None:
    a, _ = additive(45)
    a[5:] = 0
    found = run(Subset(subsets=40, fit="lasso"), 45, lambda kept: a[sorted(kept)].sum(0))
    np.testing.assert_allclose(found.influence, -a, atol=0.03 * np.abs(a).max())


def noisy(m: int, n: int, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    kept = (rng.random((m, n)) < 0.5).astype(float)
    values = kept @ (rng.normal(size=(n, 4)) * (rng.random((n, 4)) < 0.3)) + rng.normal(size=(m, 4)) * [0.1, 0.5, 1, 3]
    return torch.from_numpy(kept), torch.from_numpy(values)


@pytest.mark.parametrize(("m", "n"), [(80, 30), (30, 50)])
def test_ridge_is_scikit_learns(m: int, n: int) -> None:
    kept, values = noisy(m, n)
    mean = ((kept - kept.mean(0)).square().sum() / m).item()
    theirs = RidgeCV(alphas=[mean * one for one in _fits.RIDGE], alpha_per_target=True).fit(kept, values)
    np.testing.assert_allclose(_fits.ridge(kept, values).coefficients, theirs.coef_.T, atol=1e-6)  # small penalties: condition 1e6


@pytest.mark.parametrize(("m", "n"), [(80, 30), (30, 50)])
def test_the_lasso_is_scikit_learns_at_the_penalty_that_cross_validation_prefers(m: int, n: int) -> None:
    kept, values = noisy(m, n)
    found = _fits.lasso(kept, values).coefficients.numpy()
    x, y = kept.numpy(), values.numpy()
    folds = np.arange(m) % _fits.FOLDS

    def fitted(rows: np.ndarray, column: int, ratio: float) -> Lasso:
        largest = np.abs((x[rows] - x[rows].mean(0)).T @ (y[rows, column] - y[rows, column].mean())).max() / rows.sum()
        return Lasso(alpha=ratio * largest, tol=1e-10, max_iter=100_000).fit(x[rows], y[rows, column])

    def error(column: int, ratio: float) -> float:
        parts = [(folds == f, fitted(folds != f, column, ratio)) for f in range(_fits.FOLDS)]
        return sum(np.square(y[out, column] - model.predict(x[out])).sum() for out, model in parts)

    for column in range(y.shape[1]):
        coefficients = [fitted(np.ones(m, bool), column, ratio).coef_ for ratio in _fits.LASSO]
        chosen = int(np.argmin([np.abs(one - found[:, column]).max() for one in coefficients]))
        scale = np.abs(coefficients[chosen]).max()
        np.testing.assert_allclose(found[:, column], coefficients[chosen], atol=5e-3 * scale)  # gap 1e-6: its root, x condition
        errors = [error(column, ratio) for ratio in _fits.LASSO]
        rises = (at for at in range(len(errors)) if errors[at] > _fits.RISEN * min(errors[: at + 1]))
        assert errors[chosen] < 1.03 * min(errors[: next(rises, len(errors))])  # compared at a gap of 1e-3


def test_a_constant_measurement_has_no_influence() -> None:
    for fit in FITS:
        found = run(Subset(subsets=60, fit=fit), 10, lambda kept: np.array([1.5, *[float(len(kept))] * (P.N_TEST - 1)])).influence
        assert torch.equal(found[:, 0], torch.zeros(10, dtype=torch.float64))


def test_the_lasso_says_when_it_has_not_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fits, "STEPS", 20)
    with pytest.warns(match=r"lasso of \d test examples has not converged in 20 steps: raise method\.subsets"):
        _fits.lasso(*noisy(80, 30))


@pytest.mark.parametrize("fit", FITS)
def test_a_test_examples_fit_does_not_depend_on_the_others(fit: str) -> None:
    kept, values = noisy(60, 30)
    alone = FITS[fit](kept, values[:, 1:2]).coefficients
    np.testing.assert_allclose(alone, FITS[fit](kept, values).coefficients[:, 1:2], atol=1e-9)  # products of other shapes round otherwise


def test_an_estimate_does_not_see_the_subsets_of_its_truth() -> None:
    made = {tuple(np.flatnonzero(~row)) for row in Subset(subsets=200).draw(8, seed=0)}
    same_size = {rows for rows in made if len(rows) == 4}
    truth = [tuple(rows) for rows in subsets(8, 0.5, 200, seed=0).sets]
    assert [rows for rows in truth[:5] if rows in same_size] != truth[:5]  # of 70 sets some coincide; the draws do not
    long = Subset(subsets=50).draw(60, seed=0)
    assert not {row.tobytes() for row in long} & {row.tobytes() for row in ~subsets(60, 0.5, 50, seed=0).mask(60)}


def test_subsets_keep_each_example_with_its_probability_and_are_never_empty() -> None:
    kept = Subset(subsets=4000, fraction=0.3).draw(5, seed=1)
    assert kept.any(1).all()
    assert kept.mean() == pytest.approx(0.3 / (1 - 0.7**5), abs=0.015)  # given that one is kept; 20,000 draws: 4 standard errors
    assert len(set(kept.sum(1))) > 1
    assert np.array_equal(kept, Subset(subsets=4000, fraction=0.3).draw(5, seed=1))
    assert not np.array_equal(kept, Subset(subsets=4000, fraction=0.3).draw(5, seed=2))


def test_too_few_subsets_are_refused_before_training() -> None:
    game = Played(45, arbitrary(45))
    with pytest.raises(InfluxError, match=r"method\.subsets=10 that keep 0\.5 of 45 .* in none: set method\.subsets to 17 at least"):
        Subset(subsets=10).plan(small(45), game)
    assert Subset(subsets=17).plan(small(45), game).trainings == 17
    with pytest.raises(InfluxError, match=r"subsets of one training example .* raise dataset\.train_size"):
        Subset().plan(small(1), game)
    with pytest.raises(InfluxError, match=r"all or none keep one of 45 training examples: raise method\.subsets"):
        Subset(subsets=2).draw(45, seed=0)
    assert game.sizes == []


@pytest.mark.parametrize(("option", "said"), [({"fraction": 1.0}, r"method\.fraction=1\.0"), ({"fit": "lars"}, "Did you mean 'lasso'")])
def test_wrong_options_are_refused(option: dict[str, object], said: str) -> None:
    with pytest.raises(InfluxError, match=said):
        Subset(**option)


# ---------------------------------------------------------------------------------------------------------- real training


def laboratory(seed: int = 0) -> tuple[Laboratory, Problem]:
    trained = P.trained("ridge", seed)
    made = P.experiment("ridge")
    return Laboratory(made, P.NOTHING_KEPT, seed, 2**30, trained=trained), made.problem(trained, seed)


def ridge_loss(kept: np.ndarray, divisor: float) -> np.ndarray:
    """½(ŷ − y)² on the test part after (1/divisor) Σ_kept ½(xᵀθ − y)² + (λ/2)‖θ‖², bias included, by the normal equations."""
    data = P.data("ridge")
    x, y, xt, yt = P.with_intercept(data.train_inputs), data.train_targets.numpy(), P.with_intercept(data.test_inputs), data.test_targets
    theta = np.linalg.solve(x[kept].T @ x[kept] / divisor + 0.05 * np.eye(x.shape[1]), x[kept].T @ y[kept] / divisor)
    return 0.5 * np.square(xt @ theta - yt.numpy())


def test_subset_models_average_over_what_they_keep() -> None:
    record, problem = laboratory()
    method = Subset(subsets=60)
    kept = method.draw(problem.n_train, 0)
    values = np.stack([ridge_loss(row, row.sum()) for row in kept])
    for i in (0, 7):
        by_hand = values[~kept[:, i]].mean(0) - values[kept[:, i]].mean(0)
        np.testing.assert_allclose(method.estimate(problem, record, 0).influence[i], by_hand, atol=1e-9)  # trained to a gradient of 1e-12


def test_shapley_models_keep_the_divisor() -> None:
    record, problem = laboratory()
    n = problem.n_train
    order = numpy_generator(0, "permutations", 0).permutation(n)
    values = [ridge_loss(np.isin(np.arange(n), order[:size]), n) for size in range(n + 1)]
    found = DataShapley(permutations=1, tolerance=0.0).estimate(problem, record, 0).influence
    np.testing.assert_allclose(found[order], -np.diff(values, axis=0), atol=1e-9)  # trained to a gradient of 1e-12


# ---------------------------------------------------------------------------------------------------------- data shapley


def exact_shapley(n: int, game: Game) -> np.ndarray:
    """Σ over sets without i of |S|! (n − |S| − 1)! / n! (v(S with i) − v(S))."""
    shares = np.zeros((n, P.N_TEST))
    for i in range(n):
        for some in all_subsets([j for j in range(n) if j != i]):
            weight = math.factorial(len(some)) * math.factorial(n - len(some) - 1) / math.factorial(n)
            shares[i] += weight * (game(some | {i}) - game(some))
    return shares


@pytest.mark.parametrize("n", [2, 4, 5])
def test_all_permutations_give_the_shapley_value(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = list(itertools.permutations(range(n)))

    class InTurn:
        def __init__(self, _seed: int, _purpose: str, number: int) -> None:
            self.number = number

        def permutation(self, _n: int) -> np.ndarray:
            return np.array(orders[self.number])

    monkeypatch.setattr(data_shapley, "numpy_generator", InTurn)
    game = arbitrary(n)
    found = run(DataShapley(permutations=len(orders), tolerance=0.0), n, game).influence
    np.testing.assert_allclose(found, -exact_shapley(n, game), atol=1e-13)  # means of up to 120 numbers


def test_one_permutation_is_enough_for_an_additive_game() -> None:
    a, game = additive(30)
    np.testing.assert_allclose(run(DataShapley(permutations=1, tolerance=0.0), 30, game).influence, -a, atol=1e-12)  # sums of 30


def test_shares_sum_to_what_all_are_worth() -> None:
    game = arbitrary(25)
    found = run(DataShapley(permutations=3, tolerance=0.0), 25, game).influence
    np.testing.assert_allclose(found.sum(0), game(frozenset()) - game(frozenset(range(25))), atol=1e-12)  # sums of 75


def test_mean_and_standard_error_are_those_of_the_orders() -> None:
    n, game = 9, arbitrary(9)
    orders = [numpy_generator(5, "permutations", number).permutation(n) for number in range(4)]
    shares = np.empty((4, n, P.N_TEST))
    for share, order in zip(shares, orders, strict=True):
        share[order] = np.diff([game(frozenset(order[:size].tolist())) for size in range(n + 1)], axis=0)
    found = run(DataShapley(permutations=4, tolerance=0.0), n, game, seed=5)
    np.testing.assert_allclose(found.influence, -shares.mean(0), atol=1e-13)
    errors = shares.std(0, ddof=1) / 2
    assert found.facts["monte_carlo_standard_error"] == pytest.approx(np.sqrt(np.square(errors).mean()), rel=1e-9)
    assert found.facts["mean_length_of_an_order"] == n
    assert "monte_carlo_standard_error" not in run(DataShapley(permutations=1), n, game).facts


def test_an_order_ends_where_the_rest_changes_next_to_nothing() -> None:
    n = 45
    game: Game = lambda kept: np.arange(1, P.N_TEST + 1) * min(len(kept), 10) * 1.0  # noqa: E731
    whole, record = run(DataShapley(permutations=2, tolerance=0.0), n, game), Played(n, game)
    cut = DataShapley(permutations=2, tolerance=0.01).estimate(small(n), record, 0)
    assert torch.equal(cut.influence, whole.influence)
    assert 10 <= cut.facts["mean_length_of_an_order"] <= 10 + n / data_shapley.LOOKS
    assert len(record.sizes) <= 2 + 2 * (10 + n / data_shapley.LOOKS + data_shapley.LOOKS)
    loose = run(DataShapley(permutations=1, tolerance=0.5), n, game)
    assert 5 <= loose.facts["mean_length_of_an_order"] <= 5 + n / data_shapley.LOOKS


def test_too_many_trainings_are_refused_before_the_first() -> None:
    record = Played(45, arbitrary(45))
    with pytest.raises(InfluxError, match=r"method\.permutations=5 of 45 .* up to 222 trainings: lower .* or raise method\.most=200"):
        DataShapley(permutations=5, most=200).plan(small(45), record)
    assert DataShapley(permutations=5).plan(small(45), record).trainings == 222
    assert record.sizes == []


def test_the_same_seed_gives_the_same_bytes() -> None:
    for method in (Subset(subsets=60, fit="lasso"), DataShapley()):
        one, again, other = (run(method, 20, arbitrary(20), seed).influence for seed in (0, 0, 1))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
