"""Models: exact sizes, the functions they compute, initialisation from the seed alone, and what they refuse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from problems import BatchNormNet, DropoutNet, experiment
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from influx.errors import InfluxError
from influx.models import Model, build
from influx.models.all_conv import AllConv
from influx.models.base import Shape, last_layer
from influx.models.conv_stack import ConvStack
from influx.models.densenet import DenseNet
from influx.models.lenet import LeNet
from influx.models.linear import Linear
from influx.models.logistic import Logistic
from influx.models.mlp import Mlp
from influx.models.resnet18 import ResNet18
from influx.models.vgg import Vgg

SMALL = Shape((1, 8, 8), 10, "classification")
TABULAR = Shape((13,), 3, "classification")
REGRESSION = Shape((13,), 1, "regression")
GREY = Shape((1, 28, 28), 10, "classification")
COLOUR = Shape((3, 32, 32), 10, "classification")

# Counts by hand: a convolution has (inputs x 3 x 3 + 1) x filters, a linear layer (inputs + 1) x outputs.
SIZES = {
    "linear": (Linear(), REGRESSION, 14),
    "linear, no bias": (Linear(bias=False), REGRESSION, 13),
    "logistic": (Logistic(), TABULAR, 42),
    "logistic, no bias": (Logistic(bias=False), TABULAR, 39),
    "mlp": (Mlp(depth=2, width=16), TABULAR, 14 * 16 + 17 * 16 + 17 * 3),
    "mlp, depth 0": (Mlp(depth=0, width=16), TABULAR, 42),
    "mlp 784-32-10": (Mlp(depth=1, width=32), GREY, 785 * 32 + 330),
    "lenet": (LeNet(), GREY, 61_706),
    "lenet, colour": (LeNet(), COLOUR, 76 * 6 + 151 * 16 + (16 * 36 + 1) * 120 + 121 * 84 + 850),  # 5x5 convolutions; 6x6 maps are left
    "all_conv": (AllConv(), GREY, 2_578),
    "all_conv, width 16": (AllConv(width=16), COLOUR, 28 * 16 + 4 * 145 * 16 + 17 * 16 + 170),
    "conv_stack": (ConvStack(), GREY, 10 * 16 + 145 * 16 + 145 * 32 + 289 * 32 + (32 * 49 + 1) * 128 + 1_290),
    "conv_stack, 3 blocks of 1": (ConvStack(3, 1, 4, 9), COLOUR, 28 * 4 + 37 * 8 + 73 * 16 + (16 * 16 + 1) * 9 + 100),
    "mlp with dropout": (Mlp(depth=2, width=16, dropout=0.5), TABULAR, 14 * 16 + 17 * 16 + 17 * 3),
    "resnet18": (ResNet18(), COLOUR, 11_173_962),  # torchvision's 11,689,512, less the stem's 7x7 and the 1000-class head
    "densenet": (DenseNet(), COLOUR, 176_122),  # torchvision's blocks with a stem of 3 x 3 (test_densenet.py)
    "vgg11": (Vgg(layers=11), COLOUR, 9_220_480 + 5_130),
    "vgg13": (Vgg(layers=13), COLOUR, 9_404_992 + 5_130),
    "vgg11 with batch norm": (Vgg(layers=11, batch_norm=True), COLOUR, 9_220_480 + 5_130 + 2 * 2_752),
}


@cache
def built(case: str) -> nn.Module:
    model, shape, _ = SIZES[case]
    return build(model, shape, 0)


def parameters(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


@pytest.mark.parametrize("case", SIZES)
def test_parameter_counts_and_output_shapes(case):
    _, shape, count = SIZES[case]
    module = built(case)
    assert sum(p.numel() for p in module.parameters()) == count
    with torch.no_grad():
        assert module(torch.randn(3, *shape.inputs)).shape == (3, shape.n_outputs)
    assert not module.training


# ------------------------------------------------------------------------------------------------------ what they compute


@pytest.mark.parametrize(
    ("name", "function"),
    [("relu", F.relu), ("tanh", torch.tanh), ("selu", F.selu), ("gelu", F.gelu), ("silu", F.silu), ("sigmoid", torch.sigmoid)],
)
def test_mlp_is_its_formula(name, function):
    module = build(Mlp(depth=2, width=5, activation=name), TABULAR, 0).double()
    w1, b1, w2, b2, w3, b3 = module.parameters()
    x = torch.randn(7, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    by_hand = function(function(x @ w1.T + b1) @ w2.T + b2) @ w3.T + b3
    assert_close(module(x), by_hand, rtol=1e-12, atol=1e-12)  # the same float64 sums, in another order


@pytest.mark.parametrize(
    ("model", "shape"), [(Mlp(depth=2, width=5), TABULAR), (ConvStack(width=2, units=6), GREY)], ids=["mlp", "conv_stack"]
)
def test_dropout_adds_its_layers_and_moves_no_initial_weight(model, shape):
    """Off, a network with dropout is the one without; with a share of 0 there is no such layer, so that names are as ever."""
    plain, dropped = build(model, shape, 3), build(replace(model, dropout=0.4), shape, 3)
    assert [name for name, _ in plain.named_parameters()] == [
        name for name, _ in build(replace(model, dropout=0.0), shape, 3).named_parameters()
    ]
    assert not any(isinstance(part, nn.Dropout) for part in plain)
    assert {part.p for part in dropped if isinstance(part, nn.Dropout)} == {0.4}
    x = torch.randn(3, *shape.inputs)
    assert torch.equal(dropped(x), plain(x))
    assert all(torch.equal(a, b) for a, b in zip(dropped.parameters(), plain.parameters(), strict=True))


def test_mlps_dropout_stands_behind_every_hidden_layer():
    module = build(Mlp(depth=2, width=400, activation="relu", dropout=0.25), TABULAR, 0).train()
    x = torch.randn(200, 13)
    seen: list[torch.Tensor] = []
    for part in module:
        if isinstance(part, nn.Dropout):
            part.register_forward_hook(lambda _, given, result: seen.append((result == 0)[given[0] > 0]))
    module(x)
    assert len(seen) == 2
    for zeros in seen:  # some 40,000 units in use: a standard error of 0.002
        assert zeros.double().mean().item() == pytest.approx(0.25, abs=0.012)


def test_a_conv_stack_is_its_formula():
    module = build(ConvStack(blocks=2, convolutions=1, width=3, units=5), GREY, 0).double()
    w1, b1, w2, b2, w3, b3, w4, b4 = module.parameters()
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    maps = x
    for weight, bias in ((w1, b1), (w2, b2)):
        maps = F.conv2d(F.pad(maps, (1, 1, 1, 1)), weight, bias).relu()
        maps = maps.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
    by_hand = F.linear(F.linear(maps.flatten(1), w3, b3).relu(), w4, b4)
    assert_close(module(x), by_hand, rtol=1e-12, atol=1e-12)  # the same float64 sums, in another order


def test_linear_models_are_affine():
    for model, shape in ((Linear(), REGRESSION), (Logistic(), TABULAR)):
        module = build(model, shape, 0).double()
        x = torch.randn(7, 13, dtype=torch.float64)
        weight, bias = module.parameters()
        assert_close(module(x), x @ weight.T + bias, rtol=1e-12, atol=1e-12)


def test_all_conv_ends_in_the_papers_convolution_and_mean():
    """The linear layer after the mean is a 1x1 convolution before it: the network as Koh & Liang have it."""
    module = build(AllConv(), GREY, 0).double()
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    maps = module[:-3](x)
    assert maps.shape == (2, 8, 7, 7)
    head = module[-1]
    assert_close(module(x), F.conv2d(maps, head.weight[:, :, None, None], head.bias).mean((2, 3)), rtol=1e-12, atol=1e-12)


def test_lenet_has_the_papers_maps():
    module = build(LeNet(), GREY, 0)
    sizes = [tuple(module[:k](torch.zeros(1, *GREY.inputs)).shape[1:]) for k in (1, 3, 4, 6, 7, 9, 11)]
    assert sizes == [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (400,), (120,), (84,)]


# ---------------------------------------------------------------------------------------------------------- initialisation


@pytest.mark.parametrize("case", ["linear", "mlp", "lenet", "all_conv"])
def test_initialisation_is_a_function_of_the_seed_alone(case):
    model, shape, _ = SIZES[case]
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = parameters(build(model, shape, 5))
    assert torch.equal(torch.random.get_rng_state(), before)  # and the global state is left as it was
    torch.manual_seed(2)
    again, other = parameters(build(model, shape, 5)), parameters(build(model, shape, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_both_number_types_start_alike():
    single, double = (parameters(experiment("conv", dtype).module(3)) for dtype in (torch.float32, torch.float64))
    assert all(torch.equal(single[name].double(), double[name]) for name in single)
    assert next(iter(double.values())).dtype == torch.float64


def test_initialisation_is_pytorchs_default():
    weight = build(Mlp(depth=1, width=400), TABULAR, 0)[1].weight
    bound = 13**-0.5  # Kaiming's uniform with a = sqrt(5) is U(±1/sqrt(fan_in)); 5,200 draws come within 1 % of it
    assert 0.99 * bound < weight.abs().max().item() <= bound


# -------------------------------------------------------------------------------------------------------------- last layer


@pytest.mark.parametrize(
    ("case", "names"),
    [
        ("linear", ("1.weight", "1.bias")),
        ("linear, no bias", ("1.weight",)),
        ("mlp", ("5.weight", "5.bias")),
        ("lenet", ("11.weight", "11.bias")),
        ("all_conv", ("14.weight", "14.bias")),
        ("resnet18", ("fc.weight", "fc.bias")),
        ("vgg11", ("3.weight", "3.bias")),
    ],
)
def test_last_layer_is_the_output_layer(case, names):
    module = built(case)
    assert last_layer(module) == names
    assert module.get_parameter(names[0]).shape[0] == SIZES[case][1].n_outputs


def test_last_layer_of_a_bare_module():
    assert last_layer(nn.Linear(3, 2)) == ("weight", "bias")


# ---------------------------------------------------------------------------------------------------------------- refusals


@dataclass(frozen=True)
class User(Model):
    """A user's model that makes whatever it is told."""

    made: nn.Module

    def module(self, shape):
        return self.made


