"""MNIST, read by torchvision."""

from __future__ import annotations

from dataclasses import dataclass

from influx.datasets._files import read_idx_set
from influx.datasets.base import Dataset, Source


@dataclass(frozen=True, kw_only=True)
class Mnist(Dataset):
    """60,000 training and 10,000 test images (grey, 1 x 28 x 28, in [0, 1]) of 10 digits.

    root: folder that holds `MNIST/raw/train-images-idx3-ubyte` and its three companions, plain or `.gz`.
    download: fetch what is missing (11 MiB) into `root`.

    Source: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits" (1998). Licence: CC BY-SA 3.0.
    """

    standardize: bool = False
    root: str = "data"
    download: bool = False

    def read(self) -> Source:
        return read_idx_set(self.name, "MNIST", self.root, self.download, tuple(map(str, range(10))))
