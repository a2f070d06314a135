"""Percentile bootstrap over removed *and* over test examples, for statistics that read values, signs or ranks.

A resample draws `n_removed` removed examples and, independently, `n_test` test examples, both with replacement; a pair
(removed, test) then counts as often as its row was drawn times as often as its column was. Both axes are resampled because
both are samples: pairs that share a row or a column are not independent, and resampling pairs would make the interval too
narrow. This is the pigeonhole bootstrap, whose variance is somewhat too large rather than too small (A. B. Owen, "The
pigeonhole bootstrap", Annals of Applied Statistics 1(2), 2007).

The interval is the percentile interval, moved so that the resamples' mean falls on the value: the copies of an example are
tied with each other, which in itself lowers a rank correlation, Spearman's by about 3 (ρ − τ) / (n_removed + 1). The shift
costs nothing else; without it a good estimate (0.98 from 30 removals) can lie above its own interval.

A resample is never written out. It is a row of *copies* (how often each example was drawn), and a statistic of it follows
from those: averages as weighted sums, ranks from cumulative copies in an order that is sorted once, Kendall's tau as a
quadratic form in the copies. The result is that of the written-out resample, in which the copies of one example are tied.

Every statistic here maps `estimate [n_removed, n_test]`, `truth [n_removed, n_test]` and `draws` to one number a resample.
It is NaN where it is undefined: a correlation is when everything that was drawn has the same estimate, or the same truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

Matrix = Float[np.ndarray, "n_removed n_test"]
PerResample = Float[np.ndarray, " n_resamples"]
PerTest = Float[np.ndarray, "n_resamples n_test"]
Copies = Int[np.ndarray, "n_resamples n"]
Average = Callable[[Matrix], np.ndarray]
Prepared = Callable[[Copies], PerResample]

FEWEST = 50  # resamples below which a 95 % percentile interval is not worth printing
CHUNK = 2**15  # copies handled at once, so that a handful of such arrays stays in a core's cache
TILE = 2**22  # entries of Kendall's sign matrix written out at once
ROUNDING = 1e-12  # a variance below this share of the second moment is cancellation, not spread


@dataclass(frozen=True)
class Resamples:
    """How often each removed and each test example was drawn, one row a resample."""

    removed: Int[np.ndarray, "n_resamples n_removed"]
    test: Int[np.ndarray, "n_resamples n_test"]

    @classmethod
    def draw(cls, n_removed: int, n_test: int, count: int, seed: int) -> Resamples:
        """`count` two-way resamples. An axis with one example stays as it is: a single test example is not a sample of any."""
        rng = np.random.default_rng([seed, int.from_bytes(b"bootstrap")])
        removed = rng.multinomial(n_removed, np.full(n_removed, 1 / n_removed), size=count)
        test = rng.multinomial(n_test, np.full(n_test, 1 / n_test), size=count)
        return cls(removed.astype(np.int32), test.astype(np.int32))

    @classmethod
    def once(cls, n_removed: int, n_test: int) -> Resamples:
        """The sample itself: every example once."""
        return cls(np.ones((1, n_removed), np.int32), np.ones((1, n_test), np.int32))

    def first(self, count: int) -> Resamples:
        return Resamples(self.removed[:count], self.test[:count])

    def average_by_test(self, values: Matrix) -> PerTest:
        """The mean of each test example's values over the removed examples drawn."""
        return self.removed @ values / len(values)

    def average(self, values: Matrix) -> PerResample:
        """The mean over the pairs drawn."""
        return np.einsum("rt,rt->r", self.average_by_test(values), self.test) / values.shape[1]

    def average_defined(self, per_test: PerTest) -> PerResample:
        """The mean over the test examples drawn, those left out for which `per_test` is undefined."""
        weight = self.test * np.isfinite(per_test)
        return _divide(np.sum(weight * np.nan_to_num(per_test), axis=1), weight.sum(axis=1))


