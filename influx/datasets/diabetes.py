"""Progression of diabetes, shipped with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

from sklearn.datasets import load_diabetes

from influx.datasets.base import Dataset, Source


@dataclass(frozen=True, kw_only=True)
class Diabetes(Dataset):
    """442 patients x 10 measurements in their raw units; target: progression after one year; 353 train and 89 test by default.

    The measurements are age (years), sex (1 or 2), body mass index (kg/m2), mean blood pressure (mm Hg) and six blood serum
    values. The target is a score from 25 to 346 without a unit.

    Source: B. Efron, T. Hastie, I. Johnstone, R. Tibshirani, "Least angle regression", Annals of Statistics 32 (2004);
    scikit-learn's copy. Licence: none stated by the authors.
    """

    def read(self) -> Source:
        table = load_diabetes(scaled=False)
        return Source(table.data, table.target, "regression", feature_names=tuple(table.feature_names))
