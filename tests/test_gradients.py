"""Per-example gradients, layer by layer, against one backward pass an example in float64; and what falls back to `vmap(grad)`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from problems import NOTHING_KEPT, Prediction, cast, dense, experiment, problem
from scipy.stats import spearmanr
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

from influx import gradients, stacking
from influx.errors import InfluxError
from influx.estimators.inverse_curvature import InverseCurvature
from influx.gradients import Layer, Rows
from influx.measurements import Loss, Margin, MeanLoss
from influx.models.mlp import Mlp
from influx.objectives import Supervised
from influx.problem import Examples, Problem
from influx.solvers.exact import Exact
from influx.training.first_order import Adam

N, TESTS, CLASSES = 7, 4, 3
ROUNDING = {"rtol": 0, "atol": 1e-12}  # float64 sums of a few hundred products of size one


# ----------------------------------------------------------------------------------------------------------------- modules


class Twice(nn.Module):
    """One linear layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.last(torch.tanh(self.shared(torch.tanh(self.shared(self.first(x))))))


class Mean(nn.Module):
    """[rows, places, features] -> [rows, features]."""

    def forward(self, x):
        return x.mean(1)


class Scaled(nn.Module):
    """A parameter of no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(5, CLASSES), nn.Parameter(torch.tensor(1.3))

    def forward(self, x):
        return self.scale * self.layer(x)


class Peeking(nn.Module):
    """A linear layer whose weight is also used outside its forward: the layers alone would miss that."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.layer(x) + 0.5 * (x**2) @ self.layer.weight.T


class Unused(nn.Module):
    """A layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.last = nn.Linear(5, 2), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.last(x)


def norm_net() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES)
    )
    for part in net:
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):  # as after training
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    return net


IMAGE, VECTOR, SEQUENCE = (2, 5, 5), (5,), (6, 5)
NETS = {
    "linear": (VECTOR, lambda: nn.Sequential(nn.Linear(5, CLASSES))),
    "mlp": (VECTOR, lambda: nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, CLASSES))),
    "no bias": (VECTOR, lambda: nn.Sequential(nn.Linear(5, 6, bias=False), nn.Tanh(), nn.Linear(6, CLASSES, bias=False))),
    "in place": (VECTOR, lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, CLASSES))),
    "conv": (IMAGE, lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.SELU(), nn.Flatten(), nn.Linear(75, CLASSES))),
    "stride": (IMAGE, lambda: nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, CLASSES))),
    "all of it": (
        IMAGE,
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(2, 3)), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(4, 2, 1, bias=False), nn.Flatten(), nn.Linear(4, CLASSES),
        ),
    ),
    "norms": (IMAGE, norm_net),
    "twice": (VECTOR, Twice),
    "sequence": (SEQUENCE, lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 6), Mean(), nn.Linear(6, CLASSES))),
}  # fmt: skip
WHOLE = {  # no layers: gradients are taken of the module as a whole
    "scaled": (VECTOR, Scaled),
    "peeking": (VECTOR, Peeking),
    "grouped": (IMAGE, lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, CLASSES))),
    "reflecting": (
        IMAGE, lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(50, CLASSES)),
    ),
    "unused": (VECTOR, Unused),
    "layer norm": (VECTOR, lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, CLASSES))),
}  # fmt: skip
EVERY = {**NETS, **WHOLE}


def made(name: str, **changes) -> Problem:
    shape, build = EVERY[name]
    torch.manual_seed(3)
    module = build().double().eval()
    params = {key: value.detach() for key, value in module.named_parameters()}
    draw = torch.Generator().manual_seed(5)

    def examples(n: int) -> Examples:
        inputs = torch.randn(n, *shape, generator=draw, dtype=torch.float64)
        return Examples(inputs, torch.randint(CLASSES, (n,), generator=draw))

    fitted = Problem(module, params, dict(module.named_buffers()), examples(N), examples(TESTS), Supervised(), Loss(), 0.1)
    return replace(fitted, **changes)


def one_by_one(fitted: Problem, examples: Examples) -> torch.Tensor:
    """∇ℓ of one example after another, by torch's own cross-entropy and autograd."""
    state = {key: value.detach().clone() for key, value in {**fitted.params, **fitted.buffers}.items()}
    leaves = [state[name].requires_grad_(True) for name in fitted.selected]
    rows = []
    for x, y in zip(examples.inputs, examples.targets, strict=True):
        loss = F.cross_entropy(functional_call(fitted.module, state, (x[None],)), y[None])
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        rows.append(torch.cat([torch.zeros(leaf.numel()) if g is None else g.flatten() for g, leaf in zip(found, leaves, strict=True)]))
    return torch.stack(rows)


def flat(fitted: Problem) -> torch.Tensor:
    return torch.cat([block for _, block in fitted.train_gradients()])


# -------------------------------------------------------------------------------------------------------------- the values


