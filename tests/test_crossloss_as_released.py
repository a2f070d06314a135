"""What the code released with Silva et al. 2022 does: one Adam for all retrainings, against a torch.optim.Adam that is made once, and its
pass over the rows, against its recursion."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from problems import NOTHING_KEPT, experiment, problem
from torch.nn import functional as F
from torch.testing import assert_close

from influx.curvature import Curvature
from influx.solvers.lissa import Lissa
from influx.training.adam_shared import AdamShared
from influx.training.first_order import Adam

SEED = 4
SHARED = AdamShared(lr=0.01, epochs=2, weight_decay=0.03)
LEFT_OUT = (None, 3, 0, 7)  # the first model has everything


def stack():
    made = experiment("mlp", training=SHARED)
    weights = torch.ones(len(LEFT_OUT), made.data.n_train, dtype=torch.float64)
    for k, row in enumerate(LEFT_OUT):
        if row is not None:
            weights[k, row] = 0
    return made, made.task(SEED, weights)


def test_moments_and_step_counts_go_on_from_model_to_model():
    made, task = stack()
    found = SHARED.fit(task).params
    module = made.initial(SEED)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01, weight_decay=0.03)
    x, y = made.data.train_inputs, made.data.train_targets
    for k in range(len(LEFT_OUT)):
        module.load_state_dict(start)
        for _ in range(2):
            optimizer.zero_grad()
            ((F.cross_entropy(module(x), y, reduction="none") * task.weights[k]).sum() / len(x)).backward()
            optimizer.step()
        for name, value in module.named_parameters():
            assert_close(found[name][k], value.detach(), rtol=0, atol=1e-10)  # Adam divides rounding by gradients that may be small


def test_a_model_alone_is_adams_and_so_is_the_first_of_a_stack():
    made, task = stack()
    alone = Adam(lr=0.01, epochs=2, batch_size=None, weight_decay=0.03)
    fresh = replace(made, training=alone).train(SEED, NOTHING_KEPT).params
    first = SHARED.fit(task).params
    for name, value in made.train(SEED, NOTHING_KEPT).params.items():
        assert torch.equal(value, fresh[name])
        assert_close(first[name][0], value, rtol=0, atol=1e-12)


def test_the_order_of_retrainings_matters_and_would_not_with_a_fresh_adam():
    _, task = stack()
    order = torch.tensor([0, 3, 2, 1])
    other = replace(task, weights=task.weights[order])
    for training, same in ((SHARED, False), (SHARED.alone, True)):
        one, turned = (training.fit(each).params for each in (task, other))
        apart = max((one[name][order] - turned[name]).abs().max().item() for name in one)
        assert (apart < 1e-10) == same


@pytest.mark.parametrize("passes", [1, 2])
def test_a_sequential_pass_is_the_released_recursion_over_the_scale(passes):
    """h ← v + (1 − 0.01) h − H_i h / 25 over the rows in order, as released; ours divides by 25. λ is 0."""
    fitted = replace(problem("mlp"), weight_decay=0.0)
    v = fitted.test_gradients().T
    h = torch.zeros_like(v)
    for i in list(range(fitted.n_train)) * passes:
        hessian = torch.autograd.functional.hessian(
            lambda theta, i=i: fitted.losses(theta, fitted.train.take(slice(i, i + 1))).sum(), fitted.theta
        )
        h = v + (1 - 0.01) * h - hessian @ h / 25
    solver = Lissa(depth=passes * fitted.n_train, scale=25, batch_size=1, order="sequential")
    with pytest.warns(match="relative residual"):
        ours = solver.solve(Curvature(fitted, "hessian", 0.25), v, SEED).x
    assert_close(25 * ours, h, rtol=1e-10, atol=1e-12)
