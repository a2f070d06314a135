"""Statistics against scipy, resampled statistics against written-out resamples."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from influx import bootstrap, statistics
from influx.errors import InfluxError
from influx.reliability import CORRELATIONS, noise_ceiling, reliability
from influx.statistics import compare, per_test, per_test_correlation

SCIPY = {"pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr, "kendall": scipy.stats.kendalltau}


def study(n_removed=25, n_test=6, n_seeds=1, *, ties=False, noise=1.0, key=0):
    """An estimate and a change with something in common; `ties` rounds them coarsely."""
    rng = np.random.default_rng(key)
    signal = rng.normal(size=(n_removed, n_test))
    estimate = signal + noise * rng.normal(size=signal.shape)
    change = signal[..., None] + noise * rng.normal(size=(n_removed, n_test, n_seeds))
    return (np.round(estimate), np.round(change)) if ties else (estimate, change)


def rows(table):
    return table.set_index("statistic")


def written_out(values, removed, test):
    return np.repeat(np.repeat(values, removed, axis=0), test, axis=1)


def mean_over_columns(function, x, y):
    return np.mean([function(*column).statistic for column in zip(x.T, y.T, strict=True)])


# ------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_scipys(ties):
    estimate, change = study(n_seeds=3, ties=ties)
    truth = change.mean(axis=2)
    table = rows(compare(estimate, change, calibrated=True, resamples=10))
    for kind, function in SCIPY.items():
        expected = [function(x, y).statistic for x, y in zip(estimate.T, truth.T, strict=True)]
        np.testing.assert_allclose(per_test_correlation(estimate, truth, kind), expected, atol=1e-12)
        assert table.value[kind] == pytest.approx(np.mean(expected), abs=1e-12)
    for kind in ("pearson", "spearman"):
        expected = SCIPY[kind](estimate.ravel(), truth.ravel()).statistic
        assert table.value[f"{kind}_pooled"] == pytest.approx(expected, abs=1e-12)


def test_float32_is_computed_in_float64():
    estimate, change = (values.astype(np.float32) for values in study())
    found = per_test_correlation(estimate, change[..., 0], "pearson").mean()
    assert found == pytest.approx(mean_over_columns(scipy.stats.pearsonr, estimate.astype(float), change[..., 0].astype(float)), abs=1e-12)


def test_scale_is_judged_only_when_calibrated():
    estimate, change = study()
    truth = change[..., 0]
    table = rows(compare(estimate, change, calibrated=True, resamples=10))
    assert table.value["slope"] == pytest.approx(np.polyfit(estimate.ravel(), truth.ravel(), 1)[0], rel=1e-12)
    assert table.value["rmse"] == pytest.approx(np.sqrt(np.mean((truth - estimate) ** 2)), rel=1e-12)
    uncalibrated = compare(estimate, change, calibrated=False, resamples=10)
    assert list(uncalibrated.statistic) == list(table.index[:-2])
    assert " ".join(uncalibrated.columns) == (
        "statistic value ci_low ci_high noise_ceiling n_removed n_test n_seeds n_undefined "
        "ceiling_low ceiling_high corrected corrected_low corrected_high this_model"
    )


def test_sign_agreement_counts_a_lone_zero_as_disagreement():
    estimate = np.array([[1.0], [0.0], [0.0], [-2.0]])
    truth = np.array([[2.0], [0.0], [3.0], [4.0]])
    assert rows(compare(estimate, truth[..., None], calibrated=False)).value["sign_agreement"] == 0.5


def test_top_overlap_is_that_of_the_most_helpful():
    estimate, change = study(n_removed=40, key=3)
    truth = change[..., 0]
    shared = [len({*np.argsort(x)[-7:]} & {*np.argsort(y)[-7:]}) / 7 for x, y in zip(estimate.T, truth.T, strict=True)]
    assert rows(compare(estimate, change, calibrated=False, top_k=7)).value["top_7_overlap"] == pytest.approx(np.mean(shared))


@pytest.mark.parametrize(("n_removed", "name"), [(30, "top_10_overlap"), (8, "top_4_overlap"), (1, "top_1_overlap")])
def test_top_k_is_at_most_half_of_the_removed(n_removed, name):
    assert name in set(compare(*study(n_removed), calibrated=False, resamples=10).statistic)


def test_ties_share_the_places_of_the_top():
    flat, values, once = np.zeros(20), np.arange(20.0), np.ones((1, 20), np.int32)
    assert bootstrap.overlap(flat, values, 5)(once).item() == pytest.approx(5 / 20)  # tells nothing apart: chance
    assert bootstrap.overlap(values // 3, values // 3, 5)(once).item() == 1
    two_tied = np.array([3.0, 2, 2, 1])  # half of each 2 is in the top 2
    assert bootstrap.overlap(two_tied, np.array([4.0, 3, 2, 1]), 2)(once[:, :4]).item() == pytest.approx(0.75)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_tiny_and_huge_numbers_change_nothing_but_the_unit(scale):
    estimate, change = study()
    expected, scaled = (rows(compare(estimate * s, change * s, calibrated=True, resamples=50)) for s in (1.0, scale))
    np.testing.assert_allclose(scaled.drop(index="rmse"), expected.drop(index="rmse"), rtol=1e-9)
    assert scaled.value["rmse"] == pytest.approx(expected.value["rmse"] * scale, rel=1e-9)


def test_other_sign_other_correlation():
    estimate, change = study(ties=True)
    table, flipped = (rows(compare(sign * estimate, change, calibrated=True, resamples=200)) for sign in (1, -1))
    for name in (*SCIPY, "pearson_pooled", "spearman_pooled", "slope"):
        assert flipped.value[name] == pytest.approx(-table.value[name], abs=1e-12)
        assert flipped.ci_low[name] == pytest.approx(-table.ci_high[name], abs=1e-9)


def test_order_of_removals_does_not_matter():
    estimate, change = study(n_removed=60)
    order = np.random.default_rng(1).permutation(60)
    table, permuted = rows(compare(estimate, change, calibrated=True)), rows(compare(estimate[order], change[order], calibrated=True))
    np.testing.assert_allclose(permuted.value, table.value, atol=1e-12)
    width = table.ci_high - table.ci_low
    assert (np.abs(permuted.ci_low - table.ci_low) < 0.3 * width).all()
    assert (np.abs(permuted.ci_high - table.ci_high) < 0.3 * width).all()


# ---------------------------------------------------------------------------------------------------------- undefined


def test_constant_test_examples_are_left_out_and_counted():
    estimate, change = study(n_test=6)
    estimate[:, 1], change[:, 4] = 0.1, 0.3  # sums of 0.1 are not exact: a variance of 1e-34 is no spread
    table = rows(compare(estimate, change, calibrated=False, resamples=50))
    kept = rows(compare(np.delete(estimate, [1, 4], 1), np.delete(change, [1, 4], 1), calibrated=False, resamples=50))
    for kind in SCIPY:
        assert table.n_undefined[kind] == 2
        assert table.value[kind] == pytest.approx(kept.value[kind], abs=1e-12)
        assert np.isfinite(table.ci_low[kind])
        assert np.isnan(per_test_correlation(estimate, change[..., 0], kind)).nonzero()[0].tolist() == [1, 4]
    assert (table.n_undefined.drop(index=list(SCIPY)) == 0).all()


def test_nothing_defined_is_nan():
    estimate, change = study()
    table = rows(compare(np.zeros_like(estimate), change, calibrated=True, resamples=20))
    correlations = [*SCIPY, "pearson_pooled", "spearman_pooled"]
    assert table.loc[correlations, ["value", "ci_low", "ci_high"]].isna().all(axis=None)
    assert (table.n_undefined[correlations] == estimate.shape[1]).all()
    assert np.isnan(table.value["slope"])
    assert table.value["top_10_overlap"] == pytest.approx(10 / 25)


@pytest.mark.parametrize("n_removed", [1, 2])
def test_too_few_removals_have_a_value_but_no_interval(n_removed):
    table = rows(compare(*study(n_removed, n_seeds=2), calibrated=True))
    assert table[["ci_low", "ci_high"]].isna().all(axis=None)
    assert np.isfinite(table.value[["sign_agreement", "rmse"]]).all()
    assert np.isfinite(table.value["spearman"]) == (n_removed == 2)


# ---------------------------------------------------------------------------------------------------------- bootstrap


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_of_a_resample_are_those_of_the_written_out_one(ties):
    values = study(ties=ties)[0][:, 0]
    copies = bootstrap.Resamples.draw(len(values), 1, 20, seed=4).removed
    smaller, no_larger = bootstrap.Order.of(values).counts(copies)
    for row, below, through in zip(copies, smaller, no_larger, strict=True):
        ranks = (below + through + 1) / 2
        np.testing.assert_array_equal(np.repeat(ranks, row), scipy.stats.rankdata(np.repeat(values, row)))


@pytest.mark.filterwarnings("ignore:An input array is constant")
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("tile", [bootstrap.TILE, 50])
def test_statistics_of_a_resample_are_those_of_the_written_out_one(monkeypatch, ties, tile):
    monkeypatch.setattr(bootstrap, "TILE", tile)
    monkeypatch.setattr(bootstrap, "CHUNK", 100)
    estimate, change = study(ties=ties, n_seeds=1)
    truth = change[..., 0]
    draws = bootstrap.Resamples.draw(*truth.shape, 12, seed=1)
    found = {name: getattr(bootstrap, name)(estimate, truth, draws) for name in (*SCIPY, "pearson_pooled", "spearman_pooled", "slope")}
    for r, (removed, test) in enumerate(zip(draws.removed, draws.test, strict=True)):
        x, y = written_out(estimate, removed, test), written_out(truth, removed, test)
        for kind, function in SCIPY.items():
            assert found[kind][r] == pytest.approx(mean_over_columns(function, x, y), abs=1e-12)
        for kind in ("pearson", "spearman"):
            assert found[f"{kind}_pooled"][r] == pytest.approx(SCIPY[kind](x.ravel(), y.ravel()).statistic, abs=1e-12)
        assert found["slope"][r] == pytest.approx(np.polyfit(x.ravel(), y.ravel(), 1)[0], rel=1e-9)


def test_resamples_in_which_all_is_the_same_are_undefined():
    values = np.array([[1.0], [2.0], [1e6]])
    draws = bootstrap.Resamples(np.array([[3, 0, 0], [0, 3, 0], [2, 1, 0]], np.int32), np.ones((3, 1), np.int32))
    for name in (*SCIPY, "pearson_pooled", "spearman_pooled"):
        assert np.isnan(getattr(bootstrap, name)(values, values, draws)).tolist() == [True, True, False], name


def test_resamples_are_fixed_by_the_seed_and_leave_the_global_generator_alone():
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    study_of = study()
    first, again, other = (compare(*study_of, calibrated=True, resamples=50, seed=seed) for seed in (3, 3, 4))
    assert first.equals(again)
    assert not np.allclose(first.ci_low, other.ci_low)
    np.testing.assert_array_equal(first.value, other.value)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_one_test_example_is_not_resampled():
    draws = bootstrap.Resamples.draw(5, 1, 30, seed=0)
    assert (draws.test == 1).all()
    assert (draws.removed.sum(axis=1) == 5).all()
    assert len(np.unique(draws.removed, axis=0)) > 10


@pytest.mark.parametrize("kind", ["pearson", "spearman", "kendall"])
def test_interval_covers_the_population(kind):
    """Rows share a common factor, as removals do; 95 % intervals, 120 trials."""
    rng = np.random.default_rng(5)

    def trial():
        signal = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 8))
        return signal + rng.normal(size=signal.shape), signal + rng.normal(size=signal.shape)

    population = np.mean([np.mean(per_test_correlation(*trial(), kind)) for _ in range(400)])
    covered = []
    for seed in range(120):
        estimate, truth = trial()
        draws = bootstrap.Resamples.draw(*truth.shape, 150, seed)
        value = np.mean(per_test_correlation(estimate, truth, kind))
        low, high = bootstrap.interval(getattr(bootstrap, kind)(estimate, truth, draws), value, (-1, 1))
        covered.append(low <= population <= high)
    assert 0.87 <= np.mean(covered) <= 1


def test_a_good_estimate_lies_inside_its_interval():
    """Copies are ties, which draw Spearman down: the plain percentile interval of 0.98 can end below 0.98."""
    for key in range(10):
        table = rows(compare(*study(30, 100, noise=0.1, key=key), calibrated=True, resamples=200))
        assert (table.ci_low <= table.value).all()
        assert (table.value <= table.ci_high).all()
        assert table.ci_high.drop(index=["slope", "rmse"]).max() <= 1


def test_a_large_study_gets_fewer_resamples_then_none(monkeypatch):
    assert bootstrap.affordable(1000, cost=10, budget=10_000) == 1000
    assert bootstrap.affordable(1000, cost=10, budget=5_000) == 500
    assert bootstrap.affordable(1000, cost=10, budget=490) == 0
    assert bootstrap.affordable(20, cost=10, budget=200) == 20
    estimate, change = study()
    full = rows(compare(estimate, change, calibrated=False, resamples=100))
    monkeypatch.setattr(statistics, "KENDALL_BUDGET", 25 * 25 * 6 * 60)
    fewer = rows(compare(estimate, change, calibrated=False, resamples=100))
    short = rows(compare(estimate, change, calibrated=False, resamples=60))
    assert fewer.ci_low["kendall"] == pytest.approx(short.ci_low["kendall"], abs=0.05)
    assert fewer.ci_low["kendall"] != full.ci_low["kendall"]
    monkeypatch.setattr(statistics, "KENDALL_BUDGET", 25 * 25 * 6 * 40)
    none = rows(compare(estimate, change, calibrated=False, resamples=100))
    assert np.isnan(none.ci_low["kendall"])
    assert none.value["kendall"] == full.value["kendall"]
    assert none.ci_low["spearman"] == full.ci_low["spearman"]


# ---------------------------------------------------------------------------------------------- against the noise ceiling


def test_corrected_is_the_value_over_its_ceiling():
    estimate, change = study(n_seeds=4)
    table = rows(compare(estimate, change, calibrated=True, resamples=100))
    correlations = [kind for kind in CORRELATIONS if kind != "kendall"]
    np.testing.assert_allclose(table.corrected[correlations], (table.value / table.noise_ceiling)[correlations])
    assert np.isnan(table.corrected["kendall"])  # its attenuation is not a factor
    for kind in CORRELATIONS:
        assert table.noise_ceiling[kind] == pytest.approx(noise_ceiling(change, kind), abs=1e-12)
    inside = table.loc[correlations]
    assert (inside.ceiling_low < inside.noise_ceiling).all()
    assert (inside.noise_ceiling < inside.ceiling_high).all()
    assert (inside.corrected_low < inside.corrected).all()
    assert (inside.corrected < inside.corrected_high).all()
    columns = ["noise_ceiling", "ceiling_low", "ceiling_high", "corrected", "corrected_low", "corrected_high"]
    assert table.drop(index=list(CORRELATIONS))[columns].isna().all(axis=None)
    flipped = rows(compare(-estimate, change, calibrated=True, resamples=100))
    np.testing.assert_allclose(flipped.corrected, -table.corrected)  # signed


def test_corrected_is_not_cut_at_one():
    _, change = study(n_removed=200, n_test=20, n_seeds=2, noise=3.0)
    table = rows(compare(change.mean(axis=2), change, calibrated=True, resamples=50))  # an estimate that knows the seeds' noise
    correlations = [kind for kind in CORRELATIONS if kind != "kendall"]
    assert (table.corrected[correlations] > 1.2).all()
    assert (table.corrected_low[correlations] > 1.1).all()


def test_corrected_interval_holds_the_correlation_with_the_noiseless_truth():
    """Against normal μ an estimate μ + e with var(e) = 1/4 has Pearson sqrt(0.8), whatever the seeds' noise; 60 trials."""
    covered = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        signal = rng.normal(size=(40, 4))
        change = signal[..., None] + 2 * rng.normal(size=(40, 4, 4))
        table = rows(compare(signal + 0.5 * rng.normal(size=signal.shape), change, calibrated=False, resamples=100, seed=seed))
        covered.append(table.corrected_low["pearson"] <= np.sqrt(0.8) <= table.corrected_high["pearson"])
    assert np.mean(covered) >= 0.9


