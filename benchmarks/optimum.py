"""Leave-one-out optima of logistic regression: influx's stacks against scikit-learn's warm-started refits, one after another."""

from __future__ import annotations

import statistics
import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from measure import header, in_turn, ratio, row
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from influx.datasets import Dataset
from influx.datasets.breast_cancer import BreastCancer
from influx.datasets.digits import Digits
from influx.errors import AccuracyWarning
from influx.experiment import Experiment
from influx.measurements import Loss
from influx.models.logistic import Logistic
from influx.objectives import Supervised
from influx.removals import Removals
from influx.retraining import Plan, Retraining
from influx.store import Store
from influx.training.second_order import Newton

TRAINING = Newton(tolerance=1e-8)
TIGHTER = (1.0, 0.5, 0.2, 0.1, 0.03, 0.01)  # scikit-learn's tolerance bounds the largest entry; we ask for the norm
EXACT = 1e-12  # of the refits that all others are compared with
WAYS = (("lbfgs", 5e-6), ("lbfgs", 1e-8), ("newton-cholesky", 1e-8))


@dataclass(frozen=True)
class Refits:
    """scikit-learn's way to the same optimum: a constant column for the bias, which is penalised like every weight.

    Of two classes it fits the difference of the two logits, whose penalty is half of ours: the rows of ours are ± half the difference.
    """

    experiment: Experiment
    left_out: tuple[int, ...]

    @cached_property
    def inputs(self) -> np.ndarray:
        flat = self.experiment.data.train_inputs.flatten(1).numpy()
        return np.hstack([flat, np.ones((len(flat), 1))])  # [n, d + 1]

    @cached_property
    def labels(self) -> np.ndarray:
        return self.experiment.data.train_targets.numpy()

    @property
    def halves(self) -> int:
        return 2 if self.experiment.data.n_outputs == 2 else 1

    def classifier(self, solver: str, tolerance: float) -> LogisticRegression:
        strength = self.halves / (len(self.labels) * TRAINING.weight_decay)
        options = {"C": strength, "fit_intercept": False, "warm_start": True, "max_iter": 10_000}
        return LogisticRegression(solver=solver, tol=tolerance, **options)

    @cached_property
    def start(self) -> LogisticRegression:
        return self.classifier("newton-cholesky", EXACT).fit(self.inputs, self.labels)

    def run(self, solver: str, tolerance: float) -> np.ndarray:
        """One refit after another, each from the optimum on all examples; `[models, rows, d + 1]`, one row for two classes."""
        classifier, found = self.classifier(solver, tolerance), []
        classifier.classes_ = self.start.classes_
        for i in self.left_out:
            classifier.coef_ = self.start.coef_.copy()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the norm that was reached is in the table
                classifier.fit(np.delete(self.inputs, i, 0), np.delete(self.labels, i))
            found.append(classifier.coef_.copy())
        return np.stack(found)

    def gradient_norm(self, found: np.ndarray) -> float:
        """The largest gradient norm of influx's objective."""
        both = np.concatenate([-found, found], 1) / 2 if self.halves == 2 else found
        return max(self._norm(theta, i) for theta, i in zip(both, self.left_out, strict=True))

    def _norm(self, theta: np.ndarray, left_out: int) -> float:
        residual = softmax(self.inputs @ theta.T, axis=1) - np.eye(len(theta))[self.labels]
        residual[left_out] = 0
        return float(np.linalg.norm(residual.T @ self.inputs / len(self.labels) + TRAINING.weight_decay * theta))

    def tolerance(self, solver: str, norm: float) -> float:
        """The loosest that reaches `norm`, or the one that comes nearest."""
        norms = {norm * part: self.gradient_norm(self.run(solver, norm * part)) for part in TIGHTER}
        return next((tolerance for tolerance, reached in norms.items() if reached <= norm), min(norms, key=lambda t: norms[t]))


def optimum(quick: bool) -> None:
    torch.set_num_threads(1)
    models, rounds = (4, 1) if quick else (20, 3)
    print(f"λ = {TRAINING.weight_decay}, float64, one thread, medians of {rounds} round(s), {models} refits in each.")
    print(f"Differences are from newton-cholesky with tolerance {EXACT:.0e}.\n")
    header("data", "models", "influx, ms a model", "norm", "difference", "scikit-learn", "ms a model", "norm", "difference", "ratio")
    with threadpool_limits(1):
        for dataset in (BreastCancer(), Digits()):
            _rows(dataset, models, rounds)


def _rows(dataset: Dataset, models: int, rounds: int) -> None:
    experiment = Experiment(dataset.load().to(torch.float64, "cpu"), Logistic(), TRAINING, Supervised(), Loss())
    base, n = experiment.train(0, Store(None)), experiment.data.n_train
    refits = Refits(experiment, tuple(np.linspace(0, n - 1, models).astype(int).tolist()))
    shards = Retraining(seeds=1).shards(experiment, [base], Removals.single(range(n)), 0, Plan(True, 0.0))
    made: dict[str, list[tuple[torch.Tensor, float]]] = {}

    def ours() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AccuracyWarning)  # the norm that was reached is in the table
            fits = [shard.training.fit(shard.task()) for shard in shards]
        made["ours"] = [(_rows_of(fit.params)[1:], fit.gradient_norm.max().item()) for fit in fits]

    ways = {(solver, norm): refits.tolerance(solver, norm) for solver, norm in WAYS}
    runs = in_turn({"ours": ours, **{f"{way}": lambda way=way: refits.run(way[0], ways[way]) for way in ways}}, rounds)
    exact = refits.run("newton-cholesky", EXACT)
    theta = torch.cat([part for part, _ in made["ours"]]).numpy()[list(refits.left_out)]
    theta = theta[:, 1:] - theta[:, :1] if refits.halves == 2 else theta
    each = [s / n for s in runs["ours"]]
    mine = f"{1e3 * statistics.median(each):.2f}", f"{max(norm for _, norm in made['ours']):.0e}", f"{abs(theta - exact).max():.0e}"
    for (solver, norm), tolerance in ways.items():
        found = refits.run(solver, tolerance)
        theirs = [s / models for s in runs[f"{(solver, norm)}"]]
        reached = f"{refits.gradient_norm(found):.0e}", f"{abs(found - exact).max():.0e}"
        times = f"{1e3 * statistics.median(theirs):.1f}", *reached, f"**{ratio(theirs, each):.3g}**"
        row(experiment.data.name, f"{n:,}", *mine, f"{solver}, {norm:.0e}", *times)


def _rows_of(params: dict[str, torch.Tensor]) -> torch.Tensor:
    """`[models, classes, d + 1]`, biases last."""
    weight, bias = params.values()
    return torch.cat([weight, bias.unsqueeze(2)], dim=2)
