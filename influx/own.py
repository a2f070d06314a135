"""A user's own loss and tensors as the parts that an experiment is made of."""

from __future__ import annotations

import math
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.utils.data import default_collate, default_convert

from influx.data import Data
from influx.errors import AccuracyWarning, InfluxError
from influx.objectives import Objective
from influx.objectives.base import Coupled
from influx.training import Fit, Task, Training
from influx.training.base import summarise

Loss = Callable[[Tensor, Tensor], Tensor]
LOOKED_AT = 64  # examples whose gradients are taken for typical
FAR = 0.25  # of a typical example's gradient; trained models that estimates agreed well with had up to 0.15


class Held:
    """A module or a function of the user's. What it computes cannot be told from its source or its numbers (it may call anything), hence
    `str` of it is a token of its own, so that nothing that was computed with one is ever taken for another's."""

    __slots__ = ("it", "token")

    def __init__(self, it: Any) -> None:
        self.it = it
        self.token = uuid.uuid4().hex

    def __str__(self) -> str:
        return self.token


@dataclass(frozen=True)
class OwnLoss(Objective):
    """ℓ by a function of outputs [n, out] and targets [n, ...] that gives one loss an example, in the function's unit.

    The Gauss-Newton matrix is formed with its Hessian in the outputs, which is positive semi-definite only where the loss is convex in
    them.
    """

    held: Held
    target_dims: int = 1  # of the targets of a batch

    def loss(self, outputs: Float[Tensor, " *k batch out"], targets: Shaped[Tensor, " *k batch *target"]) -> Float[Tensor, " *k batch"]:
        stacked = outputs.shape[:-2]
        if not stacked:
            return self._each(outputs, targets)
        own = targets.expand(*stacked, *targets.shape) if targets.ndim == self.target_dims else targets
        flat = self._each(outputs.flatten(0, -2), own.reshape(-1, *own.shape[len(stacked) + 1 :]))
        return flat.reshape(outputs.shape[:-1])

    def _each(self, outputs: Float[Tensor, "n out"], targets: Shaped[Tensor, " n *target"]) -> Float[Tensor, " n"]:
        made = self.held.it(outputs, targets)
        if not isinstance(made, Tensor) or made.shape != outputs.shape[:1]:
            shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise InfluxError(
                f"loss must give one number an example, shape ({len(outputs)},); it gave {shape}. torch's losses do with reduction='none', "
                "for example torch.nn.CrossEntropyLoss(reduction='none')."
            )
        return made


@dataclass(frozen=True)
class AsGiven(Training):
    """No training: the module's parameters are taken for the optimum of J with this weight decay, with a warning where they are far from
    one."""

    weight_decay: float
    kind: type
    seed: int

    def fit(self, task: Task) -> Fit:
        if task.models > 1 or bool((task.weights != 1).any()) or task.seed != self.seed or type(task.module) is not self.kind:
            raise InfluxError(
                "this method trains models of its own, and influx.estimate takes the one model as it is: use influx.validate, which trains."
            )
        row, norms = summarise(task, task.params, task.buffers, self.weight_decay)
        if not math.isfinite(row["objective"]):
            raise InfluxError(f"the model's mean loss on train is {row['loss']}: look at its outputs for train, and at the loss of each.")
        _warn_far(task, row["gradient_norm"], self.weight_decay)
        return Fit(task.params, task.buffers, norms, [{"epoch": 0, **row}])

    def trial(self, iterations: int, seconds: float, models: int) -> tuple[Training, float]:
        return self, 1.0

    def memory(self, params: int, row: int, n: int) -> int:
        return params

    def shuffles(self, n: int) -> bool:
        return False


def _warn_far(task: Task, norm: float, weight_decay: float) -> None:
    """Warn where the mean gradient is not small beside those of single examples, which cancel at an optimum."""
    if isinstance(task.objective, Coupled):  # one alone has no loss
        return
    way, n = task.backprop(task.module), len(task.examples)
    single = []
    for at in np.unique(np.linspace(0, n - 1, LOOKED_AT).astype(int)).tolist():
        _, part = way.gradients(task.params, task.buffers, task.examples.take(slice(at, at + 1)), task.weights[:, at : at + 1])
        single.append(sum(gradient.square().sum().item() for gradient in part.values()))
    typical = math.sqrt(sum(single) / len(single))
    if norm > FAR * typical:
        warnings.warn(
            f"the model is not at an optimum of its mean loss with weight_decay={weight_decay:g}: the gradient there, {norm:.2g}, is "
            f"{norm / typical if typical else math.inf:.0%} of a single example's. Influence functions take it for one; train longer, or "
            "give the weight_decay that it was trained with.",
            AccuracyWarning,
            stacklevel=2,
        )