def affordable(wanted: int, cost: int, budget: int) -> int:
    """How many of the `wanted` resamples fit when each takes `cost` operations of `budget`; 0 when fewer than `FEWEST` do."""
    count = min(wanted, budget // cost)
    return count if count >= min(FEWEST, wanted) else 0


def interval(replicates: PerResample, value: float, bounds: tuple[float, float]) -> tuple[float, float]:
    """95 % interval: `value` + (2.5 % and 97.5 % quantile − mean) of the resamples in which the statistic is defined.

    Cut to the statistic's own `bounds`; NaN when it is defined in none.
    """
    defined = replicates[np.isfinite(replicates)]
    if defined.size == 0:
        return np.nan, np.nan
    low, high = np.clip(value - defined.mean() + np.quantile(defined, [0.025, 0.975]), *bounds)
    return float(low), float(high)


def quantiles(replicates: PerResample) -> tuple[float, float]:
    """2.5 % and 97.5 % quantile of the resamples that are not NaN, themselves resamples, so that they can be infinite; else NaN."""
    known = replicates[~np.isnan(replicates)]
    if known.size == 0:
        return np.nan, np.nan
    low, high = np.quantile(known, [0.025, 0.975], method="closest_observation")
    return float(low), float(high)


# ---------------------------------------------------------------------------------------------------- values and signs


def pearson(estimate: Matrix, truth: Matrix, draws: Resamples) -> PerResample:
    """Mean over test examples of the correlation over removed examples."""
    return draws.average_defined(_correlation(*_moments(_unit(estimate, 0), _unit(truth, 0), draws.average_by_test)))


def pearson_pooled(estimate: Matrix, truth: Matrix, draws: Resamples) -> PerResample:
    """Correlation over all pairs."""
    return _correlation(*_moments(_unit(estimate), _unit(truth), draws.average))


def slope(estimate: Matrix, truth: Matrix, draws: Resamples) -> PerResample:
    """Least-squares slope, with an intercept, of truth (actual) on estimate (predicted), over all pairs."""
    variance, _, covariance = _moments(_unit(estimate), _unit(truth), draws.average)
    unit = _largest(truth - truth.mean()) / _largest(estimate - estimate.mean())
    return _divide(covariance, variance) * unit.item()


def rmse(estimate: Matrix, truth: Matrix, draws: Resamples) -> PerResample:
    """Root mean squared error of the estimate itself (not of a line fitted to it), over all pairs."""
    largest = _largest(truth - estimate).item()
    return largest * np.sqrt(draws.average(((truth - estimate) / largest) ** 2))


def sign_agreement(estimate: Matrix, truth: Matrix, draws: Resamples) -> PerResample:
    """Share of pairs with the same sign; a zero agrees with a zero only."""
    return draws.average((np.sign(estimate) == np.sign(truth)).astype(float))


def _unit(values: Matrix, axis: int | None = None) -> Matrix:
    """Deviations from the mean, as shares of the largest: keeps the digits of values far from 0, cannot over- or underflow."""
    deviation = values - values.mean(axis=axis, keepdims=True)
    return deviation / _largest(deviation, axis)


def _largest(values: Matrix, axis: int | None = None) -> np.ndarray:
    """The largest magnitude, 1 in place of 0."""
    largest = np.abs(values).max(axis=axis, keepdims=True)
    return np.where(largest > 0, largest, 1.0)


def _moments(x: Matrix, y: Matrix, average: Average) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variances and covariance of what was drawn; a variance that is nothing but cancellation is exactly zero."""
    mx, my, mxx, myy = average(x), average(y), average(x * x), average(y * y)
    vx, vy = mxx - mx * mx, myy - my * my
    return np.where(vx > ROUNDING * mxx, vx, 0.0), np.where(vy > ROUNDING * myy, vy, 0.0), average(x * y) - mx * my


def _correlation(vx: np.ndarray, vy: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    return np.clip(_divide(covariance, np.sqrt(vx) * np.sqrt(vy)), -1, 1)


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """`above / below`, NaN where `below` is zero."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)


# --------------------------------------------------------------------------------------------------------------- ranks


def spearman(estimate: Matrix, truth: Matrix, draws: Resamples) -> PerResample:
    """Mean over test examples of the rank correlation over removed examples."""
    columns = zip(estimate.T, truth.T, strict=True)
    return draws.average_defined(np.stack([_in_chunks(rank_correlation(x, y), draws.removed) for x, y in columns], axis=1))


def spearman_pooled(estimate: Matrix, truth: Matrix, draws: Resamples) -> PerResample:
    """Rank correlation over all pairs."""
    correlation = rank_correlation(estimate.ravel(), truth.ravel())
    pairs = [
        correlation((draws.removed[part, :, None] * draws.test[part, None]).reshape(-1, estimate.size))
        for part in _parts(len(draws.removed), estimate.size)
    ]
    return np.concatenate(pairs)


def kendall(estimate: Matrix, truth: Matrix, draws: Resamples) -> PerResample:
    """Mean over test examples of Kendall's tau-b over removed examples."""
    columns = zip(estimate.T, truth.T, strict=True)
    copies = draws.removed.astype(np.float32)
    return draws.average_defined(np.stack([tau_b(x, y, copies) for x, y in columns], axis=1))


def top_overlap(estimate: Matrix, truth: Matrix, draws: Resamples, *, k: int) -> PerResample:
    """Mean over test examples of |A ∩ B| / k, the `k` most helpful removed examples by estimate and by truth."""
    columns = zip(estimate.T, truth.T, strict=True)
    return draws.average_defined(np.stack([_in_chunks(overlap(x, y, k), draws.removed) for x, y in columns], axis=1))


@dataclass(frozen=True)
class Order:
    """Where each of `n` values stands: `sorting` sorts them, `below` of them are smaller and `through` no larger than it.

    `starts` are the sorted positions at which a new value begins, as many as there are different values.
    """

    sorting: Int[np.ndarray, " n"]
    below: Int[np.ndarray, " n"]
    through: Int[np.ndarray, " n"]
    starts: Int[np.ndarray, " n_different"]

    @classmethod
    def of(cls, values: Float[np.ndarray, " n"]) -> Order:
        sorting = np.argsort(values, kind="stable")
        ascending = values[sorting]
        below = np.searchsorted(ascending, values, "left")
        return cls(sorting, below, np.searchsorted(ascending, values, "right"), np.unique(below))

    @property
    def has_ties(self) -> bool:
        return len(self.starts) < len(self.sorting)

    def counts(self, copies: Copies) -> tuple[Copies, Copies]:
        """How many of the values drawn are smaller than each value, and how many no larger; their mean + ½ is its mid-rank."""
        cumulative = np.zeros((len(copies), copies.shape[1] + 1), np.int32)
        # No index is out of range: "clip" only spares numpy's checked gather, which takes longer than all the rest.
        np.cumsum(np.take(copies, self.sorting, axis=1, mode="clip"), axis=1, out=cumulative[:, 1:])
        smaller = np.take(cumulative, self.below, axis=1, mode="clip")
        return smaller, np.take(cumulative, self.through, axis=1, mode="clip") if self.has_ties else smaller + copies

    def tied_pairs(self, copies: Copies) -> PerResample:
        """How many ordered pairs of the values drawn are equal, each value with itself included."""
        groups = copies.astype(float)
        if self.has_ties:
            groups = np.add.reduceat(groups[:, self.sorting], self.starts, axis=1)
        return np.einsum("rg,rg->r", groups, groups)


def rank_correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> Prepared:
    """Spearman's: Pearson's of the mid-ranks, whose mean over N values drawn is (N + 1) / 2 whatever the ties."""
    orders = Order.of(x), Order.of(y)

    def statistic(copies: Copies) -> PerResample:
        total = copies.sum(axis=1, dtype=np.int32, keepdims=True)
        rx, ry = (np.subtract(np.add(*order.counts(copies)), total, dtype=float) for order in orders)  # 2 (mid-rank − its mean)
        wx, wy = copies * rx, copies * ry
        xx, yy, xy = (np.einsum("rn,rn->r", weighted, rank) for weighted, rank in ((wx, rx), (wy, ry), (wx, ry)))
        return _correlation(xx, yy, xy)

    return statistic


def overlap(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], k: int) -> Prepared:
    """|A ∩ B| / k of the `k` largest values drawn by `x` and by `y`.

    Values tied across the border of the top k share the places left equally, and the intersection is that of fuzzy sets,
    Σ_i min(a_i, b_i) with shares in [0, 1]: the plain one when there are no ties, 1 for equal orders, k / n for an estimate
    that does not tell examples apart.
    """
    orders = Order.of(x), Order.of(y)

    def statistic(copies: Copies) -> PerResample:
        larger_allowed = k - copies.sum(axis=1, dtype=np.int32, keepdims=True)
        shares = []
        for order in orders:
            smaller, no_larger = order.counts(copies)
            places = np.maximum(larger_allowed + no_larger, 0)  # those of the k that larger values leave
            shares.append(np.minimum(places / np.maximum(no_larger - smaller, 1), 1))
        return np.einsum("rn,rn->r", np.minimum(*shares), copies) / k

    return statistic


