"""All pairs' inner products of rank-one gradients, weighted entry by entry, cheaper than entry by entry.

For rows (d_i, a_i) and columns (c_t, b_t), vectors of `out` and `in` numbers, and weights M [out, in]:

    score[i, t] = Σ_o Σ_k d_io a_ik M_ok c_to b_tk.

Entry by entry this takes out·in multiply-adds a pair. A block of M of rank r, `M_ok = Σ_r u_or v_kr`, takes r (out + in):

    Σ_r (Σ_o d_io u_or c_to) (Σ_k a_ik v_kr b_tk).

Weights 1/(Λ + δ) flatten where Λ is below δ, so most of M has a low rank, but for the block of the largest Λ. `plan` halves M as long as
that saves work and cuts each block's singular values where rounding begins: in the mean square over rows and columns whose entries are
independent, the error is below `tolerance` times the score.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from influx.gradients import Rows

SMALLEST = 16  # entries of a side of a block: below, blocks are too narrow for a matrix product
TERM = 30  # multiply-adds that one more term costs a pair beside its two products, by timing
IN_CACHE = 2**20  # bytes of a temporary array
FEW = 8  # columns up to which each has a product of its own, with no array of all entries


@dataclass(frozen=True)
class Block:
    """A block of M: of low rank `M_ok ≈ Σ_r u_or v_kr`, or entry by entry (no factors)."""

    out: slice
    wide: slice
    u: Float[Tensor, "some_out r"] | None = None
    v: Float[Tensor, "some_in r"] | None = None


@dataclass(frozen=True)
class Pairing:
    """The columns' side of the sum, ready for any number of rows."""

    weights: Float[Tensor, "out in"]
    c: Float[Tensor, "m out"]
    b: Float[Tensor, "m in"]
    blocks: list[Block]

    def add(self, d: Float[Tensor, "rows out"], a: Float[Tensor, "rows in"], scores: Float[Tensor, "rows m"]) -> None:
        """Add every row's scores to `scores`."""
        for block in self.blocks:
            mine = [part[:, places].contiguous() for part, places in ((d, block.out), (a, block.wide))]
            theirs = [part[:, places].contiguous() for part, places in ((self.c, block.out), (self.b, block.wide))]
            if block.u is None or block.v is None:
                self._entries(block, mine, theirs, scores)
            else:
                _terms(mine, [(theirs[0] * u, theirs[1] * v) for u, v in zip(block.u.T, block.v.T, strict=True)], scores)

    def _entries(self, block: Block, mine: list[Tensor], theirs: list[Tensor], scores: Float[Tensor, "rows m"]) -> None:
        """A few rows of the block at a time, so that the columns' products with M stay in a cache."""
        (d, a), (c, b), weights = mine, theirs, self.weights[block.out, block.wide]
        for part in _cut(d.shape[1], max(1, 8 * IN_CACHE // b.nbytes)):
            add_entries(d[:, part], a, ((c[:, part].unsqueeze(2) * b.unsqueeze(1)).mul_(weights[part])).flatten(1), scores)


def add_rows(train: Rows, vectors: Float[Tensor, "m outin"], scores: Float[Tensor, "rows m"]) -> None:
    """Add every row's inner product with every vector over one layer to `scores`; gradients with factors are formed a few at a time."""
    if train.deltas is None or train.inputs is None:
        scores.addmm_(train.flat, vectors.T)
    else:
        add_entries(train.deltas, train.inputs, vectors, scores)


def add_entries(d: Float[Tensor, "rows out"], a: Float[Tensor, "rows in"], given: Float[Tensor, "m outin"], scores: Tensor) -> None:
    """Add `Σ_ok d_o a_k given_ok` of every row and column to `scores` [rows, m]."""
    if len(given) <= FEW:
        for column, matrix in enumerate(given.unflatten(1, (d.shape[1], -1))):
            scores[:, column] += torch.linalg.vecdot(a @ matrix.T, d)
        return
    for part in _cut(len(d), max(64, 8 * IN_CACHE // (given.shape[1] * given.element_size()))):
        scores[part].addmm_((d[part].unsqueeze(2) * a[part].unsqueeze(1)).flatten(1), given.T)


def _terms(mine: list[Tensor], terms: list[tuple[Tensor, Tensor]], scores: Float[Tensor, "rows m"]) -> None:
    for part in _cut(len(scores), max(32, IN_CACHE // (scores.shape[1] * scores.element_size()))):
        left, right = scores.new_empty(2, *scores[part].shape)
        for c, b in terms:
            torch.mm(mine[0][part], c.T, out=left)
            torch.mm(mine[1][part], b.T, out=right)
            scores[part].addcmul_(left, right)


def _cut(rows: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def plan(
    weights: Float[Tensor, "out in"],
    row_sizes: tuple[Float[Tensor, " out"], Float[Tensor, " in"]],
    column_sizes: tuple[Float[Tensor, " out"], Float[Tensor, " in"]],
    tolerance: float,
) -> list[Block]:
    """How to sum over M: blocks that cover it, but for what is below the tolerance.

    `row_sizes` are the root mean squares of d and a over the rows, `column_sizes` those of c and b over the columns. Neighbours should be
    alike (sorted eigenvalues are). Cost: singular values of M and of its halves.
    """
    scale_out, scale_in = ((r * c).double().cpu() for r, c in zip(row_sizes, column_sizes, strict=True))
    sized = scale_out.unsqueeze(1) * weights.double().cpu() * scale_in
    budget = tolerance**2 * sized.square().sum() / sized.numel()
    whole = slice(0, weights.shape[0]), slice(0, weights.shape[1])
    _, leaves = _halve(sized, *whole, budget)
    return [_block(sized, scale_out, scale_in, leaf, weights) for leaf in leaves]


Leaf = tuple[slice, slice, int | None]  # rank, None: entry by entry


def _halve(sized: Float[Tensor, "out in"], out: slice, wide: slice, budget: Tensor) -> tuple[float, list[Leaf]]:
    """The cheapest way found for one block, with its multiply-adds a pair."""
    part = sized[out, wide]
    high, long = part.shape
    if bool(part.square().sum() <= budget * part.numel()):
        return 0, []
    rank = int((torch.linalg.svdvals(part).square().flip(0).cumsum(0) > budget * part.numel()).sum())
    cost = min(high * long, rank * (high + long + TERM))
    own: list[Leaf] = [(out, wide, rank if cost < high * long else None)]
    if max(high, long) < 2 * SMALLEST:
        return cost, own
    halves = [(out, half) for half in _half(wide)] if long >= high else [(half, wide) for half in _half(out)]
    costs, leaves = zip(*(_halve(sized, *half, budget) for half in halves), strict=True)
    return (sum(costs), leaves[0] + leaves[1]) if sum(costs) < cost else (cost, own)


def _half(whole: slice) -> tuple[slice, slice]:
    middle = (whole.start + whole.stop) // 2
    return slice(whole.start, middle), slice(middle, whole.stop)


def _block(sized: Tensor, scale_out: Tensor, scale_in: Tensor, leaf: Leaf, like: Tensor) -> Block:
    out, wide, rank = leaf
    if rank is None:
        return Block(out, wide)
    left, values, right = torch.linalg.svd(sized[out, wide], full_matrices=False)
    roots = values[:rank].sqrt()
    u, v = ((vectors * roots / scale.unsqueeze(1)).nan_to_num(0.0, 0.0, 0.0) for vectors, scale in
            ((left[:, :rank], scale_out[out]), (right[:rank].T, scale_in[wide])))  # fmt: skip
    return Block(out, wide, u.to(like), v.to(like))
