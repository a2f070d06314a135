"""A data set divided and ready to use: what models, objectives and measurements see of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

Task = Literal["classification", "regression"]


@dataclass(frozen=True, eq=False)
class Data:
    """A data set divided and ready to use. Inputs and regression targets are float64 on the CPU until `to`; labels are int64.

    train_index, test_index: positions in the data set's own order; with an official test part, test positions count in its
        own file. `flipped`: the positions among `train_index` whose label was changed by label noise.
    input_offset, input_scale: one example's shape, or scalars; original input = value * scale + offset.
    target_offset, target_scale: the same for a regression target (0 and 1 for labels).
    texts, test_texts: of text, all examples of the files that `train_index` and `test_index` count in, to be shown; no number depends on
        them, and `digest` leaves them out.
    words: the vocabulary, when inputs are numbers of words in it.
    test_names: what each test example is, when those are a measurement's own questions and not examples of the data set.
    views: whether inputs are two views of each example, [n, 2, *shape], of which the first is the example itself.
    dtype: of the computation; inputs that stand for words stay whole numbers.
    """

    name: str
    task: Task
    train_inputs: Float[Tensor, " n_train *shape"]
    train_targets: Num[Tensor, " n_train"]
    test_inputs: Float[Tensor, " n_test *shape"]
    test_targets: Num[Tensor, " n_test"]
    train_index: Int[np.ndarray, " n_train"]
    test_index: Int[np.ndarray, " n_test"]
    n_classes: int | None
    class_names: tuple[str, ...]
    feature_names: tuple[str, ...]
    flipped: Int[np.ndarray, " n_flipped"]
    input_offset: Float[np.ndarray, "*shape"]
    input_scale: Float[np.ndarray, "*shape"]
    target_offset: float
    target_scale: float
    texts: tuple[str, ...] = ()
    test_texts: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    test_names: tuple[str, ...] = ()
    views: bool = False
    dtype: torch.dtype = torch.float64

    @property
    def n_train(self) -> int:
        return len(self.train_targets)

    @property
    def n_test(self) -> int:
        return len(self.test_targets)

    @property
    def wrong_labels(self) -> Bool[np.ndarray, " n_train"]:
        """Which training labels the label noise has changed."""
        return np.isin(self.train_index, self.flipped)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One example's shape: `(features,)` or `(channels, height, width)`."""
        return tuple(self.train_inputs.shape[1:])

    @property
    def is_image(self) -> bool:
        return len(self.input_shape) == (4 if self.views else 3)

    @property
    def n_outputs(self) -> int:
        """Width of a model's output: the number of classes, or 1 for regression."""
        return self.n_classes or 1

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Data:
        """The same data on `device`, floating point tensors as `dtype`; labels stay int64, NumPy arrays as they are."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

        return replace(
            self,
            dtype=dtype,
            train_inputs=moved(self.train_inputs),
            train_targets=moved(self.train_targets),
            test_inputs=moved(self.test_inputs),
            test_targets=moved(self.test_targets),
        )

    def shown_digest(self) -> str:
        """SHA-256, in hexadecimal, of every field, texts too: it changes with anything that can be shown of an example."""
        total = hashlib.sha256(self.digest().encode())
        for text in (*self.texts, *self.test_texts):
            total.update(f"{len(text)} {text}".encode(errors="replace"))
        return total.hexdigest()

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of every field but the texts: it changes with any number, position, name or number format."""
        total = hashlib.sha256()
        for field in (field for field in fields(self) if not field.name.endswith("texts")):
            value = getattr(self, field.name)
            array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
            if isinstance(array, np.ndarray):
                total.update(f"{field.name} {array.dtype} {array.shape}\n".encode())
                total.update(np.ascontiguousarray(array).data)
            else:
                total.update(f"{field.name} {value!r}\n".encode())
        return total.hexdigest()
