"""Gradients of K models side by side, by hand, by vmap and one by one, against plain autograd on one model at a time."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from problems import torch_loss
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

from influx import stacking
from influx.errors import InfluxError
from influx.models.all_conv import AllConv
from influx.models.base import Shape
from influx.models.lenet import LeNet
from influx.models.mlp import Mlp
from influx.objectives import CrossEntropy, Objective, SquaredError, Supervised, weighted_slope
from influx.problem import Examples
from influx.training import kernels
from influx.training.backprop import Backprop, ByHand, OneByOne, SideBySide, backprop

MODELS, ROWS, FEATURES, CLASSES = 4, 11, 5, 3
ACTIVATIONS = ("relu", "tanh", "selu", "gelu", "silu", "sigmoid")
WAYS = (ByHand, SideBySide, OneByOne)
# float64: sums of a few dozen terms of size one. float32: the same, eps = 1.2e-7; tanh by hand is off by a rounding of 1.
WITHIN = {torch.float64: {"rtol": 1e-12, "atol": 1e-13}, torch.float32: {"rtol": 2e-5, "atol": 2e-6}}
each_type = pytest.mark.parametrize("dtype", WITHIN, ids=["float64", "float32"])


@dataclass(frozen=True)
class Power(Objective):
    """A user's objective: Σ_out |f − y|³ / 3."""

    def loss(self, outputs, targets):
        return (outputs - targets.unsqueeze(-1)).abs().pow(3).sum(-1) / 3


@dataclass(frozen=True)
class Smoothed(CrossEntropy):
    """A user's cross-entropy with another loss."""

    def loss(self, outputs, targets):
        return 0.9 * super().loss(outputs, targets) - 0.1 * outputs.log_softmax(-1).mean(-1)


@dataclass(frozen=True)
class Twice(Supervised):
    def loss(self, outputs, targets):
        return 2 * super().loss(outputs, targets)


@dataclass(frozen=True)
class Total(Objective):
    """Linear in the outputs: autograd's gradient is one number, expanded."""

    def loss(self, outputs, targets):
        return outputs.sum(-1) - targets


