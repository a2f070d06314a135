"""Texts of the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from influx.datasets.base import Dataset, Source
from influx.errors import InfluxError


@dataclass(frozen=True, kw_only=True)
class Documents(Dataset):
    """A text file with one document a line, or a folder with one document a file, for objectives that read texts (objective=skip_gram).

    path: the file, whose lines positions count from 0, empty ones included; or the folder, whose `.txt` files positions count in the order
        of their names. UTF-8.

    Documents have no label: the target is 0 for all of them. Source and licence: the user's.

    Raises `InfluxError` when there are no documents at `path`, or they are not text.
    """

    path: str
    standardize: bool = False

    def read(self) -> Source:
        path = Path(self.path).expanduser()
        if path.is_dir():
            files = sorted(path.glob("*.txt"))
            if not files:
                raise InfluxError(f"dataset.path={path} is a folder without .txt files: give a folder of texts, or a file with one a line.")
            texts = tuple(_text(file) for file in files)
        elif path.is_file():
            texts = tuple(_text(path).split("\n"))
            texts = texts[:-1] if texts[-1] == "" else texts  # behind the last line's end
        else:
            raise InfluxError(f"dataset.path={path} is no file or folder (looked for {path.absolute()}): give the path of your texts.")
        if not any(text.strip() for text in texts):
            raise InfluxError(f"{path} has no words in it: write one document a line, or give a folder of .txt files.")
        return unlabelled(texts)


def unlabelled(texts: tuple[str, ...]) -> Source:
    """Texts alone, with 0 for inputs and targets."""
    return Source(np.zeros((len(texts), 1)), np.zeros(len(texts)), "regression", texts=texts)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InfluxError(f"{file} cannot be read as UTF-8 text ({reason}): save it as UTF-8, or leave it out.") from error
