"""Hard debiasing of word vectors: the direction of a bias is found from pairs of words and taken out of all others (neutralise), and pairs
that should differ by nothing else are put at the same distance from every one of those (equalise).

Bolukbasi, Chang, Zou, Saligrama & Kalai, "Man is to computer programmer as woman is to homemaker? Debiasing word embeddings", NIPS 2016,
the algorithm of its section on debiasing. With all vectors w first brought to unit length, defining sets D_i of words with means μ_i:

    C = Σ_i Σ_{w in D_i} (w - μ_i)(w - μ_i)ᵀ / |D_i|,   B [k, d] = its k leading eigenvectors,   w_B = BᵀB w
    neutralise:  w <- (w - w_B) / |w - w_B|
    equalise a set E with mean μ:  ν = μ - μ_B,   w <- ν + sqrt(1 - |ν|²) (w_B - μ_B) / |w_B - μ_B|

Cost: one singular value decomposition of as many rows as the sets have words, and one product [V, d] x [d, k].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from influx import rules
from influx.errors import InfluxError

Sets = Sequence[Sequence[str]]
Rows = list[Int[Tensor, " words"]]
TINY = 1e-12  # a length below this has no direction


@dataclass(frozen=True)
class HardDebiasing:
    """
    Args:
        definitional: sets (pairs) of words that differ in the bias and in little else; a set that has not all its words in the
            vocabulary is left out.
        equalized: sets that end at the same distance from every neutral word; likewise.
        specific: words that the bias belongs to: not neutralised, as those of the two lists are not.
        components: k, how many directions are taken out.
    """

    definitional: Sets
    equalized: Sets = ()
    specific: Sequence[str] = ()
    components: int = 1

    def __post_init__(self) -> None:
        rules.check_fields("task.rival", self)
        for name, sets in (("definitional", self.definitional), ("equalized", self.equalized)):
            for words in sets:
                if len({*words}) < 2:
                    raise InfluxError(f"task.rival.{name} has {list(words)}: each of its sets holds two different words or more.")
        named = [word for words in self.equalized for word in words]
        twice = sorted({word for word in named if named.count(word) > 1})
        if twice:
            raise InfluxError(f"task.rival.equalized has {', '.join(twice)} in two sets: a word can be moved to one place only.")

    def check(self, words: Sequence[str]) -> int:
        """How many definitional sets the vocabulary has whole.

        Raises:
            InfluxError: none, or fewer than there are directions to be found.
        """
        found = len(_known(self.definitional, words))
        if found < self.components:
            raise InfluxError(
                f"the vocabulary has {found} of the {len(self.definitional)} definitional sets of task.rival whole, and "
                f"{self.components} direction{'s' * (self.components > 1)} need as many: add common words to task.rival.definitional, or "
                "lower objective.min_count."
            )
        return found

    def directions(self, vectors: Float[Tensor, "words d"], words: Sequence[str]) -> Float[Tensor, "k d"]:
        """B, orthonormal rows; each is known but for its sign."""
        self.check(words)
        unit = _unit(vectors)
        centred = [(part - part.mean(0)) / len(part) ** 0.5 for part in (unit[rows] for rows in _known(self.definitional, words))]
        return torch.linalg.svd(torch.cat(centred), full_matrices=False).Vh[: self.components]

    def debiased(self, vectors: Float[Tensor, "words d"], words: Sequence[str]) -> Float[Tensor, "words d"]:
        """The vectors without the bias, of unit length; a vector with no direction (left) is 0. `words` name the rows.

        Raises:
            InfluxError: as `check`.
        """
        basis, unit = self.directions(vectors, words), _unit(vectors)
        inside = unit @ basis.T @ basis  # [words, d]
        made = _unit(unit - inside)
        kept = self._kept(words).to(vectors.device)
        made[kept] = unit[kept]
        for rows in _known(self.equalized, words):
            mean, part = unit[rows].mean(0), inside[rows]
            outside = mean - mean @ basis.T @ basis  # ν
            apart = _unit(part - part.mean(0))
            made[rows] = outside + (1 - outside.square().sum()).clamp(min=0).sqrt() * apart
        return made

    def _kept(self, words: Sequence[str]) -> Int[Tensor, " kept"]:
        """Rows that are not neutralised."""
        specific = {*self.specific, *(word for sets in (self.definitional, self.equalized) for part in sets for word in part)}
        return torch.tensor([row for row, word in enumerate(words) if word in specific], dtype=torch.int64)


def _known(sets: Sets, words: Sequence[str]) -> Rows:
    """Rows of the sets that have all their words."""
    place = {word: row for row, word in enumerate(words)}
    return [torch.tensor([place[word] for word in part]) for part in sets if all(word in place for word in part)]


def _unit(vectors: Float[Tensor, "words d"]) -> Float[Tensor, "words d"]:
    """Rows of length 1, those without a direction 0."""
    length = vectors.norm(dim=1, keepdim=True)
    return torch.where(length > TINY, vectors / length.clamp(min=TINY), torch.zeros_like(vectors))
