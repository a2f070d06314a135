"""How well an influence estimate agrees with the truth, with an interval and with the agreement that the truth's noise allows.

Estimate and truth have the same sign and unit (the measurement's): entry [i, t] is the change of test example t's measurement
when removed example i is left out. The truth is the mean over seeds of the changes that retraining gave. No absolute value is
taken anywhere: an estimate with the wrong sign has a negative correlation.

**Statistics.** The headline is the mean over test examples of a correlation over removed examples (`pearson`, `spearman`,
`kendall`), because the question is which training examples matter *for this test example*. Pooled correlations run over all
pairs and also reward an estimate for knowing which test examples move more. A test example whose estimate or truth is the same
for every removal has no correlation; it is left out of the mean and counted (`n_undefined`).

**Interval.** 95 % bootstrap interval over removed and test examples, see `influx.bootstrap`. It holds for other training and
test examples drawn like these; the seeds are not resampled, their noise is what the ceiling is about.

**Noise ceiling.** The highest correlation that an estimate which does not know the seeds' noise can be expected to reach, with its
own interval, from the split-half reliability of the truth: see `influx.reliability`. A correlation divided by its ceiling is
*corrected* for attenuation (C. Spearman, American Journal of Psychology 15, 1904): what it would be expected to be against a truth
without noise. It is not cut at 1: above 1 is sampling noise, or an estimate that shares the seeds' noise, as its own model's does.

**One model's truth.** Estimates are made on the model of the first seed, and a retraining with that seed shares its initialisation and
batch order. The mean over seeds is the *expected* change, of a model trained like this; the first seed's change is that of *this*
model. An estimate can be better at one than at the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
from jaxtyping import Float

from influx import bootstrap
from influx.errors import InfluxError, nearest
from influx.reliability import SplitHalf, split_halves, standardised
from influx.rules import check_value

COLUMNS = [
    "statistic", "value", "ci_low", "ci_high", "noise_ceiling", "n_removed", "n_test", "n_seeds", "n_undefined",
    "ceiling_low", "ceiling_high", "corrected", "corrected_low", "corrected_high", "this_model",
]  # fmt: skip
PER_TEST = ("pearson", "spearman", "kendall")
RANK_BUDGET = 10**9  # pairs × resamples a rank statistic may visit: about 10 s on one core
KENDALL_BUDGET = 125 * 10**9  # multiply-adds of Kendall's tau, n_removed² × n_test a resample: about 4 s on one core
SIGNED, SHARE, POSITIVE, ANY = (-1.0, 1.0), (0.0, 1.0), (0.0, np.inf), (-np.inf, np.inf)

Matrix = Float[np.ndarray, "n_removed n_test"]


class Agreement(NamedTuple):
    """One statistic: its name, what computes it over resamples, the values it can take, what a resample costs and all may."""

    name: str
    resampled: Callable[[Matrix, Matrix, bootstrap.Resamples], bootstrap.PerResample]
    bounds: tuple[float, float]
    cost: int
    budget: int = RANK_BUDGET


def compare(
    estimate: Float[np.ndarray, "n_removed n_test"],
    change: Float[np.ndarray, "n_removed n_test n_seeds"],
    *,
    calibrated: bool,
    resamples: int = 1000,
    seed: int = 0,
    top_k: int = 10,
) -> pd.DataFrame:
    """Compare an estimate with the mean of `change` over seeds: one row a statistic.

    Columns: `statistic, value, ci_low, ci_high, noise_ceiling, n_removed, n_test, n_seeds, n_undefined, ceiling_low, ceiling_high,
    corrected, corrected_low, corrected_high, this_model`. Rows, in this order:

    - `pearson`, `spearman`, `kendall` (tau-b): mean over test examples of the correlation over removed examples;
    - `pearson_pooled`, `spearman_pooled`: over all pairs;
    - `sign_agreement`: share of pairs with the same sign; an exact zero agrees with an exact zero only;
    - `top_<k>_overlap`: mean over test examples of |A ∩ B| / k with A, B the k most helpful (largest) removed examples by
      estimate and by truth, and k = `top_k`, at most half of the removed examples; about k / n_removed by chance;
    - only when `calibrated` (the estimate claims the scale, not just the order): `slope`, least squares with intercept of truth
      (actual, y) on estimate (predicted, x) over all pairs, 1 = right scale, unbiased by noise in the truth; and `rmse` of the
      estimate itself, in the measurement's unit.

    All intervals are of 95 % and come from `resamples` resamples, the same for every statistic and fixed by `seed`. When that is too
    much arithmetic (`RANK_BUDGET`, `KENDALL_BUDGET`; for Kendall beyond about 1,100 × 100), as many of the first ones as fit are
    used; NaN when fewer than 50 fit, or when fewer than 3 examples were removed. `corrected` is `value / noise_ceiling`, its interval
    that of the ratio, resampled together, and infinite where the ceiling may be 0 (NaN for Kendall's tau, which noise does not shrink by
    a factor). These columns and `noise_ceiling` are NaN with one seed and for what is not a correlation. `this_model` is the statistic
    against `change[:, :, 0]` alone, NaN with one seed.

    Raises `InfluxError` on empty, mismatching or non-finite input.
    """
    for key, option in {"resamples": resamples, "seed": seed, "top_k": top_k}.items():
        check_value(key, option)
    estimate, change = _checked(estimate, change)
    truth = change.mean(axis=2)
    n_removed, n_test, n_seeds = change.shape
    draws = bootstrap.Resamples.draw(n_removed, n_test, resamples, seed)
    halves = split_halves(change)
    rows = []
    for agreement in _agreements(n_removed, n_test, calibrated=calibrated, top_k=top_k):
        value, n_undefined = _value(agreement, estimate, truth)
        replicates = _replicates(agreement, estimate, truth, draws)
        low, high = bootstrap.interval(replicates, value, agreement.bounds)
        row = {"statistic": agreement.name, "value": value, "ci_low": low, "ci_high": high, "n_undefined": n_undefined}
        row |= _against_ceiling(value, replicates, halves.get(agreement.name), draws)
        row["this_model"] = _value(agreement, estimate, change[:, :, 0])[0] if n_seeds > 1 else np.nan
        rows.append(row)
    return pd.DataFrame(rows).assign(n_removed=n_removed, n_test=n_test, n_seeds=n_seeds)[COLUMNS]


def per_test_correlation(estimate: Matrix, truth: Matrix, kind: str) -> Float[np.ndarray, " n_test"]:
    """Each test example's correlation (`pearson`, `spearman` or `kendall`, tau-b) over removed examples; NaN where undefined."""
    if kind not in PER_TEST:
        raise InfluxError(f"kind={kind} is not a correlation: it must be one of {', '.join(PER_TEST)}.{nearest(kind, PER_TEST)}")
    if kind == "kendall":
        pairs = zip(estimate.T, truth.T, strict=True)
        return np.array([_tau_b(x, y) for x, y in pairs])
    if kind == "spearman":
        estimate, truth = (scipy.stats.rankdata(values, axis=0) for values in (estimate, truth))
    return np.sum(standardised(np.asarray(estimate, float).T) * standardised(np.asarray(truth, float).T), axis=1)


