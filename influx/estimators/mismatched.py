"""What it costs to mistake the measurement for the training objective: influence with curvature or training gradients of the wrong loss.

A model trained on ℓ and judged by m has, to first order in removing i (Silva et al. 2022; the chain rule for any m),

    influence[i, t] = (1/n) ∇m_tᵀ (H_ℓ + (λ + δ) I)⁻¹ ∇ℓ_i.

Nothing of m but its gradient at the test example enters. Who takes the usual formula with a single loss puts m, with the training labels,
in place of ℓ: in the gradients (∇m_i for ∇ℓ_i), in the curvature (H_m for H_ℓ), or in both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float, Shaped
from torch import Tensor

from influx import rules
from influx.cost import Cost
from influx.curvature import Curvature
from influx.errors import InfluxError
from influx.estimators.base import Estimate, Estimator
from influx.estimators.inverse_curvature import InverseCurvature, account, inverse_cost
from influx.measurements.base import Measurement
from influx.objectives.base import Objective
from influx.problem import Problem
from influx.record import Record
from influx.solvers.base import Solver
from influx.solvers.factored import FactoredSolver


@dataclass(frozen=True)
class Judged(Objective):
    """A measurement as if it had been the training loss (minus it, when it is to be high); `trained` is what the model was trained for."""

    measurement: Measurement
    trained: Objective

    def loss(self, outputs: Float[Tensor, " *k batch out"], targets: Shaped[Tensor, " batch *target"]) -> Float[Tensor, " *k batch"]:
        value = self.measurement.value(outputs, targets, self.trained)
        return value if self.measurement.lower_is_better else -value


@dataclass(frozen=True)
class Mismatched(Estimator):
    """(1/n) ∇m_tᵀ A⁻¹ g_i with A and g_i each of the training objective or of the measurement.

    Args:
        solver: how `A⁻¹` is applied; not one that works in a layer's eigenbasis.
        curvature_of: "training" (right) or "measurement": whose curvature A is.
        gradient_of: "training" (right) or "measurement": whose gradient g_i is, at the training example and its label.
        curvature, damping, params: as in `InverseCurvature`.

    With both "training" it is `InverseCurvature`. A measurement's Hessian need not be positive definite at a model that was trained for
    something else; the GGN is. Cost and memory as `InverseCurvature`.
    """

    solver: Solver
    curvature_of: str = "measurement"
    gradient_of: str = "measurement"
    curvature: str = "ggn"
    damping: float | str = 0.0
    params: str = "all"

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    @property
    def calibrated(self) -> bool:  # type: ignore[override]  # a property of the solver, elsewhere of the class
        return self.solver.calibrated

    def plan(self, problem: Problem, record: Record) -> Cost:
        if isinstance(self.solver, FactoredSolver):
            raise InfluxError(
                f"method=mismatched takes solvers that work on the whole curvature, not {type(self.solver).__name__}: use "
                "solver@method.solver=exact, cg, lissa, arnoldi or nystrom."
            )
        if problem.judged is None:
            raise InfluxError(
                "method=mismatched needs a measurement that training examples have as well, and this one asks questions of its own: use "
                "method=cg."
            )
        return inverse_cost(InverseCurvature(self.solver, self.curvature, self.damping), self._seen(problem, self.curvature_of))

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        curved, trained = self._seen(problem, self.curvature_of), self._seen(problem, self.gradient_of)
        curvature, influence = Curvature(curved, self.curvature, self.damping), problem.empty()
        solves = []
        for columns in curved.columns(self.solver.copies):
            solution = self.solver.solve(curvature, problem.select(self.params).test_gradients(columns).T, seed)
            solves += account(solution)
            influence[:, columns] = trained.along(solution.x)
        return Estimate(influence / problem.n_train, solves)

    def _seen(self, problem: Problem, of: str) -> Problem:
        """The problem with its selected parameters, trained as it was or as if the measurement had been the loss."""
        problem = problem.select(self.params)
        if of == "training":
            return problem
        assert problem.judged is not None
        return replace(problem, train=problem.judged, objective=Judged(problem.measurement, problem.objective))
