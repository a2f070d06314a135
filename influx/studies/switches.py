"""How much of a correlation each of several defects costs.

A defect is a switch: present, or mended. With k switches the correlation v(S) is known for every set S of mended ones, 2^k values a seed,
all of the same trained model. What a switch X brings depends on which others are mended already, so it is said in four ways:

    step    v(those up to X in the stated order) − v(those before X)     adds up to what is lost, in that order
    first   v({X}) − v({})                                               X alone is mended
    last    v(all) − v(all but X)                                        X alone is left
    share   mean of v(S with X) − v(S) over all k! orders                adds up to what is lost, in no order (Shapley value)

`lost` is v(all) − v({}). Source of the share: L. S. Shapley, "A value for n-person games" (1953).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from influx.errors import InfluxError
from influx.report.figures.waterfall import JOIN, NONE
from influx.studies.comparisons import Comparison, Folders, rows_of
from influx.studies.folders import Changes, estimate_correlations, truths

Mended = frozenset[str]


@dataclass(frozen=True)
class Switches(Comparison):
    """Rows `mended: A + B` (v of that set), `step: X`, `first: X`, `last: X`, `share: X`, `percent: X` and `lost`, a seed each.

    Args:
        order: the switches, from as published to matched.
        estimates: sets of mended switches that the estimate knows ("none", "A", "A + B" ...) -> the arm whose influence has them mended.
        truths: the same for the switches of the retraining. Every set of all switches is one of `estimates` with one of `truths`.
        alone: defects outside the order -> the arm whose estimate has this one alone mended: `first`, against nothing mended.
        left: defects outside the order -> the arm whose estimate has this one alone left: `last`, against everything mended.
        statistic: "spearman" or "pearson".

    `percent` is a seed's share over the mean of what is lost over the seeds, in per cent: a ratio of each seed's own would have a
    denominator near zero. It is left out where nothing is lost.
    """

    order: Sequence[str]
    estimates: Mapping[str, str]
    truths: Mapping[str, str]
    alone: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    statistic: str = "spearman"

    def __post_init__(self) -> None:
        for mended in subsets(self.order):
            found = [(e, t) for e in self.estimates for t in self.truths if parse(e) | parse(t) == mended]
            if len(found) != 1:
                said = write(mended, self.order)
                raise InfluxError(f"switches: '{said}' needs one estimate and one truth, and has {len(found)} pairs of them.")

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.estimates.values(), *self.truths.values(), *self.alone.values(), *self.left.values())))

    def rows(self, folders: Folders) -> list[dict[str, Any]]:
        seeds = self.seeds(folders)
        known = {arm: truths(folders[arm], seeds) for arm in self.truths.values()}
        found = {
            seed: self._of_seed({arm: folders[arm][seed] for arm in self.arms}, {arm: truth[seed] for arm, truth in known.items()})
            for seed in seeds
        }
        lost = float(np.mean([values["lost"] for values in found.values()])) if found else 0.0
        for values in found.values():
            if lost > 0:
                values |= {f"percent: {name}": 100 * values[f"share: {name}"] / lost for name in self.order}
        return rows_of(found)

    def _of_seed(self, folders: Mapping[str, Path], known: Mapping[str, Changes]) -> dict[str, float]:
        def correlation(estimate: str, truth: str) -> float:
            return estimate_correlations(folders[estimate], known[truth])[self.statistic]

        value = {
            parse(e) | parse(t): correlation(estimate, truth) for e, estimate in self.estimates.items() for t, truth in self.truths.items()
        }
        every = frozenset(self.order)
        made = {f"mended: {write(mended, self.order)}": number for mended, number in value.items()}
        made["lost"] = value[every] - value[frozenset()]
        for place, name in enumerate(self.order):
            before = frozenset(self.order[:place])
            made[f"step: {name}"] = value[before | {name}] - value[before]
            made[f"first: {name}"] = value[frozenset({name})] - value[frozenset()]
            made[f"last: {name}"] = value[every] - value[every - {name}]
        made |= {f"share: {name}": share for name, share in shares(self.order, value).items()}
        for name, arm in self.alone.items():
            made[f"first: {name}"] = correlation(arm, self._truth(frozenset())) - value[frozenset()]
        for name, arm in self.left.items():
            made[f"last: {name}"] = value[every] - correlation(arm, self._truth(every))
        return made

    def _truth(self, mended: Mended) -> str:
        """The arm whose retraining has all its switches mended, or none."""
        of_truths = frozenset().union(*map(parse, self.truths))
        return next(arm for name, arm in self.truths.items() if parse(name) == mended & of_truths)


def shares(names: Sequence[str], value: Mapping[Mended, float]) -> dict[str, float]:
    """Each name's Shapley value: Σ_S |S|! (k − |S| − 1)! / k! (v(S + X) − v(S)) over the sets S without X."""
    k = len(names)
    made = {}
    for name in names:
        others = [other for other in names if other != name]
        made[name] = sum(
            math.factorial(len(s)) * math.factorial(k - len(s) - 1) / math.factorial(k) * (value[s | {name}] - value[s])
            for s in subsets(others)
        )
    return made


def subsets(names: Sequence[str]) -> list[Mended]:
    return [frozenset(chosen) for size in range(len(names) + 1) for chosen in itertools.combinations(names, size)]


def parse(said: str) -> Mended:
    """The set that "A + B" or "none" says."""
    return frozenset() if said == NONE else frozenset(part.strip() for part in said.split(JOIN.strip()))


def write(mended: Mended, order: Sequence[str]) -> str:
    return JOIN.join(name for name in order if name in mended) or NONE
