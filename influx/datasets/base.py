"""What a data set is: a `Dataset` reads a `Source` (its own order, untouched) and loads it as `Data` (divided, ready to use).

A new data set is one subclass that defines `read`; the split, the choice of classes, label noise, standardisation and all
checks are shared and final. Positions always count in the data set's own order, whatever was kept or drawn, so
that they name the same example in every run.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final, get_args

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from influx import rules
from influx.data import Data, Task
from influx.datasets import _labels
from influx.datasets._split import Pool, Request, part_of, split_one_file
from influx.errors import InfluxError


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as its files have it, in its own order.

    inputs: `[n, *shape]`; images are `[n, channels, height, width]` in [0, 1], tables `[n, features]` in their own units.
    targets: `[n]`; labels 0 ... C-1, or the numbers to predict in their own unit.
    class_names: one per class, in label order; empty: the labels themselves. Empty for regression.
    feature_names: one per column of a table; empty for images.
    test_inputs, test_targets: the official test part, when there is one; its positions count from 0 anew.
    texts, test_texts: the examples as text, when that is what they are (inputs are then token ids); otherwise empty.
    """

    inputs: Float[np.ndarray, " n *shape"]
    targets: Num[np.ndarray, " n"]
    task: Task
    class_names: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    test_inputs: Float[np.ndarray, " n_test_file *shape"] | None = None
    test_targets: Num[np.ndarray, " n_test_file"] | None = None
    texts: tuple[str, ...] = ()
    test_texts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Dataset(ABC):
    """Which examples of a data set to use and how; subclasses define `read`, and fields of their own if they need any.

    train_size, test_size: examples in each part; null: the default rule of `influx.datasets._split` (80 % and 20 %,
        classes keeping their shares), or all of an official part. `split_seed` draws them, from 0 to 2**32 - 1.
    standardize: subtract the training part's mean and divide by its population standard deviation, per feature (a constant
        feature has scale 1); regression targets likewise.
    label_noise: fraction of the training labels replaced by another class, drawn from `noise_seed`.
    classes: the classes to keep, relabelled 0, 1, ... in this order; null keeps all.
    train_index, test_index: explicit positions in the data set's own order; they override the sizes.
    """

    train_size: int | None = None
    test_size: int | None = None
    split_seed: int = 0
    standardize: bool = True
    label_noise: float = 0.0
    noise_seed: int = 0
    classes: Sequence[int] | None = None
    train_index: Sequence[int] | None = None
    test_index: Sequence[int] | None = None

    def __post_init__(self) -> None:
        rules.check_fields("dataset", self)

    @abstractmethod
    def read(self) -> Source:
        """The whole data set in its own order; called once per `load`."""

    @property
    @final
    def name(self) -> str:
        """The class's name as the configuration spells it: `BreastCancer` is `breast_cancer`."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    @final
    def load(self) -> Data:
        """Read, check, divide, add label noise, standardise.

        Raises `InfluxError` for a size, position or class that the data set does not have; for numbers that are not finite;
        for labels that are not 0, 1, 2 ... without a gap; for `classes` or `label_noise` on a regression set.
        """
        source = self._kept_classes(_checked(self.name, self.read()))
        train_index, test_index = self._parts(source)
        train_targets, flipped = self._training_targets(source, train_index)
        test_inputs, test_targets, test_texts = _test_file(source)
        train_inputs = source.inputs[train_index]
        inputs = _Scaling.of(train_inputs, self.standardize)
        targets = _Scaling.of(train_targets, self.standardize and source.task == "regression")
        return Data(
            name=self.name,
            task=source.task,
            train_inputs=inputs.tensor(train_inputs),
            train_targets=targets.tensor(train_targets),
            test_inputs=inputs.tensor(test_inputs[test_index]),
            test_targets=targets.tensor(test_targets[test_index]),
            train_index=train_index,
            test_index=test_index,
            n_classes=len(source.class_names) or None,
            class_names=source.class_names,
            feature_names=source.feature_names,
            flipped=flipped,
            input_offset=inputs.offset,
            input_scale=inputs.scale,
            target_offset=float(targets.offset),
            target_scale=float(targets.scale),
            texts=source.texts,
            test_texts=test_texts,
        )

    def _kept_classes(self, source: Source) -> Source:
        """`source` with the labels of `classes` alone; the other examples stay in place, marked as dropped."""
        if source.task == "regression":
            self._refuse_regression_knobs()
            return source
        if self.classes is None:
            return source
        _labels.check_classes(self.name, self.classes, source.class_names)
        return replace(
            source,
            targets=_labels.relabelled(source.targets, self.classes),
            test_targets=None if source.test_targets is None else _labels.relabelled(source.test_targets, self.classes),
            class_names=tuple(source.class_names[label] for label in self.classes),
        )

    def _refuse_regression_knobs(self) -> None:
        if self.classes is not None:
            raise InfluxError(f"dataset.classes does not apply to {self.name}, a regression set without classes: set it to null.")
        if self.label_noise > 0:
            raise InfluxError(f"dataset.label_noise does not apply to {self.name}, a regression set without labels: set it to 0.")

    def _parts(self, source: Source) -> tuple[Int[np.ndarray, " n_train"], Int[np.ndarray, " n_test"]]:
        """(train_index, test_index); see `influx.datasets._split` for the rule."""
        train = Request("train", self.train_size, self.train_index)
        test = Request("test", self.test_size, self.test_index)
        if source.test_targets is None:
            pool = _pool(self.name, source.targets, source, at_least=2)
            return split_one_file(pool, train, test, self.split_seed)
        train_pool = _pool(f"the training part of {self.name}", source.targets, source, at_least=1)
        test_pool = _pool(f"the test part of {self.name}", source.test_targets, source, at_least=0)
        return part_of(train_pool, train, self.split_seed), part_of(test_pool, test, self.split_seed)

    def _training_targets(
        self, source: Source, train_index: Int[np.ndarray, " n_train"]
    ) -> tuple[Num[np.ndarray, " n_train"], Int[np.ndarray, " n_flipped"]]:
        """The training part's targets, with label noise, and the positions (ascending) whose label it changed."""
        targets = source.targets[train_index]
        if source.task == "regression":
            return targets, np.empty(0, dtype=np.int64)
        _labels.check_training_classes(self.name, targets, source.class_names)
        noisy, changed = _labels.with_noise(targets, self.label_noise, len(source.class_names), self.noise_seed)
        return noisy, np.sort(train_index[changed])


