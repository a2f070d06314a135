"""SOURCE against matrix exponentials, and against training differentiated step by step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from problems import NOTHING_KEPT, Prediction, answers, cast, dense, experiment, problem
from torch import Tensor
from torch.testing import assert_close

from influx import stacking
from influx.errors import AccuracyWarning, InfluxError
from influx.estimators.source import Source
from influx.kronecker import eigenbases
from influx.laboratory import Laboratory
from influx.measurements import MeanLoss
from influx.problem import Problem
from influx.record import Facts
from influx.training.first_order import Adam, Sgd
from influx.trajectory import Descent, Snapshot, Trajectory

DENSE = Source(segments=1, basis="dense")


@dataclass(frozen=True)
class Told:
    """As much of a record as SOURCE reads."""

    trajectory: Trajectory

    @property
    def facts(self) -> Facts:
        return Facts(self.trajectory.n_steps, 1, self.trajectory.descent)


def stands(fitted: Problem, rates: list[float], at: tuple[int, ...] = (), momentum: float = 0.0, scales: tuple[float, ...] = ()) -> Told:
    """A run that kept snapshots before the steps `at`, at `scales` times the parameters; with none it stood still at the end."""
    points = [{key: scale * value for key, value in fitted.params.items()} for scale in scales or [1.0] * len(at)]
    snapshots = (Snapshot(0, fitted.params), *(Snapshot(step, point) for step, point in zip(at, points, strict=True)))
    return Told(Trajectory(snapshots, tuple(rates), fitted.params, None, 0, Descent(momentum, False, fitted.weight_decay)))


def exponential(name: str, time: float, kind: str = "ggn") -> Tensor:
    """(1/n) ∇mᵀ H⁻¹ (I − exp(−τH)) ∇ℓ with torch's own matrix exponential."""
    known = answers(name)
    matrix = known.matrix(kind)
    gain = torch.linalg.solve(matrix, torch.eye(len(matrix), dtype=matrix.dtype) - torch.linalg.matrix_exp(-time * matrix))
    return known.train_gradients @ gain @ known.test_gradients.T / len(known.train_gradients)


def near(one: Tensor, other: Tensor, share: float = 1e-10) -> None:
    assert_close(one, other, rtol=0, atol=share * other.abs().max().item())


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
@pytest.mark.parametrize("name", ["ridge", "softmax", "mlp"])
def test_one_segment_is_the_matrix_exponential(name, kind):
    rates = [0.3, 0.1, 0.2, 0.2, 0.7]
    made = replace(DENSE, curvature=kind).estimate(problem(name), stands(problem(name), rates), 0)
    near(made.influence, exponential(name, 1.5, kind))
    largest = torch.linalg.eigvalsh(answers(name).matrix(kind))[-1].item()
    assert made.facts["largest_rate_times_eigenvalue"] == pytest.approx(0.7 * largest)


def test_segments_where_nothing_changes_are_one_segment():
    told = stands(problem("mlp"), [0.1] * 30, at=(4, 12, 20))
    for segments in (1, 2, 3, 4):
        near(replace(DENSE, segments=segments).estimate(problem("mlp"), told, 0).influence, exponential("mlp", 3.0))


def test_two_segments_by_hand():
    """Snapshots at half and at .8 of the parameters, and the end: dealt as one and two, with means over the two."""
    fitted = problem("mlp")
    told = stands(fitted, [0.2] * 10, at=(3, 6), scales=(0.5, 0.8))
    first, second = (dense(fitted.at({key: s * v for key, v in fitted.params.items()})) for s in (0.5, 0.8))
    last = answers("mlp")
    one = torch.eye(fitted.n_params, dtype=torch.float64)

    def exp(time, matrix):
        return torch.linalg.matrix_exp(-time * matrix)

    mean = (second.ggn + last.ggn) / 2
    early = (one - exp(0.6, first.ggn)) @ torch.linalg.solve(first.ggn, first.train_gradients.T)
    late = (one - exp(1.4, mean)) @ torch.linalg.solve(mean, (second.train_gradients + last.train_gradients).T / 2)
    wanted = (last.test_gradients @ (exp(1.4, mean) @ early + late)).T / fitted.n_train
    near(Source(segments=2, basis="dense").estimate(fitted, told, 0).influence, wanted)


