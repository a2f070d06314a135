"""WEAT: effect size against NumPy, p-values against SciPy and enumeration, and what is said of word lists."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import scipy.stats
import torch
from corpora import HERS, HIS, HOME, WORK, Biased
from numpy.typing import NDArray

from influx.data import Data
from influx.errors import AccuracyWarning, InfluxError
from influx.measurements import weat
from influx.measurements.weat import Weat, permutation_p
from influx.objectives.skip_gram import SkipGram

OBJECTIVE = SkipGram(window=2, negatives=2, min_count=1)
LISTS = {"X": list(WORK), "Y": list(HOME), "A": list(HIS), "B": list(HERS)}


@pytest.fixture(scope="module")
def data() -> Data:
    return OBJECTIVE.prepare(Biased(train_size=60, test_size=12).load())


def by_numpy(vectors: dict[str, NDArray[np.float64]], lists: dict[str, list[str]], ddof: int) -> float:
    """The effect size by its definition, one pair of words after another."""

    def cosine(a: str, b: str) -> float:
        return float(vectors[a] @ vectors[b] / np.sqrt((vectors[a] @ vectors[a]) * (vectors[b] @ vectors[b])))

    def score(word: str) -> float:
        return float(np.mean([cosine(word, a) for a in lists["A"]]) - np.mean([cosine(word, b) for b in lists["B"]]))

    x, y = ([score(word) for word in lists[key]] for key in ("X", "Y"))
    return float((np.mean(x) - np.mean(y)) / np.std(x + y, ddof=ddof))


@pytest.mark.parametrize("ddof", [0, 1])
def test_effect_sizes_are_the_definitions(data: Data, ddof: int) -> None:
    shorter = {"X": ["office", "SALARY"], "Y": list(HOME), "A": ["he", "man"], "B": list(HERS)}
    posed = Weat({"long": LISTS, "short": shorter}, ddof=ddof).pose(data)
    assert posed.test_names == ("long", "short")
    rng = np.random.default_rng(0)
    vectors = {word: rng.normal(size=5) for word in data.words}
    table = np.array([*vectors.values(), np.zeros(5)])  # -1, no word, is the last row: zeros
    outputs = torch.from_numpy(table[posed.test_inputs.numpy()]).flatten(1)
    made = Weat({"long": LISTS}, ddof=ddof).value(torch.stack([outputs, 3 * outputs]), posed.test_targets, OBJECTIVE)
    lower = {**shorter, "X": ["office", "salary"]}
    expected = [by_numpy(vectors, lists, ddof) for lists in (LISTS, lower)]
    np.testing.assert_allclose(made.numpy(), [expected, expected], rtol=1e-12)  # cosines do not know lengths


def test_exact_p_counts_all_partitions() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(0.5, 1, 4), rng.normal(0, 1, 5)
    p, count, exact = permutation_p(x, y)
    pool = np.concatenate([x, y])
    every = [pool[list(chosen)].mean() - np.delete(pool, chosen).mean() for chosen in combinations(range(9), 4)]
    assert (count, exact) == (126, True)
    assert p == pytest.approx(np.mean(np.array(every) >= x.mean() - y.mean() - 1e-12), abs=0)
    oracle = scipy.stats.permutation_test(
        (x, y), lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis), vectorized=True, alternative="greater", n_resamples=np.inf
    )
    assert p == pytest.approx(oracle.pvalue, abs=1e-12)


def test_ties_count() -> None:
    tied = permutation_p(np.array([0.1 + 0.2, 0.0]), np.array([0.3, 0.0]))  # 0.1 + 0.2 is above 0.3 by rounding alone
    assert tied == (pytest.approx(5 / 6), 6, True)  # all but the partition with both zeros
    assert permutation_p(np.array([2.0, 2.0]), np.array([1.0, 1.0]))[0] == pytest.approx(1 / 6)


def test_sampled_p_is_near_the_exact_one_and_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(0.6, 1, 8), rng.normal(0, 1, 8)
    exact = permutation_p(x, y)
    assert exact[1:] == (12_870, True)
    monkeypatch.setattr(weat, "MOST_PARTITIONS", 5000)
    p, count, whole = permutation_p(x, y)
    assert (count, whole) == (5000, False)
    assert abs(p - exact[0]) < 4 * (exact[0] * (1 - exact[0]) / 5000) ** 0.5 + 1 / 5000  # four standard errors
    assert permutation_p(x, y) == (p, count, whole)
    assert permutation_p(x + 100, y)[0] >= 1 / 5001


def test_words_without_a_vector_are_left_out_and_named(data: Data) -> None:
    lists = {**LISTS, "X": [*WORK, "yacht", "zebra"]}
    with pytest.warns(AccuracyWarning, match=r"words of WEAT without a vector are left out: trial X: yacht, zebra \(3 left\)\."):
        posed = Weat({"trial": lists}).pose(data)
    assert torch.equal(posed.test_inputs, Weat({"trial": LISTS}).pose(data).test_inputs)


def test_a_list_with_too_few_words_left_is_refused(data: Data) -> None:
    message = (
        r"WEAT trial: list X has 1 word\(s\) of the vocabulary left, and needs 2 \(missing: yacht, zebra\): give it other words, lower "
        r"objective\.min_count, or train on more text\."
    )
    with pytest.raises(InfluxError, match=message):
        Weat({"trial": {**LISTS, "X": ["office", "yacht", "zebra"]}}).pose(data)
    with pytest.raises(
        InfluxError, match=r"measurement=weat compares word vectors, and this objective trains none: use objective=skip_gram"
    ):
        Weat({"trial": LISTS}).pose(replace(data, words=()))


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ({}, r"measurement\.tests must be one or more tests, each with the word lists X, Y, A and B"),
        (["X"], r"measurement\.tests must be one or more tests"),
        ({"t": ["a", "b"]}, r"measurement\.tests\.t must have the word lists X, Y, A and B"),
        ({"t": {**LISTS, "x": ["a"]}}, r"measurement\.tests\.t has a list 'x'; its lists are X, Y, A and B"),
        ({"t": {**LISTS, "X": "office"}}, r"measurement\.tests\.t\.X must be a list of words, such as \[career, salary\]"),
        ({"t": {**LISTS, "Y": ["home", 3]}}, r"measurement\.tests\.t\.Y must be a list of words"),
        ({"t": {"X": ["a", "b"], "Y": ["c", "d"], "A": ["e", "f"]}}, r"measurement\.tests\.t\.B must be a list of words"),
        ({"t": {**LISTS, "A": []}}, r"measurement\.tests\.t\.A has 0 different word\(s\): a list needs 2 or more"),
        ({"t": {**LISTS, "A": ["he", "He"]}}, r"measurement\.tests\.t\.A has .* a list needs 2 or more"),
        ({"t": {**LISTS, "Y": ["home", "Office"]}}, r"measurement\.tests\.t: office stands in X and in Y; a word belongs to one of them"),
        ({"t": {**LISTS, "B": ["she", "he"]}}, r"measurement\.tests\.t: he stands in A and in B"),
    ],
)
def test_lists_that_are_none_are_refused(tests: object, message: str) -> None:
    with pytest.raises(InfluxError, match=message):
        Weat(tests)  # type: ignore[arg-type]


def test_ddof_is_0_or_1() -> None:
    with pytest.raises(InfluxError, match=r"measurement\.ddof=2 is not possible"):
        Weat({"t": LISTS}, ddof=2)
