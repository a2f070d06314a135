"""One run folder as tables and labelled arrays.

Nothing is read before it is asked for, and nothing that is read can run code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from influx import run_cards, run_files
from influx.errors import InfluxError, nearest

ARRAYS = {
    "influence": "influx estimate or validate",
    "ground_truth": "influx validate (with loo=true and no task)",
    "responses": "retraining.keep=responses",
}


@dataclass(frozen=True)
class Run:
    """One run folder.

    Tables are `pandas.DataFrame`s as their files have them (`run.correlations`, `run.table("diagnostics")`). Arrays have training examples
    in rows and test examples in columns, labelled with their positions in the data set's own order, so that `run.predicted` and
    `run.change` can be aligned, joined and correlated by label.

    Every attribute raises `InfluxError` in one line when the run has no such file, did not finish, or when the file is damaged.
    """

    path: Path

    # ------------------------------------------------------------------------------------------------------ what was run

    @cached_property
    def record(self) -> dict[str, Any]:
        """`run.json`: command, versions, seconds a stage, warnings, status. Empty for a sweep's job that ended before it began."""
        file = self.path / "run.json"
        if not file.is_file() and (self.path / ".hydra").is_dir():
            return {}
        return run_files.mapping(file)

    @property
    def command(self) -> str:
        """`train`, `estimate`, `validate` or `reproduce`."""
        return str(self.record.get("command") or self.config.get("command", ""))

    @property
    def status(self) -> str:
        """`finished`, or one line that says why not."""
        said = str(self.record.get("status", "failed: it ended before it began"))
        return "unfinished: it is running, or was stopped" if said == "running" else said.strip().splitlines()[0]

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The composed configuration; a value that refers to another is still written `${...}`."""
        return run_files.mapping(self.path / ".hydra" / "config.yaml")

    @cached_property
    def overrides(self) -> list[str]:
        """What was typed after the command."""
        if "overrides" in self.record:
            return list(self.record["overrides"])
        return run_files.words(self.path / ".hydra" / "overrides.yaml")

    @property
    def choices(self) -> dict[str, str]:
        """The chosen option of each group: data set, model, method ..."""
        return dict(self.record.get("choices", {}))

    @property
    def seconds(self) -> pd.Series:
        """Wall seconds of each stage."""
        return pd.Series(self.record.get("stage_seconds", {}), dtype=float, name="seconds").rename_axis("stage")

    # ---------------------------------------------------------------------------------------------------------- its tables

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables that the run left, without `.csv`; a study among several has its name before a slash."""
        return tuple(sorted(file.relative_to(self.path).with_suffix("").as_posix() for file in self.path.rglob("*.csv")))

    def table(self, name: str) -> pd.DataFrame:
        """One of `tables`.

        Raises:
            InfluxError: the run left no such table; the message lists those it left.
        """
        file = self.path / f"{name}.csv"
        if not file.is_file():
            had = f"it has {', '.join(self.tables)}" if self.tables else "it has no table"
            raise InfluxError(f"{self.path} has no {name}.csv; {had}.{nearest(name, self.tables)}{self._why()}")
        return run_files.table(file)

    @property
    def correlations(self) -> pd.DataFrame:
        """Agreement of estimate and truth: a row a statistic, with interval and noise ceiling."""
        return self.table("correlations")

    @property
    def per_test(self) -> pd.DataFrame:
        """Agreement test example by test example."""
        return self.table("per_test")

    @property
    def top_influences(self) -> pd.DataFrame:
        """For each test example its most helpful and most harmful training examples."""
        return self.table("top_influences")

    @property
    def history(self) -> pd.DataFrame:
        """Training, epoch by epoch: loss (nats, or half squared errors), accuracy, gradient norm."""
        return self.table("history")

    @property
    def claims(self) -> pd.DataFrame:
        """Of `influx reproduce`: a row a claim, with the paper's value, ours, its interval and the verdict."""
        return self.table("claims")

    # ---------------------------------------------------------------------------------------------------------- its arrays

    @property
    def headline(self) -> pd.Series | None:
        """The row of the run's table that stands for it: its mean Spearman, or what its task names; None where nothing was compared."""
        said = self.record.get("headline")
        if said is None or not self.finished:
            return None
        rows = self.table(Path(self.record["table"]).stem)
        chosen = rows[rows["statistic"] == said["statistic"]]
        own = chosen[chosen["score"] == self.choices.get("method")] if "score" in chosen else chosen
        return next((row for _, row in (own if len(own) else chosen).iterrows()), None)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of `influence`, `ground_truth` or `responses`, as the file has them.

        Raises:
            InfluxError: the run left no such file, or it is damaged.
        """
        if name not in ARRAYS:
            raise InfluxError(f"there are no arrays '{name}'; a run's are {', '.join(ARRAYS)}.{nearest(name, ARRAYS)}")
        file = self.path / f"{name}.npz"
        if not file.is_file():
            raise InfluxError(f"{self.path} has no {name}.npz: {ARRAYS[name]} writes one when it finishes.{self._why()}")
        return run_files.arrays(file)

    @cached_property
    def influence(self) -> pd.DataFrame:
        """The estimate, [n_train, n_test], in the measurement's unit: predicted change when the row's example is left out."""
        found = self.arrays("influence")
        return _labelled(found["influence"], found["train_index"], found["test_index"])

    @cached_property
    def changes(self) -> pd.DataFrame:
        """The truth seed by seed: columns are (seed, test_index). Rows are left-out training examples, or numbers of subsets or groups."""
        found = self._truth
        rows = self._together.index if "removed" in found else pd.Index(found["train_index"], name="train_index")
        columns = pd.MultiIndex.from_product([found["seed"], found["test_index"]], names=["seed", "test_index"])
        return pd.DataFrame(found["change"].transpose(0, 2, 1).reshape(len(rows), -1), rows, columns)

    @cached_property
    def change(self) -> pd.DataFrame:
        """The truth, mean over seeds, [n_removed, n_test]: what the measurement did when the row was left out."""
        return pd.DataFrame(self._truth["change"].mean(2), self.changes.index, pd.Index(self._truth["test_index"], name="test_index"))

    @cached_property
    def predicted(self) -> pd.DataFrame:
        """What the estimate says of each row of `change`: the sum of `influence` over what was left out, times `retraining.strength`."""
        each = self.influence.loc[self.change.index] if "removed" not in self._truth else self._together.astype(float) @ self.influence
        return each * self.config.get("retraining", {}).get("strength", 1.0)

    @cached_property
    def full(self) -> pd.DataFrame:
        """The measurement with nothing left out: a row a test example, a column a seed."""
        found = self._truth
        return pd.DataFrame(found["full"], pd.Index(found["test_index"], name="test_index"), pd.Index(found["seed"], name="seed"))

    @property
    def removed(self) -> pd.DataFrame:
        """Which training examples (columns) each removal (rows) left out, where several were left out together.

        Raises:
            InfluxError: one example was left out at a time.
        """
        if "removed" not in self._truth:
            raise InfluxError(f"{self.path} left out one example at a time: the rows of change say which.")
        return self._together

    def parameters(self) -> dict[str, np.ndarray]:
        """The trained model's parameters by name.

        Raises:
            InfluxError: the run has none, or the file is damaged.
        """
        file = self.path / "model.safetensors"
        if not file.is_file():
            raise InfluxError(f"{self.path} has no model.safetensors: influx train keeps one.{self._why()}")
        return run_files.tensors(file)

    @cached_property
    def _truth(self) -> dict[str, np.ndarray]:
        return self.arrays("ground_truth")

    @cached_property
    def _together(self) -> pd.DataFrame:
        mask = self._truth["removed"]
        return pd.DataFrame(mask, pd.RangeIndex(len(mask), name="removal"), pd.Index(self._truth["train_index"], name="train_index"))

    def _why(self) -> str:
        """Why a file may be missing."""
        return "" if self.finished else f" This run has not finished ({self.status})."

    def _repr_html_(self) -> str:
        return run_cards.of_run(self.path.resolve(), self.status, [self.command, *self.overrides], self.record, self.headline, self.tables)


def _labelled(values: np.ndarray, train_index: np.ndarray, test_index: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(values, pd.Index(train_index, name="train_index"), pd.Index(test_index, name="test_index"))
