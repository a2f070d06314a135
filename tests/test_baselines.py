"""Baselines against scikit-learn and plain autograd."""

from __future__ import annotations

from dataclasses import replace

import problems as P
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from torch.testing import assert_close

from influx.errors import InfluxError
from influx.estimators.gradient_norm import GradientNorm
from influx.estimators.loss import Loss
from influx.estimators.nearest import Nearest
from influx.estimators.random import Random
from influx.measurements import LogProbability, Margin, MeanLoss
from influx.problem import Examples, Problem


def scores(method, problem: Problem, seed: int = 0) -> torch.Tensor:
    method.plan(problem, None)
    return method.estimate(problem, None, seed).influence


BASELINES = (Random(), Loss(), GradientNorm(), Nearest(), Nearest(space="inputs", labels="ignored"))


@pytest.mark.parametrize("method", BASELINES, ids=repr)
@pytest.mark.parametrize("name", P.NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_baseline_fills_every_matrix_and_claims_no_scale(method, name: str, dtype: torch.dtype) -> None:
    problem = P.problem(name, dtype)
    for measurement, columns in ((problem.measurement, P.N_TEST), (MeanLoss(), 1)):
        found = scores(method, replace(problem, measurement=measurement))
        assert found.shape == (problem.n_train, columns)
        assert found.dtype == dtype
        assert found.is_contiguous()
        assert found.isfinite().all()
    assert not method.calibrated


@pytest.mark.parametrize("method", BASELINES[1:], ids=repr)
def test_what_helps_lowers_a_measurement_that_should_be_high(method) -> None:
    problem = P.problem("softmax")
    for measurement in (LogProbability(), Margin()):
        assert torch.equal(scores(method, replace(problem, measurement=measurement)), -scores(method, problem))


def test_random_scores_are_standard_normal_and_the_seeds_alone() -> None:
    problem = P.problem("softmax")
    many = torch.cat([scores(Random(), problem, seed).flatten() for seed in range(100)])  # 27,000 numbers
    assert many.mean().abs() < 4 / len(many) ** 0.5
    assert (many.square().mean() - 1).abs() < 4 * (2 / len(many)) ** 0.5  # the variance of z² is 2
    assert torch.equal(scores(Random(), problem), scores(Random(), replace(problem, measurement=Margin())))
    assert not torch.equal(scores(Random(), problem), scores(Random(), problem, seed=1))


@pytest.mark.parametrize("name", P.NAMES)
def test_the_loss_is_torchs(name: str) -> None:
    problem = P.problem(name)
    forward, theta = P.flat_forward(problem)
    losses = P.torch_loss(forward(theta, problem.train.inputs), problem.train.targets)
    assert_close(scores(Loss(), problem), losses.unsqueeze(1).expand(-1, P.N_TEST), rtol=1e-9, atol=1e-12)  # two forms of one loss


@pytest.mark.parametrize("params", ["all", "last_layer"])
@pytest.mark.parametrize("name", ["ridge", "mlp", "conv"])
def test_the_gradient_norm_is_autograds(name: str, params: str) -> None:
    problem = P.problem(name)
    norms = P.dense(problem.select(params)).train_gradients.norm(dim=1)
    assert_close(scores(GradientNorm(params=params), problem)[:, 0], norms, rtol=1e-9, atol=1e-12)  # float64 both


def features(problem: Problem, examples: Examples) -> torch.Tensor:
    """What enters the last linear layer, caught by a hook."""
    caught = []
    last = [part for part in problem.module.modules() if isinstance(part, torch.nn.Linear)][-1]
    handle = last.register_forward_hook(lambda _m, inputs, _o: caught.append(inputs[0]))
    problem.outputs(problem.theta, examples.inputs)
    handle.remove()
    return caught[0].detach()


@pytest.mark.parametrize("space", ["inputs", "features"])
@pytest.mark.parametrize("labels", ["signed", "ignored"])
@pytest.mark.parametrize("name", ["mlp", "softmax", "ridge"])
def test_nearest_is_scikit_learns_cosine(name: str, labels: str, space: str) -> None:
    problem = P.problem(name)
    train, test = ((part.inputs if space == "inputs" else features(problem, part)).flatten(1) for part in (problem.train, problem.test))
    expected = torch.from_numpy(cosine_similarity(train, test))
    if labels == "signed" and name != "ridge":
        expected *= 2.0 * (problem.train.targets.unsqueeze(1) == problem.test.targets) - 1
    method = Nearest(space=space, labels=labels)
    assert_close(scores(method, problem), expected, rtol=0, atol=1e-14)  # rounding
    whole = scores(method, replace(problem, measurement=MeanLoss()))
    assert_close(whole, expected.mean(1, keepdim=True), rtol=0, atol=1e-14)


def test_an_example_without_direction_is_near_nothing() -> None:
    problem = P.problem("softmax")
    inputs = problem.train.inputs.clone()
    inputs[3] = 0
    found = scores(Nearest(space="inputs"), replace(problem, train=replace(problem.train, inputs=inputs)))
    assert torch.equal(found[3], torch.zeros(P.N_TEST, dtype=torch.float64))
    assert (found[[2, 4]] != 0).all()


def test_a_tiny_vector_keeps_its_direction_in_float32() -> None:
    problem = P.problem("softmax", torch.float32)
    tiny = replace(problem.train, inputs=problem.train.inputs * 1e-15)  # squares of 1e-30 are normal numbers; an ε of 1e-12 would count
    assert_close(scores(Nearest(space="inputs"), replace(problem, train=tiny)), scores(Nearest(space="inputs"), problem), rtol=0, atol=1e-6)


def test_a_wrong_space_is_refused() -> None:
    with pytest.raises(InfluxError, match=r"method\.space=input is not possible.*Did you mean 'inputs'\?"):
        Nearest(space="input")
    with pytest.raises(InfluxError, match=r"method\.labels=sign is not possible"):
        Nearest(labels="sign")
