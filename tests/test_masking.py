"""Turn-over dropout's masks: what the hash promises, and that a masked network is the network that a plain loop writes down."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from problems import NOTHING_KEPT, BatchNormNet, DropoutNet, experiment
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from influx import masking
from influx.errors import InfluxError
from influx.laboratory import masked_experiment
from influx.masking import MOST, MaskedNet, factors, find_sites, keeps, tickets
from influx.models import Model
from influx.models.all_conv import AllConv
from influx.models.base import Shape, build
from influx.models.lenet import LeNet
from influx.models.mlp import Mlp
from influx.seeding import derive
from influx.training.first_order import Sgd

MANY = 20_000
HIGH = torch.arange(MOST - MANY, MOST)  # the last places that float32 can tell apart


# -------------------------------------------------------------------------------------------------------------------- masks


def plain_mix(word: int) -> int:
    """The hash on Python's own integers."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        word = ((word ^ (word >> shift)) * factor) % 2**32
    return word ^ (word >> 15)


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.73])
def test_masks_are_the_integer_function_that_they_are_said_to_be(rate):
    index = [0, 1, 2, 255, 256, 65_535, 65_536, 1_234_567, MOST - 1]
    ours = keeps(torch.tensor(index), 37, rate, seed=5, layer=2)
    key = derive(5, "turn-over dropout", 2)
    wanted = [
        [plain_mix(plain_mix(i ^ key % 2**32) ^ plain_mix(unit ^ key >> 32)) >= round(rate * 2**32) for unit in range(37)] for i in index
    ]
    assert ours.tolist() == wanted


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.73])
def test_the_flipped_mask_is_the_complement_and_scales_are_exact(rate):
    own = tickets(np.arange(500)).float()
    one, other, none = factors(own, 33, rate, 0, 0), factors(-own, 33, rate, 0, 0), factors(0 * own, 33, rate, 0, 0)
    assert ((one > 0) ^ (other > 0)).all()
    assert set(one.unique().tolist()) == {0.0, torch.tensor(1 / (1 - rate)).item()}
    assert set(other.unique().tolist()) == {0.0, torch.tensor(1 / rate).item()}
    assert (none == 1).all()
    assert torch.equal(one > 0, keeps(torch.arange(500), 33, rate, 0, 0))


@pytest.mark.parametrize("index", [torch.arange(MANY), HIGH], ids=["low", "high"])
@pytest.mark.parametrize("rate", [0.5, 0.2])
def test_masks_are_balanced_and_independent(index, rate):
    kept = keeps(index, 64, rate, seed=0, layer=0).double()
    spread = math.sqrt(rate * (1 - rate))
    # five standard errors everywhere; the largest of 64 units and of 20,000 examples gets the usual √(2 log count) more
    assert abs(kept.mean() - (1 - rate)) < 5 * spread / math.sqrt(kept.numel())
    assert (kept.mean(0) - (1 - rate)).abs().max() < 8 * spread / math.sqrt(MANY)
    assert (kept.mean(1) - (1 - rate)).abs().max() < 8 * spread / math.sqrt(64)
    assert kept.mean(1).std().item() == pytest.approx(spread / math.sqrt(64), rel=0.03)  # binomial: 1/√(2·20,000) = 0.5 % noise
    centred = (kept - kept.mean(0)) / spread
    units = centred.T @ centred / MANY  # correlations of units
    assert (units - torch.eye(64)).abs().max() < 7 / math.sqrt(MANY)
    neighbours = (centred[:-1] * centred[1:]).mean(1)  # correlations of consecutive examples
    assert abs(neighbours.mean()) < 5 / math.sqrt(64 * MANY)
    assert neighbours.std().item() == pytest.approx(1 / math.sqrt(64), rel=0.05)


@pytest.mark.parametrize("index", [torch.arange(10 * MANY), HIGH, 64 * torch.arange(MANY)], ids=["low", "high", "sparse"])
def test_no_two_examples_share_a_mask(index):
    """2·10⁵ masks of 64 fair bits: a shared one has a chance of 1e-9."""
    kept = np.packbits(keeps(index, 64, 0.5, seed=1, layer=0).numpy(), axis=1).view(np.uint64)
    assert len(np.unique(kept)) == len(index)


def test_layers_and_seeds_have_masks_of_their_own():
    first = keeps(torch.arange(MANY), 32, 0.5, seed=0, layer=0)
    for seed, layer in ((0, 1), (1, 0), (2**40, 0)):
        agreement = (keeps(torch.arange(MANY), 32, 0.5, seed, layer) == first).double().mean().item()
        assert agreement == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(32 * MANY))
    assert torch.equal(keeps(torch.arange(MANY), 32, 0.5, seed=0, layer=0), first)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_masks_are_the_same_in_every_type_and_place(device):
    own = tickets(HIGH.numpy())
    wanted = keeps(HIGH, 16, 0.5, 3, 1)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(factors(own.to(device, dtype), 16, 0.5, 3, 1).cpu() > 0, wanted)


