"""What the tables say, word by word, and that every figure is drawn whole, without a warning and without global state."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from influx.report import gallery, plots
from influx.report.gallery import Exhibit, GalleryRow, save_gallery
from influx.report.plots import save_history, save_scatter
from influx.report.tables import correlation_lines, significant, to_markdown, verdict
from influx.statistics import compare, per_test_correlation

pytestmark = pytest.mark.filterwarnings("error")


def comparison(**changes):
    """A `compare` table with one row, and whatever else is said about it."""
    row = {
        "statistic": "spearman",
        "value": 0.34,
        "ci_low": 0.28,
        "ci_high": 0.4,
        "noise_ceiling": 0.61,
        "n_removed": 50,
        "n_test": 20,
        "n_seeds": 4,
        "n_undefined": 0,
        "ceiling_low": 0.57,
        "ceiling_high": 0.65,
        "corrected": 0.557,
        "corrected_low": 0.46,
        "corrected_high": 0.66,
        "this_model": 0.36,
    }
    return pd.DataFrame([row | changes])


# ------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0.00"),
        (0.5, "0.500"),
        (-0.0123456, "-0.0123"),
        (99.96, "100"),
        (999.6, "1000"),
        (1234.5, "1230"),
        (1234567, "1.23e+06"),
        (-2.5e-7, "-2.50e-07"),
        (float("nan"), ""),
        (float("inf"), "inf"),
    ],
)
def test_three_significant_digits(number, text):
    assert significant(number) == text


def test_markdown_is_a_github_table():
    table = pd.DataFrame({"a|b": ["x|y", None], "value": [0.5, np.nan], "n": [1234, 2], "calibrated": [True, False]})
    assert to_markdown(table) == (
        "| a\\|b | value | n | calibrated |\n| --- | ---: | ---: | --- |\n| x\\|y | 0.500 | 1234 | True |\n|  |  | 2 | False |\n"
    )


def on_screen(table, **options):
    console = Console(width=100, file=io.StringIO())
    console.print(correlation_lines(table, **options))
    return console.file.getvalue()


def test_terminal_table_has_value_and_ceiling_with_intervals():
    unknown = dict.fromkeys(["ci_low", "ci_high", "noise_ceiling", "ceiling_low", "ceiling_high", "corrected"], np.nan)
    text = on_screen(pd.concat([comparison(), comparison(statistic="top_10_overlap", value=0.2, **unknown)]))
    parts = ("95 % interval", "noise ceiling", "corrected", "spearman", "0.340", "[0.280, 0.400]", "0.610 [0.570, 0.650]", "0.557")
    for part in (*parts, "top 10 overlap"):
        assert part in text
    assert "50 removed examples, 20 test examples, 4 seeds" in text
    assert "nan" not in text


def test_terminal_table_fits_a_hundred_columns():
    lines = on_screen(comparison(statistic="spearman_pooled", value=-2.5e-7, ci_low=-2.5e-7, ci_high=-2.5e-7, corrected=-2.5e-7))
    assert re.search(r"spearman pooled .* \[-2.50e-07, -2.50e-07\] .* 0.610 \[0.570, 0.650\] .* -2.50e-07 ", lines)


@pytest.mark.parametrize(("n_removed", "caption"), [(1, "1 removed subset, 20 test"), (50, "50 removed subsets, 20 test")])
def test_terminal_table_names_what_was_removed(n_removed, caption):
    assert caption in on_screen(comparison(n_removed=n_removed), unit="removed subset")


def test_verdict_names_the_ceiling_and_corrects_for_it():
    assert verdict(comparison()) == [
        "Spearman 0.340 [0.280, 0.400]; no estimate that is blind to the seeds' noise can be expected to pass 0.610 (4 seeds).",
        "Corrected for that noise (divided by its ceiling) it is 0.557 [0.460, 0.660].",
    ]


@pytest.mark.parametrize("changes", [{"noise_ceiling": 0.3}, {"noise_ceiling": 0.999}, {"corrected": np.nan, "noise_ceiling": np.nan}])
def test_verdict_corrects_only_when_there_is_noise_and_not_too_much(changes):
    assert not any("Corrected" in line for line in verdict(comparison(**changes)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_seeds": 1, "noise_ceiling": np.nan}, "With one seed the truth's noise is unknown: retraining.seeds=4 measures it."),
        ({"noise_ceiling": np.nan}, "The truth's noise is unknown"),
        (
            {"noise_ceiling": 0.3, "ceiling_low": 0.1},
            r"The truth is mostly noise \(ceiling 0.300 \[0.100, 0.650\]\): a low correlation says little .* "
            "About retraining.seeds=72 .* ceiling to 0.8",
        ),
        ({"noise_ceiling": 0.0}, "The truth is mostly noise.* Its seeds do not agree"),
        ({"ceiling_low": 0.41}, r"to pass 0.610 \(4 seeds; 95 % interval \[0.410, 0.650\]\)"),
        (
            {"this_model": 0.5},
            r"Against this model's own retraining \(same start and batch order\) it is 0.500: the estimate predicts this",
        ),
        ({"this_model": 0.2}, "it is 0.200: one seed is a noisier truth than the mean of 4"),
        ({"ci_low": -0.1}, "The interval holds 0"),
        ({"n_removed": 9}, r"9 removed examples are too few for the interval to be trusted: raise retraining\.removed"),
        ({"n_removed": 1, "ci_low": np.nan, "ci_high": np.nan}, "No interval: 1 removed example cannot"),
        ({"n_undefined": 3}, "3 of 20 test examples left out of the mean"),
        ({"value": np.nan, "ci_low": np.nan, "n_undefined": 20}, "Spearman is undefined"),
    ],
)
def test_verdict_says_every_caveat(changes, said):
    assert pd.Series(verdict(comparison(**changes))).str.contains(said).sum() == 1


@pytest.mark.parametrize("this_model", [np.nan, 0.34, 0.38, 0.3])
def test_verdict_is_silent_on_this_model_when_it_is_no_different(this_model):
    assert not any("this model" in line for line in verdict(comparison(this_model=this_model)))


@pytest.mark.parametrize(
    ("n_removed", "said"), [(1, "No interval: 1 removed group cannot show"), (9, "9 removed groups are too few for the interval")]
)
def test_verdict_names_what_was_removed(n_removed, said):
    lines = verdict(comparison(n_removed=n_removed), unit="removed group")
    assert any(line.startswith(said) for line in lines)
    assert not any("removed example" in line for line in lines)


def test_verdict_on_scale():
    table = pd.concat([comparison(), comparison(statistic="slope", value=0.5, noise_ceiling=np.nan)])
    assert verdict(table)[2].startswith("Slope 0.500 [0.280, 0.400]: actual changes are that multiple of the predicted ones")


# ------------------------------------------------------------------------------------------------------------ figures


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """A path to save to, and a check: one figure, a real picture, nothing that reaches over its edge, no global setting changed."""
    figures, settings = [], dict(matplotlib.rcParams)
    save = Figure.savefig

    def remember(figure, *arguments, **options):
        save(figure, *arguments, **options)
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", remember)
    path = tmp_path / "figure.png"

    def check():
        (figure,) = figures
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 4_000
        inked, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert min(inked.x0, inked.y0) > -0.02
        assert inked.x1 < width + 0.02
        assert inked.y1 < height + 0.02
        assert dict(matplotlib.rcParams) == settings
        return figure

    return path, check


def scatter(path, n_removed, n_test, n_seeds, *, calibrated=True, unit="nats", title="cg against retraining", outlier=False):
    rng = np.random.default_rng(0)
    signal = 1e-3 * rng.standard_t(4, size=(n_removed, n_test))
    change = signal[..., None] + 1e-3 * rng.normal(size=(n_removed, n_test, n_seeds))
    estimate = (signal + 5e-4 * rng.normal(size=signal.shape)) * (1 if calibrated else 1e5)
    if n_test > 3:
        estimate[:, 1] = 0
    if outlier:
        estimate[0, 0] = 10
    truth = change.mean(axis=2)
    pairs = pd.DataFrame({"predicted": estimate.ravel(), "actual": truth.ravel()})
    if n_seeds > 1:
        pairs["actual_se"] = (change.std(axis=2, ddof=1) / np.sqrt(n_seeds)).ravel()
    correlations = compare(estimate, change, calibrated=calibrated, resamples=50)
    per_test = pd.DataFrame({"test_index": np.arange(n_test), "spearman": per_test_correlation(estimate, truth, "spearman")})
    save_scatter(pairs, per_test, correlations, path, unit=unit, calibrated=calibrated, title=title)


def texts(figure):
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


@pytest.mark.parametrize("n_seeds", [1, 4])
@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize(("n_removed", "n_test"), [(30, 1), (30, 12), (50, 100)])
def test_scatter_is_drawn_whole(drawn, n_removed, n_test, n_seeds, calibrated):
    path, check = drawn
    scatter(path, n_removed, n_test, n_seeds, calibrated=calibrated)
    said = texts(check())
    assert f"{n_removed * n_test:,} pairs ({n_removed} removed × {n_test} test)" in said
    assert ("noise ceiling unknown (1 seed)" in said) == (n_seeds == 1)
    assert bool(re.search(r"noise ceiling [\d.]+ \[[\d.]+, [\d.]+\] \(4 seeds\)", said)) == (n_seeds == 4)
    assert ("dashed: actual = predicted" in said) == ("slope" in said) == calibrated
    assert ("undefined for 1 of" in said) == (n_test > 3)
    assert "actual change (nats)" in said


def test_scatter_draws_the_ceiling_as_a_band(drawn):
    path, check = drawn
    scatter(path, 30, 12, 4)
    right = check().axes[1]
    (ceiling,) = [line.get_xdata()[0] for line in right.lines if line.get_linestyle() == "--"]
    (band,) = [patch for patch in right.patches if matplotlib.colors.same_color(patch.get_facecolor()[:3], plots.VERMILLION)]
    assert band.get_x() < ceiling < band.get_x() + band.get_width()


def test_scatter_says_what_it_leaves_out(drawn):
    path, check = drawn
    scatter(path, 300, 3, 1, outlier=True, title="influence functions with a very long name " * 5)
    assert "1 of 900 pairs outside" in texts(check())


@pytest.mark.parametrize("kind", ["two removals", "all undefined"])
def test_scatter_of_next_to_nothing(drawn, kind):
    path, check = drawn
    if kind == "two removals":
        scatter(path, 2, 2, 1)
    else:
        pairs = pd.DataFrame({"predicted": np.zeros(6), "actual": np.zeros(6)})
        per_test = pd.DataFrame({"test_index": [0, 1], "spearman": [np.nan, np.nan]})
        correlations = compare(np.zeros((3, 2)), np.zeros((3, 2, 1)), calibrated=True, resamples=10)
        save_scatter(pairs, per_test, correlations, path, unit="nats", calibrated=True, title="nothing")
    check()


@pytest.mark.parametrize(("epochs", "accuracy", "panels"), [(1, 0.5, 3), (40, np.nan, 2), (5, 0.9, 3)])
def test_history_has_a_panel_for_all_that_was_recorded(drawn, epochs, accuracy, panels):
    path, check = drawn
    epoch = np.arange(1, epochs + 1)
    save_history(pd.DataFrame({"epoch": epoch, "loss": 10.0 ** -(epoch / 2), "accuracy": accuracy, "gradient_norm": 1.0 / epoch}), path)
    axes = check().axes
    assert len(axes) == panels
    assert axes[0].get_yscale() == ("log" if epochs > 5 else "linear")
    assert axes[1].get_yscale() == "log"


def test_history_with_a_zero_gradient_is_linear(drawn):
    path, check = drawn
    save_history(pd.DataFrame({"epoch": [1, 2], "loss": [1.0, 0.5], "accuracy": np.nan, "gradient_norm": [1.0, 0.0]}), path)
    assert check().axes[1].get_yscale() == "linear"


def exhibit(kind, number):
    rng = np.random.default_rng(number)
    if kind == "rows":
        return Exhibit(f"malignant · #{number}", None, tuple(f"a feature with number {i} = {rng.normal():.3g}" for i in range(30)))
    if kind == "text":
        return Exhibit(f"a long title that must be wrapped, #{number}", None, ("it was the best of times, it was the worst of times",))
    return Exhibit(f"7 · #{number}", rng.uniform(size={"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar": (3, 32, 32)}[kind]))


@pytest.mark.parametrize("kind", ["digits", "mnist", "cifar", "rows", "text"])
@pytest.mark.parametrize("k", [1, 5])
def test_gallery_is_drawn_whole(drawn, kind, k):
    path, check = drawn
    rows = [
        GalleryRow(exhibit(kind, n), [(exhibit(kind, i), 0.01234) for i in range(k)], [(exhibit(kind, i), -0.5) for i in range(k - 1)])
        for n in range(3)
    ]
    save_gallery(rows, path, unit="nats")
    figure = check()
    said = texts(figure)
    assert len(figure.axes[0].images) == (0 if kind in ("rows", "text") else 3 * 2 * k)
    assert said.count("+0.0123") == 3 * k
    assert said.count("-0.500") == 3 * (k - 1)
    assert "influence (nats)" in said
    assert said.count("a feature with number 29") == (3 if kind == "rows" else 0)  # names once a line, not once an exhibit


def test_gallery_cards_hold_their_lines(drawn):
    path, check = drawn
    cards = [Exhibit("a", None, ("W" * 60, "short")), Exhibit("b", None, ("W" * gallery.LONGEST,))]
    save_gallery([GalleryRow(cards[0], [(cards[1], 1.0)], [])], path)
    figure = check()
    frames = [patch.get_window_extent() for patch in figure.axes[0].patches]
    lines = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text().startswith("W")]
    assert len(lines) == len(frames) == 2
    for line in lines:
        assert any(frame.x0 <= line.x0 and line.x1 <= frame.x1 and frame.y0 <= line.y0 and line.y1 <= frame.y1 for frame in frames)


def test_gallery_says_how_many_test_examples_it_leaves_out(drawn, monkeypatch):
    path, check = drawn
    monkeypatch.setattr(gallery, "ROWS", 2)
    save_gallery([GalleryRow(exhibit("digits", n), [(exhibit("digits", 9), 1.0)], []) for n in range(3)], path)
    assert "the first 2 of 3 test examples" in texts(check())


def test_figures_need_neither_pyplot_nor_a_display():
    code = "import sys, influx.report.gallery; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_style_ends_with_its_context():
    before = matplotlib.rcParams["axes.spines.top"]
    with plots.style():
        assert matplotlib.rcParams["axes.spines.top"] is False
    assert matplotlib.rcParams["axes.spines.top"] == before
