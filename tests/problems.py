"""The table of tiny problems with known answers that the numerical tests share.

Each row of `TABLE` is an experiment of a few dozen examples, trained to a stated state. Its known answers (`dense`) are float64
gradients and matrices from plain `torch.autograd` and torch's own losses: nothing of `influx` computes them.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from influx.datasets import Data
from influx.experiment import Experiment, Trained
from influx.measurements import Loss, Measurement
from influx.models import Model
from influx.models.all_conv import AllConv
from influx.models.linear import Linear
from influx.models.logistic import Logistic
from influx.models.mlp import Mlp
from influx.objectives import Supervised
from influx.problem import Examples, Problem
from influx.store import Store
from influx.training import Training
from influx.training.first_order import Sgd
from influx.training.second_order import Lbfgs, Newton

torch.set_num_threads(1)

NOTHING_KEPT = Store(None)
N_TEST = 6


# --------------------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """One problem. `linear`: outputs are linear in θ, so GGN = Hessian; `optimum`: trained to a gradient norm of 1e-8 or less."""

    shape: tuple[int, ...]
    classes: int | None
    n: int
    model: Model
    training: Training
    linear: bool
    optimum: bool


TABLE: dict[str, Tiny] = {
    # ridge regression, at its optimum to rounding; 5 parameters
    "ridge": Tiny(
        shape=(4,), classes=None, n=30, model=Linear(), training=Newton(weight_decay=0.05, tolerance=1e-12), linear=True, optimum=True
    ),
    # two-class softmax regression, at its optimum; 8 parameters
    "binary": Tiny(
        shape=(3,), classes=2, n=40, model=Logistic(), training=Newton(weight_decay=0.03, tolerance=1e-12), linear=True, optimum=True
    ),
    # three-class softmax regression, at its optimum; 15 parameters
    "softmax": Tiny(
        shape=(4,), classes=3, n=45, model=Logistic(), training=Newton(weight_decay=0.02, tolerance=1e-12), linear=True, optimum=True
    ),
    # tanh MLP 3-4-3, at a local minimum; 31 parameters
    "mlp": Tiny(
        shape=(3,), classes=3, n=36, model=Mlp(depth=1, width=4, activation="tanh"), linear=False, optimum=True,
        training=Lbfgs(weight_decay=0.02, tolerance=1e-8),
    ),
    # all-convolution net with 2 filters on 5x5 images, stopped after 10 epochs of SGD, away from any optimum; 187 parameters
    "conv": Tiny(
        shape=(1, 5, 5), classes=3, n=24, model=AllConv(width=2, activation="selu"), linear=False, optimum=False,
        training=Sgd(lr=0.1, epochs=10, batch_size=8, momentum=0.9, weight_decay=0.01),
    ),
}  # fmt: skip

NAMES = tuple(TABLE)
LINEAR = tuple(name for name, tiny in TABLE.items() if tiny.linear)
CLASSIFIERS = tuple(name for name, tiny in TABLE.items() if tiny.classes)


def data_of(inputs: np.ndarray, targets: np.ndarray, n: int, classes: int | None) -> Data:
    """The first n rows train, the others test; positions in "the data set's own order" are deliberately not 0, 1, 2, ..."""
    positions = np.random.default_rng(7).permutation(10 * len(targets))[: len(targets)]
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    task = "classification" if classes else "regression"
    return Data(
        "tiny", task, x[:n], y[:n], x[n:], y[n:], positions[:n], positions[n:], classes,
        tuple(map(str, range(classes or 0))), (), np.empty(0, dtype=np.int64), np.zeros(()), np.ones(()), 0.0, 1.0,
    )  # fmt: skip


@cache
def data(name: str) -> Data:
    """Standard normal inputs; targets from a random linear rule plus noise, so that no class is separable."""
    tiny = TABLE[name]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    total, width = tiny.n + N_TEST, int(np.prod(tiny.shape))
    inputs = rng.normal(size=(total, *tiny.shape))
    scores = inputs.reshape(total, width) @ rng.normal(size=(width, tiny.classes or 1)) / np.sqrt(width) * 2
    noise = rng.gumbel(size=scores.shape) if tiny.classes else 0.5 * rng.normal(size=scores.shape)
    targets = (scores + noise).argmax(1) if tiny.classes else (scores + noise)[:, 0]
    return data_of(inputs, targets, tiny.n, tiny.classes)


def experiment(name: str, dtype: torch.dtype = torch.float64, **changes: object) -> Experiment:
    """Row `name` of the table as an experiment; `changes` replace its fields."""
    tiny = TABLE[name]
    made = Experiment(data(name).to(dtype, "cpu"), tiny.model, tiny.training, Supervised(), Loss())
    return replace(made, **changes)


@cache
def trained(name: str, seed: int = 0) -> Trained:
    """Row `name` in its stated state, in float64."""
    return experiment(name).train(seed, NOTHING_KEPT)


@cache
def problem(name: str, dtype: torch.dtype = torch.float64) -> Problem:
    """The fitted problem; in float32 it is the float64 one rounded, so that both stand at the same θ."""
    return cast(experiment(name).problem(trained(name), 0), dtype)


def cast(fitted: Problem, dtype: torch.dtype) -> Problem:
    def moved(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(dtype) if value.is_floating_point() else value for key, value in values.items()}

    def examples(part: Examples) -> Examples:
        targets = part.targets.to(dtype) if part.targets.is_floating_point() else part.targets
        return Examples(part.inputs.to(dtype), targets)

    return replace(
        fitted,
        module=copy.deepcopy(fitted.module).to(dtype),
        params=moved(fitted.params),
        buffers=moved(fitted.buffers),
        train=examples(fitted.train),
        test=examples(fitted.test),
    )


# ------------------------------------------------------------------------------------------------- measurements of users


@dataclass(frozen=True)
class Prediction(Measurement):
    """A user's measurement that is linear in a linear model's θ: the prediction itself, scaled."""

    unit: ClassVar[str] = "target"
    lower_is_better: ClassVar[bool] = False
    factor: float = 1.0

    def value(self, outputs, targets, objective):
        return self.factor * outputs[..., 0]


# ------------------------------------------------------------------------------------------------------------ known answers


def torch_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """ℓ for each example as torch has it."""
    if targets.is_floating_point():
        return 0.5 * (outputs[:, 0] - targets) ** 2
    return F.cross_entropy(outputs, targets, reduction="none")


def torch_margin(outputs: Tensor, targets: Tensor) -> Tensor:
    """log p − log(1 − p) from torch's softmax."""
    p = outputs.softmax(-1).gather(1, targets[:, None])[:, 0]
    return p.log() - torch.log1p(-p)