def tau_b(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], copies: Float[np.ndarray, "n_resamples n"]) -> PerResample:
    """Kendall's tau-b. With copies c, N = Σ c, S_ij = sign(x_i − x_j) sign(y_i − y_j), sums over ordered pairs drawn:

        tau_b = cᵀ S c / sqrt((N² − Σ_i c_i p_i) (N² − Σ_i c_i q_i)),   p_i, q_i = how many values drawn are tied with x_i, y_i.

    Cost: n² multiply-adds a resample, as a matrix product in float32, in which whole numbers below 2²⁴ are exact. A count by
    merge sort (W. R. Knight, JASA 61, 1966) needs n log n steps but none that is a matrix product: slower up to n of about 2,000.
    """
    orders = Order.of(x), Order.of(y)
    rx, ry = (order.below.astype(np.float32) for order in orders)
    agreement = np.zeros(len(copies))
    rows = max(1, TILE // len(x))
    for start in range(0, len(x), rows):
        tile = slice(start, start + rows)
        signs = np.sign(np.subtract.outer(rx, rx[tile]) * np.subtract.outer(ry, ry[tile]))
        agreement += (copies @ signs * copies[:, tile]).sum(axis=1, dtype=float)
    tied = (_in_chunks(order.tied_pairs, copies) for order in orders)
    untied_x, untied_y = (np.sqrt(copies.sum(axis=1, dtype=float) ** 2 - pairs) for pairs in tied)
    return _divide(agreement, untied_x * untied_y)


def _in_chunks(statistic: Prepared, copies: Copies) -> PerResample:
    return np.concatenate([statistic(copies[part]) for part in _parts(*copies.shape)])


def _parts(count: int, size: int) -> list[slice]:
    """`count` resamples of `size` copies, cut into slices of about `CHUNK` copies."""
    width = max(1, CHUNK // size)
    return [slice(start, start + width) for start in range(0, count, width)]
