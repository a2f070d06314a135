"""TracIn: what each visit to a training example did to the measurement, added up along training (Pruthi et al. 2020, section 3).

`checkpoints=steps`, the idealised form: an update at θ_k with learning rate η_k on a batch of b examples changes m_t by about
`−(η_k/b) Σ_{i in the batch} ∇m_t(θ_k)ᵀ∇ℓ_i(θ_k)`; without i its part is missing, hence

    influence[i, t] = Σ_{steps k that saw i} (η_k/b_k) ∇m_t(θ_k)ᵀ ∇ℓ_i(θ_k).

`checkpoints=stored`, TracInCP: only at the places along training that were kept, as if each had visited every example once, alone:

    influence[i, t] = Σ_{checkpoints k} η_k ∇m_t(θ_k)ᵀ ∇ℓ_i(θ_k),       η_k: learning rate of the step that led there.

Departures and limits:
1. θ_k of `steps` is where each update starts, which is where its gradient was taken; a schedule's rate is that step's own.
2. What an update does to later ones is left out (`unrolled` has it), so neither form has the scale of retraining.
3. Momentum, Adam's preconditioner and weight decay do not enter, as in the paper: with them it is the similarity alone that remains.
4. params=last_layer is the paper's fast form (section 4): nothing below the output layer enters a graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from influx import rules
from influx.cost import Cost
from influx.errors import InfluxError
from influx.estimators.base import Estimate, Estimator
from influx.estimators.similarity import columns_of, products, similarity_cost
from influx.problem import Problem
from influx.progress import progress
from influx.record import Record
from influx.trajectory import Trajectory

TYPICAL = 10  # checkpoints, for the forecast alone


@dataclass(frozen=True)
class TracIn(Estimator):
    """Gradient products along training, in the measurement's unit but not on retraining's scale.

    Args:
        checkpoints: "stored", the places along training that the run kept, its end among them; or "steps", every step with its own batch.
        count: how many of the stored checkpoints are used, evenly spaced with the last among them; None takes all.
        params: "all", "last_layer" (fast), or a pattern of names: the parameters whose gradients are multiplied.

    Cost: for each checkpoint a gradient an example; for each step one for each test example and each of its batch, and the training once
    more. Memory: the test gradients of one checkpoint as factors, or a slice of them.

    Raises:
        InfluxError: the training cannot be followed, or `count` is set for every step.
    """

    calibrated: ClassVar[bool] = False
    needs_trajectory: ClassVar[bool] = True
    checkpoints: str = "stored"
    count: int | None = None
    params: str = "all"

    def __post_init__(self) -> None:
        rules.check_fields("method", self)
        if self.checkpoints == "steps" and self.count is not None:
            raise InfluxError("method.count chooses among stored checkpoints: use method.checkpoints=stored, or leave method.count=null.")

    def plan(self, problem: Problem, record: Record) -> Cost:
        record.check_trajectory()
        problem, facts = problem.select(self.params), record.facts
        if self.checkpoints == "steps":
            times, visited, replayed = facts.n_steps, facts.batch_size, facts.n_steps * facts.batch_size
        else:
            times, visited, replayed = self.count or TYPICAL, problem.n_train, 0
        each = similarity_cost(problem, visited)
        return Cost(times * each.gradients + replayed, times * each.flops, nbytes=each.nbytes)

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        problem = problem.select(self.params)
        influence = problem.empty().zero_()
        if self.checkpoints == "steps":
            _add_steps(influence, problem, record.trajectory)
            return Estimate(influence)
        chosen = _spaced(record.trajectory.checkpoints, self.count)
        columns = columns_of(problem)
        for params, lr in progress(chosen, "tracin, checkpoints"):
            for rows, part, block in products(problem.at(params), columns):
                influence[rows, part].add_(block, alpha=lr)
        return Estimate(influence, facts={"checkpoints": len(chosen)})


def _add_steps(influence: Float[Tensor, "n_train n_test"], problem: Problem, trajectory: Trajectory) -> None:
    columns = columns_of(problem)
    for _, step in zip(progress(range(trajectory.n_steps), "tracin, steps"), trajectory.forward(), strict=True):
        for rows, part, block in products(problem.at(step.params, step.rows), columns):
            influence[:, part].index_add_(0, step.rows[rows], block, alpha=step.lr / len(step.rows))


def _spaced(along: list[tuple[dict[str, Tensor], float]], count: int | None) -> list[tuple[dict[str, Tensor], float]]:
    """`count` of the checkpoints, evenly spaced, the last among them."""
    kept = min(count or len(along), len(along))
    return [along[round(len(along) * c / kept) - 1] for c in range(1, kept + 1)]
