"""Products that touch only the vectors of words that occur: against dense float64 gradients and Hessians, and through methods."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from influx import word_products
from influx.curvature import Curvature
from influx.errors import InfluxError
from influx.estimators.grad_dot import GradDot
from influx.estimators.inverse_curvature import InverseCurvature
from influx.measurements.weat import Weat
from influx.models.skip_gram import WordVectors
from influx.objectives.skip_gram import SkipGram
from influx.problem import Examples, Problem
from influx.solvers import cg
from influx.solvers.cg import ConjugateGradient
from influx.solvers.exact import Exact
from influx.training.backprop import OneByOne, SideBySide
from influx.training.by_word import ByWord

DOCUMENTS, PAIRS, NEGATIVES, WORDS, WIDTH = 7, 9, 3, 11, 4
OBJECTIVE = SkipGram(window=2, negatives=NEGATIVES, min_count=1)
TESTS = {"one": {"X": ["a", "b"], "Y": ["c", "d"], "A": ["e", "f"], "B": ["g", "h"]}}


def windows(seed: int = 0) -> torch.Tensor:
    """Documents of unequal length, one empty, words more than once in a pair."""
    made = torch.randint(0, WORDS, (DOCUMENTS, PAIRS, 2 + NEGATIVES), generator=torch.Generator().manual_seed(seed))
    for document, length in enumerate((9, 5, 0, 7, 1, 9, 3)):
        made[document, length:] = -1
    return made


def fitted(dtype: torch.dtype = torch.float64) -> Problem:
    generator = torch.Generator().manual_seed(1)
    module = WordVectors(WORDS, WIDTH).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    inputs = windows()
    test = Examples(torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1, 2, 2, 3, 3]]), torch.tensor([0]))
    train = Examples(inputs, OBJECTIVE.targets(inputs).to(dtype), torch.arange(DOCUMENTS))
    params = {name: value.detach() for name, value in module.named_parameters()}
    return Problem(module, params, {}, train, test, OBJECTIVE, Weat(TESTS), weight_decay=0.01)


def dense_gradients(problem: Problem) -> torch.Tensor:
    """∇ℓ_i of one document after another, by autograd through the module."""
    leaf = problem.theta.clone().requires_grad_(True)
    losses = problem.losses(leaf, problem.train)
    return torch.stack([torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in losses])


def dense_curvature(problem: Problem, kind: str) -> torch.Tensor:
    """The mean of ∇²ℓ_i, or of J_iᵀ diag(∇²_f ℓ_i) J_i: a pair's loss is a sum of functions of one score each."""

    def total(theta: torch.Tensor) -> torch.Tensor:
        return problem.losses(theta, problem.train).sum()

    if kind == "hessian":
        return torch.autograd.functional.hessian(total, problem.theta) / problem.n_train

    def forward(theta: torch.Tensor) -> torch.Tensor:
        return problem.outputs(theta, problem.train.inputs).flatten()

    scores, jacobian = forward(problem.theta), torch.autograd.functional.jacobian(forward, problem.theta)
    weight = problem.train.targets.unsqueeze(2).expand(-1, -1, 1 + NEGATIVES).flatten()
    return jacobian.T @ ((weight * scores.sigmoid() * (-scores).sigmoid()).unsqueeze(1) * jacobian) / problem.n_train


