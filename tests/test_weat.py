"""WEAT: effect sizes and p-values against definitions, brute force and SciPy; word lists that cannot be used."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import scipy.stats
import torch
from problems import data
from torch import Tensor

from influx.errors import AccuracyWarning, InfluxError
from influx.measurements.weat import Weat, associations, permutation_p
from influx.objectives.skip_gram import SkipGram

WORDS = ("career", "salary", "office", "family", "home", "child", "he", "his", "man", "she", "hers", "woman", "other")
LISTS = {"X": ["career", "salary", "office"], "Y": ["family", "home", "child"], "A": ["he", "his", "man"], "B": ["she", "hers", "woman"]}


def posed(tests: dict, **changes: object) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    made = Weat(tests, **changes).pose(replace(data("softmax"), words=WORDS))
    return made.test_inputs, made.test_targets, made.test_names


def vectors(seed: int = 0, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(len(WORDS), width))


def by_definition(table: np.ndarray, lists: dict, ddof: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Effect size and the associations of X and Y, word by word (Caliskan et al. 2017, "WEAT" in the supplement)."""

    def cosine(first: str, second: str) -> float:
        a, b = table[WORDS.index(first)], table[WORDS.index(second)]
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    def s(word: str) -> float:
        return np.mean([cosine(word, a) for a in lists["A"]]) - np.mean([cosine(word, b) for b in lists["B"]])

    x, y = np.array([s(word) for word in lists["X"]]), np.array([s(word) for word in lists["Y"]])
    return (x.mean() - y.mean()) / np.concatenate([x, y]).std(ddof=ddof), x, y


def measured(table: np.ndarray, tests: dict, ddof: int) -> Tensor:
    ids, codes, _ = posed(tests, ddof=ddof)
    found = torch.from_numpy(table)[ids.clamp_min(0)] * (ids >= 0).unsqueeze(-1)
    return Weat(tests, ddof=ddof).value(found.flatten(1), codes, SkipGram())


@pytest.mark.parametrize("ddof", [0, 1])
def test_the_effect_size_is_its_definition(ddof: int) -> None:
    shorter = {**LISTS, "X": ["office", "other"], "B": ["she", "woman"]}  # beside a longer test: the rest is padding
    found = measured(vectors(), {"long": LISTS, "short": shorter}, ddof)
    wanted = [by_definition(vectors(), lists, ddof)[0] for lists in (LISTS, shorter)]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)  # the same sums in another order


def test_it_has_a_gradient_and_none_for_words_outside_the_lists() -> None:
    ids, codes, _ = posed({"one": LISTS, "short": {**LISTS, "X": ["office", "other"]}})
    table = torch.from_numpy(vectors()).requires_grad_(True)

    def effect(values: Tensor) -> Tensor:
        found = values[ids.clamp_min(0)] * (ids >= 0).unsqueeze(-1)
        return Weat({"one": LISTS}).value(found.flatten(1), codes, SkipGram())

    assert torch.autograd.gradcheck(effect, (table,))
    slope = torch.autograd.grad(effect(table)[0], table)[0]
    assert bool((slope[WORDS.index("other")] == 0).all())
    assert bool(torch.isfinite(slope).all())


def test_signs_swap_with_the_lists_and_lengths_do_not_matter() -> None:
    swapped = {"X": LISTS["Y"], "Y": LISTS["X"], "A": LISTS["A"], "B": LISTS["B"]}
    longer = vectors() * np.linspace(0.1, 9, len(WORDS))[:, None]
    once = measured(vectors(), {"one": LISTS}, 1)
    torch.testing.assert_close(measured(vectors(), {"one": swapped}, 1), -once)
    torch.testing.assert_close(measured(longer, {"one": LISTS}, 1), once)


def test_several_models_at_once() -> None:
    ids, codes, _ = posed({"one": LISTS})
    tables = [torch.from_numpy(vectors(seed))[ids].flatten(1) for seed in (0, 1)]
    both = Weat({"one": LISTS}).value(torch.stack(tables), codes, SkipGram())
    assert both.shape == (2, 1)
    torch.testing.assert_close(both[1], Weat({"one": LISTS}).value(tables[1], codes, SkipGram()))


