"""A user's own texts: a file with one document a line, or a folder with one document a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from influx import rules
from influx.datasets._pieces import pieces
from influx.datasets.base import Dataset, Source
from influx.errors import InfluxError


@dataclass(frozen=True, kw_only=True)
class Documents(Dataset):
    """Texts without labels, for objectives that read text (objective=skip_gram); they have no classes.

    path: a text file in UTF-8 with one document a line, in the file's order; or a folder with one document in each .txt file, in the order
        of their names, folders inside it included. Empty lines and files keep their position and train nothing.
    unit: of training: "document", "paragraph" (between empty lines of a file) or "sentence", in their order.

    Raises `InfluxError` when the path does not exist, or holds fewer than two documents.
    """

    path: str
    unit: str = "document"
    standardize: bool = False

    def __post_init__(self) -> None:
        rules.check_fields("dataset", self)

    def read(self) -> Source:
        texts, _ = pieces(_read(Path(self.path)), self.unit)
        if len([text for text in texts if text.strip()]) < 2:
            raise InfluxError(f"dataset.path={self.path} has fewer than two documents that are not empty: one a line, or one a .txt file.")
        return Source(np.zeros((len(texts), 1)), np.zeros(len(texts)), "regression", texts=texts)


def _read(path: Path) -> tuple[str, ...]:
    if path.is_dir():
        return tuple(file.read_text(encoding="utf-8", errors="replace") for file in sorted(path.rglob("*.txt")))
    if not path.is_file():
        raise InfluxError(f"dataset.path={path} does not exist: name a text file with one document a line, or a folder of .txt files.")
    return tuple(path.read_text(encoding="utf-8", errors="replace").splitlines())
