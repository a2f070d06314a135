"""Figures as files: the same bytes for the same figure, text that stays text, and words for those who cannot see it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, call
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image

from influx import rules
from influx.errors import InfluxError
from influx.report.plots import new_figure, style
from influx.report.saving import formats, in_words, save


def drawn() -> Figure:
    with style():
        figure = new_figure(3, 2)
        ax = figure.subplots()
        ax.plot([0, 1], [0, 1], label="identity")
        ax.set_title("12 pairs")
        ax.set_xlabel("predicted\nchange (nats)")
        ax.set_ylabel("actual change (nats)")
        figure.suptitle("cg on digits")
        return figure


def written(folder: Path, kinds: object) -> dict[str, bytes]:
    folder.mkdir()
    with style(), formats(kinds):  # type: ignore[arg-type]
        save(drawn(), folder / "scatter.png")
    return {file.suffix[1:]: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("kinds", "files"), [(True, {"png"}), (None, {"png"}), (["pdf"], {"png", "pdf"}), (["svg", "pdf", "png"], {"png", "pdf", "svg"})]
)
def test_png_always_and_what_is_asked_for(tmp_path: Path, kinds: object, files: set[str]) -> None:
    first, second = written(tmp_path / "a", kinds), written(tmp_path / "b", kinds)
    assert set(first) == files
    assert first == second  # bytes: no date, no random name


def test_a_pdf_leaves_no_lines_in_a_runs_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        written(tmp_path / "a", ["pdf", "svg"])
    assert caplog.records == []


def test_text_stays_text(tmp_path: Path) -> None:
    made = written(tmp_path / "a", ["pdf", "svg"])
    assert b">12 pairs<" in made["svg"]
    assert b"/FontFile2" in made["pdf"]  # TrueType
    assert b"/FontFile3" not in made["pdf"]
    assert b"/Type3" not in made["pdf"]


def test_a_figure_says_what_it_shows(tmp_path: Path) -> None:
    said = "cg on digits; 12 pairs; actual change (nats) against predicted change (nats)"
    assert in_words(drawn()) == said
    made = written(tmp_path / "a", ["pdf", "svg"])
    with Image.open(tmp_path / "a/scatter.png") as picture:
        assert picture.info["Description"] == said
    assert said.encode() in made["svg"]
    assert np.isfinite(imread(tmp_path / "a/scatter.png")).all()


def test_a_run_writes_them_and_takes_them_away(tmp_path: Path) -> None:
    words = (*TINY["train"], "hydra.run.dir=run")
    assert call("train", *words, "pictures=[pdf,svg]", cwd=tmp_path, pictures=True).status == 0
    assert {file.name for file in (tmp_path / "run").glob("history.*")} == {"history.csv", "history.png", "history.pdf", "history.svg"}
    assert call("train", *words, "pictures=false", cwd=tmp_path, pictures=True).status == 0
    assert {file.name for file in (tmp_path / "run").glob("history.*")} == {"history.csv"}


@pytest.mark.parametrize("value", ["pdf", ["gif"], [], ["pdf", "pdf"], 1])
def test_other_formats_are_refused(value: object) -> None:
    with pytest.raises(InfluxError, match=r"pictures=.* is not possible: it must be true, false, or a list of pdf and svg"):
        rules.check_value("pictures", value)