def torch_smoothed(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return 0.9 * F.cross_entropy(outputs, targets, reduction="none") - 0.1 * outputs.log_softmax(-1).mean(-1)


OBJECTIVES = {  # ours, and what torch has
    "cross-entropy": (CrossEntropy(), torch_loss),
    "squared error": (SquaredError(), torch_loss),
    "supervised labels": (Supervised(), torch_loss),
    "supervised numbers": (Supervised(), torch_loss),
    "power": (Power(), lambda outputs, targets: (outputs - targets[:, None]).abs().pow(3).sum(1) / 3),
    "smoothed": (Smoothed(), torch_smoothed),
    "twice": (Twice(), lambda outputs, targets: 2 * torch_loss(outputs, targets)),
    "total": (Total(), lambda outputs, targets: outputs.sum(1) - targets),
}
NUMBERS = ("squared error", "supervised numbers", "power")


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """The same numbers in both types, up to rounding."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def mlp(activation: str = "tanh", depth: int = 1, outputs: int = CLASSES, bias: bool = True) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        width = FEATURES if len(layers) == 1 else 4
        layers += [nn.Linear(width, 4, bias=bias), Mlp(depth=1, activation=activation).module(Shape((1,), 1, "regression"))[2]]
    return nn.Sequential(*layers, nn.Linear(4 if depth else FEATURES, outputs, bias=bias))


@dataclass
class Case:
    """K models of one module with weights of their own, a third of them 0, on one batch."""

    module: nn.Module
    params: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    batch: Examples
    weights: torch.Tensor

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.params)

    def ours(self, way: type[Backprop], objective: Objective = Supervised(), names=None):  # noqa: B008 - frozen
        buffers = {name: value.clone() for name, value in self.buffers.items()}
        outputs, found = way(self.module, objective, names or self.names).gradients(self.params, buffers, self.batch, self.weights)
        assert all(value.is_contiguous() for value in found.values())
        return outputs, found, buffers

    def plain(self, loss=torch_loss, names=None, dtype=None):
        """One nn.Module after another; rows of weight 0 are not fed to a module in training mode that mixes rows."""
        mixes = self.module.training and stacking.mixes_rows(self.module)
        outputs, found, buffers = [], [], []
        for k in range(len(self.weights)):
            module = copy.deepcopy(self.module).to(dtype or self.batch.inputs.dtype)
            module.load_state_dict({name: value[k] for name, value in {**self.params, **self.buffers}.items()})
            rows = self.weights[k].nonzero()[:, 0] if mixes else torch.arange(len(self.batch.inputs))
            inputs, targets, weights = self.batch.inputs[rows], self.batch.targets[rows], self.weights[k, rows]
            if dtype:
                inputs, weights = inputs.to(dtype), weights.to(dtype)
            result = module(inputs)
            parameters = dict(module.named_parameters())
            wanted = [parameters[name] for name in names or self.names]
            found.append(torch.autograd.grad((loss(result, targets) * weights).sum(), wanted))
            outputs.append(result.detach())
            buffers.append(dict(module.named_buffers()))
        gradients = dict(zip(names or self.names, map(torch.stack, zip(*found, strict=True)), strict=True))
        return outputs, gradients, {name: torch.stack([one[name] for one in buffers]) for name in self.buffers}


def case(module: nn.Module, dtype=torch.float64, shape=(FEATURES,), numbers: bool = False, scale: float = 0.7) -> Case:
    module = copy.deepcopy(module).to(dtype)
    params = {
        name: scale * draw(MODELS, *value.shape, seed=at, dtype=dtype) for at, (name, value) in enumerate(module.named_parameters(), 1)
    }
    buffers = stacking.stack(dict(module.named_buffers()), MODELS)
    targets = draw(ROWS, seed=50, dtype=dtype) if numbers else torch.arange(ROWS) % CLASSES
    weights = draw(MODELS, ROWS, seed=60, dtype=dtype).abs() / ROWS
    weights[:, ::3] *= (torch.arange(MODELS)[:, None] + torch.arange(ROWS)[None, ::3]) % 2  # zeros in other places for each model
    return Case(module, params, buffers, Examples(draw(ROWS, *shape, seed=70, dtype=dtype), targets), weights)


def assert_right(made: Case, way: type[Backprop], objective="supervised labels", names=None, within=None) -> None:
    within = within or WITHIN[made.batch.inputs.dtype]
    ours, loss = OBJECTIVES[objective]
    outputs, found, _ = made.ours(way, ours, names)
    wanted_outputs, wanted, _ = made.plain(loss, names)
    assert tuple(found) == (names or made.names)
    assert_close(outputs, torch.stack(wanted_outputs), **within)
    for name, value in wanted.items():
        assert_close(found[name], value, **within)
        assert value.abs().max() > 1e-4


# ------------------------------------------------------------------------------------------------------- chains, all ways


@each_type
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("depth", "bias"), [(0, True), (1, True), (2, False), (3, True)])
def test_every_way_is_plain_autograd(way, activation, depth, bias, dtype):
    assert_right(case(mlp(activation, depth, bias=bias), dtype), way)


@each_type
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_is_plain_autograd(way, objective, dtype):
    outputs = 1 if objective in NUMBERS else CLASSES
    assert_right(case(mlp(outputs=outputs), dtype, numbers=objective in NUMBERS), way, objective)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("names", [("5.weight", "5.bias"), ("3.bias",), ("1.weight",), ("5.bias", "1.bias"), ("1.weight", "3.weight")])
def test_a_part_of_the_parameters(way, names):
    assert_right(case(mlp(depth=2)), way, names=names)


@pytest.mark.parametrize("way", WAYS)
def test_images_are_flattened(way):
    assert_right(case(mlp(), shape=(1, FEATURES)), way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("weights", ["none", "alone", "half"])
def test_weights_of_zero_are_rows_that_do_not_count(way, weights):
    made = case(mlp())
    made.weights = torch.zeros(MODELS, ROWS, dtype=torch.float64)
    kept = {"none": [], "alone": [4], "half": range(0, ROWS, 2)}[weights]
    made.weights[:, list(kept)] = 1.0
    _, found, _ = made.ours(way)
    less = Case(made.module, made.params, {}, Examples(made.batch.inputs[kept], made.batch.targets[kept]), made.weights[:, kept])
    for name, value in found.items():
        assert_close(value, less.plain()[1][name] if len(kept) else torch.zeros_like(value), **WITHIN[torch.float64])


@pytest.mark.parametrize("way", WAYS)
def test_nothing_that_was_given_is_changed(way):
    made = case(mlp("silu", 2))
    before = copy.deepcopy((made.params, made.batch, made.weights))
    made.ours(way)
    assert_close(made.params, before[0], rtol=0, atol=0)
    assert torch.equal(made.batch.inputs, before[1].inputs)
    assert torch.equal(made.weights, before[2])


SHARED = nn.Tanh()


class Scaled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class Branches(nn.Module):
    """Not a Sequential; an activation used under two names, and a child that is None."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.act, self.two, self.again, self.skip = nn.Linear(FEATURES, 4), SHARED, nn.Linear(4, CLASSES), SHARED, None

    def forward(self, x):
        return self.again(self.two(self.act(self.one(x))))


def chain(*parts: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 4), *parts, nn.Linear(4, CLASSES))


