"""Representer points: the output layer's predictions as a sum over training examples (Yeh et al. 2018, section 3, theorem 3.1).

With features φ_i of the trained model (what enters its output layer, and a constant 1 when the layer has a bias), the output layer W is
refitted to a stationary point of `(1/n) Σ_i ℓ(W φ_i, y_i) + (λ/2)‖W‖²`. There `W = Σ_i α_i φ_iᵀ`, hence for any x_t

    f(x_t) = Σ_i α_i k(x_i, x_t),    α_i = −(1/(λn)) ∂ℓ_i/∂f [classes],    k(x_i, x_t) = φ_i · φ_t.

Taking example i's term away, with all other terms as they are, moves f(x_t) by −α_i k(x_i, x_t) and so, to first order, the measurement by

    influence[i, t] = (1/(λn)) (∂m_t/∂f · ∂ℓ_i/∂f) k(x_i, x_t) = (1/(λn)) ∇m_t · ∇ℓ_i    over the refitted layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from influx import rules
from influx.cost import Cost
from influx.curvature import Curvature
from influx.errors import InfluxError, NumericalError, warn_accuracy
from influx.estimators.base import Estimate, Estimator
from influx.problem import Examples, Problem
from influx.record import Record
from influx.solvers.cg import ConjugateGradient
from influx.solvers.exact import Exact

DENSE = 1500  # parameters up to which Newton's method forms the Hessian
MAX_STEPS = 100  # of Newton's method
HALVINGS = 30  # of one step
ARMIJO = 1e-4  # share of the fall that its slope promises which a step must bring


@dataclass(frozen=True)
class Representer(Estimator):
    """influence[i, t]: the first-order change of m_t when example i's term leaves the representer sum, in the measurement's unit.

    The other terms do not answer to the removal, so the scale is not that of retraining (too large by up to the layer's curvature over λ).

    Args:
        tolerance: gradient norm of the refit's objective to stop at. The sum reproduces f(x_t) to within tolerance · ‖φ_t‖ / λ.

    1. The paper penalises λ‖W‖², so that its α_i has 2λn where this one, with our (λ/2)‖W‖², has λn.
    2. The paper's layer has no bias; ours enters the kernel as a constant feature, because our λ penalises it too.
    3. The paper refits by gradient descent with a line search; this is Newton's method in float64, whatever the type of the run.

    Cost: a forward pass an example, a few Newton steps on the output layer, inner products. Memory: the features in float64, and 3P²
    numbers while an output layer of P ≤ 1500 parameters is refitted.
    """

    calibrated: ClassVar[bool] = False
    params = "last_layer"  # no option: the representer theorem is about the output layer
    tolerance: float = 1e-10

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    def plan(self, problem: Problem, record: Record) -> Cost:
        """
        Raises:
            InfluxError: λ is 0, or the output layer is not linear.
        """
        if not problem.weight_decay > 0:
            raise InfluxError(
                "method=representer divides by the weight decay, which is 0: set training.weight_decay above 0, for example "
                "training.weight_decay=0.001."
            )
        problem.check_output_layer()
        n, m, size = problem.n_train, len(problem.test), problem.select("last_layer").n_params
        step = n * size**2 + size**3 if size <= DENSE else 400.0 * n * size
        held = 8 * (n + m) * size / _outputs(problem) + (24 * size**2 if size <= DENSE else 0)
        return Cost(gradients=(n + m) / 3, flops=10 * step + 2.0 * n * m * size / _outputs(problem), nbytes=held)

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        start = output_layer(problem)
        layer, norm, steps = refitted(start, self.tolerance, seed)
        influence = problem.empty()
        for columns in layer.columns(1):
            (test,) = layer.test_rows(columns)
            for rows, (train,) in layer.train_rows():
                influence[rows, columns] = (train.dot(test) / (layer.weight_decay * layer.n_train)).to(influence.dtype)
        moved = (layer.theta - start.theta).norm() / start.theta.norm()
        return Estimate(influence, facts={"refit_gradient_norm": norm, "refit_steps": float(steps), "refit_relative_move": moved.item()})


def _outputs(problem: Problem) -> int:
    return problem.params[problem.select("last_layer").selected[0]].shape[0]


def output_layer(problem: Problem) -> Problem:
    """The output layer as a problem of its own, on the features, in float64."""
    last = problem.select("last_layer")
    tensors = [last.params[name].detach().double() for name in last.selected]  # the weight, and the bias if there is one
    features = [problem.features(part).detach().double() for part in (problem.train, problem.test)]
    linear = nn.Linear(features[0].shape[1], len(tensors[0]), bias=len(tensors) == 2, dtype=torch.float64, device="meta")
    return replace(
        problem,
        module=nn.Sequential(linear.to_empty(device=tensors[0].device)).eval(),
        params=dict(zip(("0.weight", "0.bias"), tensors, strict=False)),
        buffers={},
        train=_with(problem.train, features[0]),
        test=_with(problem.test, features[1]),
        selected=(),
    )


def _with(examples: Examples, features: Float[Tensor, "n features"]) -> Examples:
    targets = examples.targets
    return Examples(features, targets.double() if targets.is_floating_point() else targets, examples.index)


def refitted(layer: Problem, tolerance: float, seed: int) -> tuple[Problem, float, int]:
    """The layer at a stationary point of its objective, the gradient norm there, and Newton steps taken.

    Warns when rounding stops it above the tolerance.

    Raises:
        NumericalError: the Hessian is singular or the loss not finite.
    """
    solver = Exact() if layer.n_params <= DENSE else ConjugateGradient(tolerance=1e-4, max_iterations=1000)
    value, gradient = _objective(layer, layer.theta)
    steps = 0
    while gradient.norm() > tolerance and steps < MAX_STEPS:
        direction = solver.solve(Curvature(layer, "hessian", 0.0), gradient.unsqueeze(1), seed).x.squeeze(1)
        theta = _searched(layer, value, gradient, direction)
        if theta is None:
            break
        layer, steps = layer.at(layer.unflatten(theta)), steps + 1
        value, gradient = _objective(layer, theta)
    norm = gradient.norm().item()
    if not norm <= tolerance:
        warn_accuracy(
            f"the output layer was refitted to a gradient norm of {norm:.1e} only (method.tolerance={tolerance:g}): the representer sum "
            f"misses the outputs by up to {norm / layer.weight_decay:.1e} times the norm of a feature vector."
        )
    return layer, norm, steps


def _searched(
    layer: Problem, value: Float[Tensor, ""], gradient: Float[Tensor, " p"], direction: Float[Tensor, " p"]
) -> Float[Tensor, " p"] | None:
    """The first of the step and its halves that lowers the objective or, where rounding hides that, the gradient; None if none does."""
    if not torch.isfinite(value):
        raise NumericalError("the loss of the output layer's refit is not finite: standardise the data (dataset.standardize=true).")
    size, slope, norm = 1.0, gradient @ direction, gradient.norm()
    for _ in range(HALVINGS):
        there = layer.theta - size * direction
        lower, steepness = _objective(layer, there)
        if lower <= value - ARMIJO * size * slope or steepness.norm() < 0.5 * norm:
            return there
        size /= 2
    return None


def _objective(layer: Problem, theta: Float[Tensor, " p"]) -> tuple[Float[Tensor, ""], Float[Tensor, " p"]]:
    """J and its gradient."""
    with torch.enable_grad():
        leaf = theta.detach().requires_grad_(True)
        value = layer.losses(leaf, layer.train).mean() + 0.5 * layer.weight_decay * leaf.square().sum()
        return value.detach(), torch.autograd.grad(value, leaf)[0]
