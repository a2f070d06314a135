"""Derivatives of objectives on word vectors that touch only the vectors of words that occur.

For a pair with centre c and others o (the context word and the negatives), scores `s_o = u_c·v_o` and a loss ℓ of all scores, let a dot
mark the derivative along (U̇, V̇), r = ∂ℓ/∂s and R = ∂²ℓ/∂s². Then

    scores       ṡ_o = u̇_c·v_o + u_c·v̇_o
    along        ℓ̇ = Σ r_o ṡ_o, the product of a document's gradient with the vector: no gradient is formed
    Gauss-Newton ρ = R ṡ;   row c of U gets Σ_o ρ_o v_o,   row o of V gets ρ_o u_c
    Hessian      in addition row c of U gets Σ_o r_o v̇_o,   row o of V gets r_o u̇_c

Rows are gathered and added to in place: a product over all documents costs some five passes over (pairs x others x width) numbers,
whatever the size of the vocabulary, and holds one block of documents. Per-document gradients would be n x 2 x words x width numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from influx.models.skip_gram import WordVectors
from influx.objectives import Objective
from influx.stacking import BLOCK_BYTES, blocks

COPIES = 4  # of a pair's vectors that a product holds at once
TABLES = ("centre.weight", "context.weight")


def fits(module: nn.Module) -> bool:
    """Whether the module is two tables of word vectors as they stand, without hooks."""
    return type(module) is WordVectors and not (module._forward_hooks or module._forward_pre_hooks)


@dataclass(frozen=True)
class Pairs:
    """The pairs of a block of documents: who is in them, their vectors, and the loss's slope in their scores."""

    centre: Int[Tensor, " pairs"]
    others: Int[Tensor, "pairs others"]
    inside: Float[Tensor, "pairs others"]  # 0 where there is no word, else 1
    there: Bool[Tensor, "docs places"]  # which places of the padded windows are pairs
    u: Float[Tensor, "pairs width"]
    v: Float[Tensor, "pairs others width"]
    scores: Float[Tensor, "docs out"]  # as the module gives them; a leaf
    slope: Float[Tensor, "docs out"]  # r, a function of `scores`

    def padded(self, each: Float[Tensor, "pairs others"]) -> Float[Tensor, "docs out"]:
        """Numbers of the pairs at their documents' places, 0 elsewhere."""
        made = each.new_zeros(*self.there.shape, each.shape[1])
        made[self.there] = each
        return made.flatten(1)

    def flat(self, padded: Float[Tensor, "docs out"]) -> Float[Tensor, "pairs others"]:
        return padded.view(*self.there.shape, -1)[self.there] * self.inside

    @torch.enable_grad()
    def curved(self, moved: Float[Tensor, "pairs others"]) -> Float[Tensor, "pairs others"]:
        """R ṡ."""
        total = (self.slope * self.padded(moved)).sum()
        return self.flat(torch.autograd.grad(total, self.scores, retain_graph=True)[0])