@pytest.mark.parametrize("name", EVERY)
def test_gradients_are_autograds_one_example_at_a_time(name):
    fitted = made(name)
    assert (fitted.layers is None) == (name in WHOLE)
    assert_close(flat(fitted), one_by_one(fitted, fitted.train), **ROUNDING)
    assert_close(fitted.loss_gradients(fitted.test), one_by_one(fitted, fitted.test), **ROUNDING)
    assert_close(fitted.test_gradients(), one_by_one(fitted, fitted.test), **ROUNDING)
    assert_close(fitted.test_gradients(slice(1, 3)), one_by_one(fitted, fitted.test)[1:3], **ROUNDING)


@pytest.mark.parametrize("which", ["last_layer", "*.weight", "*.bias", "0.*", "0.weight", "4.bias"])
@pytest.mark.parametrize("name", ["mlp", "all of it", "norms"])
def test_a_selection_is_a_part_of_the_whole(name, which):
    """Weight alone, bias alone, some layers; in θ's order."""
    whole = made(name)
    try:
        fitted = whole.select(which)
    except InfluxError:
        pytest.skip("no such parameter")
    places, start = {}, 0
    for key, value in whole.params.items():
        places[key] = range(start, start + value.numel())
        start += value.numel()
    columns = [at for key in fitted.selected for at in places[key]]
    assert len(columns) == fitted.n_params == len(fitted.theta)
    assert_close(flat(fitted), one_by_one(whole, whole.train)[:, columns], **ROUNDING)
    for _, rows in fitted.train_rows():
        assert sum(part.layer.size for part in rows) == fitted.n_params


@pytest.mark.parametrize("pattern", ["5.*", "weight", "[ab]*"])
def test_a_pattern_that_matches_nothing_is_refused(pattern):
    with pytest.raises(InfluxError, match=r"method\.params=.* matches none of the parameters 0\.weight, 0\.bias, 2\.weight"):
        made("mlp").select(pattern)


@pytest.mark.parametrize("name", EVERY)
def test_blocks_change_nothing(name, monkeypatch):
    whole = flat(made(name))
    monkeypatch.setattr(stacking, "BLOCK_BYTES", 1)
    fitted = made(name)
    assert [(rows.start, rows.stop) for rows, _ in fitted.train_gradients()] == [(at, at + 1) for at in range(N)]
    assert_close(flat(fitted), whole, **ROUNDING)
    assert_close(torch.cat([rows.matrices.flatten(1) for rows in fitted.test_rows()], 1).square().sum(1),
                 fitted.test_gradients().square().sum(1), **ROUNDING)  # fmt: skip


@pytest.mark.parametrize("name", ["conv", "peeking"])
def test_a_measurement_of_the_whole_set_has_the_mean_gradient(name):
    fitted = made(name, measurement=MeanLoss())
    wanted = one_by_one(fitted, fitted.test).mean(0, keepdim=True)
    assert_close(fitted.test_gradients(), wanted, **ROUNDING)
    written = torch.zeros_like(wanted)
    for rows in fitted.test_rows():
        rows.write(written)
    assert_close(written, wanted, **ROUNDING)


@pytest.mark.parametrize("measurement", [Margin(), Prediction()], ids=lambda m: type(m).__name__)
def test_other_measurements(measurement):
    fitted = replace(problem("mlp"), measurement=measurement)
    assert_close(fitted.test_gradients(), dense(fitted).test_gradients, **ROUNDING)


def test_the_module_and_its_graph_are_left_alone():
    fitted = made("in place")
    before = {key: value.clone() for key, value in fitted.module.state_dict().items()}
    flat(fitted)
    assert all(torch.equal(before[key], value) for key, value in fitted.module.state_dict().items())
    assert not any(part._forward_hooks for part in fitted.module.modules())
    assert all(value.grad is None for value in fitted.module.parameters())
    with torch.no_grad():  # nor does it matter who asks
        assert_close(flat(fitted), one_by_one_with_grad(fitted), **ROUNDING)


@torch.enable_grad()
def one_by_one_with_grad(fitted: Problem) -> torch.Tensor:
    return one_by_one(fitted, fitted.train)


# ----------------------------------------------------------------------------------------------------------- layers and rows


@pytest.mark.parametrize("name", NETS)
def test_dots_norms_and_writing_need_no_gradient(name):
    fitted = made(name)
    train, test = one_by_one(fitted, fitted.train), one_by_one(fitted, fitted.test)
    ((_, parts),) = list(fitted.train_rows())
    others = fitted.test_rows()
    assert [part.layer for part in parts] == list(fitted.layers)
    assert_close(sum(one.dot(other) for one, other in zip(parts, others, strict=True)), train @ test.T, **ROUNDING)
    assert_close(sum(part.squared_norms() for part in parts), train.square().sum(1), **ROUNDING)
    written, scattered = torch.full_like(train, torch.nan), torch.full_like(train, torch.nan)
    for part in parts:
        part.write(written)
        part.layer.scatter(part.matrices, scattered)
        assert_close(part.layer.gather(train), part.matrices, **ROUNDING)
        assert part.matrices.shape == (N, *part.layer.shape)
    assert_close(written, train, **ROUNDING)
    assert_close(scattered, train, **ROUNDING)


