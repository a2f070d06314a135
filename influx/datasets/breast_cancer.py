"""Breast cancer Wisconsin (diagnostic), shipped with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

from sklearn.datasets import load_breast_cancer

from influx.datasets.base import Dataset, Source


@dataclass(frozen=True, kw_only=True)
class BreastCancer(Dataset):
    """569 tumours x 30 features of their cell nuclei; class 0 malignant (212), 1 benign (357); 455 train and 114 test by default.

    Source: W. N. Street, W. H. Wolberg, O. L. Mangasarian, "Nuclear feature extraction for breast tumor diagnosis" (1993), as
    the UCI Machine Learning Repository's "Breast Cancer Wisconsin (Diagnostic)"; scikit-learn's copy. Licence: CC BY 4.0.
    """

    def read(self) -> Source:
        table = load_breast_cancer()
        return Source(table.data, table.target, "classification", tuple(map(str, table.target_names)), tuple(map(str, table.feature_names)))
