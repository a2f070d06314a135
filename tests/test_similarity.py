"""Gradient similarity against dense gradients of plain autograd; TracIn's products are the same ones and share these tests."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from problems import NAMES, TORCH_MEASURES, BatchNormNet, cast, experiment, flat_forward, problem, torch_loss
from torch import nn
from torch.autograd.functional import jacobian
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from influx.estimators.grad_cos import GradCos
from influx.estimators.grad_dot import GradDot
from influx.estimators.similarity import columns_of
from influx.gradients import _patches, find_layers
from influx.measurements import Loss, Margin, MeanLoss
from influx.models import Model
from influx.models.base import Shape
from influx.models.lenet import LeNet
from influx.problem import Problem

ROUNDING = {"rtol": 1e-11, "atol": 1e-13}  # float64: the same sums in another order


def dense_gradients(fitted: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """∇ℓ_i and ∇m_t over the selected parameters from plain autograd, an example at a time."""
    forward, theta = flat_forward(fitted)
    measure = TORCH_MEASURES[type(fitted.measurement).__name__]
    train = jacobian(lambda t: torch_loss(forward(t, fitted.train.inputs), fitted.train.targets), theta)
    test = jacobian(lambda t: measure(forward(t, fitted.test.inputs), fitted.test.targets), theta)
    return train, test.mean(0, keepdim=True) if fitted.measurement.whole_set else test


def products(fitted: Problem) -> torch.Tensor:
    train, test = dense_gradients(fitted)
    return train @ test.T


def cosines(fitted: Problem) -> torch.Tensor:
    train, test = dense_gradients(fitted)
    return train @ test.T / (train.norm(dim=1)[:, None] * test.norm(dim=1))


@pytest.mark.parametrize("params", ["all", "last_layer", "*.weight"])
@pytest.mark.parametrize("measurement", [Loss(), MeanLoss(), Margin()])
@pytest.mark.parametrize("name", NAMES)
def test_products_and_cosines_of_dense_gradients(name, measurement, params):
    if name == "ridge" and isinstance(measurement, Margin):
        pytest.skip("a margin needs classes")
    fitted = replace(problem(name), measurement=measurement)
    part = fitted.select(params)
    assert_close(GradDot(params).estimate(fitted, None, 0).influence, products(part), **ROUNDING)
    assert_close(GradCos(params).estimate(fitted, None, 0).influence, cosines(part), **ROUNDING)


@dataclass(frozen=True)
class LayerNormNet(Model):
    """A user's model whose gradients have to be taken as a whole."""

    def module(self, shape):
        return nn.Sequential(nn.Flatten(), nn.Linear(shape.n_features, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, shape.n_outputs))


@pytest.mark.parametrize("model", [BatchNormNet(), LayerNormNet()])
def test_modules_with_layers_of_another_kind(model):
    fitted = experiment("conv", model=model).untrained(0)
    assert_close(GradDot().estimate(fitted, None, 0).influence, products(fitted), **ROUNDING)
    assert_close(GradCos().estimate(fitted, None, 0).influence, cosines(fitted), **ROUNDING)


def test_a_margin_moves_the_other_way_than_a_loss():
    """The sign comes with the measurement's gradient, without a word about which way is better."""
    fitted = problem("softmax")
    as_loss = GradDot().estimate(fitted, None, 0).influence
    as_margin = GradDot().estimate(replace(fitted, measurement=Margin()), None, 0).influence
    assert (as_loss.sign() == -as_margin.sign()).all()  # d margin = −dℓ / (1 − p)


def test_a_gradient_step_on_one_example_moves_the_measurement_by_minus_the_product():
    """The first-order meaning of the score, by finite differences of the measurement itself."""
    fitted, step = problem("mlp"), 1e-6
    scores = GradDot().estimate(fitted, None, 0).influence
    for i in (0, 7, 20):
        (_, gradient), *_ = replace(fitted, train=fitted.train.take(slice(i, i + 1))).train_gradients()
        forth, back = (fitted.measure(fitted.theta + sign * step * gradient[0], fitted.test) for sign in (-1, 1))
        assert_close((forth - back) / (2 * step), -scores[i], rtol=1e-7, atol=1e-10)  # step² times the third derivative


