"""Curvature of the training objective as a matrix that is only multiplied with: Hessian or generalised Gauss-Newton (GGN), damped.

With `f_i` the outputs and `ℓ_i` the loss of example i (n of them), λ the weight decay and δ the damping:

* Hessian  `A = (1/n) Σ_i ∇²ℓ_i + (λ + δ) I`, of the objective itself;
* GGN      `A = (1/n) Σ_i J_iᵀ (∇²_f ℓ_i) J_i + (λ + δ) I`, positive semi-definite before the shift for a loss convex in its outputs.

The weight decay belongs to the objective, so it is always inside (Koh & Liang 2017; Bae et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from influx.problem import Examples, Problem
from influx.stacking import blocks


@dataclass(frozen=True)
class Curvature:
    """`A = C + (λ + δ) I` over the problem's selected parameters.

    Args:
        problem: the fitted problem; its parameters are where the curvature is taken.
        kind: "hessian" or "ggn".
        damping: δ ≥ 0, in the curvature's unit (loss per squared parameter).
    """

    problem: Problem
    kind: str
    damping: float

    @property
    def size(self) -> int:
        return self.problem.n_params

    @property
    def shift(self) -> float:
        """λ + δ, what is added to the diagonal of the data part."""
        return self.problem.weight_decay + self.damping

    def matmat(self, vectors: Float[Tensor, "p m"], rows: Tensor | None = None) -> Float[Tensor, "p m"]:
        """`A V`, all vectors at once; over a batch of training `rows` only, the data part is that batch's mean.

        Cost: about three (GGN) or four (Hessian) forward-backward passes over the rows for each vector.
        """
        problem = self.problem
        examples = problem.train if rows is None else problem.train.take(rows)
        result = self.shift * vectors
        cost = 12 * problem.bytes_per_row  # bytes of temporaries for one row and one vector
        for block in blocks(len(examples), cost):
            part = examples.take(block)
            product = vmap(self._product(part), in_dims=1, out_dims=1)
            for columns in blocks(vectors.shape[1], cost * len(part)):
                result[:, columns] += product(vectors[:, columns]) / len(examples)
        return result

    def dense(self) -> Float[Tensor, "p p"]:
        """The whole matrix, symmetrised: P products. Memory: P² numbers."""
        matrix = self.matmat(torch.eye(self.size, dtype=self.problem.theta.dtype, device=self.problem.theta.device))
        return 0.5 * (matrix + matrix.T)

    def _product(self, examples: Examples) -> Callable[[Float[Tensor, " p"]], Float[Tensor, " p"]]:
        """v ↦ (Σ_i C_i) v over `examples`, without the shift."""
        problem, theta = self.problem, self.problem.theta

        def total(t: Tensor) -> Tensor:
            return problem.losses(t, examples).sum()

        def forward(t: Tensor) -> Tensor:
            return problem.outputs(t, examples.inputs)

        def loss_of_outputs(outputs: Tensor) -> Tensor:
            return problem.objective.loss(outputs, examples.targets).sum()

        if self.kind == "hessian":
            return lambda v: jvp(grad(total), (theta,), (v,))[1]

        _, pull_back = vjp(forward, theta)

        def gauss_newton(v: Tensor) -> Tensor:
            outputs, tangent = jvp(forward, (theta,), (v,))
            curved = jvp(grad(loss_of_outputs), (outputs,), (tangent,))[1]
            return pull_back(curved)[0]

        return gauss_newton
