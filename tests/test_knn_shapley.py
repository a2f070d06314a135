"""Shapley values of nearest neighbours against their definition: all subsets, or all orders, enumerated."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from problems import cast, experiment, problem
from torch import Tensor
from torch.testing import assert_close

from influx import stacking
from influx.errors import InfluxError
from influx.estimators.knn_shapley import KnnShapley, nearest_first
from influx.measurements import LogProbability, Loss, Margin, MeanLoss
from influx.problem import Problem

KS = (1, 2, 3, 5, 8, 11)


def utility(chosen: tuple[int, ...], order: list[int], targets: np.ndarray, wanted: float, k: int) -> float:
    """v(S): the share of the K nearest in S with the wanted label, or minus the squared error of their sum over K."""
    nearest = [i for i in order if i in chosen][:k]
    if targets.dtype.kind == "f":
        return -((sum(targets[i] for i in nearest) / k - wanted) ** 2)
    return sum(targets[i] == wanted for i in nearest) / k


def by_definition(order: list[int], targets: np.ndarray, wanted: float, k: int) -> np.ndarray:
    """Σ_S (v(S ∪ i) − v(S)) / (n · C(n − 1, |S|)) over all S without i."""
    n = len(targets)
    values = np.zeros(n)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for size in range(n):
            for chosen in combinations(others, size):
                gain = utility((*chosen, i), order, targets, wanted, k) - utility(chosen, order, targets, wanted, k)
                values[i] += gain / (n * comb(n - 1, size))
    return values


def small(name: str, n: int = 8, m: int = 3) -> Problem:
    fitted = problem(name)
    return replace(fitted, train=fitted.train.take(slice(0, n)), test=fitted.test.take(slice(0, m)))


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize(("name", "space"), [("softmax", "inputs"), ("mlp", "features"), ("ridge", "inputs"), ("conv", "features")])
def test_values_are_those_of_all_subsets(name, space, k):
    """Also for K = n and K > n, where theorem 1 as printed does not hold."""
    fitted = small(name)
    points = [p.inputs.flatten(1) if space == "inputs" else fitted.features(p) for p in (fitted.train, fitted.test)]
    ours = KnnShapley(k, space).estimate(fitted, None, 0).influence
    for t in range(3):
        order = np.argsort(np.linalg.norm((points[0] - points[1][t]).detach().numpy(), axis=1)).tolist()
        wanted = by_definition(order, fitted.train.targets.numpy(), fitted.test.targets[t].item(), k)
        np.testing.assert_allclose(ours[:, t], wanted, rtol=0, atol=1e-12)  # float64 sums of 2⁸ terms of order 1


@pytest.mark.parametrize("k", [1, 4, 100])
@pytest.mark.parametrize("name", ["softmax", "ridge"])
def test_values_share_out_the_whole_utility(name, k):
    """Efficiency: Σ_i s_i = v(all) − v(none)."""
    fitted = problem(name)
    order = nearest_first(fitted.train.inputs, fitted.test.inputs)
    ours = KnnShapley(k, "inputs").estimate(fitted, None, 0).influence.sum(0)
    targets, every = fitted.train.targets.numpy(), tuple(range(fitted.n_train))
    for t in range(fitted.n_test):
        wanted = fitted.test.targets[t].item()
        whole, none = (utility(chosen, order[:, t].tolist(), targets, wanted, k) for chosen in (every, ()))
        assert ours[t].item() == pytest.approx(whole - none, abs=1e-12)


def test_the_paper_s_recursion_for_labels():
    """Theorem 1 as printed, one step after another: s_n = 1[y_n = y]/n, s_i = s_{i+1} + (1[..] − 1[..])/K · min(K, i)/i."""
    fitted, k = problem("softmax"), 3
    order = nearest_first(fitted.train.inputs, fitted.test.inputs)[:, 0].tolist()
    hit = [(fitted.train.targets[i] == fitted.test.targets[0]).item() for i in order]
    values = [0.0] * len(order)
    values[-1] = hit[-1] / len(order)
    for i in range(len(order) - 1, 0, -1):  # ranks from 1
        values[i - 1] = values[i] + (hit[i - 1] - hit[i]) / k * min(k, i) / i
    ours = KnnShapley(k, "inputs").estimate(fitted, None, 0).influence[:, 0]
    assert_close(ours[order], torch.tensor(values, dtype=torch.float64), rtol=0, atol=1e-14)


def test_ties_keep_the_training_set_s_order_and_copies_score_alike():
    rows = torch.tensor([[0.3, 0.1], [1.0, 2.0], [0.3, 0.1], [1.0, 2.0], [0.3, 0.1]])
    order = nearest_first(rows, torch.tensor([[0.2, 0.2], [1.1, 1.9]]))
    assert order.T.tolist() == [[0, 2, 4, 1, 3], [1, 3, 0, 2, 4]]
    fitted = problem("softmax")
    copies = torch.cat([torch.arange(fitted.n_train), torch.tensor([0, 7])])
    ours = KnnShapley(4, "inputs").estimate(replace(fitted, train=fitted.train.take(copies), judged=None), None, 0).influence
    assert_close(ours[-2:], ours[[0, 7]], rtol=0, atol=1e-14)


def test_the_sign_is_the_measurement_s():
    """Helpful = removing it raises a loss, and lowers what should be high."""
    fitted = problem("mlp")
    own = replace(fitted, test=fitted.train)
    assert (KnnShapley().estimate(own, None, 0).influence.diagonal() > 0).all()
    high, low = (KnnShapley().estimate(replace(fitted, measurement=m), None, 0).influence for m in (Margin(), Loss()))
    assert torch.equal(high, -low)
    assert torch.equal(KnnShapley().estimate(replace(fitted, measurement=LogProbability()), None, 0).influence, high)


def test_a_whole_set_s_score_is_the_mean():
    fitted = problem("mlp")
    whole = KnnShapley().estimate(replace(fitted, measurement=MeanLoss()), None, 0).influence
    assert whole.shape == (36, 1)
    assert_close(whole, KnnShapley().estimate(fitted, None, 0).influence.mean(1, keepdim=True), rtol=0, atol=1e-15)


@pytest.mark.parametrize("measurement", [Loss(), MeanLoss()])
def test_blocks_of_test_examples_change_nothing(measurement, monkeypatch):
    fitted = replace(problem("conv"), measurement=measurement)
    whole = KnnShapley().estimate(fitted, None, 0).influence
    assert len(stacking.blocks(6, 8 * 8 * 24, 2 * 4 * 8 * 8 * 24 // 4)) == 3
    ours = KnnShapley().estimate(replace(fitted, memory=2 * 4 * 8 * 8 * 24), None, 0).influence  # two columns at a time
    assert_close(ours, whole, rtol=0, atol=1e-15)


@pytest.mark.parametrize("space", ["inputs", "features"])
def test_float32_ranks_the_same_neighbours(space):
    fitted = problem("mlp")
    single = KnnShapley(3, space).estimate(cast(fitted, torch.float32), None, 0).influence
    assert single.dtype == torch.float32
    # the values are functions of the order alone: equal unless rounding swaps two neighbours at 1e-7 of a distance, which it does not here
    assert_close(single.double(), KnnShapley(3, space).estimate(fitted, None, 0).influence, rtol=0, atol=1e-7)


def test_options_are_checked():
    with pytest.raises(InfluxError, match=r"method\.neighbors=0 is not possible: it must be a whole number of at least 1"):
        KnnShapley(neighbors=0)
    with pytest.raises(InfluxError, match=r"method\.space=input .*Did you mean 'inputs'"):
        KnnShapley(space="input")


def test_a_network_without_a_linear_output_layer_has_no_features():
    class Last(torch.nn.Sequential):
        pass

    fitted = problem("mlp")
    odd = Last(torch.nn.Flatten(), torch.nn.BatchNorm1d(3)).double().eval()
    strange = replace(fitted, module=odd, params=dict(odd.named_parameters()), buffers=dict(odd.named_buffers()), selected=())
    with pytest.raises(InfluxError, match="output layer is not linear, so it has no representation"):
        KnnShapley().plan(strange, None)
    assert KnnShapley(space="inputs").plan(strange, None).gradients == 0


def test_the_plan_is_cheap_and_says_its_memory():
    cost = KnnShapley().plan(experiment("mlp").untrained(0), None)
    assert (cost.gradients, cost.trainings) == (42 / 3, 0)
    assert cost.nbytes == 8 * 42 * 4 + 8 * 8 * 36 * 6


def rows(n: int, width: int) -> Tensor:
    return torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_neighbours_do_not_depend_on_the_other_test_examples():
    train, test = rows(50, 7), rows(9, 7)
    order = nearest_first(train, test)
    assert all(torch.equal(nearest_first(train, test[t : t + 1])[:, 0], order[:, t]) for t in range(9))