TORCH_MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Loss": torch_loss,
    "MeanLoss": torch_loss,
    "LogProbability": lambda outputs, targets: -torch_loss(outputs, targets),
    "Margin": torch_margin,
    "Prediction": lambda outputs, targets: outputs[:, 0],
}


@dataclass(frozen=True)
class Dense:
    """Float64 answers: per-example gradients of loss and measurement, Hessian and GGN with λI inside and no damping."""

    train_gradients: Tensor
    test_gradients: Tensor
    hessian: Tensor
    ggn: Tensor

    def matrix(self, kind: str, damping: float = 0.0) -> Tensor:
        matrix = self.hessian if kind == "hessian" else self.ggn
        return matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype)

    def influence(self, kind: str, damping: float = 0.0) -> Tensor:
        """(1/n) ∇ℓ_iᵀ A⁻¹ ∇m_t."""
        solved = torch.linalg.solve(self.matrix(kind, damping), self.test_gradients.T)
        return self.train_gradients @ solved / len(self.train_gradients)


def flat_forward(fitted: Problem) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
    """(θ, inputs) ↦ outputs over the selected parameters, in float64, and θ itself."""
    module = copy.deepcopy(fitted.module).double().eval()
    state = {**fitted.params, **fitted.buffers}
    state = {key: value.double() if value.is_floating_point() else value for key, value in state.items()}
    sizes = [fitted.params[key].numel() for key in fitted.selected]

    def forward(theta: Tensor, inputs: Tensor) -> Tensor:
        parts = zip(fitted.selected, theta.split(sizes), strict=True)
        return functional_call(module, {**state, **{key: part.view_as(state[key]) for key, part in parts}}, (inputs.double(),))

    return forward, torch.cat([state[key].flatten() for key in fitted.selected])


