"""All training on all test examples: influx's estimators against other libraries, at equal accuracy, in one run. Prints Markdown tables.

    python benchmarks/estimators.py [exact ekfac grad_dot tracin trak cg products gradients] [--threads 1]

It needs the environment that `neighbours.py` describes. Start-up is excluded: every way runs once on a few rows first (imports, compiled
kernels), and nothing is compiled between rounds. The ways take turns; seconds are medians, ratios medians of the rounds' ratios.
Accuracy is the mean over test examples of the Spearman correlation with the same method in float64 by influx, whose own truth is in the
tests (dense references); for `exact` it is the relative error to a dense solve written here.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import neighbours
import torch
from measure import header, in_turn, peak_mebibytes, processor, ratio, row, seconds
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, vmap

from influx.curvature import Curvature
from influx.datasets import Dataset
from influx.datasets.digits import Digits
from influx.datasets.mnist5k import Mnist5k
from influx.estimators import Estimator
from influx.estimators.grad_dot import GradDot
from influx.estimators.inverse_curvature import InverseCurvature
from influx.estimators.tracin import TracIn
from influx.estimators.trak import Trak
from influx.experiment import Experiment, Trained
from influx.laboratory import Laboratory
from influx.measurements import Loss
from influx.models import Model
from influx.models.lenet import LeNet
from influx.models.logistic import Logistic
from influx.models.mlp import Mlp
from influx.objectives import Supervised
from influx.problem import Examples, Problem
from influx.solvers.cg import ConjugateGradient
from influx.solvers.ekfac import Ekfac
from influx.solvers.exact import Exact
from influx.store import Store
from influx.training import Training
from influx.training.first_order import Sgd
from influx.training.second_order import Newton

ROUNDS = 3
FEW = 40  # rows of the first call
CHECKPOINTS = 5
Rows = neighbours.Rows
Theirs = Callable[[nn.Module, Rows, Rows], neighbours.Scored]


class Case(NamedTuple):
    """A data set and a model, trained once in float32 (softmax regression in float64)."""

    name: str
    data: Dataset
    model: Model
    training: Training


CASES = {
    "softmax": Case("softmax, digits", Digits(standardize=False), Logistic(), Newton()),
    "digits": Case("MLP 64-32-10, digits", Digits(standardize=False), Mlp(), Sgd()),
    "26k": Case("MLP 784-32-10, mnist5k", Mnist5k(), Mlp(), Sgd(epochs=10)),
    "118k": Case("MLP 784-128-128-10, mnist5k", Mnist5k(), Mlp(depth=2, width=128), Sgd(epochs=10)),
    "lenet": Case("LeNet, mnist5k", Mnist5k(), LeNet(), Sgd(epochs=3)),
}


class Subject(NamedTuple):
    """A trained case, for either side."""

    name: str
    experiment: Experiment
    trained: Trained
    store: Store
    free: bool  # without weight decay in the estimate, as libraries that know of none

    @property
    def problem(self) -> Problem:
        """With nothing computed yet."""
        made = self.experiment.problem(self.trained, 0)
        return replace(made, weight_decay=0.0) if self.free else made

    @property
    def record(self) -> Laboratory:
        return Laboratory(self.experiment, self.store, 0, 2**31, CHECKPOINTS).after(self.trained)

    @property
    def module(self) -> nn.Module:
        module = self.experiment.module(0)
        module.load_state_dict({**self.trained.params, **self.trained.buffers})
        return module.eval()

    @property
    def rows(self) -> tuple[Rows, Rows]:
        data = self.experiment.data
        return (data.train_inputs, data.train_targets), (data.test_inputs, data.test_targets)


def subject(key: str, dtype: torch.dtype, folder: Path, free: bool = False) -> Subject:
    """The model is the same in both types: trained in float32 once, but for convex problems."""
    case = CASES[key]
    trains_in = torch.float64 if key == "softmax" else torch.float32
    experiment = Experiment(case.data.load().to(trains_in, "cpu"), case.model, case.training, Supervised(), Loss())
    store = Store(folder)
    trained = experiment.train(0, store, checkpoints=CHECKPOINTS)
    cast = replace(trained, params={name: value.to(dtype) for name, value in trained.params.items()})
    return Subject(case.name, replace(experiment, data=experiment.data.to(dtype, "cpu")), cast, store, free)


def agreement(scores: Tensor, reference: Tensor) -> float:
    """Mean Spearman over test examples; one whose scores are all equal has none."""
    each = [spearmanr(s, r).statistic for s, r in zip(scores.T.double().numpy(), reference.T.numpy(), strict=True)]
    return statistics.fmean(value for value in each if value == value)


def estimate(method: Estimator, made: Subject) -> Tensor:
    return method.estimate(made.problem, made.record, 0).influence


def versus(key: str, method: Estimator, theirs: dict[str, Theirs], folder: Path, *, reference: Tensor | None = None,
           free: bool = False) -> None:  # fmt: skip
    """One row of a table for each library."""
    made = subject(key, torch.float32, folder, free)
    if reference is None:
        reference = estimate(method, subject(key, torch.float64, folder, free))
    module, (train, test) = made.module, made.rows
    for score in theirs.values():
        score(module, (train[0][:FEW], train[1][:FEW]), (test[0][:FEW], test[1][:FEW]))
    ours = estimate(method, made)
    taken, found = rounds(lambda: estimate(method, made), theirs, module, train, test)
    own = statistics.median(taken["influx"])
    for name in theirs:
        row(made.name, f"{len(ours):,} x {ours.shape[1]:,}", f"{made.problem.n_params:,}", f"{own:.3f}", name,
            f"{statistics.median(taken[name]):.3f}", f"**{ratio(taken[name], taken['influx']):.1f}x**",
            f"{agreement(ours, reference):.4f}", f"{agreement(found[name], reference):.4f}")  # fmt: skip


def rounds(
    ours: Callable[[], Tensor], theirs: dict[str, Theirs], module: nn.Module, train: Rows, test: Rows
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Seconds of each way in each round, taking turns, and the libraries' scores; theirs are the stages' own, without our setting up."""
    taken: dict[str, list[float]] = {"influx": [], **{name: [] for name in theirs}}
    found: dict[str, Tensor] = {}
    for _ in range(ROUNDS):
        taken["influx"].append(seconds(ours))
        for name, score in theirs.items():
            scored = score(module, train, test)
            taken[name].append(sum(scored.seconds.values()))
            found[name] = scored.scores
    return taken, found