@pytest.mark.parametrize("basis", ["dense", "ekfac"])
def test_a_long_run_at_the_optimum_gives_the_influence_function(basis):
    made = Source(segments=2, basis=basis).estimate(problem("ridge"), stands(problem("ridge"), [0.5] * 4000, at=(2000,)), 0)
    near(made.influence, answers("ridge").influence("hessian"), 1e-9)  # exp(−τλ_min) with τ λ_min ≥ 2000 x .05


def test_momentum_counts_as_a_longer_rate():
    near(
        DENSE.estimate(problem("mlp"), stands(problem("mlp"), [0.01] * 20, momentum=0.9), 0).influence,
        DENSE.estimate(problem("mlp"), stands(problem("mlp"), [0.1] * 20), 0).influence,
    )


@pytest.mark.parametrize("name", ["ridge", "mlp", "conv"])
def test_the_factored_basis_is_the_dense_one_where_it_is_exact(name):
    """`ridge` has one output, so its factored GGN is the GGN; elsewhere a short run sees no curvature: τ ∇mᵀ∇ℓ/n."""
    rates = [0.4] * 5 if name == "ridge" else [1e-9] * 5
    known, n = answers(name), problem(name).n_train
    wanted = exponential("ridge", 2.0) if name == "ridge" else 5e-9 * known.train_gradients @ known.test_gradients.T / n
    near(Source(segments=1).estimate(problem(name), stands(problem(name), rates), 0).influence, wanted, 1e-6 if name != "ridge" else 1e-10)


def test_ekfac_is_its_own_dense_matrix():
    """exp of Q diag(Λ + λ) Qᵀ written out."""
    fitted, known = problem("mlp"), answers("mlp")
    matrix = torch.zeros(fitted.n_params, fitted.n_params, dtype=torch.float64)
    for basis in eigenbases([fitted], "ggn", labels="empirical", corrected=True, seed=0):
        vectors = torch.kron(basis.outputs, basis.inputs)
        place = basis.layer.gather(torch.arange(fitted.n_params).unsqueeze(0)).flatten()
        matrix[place.unsqueeze(1), place] = vectors @ torch.diag(basis.values.flatten() + fitted.weight_decay) @ vectors.T
    gain = torch.linalg.solve(matrix, torch.eye(len(matrix), dtype=matrix.dtype) - torch.linalg.matrix_exp(-2.0 * matrix))
    wanted = known.train_gradients @ gain @ known.test_gradients.T / fitted.n_train
    near(Source(segments=1).estimate(fitted, stands(fitted, [0.5] * 4), 0).influence, wanted)


# --------------------------------------------------------------------------------------------------------------- real training


def unrolled(made: Problem, trajectory: Trajectory) -> Tensor:
    """d m_t for the removal of each example, by differentiating every full-batch step of a least-squares model."""
    x = torch.cat([made.train.inputs.flatten(1), torch.ones(made.n_train, 1, dtype=torch.float64)], 1)
    hessian = x.T @ x / made.n_train + made.weight_decay * torch.eye(x.shape[1], dtype=torch.float64)
    change = torch.zeros(x.shape[1], made.n_train, dtype=torch.float64)
    for step in trajectory.forward():
        theta = torch.cat([value.flatten() for value in step.params.values()])
        gradients = x.T * (x @ theta - made.train.targets)
        change += step.lr * (gradients / made.n_train - hessian @ change)
    return (dense(made).test_gradients @ change).T