def test_a_place_beyond_what_float32_counts_is_refused():
    tickets(np.array([MOST - 1]))
    with pytest.raises(InfluxError, match=r"up to 16,777,216; this one has place 16,777,216: choose examples"):
        tickets(np.array([3, MOST]))


# -------------------------------------------------------------------------------------------------- where a network is masked

GREY = Shape((1, 28, 28), 10, "classification")
ROW = Shape((6,), 3, "classification")


@pytest.mark.parametrize(
    ("model", "shape", "wanted"),
    [
        (Mlp(depth=2, width=7), ROW, [("2", 7, False), ("4", 7, False)]),
        (LeNet(), GREY, [("1", 6, True), ("4", 16, True), ("8", 120, False), ("10", 84, False)]),
        (AllConv(width=5), GREY, [(str(at), 5, True) for at in (1, 3, 5, 7, 9, 11)]),
        (DropoutNet(), ROW, [("2", 6, False)]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Model) else "",
)
def test_every_hidden_activation_behind_a_weighted_layer_is_masked(model, shape, wanted):
    sites = find_sites(build(model, shape, 0), torch.zeros(1, *shape.inputs))
    assert [(site.name, site.units, site.channels) for site in sites] == wanted


class Twice(nn.Module):
    """A user's module that is no chain, calls one activation twice at different widths, and has one behind its output layer."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(features, 5), nn.Linear(5, 8), nn.Linear(8, outputs)
        self.act, self.last = nn.Tanh(), nn.Softplus()

    def forward(self, x):
        return self.last(self.out(self.act(self.two(self.act(self.act(self.one(x)))))))


@dataclass(frozen=True)
class TwiceModel(Model):
    def module(self, shape):
        return Twice(shape.n_features, shape.n_outputs)


def test_calls_of_one_activation_are_told_apart_and_outputs_stay_whole():
    """Its second call follows no weighted layer, its third does; what is behind the output layer is no hidden unit."""
    sites = find_sites(Twice(6, 3), torch.zeros(1, 6))
    assert [(site.name, site.call, site.units) for site in sites] == [("act", 0, 5), ("act", 2, 8)]


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.two(F.relu(self.one(x)))


@pytest.mark.parametrize("net", [nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), Functional(), nn.Sequential(nn.Linear(6, 3), nn.Tanh())])
def test_a_network_without_hidden_activations_is_refused(net):
    with pytest.raises(InfluxError, match="no hidden layer with an activation module behind it: use model=mlp"):
        find_sites(net, torch.zeros(1, 6))


def test_batch_normalisation_is_refused():
    shape = Shape((1, 8, 8), 3, "classification")
    with pytest.raises(InfluxError, match="batch normalisation mixes the examples of a batch"):
        find_sites(build(BatchNormNet(), shape, 0), torch.zeros(1, *shape.inputs))


# --------------------------------------------------------------------------------------------------------- masked networks


def net_of(model: Model, shape: Shape, rate: float = 0.3) -> MaskedNet:
    made = build(masking.Masked(model, shape.inputs, rate, seed=4), replace(shape, inputs=(shape.n_features + 1,)), 0)
    return made.double()


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def with_tickets(inputs: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    return torch.cat([inputs.flatten(1), own[:, None].to(inputs)], 1)


SHAPES = {
    "mlp": (Mlp(depth=2, width=7), ROW),
    "twice": (TwiceModel(), ROW),
    "lenet": (LeNet("relu"), Shape((1, 14, 14), 4, "classification")),
    "conv": (AllConv(width=3), Shape((2, 8, 8), 3, "classification")),
}
each_shape = pytest.mark.parametrize(("model", "shape"), SHAPES.values(), ids=SHAPES)


@each_shape
def test_a_ticket_of_zero_is_the_plain_network(model, shape):
    """Initial parameters, too, are those of the plain network with the same seed."""
    net, plain = net_of(model, shape), build(model, shape, 0).double()
    inputs = normal(4, *shape.inputs)
    assert_close(net(with_tickets(inputs, torch.zeros(4))), plain(inputs), rtol=0, atol=1e-14)  # the same sums from other strides
    assert {f"net.{name}" for name, _ in plain.named_parameters()} == {name for name, _ in net.named_parameters()}


def test_a_masked_mlp_is_what_a_plain_loop_writes_down():
    net, shape = net_of(*SHAPES["mlp"]), ROW
    inputs, index = normal(5, *shape.inputs), torch.tensor([0, 9, 9, 40, 7])
    ours = net(with_tickets(inputs, torch.tensor([1, 10, -10, 41, 0])))
    scales = [1 / 0.7, 1 / 0.7, 1 / 0.3, 1 / 0.7]
    for row in range(5):
        hidden = inputs[row]
        for layer, name in enumerate(("1", "3")):
            part = net.net.get_submodule(name)
            hidden = torch.tanh(part.weight @ hidden + part.bias)
            bits = keeps(index[row : row + 1], 7, 0.3, 4, layer)[0]
            if row < 4:
                hidden = hidden * (~bits if row == 2 else bits) * scales[row]
        wanted = net.net[5].weight @ hidden + net.net[5].bias
        assert_close(ours[row], wanted, rtol=0, atol=1e-14)  # the same sums in another order


def test_a_convolution_loses_whole_channels():
    model, shape = SHAPES["conv"]
    net = net_of(model, shape)
    seen = {}
    inputs = with_tickets(normal(2, *shape.inputs), torch.tensor([1.0, -1.0]))
    handle = net.net[2].register_forward_hook(lambda part, given, result: seen.update(given=given[0]))
    net(inputs)
    handle.remove()
    used = seen["given"].abs().sum((2, 3)) > 0  # [2, channels]
    assert torch.equal(used[0], keeps(torch.tensor([0]), 3, 0.3, 4, 0)[0])
    assert torch.equal(used[1], ~used[0])


@each_shape
def test_all_pairs_at_once_are_the_pairs_one_by_one(model, shape):
    net = net_of(model, shape)
    inputs = normal(3, *shape.inputs)
    own = torch.tensor([3.0, -3.0, 8.0, 0.0], dtype=torch.float64)
    pairs = net.after(net.before(with_tickets(inputs, own[:3])), own)  # tickets in the inputs do not matter to `before`
    for mask, ticket in enumerate(own):
        assert_close(pairs[mask], net(with_tickets(inputs, ticket.expand(3))), rtol=0, atol=1e-14)


@each_shape
def test_no_gradient_reaches_what_feeds_or_leaves_a_masked_unit(model, shape):
    """Exactly zero, in the weights of both layers around it and in the bias."""
    net = net_of(model, shape)
    inputs = with_tickets(normal(1, *shape.inputs), torch.tensor([12.0]))
    net(inputs).square().sum().backward()
    kept = keeps(torch.tensor([11]), net.sites[0].units, 0.3, 4, 0)[0]
    assert not kept.all()
    below, above = [part for part in net.modules() if isinstance(part, masking.WEIGHTED)][:2]
    assert (below.weight.grad[~kept] == 0).all()
    assert (below.bias.grad[~kept] == 0).all()
    assert (below.weight.grad[kept].flatten(1).abs().amax(1) > 0).any()
    if above.weight.shape[1] == len(kept):  # not behind a flattening
        assert (above.weight.grad[:, ~kept] == 0).all()


# --------------------------------------------------------------------------------------------------------- masked training


SGD = Sgd(lr=0.2, epochs=3, batch_size=None, momentum=0.0, weight_decay=0.01)


def test_training_under_masks_is_the_plain_loop_with_masks():
    """Full-batch gradient descent written out in torch, masks multiplied in by hand."""
    made = experiment("mlp", training=SGD)
    trained = masked_experiment(made, 0.4, 6).train(2, NOTHING_KEPT)
    first, _, last = made.module(2)[1:]
    params = [first.weight, first.bias, last.weight, last.bias]
    x, y = made.data.train_inputs, made.data.train_targets
    mask = keeps(torch.as_tensor(made.data.train_index), 4, 0.4, 6, 0).double() / 0.6
    for _ in range(3):
        outputs = F.linear(torch.tanh(F.linear(x, *params[:2])) * mask, *params[2:])
        objective = F.cross_entropy(outputs, y) + 0.005 * sum(p.square().sum() for p in params)
        gradients = torch.autograd.grad(objective, params)
        params = [(p - 0.2 * g).detach().requires_grad_(True) for p, g in zip(params, gradients, strict=True)]
    for ours, wanted in zip(trained.params.values(), params, strict=True):
        assert_close(ours, wanted.detach(), rtol=0, atol=1e-13)  # three steps of the same float64 sums in another order


def test_the_plain_model_is_not_touched_by_masked_training():
    made = experiment("mlp", training=SGD)
    before = made.train(0, NOTHING_KEPT).params
    inputs = made.data.train_inputs.clone()
    masked_experiment(made, 0.5, 0).train(0, NOTHING_KEPT)
    after = made.train(0, NOTHING_KEPT).params
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(made.data.train_inputs, inputs)


def test_test_examples_are_predicted_by_the_whole_network():
    made = experiment("conv", training=SGD)
    masked = masked_experiment(made, 0.5, 0)
    fitted = masked.problem(masked.train(0, NOTHING_KEPT), 0)
    plain = made.module(0)
    plain.load_state_dict({name.removeprefix("net."): value for name, value in fitted.params.items()})
    assert_close(fitted.outputs(fitted.theta, fitted.test.inputs), plain(made.data.test_inputs), rtol=0, atol=1e-14)


def test_what_is_stored_depends_on_all_that_masks_depend_on():
    made = experiment("mlp", training=SGD)
    variants = [masked_experiment(made, rate, seed) for rate, seed in ((0.5, 0), (0.4, 0), (0.5, 1))]
    variants += [masked_experiment(replace(made, model=Mlp(depth=2, width=4)), 0.5, 0), made]
    moved = replace(made.data, train_index=made.data.train_index[::-1].copy())
    variants.append(masked_experiment(replace(made, data=moved), 0.5, 0))
    keys = [str(variant.key(0)) for variant in variants]
    assert len(set(keys)) == len(keys)
    assert str(masked_experiment(made, 0.5, 0).key(0)) == keys[0]