def test_a_linear_layer_at_one_place_is_two_factors():
    ((_, parts),) = list(made("mlp").train_rows())
    assert all(part.dense is None and part.inputs is not None for part in parts)
    assert all(torch.equal(part.inputs[:, -1], torch.ones(N)) for part in parts)  # the bias, folded in
    ((_, parts),) = list(made("conv").train_rows())
    assert parts[0].dense is not None


def test_factors_and_matrices_mix():
    layer = Layer("", "linear", slice(0, 6), slice(6, 8), 2)
    draw = torch.Generator().manual_seed(0)
    inputs, deltas = (torch.randn(5, size, generator=draw, dtype=torch.float64) for size in (4, 2))
    factors = Rows(layer, inputs, deltas)
    matrices = Rows(layer, None, None, factors.matrices)
    wanted = factors.flat @ factors.flat.T
    for one in (factors, matrices):
        for other in (factors, matrices):
            assert_close(one.dot(other), wanted, **ROUNDING)
        assert_close(one.squared_norms(), wanted.diagonal(), **ROUNDING)


def test_several_backward_passes_of_one_forward_pass():
    fitted = made("conv")
    ((rows, kept),) = list(fitted.passes(fitted.train))
    assert rows == slice(0, N)
    total = torch.zeros(N, fitted.n_params, dtype=torch.float64)
    for c in range(CLASSES):  # the chain rule by hand: Σ_c (p_c − y_c) ∂f_c/∂θ
        one = torch.zeros_like(kept.outputs)
        one[:, c] = kept.outputs.detach().softmax(1)[:, c] - (fitted.train.targets == c).double()
        for layer, inputs, deltas in zip(kept.layers, kept.inputs, kept.deltas(one, keep=True), strict=True):
            found = torch.zeros_like(total)
            layer.scatter(torch.einsum("npo,npi->noi", deltas, inputs), found)
            total += found
    assert_close(total, one_by_one(fitted, fitted.train), **ROUNDING)
    slope = gradients.slope(fitted.objective.loss, kept.outputs, fitted.train.targets)
    assert_close(slope, kept.outputs.softmax(1).detach() - F.one_hot(fitted.train.targets, CLASSES), **ROUNDING)


@pytest.mark.parametrize("name", ["scaled", "peeking", "grouped", "layer norm", "norms"])
def test_methods_of_matrices_say_what_to_leave_out(name):
    with pytest.raises(
        InfluxError, match=r"works on linear and convolution layers, .*method\.params='<pattern of names>', or use method=cg"
    ):
        _ = made(name).matrix_layers
    assert made("norms").select("0.*").matrix_layers[0].kind == "conv"


def test_a_network_without_any_error_left_hides_nothing():
    """The loss's gradients are 0 to a double's precision: comparing those would find the layers to be all there is."""
    fitted = made("peeking")
    grown = replace(fitted, params={name: 1e4 * value for name, value in fitted.params.items()})
    right = Examples(grown.train.inputs, grown.outputs(grown.theta, grown.train.inputs).argmax(1))
    grown = replace(grown, train=right)
    assert (one_by_one(grown, grown.train)[:2] == 0).all()
    assert grown.layers is None


def test_batch_normalisation_in_training_mode_is_no_layer():
    fitted = made("norms")
    assert gradients.find_layers(fitted.module.train(), fitted.shapes) is None


def test_the_features_are_what_enters_the_output_layer():
    fitted = made("conv")
    wanted = fitted.module[:3](fitted.test.inputs).detach()
    assert_close(fitted.features(fitted.test), wanted, **ROUNDING)


def test_flops_count_the_selected_layers():
    assert made("mlp").flops_per_row == 2 * (6 * 6 + 4 * 7 + 3 * 5)
    assert made("conv").flops_per_row == 2 * (25 * 3 * 19 + 3 * 76)  # 25 places
    assert made("scaled").flops_per_row == 2 * 19


# ------------------------------------------------------------------------------------------------------------------ float32


def test_a_well_fitted_network_in_float32():
    """Where p_y is 1 to a float's precision, p_y − 1 is noise; stably written losses rank as float64 does."""
    subject = experiment("mlp", model=Mlp(depth=1, width=32), training=Adam(lr=0.05, epochs=1500, batch_size=None, weight_decay=0.0))
    fitted = subject.problem(subject.train(0, NOTHING_KEPT), 0)
    double = replace(fitted, params={name: 1.5 * value if name.startswith("3.") else value for name, value in fitted.params.items()})
    assert double.losses(double.theta, double.train).median() < 1e-6
    single = cast(double, torch.float32)
    norms, norms32 = (flat(one).double().norm(dim=1) for one in (double, single))  # squares of 1e-23 are 0 in float32
    assert (flat(single).abs().amax(1) > 0).all()
    assert spearmanr(norms, norms32).statistic > 0.999
    dots, dots32 = (flat(one) @ one.test_gradients().T for one in (double, single))
    for column, column32 in zip(dots.T, dots32.T, strict=True):
        assert spearmanr(column, column32).statistic > 0.999
    estimates = [InverseCurvature(Exact(), damping=0.1).estimate(one, None, 0).influence for one in (double, single)]
    for column, column32 in zip(*(found.T for found in estimates), strict=True):
        assert spearmanr(column, column32).statistic > 0.999