def per_test(estimate: Matrix, change: Float[np.ndarray, "n_removed n_test n_seeds"]) -> pd.DataFrame:
    """Agreement of each test example on its own: one row a test example, in their order; NaN where undefined.

    - `pearson`, `spearman` over removed examples. With subsets in place of removed examples, `spearman` is the test example's linear
      datamodelling score (S. M. Park et al., TRAK, ICML 2023);
    - `ci_low, ci_high`: 95 % interval of `spearman` over removed examples, tanh(atanh r ± 1.96 sqrt((1 + r²/2) / (n_removed − 3)))
      (D. G. Bonett, T. A. Wright, Psychometrika 65, 2000): over one axis, a percentile bootstrap of some dozen removals is too narrow;
    - `reliability, noise_ceiling, corrected` (`spearman / noise_ceiling`) of `spearman`, from this test example's split halves alone
      and thus noisier than their mean; NaN with one seed, `corrected` also where the ceiling is 0;
    - `this_model`: Spearman against `change[:, :, 0]` alone, NaN with one seed.
    """
    estimate, change = _checked(estimate, change)
    truth = change.mean(axis=2)
    r = per_test_correlation(estimate, truth, "spearman")
    low, high = _rank_interval(r, len(truth))
    table = pd.DataFrame({"pearson": per_test_correlation(estimate, truth, "pearson"), "spearman": r, "ci_low": low, "ci_high": high})
    half = SplitHalf.of(change, "spearman")
    ceiling = half.ceiling(half.correlation)
    return table.assign(
        reliability=half.reliability(half.correlation),
        noise_ceiling=ceiling,
        corrected=r / np.where(ceiling > 0, ceiling, np.nan),
        this_model=per_test_correlation(estimate, change[:, :, 0], "spearman") if change.shape[2] > 1 else np.nan,
    )


