"""A table of the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from jaxtyping import Float, Num

from influx.datasets.base import Dataset, Source, Task
from influx.errors import InfluxError, nearest

MISSING = ("", "na", "n/a", "nan", "null", "none", "?")


@dataclass(frozen=True, kw_only=True)
class CsvFile(Dataset):
    """A comma-separated file with a header: one example a row, the column `target` to predict, all others numeric features.

    path: the file; positions count its rows from 0, the header apart.
    target: name of the column to predict.
    task: `classification`: labels are whole numbers 0, 1, 2 ... without a gap, or text (classes in alphabetical order);
        `regression`: numbers.

    Source and licence: the user's.

    Raises `InfluxError` when the file cannot be read as such a table, saying which column or row is to blame.
    """

    path: str
    target: str
    task: str = "classification"

    def read(self) -> Source:
        table = _read_table(Path(self.path).expanduser(), self.target)
        features = table.drop(columns=self.target)
        inputs = _features(self.path, features)
        targets, class_names = _targets(self.path, table[self.target], self.task)
        return Source(inputs, targets, cast(Task, self.task), class_names, tuple(features.columns))


def _read_table(path: Path, target: str) -> pd.DataFrame:
    """The file as it is written: every cell is text, an absent one is empty."""
    if not path.is_file():
        raise InfluxError(f"dataset.path={path} is not a file (looked for {path.absolute()}): give the path of a CSV file.")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True, compression=None)
    except pd.errors.EmptyDataError as error:
        raise InfluxError(f"{path} is empty: a header and at least one row are needed.") from error
    except (OSError, ValueError) as error:  # ParserError and UnicodeDecodeError are ValueErrors
        reason = " ".join(str(error).split())
        raise InfluxError(f"{path} cannot be read as comma-separated UTF-8 text ({reason}): correct the file.") from error
    _check_header(path, table, target)
    return table.fillna("").apply(lambda column: column.str.strip())


def _check_header(path: Path, table: pd.DataFrame, target: str) -> None:
    columns = [str(column) for column in table.columns]
    if target not in columns:
        raise InfluxError(f"{path} has no column dataset.target={target}; its columns are {', '.join(columns)}.{nearest(target, columns)}")
    if len(table) == 0:
        raise InfluxError(f"{path} is empty: it has a header but no row.")
    if len(columns) == 1:
        raise InfluxError(f"{path} has no column beside the target {target}: at least one numeric feature is needed.")
    if not isinstance(table.index, pd.RangeIndex):
        raise InfluxError(f"{path} has rows with more fields than its header has names: name every column.")
    nameless = [number for number, column in enumerate(columns, start=1) if column.startswith("Unnamed: ")]
    if nameless:
        raise InfluxError(f"{path} has no name for column {nameless[0]}: name it, or delete it if it only numbers the rows.")


def _features(path: str, table: pd.DataFrame) -> Float[np.ndarray, "n features"]:
    """Every cell as a number; NaN where it is empty or says that it is missing."""
    numbers = table.apply(pd.to_numeric, errors="coerce").astype(np.float64)
    wrong = (numbers.isna() & ~table.apply(lambda column: column.str.lower().isin(MISSING))).to_numpy()  # [n, features]
    if wrong.any():
        column = int(np.argmax(wrong.any(axis=0)))
        row = int(np.argmax(wrong[:, column]))
        raise InfluxError(
            f"{path} has the feature column {table.columns[column]} that is not numeric ({table.iat[row, column]!r} in row {row}, "
            "counting from 0): delete the column or encode it as numbers."
        )
    return numbers.to_numpy()


def _targets(path: str, column: pd.Series, task: str) -> tuple[Num[np.ndarray, " n"], tuple[str, ...]]:
    """(numbers, no names), or for text labels (places in the sorted names, names)."""
    if (column == "").any():
        row = int(np.argmax(column == ""))
        raise InfluxError(f"{path} has no {column.name} in row {row} (counting from 0): remove or fill in such rows.")
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.notna().all():
        return numbers.to_numpy(dtype=np.float64), ()
    if task == "regression" or numbers.notna().any():
        row = int(np.argmax(numbers.isna()))
        raise InfluxError(
            f"{path} has the target {column.iloc[row]!r} in row {row} (counting from 0), which is not a number"
            f"{': correct it, or set dataset.task=classification' if task == 'regression' else ' while others are: use one or the other'}."
        )
    class_names, labels = np.unique(column.to_numpy(dtype=str), return_inverse=True)
    return labels, tuple(map(str, class_names))