def dense(fitted: Problem) -> Dense:
    """The known answers of a fitted problem, by differentiating one example and one parameter at a time."""
    forward, theta = flat_forward(fitted)
    train, test = (
        Examples(part.inputs.double(), part.targets.double() if part.targets.is_floating_point() else part.targets)
        for part in (fitted.train, fitted.test)
    )
    measure = TORCH_MEASURES[type(fitted.measurement).__name__]
    identity = torch.eye(len(theta), dtype=torch.float64)

    def objective(t: Tensor) -> Tensor:
        return torch_loss(forward(t, train.inputs), train.targets).mean() + 0.5 * fitted.weight_decay * t.square().sum()

    per_train = torch.autograd.functional.jacobian(lambda t: torch_loss(forward(t, train.inputs), train.targets), theta)
    per_test = torch.autograd.functional.jacobian(lambda t: measure(forward(t, test.inputs), test.targets), theta)
    if fitted.measurement.whole_set:
        per_test = per_test.mean(0, keepdim=True)
    hessian = torch.autograd.functional.hessian(objective, theta)
    jacobian = torch.autograd.functional.jacobian(lambda t: forward(t, train.inputs), theta)  # [n, out, P]
    outputs = forward(theta, train.inputs)
    ggn = torch.einsum("nap,nab,nbq->pq", jacobian, output_hessian(outputs, train.targets), jacobian) / len(outputs)
    return Dense(per_train, per_test, hessian, ggn + fitted.weight_decay * identity)


@cache
def answers(name: str) -> Dense:
    """The known answers of row `name`, all parameters."""
    return dense(problem(name))


def output_hessian(outputs: Tensor, targets: Tensor) -> Tensor:
    """∇²_f ℓ in closed form: 1 for half squared error, diag(p) − ppᵀ for softmax cross-entropy."""
    if targets.is_floating_point():
        return torch.ones(len(outputs), 1, 1, dtype=outputs.dtype)
    p = outputs.softmax(-1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


def with_intercept(inputs: Tensor) -> np.ndarray:
    """[x, 1], as the linear models see a row."""
    flat = inputs.flatten(1).double().numpy()
    return np.hstack([flat, np.ones((len(flat), 1))])


def affine(params: dict[str, Tensor]) -> np.ndarray:
    """A linear model's [W, b], one row an output."""
    weight, bias = params["1.weight"], params["1.bias"]
    return torch.cat([weight, bias[:, None]], dim=1).double().numpy()


def ridge_solution(x: np.ndarray, y: np.ndarray, weight_decay: float, weights: np.ndarray | None = None) -> np.ndarray:
    """argmin (1/n) Σ w_i ½(x_iᵀθ − y_i)² + (λ/2)‖θ‖² by the normal equations."""
    w = np.ones(len(y)) if weights is None else weights
    return np.linalg.solve((x * w[:, None]).T @ x / len(y) + weight_decay * np.eye(x.shape[1]), (x * w[:, None]).T @ y / len(y))


# ------------------------------------------------------------------------------------- models that go through torch.func.vmap


class _BatchNorm(nn.Sequential):
    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(channels, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, outputs)
        )


@dataclass(frozen=True)
class BatchNormNet(Model):
    """A user's model with running statistics."""

    def module(self, shape):
        return _BatchNorm(shape.inputs[0], shape.n_outputs)


@dataclass(frozen=True)
class DropoutNet(Model):
    """A user's model with a stochastic layer."""

    p: float = 0.5

    def module(self, shape):
        return nn.Sequential(nn.Flatten(), nn.Linear(shape.n_features, 6), nn.Tanh(), nn.Dropout(self.p), nn.Linear(6, shape.n_outputs))
