"""LiSSA: the truncated Neumann series of the inverse, with sampled curvature (Agarwal et al. 2017; Koh & Liang 2017, section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from influx import rules
from influx.cost import Cost
from influx.curvature import Curvature
from influx.errors import InfluxError, NumericalError, warn_accuracy
from influx.problem import Problem
from influx.progress import progress
from influx.seeding import torch_generator
from influx.solvers.base import Solution, Solver, largest_eigenvalue, products, relative_residual
from influx.stacking import blocks

RESIDUAL = 0.05  # relative; above it the solve is reported as not converged
AUTO_BUDGET = 2e7  # multiply-adds of one step at batch_size=auto: rows x parameters x test examples
FEWEST = 32  # training examples a step
COPIES = 8  # P x m arrays that a step touches
CHECK_EVERY = 50  # steps between two looks for divergence


@dataclass(frozen=True)
class Lissa(Solver):
    """h_0 = 0; h_t = h_{t-1} + (v - A_t h_{t-1})/σ with A_t the curvature of a batch; averaged over repeats.

    Args:
        depth: T, the number of steps.
        scale: σ, an upper bound of the largest eigenvalue of every A_t; "auto" measures it by power iteration.
        repeats: independent runs that are averaged.
        batch_size: training examples a step, drawn with replacement; "auto" takes as many as keep a step near 2e7 multiply-adds, and
            never fewer than 32. All n_train of them (then without drawing) make the series deterministic.
        order: "drawn", batches at random; or "sequential", in the data's order, beginning again at its end.

    Truncation after T steps acts like an additional damping of about σ/T (`effective_damping` = λ + δ + σ/T), so T of several σ/(λ + δ)
    is needed. Cost: T x repeats batch products with all right-hand sides at once. Memory: about 5 P x m numbers.

    Departures from the paper and its releases:
    1. λ + δ is inside A_t and σ divides the whole step, so that damping means the same in every solver. (In Koh & Liang's release a
       damping d acts as dσ.)
    2. With sampled batches the answer is the mean of the second half of the iterates, not the last one: a constant step keeps the
       sampling noise of the last batches, which the mean averages out (Polyak & Juditsky 1992). `order="sequential"` takes the last
       iterate, and batch after batch in the data's order, as in the code released with Silva et al. 2022 (one pass there, a row a step, not
       divided by σ).
    """

    depth: int = 1000
    scale: float | str = "auto"
    repeats: int = 1
    batch_size: int | str = "auto"
    order: str = "drawn"

    def __post_init__(self) -> None:
        rules.check_fields("method.solver", self)
        if self.order == "sequential" and self.repeats > 1:
            raise InfluxError("method.solver.order=sequential draws nothing, so every repeat is the same: set method.solver.repeats=1.")

    def work(self, problem: Problem, m: int) -> Cost:
        return Cost(flops=products(problem, m * self.depth * self.repeats, self._rows(problem)))

    def solve(self, curvature: Curvature, rhs: Float[Tensor, "p m"], seed: int) -> Solution:
        rows = self._rows(curvature.problem)
        scale = _measured_scale(curvature, rows, seed) if self.scale == "auto" else float(self.scale)
        columns = blocks(rhs.shape[1], COPIES * curvature.size * rhs.element_size())  # a chunk's iterates stay in fast memory
        work = [(repeat, chunk) for repeat in range(self.repeats) for chunk in columns]
        x = torch.zeros_like(rhs)
        for repeat, chunk in progress(work, "lissa"):
            generator = torch_generator(seed, "lissa", repeat)  # the same batches for every chunk
            x[:, chunk] += self._run(curvature, rhs[:, chunk], rows, scale, generator) / self.repeats
        residual = relative_residual(curvature, x, rhs)
        converged = residual <= RESIDUAL
        if not bool(converged.all()):
            enough = f" ({5 * scale / curvature.shift:.0f} would be 5 scale/(λ + damping))" if curvature.shift > 0 else ""
            warn_accuracy(
                f"lissa left a relative residual of {residual.median().item():.2g} (median; largest {residual.max().item():.2g}) after "
                f"{self.depth} steps of 1/{scale:.3g}: raise method.solver.depth{enough}, method.damping, or method.solver.batch_size."
            )
        steps = torch.full((rhs.shape[1],), self.depth * self.repeats)
        return Solution(x, steps, residual, converged, curvature.shift + scale / self.depth)

    def _rows(self, problem: Problem) -> int:
        """A function of sizes alone: the same however few right-hand sides memory lets come at once."""
        n = problem.n_train
        wanted = max(FEWEST, int(AUTO_BUDGET / (problem.n_params * problem.n_test))) if self.batch_size == "auto" else int(self.batch_size)
        return min(wanted, n)

    def _run(self, curvature: Curvature, rhs: Float[Tensor, "p m"], rows: int, scale: float, generator: torch.Generator) -> Tensor:
        n, sampled = curvature.problem.n_train, rows < curvature.problem.n_train
        drawn = sampled and self.order == "drawn"
        limit = 1e3 * rhs.norm().item() / max(curvature.shift, 1e-9 * scale)  # a positive definite A keeps ‖h‖ below ‖v‖/(λ + δ)
        if self.order == "sequential":
            limit = math.inf  # a row's curvature is not positive definite: as released, a pass that grows counts
        h, mean = torch.zeros_like(rhs), torch.zeros_like(rhs)
        averaged = self.depth - self.depth // 2
        for step in progress(range(self.depth), "lissa"):
            batch = self._batch(step, rows, n, generator).to(rhs.device) if sampled else None
            h += (rhs - curvature.matmat(h, batch)) / scale
            if drawn and step >= self.depth // 2:
                mean += h / averaged
            if (step + 1) % CHECK_EVERY == 0 and not h.norm().item() <= limit:
                raise NumericalError(
                    f"lissa diverged at step {step + 1} with scale {scale:.3g}: a curvature eigenvalue lies above the scale or below 0. "
                    f"Raise method.solver.scale (try {4 * scale:.3g}) or method.solver.batch_size, or use {curvature.definite}."
                )
        return mean if drawn else h

    def _batch(self, step: int, rows: int, n: int, generator: torch.Generator) -> Int[Tensor, " rows"]:
        if self.order == "drawn":
            return torch.randint(n, (rows,), generator=generator)
        return torch.arange(step * rows, (step + 1) * rows) % n


def _measured_scale(curvature: Curvature, rows: int, seed: int) -> float:
    """σ: 1.1 x the largest |eigenvalue| of A; with sampled batches 2 x the largest over a few of them, as theirs exceed the mean's."""
    n = curvature.problem.n_train
    generator = torch_generator(seed, "lissa", "scale")
    if rows >= n:
        return 1.1 * largest_eigenvalue(curvature.matmat, curvature.problem.theta)
    batches = [torch.randint(n, (rows,), generator=generator).to(curvature.problem.theta.device) for _ in range(4)]
    return 2.0 * max(largest_eigenvalue(lambda v, rows=batch: curvature.matmat(v, rows), curvature.problem.theta) for batch in batches)  # type: ignore[misc]
