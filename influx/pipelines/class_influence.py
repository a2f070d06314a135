"""Influence class by class: how much a training example of one class matters, on average, to test examples of another."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from influx.datasets import Data

MOST_CLASSES = 20  # with more, neither table nor picture can be read


def class_table(data: Data, influence: Float[np.ndarray, "n_train n_test"]) -> pd.DataFrame:
    """A row for each training class (as labelled, wrong labels included) and test class that have examples: `influence` is the mean over
    all their pairs, in the measurement's unit; `n_train, n_test` count the examples."""
    train, test = data.train_targets.cpu().numpy(), data.test_targets.cpu().numpy()
    rows = []
    for mine, own in enumerate(data.class_names):
        for theirs, other in enumerate(data.class_names):
            block = influence[np.ix_(train == mine, test == theirs)]
            if block.size:
                sizes = {"n_train": len(block), "n_test": block.shape[1]}
                rows.append({"train_class": own, "test_class": other, "influence": block.mean(), **sizes})
    return pd.DataFrame(rows)