def test_a_ceiling_that_may_be_zero_leaves_the_corrected_value_unbounded():
    estimate, change = study(n_removed=12, n_test=1, n_seeds=2, noise=2.0, key=8)
    row = rows(compare(estimate, change, calibrated=False)).loc["pearson"]
    assert row.ceiling_low == 0 < row.noise_ceiling
    assert np.isinf(row.corrected_high)
    opposite = rows(compare(estimate, np.concatenate([change, -change], axis=2)[..., [0, 2]], calibrated=False)).loc["pearson"]
    assert opposite.noise_ceiling == opposite.ceiling_high == 0
    assert np.isnan([opposite.corrected, opposite.corrected_low, opposite.corrected_high]).all()


def test_this_model_is_the_first_seed_alone():
    estimate, change = study(n_seeds=3)
    table = compare(estimate, change, calibrated=True, resamples=10)
    np.testing.assert_array_equal(table.this_model, compare(estimate, change[..., :1], calibrated=True, resamples=10).value)
    assert compare(estimate, change[..., :1], calibrated=True, resamples=10).this_model.isna().all()


# --------------------------------------------------------------------------------------------------------- per test example


@pytest.mark.parametrize("ties", [False, True])
def test_per_test_is_each_column_on_its_own(ties):
    estimate, change = study(n_removed=30, n_seeds=4, ties=ties)
    table = per_test(estimate, change)
    assert " ".join(table.columns) == "pearson spearman ci_low ci_high reliability noise_ceiling corrected this_model"
    for t, row in enumerate(table.itertuples()):
        alone = rows(compare(estimate[:, [t]], change[:, [t]], calibrated=False, resamples=10))
        for kind in ("pearson", "spearman"):
            assert getattr(row, kind) == pytest.approx(alone.value[kind], abs=1e-12)
        assert row.reliability == pytest.approx(reliability(change[:, [t]], "spearman"), abs=1e-12)
        for name in ("noise_ceiling", "corrected", "this_model"):
            assert getattr(row, name) == pytest.approx(alone[name]["spearman"], abs=1e-12)