SQUARE = nn.Linear(13, 13)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (LeNet(), TABULAR, r"model=lenet needs images; this data set has rows of 13 numbers\. Use model=mlp"),
        (AllConv(), TABULAR, r"model=all_conv needs images; .*model=mlp, or an image data set"),
        (ResNet18(), TABULAR, r"model=resnet18 needs images"),
        (Vgg(), TABULAR, r"model=vgg needs images"),
        (LeNet(), SMALL, r"model=lenet needs images of at least 14x14 pixels; these are 8x8\. Use model=mlp"),
        (ConvStack(), TABULAR, r"model=conv_stack needs images; .*model=mlp, or an image data set"),
        (ConvStack(blocks=4), SMALL, r"model=conv_stack needs images of at least 16x16 pixels; these are 8x8"),
        (AllConv(), Shape((1, 3, 9), 10, "classification"), r"model=all_conv needs images of at least 4x4 pixels; these are 3x9"),
        (ResNet18(), Shape((3, 7, 7), 10, "classification"), r"at least 8x8"),
        (Vgg(), GREY, r"model=vgg needs images of at least 32x32 pixels; these are 28x28"),
        (Linear(), TABULAR, r"model=linear is for regression; this data set is for classification\. Use model=logistic"),
        (Logistic(), REGRESSION, r"model=logistic is for classification; this data set is for regression\. Use model=linear"),
        (User(nn.Linear(4, 3)), TABULAR, r"User does not fit inputs of shape \(13,\): mat1 and mat2 shapes"),
        (User(nn.Linear(13, 5)), TABULAR, r"User gives outputs of shape \(5,\) an example; it must be \(3,\)"),
        (User(nn.Flatten(0)), TABULAR, r"User gives outputs of shape \(\) an example; it must be \(3,\)"),
        (User(nn.Identity()), GREY, r"User gives outputs of shape \(1, 28, 28\) an example; it must be \(10,\)"),
        (
            User(nn.Sequential(*2 * (SQUARE, nn.Tanh()), nn.Linear(13, 3))),
            TABULAR,
            r"User uses a parameter twice \(2\.bias\); tied weights are not supported",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused(model, shape, message):
    with pytest.raises(InfluxError, match=message):
        build(model, shape, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mlp(depth=-1), r"model\.depth=-1 is not possible: it must be a whole number of at least 0"),
        (lambda: Mlp(width=0), r"model\.width=0"),
        (lambda: Mlp(dropout=1.0), r"model\.dropout=1\.0 is not possible: it must be a number of at least 0 and below 1"),
        (lambda: ConvStack(blocks=0), r"model\.blocks=0 is not possible: it must be a whole number of at least 1"),
        (lambda: Mlp(activation="tahn"), r"model\.activation=tahn is not possible: it must be one of relu, tanh.*Did you mean 'tanh'"),
        (lambda: Vgg(layers=16), r"model\.layers=16 is not possible: it must be one of 11, 13"),
    ],
)
def test_a_wrong_option_is_refused(make, message):
    with pytest.raises(InfluxError, match=message):
        make()


def test_build_leaves_running_statistics_and_stochastic_layers_off():
    shape = Shape((1, 5, 5), 3, "classification")
    normed = build(BatchNormNet(), shape, 0)
    assert torch.equal(normed[1].running_mean, torch.zeros(2))
    assert normed[1].num_batches_tracked.item() == 0
    dropped = build(DropoutNet(), shape, 0)
    x = torch.randn(4, 1, 5, 5)
    assert torch.equal(dropped(x), dropped(x))
