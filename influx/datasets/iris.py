"""Fisher's iris flowers, shipped with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

from sklearn.datasets import load_iris

from influx.datasets.base import Dataset, Source


@dataclass(frozen=True, kw_only=True)
class Iris(Dataset):
    """150 flowers x 4 lengths in centimetres, 3 species with 50 flowers each; 120 train and 30 test by default.

    Source: R. A. Fisher, "The use of multiple measurements in taxonomic problems", Annals of Eugenics 7 (1936); scikit-learn's
    copy, which follows the article. Licence: CC BY 4.0 (UCI Machine Learning Repository).
    """

    def read(self) -> Source:
        table = load_iris()
        return Source(table.data, table.target, "classification", tuple(map(str, table.target_names)), tuple(table.feature_names))
