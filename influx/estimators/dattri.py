"""TRAK and influence functions by the library dattri, as it is, in the same table as this package's own. Checked against 0.3.0.

    trak       −(1 − p_i) ψ_tᵀ ((1/n) Φᵀ Φ + δ)⁻¹ φ_i / n             Park et al. 2023; symbols as in `influx.estimators.trak`
    explicit   (1/n) ∇m_tᵀ (H + λ + δ)⁻¹ ∇ℓ_i                         H the mean Hessian, dense
    cg         the same by so many steps of conjugate gradients
    datainf    (1/n) ∇m_tᵀ [mean over j of (∇ℓ_j ∇ℓ_jᵀ + λ + δ)⁻¹] ∇ℓ_i, a layer at a time (Kwon et al. 2024)

1. The library's score of TRAK takes the margin for measurement and is positive for proponents. Given this run's measurement its ψ have the
   sign of ∇m_t, so the score is turned.
2. In regression (1 − p_i) is −∂ℓ_i/∂f, so that trak is defined there as well; for cross-entropy the two are the same. Without labels f is
   the loss itself, as for `method=trak`.
3. Its own unit of damping in trak is that of a sum over gradients scaled by 1/√P; here δ is as for `method=trak`.
4. The library knows no weight decay: λ is added, except in trak, as in the paper.
5. Left out: its EK-FAC (0.3.0 projects with transposed eigenvectors), its Arnoldi iteration (not a number once an eigenvalue is negative)
   and its LiSSA (not compared with anything here).
6. Its projections are drawn in the problem's number type, so that float32 and float64 have different ones.
7. It makes new tensors in torch's default type, float32: that is set to the problem's while it works, and set back.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad

from influx import memory, rules
from influx.cost import Cost
from influx.curvature import AUTO_SHARE, Curvature
from influx.errors import InfluxError
from influx.estimators._neighbours import batch_rows, default_type, loaded, loader, quiet, require, returned
from influx.estimators.base import Estimate, Estimator
from influx.estimators.trak import Output
from influx.problem import Problem
from influx.record import Record
from influx.seeding import derive, isolated

Parameters = dict[str, Tensor]
Value = Callable[[Parameters, list[Tensor]], Tensor]

ATTRIBUTORS = {"explicit": "IFAttributorExplicit", "cg": "IFAttributorCG", "datainf": "IFAttributorDataInf"}
GRAPH = {"explicit": 4, "cg": 10}  # forward passes of all training rows that one vector's Hessian product holds (3.5 and 8 measured)


@dataclass(frozen=True)
class Dattri(Estimator):
    """The formulas above; trak is right only up to a factor.

    Args:
        algorithm: "trak", "explicit", "cg" or "datainf".
        damping: δ ≥ 0; "auto" is 0.1 x the mean eigenvalue of the Hessian, for datainf of the empirical Fisher matrix, for trak of
            (1/n) Φᵀ Φ (in expectation over projections). One number for all layers.
        dim: of trak, dimensions of its Gaussian projection; when dim ≥ P nothing is projected.
        max_iterations: of cg, which always takes all of them: the library has no other rule to stop.
        params: "all", "last_layer", or a pattern of names: the parameters that may move.

    Cost: a gradient an example; a dense Hessian, cg's products over all training rows for every test example, datainf's n products.
    Memory: the dense gradients of all training rows at once (of a batch of them for trak), as several batches would add up the inverses of
    each one's Hessian; for explicit P forward passes of all rows, for cg one for each test example of a block.

    Raises:
        InfluxError: the package is missing, the memory does not hold that, or Φᵀ Φ would be singular.
    """

    algorithm: str = "trak"
    damping: float | str = "auto"
    dim: int = 512
    max_iterations: int = 10
    params: str = "all"

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    @property
    def calibrated(self) -> bool:  # type: ignore[override]  # a property of the choice, elsewhere of the class
        return self.algorithm != "trak"

    def plan(self, problem: Problem, record: Record) -> Cost:
        require("dattri")
        problem = problem.select(self.params)
        n, m, p = problem.n_train, len(problem.test), problem.n_params
        if self.algorithm == "trak":
            return self._plan_trak(problem)
        passes = {"explicit": 4.0 * p, "cg": 4.0 * self.max_iterations * m, "datainf": 0.0}[self.algorithm]
        solving = {"explicit": p**3 / 1.5, "cg": 0.0, "datainf": 4.0 * n * m * p}[self.algorithm]
        held = 3.0 * n * problem.theta.nbytes + self._own(problem)
        if held > problem.memory:
            raise InfluxError(
                f"dattri's {self.algorithm} takes all training rows at once, about {memory.shown(held)} where "
                f"{memory.shown(problem.memory)} are allowed: set a larger memory, method.params=last_layer, or method.algorithm=trak."
            )
        return Cost(gradients=n * (1 + passes) + m, flops=2.0 * n * m * p + solving, nbytes=held)

    def _plan_trak(self, problem: Problem) -> Cost:
        n, m, p = problem.n_train, len(problem.test), problem.n_params
        k = min(self.dim, p)
        if self.damping == 0 and self.dim > min(n, p):
            raise InfluxError(
                f"method.dim={self.dim} dimensions of {n} gradients of {p} parameters make a singular matrix: set method.dim to at most "
                f"{min(n, p)}, or method.damping=auto."
            )
        held = 3.0 * batch_rows(problem, "auto") * problem.theta.nbytes + (2 * n + m) * k * problem.theta.element_size()
        return Cost(gradients=n + m, flops=2.0 * (n + m) * p * k * (k < p) + 2.0 * n * k * (k + m), nbytes=held)

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        require("dattri")
        problem = problem.select(self.params)
        delta = self._delta(problem)
        with ExitStack() as around:
            around.enter_context(isolated(seed, "dattri"))
            around.enter_context(default_type(problem.theta.dtype))
            around.enter_context(quiet("dattri"))
            scores = -self._trak(problem, delta, seed) if self.algorithm == "trak" else self._inverse(problem, delta)
        return Estimate(returned(scores, problem), facts={"damping": delta})

    def _own(self, problem: Problem) -> float:
        """Bytes beside the training gradients that the algorithm holds at the least."""
        rows = float(problem.n_train * problem.bytes_per_row)
        return {
            "explicit": problem.n_params * (GRAPH["explicit"] * rows + 3.0 * problem.theta.nbytes),
            "cg": GRAPH["cg"] * rows,
            "datainf": 4.0 * problem.theta.nbytes,
        }[self.algorithm]

    def _columns(self, problem: Problem) -> int:
        """Test examples at a time: as many as the memory holds, or all where the Hessian is made again for each block."""
        tests, half = len(problem.test), problem.memory / 2
        if self.algorithm == "explicit":
            return tests
        fit = half / self._own(problem)
        return max(1, min(tests, int(fit if self.algorithm == "cg" else fit**0.5)))  # datainf: all pairs of a block with P numbers each

    def _delta(self, problem: Problem) -> float:
        if self.damping != "auto":
            return float(self.damping)
        if self.algorithm != "trak":
            return Curvature(problem, "fisher" if self.algorithm == "datainf" else "hessian", "auto").delta
        linearised = replace(problem, objective=Output(problem.objective))
        squares = [part.squared_norms().sum() for _, parts in linearised.train_rows() for part in parts]
        return AUTO_SHARE * float(torch.stack(squares).sum()) / problem.n_train / min(self.dim, problem.n_params)

    def _inverse(self, problem: Problem, delta: float) -> Float[Tensor, "n_train tests"]:
        from dattri import algorithm
        from dattri.task import AttributionTask

        model = loaded(problem)

        def loss(params: Parameters, rows: list[Tensor]) -> Tensor:
            return problem.objective.loss(functional_call(model, params, (rows[0],)), rows[1]).mean()

        def target(params: Parameters, rows: list[Tensor]) -> Tensor:
            return problem.measured(functional_call(model, params, (rows[0],)), rows[1]).mean()

        task = AttributionTask(loss, model, model.state_dict(), target)
        settings = {"max_iter": self.max_iterations} if self.algorithm == "cg" else {}
        method = getattr(algorithm, ATTRIBUTORS[self.algorithm])(
            task, device=str(problem.theta.device), regularization=problem.weight_decay + delta, **settings
        )
        train = loader(problem.n_train, problem.train.inputs, problem.train.targets)
        method.cache(train)
        test = loader(self._columns(problem), problem.test.inputs, problem.test.targets)
        return method.attribute(train, test) / problem.n_train

    def _trak(self, problem: Problem, delta: float, seed: int) -> Float[Tensor, "n_train tests"]:
        from dattri.algorithm import TRAKAttributor
        from dattri.task import AttributionTask

        model = loaded(problem)
        output, probability, target = _of_row(problem, model)
        projector: dict[str, Any] = {
            "proj_dim": self.dim, "proj_type": "normal" if self.dim < problem.n_params else "identity", "proj_max_batch_size": 32,
            "proj_seed": derive(seed, "projection") >> 32, "device": str(problem.theta.device),
        }  # fmt: skip
        method = TRAKAttributor(
            AttributionTask(output, model, model.state_dict(), target), probability, projector, device=str(problem.theta.device),
            regularization=delta * problem.n_train / problem.n_params,
        )  # fmt: skip
        rows = batch_rows(problem, "auto")
        method.cache(loader(rows, problem.train.inputs, problem.train.targets))
        return method.attribute(loader(rows, problem.test.inputs, problem.test.targets))


def _of_row(problem: Problem, model: nn.Module) -> tuple[Value, Value, Value]:
    """Of one example: the model output that TRAK linearises, 1 + ∂ℓ/∂f (the label's probability), and the measurement."""
    linearised = Output(problem.objective).loss

    def outputs(params: Parameters, row: list[Tensor]) -> Tensor:
        return functional_call(model, params, (row[0].unsqueeze(0),))

    def output(params: Parameters, row: list[Tensor]) -> Tensor:
        return linearised(outputs(params, row), row[1].unsqueeze(0)).squeeze(0)

    def probability(params: Parameters, row: list[Tensor]) -> Tensor:
        made, label = outputs(params, row), row[1].unsqueeze(0)
        along = grad(lambda f: linearised(f, label).sum())(made)
        slope = grad(lambda f: problem.objective.loss(f, label).sum())(made)
        return 1 + (slope * along).sum() / along.square().sum()

    def target(params: Parameters, row: list[Tensor]) -> Tensor:
        return problem.measured(outputs(params, row), row[1].unsqueeze(0)).squeeze(0)

    return output, probability, target
