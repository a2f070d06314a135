"""How much of the truth is the seeds' noise: split-half reliability, the noise ceiling that follows from it, and its interval.

**Estimand.** Let c_s = μ + ε_s be the change under seed s, noise ε independent between seeds. What is compared is the mean over S
seeds. Its reliability R_S = var(μ) / var(mean) is the share of its variance that is not noise, and the highest correlation that an
estimate which does not know the seeds' noise can be expected to reach, that of μ itself, is the noise ceiling sqrt(R_S).

**Split halves.** The seeds are split into two halves of h = floor(S / 2) (with S odd one seed is left out in turn); the correlation r
of the two half-means over removed examples estimates the reliability of a mean over h seeds, and R_S = k r / (1 + (k − 1) r) with
k = S / h steps it up (C. Spearman; W. Brown, both British Journal of Psychology 3, 1910). Correlations are averaged over all splits
and over test examples first; step, cut at zero and root come last, once: both are concave, and noisy correlations put through them one
by one would give too low a ceiling. When test examples differ in reliability, the ceiling is by Jensen's inequality an upper bound of
the mean of their own ceilings.

**Ranks.** Spearman and Brown's formula is about products of values. A rank correlation is therefore taken to the correlation ρ of two
normal variables that has it on average in a sample of n (`expected_spearman`), stepped up there, and taken back (to Spearman, or to
Kendall by τ = (2 / π) asin ρ). For normal changes this leaves no bias, where stepping up the rank correlations themselves puts the
ceiling up to 0.01 too high. Otherwise it is approximate: in simulations up to 0.06 too high with noise from Student's t with 3 degrees
of freedom, 0.1 too high when μ is log-normal (few removals matter, the rest cannot be told apart), 0.04 too low when the noise grows
with μ. The error shrinks with the seeds, and halves keep it smaller than the mean correlation of single seeds does, which must be
extrapolated further (t(3) noise, r = 0.1, 8 seeds: true 0.70, by halves 0.72, by single seeds 0.78).

**Interval.** Jackknife pseudo-values P[i, t] = n r − (n − 1) r_without_i of every test example's half correlation, averaged over
splits and bootstrapped over removed *and* test examples (`influx.bootstrap`) as Fisher's z = atanh r, in which the spread is the same
for all r, widened by Student's t for few removals; the percentiles are then stepped up. A resample costs one product with the matrix
P however many splits there are, and the jackknife's spread is honest where the percentile bootstrap of 20 removals is too narrow.
In simulations the 95 % interval holds the true ceiling in 92 to 97 % of studies with one test example or noise that test examples
share, and in all when test examples are independent (the two-way bootstrap is then too wide); for Pearson in about 80 to 90 % when the
noise has no fourth moment, as t(3). It is about sampling only: for ranks, the errors of the paragraph above come on top.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb

import numpy as np
import scipy.stats
from jaxtyping import Float, Int

from influx.bootstrap import ROUNDING, PerResample, Resamples
from influx.errors import InfluxError, nearest

RELIABILITIES = ("pearson", "spearman", "pearson_pooled", "spearman_pooled")
CORRELATIONS = (*RELIABILITIES, "kendall")
MOST_SPLITS = 100  # above this many splits a fixed sample of them is averaged

Change = Float[np.ndarray, "n_removed n_test n_seeds"]
ByTest = Float[np.ndarray, "n_test n_removed"]  # sums over removed examples run along memory
Split = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class SplitHalf:
    """The correlation of the means over two halves of the seeds, averaged over splits.

    `correlation` is each test example's (one number when pooled), NaN where undefined; `pseudo_values` average to it over removed
    examples; `lengthening` is S / h; `sample` is how many values a correlation runs over.
    """

    kind: str
    correlation: Float[np.ndarray, " n_test"]
    pseudo_values: Float[np.ndarray, "n_removed n_test"]
    lengthening: float
    sample: int

    @classmethod
    def of(cls, change: Change, kind: str) -> SplitHalf:
        """Split halves of `change`, NaN with one seed. `kind` is one of `CORRELATIONS`; Kendall's halves are Spearman's."""
        if kind not in CORRELATIONS:
            raise InfluxError(f"kind={kind} has no reliability: it must be one of {', '.join(CORRELATIONS)}.{nearest(kind, CORRELATIONS)}")
        n_removed, n_test, n_seeds = change.shape
        by_seed = np.ascontiguousarray(np.moveaxis(change, (2, 1), (0, 1)), dtype=float)  # [n_seeds, n_test, n_removed]
        if kind.endswith("_pooled"):
            by_seed = by_seed.reshape(n_seeds, 1, -1)
        _, rows, sample = by_seed.shape
        correlation, defined, pseudo_values = np.zeros((rows, 1)), np.zeros((rows, 1)), np.zeros((rows, sample))
        for first, second in splits(n_seeds):
            x, y = by_seed[list(first)].mean(axis=0), by_seed[list(second)].mean(axis=0)
            r, pseudo = _correlate(x, y, ranks=not kind.startswith("pearson"))
            correlation += np.nan_to_num(r)
            pseudo_values += np.nan_to_num(pseudo)
            defined += np.isfinite(r)
        defined[defined == 0] = np.nan
        by_test = (pseudo_values / defined).reshape(n_test, n_removed)
        return cls(kind, (correlation / defined)[:, 0], by_test.T, n_seeds / max(n_seeds // 2, 1), sample)

    @property
    def mean(self) -> float:
        """Over the test examples that have a half correlation; NaN when none has."""
        defined = self.correlation[np.isfinite(self.correlation)]
        return float(defined.mean()) if defined.size else np.nan

    def reliability(self, correlation: Float[np.ndarray, "*shape"] | float) -> Float[np.ndarray, "*shape"]:
        """R_S of the mean over all seeds, in [0, 1], for some half correlation."""
        if self.kind.startswith("pearson"):
            return spearman_brown(correlation, self.lengthening)
        rho = np.sin(np.linspace(0, np.pi / 2, 4097))
        return spearman_brown(np.interp(correlation, expected_spearman(rho, self.sample), rho), self.lengthening)

    def ceiling(self, correlation: Float[np.ndarray, "*shape"] | float) -> Float[np.ndarray, "*shape"]:
        """The noise ceiling, in [0, 1], for some half correlation."""
        rho = np.sqrt(self.reliability(correlation))
        if self.kind == "kendall":
            return 2 / np.pi * np.arcsin(rho)
        return expected_spearman(rho, self.sample) if self.kind.startswith("spearman") else rho

    def resampled_ceiling(self, draws: Resamples) -> PerResample:
        """The ceiling of each resample; its 2.5 % and 97.5 % quantiles are the 95 % interval."""
        n_removed = len(self.pseudo_values)
        deviation = draws.average_defined(draws.average_by_test(self.pseudo_values)) - self.mean
        student = scipy.stats.t.ppf(0.975, n_removed - 1) / scipy.stats.norm.ppf(0.975) * np.sqrt(n_removed / (n_removed - 1))
        r = np.clip(self.mean, ROUNDING - 1, 1 - ROUNDING)
        return self.ceiling(np.tanh(np.arctanh(r) + student * deviation / (1 - r**2)))


def split_halves(change: Change) -> dict[str, SplitHalf]:
    """`SplitHalf` of every kind in `CORRELATIONS`; Spearman's and Kendall's halves are the same, computed once."""
    halves = {kind: SplitHalf.of(change, kind) for kind in RELIABILITIES}
    return {**halves, "kendall": replace(halves["spearman"], kind="kendall")}


def reliability(change: Change, kind: str) -> float:
    """Reliability R_S in [0, 1] of the mean of `change` over its seeds: the share of its variance that is not the seeds' noise.

    `kind` is `pearson`, `spearman` or `kendall` (over removed examples, averaged over test examples) or the first two with `_pooled`
    (over all pairs); for ranks R_S is that of normal variables. A negative one counts as zero; NaN with one seed, or when no
    correlation is defined. Raises `InfluxError` for another kind.
    """
    half = SplitHalf.of(change, kind)
    return float(half.reliability(half.mean))


def noise_ceiling(change: Change, kind: str) -> float:
    """Highest correlation that an estimate which does not know the seeds' noise can be expected to reach; as `reliability` else."""
    half = SplitHalf.of(change, kind)
    return float(half.ceiling(half.mean))


