"""DataInf: the average of inverses in place of the inverse of the average (Kwon, Wu, Wu & Zou 2024, "DataInf: efficiently estimating data
influence in LoRA-tuned LLMs and diffusion models", section 3).

For each layer l with per-example gradients g_i [d_l], s_l = λ + δ_l:

    ((1/n) Σ_i g_i g_iᵀ + s_l I)⁻¹ b  ≈  (1/n) Σ_i (g_i g_iᵀ + s_l I)⁻¹ b  =  (1/s_l) ( b − (1/n) Σ_i g_i (g_iᵀ b) / (s_l + |g_i|²) ),

a closed form by Sherman and Morrison. The exchange is exact when the shift dwarfs |g_i|², and its error grows with it (section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from influx import rules
from influx.cost import Cost
from influx.curvature import AUTO_SHARE, Curvature
from influx.errors import NumericalError
from influx.gradients import Layer, Rows
from influx.problem import Problem, whole_layer
from influx.solvers.base import Solution, Solver

RESIDUAL = 0.05  # relative; above it the solve is reported as not converged

Matrices = list[Tensor]  # a layer each: [m, out, in]


@dataclass(frozen=True)
class DataInf(Solver):
    """X a layer at a time, without any iteration. A module with parameters outside linear, convolution and normalisation layers counts as
    one layer.

    `method.damping=auto` is the paper's choice, δ_l = 0.1 x the mean of the layer's squared gradient entries, (1/(n d_l)) Σ_i |g_i|²; a
    number is every layer's. `residual` is that against the whole empirical Fisher matrix with each layer's own shift, so it counts both
    the exchange above and the blocks between layers that are left out; it is rarely small. Cost: three gradients an example and 8 P n
    operations a right-hand side. Memory: 6 P-vectors a right-hand side.

    Departures from the paper:
    1. λ is added to each layer's δ_l, because the weight decay is part of the objective.
    2. A layer's weight and bias are one block.
    """

    copies: ClassVar[int] = 6
    calibrated: ClassVar[bool] = False  # a mean of inverses is above the inverse of the mean: 6 to 20 times on convex problems
    kinds: ClassVar[tuple[str, ...]] = ("fisher",)

    def __post_init__(self) -> None:
        rules.check_fields("method.solver", self)

    def work(self, problem: Problem, m: int) -> Cost:
        return Cost(gradients=3.0 * problem.n_train, flops=8.0 * problem.n_params * problem.n_train * m)

    def solve(self, curvature: Curvature, rhs: Float[Tensor, "p m"], seed: int) -> Solution:
        problem = curvature.problem
        layers = (whole_layer(problem.n_params),) if problem.layers is None else problem.layers
        if "datainf" not in curvature.kept:
            curvature.kept["datainf"] = _shifts(curvature, layers)
        shifts: list[float] = curvature.kept["datainf"]
        sides = [layer.gather(rhs.T) for layer in layers]
        found = [torch.zeros_like(side) for side in sides]
        for _, parts in problem.train_rows():
            for part, shift, side, total in zip(parts, shifts, sides, found, strict=True):
                total += combined(part, inner(part, side) / (shift + part.squared_norms()).unsqueeze(1))
        for shift, side, total in zip(shifts, sides, found, strict=True):
            total.div_(-problem.n_train).add_(side).div_(shift)
        residual = _residual(problem, shifts, found, sides)
        x = rhs.T.new_empty(rhs.shape[1], rhs.shape[0])
        for layer, matrices in zip(layers, found, strict=True):
            layer.scatter(matrices, x)
        effective = sum(shift * layer.size for shift, layer in zip(shifts, layers, strict=True)) / problem.n_params
        return Solution(x.T, torch.ones(rhs.shape[1], dtype=torch.int64), residual, residual <= RESIDUAL, effective)


def _shifts(curvature: Curvature, layers: tuple[Layer, ...]) -> list[float]:
    """λ + δ_l of each layer.

    Raises:
        NumericalError: one of them is 0.
    """
    problem = curvature.problem
    if curvature.damping == "auto":
        sums = [0.0] * len(layers)
        for _, parts in problem.train_rows():
            sums = [total + part.squared_norms().sum().item() for total, part in zip(sums, parts, strict=True)]
        dampings = [AUTO_SHARE * total / (problem.n_train * layer.size) for total, layer in zip(sums, layers, strict=True)]
    else:
        dampings = [float(curvature.damping)] * len(layers)
    shifts = [problem.weight_decay + damping for damping in dampings]
    if not min(shifts) > 0:
        raise NumericalError(
            "datainf divides by λ + damping, which is 0 for a layer: set method.damping above 0, or train with training.weight_decay "
            "above 0."
        )
    return shifts


def _residual(problem: Problem, shifts: list[float], x: Matrices, rhs: Matrices) -> Float[Tensor, " m"]:
    """‖b − (G Gᵀ/n + S) x‖/‖b‖ with all layers' gradients G and their shifts S; 0 for a zero right-hand side."""
    left = [b - shift * part for b, shift, part in zip(rhs, shifts, x, strict=True)]
    for _, parts in problem.train_rows():
        weights = torch.stack([inner(part, vectors) for part, vectors in zip(parts, x, strict=True)]).sum(0) / problem.n_train
        for part, remaining in zip(parts, left, strict=True):
            remaining -= combined(part, weights)
    ours, theirs = (torch.stack([part.flatten(1).norm(dim=1) for part in matrices]).norm(dim=0) for matrices in (left, rhs))
    return torch.where(theirs > 0, ours / theirs.clamp_min(torch.finfo(theirs.dtype).tiny), 0.0)


def inner(rows: Rows, vectors: Float[Tensor, "m out in"]) -> Float[Tensor, "rows m"]:
    """⟨g_i, v_j⟩ for one layer: through the factors where that takes less room than the gradients themselves."""
    if rows.inputs is None or rows.deltas is None or len(vectors) >= vectors.shape[2]:
        return rows.flat @ vectors.flatten(1).T
    through = (rows.inputs @ vectors.flatten(0, 1).T).unflatten(1, vectors.shape[:2])  # [rows, m, out]
    return torch.bmm(through, rows.deltas.unsqueeze(2)).squeeze(2)


def combined(rows: Rows, weights: Float[Tensor, "rows m"]) -> Float[Tensor, "m out in"]:
    """Σ_i weights[i, j] g_i for one layer, likewise."""
    shape = (weights.shape[1], *rows.layer.shape)
    if rows.inputs is None or rows.deltas is None or weights.shape[1] >= shape[2]:
        return (weights.T @ rows.flat).view(shape)
    weighted = (weights.unsqueeze(2) * rows.deltas.unsqueeze(1)).flatten(1)  # [rows, m out]
    return (weighted.T @ rows.inputs).view(shape)
