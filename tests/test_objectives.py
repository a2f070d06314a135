"""Losses and measurements against torch's own in float64, and where torch's own loses digits, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from problems import torch_margin
from torch.func import grad, hessian, vmap
from torch.nn import functional as F
from torch.testing import assert_close

from influx.errors import InfluxError
from influx.measurements import LogProbability, Loss, Margin, MeanLoss
from influx.objectives import CrossEntropy, SquaredError, Supervised, log_odds

ROUNDING = {"rtol": 1e-12, "atol": 1e-12}  # sums of at most ten float64 terms of size one


def logits(*shape: int, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def labels(n: int, classes: int) -> torch.Tensor:
    return torch.arange(n) % classes


def own(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return CrossEntropy().loss(z, y)


def torchs(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(z, y, reduction="none")


# ---------------------------------------------------------------------------------------------------------- cross-entropy


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_cross_entropy_is_torchs_in_value_gradient_and_hessian(classes):
    z, y = logits(12, classes), labels(12, classes)
    assert_close(own(z, y), torchs(z, y), **ROUNDING)
    for derivative in (grad, hessian):
        ours = vmap(derivative(lambda a, b: own(a[None], b[None])[0]))(z, y)
        theirs = vmap(derivative(lambda a, b: torchs(a[None], b[None])[0]))(z, y)
        assert_close(ours, theirs, **ROUNDING)


@pytest.mark.parametrize("objective", [CrossEntropy(), Supervised()])
def test_k_models_side_by_side_are_k_models_one_by_one(objective):
    z, y = logits(5, 8, 3), labels(8, 3)
    separately = torch.stack([objective.loss(one, y) for one in z])
    assert_close(objective.loss(z, y), separately, **ROUNDING)  # vectorised exp and log differ by a rounding with the tensor's length
    assert_close(vmap(lambda one: objective.loss(one, y))(z), separately, **ROUNDING)
    assert_close(separately, torch.stack([torchs(one, y) for one in z]), **ROUNDING)


@pytest.mark.parametrize("worse", [5.0, 21.0, 49.0, 51.0, 700.0])
def test_badly_fitted_rows_are_torchs_too(worse):
    z, y = torch.tensor([[0.0, worse, worse - 1.0]], dtype=torch.float64), torch.tensor([0])
    for derivative in (lambda f: f, grad, hessian):
        ours, theirs = (derivative(lambda a, f=f: f(a, y)[0])(z) for f in (own, torchs))
        inherited = 1e-15 + 2.3e-16 * worse  # a log-sum-exp is rounded by eps x its size, which is its exponential's relative error
        assert_close(ours, theirs, rtol=inherited, atol=inherited)


def test_backward_mode_gives_the_same_gradient_as_func():
    z, y = logits(6, 4).requires_grad_(True), labels(6, 4)
    ours = torch.autograd.grad(own(z, y).sum(), z)[0]
    assert_close(ours, torch.autograd.grad(torchs(z, y).sum(), z)[0], **ROUNDING)


def test_second_derivative_matches_finite_differences():
    z, y = logits(4), torch.tensor(2)
    gradient = grad(lambda a: own(a[None], y[None])[0])
    step = 1e-5 * torch.eye(4, dtype=torch.float64)
    central = torch.stack([(gradient(z + e) - gradient(z - e)) / 2e-5 for e in step])
    # truncation h²/6 · f'''' ≈ 2e-11, rounding eps/h ≈ 2e-11
    assert_close(hessian(lambda a: own(a[None], y[None])[0])(z), central, rtol=0, atol=1e-9)


def test_float32_gradient_survives_on_well_fitted_rows():
    """p_y within 1e-9 of 1: torch's p_y − 1 is exactly 0 in float32, and the row would have no influence at all."""
    z = logits(20, 10, scale=1.0, dtype=torch.float32)
    y = labels(20, 10)
    z[torch.arange(20), y] += 27.0
    assert (1 - z.double().softmax(-1).gather(1, y[:, None])).max() < 1e-9

    def label_gradient(loss, at):
        gradient = grad(lambda a: loss(a, y).sum())(at)
        return gradient, gradient.gather(1, y[:, None])[:, 0]

    full, ours = label_gradient(own, z)
    _, usual = label_gradient(torchs, z)
    assert (usual == 0).all()  # the trap is real
    truth = -z.double().softmax(-1).scatter(1, y[:, None], 0.0).sum(1)  # p_y − 1 without the subtraction
    # a log-odds between 16 and 32 is rounded by at most 2^-20, which is the relative error of its exponential; two such roundings
    assert_close(ours.double(), truth, rtol=2 * 2**-20, atol=0)
    others = full.sum(1) - ours
    assert_close(ours, -others, rtol=2 * 2**-20, atol=0)