def test_per_test_where_there_is_nothing_to_say():
    estimate, change = study(n_test=3, n_seeds=2)
    estimate[:, 0], change[:, 1] = 0, 0
    table = per_test(estimate, change)
    assert table.loc[0, ["pearson", "spearman", "ci_low", "ci_high", "corrected", "this_model"]].isna().all()
    assert table.loc[0, ["reliability", "noise_ceiling"]].notna().all()
    assert table.loc[1].isna().all()
    assert table.loc[2].notna().all()
    one_seed = per_test(estimate, change[..., :1]).loc[2]
    assert one_seed[["reliability", "noise_ceiling", "corrected", "this_model"]].isna().all()
    assert one_seed[["spearman", "ci_low", "ci_high"]].notna().all()
    assert per_test(estimate[:3], change[:3])[["ci_low", "ci_high"]].isna().all(axis=None)
    perfect = per_test(change.mean(axis=2), change).loc[2]
    assert perfect.spearman == pytest.approx(1)
    assert perfect.ci_high == pytest.approx(1)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("n_removed", [12, 100])
def test_per_test_interval_covers_the_population(rho, n_removed):
    rng = np.random.default_rng(n_removed)
    x, e = rng.normal(size=(2, n_removed, 2000))
    table = per_test(x, (rho * x + np.sqrt(1 - rho**2) * e)[..., None])
    population = 6 / np.pi * np.arcsin(rho / 2)
    assert ((table.ci_low <= population) & (population <= table.ci_high)).mean() == pytest.approx(0.95, abs=0.03)


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("estimate", "change", "said"),
    [
        (np.zeros((3, 2)), np.zeros((3, 3, 1)), r"estimate has shape \[3, 2\] and the truth \[3, 3, 1\].*\[n_removed, n_test, n_seeds\]"),
        (np.zeros((3, 2)), np.zeros((3, 2)), r"the truth \[3, 2\]"),
        (np.zeros((0, 2)), np.zeros((0, 2, 1)), "nothing to compare"),
        (np.zeros((3, 2)), np.zeros((3, 2, 0)), "nothing to compare"),
        (np.full((3, 2), np.nan), np.zeros((3, 2, 1)), "6 of the estimate's 6 numbers are not finite"),
        (np.zeros((3, 2)), np.full((3, 2, 1), np.inf), "6 of the truth's 6 numbers are not finite"),
    ],
)
def test_bad_arrays_are_refused(estimate, change, said):
    with pytest.raises(InfluxError, match=said):
        compare(estimate, change, calibrated=False)
    with pytest.raises(InfluxError, match=said):
        per_test(estimate, change)


@pytest.mark.parametrize("option", ["resamples", "top_k", "seed"])
def test_bad_options_are_refused(option):
    with pytest.raises(InfluxError, match=f"{option}=-1 is not possible"):
        compare(*study(), calibrated=False, **{option: -1})


def test_bad_kinds_are_refused():
    estimate, change = study()
    with pytest.raises(InfluxError, match=r"kind=spearmann is not a correlation.*Did you mean 'spearman'\?"):
        per_test_correlation(estimate, change[..., 0], "spearmann")