def interval_over_seeds(values: Float[np.ndarray, " n_seeds"]) -> tuple[float, float, float]:
    """Mean and 95 % interval of it (Student's t over seeds); NaN for what too few seeds leave open."""
    if not len(values):
        return math.nan, math.nan, math.nan
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def interval_over_crossed(levels: Sequence[Float[np.ndarray, " n_levels"]]) -> tuple[float, float, float]:
    """Mean and 95 % interval of it over several crossed factors; `levels` are, for each factor, the means of its levels over the others.

    Half-width t₀.₉₇₅,ν · √(Σ_f s_f² / n_f) with s_f the standard deviation of factor f's level means and ν one less than the fewest levels.
    It counts the factors' interaction once for each, so it is rather too wide than too narrow; taking all combinations for independent
    would be far too narrow where one factor does most. NaN ends where a factor has one level.
    """
    mean = float(np.mean(levels[0]))
    fewest = min(len(level) for level in levels)
    if fewest < 2:
        return mean, math.nan, math.nan
    error = math.sqrt(sum(float(np.var(level, ddof=1)) / len(level) for level in levels))
    half = float(scipy.stats.t.ppf(0.975, fewest - 1) * error)
    return mean, mean - half, mean + half


def _agreements(n_removed: int, n_test: int, *, calibrated: bool, top_k: int) -> list[Agreement]:
    pairs = n_removed * n_test
    k = min(top_k, max(1, n_removed // 2))
    rows = [
        Agreement("pearson", bootstrap.pearson, SIGNED, pairs),
        Agreement("spearman", bootstrap.spearman, SIGNED, pairs),
        Agreement("kendall", bootstrap.kendall, SIGNED, pairs * n_removed, KENDALL_BUDGET),
        Agreement("pearson_pooled", bootstrap.pearson_pooled, SIGNED, pairs),
        Agreement("spearman_pooled", bootstrap.spearman_pooled, SIGNED, pairs),
        Agreement("sign_agreement", bootstrap.sign_agreement, SHARE, pairs),
        Agreement(f"top_{k}_overlap", partial(bootstrap.top_overlap, k=k), SHARE, pairs),
    ]
    if calibrated:
        rows += [Agreement("slope", bootstrap.slope, ANY, pairs), Agreement("rmse", bootstrap.rmse, POSITIVE, pairs)]
    return rows


def _value(agreement: Agreement, estimate: Matrix, truth: Matrix) -> tuple[float, int]:
    """The statistic, and how many test examples it is undefined for."""
    n_removed, n_test = truth.shape
    if agreement.name not in PER_TEST:
        value = agreement.resampled(estimate, truth, bootstrap.Resamples.once(n_removed, n_test)).item()
        return value, 0 if np.isfinite(value) else n_test
    each = per_test_correlation(estimate, truth, agreement.name)
    defined = each[np.isfinite(each)]
    return float(defined.mean()) if defined.size else np.nan, n_test - defined.size


def _replicates(agreement: Agreement, estimate: Matrix, truth: Matrix, draws: bootstrap.Resamples) -> bootstrap.PerResample:
    """The statistic in the first resamples, as many as can be afforded; none when there is nothing to resample."""
    count = bootstrap.affordable(len(draws.removed), agreement.cost, agreement.budget)
    if len(truth) < 3 or count == 0:
        return np.empty(0)
    return agreement.resampled(estimate, truth, draws.first(count))


def _against_ceiling(
    value: float, replicates: bootstrap.PerResample, half: SplitHalf | None, draws: bootstrap.Resamples
) -> dict[str, float]:
    """The ceiling and the value corrected by it, with their intervals."""
    found = dict.fromkeys(["noise_ceiling", "ceiling_low", "ceiling_high", "corrected", "corrected_low", "corrected_high"], np.nan)
    if half is None or np.isnan(half.mean):
        return found
    ceiling = found["noise_ceiling"] = float(half.ceiling(half.mean))
    divides = ceiling > 0 and half.kind != "kendall"  # tau is no product-moment correlation: its attenuation is not a factor
    found["corrected"] = value / ceiling if divides else np.nan
    if len(half.pseudo_values) < 3:
        return found
    ceilings = half.resampled_ceiling(draws)
    found["ceiling_low"], found["ceiling_high"] = bootstrap.quantiles(ceilings)
    if divides and np.isfinite(replicates).any():
        values = value + replicates - np.nanmean(replicates)
        with np.errstate(divide="ignore", invalid="ignore"):
            found["corrected_low"], found["corrected_high"] = bootstrap.quantiles(values / ceilings[: len(values)])
    return found


def _rank_interval(r: Float[np.ndarray, " n_test"], n_removed: int) -> tuple[np.ndarray, np.ndarray]:
    if n_removed < 4:
        return np.full_like(r, np.nan), np.full_like(r, np.nan)
    half_width = scipy.stats.norm.ppf(0.975) * np.sqrt((1 + r**2 / 2) / (n_removed - 3))
    with np.errstate(divide="ignore"):  # a correlation of 1 has an interval of no width
        z = np.arctanh(np.clip(r, -1, 1))
    return np.tanh(z - half_width), np.tanh(z + half_width)


def _tau_b(x: Float[np.ndarray, " n_removed"], y: Float[np.ndarray, " n_removed"]) -> float:
    if len(x) < 2:
        return np.nan
    return float(scipy.stats.kendalltau(x, y, variant="b").statistic)


def _checked(estimate: np.ndarray, change: np.ndarray) -> tuple[Matrix, Float[np.ndarray, "n_removed n_test n_seeds"]]:
    estimate, change = np.asarray(estimate, dtype=float), np.asarray(change, dtype=float)
    if estimate.ndim != 2 or change.ndim != 3 or estimate.shape != change.shape[:2]:
        raise InfluxError(
            f"The estimate has shape {list(estimate.shape)} and the truth {list(change.shape)}: "
            "they must be [n_removed, n_test] and [n_removed, n_test, n_seeds]."
        )
    if change.size == 0:
        raise InfluxError(f"There is nothing to compare: the truth has shape {list(change.shape)}.")
    for name, values in {"estimate": estimate, "truth": change}.items():
        broken = int(np.count_nonzero(~np.isfinite(values)))
        if broken:
            raise InfluxError(f"{broken} of the {name}'s {values.size} numbers are not finite: a training or a solver has diverged.")
    return estimate, change
