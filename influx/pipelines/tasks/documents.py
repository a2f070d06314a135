"""The documents that raise or lower the effect of a word test most, as a table and as text."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float

from influx.datasets import Data
from influx.pipelines.exhibits import text

RAISES, LOWERS = "raises", "lowers"


def documents_table(data: Data, influence: Float[np.ndarray, "n_train n_tests"], top: int) -> pd.DataFrame:
    """Columns `test, direction, rank, train_index, influence, text`. A document raises an effect when the effect is predicted to be
    smaller without it: its influence is negative. Documents whose influence is 0 do neither, and fill no rank."""
    rows = []
    for t, test in enumerate(data.test_names):
        order = np.argsort(influence[:, t], kind="stable")
        for direction, chosen, sign in ((RAISES, order[:top], -1), (LOWERS, order[::-1][:top], 1)):
            for rank, i in enumerate((i for i in chosen if sign * influence[i, t] > 0), start=1):
                about = {"test": test, "direction": direction, "rank": rank, "train_index": int(data.train_index[i])}
                rows.append({**about, "influence": float(influence[i, t]), "text": text(data, "train", int(i))})
    return pd.DataFrame(rows, columns=["test", "direction", "rank", "train_index", "influence", "text"])


def documents_text(table: pd.DataFrame, effects: Mapping[str, float]) -> str:
    """The table as Markdown to be read: a section a test, with its effect size as trained."""
    lines = ["# Documents that raise or lower an effect size most", ""]
    lines += ["Influence: the effect size trained without the document, less the effect size trained on all; predicted.", ""]
    for test, effect in effects.items():
        lines += [f"## {test}: effect size {effect:.3f}", ""]
        for direction in (RAISES, LOWERS):
            part = table[(table["test"] == test) & (table["direction"] == direction)]
            lines += [f"### {direction} it", ""]
            lines += [f"{row.rank}. ({row.influence:+.3g}, document {row.train_index}) {_line(str(row.text))}" for row in part.itertuples()]
            lines += [""]
    return "\n".join(lines)


def _line(said: str) -> str:
    """One line, in which nothing is Markdown."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", " ".join(said.split()))
