"""What the adapters to other influence libraries share: the package's absence said early, the model handed over, the rows in blocks.

The libraries come with the extra `neighbours` and are imported by the functions that call them, so that without them only their own methods
are missing. Each gets a copy of the module with the problem's parameters, training loss and measurement as they are here, and its scores
come back in this package's sign, scale, orientation, number type and place.
"""

from __future__ import annotations

import copy
import gc
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from influx import gradients
from influx.errors import InfluxError
from influx.problem import Problem
from influx.stacking import blocks

PREFIX = "0."  # of names in what `loaded` returns
SHARE = 4  # of the memory is for one batch of training rows


def require(package: str) -> None:
    """
    Raises:
        InfluxError: the package behind the method of the same name is not installed.
    """
    if find_spec(package) is None:
        raise InfluxError(f"method={package} needs the package {package}: pip install 'influx[neighbours]'.")


def whole_layers(problem: Problem, package: str) -> list[str]:
    """Names of the selected layers in the module that `loaded` returns.

    Raises:
        InfluxError: one is neither linear nor a convolution, is used more than once, or is selected in part: the library would leave it
            out, or get it wrong, without a word.
    """
    layers = problem.matrix_layers
    for layer in layers:
        own = {f"{layer.name}.{name}".lstrip(".") for name, _ in problem.module.get_submodule(layer.name).named_parameters()}
        if not own <= set(problem.selected):
            raise InfluxError(f"{package} takes whole layers, not parts of '{layer.name}': use method.params=all, last_layer or <layer>.*")
    one = gradients.forward(problem.module, layers, problem.state, problem.train.inputs[:1])
    for layer, calls in zip(layers, one.results, strict=True):
        if len(calls) != 1:
            raise InfluxError(f"{package} takes layers that are used once, and '{layer.name}' is used {len(calls)} times: use method=cg.")
    return [f"{PREFIX}{layer.name}".rstrip(".") for layer in layers]


def loaded(problem: Problem) -> nn.Sequential:
    """A copy of the module with the problem's parameters, in evaluation mode and inside a Sequential, so that every layer has a name.

    The parameters that are not selected are frozen.
    """
    module = copy.deepcopy(problem.module).to(problem.theta)
    module.load_state_dict(problem.state, strict=False)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in problem.selected)
    return nn.Sequential(module).eval()


def batch_rows(problem: Problem, batch_size: int | str) -> int:
    """Rows of a batch: `batch_size`, or as many as keep their dense gradients within a quarter of the memory."""
    if batch_size != "auto":
        return min(int(batch_size), problem.n_train)
    first = blocks(problem.n_train, 3 * problem.theta.nbytes + 4 * problem.bytes_per_row, problem.memory // SHARE)[0]
    return first.stop - first.start


class Blocks(Dataset):
    """Rows that a loader takes a batch at a time by one indexing, not one by one and stacked."""

    def __init__(self, *parts: Tensor) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, index: int) -> list[Tensor]:
        return [part[index] for part in self.parts]

    def __getitems__(self, rows: list[int]) -> list[Tensor]:
        consecutive = rows == list(range(rows[0], rows[-1] + 1))
        return [part[rows[0] : rows[-1] + 1] if consecutive else part[rows] for part in self.parts]


def as_is(batch: list[Tensor]) -> list[Tensor]:
    """Collation of what is a batch already."""
    return batch


def loader(rows: int, *parts: Tensor) -> DataLoader:
    return DataLoader(Blocks(*parts), batch_size=rows, collate_fn=as_is)


def returned(scores: Float[Tensor, "n_train tests"], problem: Problem) -> Float[Tensor, "n_train n_test"]:
    """In the computation's type and place; a measurement of the whole set is the mean over its examples."""
    scores = scores.detach().to(problem.theta)
    return scores.mean(1, keepdim=True) if problem.measurement.whole_set else scores.contiguous()


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    """Inside, tensors are made in `dtype` where a library names none (float32 otherwise, whatever its model is)."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def few_objects() -> Iterator[None]:
    """For libraries that collect garbage at every step: what exists by now is set aside, else each time costs a look at all of it."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def quiet(package: str) -> Iterator[None]:
    """Inside, the package says nothing but errors: no log, no warnings of its dependencies' age, no progress bars."""
    log = logging.getLogger(package)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
