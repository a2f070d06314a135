"""Split halves against scipy and against deletion written out; ceilings and their intervals against truths of known noise."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
import scipy.stats

from influx import bootstrap
from influx.errors import InfluxError
from influx.reliability import (
    CORRELATIONS,
    MOST_SPLITS,
    RELIABILITIES,
    SplitHalf,
    expected_spearman,
    noise_ceiling,
    reliability,
    seeds_needed,
    spearman_brown,
    split_halves,
    splits,
)
from influx.statistics import compare, per_test_correlation

SCIPY = {"pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr}
HALVES = {
    2: [((0,), (1,))],
    3: [((0,), (1,)), ((0,), (2,)), ((1,), (2,))],
    4: [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))],
}


def study(n_removed=25, n_test=6, n_seeds=2, *, noise="normal", single=0.5, key=0):
    """μ, and changes μ + ε whose single seeds have reliability `single`; ε is normal, shared between test examples, or t(5)."""
    rng = np.random.default_rng([key, n_removed, n_test, n_seeds])
    shape = (n_removed, n_test, n_seeds)
    signal = rng.normal(size=(n_removed, n_test))
    seeds = rng.standard_t(5, size=shape) / np.sqrt(5 / 3) if noise == "t5" else rng.normal(size=shape)
    if noise == "shared":
        seeds = np.sqrt(0.3) * seeds + np.sqrt(0.7) * rng.normal(size=(n_removed, 1, n_seeds))
    return signal, signal[..., None] + np.sqrt(1 / single - 1) * seeds


def truth(*sizes, **options):
    return study(*sizes, **options)[1]


# ------------------------------------------------------------------------------------------------------------ split halves


@pytest.mark.parametrize("n_seeds", [2, 3, 4, 5, 6, 7, 8, 9, 10, 31])
def test_splits_are_all_pairs_of_halves_or_a_sample(n_seeds):
    found, half = splits(n_seeds), n_seeds // 2
    assert len(found) == min(comb(n_seeds, half) * comb(n_seeds - half, half) // 2, MOST_SPLITS)
    assert len({frozenset(map(frozenset, pair)) for pair in found}) == len(found)
    for first, second in found:
        assert len({*first, *second}) == 2 * half == len(first) + len(second)
    assert found == splits(n_seeds)
    assert found == HALVES.get(n_seeds, found)


@pytest.mark.parametrize("n_seeds", [2, 3, 4])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("kind", SCIPY)
def test_half_correlations_are_scipys(kind, ties, n_seeds):
    change = truth(n_seeds=n_seeds)
    change = np.round(change) if ties else change
    half, pooled = SplitHalf.of(change, kind), SplitHalf.of(change, f"{kind}_pooled")
    means = [(change[..., list(a)].mean(axis=2), change[..., list(b)].mean(axis=2)) for a, b in HALVES[n_seeds]]
    expected = np.mean([[SCIPY[kind](x, y).statistic for x, y in zip(a.T, b.T, strict=True)] for a, b in means], axis=0)
    np.testing.assert_allclose(half.correlation, expected, atol=1e-12)
    np.testing.assert_allclose(half.pseudo_values.mean(axis=0), expected, atol=1e-12)
    assert pooled.mean == pytest.approx(np.mean([SCIPY[kind](a.ravel(), b.ravel()).statistic for a, b in means]), abs=1e-12)
    assert pooled.pseudo_values.mean() == pytest.approx(pooled.mean, abs=1e-12)
    assert half.lengthening == n_seeds / (n_seeds // 2)


@pytest.mark.parametrize("kind", RELIABILITIES)
@pytest.mark.parametrize("ties", [False, True])
def test_pseudo_values_are_those_of_deletion_written_out(kind, ties):
    """Exact for values; for ranks, which are shifted to first order only, to a share of their spread."""
    change = truth(n_removed=40, n_test=2)
    change = np.round(2 * change) if ties else change
    half, function = SplitHalf.of(change, kind), SCIPY[kind.removesuffix("_pooled")]
    x, y = change.reshape(1, -1, 2).T if kind.endswith("_pooled") else change.T
    x, y = (values.reshape(-1, half.sample) for values in (x, y))
    for t in range(len(x)):
        without = np.array([function(np.delete(x[t], i), np.delete(y[t], i)).statistic for i in range(half.sample)])
        found = half.pseudo_values.ravel() if kind.endswith("_pooled") else half.pseudo_values[:, t]
        expected = (half.sample - 1) * (without.mean() - without)
        assert (found - expected).std() <= (1e-9 if kind.startswith("pearson") else 0.05) * expected.std()


def test_a_resample_of_pseudo_values_is_about_that_of_the_written_out_halves():
    change = truth(n_removed=80, n_test=8)
    draws = bootstrap.Resamples.draw(80, 8, 300, seed=0)
    for kind in SCIPY:
        half = SplitHalf.of(change, kind)
        written_out = getattr(bootstrap, kind)(change[..., 0], change[..., 1], draws)
        first_order = draws.average(half.pseudo_values)
        assert np.corrcoef(first_order, written_out)[0, 1] > 0.98
        assert first_order.std() == pytest.approx(written_out.std(), rel=0.1)


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.95])
def test_expected_spearman_is_the_mean_in_small_samples(rho):
    x, e = np.random.default_rng(1).normal(size=(2, 8, 20_000))
    assert per_test_correlation(x, rho * x + np.sqrt(1 - rho**2) * e, "spearman").mean() == pytest.approx(
        expected_spearman(rho, 8), abs=0.01
    )
    tau, population = 2 / np.pi * np.arcsin(rho), 6 / np.pi * np.arcsin(rho / 2)
    assert expected_spearman(rho, 8) == pytest.approx((3 * tau + 6 * population) / 9, abs=1e-12)
    assert expected_spearman(1.0, 8) == pytest.approx(1, abs=1e-12)


# ----------------------------------------------------------------------------------------------------------------- ceiling


@pytest.mark.parametrize("single", [0.2, 0.8])
@pytest.mark.parametrize("n_seeds", [2, 5])
def test_ceiling_is_what_the_noiseless_truth_reaches(single, n_seeds):
    signal, change = study(600, 40, n_seeds, single=single)
    assert reliability(change, "pearson") == pytest.approx(spearman_brown(single, n_seeds), abs=0.03)
    table = compare(signal, change, calibrated=True, resamples=10).set_index("statistic")
    for kind in CORRELATIONS:
        assert table.noise_ceiling[kind] == pytest.approx(table.value[kind], abs=0.02), kind
        if kind != "kendall":
            assert table.corrected[kind] == pytest.approx(1, abs=0.03), kind


@pytest.mark.parametrize("kind", ["spearman", "kendall"])
def test_ceiling_of_ranks_is_that_of_small_samples(kind):
    """In 12 removals even the noiseless truth has a rank correlation below that of many: 0.92 for 0.95."""
    signal, change = study(12, 4000, 4, single=0.8)
    assert noise_ceiling(change, kind) == pytest.approx(per_test_correlation(signal, change.mean(axis=2), kind).mean(), abs=0.01)


def test_halves_are_nearer_the_truth_than_single_seeds_when_noise_is_heavy_tailed():
    rng = np.random.default_rng(3)
    signal = rng.normal(size=(400, 50))
    change = signal[..., None] + np.sqrt(3) * rng.standard_t(3, size=(400, 50, 8))
    reached = per_test_correlation(signal, change.mean(axis=2), "spearman").mean()
    pairs = [SplitHalf.of(change[..., [a, b]], "spearman") for a, b in ((0, 1), (2, 3), (4, 5), (6, 7))]
    single = np.mean([pair.reliability(pair.mean) / (2 - pair.reliability(pair.mean)) for pair in pairs])
    by_single = expected_spearman(np.sqrt(spearman_brown(single, 8)), 400)
    by_halves = noise_ceiling(change, "spearman")
    assert abs(by_halves - reached) < 0.03 < by_single - reached


def test_ceiling_bounds_the_mean_of_each_test_examples_own():
    rng = np.random.default_rng(0)
    noise = np.linspace(0.1, 4, 30)[:, None]
    change = rng.normal(size=(400, 30, 1)) + noise * rng.normal(size=(400, 30, 4))
    own = [noise_ceiling(change[:, [t]], "pearson") for t in range(30)]
    assert np.mean(own) < noise_ceiling(change, "pearson")


def test_ceiling_at_its_ends():
    change = truth(n_seeds=1)
    same = np.repeat(change, 3, axis=2)
    draws = bootstrap.Resamples.draw(25, 6, 50, seed=0)
    for kind in CORRELATIONS:
        assert np.isnan(noise_ceiling(change, kind))
        assert np.isnan(noise_ceiling(np.zeros((5, 2, 3)), kind))
        assert noise_ceiling(same, kind) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(SplitHalf.of(same, kind).resampled_ceiling(draws), 1, atol=1e-3)
        assert noise_ceiling(np.concatenate([change, -change], axis=2), kind) == 0
    same[:, 0] = 0  # undefined for one test example
    assert noise_ceiling(same, "pearson") == pytest.approx(1)


def test_a_test_example_undefined_in_one_split_is_averaged_over_the_others():
    change = truth(n_test=2, n_seeds=3)
    change[:, 0, 2] = 0.0  # one seed's changes are all the same: only the split without it is defined
    half = SplitHalf.of(change, "pearson")
    assert half.correlation[0] == pytest.approx(scipy.stats.pearsonr(*change[:, 0, :2].T).statistic, abs=1e-12)
    assert half.pseudo_values.mean(axis=0) == pytest.approx(half.correlation, abs=1e-12)


def test_one_removal_that_carries_all_the_variance_has_finite_pseudo_values():
    change = np.zeros((6, 1, 2))
    change[0] = 1  # without it nothing varies
    half = SplitHalf.of(change, "pearson")
    assert half.mean == pytest.approx(1)
    assert np.isfinite(half.pseudo_values).all()


def test_all_kinds_at_once():
    change = truth(n_seeds=3)
    for kind, half in split_halves(change).items():
        assert half.kind == kind
        assert float(half.ceiling(half.mean)) == noise_ceiling(change, kind)


def test_seeds_needed_undoes_spearman_brown():
    single, wanted = 0.1, 0.8
    needed = seeds_needed(np.sqrt(spearman_brown(single, 4)), 4, wanted)
    assert spearman_brown(single, needed) >= wanted**2 > spearman_brown(single, needed - 1)
    assert seeds_needed(0.0, 4, wanted) == np.inf


def test_bad_kinds_are_refused():
    for function in (reliability, noise_ceiling, SplitHalf.of):
        with pytest.raises(InfluxError, match=r"kind=spearmann has no reliability: it must be one of pearson.*Did you mean 'spearman'\?"):
            function(truth(), "spearmann")


# ---------------------------------------------------------------------------------------------------------------- interval


def coverage(kind, single, n_seeds, n_removed, n_test, noise, trials):
    """Share of simulated studies whose 95 % interval holds the ceiling: sqrt(R_S), or for ranks what μ itself reaches on average."""
    ceiling = np.sqrt(spearman_brown(single, n_seeds))
    if kind == "spearman":
        signal, change = study(
            n_removed, 200_000 // n_removed, n_seeds, noise="t5" if noise == "t5" else "normal", single=single, key=trials
        )
        ceiling = per_test_correlation(signal, change.mean(axis=2), kind).mean()
    draws = bootstrap.Resamples.draw(n_removed, n_test, 400, seed=0)
    covered = []
    for key in range(trials):
        half = SplitHalf.of(truth(n_removed, n_test, n_seeds, noise=noise, single=single, key=key), kind)
        low, high = bootstrap.quantiles(half.resampled_ceiling(draws))
        covered.append(low <= ceiling <= high)
    return np.mean(covered)


@pytest.mark.parametrize("kind", SCIPY)
@pytest.mark.parametrize(
    ("single", "n_seeds", "n_removed", "n_test", "noise"),
    [(0.1, 2, 20, 1, "normal"), (0.4, 3, 60, 5, "shared"), (0.8, 4, 20, 1, "t5"), (0.95, 8, 20, 20, "normal")],
)
def test_interval_covers_the_ceiling(kind, single, n_seeds, n_removed, n_test, noise):
    assert coverage(kind, single, n_seeds, n_removed, n_test, noise, trials=100) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "noise"), [*product(SCIPY, ["normal", "shared"]), ("pearson", "t5")])
@pytest.mark.parametrize("single", [0.1, 0.4, 0.8, 0.95])
@pytest.mark.parametrize("n_seeds", [2, 3, 8])
@pytest.mark.parametrize(("n_removed", "n_test"), [(20, 1), (20, 5), (20, 50), (200, 1), (200, 50)])
def test_interval_covers_the_ceiling_everywhere(kind, single, n_seeds, n_removed, n_test, noise):
    assert coverage(kind, single, n_seeds, n_removed, n_test, noise, trials=200) >= 0.9


def test_interval_shrinks_with_the_removals():
    widths = []
    for n_removed in (50, 800):
        half = SplitHalf.of(truth(n_removed, 10, 4), "spearman")
        low, high = bootstrap.quantiles(half.resampled_ceiling(bootstrap.Resamples.draw(n_removed, 10, 400, seed=0)))
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.3)
