"""SOURCE: training followed a segment at a time, each as if nothing changed within it (Bae, Lin, Lorraine & Grosse 2024, "Training data
attribution via approximate unrolled differentiation", section 3).

Derivation, with removal as w_i = 0 in `J(θ) = (1/n) Σ_i w_i ℓ_i + (λ/2)‖θ‖²`. A step of SGD with rate η_k takes in expectation
`θ ← θ − η_k ∇J(θ)`, for an example is in its batch of b with chance b/n and has the weight 1/b there. To first order in the removal the
difference Δ of the parameters follows

    Δ ← (I − η_k H) Δ + (η_k / n) ∇ℓ_i(θ_k),      H = ∇²J, λ inside.

In a segment of steps whose H and ∇ℓ_i are taken as constant, the mean over the segment's checkpoints, and with the sum of its rates
τ = Σ_k η_k, the steps have the closed form (for small η_k H, Π_k (I − η_k H) ≈ exp(−τH))

    Δ_after = exp(−τH) Δ_before + (1/n) H⁻¹ (I − exp(−τH)) ∇ℓ_i,

so that over segments 1 ... L, with `S_l = exp(−τ_l H_l)` and `r_li = H_l⁻¹ (I − exp(−τ_l H_l)) ∇ℓ_li`,

    influence[i, t] = (1/n) ∇m_t(θ_T)ᵀ Σ_l S_L ⋯ S_{l+1} r_li.

The sum over steps is in τ, the divisor n in front; batches need no factor of their own. One segment and τ → ∞ give the influence
function. Momentum μ moves the parameters by Σ_k η_k ∇J/(1 − μ) in the long run, so τ = Σ_k η_k/(1 − μ), for Nesterov's form too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from influx import rules
from influx.cost import Cost
from influx.curvature import Curvature
from influx.errors import InfluxError, warn_accuracy
from influx.estimators.base import Estimate, Estimator
from influx.kronecker import Eigenbasis, check_convex, eigenbases
from influx.pairing import add_rows
from influx.problem import GIBIBYTE, Problem
from influx.progress import progress
from influx.record import Record
from influx.trajectory import Trajectory

LONG = 20  # lifetimes of a velocity from which a run is long
Spectral = Callable[[Tensor], Tensor]  # eigenvalues to factors


@dataclass(frozen=True)
class Source(Estimator):
    """Training in `segments` parts, each with its own curvature and gradients: for models that are not at an optimum.

    Args:
        segments: L. The run's checkpoints (`checkpoints=`, evenly spaced, the last one its end) are dealt to them in order.
        curvature: "ggn", "fisher" (empirical), or with the dense form "hessian".
        basis: "ekfac", the curvature in the eigenvectors of its Kronecker factors, averaged over the segment's checkpoints, or "dense".
        params: the parameters that may move.

    No damping: every function of H here is finite at 0. The fact `largest_rate_times_eigenvalue` says how coarse the steps are for their
    closed form; above 2 plain descent would diverge. Cost: a factored (or dense) curvature and all training gradients at each checkpoint.
    Memory: 4 P numbers for each test example of a block, and for each segment what its curvature takes.

    Departures from the paper: 1. λ is added to the eigenvalues of H, as it is part of the objective. 2. Adam is refused: its steps are
    no function of H.
    """

    needs_trajectory: ClassVar[bool] = True

    segments: int = 3
    curvature: str = "ggn"
    basis: str = "ekfac"
    params: str = "all"

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    def plan(self, problem: Problem, record: Record) -> Cost:
        problem = problem.select(self.params)
        if record.facts.descent is None:
            raise InfluxError("method=source follows gradient descent with or without momentum: use training=sgd, or method=ekfac.")
        held, size = self._held(problem), problem.n_params
        products = 2.0 * self.segments * problem.n_train * problem.n_test * size
        return Cost(gradients=12.0 * self.segments * problem.n_train + problem.n_test, flops=products, nbytes=self.segments * held)

    def _held(self, problem: Problem) -> float:
        """Bytes of one segment's curvature."""
        size, each = problem.n_params, problem.theta.element_size()
        if self.basis == "ekfac":
            if self.curvature == "hessian":
                raise InfluxError("a Hessian has no Kronecker factors: set method.curvature=ggn, or method.basis=dense.")
            if self.curvature == "ggn":
                check_convex(problem)
            return 3.0 * each * sum(out**2 + wide**2 + out * wide for out, wide in (layer.shape for layer in problem.matrix_layers))
        needed = 2.0 * each * size**2
        if self.segments * needed > problem.memory:
            raise InfluxError(
                f"method.basis=dense keeps {self.segments} matrices of {size:,} x {size:,}, {self.segments * needed / GIBIBYTE:.1f} GiB, "
                f"and memory allows {problem.memory / GIBIBYTE:.1f}: use method.basis=ekfac, method.params=last_layer, or raise memory."
            )
        return needed

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        problem = problem.select(self.params)
        segments = self._segments(problem, record.trajectory, seed)
        influence = problem.empty().zero_()
        for columns in problem.columns(4):
            backwards = problem.test_gradients(columns)  # [m, P]: ∇m_tᵀ S_L ... S_{l+1}
            for segment in progress(list(reversed(segments)), "source, segments"):
                segment.add(problem, segment.spectrum.apply(backwards, segment.gain), influence[:, columns])
                backwards = segment.spectrum.apply(backwards, segment.decay)
        coarse = max(segment.rate * segment.spectrum.largest for segment in segments)
        facts = {"segments": float(len(segments)), "largest_rate_times_eigenvalue": coarse}
        return Estimate(influence.div_(problem.n_train), facts=facts)

    def _segments(self, problem: Problem, trajectory: Trajectory, seed: int) -> list[Segment]:
        """The run's checkpoints dealt to the segments in order, each with the time from the segment before to its last checkpoint."""
        assert trajectory.descent is not None
        rates = [rate / (1.0 - trajectory.descent.momentum) for rate in trajectory.rates]
        ends = [*(snapshot.step for snapshot in trajectory.snapshots[1:]), trajectory.n_steps]
        params = [point for point, _ in trajectory.checkpoints]
        count = min(self.segments, len(ends))
        if count < self.segments:
            warn_accuracy(
                f"source has {count} of the {self.segments} segments it was asked for, because training kept {len(ends)} checkpoints: "
                "raise checkpoints, or lower method.segments."
            )
        lasting = 1.0 / (1.0 - trajectory.descent.momentum)
        if trajectory.n_steps < LONG * lasting:
            warn_accuracy(
                f"source takes momentum as if it had settled, and this training has {trajectory.n_steps} steps of which a velocity lasts "
                f"{lasting:.0f}: its scale is too large. Train longer, or set training.momentum=0."
            )
        made, start = [], 0
        for part in progress(range(count), "source, curvatures"):
            chosen = slice(part * len(ends) // count, (part + 1) * len(ends) // count)
            stop = ends[chosen.stop - 1]
            spectrum = self._spectrum([problem.at(point) for point in params[chosen]], seed)
            made.append(Segment(params[chosen], sum(rates[start:stop]), max(rates[start:stop]), spectrum))
            start = stop
        return made

    def _spectrum(self, problems: list[Problem], seed: int) -> Spectrum:
        if self.basis == "ekfac":
            bases = eigenbases(problems, self.curvature, labels="empirical", corrected=True, seed=seed)
            return FactoredSpectrum(bases, problems[0].weight_decay)
        matrices = (Curvature(problem, self.curvature, 0.0).dense() for problem in problems)
        mean = sum(matrices, torch.zeros((), dtype=problems[0].theta.dtype, device=problems[0].theta.device)) / len(problems)
        return DenseSpectrum(*torch.linalg.eigh(mean))


class Spectrum(ABC):
    """H of a segment with its eigenvectors."""

    @property
    @abstractmethod
    def largest(self) -> float:
        """The largest eigenvalue."""

    @abstractmethod
    def apply(self, vectors: Float[Tensor, "m p"], function: Spectral) -> Float[Tensor, "m p"]:
        """function(H) v of each vector."""


@dataclass(frozen=True)
class DenseSpectrum(Spectrum):
    """λ is in the values."""

    values: Float[Tensor, " p"]
    eigenvectors: Float[Tensor, "p p"]

    @property
    def largest(self) -> float:
        return self.values.max().item()

    def apply(self, vectors: Float[Tensor, "m p"], function: Spectral) -> Float[Tensor, "m p"]:
        return (vectors @ self.eigenvectors * function(self.values)) @ self.eigenvectors.T


@dataclass(frozen=True)
class FactoredSpectrum(Spectrum):
    """λ is added to each layer's eigenvalues."""

    bases: list[Eigenbasis]
    weight_decay: float

    @property
    def largest(self) -> float:
        return self.weight_decay + max(basis.values.max().item() for basis in self.bases)

    def apply(self, vectors: Float[Tensor, "m p"], function: Spectral) -> Float[Tensor, "m p"]:
        made = torch.empty_like(vectors)
        for basis in self.bases:
            basis.layer.scatter(basis.scale(basis.layer.gather(vectors), function(basis.values + self.weight_decay)), made)
        return made


@dataclass(frozen=True)
class Segment:
    """Checkpoints, the sum τ of the segment's effective rates, the largest of them, and the mean curvature."""

    points: list[dict[str, Tensor]]
    time: float
    rate: float
    spectrum: Spectrum

    def decay(self, values: Tensor) -> Tensor:
        """exp(−τσ)."""
        return torch.exp(-self.time * values)

    def gain(self, values: Tensor) -> Tensor:
        """(1 − exp(−τσ))/σ, which is τ at σ = 0."""
        small = values.abs() * self.time < torch.finfo(values.dtype).eps
        return torch.where(small, self.time, -torch.expm1(-self.time * values) / torch.where(small, 1.0, values))

    def add(self, problem: Problem, vectors: Float[Tensor, "m p"], scores: Float[Tensor, "n_train m"]) -> None:
        """Add each training gradient's inner product with each vector to `scores`, gradients averaged over the checkpoints."""
        for params in self.points:
            for rows, layers in problem.at(params).train_rows():
                for part in layers:
                    add_rows(part, part.layer.gather(vectors).flatten(1) / len(self.points), scores[rows])