@dataclass(frozen=True)
class WordProducts:
    """Products of vectors with derivatives of `Σ_docs ℓ` at word vectors `params`; the parameters that are not `selected` do not move."""

    params: dict[str, Tensor]
    selected: tuple[str, ...]
    objective: Objective

    def along(
        self, inputs: Int[Tensor, "docs places words"], targets: Shaped[Tensor, " docs *target"], vectors: Float[Tensor, "p m"]
    ) -> Float[Tensor, "docs m"]:
        """∇ℓ_i · x for every document and every column x of `vectors`."""
        made = vectors.new_empty(len(inputs), vectors.shape[1])
        directions = [self._tables(x) for x in vectors.T]
        for rows, pairs in self._blocks(inputs, targets):
            slope = pairs.flat(pairs.slope.detach())
            for column, (du, dv) in enumerate(directions):
                moved, _, _ = self._moved(pairs, du, dv)
                made[rows, column] = pairs.padded(slope * moved).sum(1)
        return made

    def gradient(
        self,
        inputs: Int[Tensor, "docs places words"],
        targets: Shaped[Tensor, " docs *target"],
        weights: Float[Tensor, " docs"],
        into: dict[str, Tensor],
    ) -> Float[Tensor, "docs out"]:
        """Add Σ_i w_i ∇ℓ_i to the tables in `into`, by name; returns the scores."""
        to_u, to_v = (into.get(name) for name in TABLES)
        scores = []
        for rows, pairs in self._blocks(inputs, targets):
            slope = pairs.flat(pairs.slope.detach() * weights[rows].unsqueeze(1))
            _add(pairs, slope, pairs.u, pairs.v, to_u, to_v)
            scores.append(pairs.scores.detach())
        return torch.cat(scores)

    def curvature(
        self,
        inputs: Int[Tensor, "docs places words"],
        targets: Shaped[Tensor, " docs *target"],
        vectors: Float[Tensor, "p m"],
        hessian: bool,
    ) -> Float[Tensor, "p m"]:
        """(Σ_docs C_i) V with the Hessian or the generalised Gauss-Newton matrix."""
        directions = [self._tables(x) for x in vectors.T]
        found = [{name: torch.zeros_like(self.params[name]) for name in self.selected} for _ in directions]
        for _, pairs in self._blocks(inputs, targets):
            slope = pairs.flat(pairs.slope.detach())
            for (du, dv), into in zip(directions, found, strict=True):
                moved, uc, vo = self._moved(pairs, du, dv)
                to_u, to_v = (into.get(name) for name in TABLES)
                _add(pairs, pairs.curved(moved), pairs.u, pairs.v, to_u, to_v)
                if hessian:
                    _add(pairs, slope, uc, vo, to_u, to_v)
        return torch.stack([torch.cat([tables[name].flatten() for name in self.selected]) for tables in found], dim=1)

    def _tables(self, x: Float[Tensor, " p"]) -> tuple[Tensor | None, Tensor | None]:
        """A vector as changes of the two tables; None for one that does not move."""
        parts = x.contiguous().split([self.params[name].numel() for name in self.selected])
        named = {name: part.view_as(self.params[name]) for name, part in zip(self.selected, parts, strict=True)}
        return named.get(TABLES[0]), named.get(TABLES[1])

    def _moved(
        self, pairs: Pairs, du: Tensor | None, dv: Tensor | None
    ) -> tuple[Float[Tensor, "pairs others"], Tensor | None, Tensor | None]:
        """ṡ, and the rows u̇_c and v̇_o that it is made of."""
        uc = None if du is None else du[pairs.centre]
        vo = None if dv is None else dv[pairs.others]
        moved = torch.zeros_like(pairs.inside)
        for table, by in ((pairs.v, uc), (vo, pairs.u)):
            if table is not None and by is not None:
                moved += torch.bmm(table, by.unsqueeze(2)).squeeze(2)
        return moved * pairs.inside, uc, vo

    def _blocks(self, inputs: Int[Tensor, "docs places words"], targets: Shaped[Tensor, " docs *target"]) -> Iterator[tuple[slice, Pairs]]:
        """Blocks of documents, their size a function of the shapes alone."""
        width = self.params[TABLES[0]].shape[1]
        each = COPIES * inputs[0].numel() * width * self.params[TABLES[0]].element_size()
        for rows in blocks(len(inputs), each, BLOCK_BYTES):
            yield rows, self._pairs(inputs[rows], targets[rows])

    @torch.enable_grad()
    def _pairs(self, inputs: Int[Tensor, "docs places words"], targets: Shaped[Tensor, " docs *target"]) -> Pairs:
        there = (inputs >= 0).any(-1)
        windows = inputs[there].long()
        ids = windows.clamp_min(0)
        centre, others = ids[:, 0], ids[:, 1:]
        u, v = (self.params[name].detach()[part] for name, part in zip(TABLES, (centre, others), strict=True))
        inside = (windows[:, 1:] >= 0).to(u.dtype)
        scores = torch.bmm(v, u.unsqueeze(2)).squeeze(2) * inside
        leaf = scores.new_zeros(*there.shape, others.shape[1])
        leaf[there] = scores
        leaf = leaf.flatten(1).requires_grad_(True)
        slope = torch.autograd.grad(self.objective.loss(leaf, targets).sum(), leaf, create_graph=True)[0]
        return Pairs(centre, others, inside, there, u, v, leaf, slope)


def _add(pairs: Pairs, by: Tensor, u: Tensor | None, v: Tensor | None, to_u: Tensor | None, to_v: Tensor | None) -> None:
    """Add Σ_o by_o v_o to row c of `to_u`, and by_o u_c to row o of `to_v`; what is None has no part."""
    if v is not None and to_u is not None:
        to_u.index_add_(0, pairs.centre, torch.bmm(by.unsqueeze(1), v).squeeze(1))
    if u is not None and to_v is not None:
        to_v.index_add_(0, pairs.others.flatten(), (by.unsqueeze(2) * u.unsqueeze(1)).flatten(0, 1))