UNUSUAL = {
    "one activation twice": chain(SHARED, nn.Linear(4, 4), SHARED),
    "a forward of its own": Scaled(*chain(nn.Tanh())),
    "not a chain": Branches(),
    "relu in place": chain(nn.ReLU(inplace=True)),
    "selu in place": chain(nn.SELU(inplace=True)),
    "silu in place": chain(nn.SiLU(inplace=True)),
    "gelu by tanh": chain(nn.GELU(approximate="tanh")),
    "two functions in a row": chain(nn.Tanh(), nn.Sigmoid()),
    "a function first": nn.Sequential(nn.Tanh(), *chain()),
    "a function last": nn.Sequential(*chain(nn.Tanh()), nn.Sigmoid()),
    "identity": chain(nn.Identity(), nn.Linear(4, 4)),
    "linear after linear": chain(nn.Linear(4, 4, bias=False)),
}


@pytest.mark.parametrize("side_by_side", [True, False])
@pytest.mark.parametrize("objective", ["cross-entropy", "total"])
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_modules_are_plain_autograd(name, objective, side_by_side):
    made = case(UNUSUAL[name])
    ours, loss = OBJECTIVES[objective]
    way = backprop(made.module, ours, made.names, side_by_side)
    outputs, found = way.gradients(made.params, {}, made.batch, made.weights)
    wanted_outputs, wanted, _ = made.plain(loss)
    assert_close(outputs, torch.stack(wanted_outputs), **WITHIN[torch.float64])
    assert_close(stacking.outputs(made.module, made.params, {}, made.batch.inputs), torch.stack(wanted_outputs), **WITHIN[torch.float64])
    assert_close(found, wanted, **WITHIN[torch.float64])


@pytest.mark.parametrize("name", UNUSUAL)
def test_one_by_one_runs_the_users_module_whatever_it_is(name):
    made = case(UNUSUAL[name])
    assert_close(made.ours(OneByOne)[1], made.plain()[1], **WITHIN[torch.float64])


def test_a_hooked_module_is_not_a_chain():
    module = chain(nn.Tanh())
    module[1].register_forward_hook(lambda _m, _i, out: 3 * out)
    made = case(module)
    found = backprop(made.module, CrossEntropy(), made.names, side_by_side=True).gradients(made.params, {}, made.batch, made.weights)[1]
    assert_close(found, made.plain()[1], **WITHIN[torch.float64])


def test_the_way_is_chosen_by_the_module():
    def chosen(module: nn.Module, side_by_side: bool) -> type[Backprop]:
        return type(backprop(module, CrossEntropy(), (), side_by_side))

    norm = nn.Sequential(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4))
    assert [chosen(mlp(), flag) for flag in (True, False)] == [ByHand, ByHand]
    assert [chosen(Branches(), flag) for flag in (True, False)] == [SideBySide, OneByOne]
    assert [chosen(norm, flag) for flag in (True, False)] == [OneByOne, OneByOne]


# -------------------------------------------------------------------------------------------------- objectives' closed forms


@pytest.mark.parametrize("objective", ["cross-entropy", "squared error", "smoothed", "twice", "power"])
def test_the_slope_is_autograds(objective):
    ours, loss = OBJECTIVES[objective]
    numbers = objective in NUMBERS
    outputs, weights = 5 * draw(MODELS, 1 if numbers else CLASSES, ROWS), draw(MODELS, ROWS, seed=1)
    targets = draw(ROWS, seed=2) if numbers else torch.arange(ROWS) % CLASSES
    leaf = outputs.clone().requires_grad_(True)
    total = sum((loss(leaf[k].T, targets) * weights[k]).sum() for k in range(MODELS))
    (wanted,) = torch.autograd.grad(total, leaf)
    kept = outputs.clone()
    assert_close(weighted_slope(ours, outputs, targets, weights), wanted, **WITHIN[torch.float64])
    assert torch.equal(outputs, kept)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("margin", [5.0, 16.0, 30.0, 80.0])
