"""Strength of concrete, shipped with this package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

import pandas as pd

from influx.datasets.base import Dataset, Source


@dataclass(frozen=True, kw_only=True)
class Concrete(Dataset):
    """1,030 mixtures x 8 features; target: compressive strength in MPa, 2.33 to 82.60; 824 train and 206 test by default.

    The features are seven ingredients (kg per m3 of mixture) and the age at the test (days). 25 rows repeat an earlier row.

    Source: I-C. Yeh, "Modeling of strength of high-performance concrete using artificial neural networks", Cement and Concrete
    Research 28 (1998), as the UCI Machine Learning Repository's "Concrete Compressive Strength". Licence: CC BY 4.0.
    """

    def read(self) -> Source:
        with files("influx.datasets").joinpath("concrete.csv").open() as file:
            table = pd.read_csv(file).astype(float)
        *features, target = table.columns
        return Source(table[features].to_numpy(), table[target].to_numpy(), "regression", feature_names=tuple(features))
