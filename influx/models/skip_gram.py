"""Word vectors: one table for words as centres, one for words as contexts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from influx import rules
from influx.errors import InfluxError
from influx.models.base import Model, Shape


class WordVectors(nn.Module):
    """Two tables of vectors, u = `centre` and v = `context`, each [words, width].

    Of windows [n, pairs, 1 + others], words by number with the centre first, it gives the scores u_c·v_o of the others,
    [n, pairs x others]; of words [n, count] their centre vectors one behind the other, [n, count x width]. Numbers below 0 stand for no
    word and give zeros.
    """

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.centre = nn.Embedding(words, width)
        self.context = nn.Embedding(words, width)

    def forward(self, inputs: Shaped[Tensor, " n *shape"]) -> Float[Tensor, "n out"]:
        there = inputs >= 0
        ids = inputs.clamp_min(0).long()
        if inputs.dim() == 2:
            found = self.centre(ids)
            return (found * there.unsqueeze(-1).to(found.dtype)).flatten(1)
        scores = (self.context(ids[..., 1:]) @ self.centre(ids[..., 0]).unsqueeze(-1)).squeeze(-1)  # [n, pairs, others]
        return (scores * there[..., 1:].to(scores.dtype)).flatten(1)


@dataclass(frozen=True)
class SkipGramVectors(Model):
    """Two tables of word vectors of `width` dimensions, for objective=skip_gram: 2 x words x width parameters.

    Training starts where word2vec's does: centres uniform in ±1/(2 width), contexts 0.
    """

    width: int = 100

    def __post_init__(self) -> None:
        rules.check_fields("model", self)

    def module(self, shape: Shape) -> nn.Module:
        if shape.n_words == 0:
            raise InfluxError("model=skip_gram is a table of words, and this data has none: use it with objective=skip_gram.")
        made = WordVectors(shape.n_words, self.width)
        with torch.no_grad():
            made.centre.weight.uniform_(-0.5 / self.width, 0.5 / self.width)
            made.context.weight.zero_()
        return made
