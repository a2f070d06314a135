"""Inner products of training gradients with test gradients, streamed: what gradient similarity and TracIn are made of.

Nothing of size n_train x P ever exists. Training rows come in blocks, a layer at a time; a linear layer's products need only the factors
of its gradients, `⟨δ₁h₁ᵀ, δ₂h₂ᵀ⟩ = (δ₁·δ₂)(h₁·h₂)`, a convolution's are one matrix product of the two blocks of gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from influx.cost import Cost
from influx.gradients import Rows
from influx.problem import Problem

HELD = 2  # copies of a test example's factors: blocks, and the blocks joined


def products(
    problem: Problem, columns: Sequence[slice], *, cosine: bool = False
) -> Iterator[tuple[slice, slice, Float[Tensor, "rows columns"]]]:
    """`∇ℓ_i · ∇m_t` over the selected parameters for every training and test example, or the cosine of their angle, a block at a time.

    A gradient that is zero has no direction: its cosines are 0.
    Cost: a gradient an example (the training ones again for each of `columns`), and the products.
    """
    for part in columns:
        if problem.words is not None and not cosine:
            yield slice(0, problem.n_train), part, problem.along(problem.test_gradients(part).T)
            continue
        test = problem.test_rows(part)
        if cosine:
            test = _unit(test)
        for rows, train in problem.train_rows():
            # 1. Gradients are scaled before they are multiplied, not after: two small ones have no product in float32.
            yield rows, part, dot(_unit(train) if cosine else train, test)


def columns_of(problem: Problem) -> list[slice]:
    """Slices of test examples whose gradients, as factors where there are any, stay within half of the memory allowed."""
    return problem.columns(HELD * numbers(problem) / problem.n_params)


def numbers(problem: Problem) -> int:
    """How many numbers a test example's gradient is kept in."""
    if problem.layers is None or problem.measurement.whole_set:
        return problem.n_params
    (_, one), *_ = problem.passes(problem.test.take(slice(0, 1)))
    return sum(sum(layer.shape) if h.shape[1] == 1 else layer.size for layer, h in zip(problem.layers, one.inputs, strict=True))


def similarity_cost(problem: Problem, n_train: int) -> Cost:
    """What `products` takes with so many training examples, all test examples once."""
    columns, each = columns_of(problem), numbers(problem)
    test = problem.n_test if not problem.measurement.whole_set else len(problem.test)
    held = HELD * each * problem.theta.element_size() * (columns[0].stop - columns[0].start)
    return Cost(gradients=len(columns) * n_train + test, flops=2.0 * n_train * problem.n_test * each, nbytes=held)


def dot(train: list[Rows], test: list[Rows]) -> Float[Tensor, "rows columns"]:
    """Inner products over all layers."""
    total = train[0].dot(test[0])
    for one, other in zip(train[1:], test[1:], strict=True):
        total += one.dot(other)
    return total


def _unit(parts: list[Rows]) -> list[Rows]:
    """Gradients scaled to unit norm over all layers. Norms are taken in float64: float32 has no square of 1e-25."""
    squares = torch.stack([_norms(part).square() for part in parts]).sum(0)
    scales = torch.where(squares > 0, squares.rsqrt(), 0.0).unsqueeze(1)  # [rows, 1]
    return [_scaled(part, scales) for part in parts]


def _norms(part: Rows) -> Float[Tensor, " rows"]:
    if part.deltas is None or part.inputs is None:
        return torch.linalg.vector_norm(part.flat, dim=1, dtype=torch.float64)
    inputs, deltas = (torch.linalg.vector_norm(factor, dim=1, dtype=torch.float64) for factor in (part.inputs, part.deltas))
    return inputs * deltas


def _scaled(part: Rows, scales: Float[Tensor, "rows 1"]) -> Rows:
    if part.deltas is None or part.dense is not None:
        return replace(part, dense=(part.matrices * scales.unsqueeze(2)).to(part.matrices.dtype))
    return replace(part, deltas=(part.deltas * scales).to(part.deltas.dtype))
