"""Networks under turn-over dropout's masks: which layers are masked, and that each row is what a plain loop writes down."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from problems import NOTHING_KEPT, BatchNormNet, DropoutNet, experiment
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from influx import masking
from influx.errors import InfluxError
from influx.laboratory import masked_experiment
from influx.masking import MaskedNet, find_sites
from influx.masks import Masks, by_integers
from influx.models import Model
from influx.models.all_conv import AllConv
from influx.models.base import Shape, build
from influx.models.conv_stack import ConvStack
from influx.models.lenet import LeNet
from influx.models.mlp import Mlp
from influx.training.first_order import Sgd

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


@pytest.mark.parametrize(("layers", "wanted"), [(None, [0, 1, 2]), ([1, 3], [0, 2]), ((2,), [1])])
def test_the_layers_with_the_numbers_asked_for_are_masked(layers, wanted):
    sites = find_sites(build(Mlp(depth=3, width=7), ROW, 0), torch.zeros(1, 6), layers)
    assert [site.layer for site in sites] == wanted


def test_a_number_beyond_the_last_hidden_layer_is_refused():
    with pytest.raises(InfluxError, match=r"method\.sites asks for hidden layer 4, and this model has 2 .* from 1 to 2, or .*sites=null"):
        find_sites(build(Mlp(depth=2), ROW, 0), torch.zeros(1, 6), [1, 4])


class Block(nn.Module):
    """A transformer's: attention among tokens, then a hidden layer for each, both with what they were given added."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.mix, self.up, self.act, self.down, self.norm = nn.Linear(4, 12), nn.Linear(4, 7), act, nn.Linear(7, 4), nn.LayerNorm(4)

    def forward(self, x):
        query, key, value = self.mix(self.norm(x)).chunk(3, dim=-1)
        x = x + (query @ key.mT).softmax(-1) @ value
        return x + self.down(self.act(self.up(x)))


class GELUActivation(nn.Module):
    """As the transformers library has it: a module around the function."""

    def forward(self, x):
        return F.gelu(x)


@dataclass(frozen=True)
class Transformer(Model):
    """Three tokens of four numbers, two blocks, and the mean over tokens."""

    act: type[nn.Module] = nn.GELU
    ready: bool = False  # a chain: one hidden layer for each token, so that what comes before the first mask can be shared

    def module(self, shape):
        blocks = [nn.Linear(4, 7), self.act(), nn.Linear(7, 4)] if self.ready else [Block(self.act()), Block(self.act())]
        return nn.Sequential(nn.Unflatten(1, (3, 4)), *blocks, nn.Flatten(), nn.Linear(12, shape.n_outputs))


TOKENS = Shape((12,), 3, "classification")


@pytest.mark.parametrize("act", [nn.GELU, GELUActivation])
def test_a_transformers_hidden_units_are_masked_alike_for_all_tokens(act):
    sites = find_sites(build(Transformer(act), TOKENS, 0), torch.zeros(1, 12))
    assert [(site.name, site.units, site.channels) for site in sites] == [("1.act", 7, False), ("2.act", 7, False)]
    net = net_of(Transformer(act), TOKENS)
    seen = []
    for block in (net.net[1], net.net[2]):
        block.down.register_forward_pre_hook(lambda _, given: seen.append(given[0] != 0))
    net(with_tickets(normal(2, 12), torch.tensor([5.0, -5.0])))
    for layer, used in enumerate(seen):  # [2, tokens, units]
        kept = by_integers(torch.tensor([4]), 7, 0.3, 4, layer)[0]
        assert torch.equal(used, torch.stack([kept, ~kept]).unsqueeze(1).expand(2, 3, 7))


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
    made = build(masking.Masked(model, shape.inputs, Masks(rate), seed=4), replace(shape, inputs=(shape.n_features + 1,)), 0)
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
    "conv stack": (ConvStack(width=3, units=5, dropout=0.5), Shape((1, 8, 8), 3, "classification")),
    "transformer": (Transformer(), TOKENS),
    "tokens": (Transformer(ready=True), TOKENS),
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
            bits = by_integers(index[row : row + 1], 7, 0.3, 4, layer)[0]
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
    assert torch.equal(used[0], by_integers(torch.tensor([0]), 3, 0.3, 4, 0)[0])
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
    kept = by_integers(torch.tensor([11]), net.sites[0].units, 0.3, 4, 0)[0]
    assert not kept.all()
    weighted = [part for part in net.modules() if isinstance(part, masking.WEIGHTED)]
    below, above = next((one, other) for one, other in pairwise(weighted) if len(one.weight) == len(kept))
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
    trained = masked_experiment(made, Masks(0.4), 6).train(2, NOTHING_KEPT)
    first, _, last = made.module(2)[1:]
    params = [first.weight, first.bias, last.weight, last.bias]
    x, y = made.data.train_inputs, made.data.train_targets
    mask = by_integers(torch.as_tensor(made.data.train_index), 4, 0.4, 6, 0).double() / 0.6
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
    masked_experiment(made, Masks(), 0).train(0, NOTHING_KEPT)
    after = made.train(0, NOTHING_KEPT).params
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(made.data.train_inputs, inputs)


def test_test_examples_are_predicted_by_the_whole_network():
    made = experiment("conv", training=SGD)
    masked = masked_experiment(made, Masks(), 0)
    fitted = masked.problem(masked.train(0, NOTHING_KEPT), 0)
    plain = made.module(0)
    plain.load_state_dict({name.removeprefix("net."): value for name, value in fitted.params.items()})
    assert_close(fitted.outputs(fitted.theta, fitted.test.inputs), plain(made.data.test_inputs), rtol=0, atol=1e-14)


def test_what_is_stored_depends_on_all_that_masks_depend_on():
    made = experiment("mlp", training=SGD)
    variants = [masked_experiment(made, Masks(rate), seed) for rate, seed in ((0.5, 0), (0.4, 0), (0.5, 1))]
    variants += [masked_experiment(replace(made, model=Mlp(depth=2, width=4)), Masks(), 0), made]
    moved = replace(made.data, train_index=made.data.train_index[::-1].copy())
    variants.append(masked_experiment(replace(made, data=moved), Masks(), 0))
    keys = [str(variant.key(0)) for variant in variants]
    assert len(set(keys)) == len(keys)
    assert str(masked_experiment(made, Masks(), 0).key(0)) == keys[0]