@pytest.mark.parametrize("sizes", [(3, 3), (2, 4), (5, 3)])
def test_the_p_value_counts_all_partitions(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(0.5, 1, sizes[0]), rng.normal(size=sizes[1])
    p, count, exact = permutation_p(x, y)
    pool, observed = np.concatenate([x, y]), x.mean() - y.mean()
    means = [
        pool[list(chosen)].mean() - np.delete(pool, list(chosen)).mean() for chosen in combinations(range(len(pool)), sizes[0])
    ]  # the difference of means: ordered as sums are
    assert (count, exact) == (len(means), True)
    assert p == pytest.approx(np.mean([mean >= observed - 1e-12 for mean in means]))
    theirs = scipy.stats.permutation_test((x, y), lambda a, b: a.mean() - b.mean(), alternative="greater", n_resamples=np.inf)
    assert p == pytest.approx(theirs.pvalue)


def test_many_partitions_are_sampled_by_the_seed() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal(0.3, 1, 12), rng.normal(size=12)  # 2.7 million partitions
    p, count, exact = permutation_p(x, y, seed=1)
    assert (count, exact, permutation_p(x, y, seed=1)[0]) == (20_000, False, p)
    theirs = scipy.stats.permutation_test(
        (x, y), lambda a, b, axis: a.mean(axis) - b.mean(axis), alternative="greater", n_resamples=20_000, rng=0, vectorized=True
    ).pvalue
    assert abs(p - theirs) < 5 * np.sqrt(2 * p * (1 - p) / 20_000)  # five standard errors of a difference of two such samples


def test_ties_count_whatever_rounding_says() -> None:
    assert permutation_p(np.array([0.1, 0.2]), np.array([0.1, 0.2]))[0] == pytest.approx(5 / 6)


def test_the_associations_are_those_of_the_words() -> None:
    ids, codes, _ = posed({"one": LISTS})
    score, inside = associations(torch.from_numpy(vectors())[ids].flatten(1), codes)
    _, x, y = by_definition(vectors(), LISTS, 1)
    np.testing.assert_allclose(score[0][inside[0][0] == 1].numpy(), x, rtol=1e-12)
    np.testing.assert_allclose(score[0][inside[1][0] == 1].numpy(), y, rtol=1e-12)


def test_questions_have_names_and_places_of_their_own() -> None:
    made = Weat({"one": LISTS, "two": LISTS}).pose(replace(data("softmax"), words=WORDS))
    assert made.test_names == ("one", "two")
    assert made.test_index.tolist() == [0, 1]


def test_missing_words_are_named() -> None:
    with pytest.warns(AccuracyWarning, match=r"without a vector are left out: one X: astronaut \(3 left\)\."):
        posed({"one": {**LISTS, "X": [*LISTS["X"], "astronaut"]}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posed({"one": {**LISTS, "X": ["CAREER", "Salary"]}})  # capitals are not missing


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ({}, "measurement.tests must be one or more tests, each with the word lists X, Y, A and B"),
        ({"one": ["career"]}, "measurement.tests.one must have the word lists"),
        ({"one": {**LISTS, "Z": ["x"]}}, "has a list 'Z'; its lists are X, Y, A and B"),
        ({"one": {"X": ["a", "b"]}}, "measurement.tests.one.Y must be a list of words"),
        ({"one": {**LISTS, "A": "he"}}, "measurement.tests.one.A must be a list of words"),
        ({"one": {**LISTS, "A": ["he", 3]}}, "measurement.tests.one.A must be a list of words"),
        ({"one": {**LISTS, "A": ["he", "He"]}}, "measurement.tests.one.A has 2 words, 1 of them different: a list needs 2 or more"),
        ({"one": {**LISTS, "B": [*LISTS["B"], "he"]}}, "he stands in A and in B; a word belongs to one of them"),
    ],
)
def test_word_lists_that_cannot_be_used_are_refused(tests: dict, said: str) -> None:
    with pytest.raises(InfluxError, match=said):
        Weat(tests)


def test_too_few_words_left_are_refused_with_what_is_missing() -> None:
    with pytest.raises(InfluxError, match=r"WEAT one: list Y has 1 word\(s\) .* left, and needs 2 \(missing: attic, cellar\)"):
        posed({"one": {**LISTS, "Y": ["home", "attic", "cellar"]}})


def test_an_objective_without_words_is_refused() -> None:
    with pytest.raises(InfluxError, match=r"measurement=weat compares word vectors, and this objective trains none"):
        Weat({"one": LISTS}).pose(data("softmax"))