def comparison(title: str) -> None:
    print(f"\n**{title}**\n")
    header("case", "scores", "parameters", "influx, s", "library", "its s", "times", "Spearman to float64", "its Spearman")


def exact(folder: Path) -> None:
    damping = 0.01
    made = subject("softmax", torch.float64, folder)
    module, (train, test) = made.module, made.rows
    reference = dense(made.problem, damping)
    ours = InverseCurvature(Exact(), damping=damping)
    shift = damping + made.problem.weight_decay
    theirs: dict[str, Theirs] = {
        "pyDVL DirectInfluence": lambda m, a, b: neighbours.pydvl_influence(m, a, b, solver="direct", damping=shift),
        "dattri IFAttributorExplicit": lambda m, a, b: neighbours.dattri_influence(m, a, b, solver="explicit", damping=shift),
    }
    few = (train[0][:FEW], train[1][:FEW]), (test[0][:FEW], test[1][:FEW])
    for score in theirs.values():
        score(module, *few)
    results = {"influx": estimate(ours, made)}
    taken, found = rounds(lambda: estimate(ours, made), theirs, module, train, test)
    results |= found
    print(f"\n**exact, softmax on digits, {len(reference):,} x {reference.shape[1]:,}, 650 parameters, float64**\n")
    header("way", "seconds", "times influx", "relative error to a dense solve")
    for name, scores in results.items():
        error = (scores.double() - reference).norm() / reference.norm()
        row(name, f"{statistics.median(taken[name]):.3f}", f"{ratio(taken[name], taken['influx']):.1f}x", f"{error:.0e}")


