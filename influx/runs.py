"""Finished runs in a notebook: `run = influx.load(path)`, and every file of its folder is a table or a labelled array.

Nothing is read before it is asked for, and nothing that is read can run code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from influx import run_cards, run_files, sweep_jobs
from influx.errors import InfluxError, nearest
from influx.finished_run import Run

__all__ = ["Run", "Sweep", "load"]


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder: its joined table, and its runs. `sweep[3]` is job 3, and a loop goes over all."""

    path: Path

    @cached_property
    def summary(self) -> pd.DataFrame:
        """`summary.csv`: a row a job and statistic, a column a swept key.

        Raises:
            InfluxError: the sweep has none yet, or it is damaged.
        """
        file = self.path / "summary.csv"
        if not file.is_file():
            raise InfluxError(f"{self.path} has no summary.csv: a sweep writes it when its last job ends; runs has the jobs there are.")
        return run_files.table(file)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The jobs in their order, those that failed or never began among them."""
        return tuple(self._jobs.values())

    @property
    def failed(self) -> dict[int, str]:
        """Why jobs did not finish, by their number."""
        return {number: run.status for number, run in self._jobs.items() if not run.finished}

    def table(self, name: str) -> pd.DataFrame:
        """One table of all finished jobs that have it, one below the other, with the job's number and what was swept in front.

        Raises:
            InfluxError: no finished job has it.
        """
        found = {number: run.table(name) for number, run in self._jobs.items() if run.finished and name in run.tables}
        if not found:
            had = sorted({one for run in self.runs if run.finished for one in run.tables})
            raise InfluxError(f"no finished job of {self.path} has a {name}.csv; they have {', '.join(had) or 'none'}.{nearest(name, had)}")
        swept = self.swept
        parts = [part.assign(job=number, **{key: swept[key].get(number) for key in swept}) for number, part in found.items()]
        joined = pd.concat(parts, ignore_index=True)
        front = ["job", *swept]
        return joined[[*front, *(column for column in joined if column not in front)]]

    @cached_property
    def swept(self) -> pd.DataFrame:
        """What was asked of each job: a row a job, a column each key that is not the same for all."""
        asked = [dict(word.lstrip("+").partition("=")[::2] for word in run.overrides) for run in self.runs]
        table = pd.DataFrame(asked, pd.Index(self._jobs, name="job"))
        return table[[key for key in table if table[key].nunique(dropna=False) > 1]]

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __getitem__(self, job: int) -> Run:
        if job not in self._jobs:
            raise InfluxError(f"{self.path} has no job {job}; it has {', '.join(map(str, self._jobs)) or 'none'}.")
        return self._jobs[job]

    @cached_property
    def _jobs(self) -> dict[int, Run]:
        return {number: Run(folder) for number, folder in sweep_jobs.folders(self.path).items()}

    def _repr_html_(self) -> str:
        return run_cards.of_sweep(self.path.resolve(), self.swept, {number: run.status for number, run in self._jobs.items()})


def load(path: str | Path) -> Run | Sweep:
    """The run or the sweep in a folder.

    Raises:
        InfluxError: there is neither; the message names what a folder needs.
    """
    folder = Path(path).expanduser()
    if (folder / "multirun.yaml").is_file():
        return Sweep(folder)
    if (folder / "run.json").is_file() or (folder / ".hydra" / "overrides.yaml").is_file():
        return Run(folder)
    if not folder.exists():
        raise InfluxError(f"there is no folder {folder}.")
    if folder.is_file() and folder.parent != folder:
        raise InfluxError(f"{folder} is a file: give the folder that it is in, {folder.parent}.")
    raise InfluxError(f"{folder} holds no run: a run folder has a run.json, a sweep's a multirun.yaml.{_inside(folder)}")


def _inside(folder: Path) -> str:
    """The newest run or sweep below a folder that holds several."""
    places = ("*", "*/*", "*/*/*")  # outputs/validate/runs/<time> from any of its parents
    found = [file for name in ("run.json", "multirun.yaml") for place in places for file in folder.glob(f"{place}/{name}")]
    newest = max(found, key=lambda file: file.stat().st_mtime, default=None)
    if newest is None:
        return ""
    whole = newest.parent.parent if (newest.parent.parent / "multirun.yaml").is_file() else newest.parent  # a job belongs to its sweep
    return f" The newest inside it is {whole}."
