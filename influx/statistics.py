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

**Noise ceiling.** Let c_s = μ + ε_s be the change under seed s, with noise ε independent between seeds. The mean correlation of
two seeds over removed examples estimates the reliability of one, r = var(μ) / var(c). The mean over S seeds then has reliability
R_S = S r / (1 + (S − 1) r) (C. Spearman; W. Brown, both British Journal of Psychology 3, 1910) and its correlation with μ, the
best that can be predicted without knowing the seeds' noise, is sqrt(R_S). Exact for Pearson correlations; for ranks it is the
usual approximation. Correlations are averaged before the root is taken; R_S and the root are concave, so the ceiling is by
Jensen's inequality an upper bound of the mean of the test examples' own ceilings.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
from jaxtyping import Float

from influx import bootstrap
from influx.errors import InfluxError, nearest
from influx.rules import check_value

PER_TEST = ("pearson", "spearman", "kendall")
RELIABILITIES = ("pearson", "spearman", "pearson_pooled", "spearman_pooled")
CORRELATIONS = (*RELIABILITIES, "kendall")
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

    Columns: `statistic, value, ci_low, ci_high, noise_ceiling, n_removed, n_test, n_seeds, n_undefined`. Rows, in this order:

    - `pearson`, `spearman`, `kendall` (tau-b): mean over test examples of the correlation over removed examples;
    - `pearson_pooled`, `spearman_pooled`: over all pairs;
    - `sign_agreement`: share of pairs with the same sign; an exact zero agrees with an exact zero only;
    - `top_<k>_overlap`: mean over test examples of |A ∩ B| / k with A, B the k most helpful (largest) removed examples by
      estimate and by truth, and k = `top_k`, at most half of the removed examples; about k / n_removed by chance;
    - only when `calibrated` (the estimate claims the scale, not just the order): `slope`, least squares with intercept of truth
      (actual, y) on estimate (predicted, x) over all pairs, 1 = right scale, unbiased by noise in the truth; and `rmse` of the
      estimate itself, in the measurement's unit.

    `ci_low, ci_high` come from `resamples` resamples, the same for every statistic and fixed by `seed`. When that is too much
    arithmetic (`RANK_BUDGET`, `KENDALL_BUDGET`; for Kendall beyond about 1,100 × 100), as many of the first ones as fit are used;
    NaN when fewer than 50 fit, or when fewer than 3 examples were removed. `noise_ceiling` is NaN with one seed and for what is
    not a correlation.

    Raises `InfluxError` on empty, mismatching or non-finite input.
    """
    for key, option in {"resamples": resamples, "seed": seed, "top_k": top_k}.items():
        check_value(key, option)
    estimate, change = _checked(estimate, change)
    truth = change.mean(axis=2)
    n_removed, n_test = truth.shape
    draws = bootstrap.Resamples.draw(n_removed, n_test, resamples, seed)
    rows = []
    for agreement in _agreements(n_removed, n_test, calibrated=calibrated, top_k=top_k):
        value, n_undefined = _value(agreement, estimate, truth)
        low, high = _interval(agreement, value, estimate, truth, draws)
        ceiling = noise_ceiling(change, agreement.name) if agreement.name in CORRELATIONS else np.nan
        rows.append((agreement.name, value, low, high, ceiling, *change.shape, n_undefined))
    names = ["statistic", "value", "ci_low", "ci_high", "noise_ceiling", "n_removed", "n_test", "n_seeds", "n_undefined"]
    return pd.DataFrame(rows, columns=names)


def per_test_correlation(estimate: Matrix, truth: Matrix, kind: str) -> Float[np.ndarray, " n_test"]:
    """Each test example's correlation (`pearson`, `spearman` or `kendall`, tau-b) over removed examples; NaN where undefined."""
    if kind not in PER_TEST:
        raise InfluxError(f"kind={kind} is not a correlation: it must be one of {', '.join(PER_TEST)}.{nearest(kind, PER_TEST)}")
    if kind == "kendall":
        pairs = zip(estimate.T, truth.T, strict=True)
        return np.array([_tau_b(x, y) for x, y in pairs])
    x, y = (_standardised(values, ranks=kind == "spearman") for values in (estimate, truth))
    return np.sum(x * y, axis=0)