@dataclass(frozen=True, eq=False)
class _Scaling:
    """value = (original - offset) / scale, per entry of one example; the scalars 0 and 1 leave everything as it is."""

    offset: Float[np.ndarray, "*shape"]
    scale: Float[np.ndarray, "*shape"]

    @classmethod
    def of(cls, values: Num[np.ndarray, " n *shape"], wanted: bool) -> _Scaling:
        """Mean and population standard deviation over the examples; an entry that never varies is only centred."""
        if not wanted:
            return cls(np.zeros(()), np.ones(()))
        constant = values.min(axis=0) == values.max(axis=0)
        spread = values.std(axis=0)
        return cls(np.where(constant, values[0], values.mean(axis=0)), np.where(constant | (spread == 0), 1.0, spread))

    def tensor(self, values: Num[np.ndarray, " n *shape"]) -> Num[Tensor, " n *shape"]:
        if self.offset.ndim == 0 and self.offset == 0 and self.scale == 1:
            return torch.from_numpy(values)
        return torch.from_numpy((values - self.offset) / self.scale)


def _test_file(source: Source) -> tuple[Float[np.ndarray, " n *shape"], Num[np.ndarray, " n"], tuple[str, ...]]:
    """The inputs, targets and texts that test positions count in: the official test part, else the one file."""
    if source.test_inputs is None or source.test_targets is None:
        return source.inputs, source.targets, source.texts
    return source.test_inputs, source.test_targets, source.test_texts


def _pool(name: str, targets: Num[np.ndarray, " n"], source: Source, at_least: int) -> Pool:
    """The examples of one file that were not dropped with their class."""
    if source.task == "regression":
        return Pool(name, np.arange(len(targets)), None, len(targets))
    positions = np.flatnonzero(targets != _labels.DROPPED)
    _labels.check_pool(name, targets[positions], source.class_names, at_least)
    return Pool(name, positions, targets[positions], len(targets))


def _checked(name: str, source: Source) -> Source:
    """`source` with its numbers checked, labels as int64, all else as float64, class names filled in."""
    if source.task not in get_args(Task):
        raise InfluxError(f"{name} has the task {source.task!r}: it must be one of {', '.join(get_args(Task))}.")
    _check_numbers(name, source.inputs, source.targets, source.feature_names)
    if source.test_inputs is not None and source.test_targets is not None:
        _check_numbers(f"the test part of {name}", source.test_inputs, source.test_targets, source.feature_names)
    source = replace(source, inputs=_float64(source.inputs), test_inputs=_float64(source.test_inputs))
    if source.task == "regression":
        return replace(source, targets=_float64(source.targets), test_targets=_float64(source.test_targets), class_names=())
    labels = _labels.checked_labels(name, source.targets, len(source.class_names) or None)
    class_names = source.class_names or tuple(str(label) for label in range(labels.max() + 1))
    test_labels = source.test_targets
    if test_labels is not None:
        test_labels = _labels.checked_labels(f"the test part of {name}", test_labels, len(class_names))
    return replace(source, targets=labels, class_names=class_names, test_targets=test_labels)


def _float64(values: Any) -> Any:
    return None if values is None else values.astype(np.float64, copy=False)


def _check_numbers(name: str, inputs: np.ndarray, targets: np.ndarray, feature_names: Sequence[str]) -> None:
    """`InfluxError` unless there is one finite target for each finite input."""
    if inputs.ndim < 2 or targets.shape != inputs.shape[:1] or len(targets) == 0:
        raise InfluxError(
            f"{name} has inputs of shape {inputs.shape} and targets of shape {targets.shape}: they must be [n, ...] and [n], n at least 1."
        )
    for what, values in (("inputs", inputs), ("targets", targets)):
        if not np.issubdtype(values.dtype, np.number):
            raise InfluxError(f"{name} has {what} of type {values.dtype}: they must be numbers.")
        broken = np.argwhere(~np.isfinite(values))  # [n_broken, 1 + dimensions of one example]
        if len(broken):
            row, *place = broken[0].tolist()
            column = feature_names[place[0]] if len(place) == 1 and feature_names else ", ".join(map(str, place))
            raise InfluxError(
                f"{name} has {len(broken)} NaN or infinite value(s) in its {what}, the first in row {row} (counting from 0)"
                f"{f', column {column}' if place else ''}: remove or fill in such rows."
            )
