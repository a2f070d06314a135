"""Hypergradients forwards (HYDRA): h_i = dθ/dw_i and d_i = dv/dw_i of training examples, carried along the training itself.

Both are 0 at the start. A step of SGD with momentum μ, weight decay λ and learning rate η takes

    g_i' = λh_i + H h_i + [i in the batch] (1/b) ∇ℓ_i(θ),      d_i ← μd_i + g_i',      h_i ← h_i − ηd_i

(Nesterov: h_i ← h_i − η(g_i' + μd_i)), H the Hessian of the batch's mean loss, H and ∇ℓ_i at the θ before the step.

Without H a step is one 2 x 2 matrix for all examples,

    (h, d) ← A (h, d) + [i in the batch] (1/b) ∇ℓ_i (−η, 1),    A = [[1 − ηλ, −ημ], [λ, μ]]
    (Nesterov: (−η(1 + μ), 1) and A = [[1 − ηλ(1 + μ), −ημ²], [λ, μ]]),

so that an example's P-vectors are touched in its own steps only, and four numbers hold what the steps between did to them. A's larger
eigenvalue is how fast a contribution is forgotten, a root of x² − (1 + μ − ηλ)x + μ (Nesterov: x² − (1 + μ − ηλ(1 + μ))x + μ(1 − ηλ)).
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from influx.estimators.adjoint import followed, hessian_product
from influx.problem import Problem
from influx.progress import progress
from influx.stacking import blocks
from influx.trajectory import Descent, Trajectory

WORKING = 4  # P-vectors for each example of a block that is worked on


@dataclass(frozen=True)
class State:
    """h_i and d_i of the tracked examples, in memory beside the parameters, or in files that the system pages in and out."""

    h: Float[Tensor, "k p"]
    d: Float[Tensor, "k p"]

    @classmethod
    def zeros(cls, count: int, like: Float[Tensor, " p"], place: str = "memory") -> State:
        """`place` "disk": two files of `count` x P numbers in the system's folder for temporary ones.

        The files have no name from then on: they end with the tensors, or with the process, whatever ends it.
        """
        if place == "memory":
            return cls(like.new_zeros(count, len(like)), like.new_zeros(count, len(like)))
        with tempfile.TemporaryDirectory(prefix="influx-", ignore_cleanup_errors=True) as folder:
            names = [str(Path(folder, name)) for name in "hd"]
            h, d = (torch.from_file(name, shared=True, size=count * len(like), dtype=like.dtype) for name in names)
        return cls(h.view(count, -1), d.view(count, -1))

    def read(self, rows: slice | Tensor, device: torch.device) -> tuple[Float[Tensor, "rows p"], Float[Tensor, "rows p"]]:
        at = rows if isinstance(rows, slice) else rows.to(self.h.device)
        return self.h[at].to(device), self.d[at].to(device)

    def write(self, rows: slice | Tensor, h: Float[Tensor, "rows p"], d: Float[Tensor, "rows p"]) -> None:
        at = rows if isinstance(rows, slice) else rows.to(self.h.device)
        self.h[at], self.d[at] = h.to(self.h.device), d.to(self.d.device)


def forward(
    problem: Problem, trajectory: Trajectory, *, exact: bool, tracked: Int[Tensor, " k"] | None = None, place: str = "memory"
) -> Float[Tensor, "k p"]:
    """h_i at the end of training, of the `tracked` training rows (all), with the Hessians or without.

    Cost: the training once more and a gradient an example visited; `exact` also a Hessian product a step and tracked example. Memory:
    2 x P numbers a tracked example, in memory or on disk as `place` says, and `WORKING` P-vectors for each example of a block.
    """
    tracked = torch.arange(problem.n_train, device=problem.theta.device) if tracked is None else tracked
    state = State.zeros(len(tracked), problem.theta, place)
    (_with_hessians if exact else _without_hessians)(problem, trajectory, state, tracked)
    return state.h


def read_out(problem: Problem, h: Float[Tensor, "k p"]) -> Float[Tensor, "k n_test"]:
    """influence[i, t] = −∇m_t(θ_T)ᵀ h_i."""
    influence = problem.theta.new_empty(len(h), problem.n_test)
    for columns in problem.columns(2):
        test = problem.test_gradients(columns)
        for rows in blocks(len(h), problem.theta.nbytes):
            influence[rows, columns] = -h[rows].to(test.device) @ test.T
    return influence


def transition(descent: Descent, lr: float) -> tuple[Float[np.ndarray, "2 2"], float]:
    """A of a step without H, and the factor of ∇ℓ_i / b in h; in d it is 1."""
    mu, decay = descent.momentum, descent.weight_decay
    reach = lr * (1.0 + mu) if descent.nesterov else lr
    passed = lr * mu * mu if descent.nesterov else lr * mu
    return np.array([[1.0 - reach * decay, -passed], [decay, mu]]), -reach


def memory_steps(descent: Descent, lr: float) -> float:
    """Steps in which what a batch did to h shrinks to 1/e without H: −1/ln|larger eigenvalue of A|; infinite when it does not shrink."""
    size = float(np.abs(np.linalg.eigvals(transition(descent, lr)[0])).max())
    if descent.weight_decay == 0.0 or size >= 1.0:
        return math.inf
    return -1.0 / math.log(size) if size > 0.0 else 0.0


def _with_hessians(problem: Problem, trajectory: Trajectory, state: State, tracked: Int[Tensor, " k"]) -> None:
    problem, descent = followed(problem, trajectory)
    device, mu = problem.theta.device, descent.momentum
    place = _places(tracked, problem.n_train)
    parts = blocks(len(tracked), WORKING * problem.theta.nbytes)
    for _, step in zip(progress(range(trajectory.n_steps), "forward pass, steps"), trajectory.forward(), strict=True):
        at = place[step.rows]
        for rows in parts:
            h, d = state.read(rows, device)
            pushed = hessian_product(problem, step, h)
            mine = (at >= rows.start) & (at < rows.stop)
            if bool(mine.any()):
                to = at[mine] - rows.start
                for seen, gradients in problem.at(step.params, step.rows[mine]).train_gradients():
                    pushed.index_add_(0, to[seen], gradients, alpha=1.0 / len(step.rows))
            d.mul_(mu).add_(pushed)
            h.sub_(pushed.add_(d, alpha=mu) if descent.nesterov else d, alpha=step.lr)
            state.write(rows, h, d)


def _without_hessians(problem: Problem, trajectory: Trajectory, state: State, tracked: Int[Tensor, " k"]) -> None:
    problem, descent = followed(problem, trajectory)
    device = problem.theta.device
    place = _places(tracked, problem.n_train)
    start = torch.eye(2, dtype=problem.theta.dtype, device=device)
    due = start.repeat(len(tracked), 1, 1)  # what the steps since its last visit do to an example's (h, d)
    for _, step in zip(progress(range(trajectory.n_steps), "forward pass without Hessians, steps"), trajectory.forward(), strict=True):
        matrix, reach = transition(descent, step.lr)
        due = torch.as_tensor(matrix, dtype=due.dtype, device=device) @ due
        at = place[step.rows]
        mine = at >= 0
        if not bool(mine.any()):
            continue
        to = at[mine]  # rows of one batch are distinct: each is written once
        for seen, gradients in problem.at(step.params, step.rows[mine]).train_gradients():
            h, d = _moved(state, to[seen], due[to[seen]], device)
            gradients = gradients / len(step.rows)
            state.write(to[seen], h.add_(gradients, alpha=reach), d.add_(gradients))
        due[to] = start
    for rows in blocks(len(tracked), WORKING * problem.theta.nbytes):
        state.write(rows, *_moved(state, rows, due[rows], device))


def _moved(state: State, rows: slice | Tensor, due: Float[Tensor, "rows 2 2"], device: torch.device) -> tuple[Tensor, Tensor]:
    h, d = state.read(rows, device)
    parts = due.unsqueeze(3)
    return parts[:, 0, 0] * h + parts[:, 0, 1] * d, parts[:, 1, 0] * h + parts[:, 1, 1] * d


def _places(tracked: Int[Tensor, " k"], n_train: int) -> Int[Tensor, " n_train"]:
    """Where each training row stands among the tracked ones, −1 for the others."""
    place = torch.full((n_train,), -1, device=tracked.device)
    place[tracked] = torch.arange(len(tracked), device=tracked.device)
    return place
