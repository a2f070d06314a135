"""Skip-gram with negative sampling: word vectors that tell the words near a word from words drawn at random (Mikolov et al. 2013)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from influx import rules
from influx.data import Data
from influx.errors import InfluxError, warn_accuracy
from influx.objectives.base import SelfTargeted
from influx.seeding import numpy_generator

WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")  # letters, with at most one apostrophe inside
NOTHING = -1  # where there is no word
POWER = 0.75  # of counts, in the distribution of negatives (Mikolov et al. 2013, section 2.2)


@dataclass(frozen=True)
class SkipGram(SelfTargeted):
    """A training example is a document, and its loss the sum over its pairs of a word c and a word o at most `window` words away of

        −log σ(u_c·v_o) − Σ_j log σ(−u_c·v_{n_j})          (Mikolov et al. 2013, equation 4; nats)

    divided by the mean number of pairs a document, so that J is the mean loss of a pair. u are the vectors of words as centres, v as
    contexts (`model=skip_gram`); n_j are `negatives` words drawn in proportion to counts^¾.

    Args:
        window: words on each side.
        negatives: words drawn for each pair.
        min_count: how often the training part must have a word for it to have a vector.
        vocabulary: at most so many words, the most frequent ones.
        max_pairs: of a document, evenly spaced when it has more.
        draw_seed: draws the negatives.

    Departures from the paper and from the code released with Silva et al. 2022:
    1. Negatives are drawn once for each pair, by (`draw_seed`, position of the document), and kept: J is then one function of the
       parameters, which has a gradient and a Hessian, and a document brings the same pairs whatever else is in the training set.
    2. No subsampling of frequent words and no shrinking windows.
    3. Gradients and curvature are of the whole loss. The released ones leave the negatives out.
    """

    window: int = 4
    negatives: int = 5
    min_count: int = 5
    vocabulary: int = 20_000
    max_pairs: int = 2000
    draw_seed: int = 0

    def __post_init__(self) -> None:
        rules.check_fields("objective", self)

    def prepare(self, data: Data) -> Data:
        if not data.texts:
            raise InfluxError(f"objective=skip_gram reads texts, and {data.name} has none: use dataset=bbc_news or documents.")
        documents = [tokens(data.texts[position]) for position in data.train_index]
        counts = Counter(word for document in documents for word in document)
        kept = sorted((word for word, count in counts.items() if count >= self.min_count), key=lambda word: (-counts[word], word))
        words = tuple(kept[: self.vocabulary])
        if len(words) < 2:
            raise InfluxError(
                f"{data.name} has {len(words)} word(s) that its training part uses {self.min_count} times or more: lower "
                "objective.min_count, or train on more text."
            )
        known = {word: number for number, word in enumerate(words)}
        shares = np.cumsum(np.array([counts[word] for word in words], dtype=float) ** POWER)
        test = [tokens(data.test_texts[position]) for position in data.test_index]
        made = [
            [self._windows(document, known, shares / shares[-1], int(position)) for document, position in zip(part, index, strict=True)]
            for part, index in ((documents, data.train_index), (test, data.test_index))
        ]
        _say_empty(made[0], data.train_index)
        longest = max(len(windows) for part in made for windows in part)
        if longest == 0:
            raise InfluxError(f"no document of {data.name} has two words of the vocabulary near each other: lower objective.min_count.")
        train, test_windows = (torch.from_numpy(self._padded(part, longest)) for part in made)
        return replace(data, words=words, train_inputs=train, test_inputs=test_windows)

    def n_outputs(self, data: Data) -> int:
        return data.train_inputs.shape[1] * (1 + self.negatives)

    def targets(self, inputs: Int[Tensor, "batch pairs words"]) -> Float[Tensor, "batch pairs"]:
        """1 / (mean number of pairs a document of this part, training or test) for each pair, 0 where there is none."""
        there = (inputs[..., 0] != NOTHING).double()
        return there / there.sum(1).mean().clamp_min(1.0)

    def loss(self, outputs: Float[Tensor, " *k batch out"], targets: Float[Tensor, "batch pairs"]) -> Float[Tensor, " *k batch"]:
        scores = outputs.unflatten(-1, (-1, 1 + self.negatives))  # [*k, batch, pairs, 1 + negatives]
        each = softplus(-scores[..., 0]) + softplus(scores[..., 1:]).sum(-1)
        return (each * targets.to(each.dtype)).sum(-1)

    def _windows(
        self, document: Sequence[str], known: dict[str, int], shares: Float[np.ndarray, " v"], position: int
    ) -> Int[np.ndarray, "pairs words"]:
        """(centre, context, negatives) of each pair of a document, words of no vector having been dropped first."""
        ids = np.array([known[word] for word in document if word in known], dtype=np.int64)
        places = np.arange(len(ids))
        shifts = [shift for shift in range(-self.window, self.window + 1) if shift != 0]
        centre, context = (np.concatenate(parts) for parts in zip(*(_shifted(places, shift) for shift in shifts), strict=True))
        order = np.lexsort((context, centre))
        if len(order) > self.max_pairs:
            order = order[np.linspace(0, len(order) - 1, self.max_pairs).round().astype(np.int64)]
        draws = numpy_generator(self.draw_seed, "negatives", position).random((len(order), self.negatives))
        return np.column_stack([ids[centre[order]], ids[context[order]], np.searchsorted(shares, draws, side="right")])

    def _padded(self, part: Sequence[Int[np.ndarray, "_ words"]], longest: int) -> Int[np.ndarray, "n pairs words"]:
        made = np.full((len(part), longest, 2 + self.negatives), NOTHING, dtype=np.int64)
        for row, windows in zip(made, part, strict=True):
            row[: len(windows)] = windows
        return made


def tokens(text: str) -> list[str]:
    """The words of a text in lower case; numbers and signs are none."""
    return WORD.findall(text.lower())


def _shifted(places: Int[np.ndarray, " n"], shift: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and those `shift` further, where both are in the document."""
    inside = (places + shift >= 0) & (places + shift < len(places))
    return places[inside], places[inside] + shift


def _say_empty(part: Sequence[np.ndarray], index: Int[np.ndarray, " n"]) -> None:
    empty = [int(position) for windows, position in zip(part, index, strict=True) if len(windows) == 0]
    if empty:
        few = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
        warn_accuracy(
            f"{len(empty)} training document(s) have no two words of the vocabulary near each other (positions {few}): they train nothing "
            "and have no influence."
        )
