"""LoGra against its own definition with dense matrices, and against the whole influence function where nothing is projected."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from problems import answers, cast, problem
from torch import Tensor
from torch.testing import assert_close

from influx import stacking
from influx.errors import InfluxError, NumericalError
from influx.estimators.logra import LoGra, Projection
from influx.kronecker import eigenbases
from influx.measurements import MeanLoss
from influx.problem import Problem


def near(one: Tensor, other: Tensor, share: float = 1e-9) -> None:
    """float64 algebra in another order, relative to the largest entry."""
    assert_close(one, other, rtol=0, atol=share * other.abs().max().item())


def run(fitted: Problem, method: LoGra, seed: int = 0) -> Tensor:
    return method.estimate(fitted, None, seed).influence


def defined(name: str, projections: list[Projection], kind: str, damping: float | str) -> Tensor:
    """Σ_layers (1/n) (Pᵀ∇m)ᵀ (PᵀCP + λ + δ)⁻¹ Pᵀ∇ℓ with P = P_out ⊗ P_in and C from plain autograd."""
    fitted, known = problem(name), answers(name)
    curvature = known.ggn - fitted.weight_decay * torch.eye(fitted.n_params, dtype=torch.float64)
    if kind == "fisher":
        curvature = known.train_gradients.T @ known.train_gradients / fitted.n_train
    total = torch.zeros(fitted.n_train, fitted.n_test, dtype=torch.float64)
    for layer, projection in zip(fitted.matrix_layers, projections, strict=True):
        place = layer.gather(torch.arange(fitted.n_params).unsqueeze(0)).flatten()
        directions = torch.kron(projection.of_outputs.contiguous(), projection.of_inputs.contiguous())
        inner = directions.T @ curvature[place][:, place] @ directions
        delta = 0.1 * inner.trace() / len(inner) if damping == "auto" else damping
        shifted = inner + (fitted.weight_decay + delta) * torch.eye(len(inner), dtype=torch.float64)
        train, test = (gradients[:, place] @ directions for gradients in (known.train_gradients, known.test_gradients))
        total += train @ torch.linalg.solve(shifted, test.T) / fitted.n_train
    return total


@pytest.mark.parametrize("damping", ["auto", 0.01])
@pytest.mark.parametrize("kind", ["ggn", "fisher"])
@pytest.mark.parametrize("init", ["random", "pca"])
@pytest.mark.parametrize("name", ["softmax", "mlp", "conv"])
def test_scores_are_their_definition(name, init, kind, damping):
    method = LoGra(rank=2, init=init, curvature=kind, damping=damping)
    projections = method._projections(problem(name), 5)
    for projection, layer in zip(projections, problem(name).matrix_layers, strict=True):
        for directions, size in zip(projection, layer.shape, strict=True):
            assert directions.shape == (size, min(2, size))
            near(directions.T @ directions, torch.eye(min(2, size), dtype=torch.float64))
    near(run(problem(name), method, 5), defined(name, projections, kind, damping))


@pytest.mark.parametrize("init", ["random", "pca"])
@pytest.mark.parametrize("name", ["ridge", "softmax"])
def test_with_nothing_projected_one_layer_is_the_influence_function(name, init):
    near(run(problem(name), LoGra(rank=50, init=init, damping=0.02)), answers(name).influence("ggn", 0.02))


def test_with_nothing_projected_the_fisher_is_dense_too():
    known, fitted = answers("softmax"), problem("softmax")
    fisher = known.train_gradients.T @ known.train_gradients / fitted.n_train + 0.05 * torch.eye(fitted.n_params, dtype=torch.float64)
    wanted = known.train_gradients @ torch.linalg.solve(fisher, known.test_gradients.T) / fitted.n_train
    near(run(fitted, LoGra(rank=50, init="random", curvature="fisher", damping=0.03)), wanted)  # λ = .02


def test_pca_takes_the_leading_eigenvectors():
    projections = LoGra(rank=2, init="pca")._projections(problem("mlp"), 0)
    for basis, projection in zip(
        eigenbases([problem("mlp")], "ggn", labels="empirical", corrected=False, seed=0), projections, strict=True
    ):
        values = basis.values.sum(0)  # of A, up to a factor
        assert values[-2:].min() >= values[:-2].max()
        assert (projection.of_inputs.T @ basis.inputs[:, :-2]).abs().max() < 1e-12


def test_higher_ranks_come_nearer():
    """To the block-diagonal influence function, here of two layers."""
    whole = run(problem("mlp"), LoGra(rank=50))
    errors = [(run(problem("mlp"), LoGra(rank=rank)) - whole).norm().item() for rank in (1, 2, 3, 4, 5)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-10 * whole.norm()  # no side has more than 5 dimensions


def test_seeds_blocks_types_and_whole_sets(monkeypatch):
    method, fitted = LoGra(rank=2, init="random"), problem("conv")
    whole = run(fitted, method, 1)
    assert torch.equal(run(fitted, method, 1), whole)
    assert not torch.equal(run(fitted, method, 2), whole)
    near(run(cast(fitted, torch.float32), method, 1).double(), whole, 1e-4)  # float32 through three layers
    near(run(replace(fitted, measurement=MeanLoss()), method, 1), whole.mean(1, keepdim=True))
    monkeypatch.setattr(stacking, "BLOCK_BYTES", 20_000)
    near(run(fitted, method, 1), whole)


def test_what_it_cannot_take_is_refused():
    fitted = problem("mlp")
    with pytest.raises(InfluxError, match=r"inverts ggn or fisher, not hessian: set method\.curvature=ggn"):
        LoGra(curvature="hessian").plan(fitted, None)
    with pytest.raises(InfluxError, match=r"method\.rank=16 takes .* lower method\.rank, or raise memory"):
        LoGra().plan(replace(fitted, memory=10_000), None)
    with pytest.raises(InfluxError, match=r"method\.init=svd is not possible: it must be one of pca, random"):
        LoGra(init="svd")
    bare = replace(problem("softmax"), weight_decay=0.0)
    with pytest.raises(NumericalError, match=r"projected curvature is singular: set method\.damping above 0"):
        run(bare, LoGra(rank=50, damping=0.0))  # softmax does not see a constant added to all classes
    assert LoGra().plan(fitted, None).nbytes > 0
