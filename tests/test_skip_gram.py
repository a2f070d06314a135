"""Skip-gram with negative sampling: windows and loss against loops, gradients against plain autograd, documents that train nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from corpora import Biased
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from influx.data import Data
from influx.errors import AccuracyWarning, InfluxError
from influx.models.base import Shape, build
from influx.models.skip_gram import SkipGramVectors, WordVectors
from influx.objectives.skip_gram import POWER, SkipGram, tokens

SMALL = SkipGram(window=2, negatives=3, min_count=1, max_pairs=1000)


def told(*texts: str, test: int = 1) -> Data:
    """A data set of these texts, the last `test` of them its test part."""
    data = Biased(train_size=4, test_size=2, documents=12).load()
    places = np.arange(len(texts))
    train, apart = places[:-test], places[-test:]
    numbers = {"train_inputs": torch.zeros(len(train), 1), "train_targets": torch.zeros(len(train)).long()}
    numbers |= {"test_inputs": torch.zeros(test, 1), "test_targets": torch.zeros(test).long()}
    return replace(data, texts=texts, test_texts=texts, train_index=train, test_index=apart, **numbers)


def pairs_of(words: list[str], window: int) -> list[tuple[str, str]]:
    """(centre, context) by the definition."""
    near = [(c, o) for c in range(len(words)) for o in range(len(words)) if c != o and abs(c - o) <= window]
    return [(words[c], words[o]) for c, o in near]


def test_words_are_letters_in_lower_case() -> None:
    assert tokens("The BBC's 3 o'clock news: Café, re-run_2!") == ["the", "bbc's", "o'clock", "news", "café", "re", "run"]


def test_windows_are_all_pairs_of_the_definition() -> None:
    texts = ("the cat sat on the mat", "a dog sat", "the cat ran", "a cat sat on a dog")
    data = SMALL.prepare(told(*texts))
    assert set(data.words) == set(" ".join(texts[:3]).split())
    for inputs, part in ((data.train_inputs, texts[:3]), (data.test_inputs, texts[3:])):
        for windows, text in zip(inputs, part, strict=True):
            rows = windows[windows[:, 0] >= 0]
            found = Counter((data.words[c], data.words[o]) for c, o in rows[:, :2].tolist())
            assert found == Counter(pairs_of([word for word in text.split() if word in data.words], 2))
            assert rows.min() >= 0
            assert (windows[len(rows) :] == -1).all()


def test_the_vocabulary_is_the_training_parts_most_frequent_words() -> None:
    data = replace(SMALL, min_count=2).prepare(told("b b c c c a", "a b c d", "d d d d d"))
    assert data.words == ("c", "b", "a")  # by count, then by name; d is used once in the training part
    assert replace(SMALL, vocabulary=2).prepare(told("b b c c c a", "a b c d", "d d d d d")).words == ("c", "b")


def test_negatives_are_a_documents_own_and_follow_counts_to_three_quarters() -> None:
    texts = ["common " * 90 + "rare " * 10] * 40 + ["common rare"]
    objective = replace(SMALL, negatives=5, max_pairs=300)
    data = objective.prepare(told(*texts))
    negatives = data.train_inputs[..., 2:].flatten()
    share = (negatives == data.words.index("rare")).double().mean().item()
    expected = 10**POWER / (10**POWER + 90**POWER)
    assert abs(share - expected) < 4 * (expected * (1 - expected) / len(negatives)) ** 0.5  # four standard errors of 60,000 draws
    again = objective.prepare(told(*texts))
    assert torch.equal(again.train_inputs, data.train_inputs)
    few = told(*texts)
    few = replace(few, train_index=few.train_index[5:], train_inputs=few.train_inputs[5:], train_targets=few.train_targets[5:])
    assert torch.equal(objective.prepare(few).train_inputs, data.train_inputs[5:])  # whatever else is in the training set
    assert not torch.equal(replace(objective, draw_seed=1).prepare(told(*texts)).train_inputs, data.train_inputs)


def test_a_long_documents_pairs_are_evenly_spaced() -> None:
    text = " ".join(f"w{chr(97 + k)}" for k in range(20))
    whole, some = (replace(SMALL, max_pairs=most).prepare(told(text, text)).train_inputs[0, :, :2] for most in (1000, 10))
    assert len(some) == 10
    assert some.tolist() == whole[np.linspace(0, len(whole) - 1, 10).round().astype(int)].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_is_the_sum_over_pairs(dtype: torch.dtype) -> None:
    data = SMALL.prepare(told("the cat sat on the mat", "a dog sat", "the cat", "a cat sat"))
    module, u, v = tables(len(data.words), dtype)
    losses = SMALL.loss(module(data.train_inputs), SMALL.targets(data.train_inputs))
    counts = [(windows[:, 0] >= 0).sum().item() for windows in data.train_inputs]
    for loss, windows, count in zip(losses, data.train_inputs, counts, strict=True):
        total = torch.zeros((), dtype=dtype)
        for c, o, *others in windows[:count].tolist():
            total -= logsigmoid(u[c] @ v[o]) + sum(logsigmoid(-u[c] @ v[j]) for j in others)
        assert_close(loss, total / (sum(counts) / len(counts)), rtol=1e-4 if dtype == torch.float32 else 1e-12, atol=0)


def test_gradients_are_those_of_a_loop() -> None:
    data = SMALL.prepare(told("the cat sat on the mat", "a dog sat", "the cat sat"))
    module, u, v = tables(len(data.words), torch.float64)
    found = torch.autograd.grad(SMALL.loss(module(data.train_inputs), SMALL.targets(data.train_inputs)).sum(), list(module.parameters()))
    to_u, to_v = torch.zeros_like(u), torch.zeros_like(v)
    share = SMALL.targets(data.train_inputs).max()
    for windows in data.train_inputs:
        for c, o, *others in windows[windows[:, 0] >= 0].tolist():
            for word, slope in ((o, (u[c] @ v[o]).sigmoid() - 1), *((j, (u[c] @ v[j]).sigmoid()) for j in others)):
                to_u[c] += share * slope * v[word]
                to_v[word] += share * slope * u[c]
    assert_close(found[0], to_u, rtol=1e-10, atol=1e-13)
    assert_close(found[1], to_v, rtol=1e-10, atol=1e-13)


def test_words_alone_give_their_centre_vectors() -> None:
    module, u, _ = tables(5, torch.float64)
    made = module(torch.tensor([[3, 0, -1], [1, 1, 4]]))
    assert_close(made, torch.stack([torch.cat([u[3], u[0], 0 * u[0]]), torch.cat([u[1], u[1], u[4]])]))


def test_training_starts_where_word2vec_does() -> None:
    module = build(SkipGramVectors(width=8), Shape((6, 5), 24, "classification", 50), 0)
    assert isinstance(module, WordVectors)
    assert module.centre.weight.abs().max() <= 0.5 / 8
    assert module.centre.weight.std().item() == pytest.approx(1 / (8 * 12**0.5), rel=0.15)  # uniform; 400 numbers
    assert not module.context.weight.any()


def test_documents_that_train_nothing_are_named_and_have_no_loss() -> None:
    with pytest.warns(AccuracyWarning, match=r"2 training document\(s\) have no two words .* \(positions 1, 2\): they train nothing and"):
        data = SMALL.prepare(told("the cat sat", "", "alone", "the cat"))
    module, _, _ = tables(len(data.words), torch.float64)
    assert SMALL.loss(module(data.train_inputs), SMALL.targets(data.train_inputs))[1:].tolist() == [0, 0]


def test_what_cannot_be_trained_on_is_refused() -> None:
    data = told("the cat sat", "a dog")
    with pytest.raises(InfluxError, match=r"objective=skip_gram reads texts, and biased has none: use dataset=bbc_news or documents"):
        SMALL.prepare(replace(data, texts=()))
    with pytest.raises(
        InfluxError, match=r"biased has 0 word\(s\) that its training part uses 7 times or more: lower objective\.min_count"
    ):
        replace(SMALL, min_count=7).prepare(data)
    with (
        pytest.warns(AccuracyWarning),
        pytest.raises(InfluxError, match=r"no document of biased has two words of the vocabulary near each"),
    ):
        SMALL.prepare(told("one", "two", "three"))
    with pytest.raises(InfluxError, match=r"objective\.window=0 is not possible"):
        SkipGram(window=0)
    with pytest.raises(InfluxError, match=r"model=skip_gram is a table of words, and this data has none: use it with objective=skip_gram"):
        SkipGramVectors().module(Shape((4,), 3, "classification"))


def tables(words: int, dtype: torch.dtype) -> tuple[WordVectors, torch.Tensor, torch.Tensor]:
    """A module with random vectors, and its tables u and v."""
    module = WordVectors(words, 4).to(dtype)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module, module.centre.weight.detach(), module.context.weight.detach()