def dense(problem: Problem, damping: float) -> Tensor:
    """(1/n) G (∇²J + δI)⁻¹ Mᵀ with torch.func's Hessian of the objective and gradients an example at a time, all in float64."""

    def objective(theta: Tensor) -> Tensor:
        return problem.losses(theta, problem.train).mean() + 0.5 * (problem.weight_decay + damping) * theta.square().sum()

    def one(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return problem.losses(theta, Examples(x.unsqueeze(0), y.unsqueeze(0))).squeeze(0)

    gradients = [vmap(grad(one), in_dims=(None, 0, 0))(problem.theta, part.inputs, part.targets) for part in (problem.train, problem.test)]
    return gradients[0] @ torch.linalg.solve(hessian(objective)(problem.theta), gradients[1].T) / problem.n_train


def ekfac(folder: Path) -> None:
    comparison("ekfac, empirical Fisher, damping 0.1 x mean eigenvalue of each layer, float32")
    method = InverseCurvature(Ekfac(), "fisher", "auto")
    for key, batch in (("softmax", None), ("26k", 1000), ("118k", 500), ("lenet", 500)):
        theirs: dict[str, Theirs] = {}
        for name, collecting in (("kronfluence", True), ("kronfluence, its garbage collection set aside", False)):
            theirs[name] = partial(neighbours.kronfluence, damping=None, empirical=True, batch=batch, collecting=collecting)
        versus(key, method, theirs, folder, free=True)


def grad_dot(folder: Path) -> None:
    comparison("grad_dot, float32")
    for key, batch in (("26k", 1000), ("lenet", 500)):
        theirs: dict[str, Theirs] = {"kronfluence, identity": partial(neighbours.kronfluence, strategy="identity", batch=batch)}
        versus(key, GradDot(), theirs, folder)


def tracin(folder: Path) -> None:
    comparison(f"tracin, {CHECKPOINTS} checkpoints, float32")
    for key, batch in (("digits", None), ("26k", 1000), ("lenet", 500)):
        made = subject(key, torch.float32, folder)
        points = made.record.trajectory.checkpoints
        theirs: dict[str, Theirs] = {
            "captum TracInCP": lambda m, a, b, size=batch, kept=points: neighbours.captum_tracin(m, a, b, kept, batch=size)  # type: ignore[misc]
        }
        versus(key, TracIn(), theirs, folder)


def trak(folder: Path) -> None:
    comparison("trak, 512 projections, float32; Spearman to the mean of 8 other projections")
    for key, batch in (("26k", 1000), ("118k", 500)):
        double = subject(key, torch.float64, folder)
        parts = [Trak(dim=512).estimate(double.problem, double.record, seed).influence for seed in range(1, 9)]
        theirs: dict[str, Theirs] = {
            "dattri": lambda m, a, b: neighbours.dattri_trak(m, a, b, dim=512, damping=1e-3),
            "traker": lambda m, a, b, size=batch: neighbours.traker(m, a, b, dim=512, damping=1e-3, batch=size),  # type: ignore[misc]
        }
        versus(key, Trak(dim=512), theirs, folder, reference=torch.stack(parts).mean(0))


def cg(folder: Path) -> None:
    comparison("cg on the Hessian to a relative residual of 1e-5, float32")
    for key, damping in (("softmax", 0.01), ("digits", 0.3)):
        method = InverseCurvature(ConjugateGradient(tolerance=1e-5), "hessian", damping)
        shift = damping + subject(key, torch.float32, folder).problem.weight_decay
        theirs: dict[str, Theirs] = {
            "pyDVL block CG": lambda m, a, b, s=shift: neighbours.pydvl_influence(m, a, b, solver="cg", damping=s, residual=1e-5)  # type: ignore[misc]
        }
        versus(key, method, theirs, folder)


def products(folder: Path) -> None:
    print("\n**curvature products (GGN), float32: many vectors at once against one by one**\n")
    header("case", "parameters", "vectors", "at once, products/s", "one by one, products/s", "times")
    for key, count in (("softmax", 100), ("26k", 100), ("118k", 100), ("lenet", 8)):
        made = subject(key, torch.float32, folder)
        curvature = Curvature(made.problem, "ggn", 0.01)
        vectors = torch.randn(curvature.size, count, generator=torch.Generator().manual_seed(0))
        curvature.matmat(vectors[:, :1])  # the passes that all products share
        taken = in_turn(
            {"at once": lambda: curvature.matmat(vectors), "singly": lambda: [curvature.matmat(v.unsqueeze(1)) for v in vectors.T[:8]]},  # noqa: B023
            ROUNDS,
        )
        together, alone = count / statistics.median(taken["at once"]), 8 / statistics.median(taken["singly"])
        row(made.name, f"{curvature.size:,}", count, f"{together:.0f}", f"{alone:.0f}", f"{together / alone:.1f}x")


def gradients(folder: Path) -> None:
    print("\n**per-example gradients, float32: layer products against vmap(grad)**\n")
    header("case", "as factors, ms a row", "as flat vectors", "vmap(grad), by parameter", "vmap / factors", "vmap / flat")
    for key in ("26k", "lenet"):
        made = subject(key, torch.float32, folder)
        module, params, ((x, y), _) = made.module, made.trained.params, made.rows

        def one(p: dict[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
            return neighbours.CROSS_ENTROPY(functional_call(module, p, (a.unsqueeze(0),)), b.unsqueeze(0)).squeeze(0)  # noqa: B023

        def plain() -> None:
            for at in range(0, 1000, 100):
                vmap(grad(one), in_dims=(None, 0, 0))(params, x[at : at + 100], y[at : at + 100])  # noqa: B023

        part = replace(made.problem, train=made.problem.train.take(slice(0, 1000)))
        ways: dict[str, Callable[[], object]] = {
            "factors": lambda: [None for _ in part.train_rows()],  # noqa: B023
            "flat": lambda: [None for _ in part.train_gradients()],  # noqa: B023
            "vmap": plain,
        }
        for way in ways.values():
            way()
        taken = in_turn(ways, ROUNDS)
        row(made.name, *(f"{statistics.median(taken[name]):.3f}" for name in ways),
            *(f"{ratio(taken['vmap'], taken[name]):.1f}x" for name in ("factors", "flat")))  # fmt: skip


PARTS: dict[str, Callable[[Path], None]] = {
    "exact": exact, "ekfac": ekfac, "grad_dot": grad_dot, "tracin": tracin, "trak": trak, "cg": cg, "products": products,
    "gradients": gradients,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS))
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print(f"{processor()}, {chosen.threads} thread(s), torch {torch.__version__}, medians of {ROUNDS} rounds")
    with tempfile.TemporaryDirectory() as folder:
        for part in chosen.parts:
            PARTS[part](Path(folder))
    print(f"\npeak memory {peak_mebibytes():.0f} MiB")


if __name__ == "__main__":
    main()
