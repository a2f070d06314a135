"""Handwritten digits of 8 x 8 pixels, shipped with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

from sklearn.datasets import load_digits

from influx.datasets.base import Dataset, Source

INK = 16.0  # each pixel counts the black dots in a 4 x 4 block


@dataclass(frozen=True, kw_only=True)
class Digits(Dataset):
    """1,797 grey images of 1 x 8 x 8 in [0, 1], 10 digits with 174 to 183 images each; 1,437 train and 360 test by default.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (1998); its
    test file, scikit-learn's copy, divided by 16. Licence: CC BY 4.0.
    """

    standardize: bool = False

    def read(self) -> Source:
        table = load_digits()
        return Source(table.images[:, None] / INK, table.target, "classification", tuple(map(str, table.target_names)))
