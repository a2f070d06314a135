"""Hypergradients of training: HYDRA (Chen et al. 2021, "Hypergradient data relevance analysis for interpreting deep neural networks").

    influence[i, t] = −∇m_t(θ_T)ᵀ h_i,    h_i = dθ_T/dw_i,

w_i the weight of example i in its batches' mean gradients. `form=forward` carries h_i along the training (`influx.estimators.recursion` has
the steps); `form=adjoint` computes the same numbers backwards (`influx.estimators.adjoint`), in P-vectors for each *test* example instead
of each training example, and without Hessians in none at all.

`hessian=exact` keeps the batches' Hessians and is the derivative of the run itself; `hessian=none` drops them, the paper's approximation.
How far that one is from the exact one is reported beside the exact one (`facts`): it can be far.

1. The paper's weights are n w_i / b in a batch and its contribution is per 1/n: the same numbers.
2. A row enters its batch's step when it *is* in the batch; Algorithm 1 prints the condition the other way round, a misprint by the
   authors' own account.
3. `weight_decay=released`: until February 2022 the authors' code gave the recursion a weight decay of n times the optimiser's (training had
   the optimiser's own). The recursion then forgets fast, with the Hessians and without them, and is the derivative of no training run.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from influx import memory, rules
from influx.cost import Cost
from influx.errors import InfluxError
from influx.estimators.adjoint import hessian_free, hessian_free_cost, refuse, reverse, reverse_cost
from influx.estimators.base import Estimate, Estimator
from influx.estimators.recursion import WORKING, forward, memory_steps, read_out
from influx.problem import Problem
from influx.record import Record
from influx.solvers.base import products
from influx.stacking import blocks
from influx.statistics import per_test_correlation
from influx.trajectory import Trajectory

KEEPING = 3  # n_train x P numbers while h is written to the store or read from it: the tensor, its copy, the file's bytes


@dataclass(frozen=True)
class Hypergradient(Estimator):
    """d m_t(θ_T) for dw_i = −1, through the Hessians of the batches or without them.

    Args:
        hessian: "exact"; or "none", the paper's approximation.
        form: "adjoint", backwards, for all training examples at once; or "forward", the paper's own, which keeps h_i and d_i.
        weight_decay: of the recursion: the "optimizer"'s; or n_train times that, as "released".
        state: form=forward: h_i and d_i in "memory", or on "disk" in the system's folder for temporary files. The same numbers.
        keep: form=forward: h_i goes into the store, so that other test examples or another measurement of the same training only read it
            out. The approximation beside the exact one is then left out: it would follow the training again.
        params: "all" alone: all parameters moved in the run that is differentiated, so a part of them has no derivative of its own.

    Cost: the training once more, and a gradient an example visited; "exact" also a Hessian product for each step and test example
    (adjoint) or training example (forward), and the approximation beside it. Memory: adjoint 6 P numbers for each test example or a slice
    of them, without Hessians the test gradients' factors; forward 2 P for each training example, on disk with state=disk. LeNet-5 in
    float32: half a mebibyte a training example. The store keeps half of that.

    Raises:
        InfluxError: the training cannot be followed, its optimiser is not gradient descent, `params` is not "all", or the forward form
            does not fit into the memory or onto the disk.
    """

    needs_trajectory: ClassVar[bool] = True
    hessian: str = "exact"
    form: str = "adjoint"
    weight_decay: str = "optimizer"
    state: str = "memory"
    keep: bool = False
    params: str = "all"

    def __post_init__(self) -> None:
        rules.check_word("method.weight_decay", self.weight_decay, "optimizer", "released")
        rules.check_fields("method", self)
        if self.form == "adjoint" and (self.keep or self.state == "disk"):
            chosen = "keep=true" if self.keep else "state=disk"
            raise InfluxError(f"method.{chosen} is about h_i, and the adjoint form has none: leave it out, or use method.form=forward.")

    @property
    def exact(self) -> bool:
        return self.hessian == "exact"

    def plan(self, problem: Problem, record: Record) -> Cost:
        refuse("hypergradient", self.params, record)
        if self.form == "forward":
            own = self._forward_cost(problem, record)
        else:
            own = reverse_cost(problem, record) if self.exact else hessian_free_cost(problem, record)
        return own + hessian_free_cost(problem, record) if self.exact and not self.keep else own

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        trajectory = self._followed(problem, record.trajectory)
        if self.form == "forward":
            influence = read_out(problem, self._forward(problem, trajectory, record))
        else:
            influence = (reverse if self.exact else hessian_free)(problem, trajectory)
        facts = approximation(influence, hessian_free(problem, trajectory)) if self.exact and not self.keep else {}
        return Estimate(influence, facts=facts | self._noted(problem, trajectory))

    def _followed(self, problem: Problem, trajectory: Trajectory) -> Trajectory:
        """The training with the recursion's weight decay, which moves no parameter: the steps are those that were taken."""
        descent = trajectory.descent
        if self.weight_decay == "optimizer" or descent is None:
            return trajectory
        return replace(trajectory, descent=replace(descent, weight_decay=problem.n_train * descent.weight_decay))

    def _forward(self, problem: Problem, trajectory: Trajectory, record: Record) -> Float[Tensor, "n_train p"]:
        def work() -> dict[str, Tensor]:
            return {"h": forward(problem, trajectory, exact=self.exact, place=self.state)}

        options = {"hessian": self.hessian, "weight_decay": self.weight_decay}
        return (record.recall("hypergradients", options, work) if self.keep else work())["h"]

    def _noted(self, problem: Problem, trajectory: Trajectory) -> dict[str, float]:
        """How many steps back a contribution reaches at the last learning rate without Hessians, if it is forgotten; bytes on disk."""
        assert trajectory.descent is not None  # `refuse` was asked
        steps = memory_steps(trajectory.descent, trajectory.rates[-1])
        found = {"memory_steps": steps} if math.isfinite(steps) else {}
        return found | ({"disk_bytes": float(_state_bytes(problem))} if self.state == "disk" else {})

    def _forward_cost(self, problem: Problem, record: Record) -> Cost:
        facts, own = record.facts, _state_bytes(problem)
        visited = float(facts.n_steps * facts.batch_size)
        held = self._held(problem, facts.batch_size)
        if held > problem.memory:
            kept = f", and method.keep=true takes {KEEPING} more copies of a half of it in between" if self.keep else ""
            other = "method.state=disk, " if self.state == "memory" and not self.keep else ""
            raise InfluxError(
                f"method.form=forward keeps 2 x {problem.n_params:,} numbers for each of {problem.n_train:,} training examples{kept}: "
                f"{memory.shown(held)} in all, and memory allows {memory.shown(problem.memory)}: use {other}method.form=adjoint, or raise "
                "memory."
            )
        if self.state == "disk" and own > (free := shutil.disk_usage(tempfile.gettempdir()).free):
            raise InfluxError(
                f"method.state=disk writes {memory.shown(own)} into {tempfile.gettempdir()}, where {memory.shown(free)} are free: set "
                "TMPDIR to a folder with more, or use method.form=adjoint."
            )
        hessians = facts.n_steps * products(problem, problem.n_train, facts.batch_size) if self.exact else 0.0
        dense = 8.0 * problem.n_params * (facts.n_steps * problem.n_train if self.exact else visited)
        return Cost(2.0 * visited + problem.n_test, dense + hessians, nbytes=held)

    def _held(self, problem: Problem, batch: int) -> int:
        """Bytes in memory: both vectors of every training example, or those that are worked on at once; and what keeping takes."""
        each = problem.theta.nbytes
        block = min(problem.n_train, blocks(problem.n_train, WORKING * each)[0].stop if self.exact else batch)
        state = _state_bytes(problem) if self.state == "memory" else WORKING * block * each
        return state + (KEEPING * problem.n_train * each if self.keep else 0)


def _state_bytes(problem: Problem) -> int:
    return 2 * problem.n_train * problem.theta.nbytes


def approximation(exact: Float[Tensor, "n_train n_test"], free: Float[Tensor, "n_train n_test"]) -> dict[str, float]:
    """How far leaving the Hessians out is from keeping them: relative distance, rank correlation (mean over test examples), and the share
    of scores whose sign is another."""
    ranks = per_test_correlation(free.double().cpu().numpy(), exact.double().cpu().numpy(), "spearman")
    found = {
        "relative_error_without_hessian": ((free - exact).norm() / exact.norm()).item(),
        "spearman_without_hessian": float(ranks[np.isfinite(ranks)].mean()) if np.isfinite(ranks).any() else math.nan,
        "sign_disagreement_without_hessian": (free.sign() != exact.sign()).double().mean().item(),
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}
