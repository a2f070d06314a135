"""Scores from a file: any other program's influence estimates, compared like those made here.

The file is an .npz with the arrays of a run's `influence.npz`: `influence [n_train, n_test]`, and `train_index`, `test_index`, the
positions of its rows and columns in the data set's own order; a whole-set measurement has one column, -1. Rows and columns may come in
any order. Sign: positive where leaving the training example out raises the measurement.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from jaxtyping import Float, Int

from influx import rules
from influx.cost import Cost
from influx.errors import InfluxError
from influx.estimators.base import Estimate, Estimator
from influx.problem import Examples, Problem
from influx.record import Record

ARRAYS = ("influence", "train_index", "test_index")
INDEX = {"train_index": "training", "test_index": "test"}

Index = Int[np.ndarray, " rows"]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class External(Estimator):
    """influence = what the file says, rows and columns in this run's order.

    Loaded without pickle: nothing in the file can run code. Cost: reading it, before training and after. Memory: the file's matrix.

    Args:
        path: the .npz file.
        calibrated: whether the scores claim the measurement's unit; slope and RMSE are then reported.

    Raises:
        InfluxError: no path or no such file, no .npz, an array missing or of a wrong shape or type, numbers that are not finite, an
            example of this run missing, listed twice, or one that this run does not have.
    """

    path: str | None = None
    calibrated: bool = False  # type: ignore[misc]  # here what the user claims, elsewhere a method's own property

    def __post_init__(self) -> None:
        rules.check_fields("method", self)

    def plan(self, problem: Problem, record: Record) -> Cost:
        self._matrix(problem)
        return Cost()

    def estimate(self, problem: Problem, record: Record, seed: int) -> Estimate:
        return Estimate(torch.from_numpy(self._matrix(problem)).to(problem.theta))

    def _matrix(self, problem: Problem) -> Float[np.ndarray, "n_train n_test"]:
        arrays = self._read()
        wanted = {"train_index": _index(problem.train), "test_index": _index(problem.test)}
        if problem.measurement.whole_set:
            wanted["test_index"] = np.array([-1])
        self._check_shapes(arrays)
        self._check_exchanged(arrays, wanted)
        rows, columns = (self._places(name, arrays[name], wanted[name]) for name in INDEX)
        scores = arrays["influence"]
        if not np.isfinite(scores).all():
            self._refuse(f"{np.count_nonzero(~np.isfinite(scores)):,} of {scores.size:,} scores are not finite")
        return scores[np.ix_(rows, columns)].astype(np.float64)

    def _read(self) -> Arrays:
        if self.path is None:
            raise InfluxError("method=external needs a file of scores: path=scores.npz.")
        if not Path(self.path).is_file():
            raise InfluxError(f"path={self.path}: there is no such file.")
        try:
            loaded = np.load(self.path, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                self._refuse("it is a single array; write one with numpy.savez(path, influence=..., train_index=..., test_index=...)")
            with loaded as file:
                missing = [name for name in ARRAYS if name not in file.files]
                if missing:
                    self._refuse(f"it has no {' and no '.join(missing)}; it holds {', '.join(file.files) or 'nothing'}")
                return {name: file[name] for name in ARRAYS}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise InfluxError(f"path={self.path} cannot be read as an .npz file of plain numbers.") from error

    def _check_shapes(self, arrays: Arrays) -> None:
        for name in INDEX:
            if arrays[name].ndim != 1 or arrays[name].dtype.kind not in "iu":
                self._refuse(f"{name} must be a list of whole numbers, positions in the data set's own order")
        scores, (n, m) = arrays["influence"], (len(arrays[name]) for name in INDEX)
        if scores.dtype.kind not in "fiu":
            self._refuse(f"influence holds {scores.dtype}, not numbers")
        if scores.shape == (m, n) and n != m:
            self._refuse(f"influence looks transposed: it is [{m}, {n}], and its indices say [n_train, n_test] = [{n}, {m}]")
        if scores.shape != (n, m):
            self._refuse(f"influence has shape {list(scores.shape)}, and its indices say [n_train, n_test] = [{n}, {m}]")

    def _check_exchanged(self, arrays: Arrays, wanted: dict[str, Index]) -> None:
        train, test = (wanted[name] for name in INDEX)
        if np.array_equal(np.sort(arrays["train_index"]), np.sort(test)) and np.array_equal(np.sort(arrays["test_index"]), np.sort(train)):
            self._refuse("it looks transposed: its train_index are this run's test examples, and the other way round")

    def _places(self, name: str, given: Index, wanted: Index) -> Index:
        """Where in the file each of this run's examples is."""
        values, first, count = np.unique(given, return_index=True, return_counts=True)
        what = INDEX[name]
        if (count > 1).any():
            self._refuse(f"{name} lists position {values[count > 1][0]} {count.max()} times")
        missing, foreign = np.setdiff1d(wanted, values), np.setdiff1d(values, wanted)
        if len(missing):
            self._refuse(f"{name} lacks {len(missing):,} of this run's {len(wanted):,} {what} examples, position {missing[0]} for one")
        if len(foreign):
            self._refuse(f"{name} has {len(foreign):,} positions that are not among this run's {what} examples, {foreign[0]} for one")
        return first[np.searchsorted(values, wanted)]

    def _refuse(self, what: str) -> NoReturn:
        raise InfluxError(f"path={self.path}: {what}.")


def _index(examples: Examples) -> Index:
    """Positions in the data set's own order, or in the part where no order is known."""
    return np.arange(len(examples)) if examples.index is None else examples.index.cpu().numpy()