def data_of(train: Any, test: Any, width: Callable[[Tensor], int], dtype: torch.dtype, device: torch.device) -> Data:
    """Two parts as `Data`, in the order in which they come; positions count from 0. `width` is that of a model's output for inputs.

    Raises:
        InfluxError: a part is not inputs and targets of one length, is empty or not finite, or the two parts do not fit one another.
    """
    parts = {name: _part(part, name, dtype) for name, part in (("train", train), ("test", test))}
    (x, y), (x_test, y_test) = parts["train"], parts["test"]
    if x.shape[1:] != x_test.shape[1:] or y.shape[1:] != y_test.shape[1:] or y.is_floating_point() != y_test.is_floating_point():
        raise InfluxError(
            f"train and test differ in kind: inputs {tuple(x.shape[1:])} and {tuple(x_test.shape[1:])} an example, "
            f"targets {y.dtype} {tuple(y.shape[1:])} and {y_test.dtype} {tuple(y_test.shape[1:])}."
        )
    labels, n_outputs = not y.is_floating_point(), width(x.to(device))
    if labels and not 0 <= int(min(y.min(), y_test.min())) <= int(max(y.max(), y_test.max())) < n_outputs:
        low, high = int(min(y.min(), y_test.min())), int(max(y.max(), y_test.max()))
        raise InfluxError(
            f"labels go from {low} to {high}, and the model has {n_outputs} outputs, for classes 0 to {n_outputs - 1}. "
            "Numbers to predict must be floating-point: targets.float()."
        )
    made = Data(
        name="own data", task="classification" if labels else "regression", train_inputs=x, train_targets=y, test_inputs=x_test,
        test_targets=y_test, train_index=np.arange(len(x)), test_index=np.arange(len(x_test)), n_classes=n_outputs,
        class_names=tuple(map(str, range(n_outputs))) if labels else (), feature_names=(), flipped=np.arange(0),
        input_offset=np.zeros(()), input_scale=np.ones(()), target_offset=0.0, target_scale=1.0,
    )  # fmt: skip
    return made.to(dtype, device)


def with_flat_targets(data: Data) -> Data:
    """The data with one target an example, [n], as influx's own supervised objectives read them; [n, 1] is the same.

    Raises:
        InfluxError: an example has several targets.
    """
    shape = tuple(data.train_targets.shape[1:])
    if shape not in ((), (1,)):
        raise InfluxError(
            f"targets are {shape} an example; this loss takes one number an example, [n]. Give as the loss a function of both."
        )
    return replace(data, train_targets=data.train_targets.flatten(), test_targets=data.test_targets.flatten())


def _part(part: Any, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    inputs, targets = map(_tensor, _read(part, name))
    if not inputs.is_floating_point():
        raise InfluxError(f"{name} inputs are {inputs.dtype}; they must be floating-point: inputs.float().")
    if inputs.ndim < 2 or len(inputs) != len(targets) or not len(inputs):
        raise InfluxError(
            f"{name} must be inputs [n, ...] and targets [n] of the same n > 0; "
            f"their shapes are {tuple(inputs.shape)} and {tuple(targets.shape)}."
        )
    for what, values in (("inputs", inputs), ("targets", targets)):
        if not bool(torch.isfinite(values).all()):
            raise InfluxError(f"{name} {what} hold {int((~torch.isfinite(values)).sum())} numbers that are not finite: clean them first.")
    whole = targets.to(torch.int64) if not targets.is_floating_point() else targets
    return inputs.to(dtype), whole


def _read(part: Any, name: str) -> tuple[Any, Any]:
    """Inputs and targets of a pair, a data set or a loader, read once in its own order."""
    if isinstance(part, torch.utils.data.DataLoader):
        if not isinstance(part.sampler, torch.utils.data.SequentialSampler):
            raise InfluxError(f"{name} is a loader that shuffles, so positions would mean nothing: give its dataset, {name}.dataset.")
        if part.collate_fn not in (default_collate, default_convert) or part.drop_last:
            raise InfluxError(
                f"{name} is a loader with a collate_fn of its own, or one that drops the last batch: give the tensors that it makes, or a "
                "Dataset that gives them one example at a time."
            )
        part = part.dataset
    if type(part) is torch.utils.data.TensorDataset:  # one of its kind may change what it gives
        part = part.tensors
    if isinstance(part, torch.utils.data.Dataset):
        rows = [part[at] for at in range(len(part))]  # type: ignore[arg-type]
        part = torch.stack([_tensor(row[0]) for row in rows]), torch.stack([_tensor(row[1]) for row in rows])
    if not isinstance(part, tuple | list) or len(part) != 2:
        raise InfluxError(f"{name} must be (inputs, targets), a torch Dataset or a DataLoader; this is a {type(part).__name__}.")
    return part[0], part[1]


def _tensor(values: Any) -> Tensor:
    made = values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    return made.clone() if made.is_inference() else made  # or nothing could be differentiated


def check_separate(objective: Objective, outputs: Float[Tensor, "n out"], targets: Shaped[Tensor, " n *target"]) -> None:
    """Raise `InfluxError` unless losses are finite and an example's depends on that example alone."""
    together = objective.loss(outputs, targets)
    if not bool(torch.isfinite(together).all()):
        raise InfluxError(f"loss of the first training examples is {', '.join(f'{value:g}' for value in together.tolist())}: not finite.")
    alone = torch.cat([objective.loss(outputs[at : at + 1], targets[at : at + 1]) for at in range(len(outputs))])
    if not torch.allclose(together, alone, rtol=1e-4, atol=1e-6):  # rounding in float32
        raise InfluxError("loss gives an example another number when it stands in a batch: it must depend on that example alone.")
