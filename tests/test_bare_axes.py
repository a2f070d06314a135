"""Every drawing function into the axes of a user's own figure, outside influx's style: next to nothing, nothing, and a great deal."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from influx.report.cleansing import draw_cleansing
from influx.report.debiasing import draw_debiasing
from influx.report.detection import MOST, draw_curves, draw_scores
from influx.report.explanations import PlanePanel, draw_plane
from influx.report.figures.lines import draw_line
from influx.report.figures.strips import draw_strip
from influx.report.heat_map import draw_class_influence
from influx.report.plots import draw_history, draw_pairs, draw_per_test
from influx.statistics import compare

MANY = 100_000
RNG = np.random.default_rng(0)


def numbers(n: int) -> dict[str, Any]:
    value = RNG.normal(size=n)
    return {"value": value, "ci_low": value - 0.1, "ci_high": value + 0.1}


def history(n: int) -> pd.DataFrame:
    return pd.DataFrame({"epoch": np.arange(n) + 1, "loss": RNG.uniform(0.1, 1, n)})


def pairs(n: int) -> pd.DataFrame:
    return pd.DataFrame({"predicted": RNG.normal(size=n), "actual": RNG.normal(size=n), "actual_se": RNG.uniform(size=n)})


def per_test(n: int) -> pd.DataFrame:
    return pd.DataFrame({"test_index": np.arange(n), "spearman": RNG.uniform(-1, 1, n)})


def curve(n: int) -> pd.DataFrame:
    found = np.sort(RNG.uniform(size=n))
    return pd.DataFrame({"score": "cg", "inspected": np.linspace(0, 1, n), "found": found, "ci_low": found, "ci_high": found})


def scores(n: int) -> pd.DataFrame:
    return pd.DataFrame({"score": [f"score {at}" for at in range(n)], **numbers(n)})


def accuracies(n: int) -> pd.DataFrame:
    first = {"score": ["all"] * min(n, 1) + ["cg"] * (n - 1), "kind": ["accuracy"] * n, "removed": np.linspace(0, 1, n)}
    return pd.DataFrame({**first, **numbers(n)})


def effects(n: int) -> pd.DataFrame:
    first = {"score": ["trained", *(f"rule {at}" for at in range(1, n))][:n], "statistic": ["weat:career", *["change:career"] * n][:n]}
    return pd.DataFrame({**first, **numbers(n)})


def classes(n: int) -> pd.DataFrame:
    side = int(np.ceil(np.sqrt(n)))
    return pd.DataFrame(
        {"train_class": np.arange(n) // max(side, 1), "test_class": np.arange(n) % max(side, 1), "influence": RNG.normal(size=n)}
    )


def line(n: int) -> pd.DataFrame:
    return pd.DataFrame({"at": np.arange(n), "mean": RNG.normal(size=n), "low": -1.0, "high": 1.0})


def dots(n: int) -> pd.DataFrame:
    return pd.DataFrame({"value": RNG.normal(size=n)})


Draw = Callable[..., None]
MEAN = pd.DataFrame({"mean": [0.0], "low": [-0.1], "high": [0.1]})

# a table of n rows, its drawing function, the column without which there is nothing to draw, and what the axes say then
KINDS: dict[str, tuple[Callable[[int], pd.DataFrame], Draw, str, str]] = {
    "history": (history, draw_history, "loss", "no training loss was recorded"),
    "pairs": (pairs, partial(draw_pairs, unit="nats", calibrated=True), "actual", "no pairs"),
    "pairs, arbitrary unit": (pairs, partial(draw_pairs, unit="nats", calibrated=False), "predicted", "no pairs"),
    "per test": (per_test, draw_per_test, "spearman", "no test example has a correlation"),
    "curves": (curve, partial(draw_curves, share=0.2), "found", "no score"),
    "scores": (scores, draw_scores, "value", "no score"),
    "cleansing": (accuracies, draw_cleansing, "value", "no accuracy"),
    "debiasing": (effects, partial(draw_debiasing, test="career"), "value", "no change"),
    "class influence": (classes, partial(draw_class_influence, unit="nats"), "influence", "no influences"),
    "line": (line, draw_line, "mean", ""),
    "strip": (dots, partial(draw_strip, mean=MEAN), "value", ""),
}  # fmt: skip


def drawn(draw: Draw, table: Any) -> Axes:
    """The axes after drawing and rendering, every warning an error, matplotlib's settings as they were."""
    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = Figure()
        ax = figure.subplots()
        draw(table, ax)
        figure.draw_without_rendering()
    assert dict(matplotlib.rcParams) == before
    return ax


