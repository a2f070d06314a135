"""The derivative of a finished training run with respect to every example's weight, by one pass backwards through its steps.

Example i has weight w_i in `g = (1/b) Σ_{i in batch} w_i ∇ℓ_i(θ)`, the gradient of a batch of b. With momentum μ and weight decay λ a
step is

    g' = g(θ) + λθ,    v ← μv + g',    θ ← θ − ηv   (Nesterov: θ ← θ − η(g' + μv)),

g' taken at the θ before it. Let a = dm_t(θ_T)/dθ and c = dm_t(θ_T)/dv behind the step; a = ∇m_t(θ_T), c = 0 at the end. Then

    u = c − ηa (Nesterov: c − ημa)           dm_t/dv inside the step
    s = u      (Nesterov: u − ηa)            dm_t/dg'
    dm_t/dw_i += (1/b) sᵀ∇ℓ_i(θ)             for i in the batch
    a ← a + λs + Hs,   c ← μu                before the step, H the Hessian of the batch's mean loss.

Removing example i is dw_i = −1, hence `influence[i, t] = −dm_t/dw_i`. All test examples are columns of one matrix, so a step costs one
Hessian product with all of them. Chen et al. 2021 (HYDRA) leave H out; the other terms are the same.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from influx.cost import Cost
from influx.curvature import Curvature
from influx.errors import InfluxError
from influx.estimators.similarity import columns_of, dot, similarity_cost
from influx.problem import Problem
from influx.progress import progress
from influx.record import Record
from influx.solvers.base import products
from influx.trajectory import Descent, Step, Trajectory

COPIES = 6  # P-vectors for each test example: a, c, s, Hs and what a product needs beside its result


def reverse(problem: Problem, trajectory: Trajectory) -> Float[Tensor, "n_train n_test"]:
    """The influence of every example on every measurement, through the Hessians.

    Cost: the training once more (for each slice of test examples), a gradient an example visited, and for each step a product of its
    batch's Hessian with every test example's vector. Memory: `COPIES` x P numbers for each test example of a slice.
    """
    influence = problem.empty().zero_()
    problem, descent = followed(problem, trajectory)
    for columns in problem.columns(COPIES):
        a = problem.test_gradients(columns)
        c = torch.zeros_like(a)
        for _, step in zip(progress(range(trajectory.n_steps), "reverse pass, steps"), trajectory.backward(), strict=True):
            u = c.sub_(a, alpha=step.lr * (descent.momentum if descent.nesterov else 1.0))
            s = u.sub(a, alpha=step.lr) if descent.nesterov else u
            for rows, gradients in problem.at(step.params, step.rows).train_gradients():
                influence[:, columns].index_add_(0, step.rows[rows], gradients @ s.T, alpha=-1.0 / len(step.rows))
            a += hessian_product(problem, step, s)
            c = u.mul_(descent.momentum)
    return influence


def hessian_free(problem: Problem, trajectory: Trajectory) -> Float[Tensor, "n_train n_test"]:
    """The same without H. Then a, c and s stay multiples of ∇m_t(θ_T), known from the rates alone, and the pass may run forwards.

    Cost: the training once more, a gradient an example visited and its products with the test gradients. Memory: the test gradients, as
    factors where there are any.
    """
    influence = problem.empty().zero_()
    for columns in columns_of(problem):
        test = problem.test_rows(columns)
        bar = progress(multiples_of(trajectory), "steps without Hessians")
        for multiple, step in zip(bar, trajectory.forward(), strict=True):
            for rows, train in problem.at(step.params, step.rows).train_rows():
                influence[:, columns].index_add_(0, step.rows[rows], dot(train, test), alpha=-multiple / len(step.rows))
    return influence


def multiples_of(trajectory: Trajectory) -> list[float]:
    """s of every step without H, in units of ∇m_t(θ_T)."""
    descent = trajectory.descent
    assert descent is not None  # `refuse` was asked
    a, c, multiples = 1.0, 0.0, []
    for lr in reversed(trajectory.rates):
        u = c - lr * a * (descent.momentum if descent.nesterov else 1.0)
        s = u - lr * a if descent.nesterov else u
        multiples.append(s)
        a, c = a + descent.weight_decay * s, descent.momentum * u
    return multiples[::-1]


def followed(problem: Problem, trajectory: Trajectory) -> tuple[Problem, Descent]:
    """How the run descended, and the problem with its λ: at a step's parameters and rows, its Hessian is then the step's own."""
    descent = trajectory.descent
    assert descent is not None  # `refuse` was asked
    return replace(problem, weight_decay=descent.weight_decay), descent


def hessian_product(problem: Problem, step: Step, vectors: Float[Tensor, "m p"]) -> Float[Tensor, "m p"]:
    """(H + λI) V of a step, H of its batch's mean loss at the parameters before it."""
    return Curvature(problem.at(step.params), "hessian", 0.0).matmat(vectors.T, step.rows).T


def refuse(method: str, params: str, record: Record) -> None:
    """Raise `InfluxError` for what cannot be differentiated this way: no record, Adam, a part of the parameters."""
    record.check_trajectory()
    if record.facts.descent is None:
        raise InfluxError(
            f"method={method} differentiates gradient descent with or without momentum, and this training's optimiser is another: "
            "use training=sgd, or method=tracin."
        )
    if params != "all":
        raise InfluxError(
            f"method={method} follows the training run, in which all parameters moved, so there is no derivative of a part: "
            f"leave method.params=all (now {params})."
        )


def reverse_cost(problem: Problem, record: Record) -> Cost:
    """What `reverse` takes."""
    facts, slices = record.facts, problem.columns(COPIES)
    visited, m = float(facts.n_steps * facts.batch_size), problem.n_test
    hessians = facts.n_steps * products(problem, m, facts.batch_size)
    dense = (2.0 * visited + 8.0 * facts.n_steps) * m * problem.n_params
    held = COPIES * problem.theta.nbytes * (slices[0].stop - slices[0].start)
    return Cost(2.0 * len(slices) * visited + m, hessians + dense, nbytes=held)


def hessian_free_cost(problem: Problem, record: Record) -> Cost:
    """What `hessian_free` takes."""
    visited = record.facts.n_steps * record.facts.batch_size
    return similarity_cost(problem, visited) + Cost(gradients=float(visited))
