"""WEAT, the word embedding association test (Caliskan, Bryson & Narayanan 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from influx import rules
from influx.data import Data
from influx.errors import InfluxError, nearest, warn_accuracy
from influx.measurements.base import Measurement, Posing
from influx.objectives.base import Objective
from influx.seeding import numpy_generator

LISTS = ("X", "Y", "A", "B")
NO_WORD = -1
FEWEST = 2  # words of a list that must have a vector
MOST_PARTITIONS = 20_000  # of X ∪ Y that are gone through one by one; more are sampled


@dataclass(frozen=True)
class Weat(Measurement, Posing):
    """The effect size of each association test, one test a column of the influence matrix:

        d = (mean_{x∈X} s(x) − mean_{y∈Y} s(y)) / std_{w∈X∪Y} s(w),      s(w) = mean_{a∈A} cos(w, a) − mean_{b∈B} cos(w, b).

    X, Y are words for two things (career, family), A, B words for two attributes (his, hers); d > 0 when X is nearer to A than Y is. No
    unit: standard deviations, at most 2 in size.

    Args:
        tests: name -> {X, Y, A, B}, lists of words. Words without a vector are left out, and named in a warning.
        ddof: 1, the standard deviation divides by one less than the number of words; 0, by that number. The code released with Silva et
            al. 2022 has 1 where it estimates and 0 where it evaluates.
    """

    tests: Mapping[str, Mapping[str, Sequence[str]]]
    ddof: int = 1

    unit: ClassVar[str] = "effect size"
    lower_is_better: ClassVar[bool] = True
    reads: ClassVar[str] = "labels"

    def __post_init__(self) -> None:
        rules.check_value("measurement.ddof", self.ddof)
        if not isinstance(self.tests, Mapping) or not self.tests:
            raise InfluxError("measurement.tests must be one or more tests, each with the word lists X, Y, A and B.")
        for name, lists in self.tests.items():
            _check_lists(name, lists)

    def pose(self, data: Data) -> Data:
        if not data.words:
            raise InfluxError("measurement=weat compares word vectors, and this objective trains none: use objective=skip_gram.")
        known = {word: number for number, word in enumerate(data.words)}
        found = {name: {key: _known(lists[key], known) for key in LISTS} for name, lists in self.tests.items()}
        self._say_missing(found)
        longest = max(sum(map(len, lists.values())) for lists in found.values())
        ids = torch.full((len(found), longest), NO_WORD)
        codes = torch.full_like(ids, NO_WORD)
        for row, lists in enumerate(found.values()):
            numbers = [known[word] for key in LISTS for word in lists[key]]
            ids[row, : len(numbers)] = torch.tensor(numbers)
            codes[row, : len(numbers)] = torch.tensor([code for code, key in enumerate(LISTS) for _ in lists[key]])
        places = np.arange(len(found))
        return replace(data, test_inputs=ids, test_targets=codes, test_index=places, test_names=tuple(found))

    def _say_missing(self, found: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Warn of words without a vector.

        Raises:
            InfluxError: too few words of a list are left.
        """
        gone = []
        for name, lists in found.items():
            for key in LISTS:
                missing = [word for word in self.tests[name][key] if word.lower() not in lists[key]]
                if len(lists[key]) < FEWEST:
                    raise InfluxError(
                        f"WEAT {name}: list {key} has {len(lists[key])} word(s) of the vocabulary left, and needs {FEWEST} (missing: "
                        f"{', '.join(missing)}): give it other words, lower objective.min_count, or leave the test out ("
                        f"~measurement.tests.{name})."
                    )
                gone += [f"{name} {key}: {', '.join(missing)} ({len(lists[key])} left)"] if missing else []
        if gone:
            warn_accuracy(f"words of WEAT without a vector are left out: {'; '.join(gone)}.")

    def value(self, outputs: Float[Tensor, " *k n out"], targets: Int[Tensor, "n w"], objective: Objective) -> Float[Tensor, " *k n"]:
        score, (x, y, _, _) = associations(outputs, targets)
        both = x + y
        mean = (score * both).sum(-1) / both.sum(-1)
        spread = (((score - mean.unsqueeze(-1)) * both).square().sum(-1) / (both.sum(-1) - self.ddof)).sqrt()
        return ((score * x).sum(-1) / x.sum(-1) - (score * y).sum(-1) / y.sum(-1)) / spread


