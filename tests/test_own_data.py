"""A user's own data and loss in the many shapes that they come in: the same influences, or one line that says why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, call
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import influx
from influx import app
from influx.errors import InfluxError
from influx.objectives import CrossEntropy, SquaredError
from influx.own import data_of
from influx.pipelines.session import check_losses

TRUE = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
DRAW = torch.Generator().manual_seed(0)
X, X_TEST = (torch.randn(n, 3, dtype=torch.float64, generator=DRAW) for n in (40, 5))
Y, Y_TEST = X @ TRUE + 0.3 * torch.randn(40, dtype=torch.float64, generator=DRAW), X_TEST @ TRUE
TRAIN, TEST = (X, Y), (X_TEST, Y_TEST)


def least_squares() -> nn.Linear:
    net = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    net.weight.data = torch.linalg.lstsq(X, Y.unsqueeze(1)).solution.T.contiguous()
    return net


def influences(train: Any = TRAIN, test: Any = TEST, model: nn.Module | None = None, **more: Any) -> np.ndarray:
    run = influx.estimate(least_squares() if model is None else model, "squared_error", train, test, method="exact", **more)
    values: np.ndarray = run.influence.to_numpy()
    return values


class Tenth(TensorDataset):
    """Gives other inputs than the tensors that it holds."""

    def __getitem__(self, at: Any) -> tuple[Tensor, ...]:
        inputs, target = super().__getitem__(at)
        return inputs / 10, target


class Noisy(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(input, 0.5))


def tenths(rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([row[0] for row in rows]) / 10, torch.stack([row[1] for row in rows])


@pytest.mark.parametrize(
    "given",
    [
        ((X, Y.unsqueeze(1)), (X_TEST, Y_TEST.unsqueeze(1))),  # torch's usual shape for one output
        ((X.numpy(), Y.numpy()), ([row.tolist() for row in X_TEST], Y_TEST.tolist())),
        (Tenth(10 * X, Y), TEST),
        (DataLoader(Tenth(10 * X, Y), batch_size=7), DataLoader(TensorDataset(X_TEST, Y_TEST), batch_size=2)),
    ],
    ids=["column of targets", "arrays and lists", "dataset that transforms", "loaders"],
)
def test_the_same_data_in_other_shapes_has_the_same_influences(given: tuple[Any, Any]) -> None:
    np.testing.assert_allclose(influences(*given), influences(), rtol=1e-9)  # sums of a few tens of terms in float64


def test_gradients_that_the_caller_switched_off_are_on_inside() -> None:
    with torch.no_grad():
        quiet = influences()
    with torch.inference_mode():
        quieter = influences((X * 1, Y * 1))
        assert torch.is_inference_mode_enabled()
    np.testing.assert_allclose(quiet, influences(), rtol=1e-9)  # sums of a few tens of terms in float64, in another order
    np.testing.assert_allclose(quieter, influences(), rtol=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": DataLoader(TensorDataset(X, Y), collate_fn=tenths)},
            r"train is a loader with a collate_fn of its own, or one that drops",
        ),
        ({"train": DataLoader(TensorDataset(X, Y), drop_last=True)}, r"or one that drops the last batch: give the tensors that it makes"),
        ({"train": (X, X), "test": (X_TEST, X_TEST)}, r"targets are \(3,\) an example; this loss takes one number an example, \[n\]"),
        (
            {"model": nn.Linear(3, 3).double()},
            r"SquaredError gives no loss an example here: .* shape \(2, 3\), the targets of shape \(2,\)",
        ),
        ({"model": nn.Linear(3, 2).double()}, r"SquaredError gives no loss an example here: .* Squared error takes one output"),
        ({"model": Noisy(3, 1).double()}, r"model draws at random in evaluation mode: it gave two outputs for one input"),
    ],
)
def test_what_would_be_another_number_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InfluxError, match=message):
        influences(**changes)


def test_losses_are_one_an_example() -> None:
    """A data set of a user's own may have targets of any shape."""
    data = data_of(TRAIN, TEST, lambda inputs: 1, torch.float64, torch.device("cpu"))
    check_losses(SquaredError(), least_squares(), data)
    with pytest.raises(InfluxError, match=r"SquaredError gives no loss an example here: .* targets of shape \(2, 1\)"):
        check_losses(SquaredError(), least_squares(), replace(data, train_targets=data.train_targets.unsqueeze(1)))
    with pytest.raises(InfluxError, match=r"CrossEntropy gives no loss an example here"):
        check_losses(CrossEntropy(), least_squares(), replace(data, train_targets=X.long()))


def test_as_many_models_as_examples_are_no_confusion() -> None:
    """Of a function that is given 5 models' outputs for 5 examples, each model sees its own."""
    labels, net = (Y > 0).long(), nn.Linear(3, 2, dtype=torch.float64)
    settings = {"training.epochs": 5, "training.batch_size": 40, "method.damping": 0.1, "resamples": 20}
    how = {"training": "sgd", "weight_decay": 0.05, "removed": 4, "seeds": 1, "settings": settings}
    test = X_TEST, (Y_TEST > 0).long()
    own = influx.validate(net, lambda f, y: cross_entropy(f, y, reduction="none"), (X, labels), test, **how)  # type: ignore[arg-type]
    named = influx.validate(net, "cross_entropy", (X, labels), test, **how)  # type: ignore[arg-type]
    np.testing.assert_allclose(own.change.to_numpy(), named.change.to_numpy(), rtol=1e-6, atol=1e-12)


def test_a_model_far_from_an_optimum_is_warned_of() -> None:
    fitted = influx.estimate(least_squares(), "squared_error", TRAIN, TEST, method="exact")
    assert fitted.record["warnings"] == []
    for model, decay in ((nn.Linear(3, 1, dtype=torch.float64), 0.0), (least_squares(), 1.0)):
        far = influx.estimate(model, "squared_error", TRAIN, TEST, method="exact", weight_decay=decay)
        (warning,) = far.record["warnings"]
        assert warning.startswith(f"the model is not at an optimum of its mean loss with weight_decay={decay:g}: the gradient there")


def test_a_killed_process_of_a_sweep_is_one_line() -> None:
    class TerminatedWorkerError(Exception):
        pass

    text, status = app.explain(TerminatedWorkerError("..."), "validate", [])
    assert text.startswith("a process of the sweep was killed, most often because memory ran out; the same command goes on")
    assert status == 1


def test_without_pictures_none_is_named(tmp_path: Any) -> None:
    words = ("validate", *TINY["validate"], "method=loss", "retraining.seeds=1")
    assert "scatter plot:" in call(*words, cwd=tmp_path).out
    assert "scatter plot:" not in call(*words, "pictures=false", cwd=tmp_path).out
