"""Class labels: what they must look like, which classes are kept, and deliberate label noise.

A label is a whole number 0 ... C-1. `DROPPED` marks an example whose class was left out; it is never drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Num

from influx.errors import InfluxError
from influx.seeding import numpy_generator

Labels = Int[np.ndarray, " n"]

DROPPED = -1
RULE = "labels must be whole numbers 0, 1, 2 ... without a gap; number the classes anew"


def checked_labels(name: str, targets: Num[np.ndarray, " n"], n_classes: int | None) -> Labels:
    """`targets` as int64; `InfluxError` unless all are whole numbers from 0 to `n_classes - 1` (None: from 0, without a gap)."""
    broken = np.flatnonzero((targets < 0) | (targets != np.floor(targets)))
    if len(broken):
        row = broken[0]
        raise InfluxError(f"{name} has the label {targets[row]:g} in row {row} (counting from 0): {RULE}.")
    present = np.unique(targets)
    if n_classes is None and present[-1] >= len(present):
        gap = int(np.argmax(present != np.arange(len(present))))
        raise InfluxError(f"{name} has the label {present[-1]:g} but no example of class {gap}: {RULE}.")
    if n_classes is not None and present[-1] >= n_classes:
        row = np.flatnonzero(targets >= n_classes)[0]
        raise InfluxError(f"{name} has the label {targets[row]:g} in row {row} (counting from 0) but {n_classes} class name(s): {RULE}.")
    return targets.astype(np.int64)


def relabelled(labels: Labels, classes: Sequence[int]) -> Labels:
    """Class `classes[k]` becomes `k`; every other label becomes `DROPPED`."""
    new = np.full_like(labels, DROPPED)
    for number, old in enumerate(classes):
        new[labels == old] = number
    return new


def check_classes(name: str, classes: Sequence[int], class_names: Sequence[str]) -> None:
    """`InfluxError` unless `classes` are different, known and at least two."""
    known = ", ".join(f"{number} ({label})" for number, label in enumerate(class_names))
    unknown = [number for number in classes if number >= len(class_names)]
    if unknown:
        raise InfluxError(f"dataset.classes holds {unknown[0]}, which {name} does not have; its classes are {known}.")
    if len(set(classes)) < len(classes):
        raise InfluxError(f"dataset.classes={list(classes)} names a class twice: list each class once.")
    if len(classes) < 2:
        raise InfluxError(f"dataset.classes={list(classes)} leaves {len(classes)} class(es): keep at least 2 of {known}.")


def check_pool(name: str, labels: Labels, class_names: Sequence[str], at_least: int) -> None:
    """`InfluxError` unless there are two classes or more and each has `at_least` examples among `labels` `[n]`.

    `at_least` is 2 for a file that is divided into a training and a test part, 1 for an official training file.
    """
    if len(class_names) < 2:
        raise InfluxError(f"{name} has {len(class_names)} class(es): classification needs at least 2; use another target.")
    counts = np.bincount(labels, minlength=len(class_names))
    rare = np.flatnonzero(counts < at_least)
    if len(rare) == 0:
        return
    label = rare[0]
    others = f" (and {len(rare) - 1} other classes)" if len(rare) > 1 else ""
    if counts[label] == 0:
        raise InfluxError(f"{name} has no example of class {label} ({class_names[label]}){others}: {RULE}.")
    raise InfluxError(
        f"{name} has a single example of class {label} ({class_names[label]}){others}: each class needs at least 2, one to "
        "train on and one to test on; keep the other classes with dataset.classes, or name another target."
    )


def check_training_classes(name: str, labels: Labels, class_names: Sequence[str]) -> None:
    """`InfluxError` when a class has no example among the training part's `labels` `[n_train]`."""
    missing = np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 0)
    if len(missing):
        label = missing[0]
        raise InfluxError(
            f"the training part of {name} ({len(labels)} examples) has no example of class {label} ({class_names[label]}): raise "
            "dataset.train_size, change dataset.split_seed or dataset.train_index, or leave the class out with dataset.classes."
        )


def with_noise(labels: Labels, fraction: float, n_classes: int, seed: int) -> tuple[Labels, Bool[np.ndarray, " n"]]:
    """(labels, changed): exactly `round(fraction * n)` labels replaced by another class, each other class equally likely."""
    generator = numpy_generator(seed, "label noise")
    chosen = generator.choice(len(labels), size=round(fraction * len(labels)), replace=False)
    noisy, changed = labels.copy(), np.zeros(len(labels), dtype=bool)
    noisy[chosen] = (labels[chosen] + generator.integers(1, n_classes, size=len(chosen))) % n_classes
    changed[chosen] = True
    return noisy, changed
