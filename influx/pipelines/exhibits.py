"""Training and test examples as something to look at: images as images, text as text, rows as their features in original units."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from influx.datasets import Data
from influx.measurements import Measurement
from influx.report.gallery import Exhibit, GalleryRow

SHOWN_IMAGES, SHOWN_ROWS = 6, 3  # test examples in the picture; the table has all of them
SHOWN_TEXT = 200  # characters of a text
LINE = 34  # characters of a line in the picture


def label(data: Data, target: Tensor) -> str:
    """A class name, or a number in its original unit."""
    if data.task == "classification":
        return data.class_names[int(target)]
    if target.ndim:
        return textwrap.shorten(" ".join(f"{value:.4g}" for value in target.flatten().tolist()), LINE, placeholder=" …")
    return f"{float(target) * data.target_scale + data.target_offset:.4g}"


def text(data: Data, part: str, row: int) -> str:
    """The beginning of an example's text in one line; empty where examples are no texts."""
    texts, index = (data.texts if part == "train" else data.test_texts), getattr(data, f"{part}_index")
    return textwrap.shorten(texts[index[row]], SHOWN_TEXT, placeholder=" …") if texts else ""


def exhibit(data: Data, part: str, row: int, title: str = "") -> Exhibit:
    """`title` in place of the example's position and label."""
    if part == "test" and data.test_names:
        return Exhibit(data.test_names[row], None, ())
    inputs, targets, index = getattr(data, f"{part}_inputs"), getattr(data, f"{part}_targets"), getattr(data, f"{part}_index")
    title = title or f"{part} {index[row]}: {label(data, targets[row])}"
    if said := text(data, part, row):
        return Exhibit(title, None, tuple(textwrap.wrap(said, LINE)))
    own = inputs[row][0] if data.views else inputs[row]
    values = own.double().cpu().numpy() * data.input_scale + data.input_offset
    if data.is_image:
        return Exhibit(title, np.clip(values, 0.0, 1.0), ())
    names = data.feature_names or tuple(f"x{j}" for j in range(values.size))
    return Exhibit(title, None, tuple(f"{name} = {value:.4g}" for name, value in zip(names, values.ravel(), strict=True)))


def _test_label(data: Data, row: int) -> str:
    return data.test_names[row] if data.test_names else label(data, data.test_targets[row])


def ranked(influence: Float[np.ndarray, "n_train n_test"], k: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each test example the rows of the k most helpful (largest) and k most harmful (smallest) training examples, in that order."""
    k = min(k, len(influence))
    order = np.argsort(-influence, axis=0, kind="stable")
    return [(order[:k, t], order[::-1][:k, t]) for t in range(influence.shape[1])]


def kinds(data: Data, measurement: Measurement) -> tuple[str, str]:
    """What training examples of large positive and of large negative influence are called: helpful and harmful where less is better (a
    loss), lowering and raising where it is not (without the first, what is measured would be higher), or where the measurement asks
    questions of its own, as `weat` does."""
    plain = measurement.lower_is_better and (measurement.whole_set or not data.test_names)
    return ("helpful", "harmful") if plain else ("lowering", "raising")


def top_table(
    data: Data, influence: Float[np.ndarray, "n_train n_test"], k: int, whole_set: bool, called: tuple[str, str] = ("helpful", "harmful")
) -> pd.DataFrame:
    """One row per test example x kind x rank; for texts, their beginnings in two more columns. `called`: as `kinds` gives them."""
    rows: list[dict[str, Any]] = []
    for t, (helpful, harmful) in enumerate(ranked(influence, k)):
        test = {"test_index": -1, "test_label": "whole test set"} if whole_set else {
            "test_index": data.test_index[t], "test_label": _test_label(data, t)
        }  # fmt: skip
        for kind, chosen in zip(called, (helpful, harmful), strict=True):
            rows += [
                {
                    **test, "kind": kind, "rank": rank, "train_index": data.train_index[i],
                    "train_label": label(data, data.train_targets[i]), "influence": influence[i, t],
                    **_texts(data, None if whole_set else t, i),
                }
                for rank, i in enumerate(chosen, start=1)
            ]  # fmt: skip
    return pd.DataFrame(rows)


def _texts(data: Data, t: int | None, i: int) -> dict[str, str]:
    """The two columns that tables of texts have more."""
    return (
        {"test_text": "" if t is None or data.test_names else text(data, "test", t), "train_text": text(data, "train", i)}
        if data.texts
        else {}
    )


def gallery(data: Data, influence: Float[np.ndarray, "n_train n_test"], k: int, shown: list[int], whole_set: bool) -> list[GalleryRow]:
    """Gallery rows of the test examples `shown`."""
    ranking = ranked(influence, k)
    made = []
    for t in shown:
        test = Exhibit("whole test set", None, (f"mean over {data.n_test}", "test examples")) if whole_set else exhibit(data, "test", t)
        sides = [[(exhibit(data, "train", i), float(influence[i, t])) for i in side] for side in ranking[t]]
        made.append(GalleryRow(test, sides[0], sides[1]))
    return made
