"""The jobs of a sweep, read back from their folders: what each was asked, how it ended, and the tables that it left."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from influx.store import write_whole

SPEARMAN = {"statistic": "spearman", "label": "Spearman (mean over test examples)"}  # the headline of jobs that name none


@dataclass(frozen=True)
class Job:
    """One job: its number, what it was asked (key to value, as text), how it ended, its table of statistics and its curves, if any."""

    number: int
    asked: dict[str, str]
    record: dict[str, Any]
    table: pd.DataFrame | None
    curve: pd.DataFrame | None = None

    @property
    def headline(self) -> dict[str, str]:
        """The statistic that jobs are ranked by, and its name on an axis."""
        found: dict[str, str] = self.record.get("headline", SPEARMAN)
        return found

    @property
    def status(self) -> str:
        """`finished`, or one line that says why not."""
        said = str(self.record.get("status", "failed: it ended before it began (no run.json)"))
        return "failed: it was stopped" if said == "running" else said.strip().splitlines()[0]

    @property
    def seconds(self) -> float:
        """Of the estimate, or of training where nothing was estimated."""
        stages = self.record.get("stage_seconds", {})
        return float(stages.get("estimate", stages.get("train", math.nan)))


def note_failure(folder: Path, error: Exception) -> None:
    """Leave the reason in the folder of a job that was refused before it began."""
    record, asked = folder / "run.json", folder / ".hydra" / "overrides.yaml"
    if asked.is_file() and not _newer(record, asked):
        said = {"status": f"failed: {str(error).strip().splitlines()[0]}"}
        write_whole(record, (json.dumps(said, indent=2) + "\n").encode())


def note_refusal(folder: Path, words: Sequence[str], reason: str, number: int | None = None) -> None:
    """A folder for a job that could not be composed, or never began: what it was asked, and why it did not run. Its number is its folder's
    name unless it is said."""
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    if number is not None:
        write_whole(folder / ".hydra" / "hydra.yaml", yaml.safe_dump({"hydra": {"job": {"num": number}}}).encode())
    write_whole(folder / ".hydra" / "overrides.yaml", yaml.safe_dump(list(words)).encode())
    write_whole(folder / "run.json", (json.dumps({"status": f"failed: {reason.splitlines()[0]}"}, indent=2) + "\n").encode())


def read(folder: Path) -> list[Job]:
    """The jobs of a sweep by number. What an earlier sweep left in the same folder is not among them."""
    return [_job(number, place) for number, place in folders(folder).items()]


def folders(sweep: Path) -> dict[int, Path]:
    """The folders of a sweep's jobs by number, without those that an earlier sweep left there."""
    asked = [file.parent.parent for file in sweep.rglob(".hydra/overrides.yaml") if _newer(file, sweep / "multirun.yaml")]
    return dict(sorted((_number(folder), folder) for folder in asked))


def _job(number: int, folder: Path) -> Job:
    asked = folder / ".hydra" / "overrides.yaml"
    words = yaml.safe_load(asked.read_text()) or []
    settings = dict(str(word).lstrip("+").partition("=")[::2] for word in words)
    record: dict[str, Any] = {}
    if _newer(folder / "run.json", asked):
        record = json.loads((folder / "run.json").read_text())
    asked_for = {key: value.strip("'\"") for key, value in settings.items()}
    found: list[pd.DataFrame | None] = [None, None]
    if record.get("status") == "finished":
        files = folder / record.get("table", "correlations.csv"), folder / "curve.csv"
        found = [pd.read_csv(file) if file.is_file() else None for file in files]
    return Job(number, asked_for, record, *found)


def _number(folder: Path) -> int:
    said = folder / ".hydra" / "hydra.yaml"
    number = yaml.safe_load(said.read_text())["hydra"]["job"]["num"] if said.is_file() else None
    return number if isinstance(number, int) else int(folder.name)


def _newer(file: Path, than: Path) -> bool:
    return file.is_file() and (not than.is_file() or file.stat().st_mtime_ns >= than.stat().st_mtime_ns)