def test_the_labels_residual_keeps_its_digits_on_well_fitted_rows(way, margin):
    """p_y − 1 cancels in float32 (exactly 0 from a margin of 17 on); minus the sum of the other probabilities does not."""
    weight = margin * torch.eye(CLASSES, dtype=torch.float64)[None].repeat(MODELS, 1, 1)
    weight += 0.1 * draw(MODELS, CLASSES, CLASSES)
    module = nn.Sequential(nn.Linear(CLASSES, CLASSES, bias=False))
    rows = torch.eye(CLASSES, dtype=torch.float64)
    double = Case(
        module.double(), {"0.weight": weight.float().double()}, {}, Examples(rows, torch.arange(3)), torch.ones(MODELS, 3).double()
    )
    single = Case(
        copy.deepcopy(module).float(), {"0.weight": weight.float()}, {}, Examples(rows.float(), torch.arange(3)), torch.ones(MODELS, 3)
    )
    (ours,), (wanted,) = single.ours(way)[1].values(), double.ours(way)[1].values()
    # exp multiplies its argument's rounding, eps x margin, up to a hundredfold
    assert_close(ours.double(), wanted, rtol=2e-7 * max(margin, 10), atol=0)
    assert (ours.diagonal(dim1=1, dim2=2) < 0).all()


@pytest.mark.parametrize("way", WAYS)
def test_hopeless_rows_overflow_nowhere(way):
    made = case(mlp(depth=0), torch.float32, scale=300.0)
    _, found, _ = made.ours(way)
    assert_close(found, {name: value.float() for name, value in made.plain(dtype=torch.float64)[1].items()}, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------------------ convolutions

IMAGES = {
    "all_conv": (AllConv(width=2, activation="selu").module(Shape((1, 6, 6), CLASSES, "classification")), (1, 6, 6)),
    "lenet": (LeNet().module(Shape((1, 28, 28), CLASSES, "classification")), (1, 28, 28)),
    "pools": (
        nn.Sequential(
            nn.Conv2d(1, 2, 2), SHARED, nn.AvgPool2d(2), nn.Conv2d(2, 2, 2), SHARED, nn.AvgPool2d(2, 1), nn.Flatten(), nn.Linear(8, 3)
        ),
        (1, 10, 10),
    ),
    "odd sides": (nn.Sequential(nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, CLASSES)), (1, 5, 7)),
    "padded pool": (nn.Sequential(nn.AvgPool2d(2, padding=1), nn.Flatten(), nn.Linear(9, CLASSES)), (1, 5, 5)),
    "round up": (nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(9, CLASSES)), (1, 5, 5)),
}


@each_type
@pytest.mark.parametrize("way", [SideBySide, OneByOne])
@pytest.mark.parametrize("name", IMAGES)
def test_convolutions_and_pools_are_plain_autograd(name, way, dtype):
    module, shape = IMAGES[name]
    # float32: sums of hundreds of products
    within = WITHIN[dtype] if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    assert_right(case(module, dtype, shape, scale=0.3), way, within=within)


def test_stand_ins_leave_the_users_module_alone():
    module, shape = IMAGES["pools"]
    before = list(module)
    kernels.swift(module)
    case(module, shape=shape).ours(OneByOne)
    assert list(module) == before
    assert [type(part) for part in module][1:3] == [nn.Tanh, nn.AvgPool2d]


@each_type
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 7, 5), (64, 100, 33)])
@pytest.mark.parametrize("turned", [False, True])
def test_the_product_is_the_float64_product(dtype, size, turned):
    m, k, n = size
    left, right = draw(m, k), draw(k, n, seed=1)
    a, b = left.to(dtype), right.to(dtype)
    if turned:  # the same numbers with other strides
        a, b = a.T.contiguous().T, b.T.contiguous().T
    eps = torch.finfo(dtype).eps
    assert_close(kernels.product(a, b).double(), left @ right, rtol=0, atol=8 * eps * k**0.5 + eps)  # roundings of k terms add up as √k


@each_type
def test_the_fast_tanh_is_off_by_a_rounding_of_one(dtype):
    z = torch.cat([torch.linspace(-30, 30, 10_001, dtype=torch.float64), torch.tensor([1e-9, -1e-4, 700.0, -700.0], dtype=torch.float64)])
    assert_close(kernels.tanh_(z.to(dtype, copy=True)).double(), z.to(dtype).double().tanh(), rtol=0, atol=2 * torch.finfo(dtype).eps)


# -------------------------------------------------------------------------------------------- stochastic layers, statistics


class Noisy(nn.Sequential):
    def __init__(self, norm: bool = False) -> None:
        middle = [nn.BatchNorm1d(4)] if norm else []
        super().__init__(nn.Linear(FEATURES, 4), *middle, nn.Tanh(), nn.Dropout(0.4), nn.Linear(4, CLASSES), nn.Dropout(0.2))