def said(ax: Axes) -> set[str]:
    return {text.get_text() for text in ax.texts}


@pytest.mark.parametrize("kind", KINDS)
def test_axes_without_anything_to_draw_say_so(kind: str) -> None:
    made, draw, column, words = KINDS[kind]
    for table in (made(0), made(5).assign(**{name: np.nan for name in made(5) if name in (column, "ci_low", "ci_high", "low", "high")})):
        assert not words or words in said(drawn(draw, table))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_drawn(kind: str, rows: int) -> None:
    made, draw, _, words = KINDS[kind]
    ax = drawn(draw, made(rows))
    assert ax.has_data()
    assert words not in said(ax) or (kind, rows) in (("debiasing", 1), ("line", 1), ("strip", 1))  # its one row is the effect as trained


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_thousand_rows_are_drawn(kind: str) -> None:
    made, draw, _, _ = KINDS[kind]
    ax = drawn(draw, made(MANY))
    assert ax.has_data()
    assert len(ax.get_children()) < 500  # not an artist a row


@pytest.mark.parametrize("kind", KINDS)
def test_table_then_axes_then_settings_by_name(kind: str) -> None:
    draw = KINDS[kind][1]
    function = draw.func if isinstance(draw, partial) else draw
    first, second, *others = inspect.signature(function).parameters.values()
    assert second.name == "ax"
    assert {parameter.kind for parameter in others} <= {inspect.Parameter.KEYWORD_ONLY}
    assert first.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


def test_pairs_without_a_number_are_counted() -> None:
    table = pairs(10)
    table.loc[3, "actual"] = np.nan
    ax = drawn(partial(draw_pairs, unit="nats", calibrated=True), table)
    assert "1 without a number" in ax.get_xlabel()
    np.testing.assert_array_equal(ax.collections[-1].get_offsets(), table.drop(3)[["predicted", "actual"]])


def test_the_mean_and_its_ceiling_are_drawn_when_the_correlations_are_given() -> None:
    estimate = RNG.normal(size=(30, 4))
    change = estimate[..., None] + RNG.normal(size=(30, 4, 3))
    correlations = compare(estimate, change, calibrated=True, resamples=20)
    with_them, without = (drawn(partial(draw_per_test, correlations=table), per_test(4)) for table in (correlations, None))
    row = correlations.set_index("statistic").loc["spearman"]
    vertical = [line.get_xdata()[0] for line in with_them.lines[1:] if len(set(line.get_xdata())) == 1]
    assert vertical == [row.value, row.noise_ceiling]
    assert len(without.lines) == 1
    assert without.get_legend() is None


def test_scores_beyond_those_with_room_are_counted() -> None:
    ax = drawn(draw_scores, scores(MOST + 5))
    assert len(ax.get_yticks()) == MOST
    assert ax.get_xlabel().endswith("\n5 more scores are not drawn")
    effect = drawn(partial(draw_debiasing, test="career"), effects(MOST + 5))
    assert effect.get_xlabel().endswith("more scores are not drawn")


def test_planes_of_nothing_and_of_a_great_deal() -> None:
    def panel(n: int, scale: float) -> PlanePanel:
        return PlanePanel("a", RNG.normal(size=(n, 2)), np.arange(n) % 3, scale * RNG.normal(size=n), np.zeros(2))

    for nothing in (panel(0, 1.0), panel(4, np.nan)):
        assert "no influences" in said(drawn(draw_plane, nothing))
    for n in (1, MANY):
        assert sum(len(part.get_offsets()) for part in drawn(draw_plane, panel(n, 1.0)).collections) == n  # type: ignore[arg-type]


@pytest.mark.parametrize(("scale", "label"), [(1e-5, "mean influence ($10^{-5}$ nats)"), (1.0, "mean influence (nats)")])
def test_class_influences_are_shown_in_powers_of_ten(scale: float, label: str) -> None:
    table = pd.DataFrame({"train_class": list("ab"), "test_class": list("aa"), "influence": [2 * scale, -1e-6 * scale]})
    ax = drawn(partial(draw_class_influence, unit="nats"), table)
    assert said(ax) == {"2.00", "0.00"}
    assert ax.figure.axes[1].get_ylabel() == label
