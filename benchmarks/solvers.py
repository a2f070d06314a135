"""All training on all test examples: influx's solvers against conjugate gradients one test example at a time. Prints one table.

    python benchmarks/solvers.py

The plain way is SciPy's cg on Hessian-vector products by double backward, timed on a few test examples and scaled up.
"""

from __future__ import annotations

import numpy as np
import torch
from measure import paired, peak_mebibytes
from scipy.sparse.linalg import LinearOperator, cg

from influx.datasets.digits import Digits
from influx.estimators.inverse_curvature import InverseCurvature
from influx.experiment import Experiment
from influx.measurements import Loss
from influx.models import Model
from influx.models.logistic import Logistic
from influx.models.mlp import Mlp
from influx.objectives import Supervised
from influx.problem import Problem
from influx.solvers.cg import ConjugateGradient
from influx.solvers.exact import Exact
from influx.solvers.lissa import Lissa
from influx.store import Store
from influx.training import Training
from influx.training.first_order import Sgd
from influx.training.second_order import Newton

SAMPLED = 4  # test examples of the plain way
DAMPING = 0.01


def one_by_one(problem: Problem) -> None:
    """iHVPs of a few test examples, one after another."""

    def objective(theta: torch.Tensor) -> torch.Tensor:
        return problem.losses(theta, problem.train).mean() + 0.5 * (problem.weight_decay + DAMPING) * theta.square().sum()

    def product(vector: np.ndarray) -> np.ndarray:
        theta = problem.theta.clone().requires_grad_(True)
        gradient = torch.autograd.grad(objective(theta), theta, create_graph=True)[0]
        return torch.autograd.grad(gradient @ torch.as_tensor(vector).to(theta), theta)[0].numpy()

    size = problem.n_params
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    for column in problem.test_gradients()[:SAMPLED].numpy():
        cg(operator, column, rtol=1e-8, maxiter=500)


def main() -> None:
    torch.set_num_threads(1)
    data = Digits(standardize=False).load().to(torch.float64, "cpu")
    print(f"digits, {data.n_train} x {data.n_test}, float64, one thread, damping {DAMPING:g}, medians of 3 pairs\n")
    print("| model | parameters | method | seconds | times plain cg | relative error to exact |\n|---|---|---|---|---|---|")
    cases: list[tuple[str, Model, Training]] = [("softmax", Logistic(), Newton()), ("MLP 64-32-10", Mlp(), Sgd())]
    for name, model, training in cases:
        experiment = Experiment(data, model, training, Supervised(), Loss())
        problem = experiment.problem(experiment.train(0, Store(None)), 0)
        reference = InverseCurvature(Exact(), damping=DAMPING).estimate(problem, None, 0).influence
        for label, solver in (("exact", Exact()), ("cg", ConjugateGradient()), ("lissa", Lissa())):
            method = InverseCurvature(solver, damping=DAMPING)
            _, ours, ratio = paired(lambda: one_by_one(problem), lambda: method.estimate(problem, None, 0))  # noqa: B023
            influence = method.estimate(problem, None, 0).influence
            error = ((influence - reference).norm() / reference.norm()).item()
            times = ratio * data.n_test / SAMPLED
            print(f"| {name} | {problem.n_params:,} | {label} | {ours:.2f} | {times:.0f}x | {error:.0e} |", flush=True)
    print(f"\npeak memory {peak_mebibytes():.0f} MiB")


if __name__ == "__main__":
    main()