def reliability(change: Float[np.ndarray, "n_removed n_test n_seeds"], kind: str) -> float:
    """Reliability in [0, 1] of the mean of `change` over its seeds: the share of its variance that is not the seeds' noise.

    `kind` is `pearson` or `spearman` (inter-seed correlations over removed examples, averaged over pairs of seeds and over test
    examples) or the same with `_pooled` (over all pairs, averaged over pairs of seeds). A mean correlation below zero counts as
    zero; NaN with one seed, or when no correlation is defined.
    """
    if kind not in RELIABILITIES:
        raise InfluxError(f"kind={kind} has no reliability: it must be one of {', '.join(RELIABILITIES)}.{nearest(kind, RELIABILITIES)}")
    n_seeds = change.shape[2]
    if n_seeds < 2:
        return np.nan
    if kind.endswith("_pooled"):
        change = change.reshape(-1, 1, n_seeds)
    scores = _standardised(change, ranks=kind.startswith("spearman"))
    seeds_last = np.moveaxis(scores, 1, 0)  # [n_test, n_removed, n_seeds]
    between = (seeds_last.mT @ seeds_last)[:, *np.triu_indices(n_seeds, k=1)]  # [n_test, pairs of seeds]
    defined = between[np.isfinite(between)]
    return spearman_brown(float(defined.mean()), n_seeds) if defined.size else np.nan


def spearman_brown(single: float, n_seeds: float) -> float:
    """Reliability of a mean over `n_seeds`, each of reliability `single`: S r / (1 + (S − 1) r), 0 when r is negative."""
    single = min(max(single, 0.0), 1.0)
    return n_seeds * single / (1 + (n_seeds - 1) * single)


def noise_ceiling(change: Float[np.ndarray, "n_removed n_test n_seeds"], kind: str) -> float:
    """Highest correlation of that kind which an estimate that does not know the seeds' noise can be expected to reach.

    `kind` is one of `reliability`'s, or `kendall`: Spearman's ceiling carried over as between two normal variables, for which
    ρ = 2 sin(π ρ_s / 6) and τ = (2 / π) asin ρ (M. G. Kendall, "Rank Correlation Methods", on the bivariate normal).
    """
    if kind != "kendall":
        return float(np.sqrt(reliability(change, kind)))
    rho = 2 * np.sin(np.pi * noise_ceiling(change, "spearman") / 6)
    return float(2 / np.pi * np.arcsin(min(rho, 1.0)))


def seeds_needed(ceiling: float, n_seeds: int, wanted: float) -> float:
    """How many seeds, in all, would lift a ceiling reached with `n_seeds` to `wanted` < 1; infinite when it is 0."""
    if ceiling <= 0:
        return np.inf
    odds, wanted_odds = (c**2 / (1 - c**2) if c < 1 else np.inf for c in (ceiling, wanted))  # Spearman-Brown: odds ∝ seeds
    return float(np.ceil(n_seeds * wanted_odds / odds))


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
    per_test = per_test_correlation(estimate, truth, agreement.name)
    defined = per_test[np.isfinite(per_test)]
    return float(defined.mean()) if defined.size else np.nan, per_test.size - defined.size


def _interval(agreement: Agreement, value: float, estimate: Matrix, truth: Matrix, draws: bootstrap.Resamples) -> tuple[float, float]:
    count = bootstrap.affordable(len(draws.removed), agreement.cost, agreement.budget)
    if len(truth) < 3 or count == 0:
        return np.nan, np.nan
    return bootstrap.interval(agreement.resampled(estimate, truth, draws.first(count)), value, agreement.bounds)


def _tau_b(x: Float[np.ndarray, " n_removed"], y: Float[np.ndarray, " n_removed"]) -> float:
    if len(x) < 2:
        return np.nan
    return float(scipy.stats.kendalltau(x, y, variant="b").statistic)


def _standardised(values: Float[np.ndarray, "n_removed ..."], *, ranks: bool) -> Float[np.ndarray, "n_removed ..."]:
    """Values, or their mid-ranks, less their mean and divided by their norm over removed examples; NaN where all are the same."""
    values = scipy.stats.rankdata(values, axis=0) if ranks else np.asarray(values, dtype=float)
    same = values.max(axis=0) == values.min(axis=0)
    deviation = values - values.mean(axis=0)
    deviation = deviation / np.where(same, np.nan, np.abs(deviation).max(axis=0))  # squares cannot over- or underflow
    return deviation / np.sqrt(np.sum(deviation**2, axis=0))


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