def test_float32_curvature_survives_on_well_fitted_rows():
    z, y = torch.tensor([27.0, 0.5, -1.0, 0.25]), torch.tensor(0)
    p = z.double().softmax(-1)
    others = p[1:].sum()
    truth = torch.diag(p) - torch.outer(p, p)
    truth[0, 0] = p[0] * others  # p(1 − p) without the subtraction
    ours = hessian(lambda a: own(a[None], y[None])[0])(z)
    # the log-odds' rounding as above; the second term is the product of two such probabilities, about 1e-22
    assert_close(ours.double(), truth, rtol=3 * 2**-20, atol=1e-18)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_extreme_logits_have_finite_derivatives(dtype, label):
    z, y = torch.tensor([1e4, 0.0, -1e4], dtype=dtype), torch.tensor(label)
    one = lambda a: own(a[None], y[None])[0]  # noqa: E731
    expected = torch.tensor([1.0, 0.0, 0.0], dtype=dtype) - F.one_hot(y, 3).to(dtype)  # softmax is exactly (1, 0, 0) here
    assert one(z).item() == 1e4 - z[label].item()
    assert torch.equal(grad(one)(z), expected)
    assert torch.equal(hessian(one)(z), torch.zeros(3, 3, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_extreme_logits_are_uniform(dtype):
    z = torch.full((1, 4), -1e4, dtype=dtype)
    y = torch.tensor([3])
    eps = torch.finfo(dtype).eps
    assert own(z, y).item() == pytest.approx(math.log(4), abs=1e4 * eps)  # the logits themselves are known to 1e4 eps
    p = torch.full((4,), 0.25, dtype=dtype)
    # probabilities inherit that error as a relative one
    assert_close(hessian(lambda a: own(a[None], y)[0])(z[0]), torch.diag(p) - torch.outer(p, p), rtol=0, atol=2e4 * eps)


# ---------------------------------------------------------------------------------------------------------- squared error


def test_squared_error_is_half_the_square():
    f, y = torch.tensor([[3.0], [-1.0]], dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64)
    loss = SquaredError().loss
    assert loss(f, y).tolist() == [2.0, 1.125]
    assert torch.equal(grad(lambda a: loss(a, y).sum())(f), f - y[:, None])
    assert torch.equal(hessian(lambda a: loss(a, y).sum())(f).reshape(2, 2), torch.eye(2, dtype=torch.float64))
    assert torch.equal(loss(torch.stack([f, 2 * f]), y), torch.stack([loss(f, y), loss(2 * f, y)]))


def test_supervised_follows_the_targets():
    z, y = logits(6, 3), labels(6, 3)
    assert torch.equal(Supervised().loss(z, y), own(z, y))
    numbers = logits(6)
    assert torch.equal(Supervised().loss(z[:, :1], numbers), SquaredError().loss(z[:, :1], numbers))


# ----------------------------------------------------------------------------------------------------------- measurements


def test_measurements_of_a_classifier():
    z, y = logits(9, 4), labels(9, 4)
    objective = CrossEntropy()
    assert_close(Loss().value(z, y, objective), torchs(z, y), **ROUNDING)
    assert_close(MeanLoss().value(z, y, objective), torchs(z, y), **ROUNDING)  # its mean over the set is taken by the problem
    assert_close(LogProbability().value(z, y, objective), z.log_softmax(-1).gather(1, y[:, None])[:, 0], **ROUNDING)
    # 1 − p loses at most log10(1/(1 − p)) digits; p stays below 1 - 1e-4 here
    assert_close(Margin().value(z, y, objective), torch_margin(z, y), rtol=1e-9, atol=1e-9)
    assert [MeanLoss.whole_set, Loss.whole_set, Margin.whole_set, LogProbability.whole_set] == [True, False, False, False]


def test_margin_of_two_classes_is_the_difference_of_logits():
    z = logits(7, 2)
    assert torch.equal(log_odds(z, torch.zeros(7, dtype=torch.long)), z[:, 0] - z[:, 1])


def test_loss_is_a_function_of_the_margin():
    z, y = logits(9, 5), labels(9, 5)
    assert_close(own(z, y), F.softplus(-Margin().value(z, y, CrossEntropy())), **ROUNDING)


@pytest.mark.parametrize("measurement", [Loss(), Margin(), LogProbability()])
def test_measurements_of_k_models(measurement):
    z, y = logits(4, 6, 3), labels(6, 3)
    separately = torch.stack([measurement.value(one, y, CrossEntropy()) for one in z])
    assert_close(measurement.value(z, y, CrossEntropy()), separately, **ROUNDING)


def test_measurements_of_a_regression():
    f, y = logits(5, 1), logits(5, scale=1.0)
    assert torch.equal(Loss().value(f, y, SquaredError()), 0.5 * (f[:, 0] - y) ** 2)
    assert torch.equal(LogProbability().value(f, y, SquaredError()), -0.5 * (f[:, 0] - y) ** 2)


def test_margin_refuses_numbers_as_targets():
    with pytest.raises(InfluxError, match=r"measurement=margin needs class labels; on a regression data set use measurement=loss"):
        Margin().value(logits(5, 1), logits(5), SquaredError())