def descent(lr: float, steps: int, checkpoints: int, **changes) -> Laboratory:
    made = experiment("ridge", training=Sgd(lr=lr, epochs=steps, batch_size=None, momentum=0.0, weight_decay=0.05), **changes)
    trained = made.train(3, NOTHING_KEPT, checkpoints=checkpoints)
    return Laboratory(made, NOTHING_KEPT, 3, 2**30, checkpoints, 1, trained)


def error(lr: float, steps: int, checkpoints: int) -> float:
    record = descent(lr, steps, checkpoints, measurement=Prediction())
    fitted = record.experiment.problem(record.trained, 3)
    wanted = unrolled(fitted, record.trajectory)
    made = Source(segments=checkpoints, basis="dense").estimate(fitted, record, 3).influence
    return ((made - wanted).norm() / wanted.norm()).item()


def test_many_segments_of_small_steps_are_the_unrolled_training():
    """The same training time in ever smaller steps and segments: first order in both, so the error halves with them."""
    errors = [error(0.2 / scale, 20 * scale, 5 * scale) for scale in (1, 2, 4, 8)]
    assert errors[-1] < 0.03
    assert all(0.4 < after / before < 0.6 for before, after in pairwise(errors))


def test_three_segments_are_near_the_unrolled_training():
    """What SOURCE is for, a run that is far from its optimum: .11 from the truth (gradients at six places), the influence function .31."""
    record = descent(0.05, 40, 6, measurement=Prediction())
    fitted = record.experiment.problem(record.trained, 3)
    wanted = unrolled(fitted, record.trajectory)
    source = Source(segments=3).estimate(fitted, record, 3).influence
    classic = dense(fitted).influence("hessian")
    assert (source - wanted).norm() < 0.4 * (classic - wanted).norm()


# --------------------------------------------------------------------------------------------------------- blocks and refusals


def test_columns_rows_and_types_change_nothing(monkeypatch):
    fitted = problem("conv")
    told = stands(fitted, [0.1] * 8, at=(3,), scales=(0.9,))
    whole = Source(segments=2).estimate(fitted, told, 0).influence
    monkeypatch.setattr(stacking, "BLOCK_BYTES", 20_000)
    small = replace(fitted, memory=3 * 8 * 187 * 4)  # one or two test examples at once
    near(Source(segments=2).estimate(small, told, 0).influence, whole)
    mean = Source(segments=2).estimate(replace(fitted, measurement=MeanLoss()), told, 0).influence
    near(mean, whole.mean(1, keepdim=True))
    single = cast(fitted, torch.float32)
    told32 = stands(single, [0.1] * 8, at=(3,), scales=(0.9,))
    near(Source(segments=2).estimate(single, told32, 0).influence.double(), whole, 1e-3)  # float32 through three layers


def test_fewer_checkpoints_than_segments_are_said():
    with pytest.warns(AccuracyWarning, match=r"source has 1 of the 3 segments .* raise checkpoints, or lower method\.segments"):
        Source().estimate(problem("ridge"), stands(problem("ridge"), [0.1]), 0)


def test_what_source_cannot_follow_is_refused():
    fitted = problem("mlp")
    adam = Laboratory(experiment("mlp", training=Adam(epochs=2)), NOTHING_KEPT, 0, 2**30)
    with pytest.raises(InfluxError, match=r"gradient descent .* use training=sgd, or method=ekfac"):
        Source().plan(fitted, adam)
    told = stands(fitted, [0.1])
    with pytest.raises(InfluxError, match=r"no Kronecker factors: set method\.curvature=ggn, or method\.basis=dense"):
        Source(curvature="hessian").plan(fitted, told)
    with pytest.raises(InfluxError, match=r"keeps 3 matrices of 31 x 31, .* use method\.basis=ekfac"):
        Source(basis="dense").plan(replace(fitted, memory=10_000), told)
    with pytest.raises(InfluxError, match=r"method\.basis=full is not possible: it must be one of ekfac, dense"):
        Source(basis="full")
    assert Source().plan(fitted, told).nbytes > 0