def associations(outputs: Float[Tensor, " *k n out"], codes: Int[Tensor, "n w"]) -> tuple[Float[Tensor, " *k n w"], tuple[Tensor, ...]]:
    """s(w) of every word of every test, and which words are in X, Y, A, B, as ones and zeros [n, w]."""
    inside = tuple((codes == code).to(outputs.dtype) for code in range(len(LISTS)))
    vectors = outputs.unflatten(-1, (codes.shape[-1], -1))  # [*k, n, w, d]
    nowhere = (codes == NO_WORD).to(outputs.dtype)
    unit = vectors / (vectors.square().sum(-1) + nowhere).sqrt().unsqueeze(-1)
    a, b = ((unit * part.unsqueeze(-1)).sum(-2) / part.sum(-1, keepdim=True) for part in inside[2:])
    return (unit * (a - b).unsqueeze(-2)).sum(-1), inside


def permutation_p(x: Float[np.ndarray, " x"], y: Float[np.ndarray, " y"], seed: int = 0) -> tuple[float, int, bool]:
    """One-sided p-value of Σ_X s − Σ_Y s over partitions of X ∪ Y into sets of those sizes: (p, how many partitions, whether all of them).

    Exact when there are at most 20,000; else of as many drawn with replacement, the observed one counted among them, (count + 1)/(N + 1)
    (Phipson & Smyth 2010).
    """
    pool, size = np.concatenate([x, y]), len(x)
    observed = x.sum()  # the total is fixed, so that the first sum orders the partitions
    slack = 1e-12 * np.abs(pool).sum()  # a partition that ties with the observed one counts, whatever rounding says
    total = comb(len(pool), size)
    if total <= MOST_PARTITIONS:
        sums = np.array([pool[list(chosen)].sum() for chosen in combinations(range(len(pool)), size)])
        return float((sums >= observed - slack).mean()), total, True
    generator = numpy_generator(seed, "partitions")
    sums = np.array([generator.permutation(pool)[:size].sum() for _ in range(MOST_PARTITIONS)])
    return float(((sums >= observed - slack).sum() + 1) / (MOST_PARTITIONS + 1)), MOST_PARTITIONS, False


def _check_lists(name: str, lists: Any) -> None:
    about = f"measurement.tests.{name}"
    if not isinstance(lists, Mapping):
        raise InfluxError(f"{about} must have the word lists X, Y, A and B.")
    for key in lists:
        if key not in LISTS:
            raise InfluxError(f"{about} has a list '{key}'; its lists are X, Y, A and B.{nearest(key, LISTS)}")
    for key in LISTS:
        words = lists.get(key)
        if isinstance(words, str) or not isinstance(words, Sequence) or not all(isinstance(word, str) and word for word in words):
            raise InfluxError(f"{about}.{key} must be a list of words, such as [career, salary].")
        different = len({word.lower() for word in words})
        if different < FEWEST:
            raise InfluxError(f"{about}.{key} has {len(words)} words, {different} of them different: a list needs {FEWEST} or more.")
    for first, second in (("X", "Y"), ("A", "B")):
        both = {word.lower() for word in lists[first]} & {word.lower() for word in lists[second]}
        if both:
            raise InfluxError(f"{about}: {', '.join(sorted(both))} stands in {first} and in {second}; a word belongs to one of them.")


def _known(words: Sequence[str], known: Mapping[str, int]) -> list[str]:
    """Those with a vector, in lower case, each once."""
    return list(dict.fromkeys(word.lower() for word in words if word.lower() in known))