def spearman_brown(single: Float[np.ndarray, "*shape"] | float, lengthening: float) -> Float[np.ndarray, "*shape"]:
    """Reliability of a mean over k = `lengthening` times as many, k r / (1 + (k − 1) r); 0 when r = `single` is negative."""
    single = np.clip(single, 0.0, 1.0)
    return lengthening * single / (1 + (lengthening - 1) * single)


def expected_spearman(rho: Float[np.ndarray, "*shape"] | float, n: int) -> Float[np.ndarray, "*shape"]:
    """Mean Spearman correlation in samples of `n` normal pairs with correlation `rho` (P. A. P. Moran, Biometrika 35, 1948)."""
    return 6 / (np.pi * (n + 1)) * (np.arcsin(rho) + (n - 2) * np.arcsin(np.asarray(rho) / 2))


def seeds_needed(ceiling: float, n_seeds: int, wanted: float) -> float:
    """How many seeds, in all, would lift a ceiling reached with `n_seeds` to `wanted` < 1; infinite when it is 0."""
    if ceiling <= 0:
        return np.inf
    odds, wanted_odds = (c**2 / (1 - c**2) if c < 1 else np.inf for c in (ceiling, wanted))  # Spearman-Brown: odds ∝ seeds
    return float(np.ceil(n_seeds * wanted_odds / odds))