def after(way: type[Backprop], made: Case, models: slice = slice(None)):
    """Outputs, gradients and the generator's next number, from one state of the global generator."""
    part = Case(
        made.module,
        {name: value[models] for name, value in made.params.items()},
        {name: value[models] for name, value in made.buffers.items()},
        made.batch,
        made.weights[models],
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        outputs, found, _ = part.ours(way)
        return outputs, found, torch.rand(1).item()


def test_dropout_draws_alike_in_all_models_and_all_ways():
    made = case(Noisy())
    one, other = after(OneByOne, made), after(SideBySide, made)
    for ours, theirs in zip(one[:2], other[:2], strict=True):
        assert_close(ours, theirs, **WITHIN[torch.float64])
    assert one[2] == other[2]
    dropped = one[0] == 0
    assert dropped.any()
    assert torch.equal(dropped, dropped[:1].expand_as(dropped))  # the last layer's mask, seen in the outputs


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("models", [slice(0, 1), slice(0, 2), slice(0, 3)])
def test_who_else_is_in_the_stack_does_not_move_a_models_draws(norm, models):
    made = case(Noisy(norm).train())
    made.weights[0] = 1.0  # the model that leaves nothing out
    whole, part = after(OneByOne, made), after(OneByOne, made, models)
    assert whole[2] == part[2]
    for name, value in part[1].items():
        assert torch.equal(whole[1][name][models], value)


NORMS = {
    "1d": (nn.Sequential(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, CLASSES)), (FEATURES,)),
    "2d": (nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, CLASSES)), (1, 3, 3)),
    "affine alone": (nn.Sequential(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)), (FEATURES,)),
}


@each_type
@pytest.mark.parametrize("name", NORMS)
def test_batch_statistics_are_of_the_rows_that_count(name, dtype):
    module, shape = NORMS[name]
    made = case(module.train(), dtype, shape)
    outputs, found, buffers = made.ours(OneByOne)
    wanted_outputs, wanted, wanted_buffers = made.plain()
    # a normalised value is a difference over a standard deviation: a digit or two are lost
    within = {"rtol": 1e-10, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    assert_close(found, wanted, **within)
    assert_close(buffers, wanted_buffers, **within)
    for k in range(MODELS):
        rows = made.weights[k].nonzero()[:, 0]
        assert_close(outputs[k, rows], wanted_outputs[k], **within)
        assert outputs[k].isnan().all(1).nonzero()[:, 0].tolist() == (made.weights[k] == 0).nonzero()[:, 0].tolist()
    if buffers:
        assert (buffers["1.running_mean"][0] - buffers["1.running_mean"][1]).abs().max() > 1e-3  # each model has its own


def test_in_evaluation_mode_running_statistics_are_used_and_kept():
    module, shape = NORMS["1d"]
    made = case(copy.deepcopy(module).eval(), shape=shape)
    made.buffers["1.running_mean"] += draw(MODELS, 4, seed=9)
    for way in (SideBySide, OneByOne):
        outputs, found, buffers = made.ours(way)
        assert_close(buffers, made.buffers, rtol=0, atol=0)
        wanted_outputs, wanted, _ = made.plain()
        assert_close(outputs, torch.stack(wanted_outputs), **WITHIN[torch.float64])
        assert_close(found, wanted, **WITHIN[torch.float64])


def test_a_batch_that_keeps_no_row_moves_nothing():
    module, shape = NORMS["1d"]
    made = case(module.train(), shape=shape)
    made.weights[1] = 0.0
    outputs, found, buffers = made.ours(OneByOne)
    assert all(not value[1].any() for value in found.values())
    assert all(torch.equal(value[1], made.buffers[name][1]) for name, value in buffers.items())
    assert outputs[1].isnan().all()
    assert outputs[0].isfinite().any()


def test_functional_call_sees_the_same_module():
    """The case table itself: what `plain` loads into a module is what the ways are given."""
    made = case(mlp())
    params = {name: value[2] for name, value in made.params.items()}
    assert_close(functional_call(made.module, params, (made.batch.inputs,)), made.plain()[0][2], rtol=0, atol=0)


def test_a_batch_that_keeps_one_row_is_refused_with_the_remedy():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3, 2), nn.BatchNorm1d(2)).double().train()
    params = {name: value.detach().unsqueeze(0) for name, value in module.named_parameters()}
    buffers = {name: value.unsqueeze(0).clone() for name, value in module.named_buffers()}
    way = backprop(module, CrossEntropy(), tuple(params), side_by_side=True)
    batch, weights = Examples(torch.ones(2, 3, dtype=torch.float64), torch.tensor([0, 1])), torch.tensor([[0.0, 0.5]], dtype=torch.float64)
    with pytest.raises(InfluxError, match=r"what is left of a batch has one row, .* choose another training\.batch_size"):
        way.gradients(params, buffers, batch, weights)