def test_cosines_are_cosines():
    fitted = problem("mlp")
    own = GradCos().estimate(replace(fitted, test=fitted.train), None, 0).influence
    assert_close(own.diagonal(), torch.ones(36, dtype=torch.float64), **ROUNDING)
    assert own.abs().max() <= 1 + 1e-12
    assert torch.linalg.eigvalsh(0.5 * (own + own.T))[0] > -1e-12  # a Gram matrix


def test_a_zero_gradient_has_no_direction():
    """A regression that is exactly right on its training rows."""
    fitted = problem("ridge")
    exact = replace(fitted, train=replace(fitted.train, targets=fitted.outputs(fitted.theta, fitted.train.inputs)[:, 0].detach()))
    assert (GradCos().estimate(exact, None, 0).influence == 0).all()
    assert (GradDot().estimate(exact, None, 0).influence == 0).all()


@pytest.mark.parametrize("scale", [1e-22, 1e18])
def test_float32_knows_the_angle_of_tiny_and_of_huge_gradients(scale):
    """Inputs scaled so that squared norms leave float32's range (1e-45 to 3e38): the cosine is that of float64."""
    double = problem("ridge")
    scaled = replace(double.train, inputs=double.train.inputs * scale)
    weights_only = replace(double, train=scaled).select("*.weight")
    expected = GradCos("*.weight").estimate(weights_only, None, 0).influence
    single = GradCos("*.weight").estimate(cast(weights_only, torch.float32), None, 0).influence
    assert_close(single.double(), expected, rtol=0, atol=2e-5)  # float32 outputs, so residuals, at that scale
    assert single.abs().max() > 0.1


@pytest.mark.parametrize("method", [GradDot(), GradCos()])
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_memory_changes_no_number(method, name):
    """One test example at a time gives what all at once give."""
    fitted = problem(name)
    tight = replace(fitted, memory=2)  # bytes
    assert len(columns_of(tight)) == fitted.n_test
    assert_close(method.estimate(tight, None, 0).influence, method.estimate(fitted, None, 0).influence, **ROUNDING)
    assert method.plan(tight, None).nbytes < method.plan(fitted, None).nbytes
    assert method.plan(tight, None).gradients == fitted.n_train * fitted.n_test + fitted.n_test


def test_float32_is_close_to_float64():
    for name in NAMES:
        single = GradDot().estimate(cast(problem(name), torch.float32), None, 0).influence
        truth = products(problem(name))
        assert_close(single.double(), truth, rtol=1e-3, atol=1e-5 * truth.abs().max().item())


class Counted(TorchDispatchMode):
    """Counts what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_the_last_layer_needs_nothing_of_what_is_below_it_but_the_forward_pass():
    fitted = experiment("conv").untrained(0)
    fitted = replace(fitted, module=LeNet().module(Shape((1, 28, 28), 10, "classification")), params={}, buffers={}, selected=())
    params = {name: value.detach().double() for name, value in fitted.module.named_parameters()}
    images = torch.randn(12, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    examples = replace(fitted.train, inputs=images, targets=torch.arange(12) % 10, index=None)
    fitted = replace(fitted, params=params, train=examples, test=examples, selected=tuple(params))
    last = fitted.select("last_layer")
    assert last.layers is not None  # compared with autograd once, before anything is counted
    for method, backwards in ((GradDot("last_layer"), 0), (GradDot("all"), 4)):
        with Counted() as counted:
            method.estimate(fitted.select(method.params) if backwards else last, None, 0)
        below = counted.calls["convolution_backward"] + counted.calls["tanh_backward"] + counted.calls["avg_pool2d_backward"]
        assert (below > 0) == bool(backwards)
        assert counted.calls["convolution"] >= 2


@pytest.mark.parametrize("kernel", [(1, 1), (3, 2)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
def test_patches_are_those_of_unfold(padding, stride, dilation, kernel):
    """Copies, so equal to the bit; with a column of ones for a bias."""
    convolution = nn.Conv2d(3, 4, kernel, stride=stride, padding=padding, dilation=dilation)
    shapes = {name: value.shape for name, value in convolution.named_parameters()}
    x = torch.randn(5, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    unfolded = nn.functional.unfold(x, kernel, dilation, padding, stride).transpose(1, 2)
    ones = torch.ones(*unfolded.shape[:2], 1)
    expected = {("weight", "bias"): [unfolded, ones], ("weight",): [unfolded], ("bias",): [ones]}
    for names, parts in expected.items():
        (layer,) = find_layers(convolution, {name: shapes[name] for name in names})
        assert torch.equal(_patches(convolution, layer, x), torch.cat(parts, dim=2))