def splits(n_seeds: int) -> list[Split]:
    """All ways to choose two halves of floor(n_seeds / 2) seeds, or a fixed sample of `MOST_SPLITS` different ones of them."""
    half = n_seeds // 2
    if comb(n_seeds, half) * comb(n_seeds - half, half) // 2 <= MOST_SPLITS:
        return list(_all_splits(n_seeds))
    rng = np.random.default_rng([n_seeds, int.from_bytes(b"split-half")])
    chosen: dict[Split, None] = {}  # in the order drawn, each once
    while len(chosen) < MOST_SPLITS:
        order = rng.permutation(n_seeds).tolist()
        first, second = sorted([tuple(sorted(order[:half])), tuple(sorted(order[half : 2 * half]))])
        chosen[first, second] = None
    return list(chosen)


def standardised(values: Float[np.ndarray, "*shape n"]) -> Float[np.ndarray, "*shape n"]:
    """Values less their mean, divided by their norm over the last axis; NaN where all are the same."""
    same = values.max(axis=-1, keepdims=True) == values.min(axis=-1, keepdims=True)
    deviation = values - values.mean(axis=-1, keepdims=True)
    deviation = deviation / np.where(same, np.nan, np.abs(deviation).max(axis=-1, keepdims=True))  # squares cannot over- or underflow
    return deviation / np.sqrt(np.sum(deviation**2, axis=-1, keepdims=True))


def _all_splits(n_seeds: int) -> Iterator[Split]:
    half = n_seeds // 2
    for first in combinations(range(n_seeds), half):
        rest = [seed for seed in range(n_seeds) if seed not in first]
        yield from ((first, second) for second in combinations(rest, half) if first < second)


def _correlate(x: ByTest, y: ByTest, *, ranks: bool) -> tuple[Float[np.ndarray, "n_test 1"], ByTest]:
    """Correlation r of each row of `x` with that of `y`, and pseudo-values n r − (n − 1) r_without_i, moved so that their mean is r.

    With standardised values u, v (mean 0, norm 1) deleting one leaves, with c = n / (n − 1),
    r_without_i = (r − c u_i v_i) / sqrt((1 − c u_i²) (1 − c v_i²)). A deleted value also lowers the ranks of those above it, which is
    taken to first order: dr = Σ_j (v_j − r u_j) [x_i < x_j] / ‖ranks of x‖ + the same with x and y exchanged.
    """
    n = x.shape[1]
    if ranks:
        places = _places(x), _places(y)
        x, y = (_sum_below(place, np.ones_like(x)) for place in places)  # mid-ranks, less a half
    u, v = standardised(x), standardised(y)
    r = np.sum(u * v, axis=1, keepdims=True)
    c = n / max(n - 1, 1)
    left = (1 - c * u * u) * (1 - c * v * v)  # 0 when the others are all the same: r without them is undefined, r is kept
    without = np.where(left > ROUNDING, (r - c * u * v) / np.sqrt(np.maximum(left, ROUNDING)), r)
    pseudo = n * r - (n - 1) * without
    if ranks:
        lengths = (np.linalg.norm(z - z.mean(axis=1, keepdims=True), axis=1, keepdims=True) for z in (x, y))
        for place, rest, length in zip(places, (v - r * u, u - r * v), lengths, strict=True):
            pseudo -= n * _sum_below(place, rest) / length  # Σ rest = 0: minus the sum below is the sum above
    return r, pseudo - pseudo.mean(axis=1, keepdims=True) + r


def _places(values: ByTest) -> Int[np.ndarray, "n_test n_removed"]:
    """How many values of the row are smaller than each."""
    order = np.argsort(values, axis=1)
    ascending = np.take_along_axis(values, order, axis=1)
    starts = np.broadcast_to(np.arange(values.shape[1]), values.shape).copy()
    starts[:, 1:] *= ascending[:, 1:] > ascending[:, :-1]
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.maximum.accumulate(starts, axis=1), axis=1)
    return places


def _sum_below(places: Int[np.ndarray, "n_test n_removed"], values: ByTest) -> ByTest:
    """Σ of the row's `values` over what stands below each, and half of that over what is tied with it, itself included."""
    n_test, n = places.shape
    at_place = np.bincount((places + n * np.arange(n_test)[:, None]).ravel(), values.ravel(), n_test * n).reshape(n_test, n)
    return np.take_along_axis(np.cumsum(at_place, axis=1) - at_place / 2, places, axis=1)
