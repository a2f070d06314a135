"""The linearised response: θ_s + ε A⁻¹ Σ_{m left out} ∇ℓ_m(θ_s), A = G + (λ + p) I (Bae et al. 2022, section 4; Grosse et al. 2023, eq. 9).

It is what an influence function says of the parameters, with a solver of one's choice: exactly, and the distance to the PBRF is the
linearisation error alone; with lissa, cg or ekfac, and the distance between the two is the solver's error.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch

from influx.curvature import Curvature
from influx.errors import AccuracyWarning, InfluxError
from influx.kronecker import convex
from influx.problem import Problem
from influx.responses.base import Account, Moved, Response, taken_away
from influx.solvers import Solver
from influx.solvers.exact import Exact
from influx.solvers.factored import FactoredSolver
from influx.training import Task, Training
from influx.training.second_order import Flat

KNOBS = {
    "solver@method.solver": "solver@retraining.solver",
    "method.solver": "retraining.solver",
    "method.damping": "retraining.proximity",
    "method.params": "retraining.trainable",
    "method=": "solver@retraining.solver=",
}


@dataclass(frozen=True)
class Linearised(Response):
    """One solve a model.

    Args:
        solver: how A⁻¹ is applied.
        proximity: p ≥ 0.

    Cost: the solver's, with K right-hand sides.
    """

    name: ClassVar[str] = "linear"
    anchored: ClassVar[bool] = True
    vectors: ClassVar[int | None] = 8

    solver: Solver
    proximity: float = 0.0

    def check(self, problem: Problem) -> None:
        """Raise `InfluxError` when the solver cannot take this problem."""
        if "ggn" not in self.solver.kinds:
            kinds = " or ".join(self.solver.kinds)
            raise InfluxError(
                f"retraining.response=linear takes the GGN, and {type(self.solver).__name__} inverts {kinds}: "
                "use solver@retraining.solver=exact, cg or ekfac."
            )
        if isinstance(self.solver, FactoredSolver) and not convex(problem):
            raise InfluxError(
                f"retraining.solver={type(self.solver).__name__.lower()} takes a root of the GGN, and there is none when the loss is not "
                "convex in the outputs: use solver@retraining.solver=exact or cg."
            )
        with in_these_terms():
            self.solver.work(problem, 1)

    def move(self, task: Task, training: Training, problem: Problem) -> Moved:
        flat = Flat(task, 0.0)
        theta, taken = flat.start(), taken_away(task)
        asked = taken.norm(dim=1) > 0
        account = Account(torch.zeros(len(theta), dtype=torch.int64), theta.new_zeros(len(theta)), torch.ones(len(theta), dtype=torch.bool))
        begun = time.perf_counter()
        if bool(asked.any()):
            with in_these_terms():
                solution = self.solver.solve(Curvature(problem, "ggn", self.proximity), taken[asked].T.contiguous(), task.seed)
            theta[asked] += solution.x.T
            here = asked.cpu()
            account.iterations[here], account.converged[here] = solution.iterations.cpu(), solution.converged.cpu()
            account.residual[asked] = solution.residual.to(theta)
        direct = isinstance(self.solver, Exact | FactoredSolver)  # a factorisation takes the time, whatever the right-hand sides
        return Moved(flat.params(theta), task.buffers, account, {}, time.perf_counter() - begun if direct else 0.0)


@contextmanager
def in_these_terms() -> Iterator[None]:
    """Inside, what a solver says names the knobs that turn it here."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AccuracyWarning)
        try:
            yield
        except InfluxError as error:
            raise type(error)(renamed(str(error))) from error
    for warning in caught:
        warnings.warn(renamed(str(warning.message)), warning.category, stacklevel=2)


def renamed(message: str) -> str:
    for theirs, ours in KNOBS.items():
        message = message.replace(theirs, ours)
    return message
