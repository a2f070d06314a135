"""Finished runs in a notebook: `run = influx.load(path)`, and every file of its folder is a table or a labelled array.

Nothing is read before it is asked for, and nothing that is read can run code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from influx.errors import InfluxError


@dataclass(frozen=True)
class Run:
    """One run folder.

    Tables are `pandas.DataFrame`s as their files have them (`run.correlations`, `run.table("diagnostics")`). Arrays have training examples
    in rows and test examples in columns, labelled with their positions in the data set's own order, so that `run.influence` and
    `run.change` can be aligned, joined and correlated by label.
    """

    path: Path

    @cached_property
    def record(self) -> dict[str, Any]:
        """`run.json`: command, versions, seconds a stage, warnings, status."""
        found: dict[str, Any] = json.loads((self.path / "run.json").read_text())
        return found

    @property
    def finished(self) -> bool:
        return self.record.get("status") == "finished"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        found: dict[str, Any] = yaml.safe_load((self.path / ".hydra" / "config.yaml").read_text())
        return found

    @property
    def overrides(self) -> list[str]:
        """What was typed after the command."""
        return list(self.record.get("overrides", []))

    @property
    def choices(self) -> dict[str, str]:
        """The chosen option of each group: data set, model, method ..."""
        return dict(self.record.get("choices", {}))

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables that the run left, without `.csv`."""
        return tuple(sorted(file.stem for file in self.path.glob("*.csv")))

    def table(self, name: str) -> pd.DataFrame:
        """One of `tables`.

        Raises:
            InfluxError: the run left no such table; the message lists those it left.
        """
        file = self.path / f"{name}.csv"
        if not file.is_file():
            raise InfluxError(f"{self.path} has no {name}.csv; it has {', '.join(self.tables) or 'no table'}.")
        return pd.read_csv(file)

    @cached_property
    def correlations(self) -> pd.DataFrame:
        """Agreement of estimate and truth: a row a statistic, with interval and noise ceiling."""
        return self.table("correlations")

    @cached_property
    def influence(self) -> pd.DataFrame:
        """The estimate, [n_train, n_test], in the measurement's unit: predicted change when the row's example is left out."""
        found = self._arrays("influence.npz")
        return _labelled(found["influence"], found["train_index"], found["test_index"])

    @cached_property
    def changes(self) -> pd.DataFrame:
        """The truth seed by seed: columns are (seed, test_index). Rows are left-out training examples, or numbers of subsets or groups."""
        found = self._arrays("ground_truth.npz")
        change, seeds = found["change"], found["seed"]
        rows = pd.RangeIndex(len(change), name="removal") if "removed" in found else pd.Index(found["train_index"], name="train_index")
        columns = pd.MultiIndex.from_product([seeds, found["test_index"]], names=["seed", "test_index"])
        return pd.DataFrame(change.transpose(0, 2, 1).reshape(len(change), -1), rows, columns)

    @property
    def change(self) -> pd.DataFrame:
        """The truth, mean over seeds, [n_removed, n_test]: what the measurement did when the row was left out."""
        return self.changes.T.groupby(level="test_index", sort=False).mean().T

    @cached_property
    def full(self) -> pd.DataFrame:
        """The measurement with nothing left out: a row a test example, a column a seed."""
        found = self._arrays("ground_truth.npz")
        return pd.DataFrame(found["full"], pd.Index(found["test_index"], name="test_index"), pd.Index(found["seed"], name="seed"))

    @cached_property
    def removed(self) -> pd.DataFrame:
        """Which training examples (columns) each removal (rows) left out, where several were left out together."""
        found = self._arrays("ground_truth.npz")
        if "removed" not in found:
            raise InfluxError(f"{self.path} left out one example at a time: the rows of change say which.")
        mask = found["removed"]
        return pd.DataFrame(mask, pd.RangeIndex(len(mask), name="removal"), pd.Index(found["train_index"], name="train_index"))

    def parameters(self) -> dict[str, np.ndarray]:
        """The trained model's parameters by name (`influx train` keeps them)."""
        from safetensors.numpy import load_file

        file = self.path / "model.safetensors"
        if not file.is_file():
            raise InfluxError(f"{self.path} has no model.safetensors: influx train keeps one.")
        return dict(load_file(file))

    def _arrays(self, name: str) -> dict[str, np.ndarray]:
        file = self.path / name
        if not file.is_file():
            needs = "influx validate" if name == "ground_truth.npz" else "influx estimate or validate"
            raise InfluxError(f"{self.path} has no {name}: {needs} writes one when it finishes.")
        with np.load(file, allow_pickle=False) as found:
            return dict(found)


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder: its joined table, and its runs."""

    path: Path

    @cached_property
    def summary(self) -> pd.DataFrame:
        """`summary.csv`: a row a job and statistic, a column a swept key."""
        return pd.read_csv(self.path / "summary.csv")

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The jobs' folders, by their number where they have one."""
        found = [file.parent for file in self.path.rglob("run.json")]
        return tuple(map(Run, sorted(found, key=lambda place: (not place.name.isdigit(), place.name.zfill(9), place))))


def load(path: str | Path) -> Run | Sweep:
    """The run or the sweep in a folder.

    Raises:
        InfluxError: there is neither; the message names what a folder needs.
    """
    folder = Path(path)
    if (folder / "run.json").is_file():
        return Run(folder)
    if (folder / "multirun.yaml").is_file() or (folder / "summary.csv").is_file():
        return Sweep(folder)
    if not folder.is_dir():
        raise InfluxError(f"there is no folder {folder}.")
    raise InfluxError(f"{folder} holds no run: a run folder has a run.json, a sweep's a multirun.yaml.")


def _labelled(values: np.ndarray, train_index: np.ndarray, test_index: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(values, pd.Index(train_index, name="train_index"), pd.Index(test_index, name="test_index"))
