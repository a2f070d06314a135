"""Italian wines from three growers, shipped with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

from sklearn.datasets import load_wine

from influx.datasets.base import Dataset, Source


@dataclass(frozen=True, kw_only=True)
class Wine(Dataset):
    """178 wines x 13 chemical measurements, 3 growers with 59, 71 and 48 wines; 142 train and 36 test by default.

    Source: M. Forina et al., "PARVUS: an extendible package for data exploration" (1988), as the UCI Machine Learning
    Repository's "Wine" (1991); scikit-learn's copy. Licence: CC BY 4.0.
    """

    def read(self) -> Source:
        table = load_wine()
        return Source(table.data, table.target, "classification", tuple(map(str, table.target_names)), tuple(table.feature_names))
