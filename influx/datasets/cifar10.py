"""CIFAR-10, read by torchvision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from influx.datasets._files import WHITE, corrupt, fetch, missing
from influx.datasets.base import Dataset, Source
from influx.vision import torchvision


@dataclass(frozen=True, kw_only=True)
class Cifar10(Dataset):
    """50,000 training and 10,000 test images (colour, 3 x 32 x 32, in [0, 1]) of 10 classes, 5,000 and 1,000 of each.

    root: folder that holds `cifar-10-batches-py/data_batch_1` and its six companions.
    download: fetch them (163 MiB) into `root`.

    The files are pickles: torchvision opens them only when their checksums are the published ones, so that nothing else
    can run. Reading the whole set takes 1.5 GB of memory, and as much again for the parts.

    Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", technical report (2009). Licence: none stated.
    """

    standardize: bool = False
    root: str = "data"
    download: bool = False

    def read(self) -> Source:
        root = Path(self.root).expanduser()
        reader = torchvision().datasets.CIFAR10
        if self.download:
            fetch(self.name, lambda: reader(root, download=True))
        else:
            _check_files(self.name, root)
        train, test = reader(root, train=True), reader(root, train=False)
        inputs, targets = _images_and_labels(train.data, train.targets)
        test_inputs, test_targets = _images_and_labels(test.data, test.targets)
        return Source(inputs, targets, "classification", tuple(train.classes), test_inputs=test_inputs, test_targets=test_targets)


def _check_files(name: str, root: Path) -> None:
    """`InfluxError` unless every file is there and has its published checksum."""
    datasets = torchvision().datasets
    folder, reader = root / datasets.CIFAR10.base_folder, datasets.CIFAR10
    checksums = dict([*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])])
    absent = [file for file in checksums if not (folder / file).is_file()]
    if absent:
        raise missing(name, root, [f"{folder.name}/{file}" for file in absent])
    for file, checksum in checksums.items():
        if not datasets.utils.check_integrity(folder / file, checksum):
            raise corrupt(folder / file, "its checksum is not the published one")


def _images_and_labels(pixels: np.ndarray, labels: list[int]) -> tuple[Float[np.ndarray, " n 3 32 32"], Int[np.ndarray, " n"]]:
    images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))  # [n, 32, 32, 3] -> [n, 3, 32, 32]
    return images / WHITE, np.asarray(labels, dtype=np.int64)