@pytest.mark.parametrize("params", ["all", "centre.*", "context.*"])
def test_along_is_the_product_of_gradients_with_vectors(params: str) -> None:
    problem = fitted().select(params)
    vectors = torch.randn(problem.n_params, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    made = problem.along(vectors)
    assert_close(made, dense_gradients(problem) @ vectors, rtol=1e-11, atol=1e-13)  # sums in another order
    assert made[2].tolist() == [0, 0, 0]  # the empty document


@pytest.mark.parametrize("params", ["all", "centre.*", "context.*"])
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_curvature_is_that_of_dense_derivatives(kind: str, params: str) -> None:
    problem = fitted().select(params)
    vectors = torch.randn(problem.n_params, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = dense_curvature(problem, kind) @ vectors + (0.01 + 0.2) * vectors
    assert_close(Curvature(problem, kind, 0.2).matmat(vectors), expected, rtol=1e-10, atol=1e-12)
    batch = torch.tensor([5, 1])
    some = dense_curvature(replace(problem, train=problem.train.take(batch)), kind) @ vectors + 0.01 * vectors
    assert_close(Curvature(problem, kind, 0.0).matmat(vectors, batch), some, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_the_ways_for_any_module_give_the_same(kind: str) -> None:
    problem, other = fitted(), fitted()
    other.__dict__["words"] = None  # as of a module that is not known by hand
    vectors = torch.randn(problem.n_params, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    assert_close(problem.along(vectors), other.along(vectors), rtol=1e-11, atol=1e-13)
    assert_close(Curvature(problem, kind, 0.0).matmat(vectors), Curvature(other, kind, 0.0).matmat(vectors), rtol=1e-10, atol=1e-12)


def test_blocks_of_documents_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = fitted()
    vectors = torch.ones(problem.n_params, 1, dtype=torch.float64)
    whole = Curvature(problem, "hessian", 0.0).matmat(vectors), problem.along(vectors)
    monkeypatch.setattr(word_products, "BLOCK_BYTES", 1)
    assert_close(Curvature(problem, "hessian", 0.0).matmat(vectors), whole[0], rtol=1e-12, atol=1e-14)
    assert_close(problem.along(vectors), whole[1], rtol=1e-12, atol=1e-14)


def test_float32_agrees_to_its_rounding() -> None:
    problem, exact = fitted(torch.float32), fitted()
    vectors = torch.ones(problem.n_params, 1)
    for made, wanted in (
        (Curvature(problem, "ggn", 0.0).matmat(vectors), Curvature(exact, "ggn", 0.0).matmat(vectors.double())),
        (problem.along(vectors), exact.along(vectors.double())),
    ):
        assert made.dtype == torch.float32
        assert_close(made.double(), wanted, rtol=1e-4, atol=1e-5)  # sums of some hundred terms


@pytest.mark.parametrize("solver", [ConjugateGradient(tolerance=1e-12), Exact()])
def test_influence_on_weat_is_the_dense_formula(solver: ConjugateGradient | Exact) -> None:
    problem = fitted()
    method = InverseCurvature(solver, curvature="ggn", damping=0.1)
    leaf = problem.theta.clone().requires_grad_(True)
    gradient = torch.autograd.grad(problem.measure(leaf, problem.test).sum(), leaf)[0]
    matrix = dense_curvature(problem, "ggn") + 0.11 * torch.eye(problem.n_params, dtype=torch.float64)
    expected = dense_gradients(problem) @ torch.linalg.solve(matrix, gradient) / problem.n_train
    made = method.estimate(problem, None, 0).influence  # type: ignore[arg-type]  # it reads no record
    assert_close(made[:, 0], expected, rtol=1e-8, atol=1e-10)  # cg stops at a relative residual of 1e-12
    assert_close(GradDot().estimate(problem, None, 0).influence[:, 0], dense_gradients(problem) @ gradient)  # type: ignore[arg-type]


def test_no_gradient_of_a_document_is_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods with a WEAT column ask for no n x P gradients."""

    def refused(self: Problem, *_: object) -> None:
        raise AssertionError("a gradient a document was formed")

    problem = fitted()
    monkeypatch.setattr(Problem, "train_gradients", refused)
    monkeypatch.setattr(Problem, "train_rows", refused)
    for method in (GradDot(), InverseCurvature(ConjugateGradient(), damping=0.1)):
        assert torch.isfinite(method.estimate(problem, None, 0).influence).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("trainable", [("centre.weight", "context.weight"), ("context.weight",)])
def test_training_gradients_are_those_of_autograd(trainable: tuple[str, ...]) -> None:
    problem = fitted()
    params = {name: torch.stack([value, value.flip(0)]) for name, value in problem.params.items()}
    weights = torch.tensor([[1.0, 0, 1, 1, 0.5, 1, 1], [0, 1, 1, 2, 1, 1, 1]], dtype=torch.float64) / DOCUMENTS
    made = ByWord(problem.module, OBJECTIVE, trainable).gradients(params, {}, problem.train, weights)
    for way in (SideBySide, OneByOne):
        outputs, found = way(problem.module, OBJECTIVE, trainable).gradients(params, {}, problem.train, weights)
        assert_close(made[0], outputs, rtol=1e-12, atol=1e-13)
        assert list(found) == list(made[1])
        for name, gradient in found.items():
            assert_close(made[1][name], gradient, rtol=1e-11, atol=1e-13)  # sums in another order


def test_only_the_plain_module_has_a_way_of_its_own() -> None:
    class Other(WordVectors):
        pass

    assert word_products.fits(WordVectors(3, 2))
    assert not word_products.fits(Other(3, 2))
    assert not word_products.fits(nn.Linear(2, 2))
    hooked = WordVectors(3, 2)
    hooked.register_forward_hook(lambda *_: None)
    assert not word_products.fits(hooked)


def test_cg_has_directions_left_with_a_million_parameters_in_float32() -> None:
    """The bound on rounding, 10 P ε, is above 1 there, and would call every direction dependent on the first."""
    vectors = torch.randn(1_000_000, 2, generator=torch.Generator().manual_seed(0))
    basis = cg._orthonormal(vectors)
    assert basis.shape == vectors.shape
    gram = basis.T.double() @ basis.double()  # in float32 the sum of a million squares alone is off by 4e-4
    assert_close(gram, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-4)


def test_ddof_is_0_or_1() -> None:
    with pytest.raises(InfluxError, match=r"measurement\.ddof=2 is not possible"):
        Weat(TESTS, ddof=2)
