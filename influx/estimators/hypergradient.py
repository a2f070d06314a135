"""Hypergradients of training: HYDRA (Chen et al. 2021, "Hypergradient data relevance analysis for interpreting deep neural networks").

With h_i = dθ/dw_i and d_i = dv/dw_i, both 0 at the start, each step of SGD with momentum μ and weight decay λ gives

    g_i' = λh_i + H h_i + [i in the batch] (1/b) ∇ℓ_i(θ),      d_i ← μd_i + g_i',      h_i ← h_i − ηd_i

(Nesterov: h_i ← h_i − η(g_i' + μd_i)), H the Hessian of the batch's mean loss at the θ before the step, and

    influence[i, t] = −∇m_t(θ_T)ᵀ h_i.

`hessian=exact` keeps H and is the derivative of the run itself; `hessian=none` drops it, the paper's approximation. How far that one is
from the exact one is reported beside the exact one (`facts`): it can be far.

1. The paper's weights are n w_i / b in a batch and its contribution is per 1/n: the same numbers.
2. A row enters its batch's step when it *is* in the batch; Algorithm 1 prints the condition the other way round, a misprint by the
   authors' own account.
3. λ is the optimiser's own. The authors' first release used another one in the recursion than in training.
4. `form=adjoint` computes the same numbers backwards (`influx.estimators.adjoint`), in P-vectors for each *test* example instead of
   each training example; without Hessians in none at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from influx import memory, rules
from influx.cost import Cost
from influx.errors import InfluxError
from influx.estimators.adjoint import followed, hessian_free, hessian_free_cost, hessian_product, refuse, reverse, reverse_cost
from influx.estimators.base import Estimate, Estimator
from influx.problem import Problem
from influx.progress import progress
from influx.record import Record
from influx.solvers.base import products
from influx.stacking import blocks
from influx.statistics import per_test_correlation
from influx.trajectory import Trajectory

WORKING = 4  # P-vectors for each training example of a block whose Hessian products are taken


@dataclass(frozen=True)
class Hypergradient(Estimator):
    """d m_t(θ_T) for dw_i = −1, through the Hessians of the batches or without them.

    Args:
        hessian: "exact"; or "none", the paper's approximation.
        form: "adjoint", backwards, for all training examples at once; or "forward", the paper's own, which keeps h_i and d_i.
        params: "all" alone: all parameters moved in the run that is differentiated, so a part of them has no derivative of its own.

    Cost: the training once more, and a gradient an example visited; "exact" also a Hessian product for each step and test example
    (adjoint) or training example (forward), and the approximation beside it. Memory: adjoint 6 P numbers for each test example or a slice
    of them, without Hessians the test gradients' factors; forward 2 P for each training example.

    Raises:
        InfluxError: the training cannot be followed, its optimiser is not gradient descent, `params` is not "all", or the forward form
            does not fit the memory.
    """

    needs_trajectory: ClassVar[bool] = True
    hessian: str = "exact"
    form: str = "adjoint"
    params: str = "all"

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    @property
    def exact(self) -> bool:
        return self.hessian == "exact"

    def plan(self, problem: Problem, record: Record) -> Cost:
        refuse("hypergradient", self.params, record)
        own = self._forward_cost(problem, record) if self.form == "forward" else None
        if not self.exact:
            return own or hessian_free_cost(problem, record)
        return (own or reverse_cost(problem, record)) + hessian_free_cost(problem, record)

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        trajectory = record.trajectory
        if self.form == "forward":
            influence = forward(problem, trajectory, exact=self.exact)
        else:
            influence = (reverse if self.exact else hessian_free)(problem, trajectory)
        return Estimate(influence, facts=approximation(influence, hessian_free(problem, trajectory)) if self.exact else {})

    def _forward_cost(self, problem: Problem, record: Record) -> Cost:
        held = 2 * problem.n_train * problem.theta.nbytes
        if held > problem.memory:
            raise InfluxError(
                f"method.form=forward keeps 2 x {problem.n_params:,} numbers for each of {problem.n_train:,} training examples, which take "
                f"{memory.shown(held)}, and memory allows {memory.shown(problem.memory)}: use method.form=adjoint, or raise memory."
            )
        facts = record.facts
        hessians = facts.n_steps * products(problem, problem.n_train, facts.batch_size) if self.exact else 0.0
        dense = 8.0 * facts.n_steps * problem.n_train * problem.n_params
        return Cost(2.0 * facts.n_steps * facts.batch_size + problem.n_test, dense + hessians, nbytes=held)


def forward(problem: Problem, trajectory: Trajectory, *, exact: bool) -> Float[Tensor, "n_train n_test"]:
    """The recursion in h_i and d_i for all training examples. Memory: 2 n_train x P numbers, and a block's Hessian products."""
    problem, descent = followed(problem, trajectory)
    mu = descent.momentum
    h, d = problem.theta.new_zeros(2, problem.n_train, problem.n_params)
    parts = blocks(problem.n_train, WORKING * problem.theta.nbytes)
    for _, step in zip(progress(range(trajectory.n_steps), "forward pass, steps"), trajectory.forward(), strict=True):
        batch = problem.at(step.params, step.rows)
        for rows in parts:
            moved = hessian_product(problem, step, h[rows]) if exact else descent.weight_decay * h[rows]
            if descent.nesterov:  # g' + μd = (1 + μ) d − μ d before the step: the last term goes into h here
                h[rows].add_(d[rows], alpha=step.lr * mu)
            d[rows].mul_(mu).add_(moved)
        for rows, gradients in batch.train_gradients():
            d.index_add_(0, step.rows[rows], gradients, alpha=1.0 / len(step.rows))
        h.sub_(d, alpha=step.lr * (1.0 + mu) if descent.nesterov else step.lr)
    influence = problem.empty()
    for columns in problem.columns(2):
        influence[:, columns] = -h @ problem.test_gradients(columns).T
    return influence


def approximation(exact: Float[Tensor, "n_train n_test"], free: Float[Tensor, "n_train n_test"]) -> dict[str, float]:
    """How far leaving the Hessians out is from keeping them: relative distance, and rank correlation (mean over test examples)."""
    distance = ((free - exact).norm() / exact.norm()).item()
    ranks = per_test_correlation(free.double().cpu().numpy(), exact.double().cpu().numpy(), "spearman")
    found = {"relative_error_without_hessian": distance, "spearman_without_hessian": float(ranks[np.isfinite(ranks)].mean())}
    return {name: value for name, value in found.items() if np.isfinite(value)}
