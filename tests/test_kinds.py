"""Whether an example helps or harms is said only where less of what is measured is better; else it lowers or raises it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import Run
from PIL import Image
from problems import data

from influx.measurements import LogProbability, Loss, Margin, MeanLoss, Measurement
from influx.pipelines import estimate
from influx.pipelines.exhibits import kinds
from influx.report.gallery import save_gallery

GOOD, NEUTRAL = ("helpful", "harmful"), ("lowering", "raising")


@pytest.mark.parametrize(
    ("measurement", "said"), [(Loss(), GOOD), (MeanLoss(), GOOD), (Margin(), NEUTRAL), (LogProbability(), NEUTRAL)], ids=repr
)
def test_words_by_measurement(measurement: Measurement, said: tuple[str, str]) -> None:
    assert kinds(data("softmax"), measurement) == said


def test_questions_of_its_own_are_neither_helped_nor_harmed() -> None:
    tiny = data("softmax")
    posed = replace(tiny, test_names=tuple(f"question {at}" for at in range(len(tiny.test_targets))))
    assert kinds(posed, Loss()) == NEUTRAL


@pytest.mark.parametrize(("measurement", "said"), [("loss", GOOD), ("margin", NEUTRAL)])
def test_the_table_and_the_picture_use_the_same_words(
    tiny: Run, monkeypatch: pytest.MonkeyPatch, measurement: str, said: tuple[str, str]
) -> None:
    """The first kind are the largest influences: without them what is measured would be higher."""
    given = {}
    monkeypatch.setattr(estimate, "save_gallery", lambda rows, path, **more: given.update(more) or save_gallery(rows, path, **more))
    folder = tiny("estimate", f"measurement={measurement}", pictures=True).folder
    saved, shown = np.load(folder / "influence.npz"), pd.read_csv(folder / "top_influences.csv")
    assert set(shown["kind"]) == set(said)
    for t, position in enumerate(saved["test_index"]):
        mine = shown[(shown["test_index"] == position) & (shown["kind"] == said[0])]
        np.testing.assert_array_equal(mine["influence"], np.sort(saved["influence"][:, t])[::-1][: len(mine)])
    assert all(word in heading for word, heading in zip(said, given["kinds"], strict=True))
    with Image.open(folder / "top_influences.png") as picture:
        assert picture.size[0] > 500
